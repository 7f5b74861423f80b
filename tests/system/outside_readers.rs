//! The files open in independent Parquet readers and hold what SQL says.

use shoal_tests::{Server, files_below, python};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pyarrow_and_duckdb_read_the_same_rows_from_our_files_as_sql_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(&folder.path().join("data"), &[]).await;
    let client = server.client();
    client
        .sql(
            "CREATE TABLE kinds (ts TIMESTAMP(6) NOT NULL, name TEXT, flag BOOLEAN, small INTEGER, big BIGINT, ratio DOUBLE PRECISION, amount DECIMAL(12, 2), raw BYTEA, PRIMARY KEY (name, ts)) WITH (time_column = 'ts')",
        )
        .await
        .expect("create");
    let rows: Vec<String> = (0..5000)
        .map(|i| {
            let (flag, null) = (i % 3 == 0, i % 7 == 0);
            let ratio = if null { "NULL".to_owned() } else { format!("{}.25", i - 100) };
            format!(
                "(TIMESTAMP '2026-01-01 00:00:{:02}.{:06}', 'näme {}', {flag}, {i}, {}, {ratio}, {i}.05, '\\x00ff{:02x}')",
                i % 60, i, i % 11, i64::from(i) << 33, i % 256
            )
        })
        .collect();
    for chunk in rows.chunks(1000) {
        let statement = format!("INSERT INTO kinds VALUES {}", chunk.join(", "));
        client.sql(&statement).await.expect("insert");
    }
    client.flush().await.expect("flush");
    client.compact().await.expect("compact");
    let paths = client
        .sql("SELECT path FROM system.ssts WHERE table_name = 'kinds'")
        .await
        .expect("system.ssts");
    assert!(!paths.is_empty(), "nothing was flushed");
    let files: Vec<String> = paths
        .iter()
        .map(|row| {
            let name = row[0]
                .as_str()
                .and_then(|p| p.rsplit('/').next())
                .expect("a path");
            let found = files_below(server.data_dir(), name);
            assert_eq!(found.len(), 1, "{name} is on disk {} times", found.len());
            found[0].display().to_string()
        })
        .collect();
    let mut arguments = vec![server.url(), "kinds".to_owned()];
    arguments.extend(files);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = python("outside_readers.py", &arguments);
    assert!(said.contains("5000 rows equal"), "{said}");
}
