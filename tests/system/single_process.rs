//! One process a data folder.

use shoal_tests::{Server, shoal_command};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_folder_is_refused_and_the_first_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    server
        .client()
        .write("first,host=a v=1i 1\n".into())
        .await
        .expect("write");
    let output = shoal_command(&["standalone", "--data-dir"])
        .arg(server.data_dir())
        .args([
            "--http-addr",
            "127.0.0.1:0",
            "--postgres-addr",
            "127.0.0.1:0",
        ])
        .output()
        .expect("run a second server");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success(),
        "the second process started: {said}"
    );
    let data_dir = server.data_dir().display().to_string();
    assert!(
        said.contains(&data_dir),
        "the refusal does not name the folder: {said}"
    );
    // It must not have taken the first one's addresses away either.
    assert_eq!(server.client().count("SELECT count(*) FROM first").await, 1);
    let addresses = std::fs::read_to_string(server.data_dir().join("addresses.json"));
    let host = server.url();
    let host = host.strip_prefix("http://").expect("a URL");
    assert!(addresses.expect("still there").contains(host));
}
