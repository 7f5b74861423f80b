//! Names that requests use: parameters, fields, tables.

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::server::Server;

/// Status and error text.
async fn answer(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    (status, response.text().await.expect("text"))
}

#[tokio::test]
async fn unknown_parameters_are_refused_with_the_nearest_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let line = "cpu,host=a v=1 1767225600";
    for (path, near) in [
        ("/write?presicion=s", "precision"),
        ("/write?db=x&atomc=true", "atomic"),
        ("/api/v2/write?org=o&buket=b", "bucket"),
        ("/query?q=SHOW+DATABASES&epch=s", "epoch"),
        ("/v1/sql?formt=csv", "none is known here"),
        ("/v1/ingest/cpu?shema=x", "schema"),
    ] {
        let (status, text) = answer(server.post(path).body(line)).await;
        assert!(
            status == 400 && text.contains(near),
            "{path}: {status} {text}"
        );
    }
    let form = [("q", "SHOW DATABASES"), ("epch", "s")];
    let (status, text) = answer(server.post("/query").form(&form)).await;
    assert!(status == 400 && text.contains("epoch"), "{status} {text}");
    let body = json!({ "sql": "SELECT 1", "formt": "csv" });
    let (status, text) = answer(server.post("/v1/sql").json(&body)).await;
    assert!(
        status == 400 && text.contains("\\\"format\\\""),
        "{status} {text}"
    );
    let two = "/write?db=a&bucket=b";
    let (status, text) = answer(server.post(two).body(line)).await;
    assert!(
        status == 400 && text.contains("two schemas"),
        "{status} {text}"
    );
    let tables = "SELECT count(*) FROM system.tables";
    assert_eq!(server.number(tables).await, 0);
}

#[tokio::test]
async fn what_influxdbs_clients_send_is_taken() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    for path in [
        // Telegraf, influxdb-java, influxdb-python, Go and node clients of 1.x.
        "/write?consistency=any&db=d1&precision=s&rp=autogen",
        "/write?u=me&p=secret&db=d1&rp=&precision=s&consistency=one",
        // Clients of 2.x, and those that use the other version's word.
        "/api/v2/write?org=o&bucket=d1&precision=s",
        "/api/v2/write?orgID=0a&bucket=d1/autogen&precision=s&consistency=all",
        "/write?org=o&bucket=d1/autogen&precision=s",
        "/api/v2/write?db=d1&precision=s",
        "/write?db=d1&precision=s&atomic=true",
    ] {
        let (status, text) = answer(server.post(path).body("cpu,host=a v=1 1767225600")).await;
        assert_eq!(status, 204, "{path}: {text}");
    }
    for path in [
        "/query?q=SHOW+DATABASES&db=d1&rp=autogen&epoch=ms&pretty=true&chunked=true&chunk_size=100&u=a&p=b",
        "/query?q=SHOW+DATABASES&params=%7B%7D&async=false&node_id=1&precision=ns&org=o&bucket=b",
    ] {
        let (status, text) = answer(server.get(path)).await;
        assert_eq!(status, 200, "{path}: {text}");
    }
    let (status, _) = answer(server.get("/ping?verbose=true&wait_for_leader=1s")).await;
    assert_eq!(status, 200);
    assert_eq!(server.number("SELECT count(*) FROM d1.cpu").await, 1);
    let schemas = server
        .rows("SELECT count(DISTINCT table_schema) FROM system.tables")
        .await;
    assert_eq!(schemas, json!([[1]]));
}

#[tokio::test]
async fn parameters_that_are_no_text_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    for (path, name) in [
        ("/write?db=%ff", "db"),
        ("/api/v2/write?org=o&bucket=a%c3", "bucket"),
        ("/query?q=CREATE+DATABASE+%ff", "q"),
        ("/v1/ingest/cpu?schema=%fe", "schema"),
    ] {
        let (status, text) = answer(server.post(path).body("cpu v=1")).await;
        assert_eq!(status, 400, "{path}: {text}");
        let error: Value = serde_json::from_str(&text).expect("JSON");
        let message = match &error["error"] {
            Value::String(message) => message.clone(),
            other => other["message"].to_string(),
        };
        assert!(
            message.contains("UTF-8") && message.contains(name),
            "{path}: {message}"
        );
    }
    let form = server
        .post("/query")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body("q=CREATE+DATABASE+%ff");
    let (status, text) = answer(form).await;
    assert!(status == 400 && text.contains("UTF-8"), "{status} {text}");
    let (status, _) = answer(server.post("/write?db=gr%c3%bc%c3%9fe").body("cpu v=1")).await;
    assert_eq!(status, 204);
    assert_eq!(server.number("SELECT count(*) FROM \"grüße\".cpu").await, 1);
}

#[tokio::test]
async fn tables_may_begin_with_underscores_but_not_as_the_planners_own() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    for name in ["__shoal_x", "__scalar_sq_1", "__correlated_sq_7"] {
        let sql = format!("CREATE TABLE {name} (id BIGINT PRIMARY KEY)");
        let (status, body) = server.sql_raw(&json!({ "sql": sql })).await;
        let message = body["error"]["message"].as_str().unwrap_or("");
        assert!(status == 400 && message.contains("reserved"), "{body}");
        let response = server.write("?db=public", &format!("{name},a=b v=1")).await;
        assert_eq!(response.status(), 400);
        let text = response.text().await.expect("text");
        assert!(
            text.contains("reserved") && text.contains("line 1"),
            "{text}"
        );
    }
    let (status, body) = server
        .sql_raw(&json!({ "sql": "CREATE SCHEMA __shoal" }))
        .await;
    assert_eq!(status, 400, "{body}");
    assert_eq!(
        server.write("?db=public", "__cpu,a=b v=1").await.status(),
        204
    );
    server
        .rows("CREATE TABLE __mine (id BIGINT PRIMARY KEY, v BIGINT)")
        .await;
    server
        .rows("INSERT INTO __mine VALUES (1, 2), (2, 2)")
        .await;
    let sql = "SELECT id, (SELECT max(b.id) FROM __mine b WHERE b.v = __mine.v) FROM __mine WHERE v IN (SELECT v FROM __mine) ORDER BY id";
    assert_eq!(server.rows(sql).await, json!([[1, 2], [2, 2]]));
    assert_eq!(server.number("SELECT count(*) FROM __cpu").await, 1);
    let renamed = json!({ "sql": "ALTER TABLE __mine RENAME TO __shoal" });
    assert_eq!(server.sql_raw(&renamed).await.0, 400);
    for sql in [
        "ALTER TABLE __mine ADD COLUMN __op BOOLEAN",
        "ALTER TABLE __mine RENAME COLUMN v TO __set",
        "CREATE TABLE t AS SELECT 1 AS __x",
    ] {
        let (status, body) = server.sql_raw(&json!({ "sql": sql })).await;
        let message = body["error"]["message"].as_str().unwrap_or("");
        assert!(
            status == 400 && message.contains("reserved"),
            "{sql}: {body}"
        );
    }
}
