//! Other people's clients, unchanged.

use shoal_tests::{Server, python};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn influxdb_clients_of_both_generations_write_unchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    python("influx_clients.py", &[&server.url()]);
    let client = server.client();
    // What each client wrote, and where.
    assert_eq!(
        client
            .count("SELECT count(*) FROM telegraf.v1_points")
            .await,
        3
    );
    assert_eq!(
        client.count("SELECT count(*) FROM metrics.v2_points").await,
        4
    );
    let value = client
        .value("SELECT CAST(max(time) AS TEXT) FROM telegraf.v1_points WHERE host = 'seconds'")
        .await;
    let text = value.as_str().expect("a text");
    assert!(
        text.starts_with("2026-01-01"),
        "precision=s was not honoured: {text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg_speaks_to_the_postgresql_port() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    let said = python("postgres_client.py", &[&server.postgres()]);
    assert!(said.contains("ok"), "{said}");
}
