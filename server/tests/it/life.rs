//! Starting, stopping, being killed.

use std::path::Path;

use serde_json::{Value, json};

use crate::server::{Server, run, stderr};

#[tokio::test]
async fn data_outlives_a_stop_and_a_kill() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut server = Server::plain(dir.path());
    assert_eq!(
        server.write("?db=public", "m,t=a v=1i 1").await.status(),
        204
    );
    assert_eq!(server.stop(), Some(0), "a stop is no failure");
    assert!(!dir.path().join("data/addresses.json").exists());
    let mut server = Server::plain(dir.path());
    assert_eq!(server.number("SELECT sum(v) FROM m").await, 1);
    assert_eq!(
        server.write("?db=public", "m,t=b v=2i 2").await.status(),
        204
    );
    server.kill();
    let server = Server::plain(dir.path());
    assert_eq!(server.number("SELECT sum(v) FROM m").await, 3);
}

/// Turns a byte in the middle of the newest manifest of a shard.
fn damage(data: &Path, shard: &str) {
    let mut folders = vec![data.join("objects")];
    let mut newest = None;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if folder.ends_with(format!("{shard}/manifest")) {
                newest = newest.max(Some(path));
            }
        }
    }
    let newest = newest.expect("a manifest");
    let mut bytes = std::fs::read(&newest).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&newest, bytes).expect("write");
}

#[tokio::test]
async fn it_is_ready_while_one_shard_is_served_and_names_the_others() {
    let dir = tempfile::tempdir().expect("tempdir");
    let shards = &["--engine-shards", "2"];
    let mut server = Server::start(dir.path(), shards, &[]);
    let ready = async |server: &Server| {
        let response = server.get("/health/ready").send().await.expect("answer");
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.expect("JSON"))
    };
    let (status, body) = ready(&server).await;
    assert_eq!((status, &body["shards_serving"]), (200, &json!(2)));
    let listed = server.get("/v1/admin/shards").send().await.expect("answer");
    let listed: Value = listed.json().await.expect("JSON");
    for (unserved, status) in [(1, 200), (2, 503)] {
        server.stop();
        let hurt = listed[unserved - 1]["id"].as_str().expect("id");
        damage(&dir.path().join("data"), hurt);
        server = Server::start(dir.path(), shards, &[]);
        let (got, body) = ready(&server).await;
        assert_eq!(got, status, "{body}");
        assert_eq!(body["shards_serving"], 2 - unserved);
        let named = body["shards_unserved"].as_array().expect("names");
        assert_eq!(named.len(), unserved);
        assert!(named.iter().any(|s| s["shard"] == hurt), "{body}");
        assert!(
            named.iter().all(|s| s["why"].as_str() != Some("")),
            "{body}"
        );
        let health = server.get("/health").send().await.expect("answer");
        assert_eq!(health.status(), status);
    }
    let (_, body) = ready(&server).await;
    assert_eq!(body["error"]["code"], "unavailable", "{body}");
}

#[tokio::test]
async fn a_name_that_an_admin_command_does_not_know_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    assert_eq!(
        server.write("?db=public", "m,t=a v=1i 1").await.status(),
        204
    );
    let post = |path: &str, body: &str| server.post(path).body(body.to_owned()).send();
    for (path, body, status, part) in [
        ("/v1/admin/flush?table=nope", "", 404, "nope"),
        ("/v1/admin/flush?table=m", "", 200, "done"),
        ("/v1/admin/flush?tabel=m", "", 400, "table"),
        ("/v1/admin/compact", r#"{"tabel":"m"}"#, 400, "table"),
        ("/v1/admin/gc?dryrun", "", 400, "dry_run"),
        ("/v1/admin/gc?dry_run", "", 200, "\"dry_run\":true"),
        ("/v1/admin/checksum?sherd=x", "", 400, "shard"),
        ("/v1/sql?schema=x", r#"{"sql":"SELECT 1"}"#, 400, "schema"),
        (
            "/v1/sql",
            r#"{"sql":"SELECT 1","tiemout_ms":1}"#,
            400,
            "timeout_ms",
        ),
        ("/v1/sql", r#"["SELECT 1"]"#, 400, "object"),
    ] {
        let response = post(path, body).await.expect("answer");
        assert_eq!(response.status(), status, "{path} {body}");
        let text = response.text().await.expect("text");
        assert!(text.contains(part), "{path} {body}: {text}");
    }
}

#[tokio::test]
async fn the_checksum_is_of_the_rows_and_not_of_where_they_are() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    assert_eq!(
        server
            .write("?db=public", "m,t=a v=1i 1\nm,t=b v=2i 2")
            .await
            .status(),
        204
    );
    let checksum = |args: &[&str]| {
        let mut all = vec!["admin", "checksum", "--json", "--url", server.url.as_str()];
        all.extend(args);
        let output = run(&all);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let before = checksum(&["--table", "m"]);
    assert_eq!(
        (&before[0]["rows"], &before[0]["tables"][0]["table"]),
        (&json!(2), &json!("m"))
    );
    assert!(
        run(&["admin", "flush", "--url", &server.url])
            .status
            .success()
    );
    let flushed = checksum(&["--table", "m"]);
    assert_eq!(flushed[0]["checksum"], before[0]["checksum"]);
    let shard = before[0]["shard"].as_str().expect("shard");
    assert_eq!(
        checksum(&["--shard", shard])[0]["checksum"],
        before[0]["checksum"]
    );
    assert_eq!(
        server.write("?db=public", "m,t=b v=3i 2").await.status(),
        204
    );
    assert_ne!(
        checksum(&["--table", "m"])[0]["checksum"],
        before[0]["checksum"]
    );
    let shown = run(&["admin", "checksum", "--url", &server.url]);
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains("public  m"),
        "{shown:?}"
    );
}

#[test]
fn shells_complete_commands_and_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}: {}", stderr(&output));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("standalone") && text.contains("http-addr"),
            "{shell}"
        );
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let data = dir.path().join("data").display().to_string();
    let flags = [
        "standalone",
        "--data-dir",
        &data,
        "--http-addr",
        "127.0.0.1:0",
        "--postgres-addr",
        "off",
    ];
    let output = run(&flags);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("in use"), "{text}");
    assert_eq!(server.write("?db=public", "m v=1i 1").await.status(), 204);
}

#[tokio::test]
async fn what_is_on_disk_can_be_inspected_and_the_server_administered() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut server = Server::plain(dir.path());
    assert_eq!(
        server.write("?db=public", "m,t=a v=1i 1").await.status(),
        204
    );
    let admin = |args: &[&str]| {
        let mut all = vec!["admin", "--json", "--url", server.url.as_str()];
        all.extend(args);
        let output = run(&all);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    admin(&["flush"]);
    let shards = admin(&["shards"]);
    assert!(shards.as_array().is_some_and(|s| !s.is_empty()), "{shards}");
    assert_eq!(admin(&["tables"])[0]["name"], "m");
    server.stop();
    let data = dir.path().join("data").display().to_string();
    for what in ["wal", "manifest"] {
        let output = run(&["inspect", what, &data]);
        assert!(output.status.success(), "{what}: {}", stderr(&output));
        assert!(!output.stdout.is_empty(), "{what}");
    }
    let unreachable = run(&["admin", "shards", "--url", "http://127.0.0.1:1"]);
    assert_eq!(unreachable.status.code(), Some(3));
}
