//! Rows of very small tables share an object; when that ends, a restart must not bring them twice.

use shoal_tests::Server;

/// More than the engine asks for before it keeps small tables together, and what is left fewer.
const TABLES: usize = 90;
const KEPT: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_left_the_shared_object_for_files_are_there_once_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = [("SHOAL_ENGINE_SHARDS", "1")];
    let mut server = Server::start(&folder.path().join("data"), &settings).await;
    let client = server.client();
    for table in 0..TABLES {
        let create = format!("CREATE TABLE s{table} (n BIGINT) WITH (mode = 'append')");
        client.sql(&create).await.expect("create");
        let insert = format!("INSERT INTO s{table} VALUES (1), (2)");
        client.sql(&insert).await.expect("insert");
    }
    client.flush().await.expect("flush into the shared object");
    for table in KEPT..TABLES {
        client
            .sql(&format!("DROP TABLE s{table}"))
            .await
            .expect("drop");
    }
    client.flush().await.expect("flush into files");
    for round in 0..2 {
        server.kill();
        server.restart().await;
        let client = server.client();
        for table in 0..KEPT {
            let count = client
                .count(&format!("SELECT count(*) FROM s{table}"))
                .await;
            assert_eq!(count, 2, "round {round}: rows of s{table}");
        }
        client
            .sql("INSERT INTO s0 SELECT n FROM s1 LIMIT 0")
            .await
            .expect("a write");
        client.flush().await.expect("flush after the restart");
    }
}
