//! Bad input: what is good is stored, what is not is told with its place.

use serde_json::{Value, json};
use shoal_tests::{Failure, Server};

/// The JSON body of a refusal with this status.
fn body(result: Result<impl std::fmt::Debug, Failure>, status: u16) -> Value {
    let failure = result.expect_err("this must be refused");
    assert_eq!(failure.status, Some(status), "{failure:?}");
    serde_json::from_str(&failure.text).unwrap_or_else(|e| panic!("{e}: {failure:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_lines_of_a_bad_request_are_stored_and_the_bad_ones_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    let client = server.client();
    client
        .write("typed,host=a v=1i 1\n".into())
        .await
        .expect("the first type");
    let mixed = "typed,host=a v=2i 2\ntyped,host=a v=oops 3\ntyped,host=a v=3.5 4\ntyped,host=b v=4i 5\n,x=1 v=1i 6\ntyped v=1i 99999999999999999999\n";
    let refusal = body(client.write(mixed.into()).await, 400);
    assert_eq!(refusal["stored"], 2, "{refusal}");
    assert_eq!(refusal["rejected"], 4, "{refusal}");
    let lines: Vec<u64> = refusal["lines"]
        .as_array()
        .expect("a list of lines")
        .iter()
        .map(|line| {
            assert!(line["column"].as_u64().is_some_and(|c| c > 0), "{line}");
            assert!(
                line["reason"].as_str().is_some_and(|r| r.len() > 5),
                "{line}"
            );
            line["line"].as_u64().expect("a number")
        })
        .collect();
    assert_eq!(lines, [2, 3, 5, 6], "{refusal}");
    assert_eq!(client.count("SELECT count(*) FROM typed").await, 3);

    // All or nothing where asked for.
    let atomic = client
        .post_text(
            "/write?db=public&atomic=true",
            "typed,host=c v=1i 7\ntyped,host=c v=oops 8\n",
        )
        .await;
    body(atomic, 400);
    assert_eq!(client.count("SELECT count(*) FROM typed").await, 3);

    // Only the first hundred are listed, all are counted.
    let many = "bad\n".repeat(250);
    let refusal = body(client.write(many).await, 400);
    assert_eq!(refusal["rejected"], 250, "{refusal}");
    assert_eq!(refusal["lines"].as_array().map(Vec::len), Some(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_bodies_and_wrong_sql_have_errors_that_say_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = [("SHOAL_HTTP_BODY_BYTES_MAX", "64KiB")];
    let server = Server::start(&folder.path().join("data"), &settings).await;
    let client = server.client();
    let large = "large,host=a v=1i 1\n".repeat(10_000);
    let refusal = body(client.write(large).await, 413);
    assert!(
        refusal["error"]
            .as_str()
            .is_some_and(|e| e.contains("http.body_bytes_max")),
        "{refusal}"
    );

    client
        .write("weather,city=oslo temperature=1.5 1\n".into())
        .await
        .expect("write");
    let refusal = body(client.sql("SELECT\n temprature FROM weather").await, 400);
    let error = &refusal["error"];
    assert!(
        error.to_string().contains("temperature"),
        "no suggestion: {refusal}"
    );
    assert_eq!(error["position"]["line"], 2, "{refusal}");
    assert_eq!(error["position"]["column"], 2, "{refusal}");
    let refusal = body(client.sql("SELECT * FROM wether").await, 400);
    assert!(
        refusal["error"].to_string().contains("weather"),
        "no suggestion: {refusal}"
    );
    let refusal = body(client.sql("SELEC 1").await, 400);
    assert_eq!(refusal["error"]["position"]["line"], 1, "{refusal}");
    let refusal = body(
        client.post("/v1/sql", &json!({ "sqll": "SELECT 1" })).await,
        400,
    );
    assert_eq!(refusal["error"]["retry"], "never", "{refusal}");
}
