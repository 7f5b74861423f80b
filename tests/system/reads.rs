//! Queries that name a series and a time read little.

use shoal_tests::{Server, shoal_command};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_and_hour_reads_at_most_a_hundredth_of_the_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    let client = server.client();
    let url = server.url();
    let loaded = shoal_command(&[
        "bench", "load", "--url", &url, "--hosts", "100", "--span", "6h",
    ])
    .output()
    .expect("run shoal bench");
    assert!(loaded.status.code().is_some_and(|c| c <= 1), "{loaded:?}");
    client.flush().await.expect("flush");
    client.compact().await.expect("compact");
    let statement = "SELECT max(usage_user) FROM cpu WHERE hostname = 'host_7' AND time >= TIMESTAMP '2026-01-01 02:00:00' AND time < TIMESTAMP '2026-01-01 03:00:00'";
    let answer = client.answer(statement).await.expect("the query");
    let figure = |name: &str| {
        answer["stats"][name]
            .as_f64()
            .unwrap_or_else(|| panic!("{answer}"))
    };
    let (read, total) = (figure("bytes_read"), figure("bytes_total"));
    println!("{read} of {total} bytes");
    assert!(
        read > 0.0 && read <= total / 100.0,
        "{read} of {total} bytes were read"
    );
    // The same is shown to who asks how.
    let plan = client
        .sql(&format!("EXPLAIN ANALYZE {statement}"))
        .await
        .expect("a plan");
    let plan = format!("{plan:?}");
    for word in ["bytes_read", "cache_hits", "files_pruned", "table_bytes"] {
        assert!(
            plan.contains(word),
            "EXPLAIN ANALYZE does not show {word}: {plan}"
        );
    }
}
