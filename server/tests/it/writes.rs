//! Line protocol in: what is stored, what is refused and how.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::server::Server;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

#[tokio::test]
async fn lines_become_tables_and_columns_on_the_fly_in_every_precision() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let first = server
        .write(
            "?db=metrics",
            "cpu,host=a usage=1.5,busy=3i 1767225600000000000\n",
        )
        .await;
    assert_eq!(first.status(), 204);
    assert!(first.headers().contains_key("shoal-commit-token"));
    assert_eq!(first.headers()["shoal-rows"], "1");
    // A new field and a new tag of the same table.
    let more = server
        .write(
            "?db=metrics&precision=s",
            "cpu,host=b,zone=z note=\"x\" 1767225601\n",
        )
        .await;
    assert_eq!(more.status(), 204);
    for (query, stamp) in [
        ("bucket=metrics/autogen&precision=ms", "1767225602000"),
        ("bucket=metrics&precision=us", "1767225603000000"),
        ("bucket=metrics&precision=ns", "1767225604000000000"),
        ("bucket=metrics&precision=u", "1767225605000000"),
    ] {
        let response = server
            .post(&format!("/api/v2/write?{query}"))
            .header("Content-Encoding", "gzip")
            .body(gzip(format!("cpu,host=c usage=2 {stamp}").as_bytes()))
            .send()
            .await
            .expect("answer");
        assert_eq!(response.status(), 204, "{query}");
    }
    let rows = server
        .rows("SELECT host, zone, time, usage, busy, note FROM metrics.cpu ORDER BY time")
        .await;
    assert_eq!(
        rows[0],
        json!(["a", null, "2026-01-01T00:00:00Z", 1.5, 3, null])
    );
    assert_eq!(
        rows[1],
        json!(["b", "z", "2026-01-01T00:00:01Z", null, null, "x"])
    );
    let times: Vec<&str> = rows.as_array().expect("rows")[2..]
        .iter()
        .map(|r| r[2].as_str().expect("time"))
        .collect();
    assert_eq!(
        times,
        [
            "2026-01-01T00:00:02Z",
            "2026-01-01T00:00:03Z",
            "2026-01-01T00:00:04Z",
            "2026-01-01T00:00:05Z"
        ]
    );
    // The same point again replaces it.
    server
        .write("?db=metrics", "cpu,host=a usage=9 1767225600000000000")
        .await;
    let row = server
        .rows("SELECT usage, busy FROM metrics.cpu WHERE host = 'a'")
        .await;
    assert_eq!(row, json!([[9.0, 3]]));
}

#[tokio::test]
async fn bad_lines_are_named_and_the_good_ones_stored_unless_atomic() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let lines = "m,t=a v=1i 1\nm,t=a v= 2\n\n# comment\nm,t=b v=2i 3\nm,t=c v=\"text\" 4\nm,t=d v=1i nonsense\n";
    let response = server.write("?db=d", lines).await;
    assert_eq!(response.status(), 400);
    let body: Value = response.json().await.expect("JSON");
    assert!(
        body["error"].as_str().is_some_and(|e| e.contains("3 ")),
        "{body}"
    );
    assert_eq!(
        (&body["stored"], &body["rejected"]),
        (&json!(2), &json!(3)),
        "{body}"
    );
    let bad: Vec<i64> = body["lines"]
        .as_array()
        .expect("lines")
        .iter()
        .map(|l| l["line"].as_i64().expect("number"))
        .collect();
    assert_eq!(bad, [2, 6, 7], "{body}");
    assert!(body["lines"][0]["reason"].is_string() && body["lines"][0]["column"].is_number());
    assert_eq!(server.number("SELECT count(*) FROM d.m").await, 2);

    let response = server
        .write("?db=d&atomic=true", "m,t=x v=1i 9\nm,t=y v=oops 10\n")
        .await;
    assert_eq!(response.status(), 400);
    let body: Value = response.json().await.expect("JSON");
    assert_eq!(body["stored"], json!(0), "{body}");
    assert_eq!(server.number("SELECT count(*) FROM d.m").await, 2);
    // Nothing but bad lines makes no table.
    assert_eq!(server.write("?db=d", "nothing").await.status(), 400);
    assert_eq!(server.number("SELECT count(*) FROM d.m").await, 2);
}

#[tokio::test]
async fn every_kind_of_bad_request_has_its_own_clear_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let flags = [
        "--http-body-bytes-max",
        "1MiB",
        "--http-decompressed-bytes-max",
        "2MiB",
    ];
    let server = Server::start(dir.path(), &flags, &[]);
    let big = "m v=1 1\n".repeat(1 << 18);
    assert_eq!(server.write("?db=d", &big).await.status(), 413);
    let send = |path: &str, encoding: &'static str, body: Vec<u8>| {
        server
            .post(path)
            .header("Content-Encoding", encoding)
            .body(body)
            .send()
    };
    let bomb = send("/write?db=d", "gzip", gzip(&vec![b'x'; 8 << 20]))
        .await
        .expect("answer");
    assert_eq!(bomb.status(), 413);
    let broken = send("/write?db=d", "gzip", b"not gzip".to_vec())
        .await
        .expect("answer");
    assert_eq!(broken.status(), 400);
    let other = send("/write?db=d", "br", Vec::new()).await.expect("answer");
    assert_eq!(other.status(), 415);
    for (query, lines, part) in [
        ("?db=d&precision=fortnight", "m v=1", "precision"),
        ("?db=d&atomic=maybe", "m v=1", "atomic"),
        ("?db=%01", "m v=1", "schema"),
        ("?db=d", "m v=1 99999999999999999999", ""),
        ("?db=d", ",t=x v=1 1", ""),
    ] {
        let response = server.write(query, lines).await;
        assert_eq!(response.status(), 400, "{query} {lines}");
        let body: Value = response.json().await.expect("JSON");
        let error = body["error"].as_str().unwrap_or_default();
        assert!(
            !error.is_empty() && error.contains(part),
            "{query} {lines}: {body}"
        );
    }
    let invalid = server
        .post("/write?db=d")
        .body(b"m,t=\xff v=1 1\n".to_vec())
        .send()
        .await;
    assert_eq!(invalid.expect("answer").status(), 400);
    let bad_id = server
        .post("/write?db=d")
        .header("Shoal-Write-Id", "x")
        .body("m v=1")
        .send();
    assert_eq!(bad_id.await.expect("answer").status(), 400);
    assert_eq!(
        server
            .get("/nowhere")
            .send()
            .await
            .expect("answer")
            .status(),
        404
    );
    assert_eq!(
        server.get("/write").send().await.expect("answer").status(),
        405
    );
    assert_eq!(
        server
            .number("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'd'")
            .await,
        0
    );
}

#[tokio::test]
async fn a_write_id_is_applied_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    server
        .rows("CREATE TABLE log (n BIGINT) WITH (mode = 'append')")
        .await;
    let body = arrow_rows(3);
    let id = ulid::Ulid::new().to_string();
    for round in 0..3 {
        let response = server
            .post("/v1/ingest/log")
            .header("Shoal-Write-Id", &id)
            .body(body.clone())
            .send()
            .await
            .expect("answer");
        assert_eq!(response.status(), 200);
        let duplicate = response.headers().contains_key("shoal-duplicate");
        assert_eq!(duplicate, round > 0);
    }
    assert_eq!(server.number("SELECT count(*) FROM log").await, 3);
    // Without an id every send counts.
    server
        .post("/v1/ingest/log")
        .body(body)
        .send()
        .await
        .expect("answer");
    assert_eq!(server.number("SELECT count(*) FROM log").await, 6);
}

fn arrow_rows(rows: i64) -> Vec<u8> {
    use arrow_array::{ArrayRef, Int64Array, RecordBatch};
    use std::sync::Arc;
    let columns: Vec<(&str, ArrayRef)> =
        vec![("n", Arc::new(Int64Array::from_iter_values(0..rows)))];
    let batch = RecordBatch::try_from_iter(columns).expect("batch");
    let mut writer =
        arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &batch.schema()).expect("writer");
    writer.write(&batch).expect("write");
    writer.into_inner().expect("bytes")
}

#[tokio::test]
async fn the_statements_that_influxdb_clients_send_first_are_answered() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let query = |q: &str| {
        let form = format!("q={}", q.replace(' ', "+").replace('"', "%22"));
        server
            .post("/query")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
    };
    let created = query("CREATE DATABASE \"telegraf\"").await.expect("answer");
    assert_eq!(created.status(), 200);
    assert!(created.headers().contains_key("x-influxdb-version"));
    let body: Value = created.json().await.expect("JSON");
    assert_eq!(body, json!({"results": [{"statement_id": 0}]}));
    let body: Value = query("SHOW DATABASES")
        .await
        .expect("answer")
        .json()
        .await
        .expect("JSON");
    let names = body["results"][0]["series"][0]["values"].to_string();
    assert!(names.contains("[\"telegraf\"]"), "{names}");
    server.write("?db=telegraf", "cpu v=1").await;
    let response = server
        .get("/query?db=telegraf&q=SHOW+MEASUREMENTS")
        .send()
        .await;
    let body: Value = response.expect("answer").json().await.expect("JSON");
    assert_eq!(body["results"][0]["series"][0]["values"], json!([["cpu"]]));
    let refused = query("SELECT * FROM cpu").await.expect("answer");
    assert_eq!(refused.status(), 400);
    query("DROP DATABASE telegraf").await.expect("answer");
    let body: Value = query("SHOW DATABASES")
        .await
        .expect("answer")
        .json()
        .await
        .expect("JSON");
    assert!(!body.to_string().contains("telegraf"), "{body}");
    let ping = server.get("/ping").send().await.expect("answer");
    assert_eq!(ping.status(), 204);
    assert!(ping.headers().contains_key("x-influxdb-version"));
}

#[tokio::test]
async fn what_sql_could_not_read_is_not_written_and_one_wrong_line_costs_one_line() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    for own in ["information_schema", "pg_catalog", "system"] {
        let response = server.write(&format!("?db={own}"), "m v=1 1").await;
        assert_eq!(response.status(), 403, "{own}");
        let made = server
            .post(&format!("/query?q=CREATE%20DATABASE%20{own}"))
            .send()
            .await
            .expect("answer");
        let made: Value = made.json().await.expect("json");
        assert!(made["results"][0]["error"].is_string(), "{made}");
    }
    // A slash parts bucket and policy in v2 only.
    assert_eq!(server.write("?db=a/b", "m v=1 1").await.status(), 204);
    assert_eq!(server.number(r#"SELECT count(*) FROM "a/b".m"#).await, 1);
    // The table says what type `v` has, not the first line of the body.
    assert_eq!(server.write("", "m v=1 1").await.status(), 204);
    let response = server.write("", "m v=\"x\" 2\nm v=2 3\nm v=3 4").await;
    assert_eq!(response.status(), 400);
    let answer: Value = response.json().await.expect("json");
    assert_eq!(answer["stored"], 2, "{answer}");
    assert_eq!(answer["lines"][0]["line"], 1, "{answer}");
    assert_eq!(answer["lines"][0]["column"], 3, "{answer}");
    assert_eq!(server.number("SELECT count(*) FROM m").await, 3);
    // The default schema is emptied, not gone.
    let dropped = server
        .post("/query?q=DROP%20DATABASE%20public")
        .send()
        .await
        .expect("answer");
    assert_eq!(dropped.status(), 200);
    let (status, answer) = server
        .sql_raw(&json!({"sql": "CREATE TABLE m (a BIGINT PRIMARY KEY)"}))
        .await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_statement_that_is_sent_again_with_its_write_id_takes_effect_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    server
        .rows("CREATE TABLE a (n BIGINT, v BIGINT) WITH (mode = 'append')")
        .await;
    server
        .rows("CREATE TABLE u (n BIGINT NOT NULL, v BIGINT, PRIMARY KEY (n))")
        .await;
    let send = async |id: &str, sql: &str| {
        let request = server.post("/v1/sql").header("Shoal-Write-Id", id);
        let response = request
            .json(&json!({ "sql": sql }))
            .send()
            .await
            .expect("answer");
        let again = response.headers().contains_key("shoal-duplicate");
        (response.status().as_u16(), again)
    };
    let fresh = || ulid::Ulid::new().to_string();
    for sql in [
        "INSERT INTO a VALUES (1, 1), (2, 2)",
        "INSERT INTO u VALUES (1, 1), (2, 2)",
        "UPDATE u SET v = v + 10 WHERE n = 1",
        "INSERT INTO a SELECT n, v FROM u",
    ] {
        let id = fresh();
        assert_eq!(send(&id, sql).await, (200, false), "{sql}");
        assert_eq!(send(&id, sql).await, (200, true), "{sql}");
    }
    assert_eq!(server.number("SELECT count(*) FROM a").await, 4);
    assert_eq!(server.number("SELECT v FROM u WHERE n = 1").await, 11);
    // Rows that came after the deletion stay when it is sent again.
    for (sql, table) in [
        ("DELETE FROM a WHERE n = 1", "a"),
        ("DELETE FROM u WHERE n = 1", "u"),
    ] {
        let id = fresh();
        assert_eq!(send(&id, sql).await, (200, false), "{sql}");
        server
            .rows(&format!("INSERT INTO {table} VALUES (1, 5)"))
            .await;
        assert_eq!(send(&id, sql).await, (200, true), "{sql}");
        let left = format!("SELECT count(*) FROM {table} WHERE n = 1");
        assert_eq!(server.number(&left).await, 1);
    }
    // Of a change sent again, nobody knows any more how many rows it found.
    let id = fresh();
    for affected in [json!(2), Value::Null] {
        let sql = json!({"sql": "UPDATE u SET v = v + 1"});
        let request = server.post("/v1/sql").header("Shoal-Write-Id", &id);
        let answer = request.json(&sql).send().await.expect("answer");
        let answer: Value = answer.json().await.expect("json");
        assert_eq!(answer["affected"], affected, "{answer}");
        server.rows("INSERT INTO u VALUES (100, 1)").await;
    }
    let long_ago = ulid::Ulid::from_parts(1_600_000_000_000, 1).to_string();
    let expired = send(&long_ago, "INSERT INTO a VALUES (9, 9)").await;
    assert_eq!(expired, (409, false));
    for (id, sql) in [
        (fresh(), "SELECT 1"),
        (fresh(), "DROP TABLE a"),
        (
            fresh(),
            "INSERT INTO a SELECT value, value FROM generate_series(1, 70000)",
        ),
        ("nonsense".to_owned(), "INSERT INTO a VALUES (9, 9)"),
    ] {
        assert_eq!(send(&id, sql).await.0, 400, "{sql}");
    }
    assert_eq!(server.number("SELECT count(*) FROM a WHERE n > 2").await, 0);
}
