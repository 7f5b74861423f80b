//! Who may come in, and what is refused before anything is served.

use serde_json::json;

use crate::server::{Server, run, stderr};

#[tokio::test]
async fn a_token_opens_every_door_in_every_spelling_and_nothing_else_does() {
    let dir = tempfile::tempdir().expect("tempdir");
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, "s3cret\n").expect("write");
    let path = token_file.display().to_string();
    let server = Server::start(dir.path(), &["--auth-token-file", &path], &[]);
    let select = || server.post("/v1/sql").json(&json!({ "sql": "SELECT 1" }));
    for open in ["/ping", "/health", "/health/live", "/health/ready"] {
        let status = server.get(open).send().await.expect("answer").status();
        assert!(status.is_success(), "{open}: {status}");
    }
    for closed in [
        "/metrics",
        "/v1/admin/shards",
        "/query?q=SHOW%20DATABASES",
        "/v1/nothing",
    ] {
        let response = server.get(closed).send().await.expect("answer");
        assert_eq!(response.status(), 401, "{closed}");
        assert!(response.headers().contains_key("www-authenticate"));
    }
    assert_eq!(select().send().await.expect("answer").status(), 401);
    for good in [
        select().bearer_auth("s3cret"),
        select().header("Authorization", "Token s3cret"),
        select().basic_auth("anyone", Some("s3cret")),
    ] {
        assert_eq!(good.send().await.expect("answer").status(), 200);
    }
    assert_eq!(
        select()
            .bearer_auth("s3cre")
            .send()
            .await
            .expect("answer")
            .status(),
        401
    );
    let written = server.write("?db=d&u=me&p=s3cret", "m v=1").await;
    assert_eq!(written.status(), 204);
    let refused = server.write("?db=d&u=me&p=wrong", "m v=1").await;
    assert_eq!(refused.status(), 401);
    // InfluxDB's clients read `error` as text.
    let body: serde_json::Value = refused.json().await.expect("JSON");
    assert!(body["error"].is_string(), "{body}");
}

#[tokio::test]
async fn influx_clients_may_send_query_and_token_as_a_form() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::start(dir.path(), &[], &[("SHOAL_AUTH_TOKEN", "s3cret")]);
    let query = || server.http.post(format!("{}/query", server.url));
    let encoded = |text: &str| {
        query()
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(text.to_owned())
    };
    let multipart = |fields: &[(&str, &str)]| {
        let parts: String = fields
            .iter()
            .map(|(name, value)| {
                format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
            })
            .collect();
        query()
            .header("Content-Type", "multipart/form-data; boundary=x")
            .body(format!("{parts}--x--\r\n"))
    };
    for (request, status) in [
        (encoded("q=CREATE+DATABASE+%22a%22&u=me&p=s3cret"), 200),
        (encoded("q=SHOW+DATABASES&u=me&p=wrong"), 401),
        (encoded("q=SHOW+DATABASES"), 401),
        (encoded("q=SHOW+DATABASES").bearer_auth("s3cret"), 200),
        (
            encoded("q=SHOW+DATABASES&p=s3cret").bearer_auth("wrong"),
            401,
        ),
        (
            multipart(&[("q", "CREATE DATABASE b; SHOW DATABASES"), ("p", "s3cret")]),
            200,
        ),
        (multipart(&[("q", "SHOW DATABASES"), ("p", "wrong")]), 401),
        (encoded("q=CREATE+DATABASE+%27c%27&p=s3cret"), 400),
        (
            query()
                .header("Content-Type", "text/plain")
                .body("q=SHOW+DATABASES&p=s3cret"),
            401,
        ),
    ] {
        let response = request.send().await.expect("answer");
        assert_eq!(response.status(), status, "{:?}", response.text().await);
    }
    let shown = encoded("q=SHOW+DATABASES&p=s3cret")
        .send()
        .await
        .expect("answer");
    let shown = shown.text().await.expect("text");
    assert!(
        shown.contains(r#"["a"]"#) && shown.contains(r#"["b"]"#),
        "{shown}"
    );
    assert!(
        !shown.contains("'c'") && !shown.contains(r#"["c"]"#),
        "{shown}"
    );
}

#[test]
fn an_address_that_the_network_reaches_is_refused_without_a_token() {
    let dir = tempfile::tempdir().expect("tempdir");
    let data = dir.path().join("data").display().to_string();
    let open = [
        "standalone",
        "--data-dir",
        &data,
        "--http-addr",
        "0.0.0.0:0",
        "--postgres-addr",
        "off",
    ];
    let output = run(&open);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(
        text.contains("http.addr") && text.contains("--insecure"),
        "{text}"
    );
    assert!(!dir.path().join("data").exists(), "nothing was opened");
}

#[test]
fn configuration_errors_name_key_value_place_and_remedy() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("shoal.toml");
    let path = file.display().to_string();
    let check = |text: &str| {
        std::fs::write(&file, text).expect("write");
        let output = run(&["config", "--config", &path]);
        (output.status.code(), stderr(&output))
    };
    let (code, text) = check("[http]\nadress = '127.0.0.1:1'\n");
    assert_eq!(code, Some(2));
    assert!(
        text.contains("http.adress") && text.contains("\"http.addr\""),
        "{text}"
    );
    let (code, text) = check("[http]\naddr = 'nonsense'\n");
    assert_eq!(code, Some(2));
    assert!(
        text.contains("nonsense") && text.contains("shoal.toml"),
        "{text}"
    );
    let (code, text) = check("[http\n");
    assert_eq!(code, Some(2));
    assert!(text.contains("not valid TOML"), "{text}");
    let output = run(&["config", "--wal-record-rows-max", "70000"]);
    let text = stderr(&output);
    assert!(
        text.contains("--wal-record-rows-max") && text.contains("65536"),
        "{text}"
    );
    let defaults = run(&["config", "--defaults"]);
    assert!(defaults.status.success());
    let (code, text) = check(&String::from_utf8_lossy(&defaults.stdout));
    assert_eq!(code, Some(0), "{text}");
}
