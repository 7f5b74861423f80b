//! Statements out: the three formats, parameters, errors.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::Server;

#[tokio::test]
async fn one_result_is_the_same_in_json_csv_and_arrow() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let sql = "SELECT 9007199254740993 AS big, 'a,\"b' AS text, CAST(1.50 AS DECIMAL(5,2)) AS d, \
               TIMESTAMP '2026-01-01 00:00:00' AS ts, CAST(NULL AS TEXT) AS n, CAST('NaN' AS DOUBLE PRECISION) AS nan";
    let (status, body) = server.sql_raw(&json!({ "sql": sql })).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        body["rows"].to_string(),
        r#"[[9007199254740993,"a,\"b","1.50","2026-01-01T00:00:00Z",null,null]]"#
    );
    assert_eq!(body["columns"][0], json!({"name": "big", "type": "BIGINT"}));
    assert!(body["stats"]["rows"] == json!(1), "{body}");
    let get = |format: &'static str| {
        server
            .post("/v1/sql")
            .json(&json!({ "sql": sql, "format": format }))
            .send()
    };
    let csv = get("csv")
        .await
        .expect("answer")
        .text()
        .await
        .expect("text");
    assert_eq!(
        csv,
        "big,text,d,ts,n,nan\r\n9007199254740993,\"a,\"\"b\",1.50,2026-01-01T00:00:00Z,,NaN\r\n"
    );
    let bytes = get("arrow")
        .await
        .expect("answer")
        .bytes()
        .await
        .expect("bytes");
    let mut reader = arrow_ipc::reader::StreamReader::try_new(&bytes[..], None).expect("stream");
    let batch = reader.next().expect("a batch").expect("batch");
    assert_eq!((batch.num_rows(), batch.num_columns()), (1, 6));
}

#[tokio::test]
async fn parameters_and_errors_say_what_they_are() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    server
        .write("?db=public", "cpu,host=a usage=1 1\ncpu,host=b usage=2 2")
        .await;
    let request = json!({ "sql": "SELECT usage FROM cpu WHERE host = $1", "params": ["b"] });
    let (status, body) = server.sql_raw(&request).await;
    assert_eq!((status, &body["rows"]), (200, &json!([[2.0]])), "{body}");
    let (status, body) = server
        .sql_raw(&json!({ "sql": "SELECT usgae FROM cpu" }))
        .await;
    assert_eq!(status, 400);
    assert_eq!(body["error"]["code"], "undefined_column", "{body}");
    assert_eq!(body["error"]["retry"], "never");
    assert!(body["error"].to_string().contains("usage"), "{body}");
    for (request, status, code) in [
        (json!({ "sql": "SELEC 1" }), 400, "syntax_error"),
        (
            json!({ "sql": "SELECT 1", "colour": "red" }),
            400,
            "invalid_request",
        ),
        (
            json!({ "sql": "SELECT $1", "params": [[1]] }),
            400,
            "invalid_parameter",
        ),
        (
            json!({ "sql": "SELECT 1", "consistency": "sometimes" }),
            400,
            "invalid_value",
        ),
        (
            json!({ "sql": "SELECT 1", "read_from": "follower" }),
            400,
            "no_follower",
        ),
        (
            json!({ "sql": "SELECT 1", "commit_tokens": ["x"] }),
            400,
            "invalid_value",
        ),
    ] {
        let (got, body) = server.sql_raw(&request).await;
        assert_eq!(
            (got, body["error"]["code"].as_str()),
            (status, Some(code)),
            "{request}: {body}"
        );
    }
    let endless = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b WHERE a.value % 7 = b.value % 11";
    let (status, body) = server
        .sql_raw(&json!({ "sql": endless, "timeout_ms": 200 }))
        .await;
    assert_eq!(
        (status, body["error"]["code"].as_str()),
        (504, Some("timeout")),
        "{body}"
    );
}

#[tokio::test]
async fn a_failure_after_the_first_rows_is_visible_to_the_client() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    // Division by zero in a late row.
    let sql = "SELECT 1 / (200000 - value) FROM generate_series(1, 300000) t";
    for format in ["json", "csv", "arrow"] {
        let request = json!({ "sql": sql, "format": format });
        let mut response = server
            .post("/v1/sql")
            .json(&request)
            .send()
            .await
            .expect("answer");
        let status = response.status().as_u16();
        let mut body = Vec::new();
        let broken = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(status >= 400 || broken, "{format}: {status}");
        if format == "json" {
            let text = String::from_utf8_lossy(&body);
            assert!(text.contains("division_by_zero"), "{}", &text[..200]);
        }
    }
}

#[tokio::test]
async fn a_statement_ends_when_its_client_goes_away() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let endless = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b WHERE a.value % 7 = b.value % 11";
    let request = server.post("/v1/sql").json(&json!({ "sql": endless }));
    let gone = request.timeout(Duration::from_millis(300)).send().await;
    assert!(gone.is_err_and(|e| e.is_timeout()));
    // This statement lists itself.
    let running = "SELECT count(*) FROM system.queries";
    let began = Instant::now();
    while server.number(running).await > 1 {
        assert!(began.elapsed() < Duration::from_secs(10), "still running");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn metrics_health_and_admin_answer() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    server.write("?db=public", "cpu,host=a usage=1 1").await;
    let metrics = server
        .get("/metrics")
        .send()
        .await
        .expect("answer")
        .text()
        .await
        .expect("text");
    for name in [
        "shoal_ingest_rows_total",
        "shoal_http_requests_total",
        "shoal_query_memory_bytes",
        "shoal_engine_",
        "shoal_wal_fsync_seconds_bucket",
    ] {
        assert!(metrics.contains(name), "{name} is missing in {metrics}");
    }
    let get = |path: &'static str| async {
        server
            .get(path)
            .send()
            .await
            .expect("answer")
            .json::<Value>()
            .await
            .expect("JSON")
    };
    let shards = get("/v1/admin/shards").await;
    assert!(
        shards[0]["id"].is_string() && shards[0]["epoch"].is_string(),
        "{shards}"
    );
    let tables = get("/v1/admin/tables").await;
    assert_eq!(tables[0]["name"], "cpu", "{tables}");
    let route = get("/v1/route/cpu").await;
    assert_eq!(route["key"], json!(["host", "time"]), "{route}");
    for path in ["/v1/admin/flush", "/v1/admin/compact", "/v1/admin/gc"] {
        let response = server
            .post(path)
            .json(&json!({}))
            .send()
            .await
            .expect("answer");
        assert_eq!(
            response.status(),
            200,
            "{path}: {:?}",
            response.text().await
        );
    }
    assert_eq!(server.number("SELECT count(*) FROM cpu").await, 1);
    assert_eq!(get("/v1/openapi.json").await["openapi"], "3.1.0");
}

#[tokio::test]
async fn columns_have_the_names_that_postgresql_gives_them_in_every_format() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    server.write("?db=public", "cpu,host=a usage=1 1").await;
    let sql = "SELECT 1, 1, count(*), max(usage) + 1, CAST(count(*) AS TEXT), host, host AS h FROM cpu GROUP BY host";
    let names = [
        "?column?", "?column?", "count", "?column?", "count", "host", "h",
    ];
    let (status, body) = server.sql_raw(&json!({ "sql": sql })).await;
    assert_eq!(status, 200, "{body}");
    let columns = body["columns"].as_array().expect("columns");
    let told: Vec<&str> = columns.iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(told, names);
    assert_eq!(body["rows"], json!([[1, 1, 1, 2.0, "1", "a", "a"]]));
    let get = async |format: &str| {
        let request = json!({ "sql": sql, "format": format });
        let sent = server.post("/v1/sql").json(&request).send().await;
        sent.expect("answer").bytes().await.expect("bytes")
    };
    let csv = get("csv").await;
    let text = String::from_utf8_lossy(&csv);
    assert!(
        text.starts_with(&format!("{}\r\n", names.join(","))),
        "{text}"
    );
    let arrow = get("arrow").await;
    let reader = arrow_ipc::reader::StreamReader::try_new(&arrow[..], None).expect("stream");
    let schema = reader.schema();
    let told: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!(told, names);
    server
        .rows("CREATE TABLE sums AS SELECT count(*), max(usage) FROM cpu")
        .await;
    assert_eq!(
        server.rows("SELECT count, max FROM sums").await,
        json!([[1, 1.0]])
    );
}
