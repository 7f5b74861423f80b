//! Starting, stopping, being killed.

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
