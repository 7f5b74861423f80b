//! `shoal import`: forms, bad lines, and interruptions of either side.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::server::{Server, run, shoal, stderr};

fn import(server: &Server, args: &[&str]) -> Output {
    let mut all = vec!["import", "--url", server.url.as_str()];
    all.extend(args);
    run(&all)
}

fn path_of(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, bytes).expect("write");
    path.display().to_string()
}

#[tokio::test]
async fn lp_csv_and_parquet_are_loaded_compressed_or_not_and_never_twice() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let lines = "m,t=a v=1i 1\nm,t=b v=2i 2\n";
    let zst = zstd::encode_all(lines.as_bytes(), 1).expect("zstd");
    let lp = path_of(dir.path(), "x.lp.zst", &zst);
    let csv = path_of(
        dir.path(),
        "events.csv",
        b"id,at,note\n1,2026-01-01T00:00:00Z,a\n2,,\n",
    );
    for round in 0..2 {
        for file in [&lp, &csv] {
            let output = import(&server, &[file]);
            assert!(
                output.status.success(),
                "round {round}, {file}: {}",
                stderr(&output)
            );
        }
    }
    assert_eq!(server.number("SELECT sum(v) FROM m").await, 3);
    let rows = server
        .rows("SELECT id, at, note FROM events ORDER BY id")
        .await;
    assert_eq!(
        rows.to_string(),
        r#"[[1,"2026-01-01T00:00:00Z","a"],[2,null,null]]"#
    );
    // Asked for, it is loaded again; into an existing table by column names.
    assert!(import(&server, &["--again", &csv]).status.success());
    assert_eq!(server.number("SELECT count(*) FROM events").await, 4);

    let parquet = parquet_file(1000);
    let file = path_of(dir.path(), "numbers.parquet", &parquet);
    for _ in 0..2 {
        let output = import(&server, &["--table", "numbers", "--key", "n", &file]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(server.number("SELECT count(*) FROM numbers").await, 1000);

    let mut child = shoal(&["import", "-", "--format", "lp", "--url", &server.url])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    std::io::Write::write_all(child.stdin.as_mut().expect("stdin"), b"m,t=c v=4i 3\n")
        .expect("write");
    drop(child.stdin.take());
    assert!(child.wait().expect("wait").success());
    assert_eq!(server.number("SELECT sum(v) FROM m").await, 7);
}

fn parquet_file(rows: i64) -> Vec<u8> {
    use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    use std::sync::Arc;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", Arc::new(Int64Array::from_iter_values(0..rows))),
        (
            "s",
            Arc::new(StringArray::from_iter_values(
                (0..rows).map(|i| format!("a text that makes a row longer {i}")),
            )),
        ),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("batch");
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("writer");
    writer.write(&batch).expect("write");
    writer.into_inner().expect("bytes")
}

#[tokio::test]
async fn bad_lines_are_shown_with_their_number_and_the_rest_is_stored() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    let lp = path_of(dir.path(), "x.lp", b"m v=1i 1\nm v=oops 2\nm v=3i 3\n");
    let output = import(&server, &[&lp]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("x.lp:2"), "{}", stderr(&output));
    assert_eq!(server.number("SELECT count(*) FROM m").await, 2);
    let csv = path_of(dir.path(), "t.csv", b"a,b\n1,x\n2\n3,z\n");
    let output = import(&server, &[&csv]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("t.csv:3"), "{}", stderr(&output));
    assert_eq!(server.number("SELECT sum(a) FROM t").await, 4);
    let missing = import(&server, &["/nowhere.lp"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr(&missing).contains("/nowhere.lp"),
        "{}",
        stderr(&missing)
    );
}

/// Rows of an append table, so that a row stored twice shows.
fn rows_csv(rows: usize) -> String {
    let mut text = String::from("n,s\n");
    for n in 0..rows {
        let _ = writeln!(
            text,
            "{n},a text that makes the row longer so that chunks fill up {n}"
        );
    }
    text
}

/// Rows of the tests that kill an import: it takes a while to load them.
const MANY: usize = 1_200_000;

/// Loads a file of [`MANY`] rows into the append table `big`; the importer is killed midway, then
/// the server, and a second importer does the rest.
async fn goes_on_after_kills(dir: &Path, file: &str) {
    let mut server = Server::plain(dir);
    let mut importer = shoal(&["import", "--quiet", "--url", &server.url, file])
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    // Wait until some chunks are in, then kill the importer.
    let counted = |rows: serde_json::Value| rows[0][0].as_i64().unwrap_or(0);
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let request = serde_json::json!({ "sql": "SELECT count(*) FROM big" });
        let (status, mut body) = server.sql_raw(&request).await;
        if status == 200 && counted(body["rows"].take()) > 0 {
            break;
        }
    }
    let _ = importer.kill();
    let _ = importer.wait();
    let stored = server.number("SELECT count(*) FROM big").await;
    assert!(
        stored > 0 && stored < MANY as i64,
        "not killed midway: {stored}"
    );
    let port = server.url.rsplit(':').next().expect("port").to_owned();
    server.kill();
    drop(server);
    let address = format!("127.0.0.1:{port}");
    let server = Server::start(dir, &["--http-addr", &address], &[]);
    let output = import(&server, &[file]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("an earlier run got to chunk"),
        "{}",
        stderr(&output)
    );
    assert_eq!(server.number("SELECT count(*) FROM big").await, MANY as i64);
    assert_eq!(
        server.number("SELECT count(DISTINCT n) FROM big").await,
        MANY as i64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_csv_import_killed_midway_goes_on_and_doubles_no_row() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = path_of(dir.path(), "big.csv", rows_csv(MANY).as_bytes());
    goes_on_after_kills(dir.path(), &file).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parquet_import_killed_midway_goes_on_and_doubles_no_row() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = path_of(dir.path(), "big.parquet", &parquet_file(MANY as i64));
    goes_on_after_kills(dir.path(), &file).await;
}

#[tokio::test]
async fn a_file_that_changed_since_it_was_loaded_is_told_of_first() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = Server::plain(dir.path());
    for (name, flags, warned) in [
        ("append.csv", &[][..], "WARNING"),
        (
            "upsert.csv",
            &["--key", "n"][..],
            "rows replace those of the same key",
        ),
    ] {
        let file = path_of(dir.path(), name, b"n,s\n1,a\n2,b\n");
        let load = || import(&server, &[flags, &[file.as_str()]].concat());
        let first = stderr(&load());
        assert!(!first.contains("has changed"), "{first}");
        let again = stderr(&load());
        assert!(again.contains("nothing to do"), "{again}");
        std::fs::write(&file, b"n,s\n1,a\n2,b\n3,c\n").expect("write");
        let changed = stderr(&load());
        assert!(
            changed.contains("has changed") && changed.contains(warned),
            "{changed}"
        );
        let again = stderr(&load());
        assert!(again.contains("nothing to do"), "{again}");
        // An emptied table has none of the rows any more.
        server
            .rows(&format!("TRUNCATE {}", name.trim_end_matches(".csv")))
            .await;
        std::fs::write(&file, b"n,s\n1,a\n").expect("write");
        let emptied = stderr(&load());
        assert!(!emptied.contains("has changed"), "{emptied}");
    }
    assert_eq!(server.number("SELECT count(*) FROM append").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_outlives_a_server_that_is_killed_and_comes_back() {
    const ROWS: usize = 600_000;
    let dir = tempfile::tempdir().expect("tempdir");
    let csv = path_of(dir.path(), "big.csv", rows_csv(ROWS).as_bytes());
    let mut server = Server::plain(dir.path());
    let mut importer = shoal(&["import", "--quiet", "--url", &server.url, &csv])
        .stderr(Stdio::inherit())
        .spawn()
        .expect("starts");
    let address = server.url.trim_start_matches("http://").to_owned();
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let request = serde_json::json!({ "sql": "SELECT count(*) FROM big" });
        if server.sql_raw(&request).await.0 == 200 {
            break;
        }
    }
    server.kill();
    drop(server);
    let server = Server::start(dir.path(), &["--http-addr", &address], &[]);
    assert!(importer.wait().expect("wait").success());
    assert_eq!(server.number("SELECT count(*) FROM big").await, ROWS as i64);
    assert_eq!(
        server.number("SELECT count(DISTINCT n) FROM big").await,
        ROWS as i64
    );
}
