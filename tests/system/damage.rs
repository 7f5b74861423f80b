//! Damaged files: named in the error, other shards stay up, nothing is deleted.

use std::path::{Path, PathBuf};

use shoal_tests::{Client, Server, files_below};

const TABLES: usize = 8;

/// Tables spread over the shards by the server; one shard each is asked for where it matters.
async fn fill(client: &Client) {
    for table in 0..TABLES {
        let lines: String = (0..2000)
            .map(|i| format!("t{table},host=h{} v={i}i {}\n", i % 10, i + 1))
            .collect();
        client.write(lines).await.expect("write");
    }
}

/// `(table, shard)` as the catalog has it.
async fn placement(client: &Client) -> Vec<(String, String)> {
    let rows = client
        .sql("SELECT table_name, shard FROM system.partitions WHERE table_name LIKE 't%' ORDER BY table_name")
        .await
        .expect("system.partitions");
    let text = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    rows.iter()
        .map(|row| (text(&row[0]), text(&row[1])))
        .collect()
}

/// Flips bits in the middle of a file and gives the damaged bytes.
fn damage(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).expect("read the file");
    let from = bytes.len() / 2;
    let to = (from + 64).min(bytes.len());
    for byte in &mut bytes[from..to] {
        *byte ^= 0x5a;
    }
    std::fs::write(path, &bytes).expect("write the file");
    bytes
}

fn name(path: &Path) -> String {
    path.file_name()
        .expect("a file")
        .to_string_lossy()
        .into_owned()
}

/// The answer of each table after the damage: how many failed, all naming the file.
async fn failing_tables(client: &Client, file: &str) -> Vec<String> {
    let mut failing = Vec::new();
    for table in 0..TABLES {
        match client
            .sql(&format!("SELECT sum(v), max(host) FROM t{table}"))
            .await
        {
            Ok(rows) => assert_eq!(rows[0][0].as_u64(), Some(1999 * 2000 / 2), "t{table}"),
            Err(failure) => {
                assert!(failure.status.is_some(), "t{table}: no answer: {failure:?}");
                assert!(
                    failure.text.contains(file),
                    "t{table}: {file} is not named: {failure:?}"
                );
                failing.push(format!("t{table}"));
            }
        }
    }
    failing
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_sst_is_named_only_its_table_fails_and_it_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(&folder.path().join("data"), &[]).await;
    fill(&server.client()).await;
    server.client().flush().await.expect("flush");
    let path = server
        .client()
        .value("SELECT path FROM system.ssts WHERE table_name = 't3' LIMIT 1")
        .await;
    let file = path
        .as_str()
        .and_then(|p| p.rsplit('/').next())
        .expect("a path")
        .to_owned();
    let on_disk = files_below(server.data_dir(), &file)
        .pop()
        .expect("on disk");
    server.stop().await;
    let damaged = damage(&on_disk);
    server.restart().await;
    let failing = failing_tables(&server.client(), &file).await;
    assert_eq!(failing, ["t3"], "damage in {file} of t3");
    assert_eq!(std::fs::read(&on_disk).expect("still there"), damaged);
    // Writes to the table go on, and so does the process.
    server
        .client()
        .write("t3,host=new v=1i 1\n".into())
        .await
        .expect("write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_manifest_is_named_and_only_its_shard_is_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server =
        Server::start(&folder.path().join("data"), &[("SHOAL_ENGINE_SHARDS", "4")]).await;
    fill(&server.client()).await;
    server.client().flush().await.expect("flush");
    let placed = placement(&server.client()).await;
    let shard = placed[3].1.clone();
    let on_that_shard: Vec<String> = placed
        .iter()
        .filter(|(_, s)| *s == shard)
        .map(|(t, _)| t.clone())
        .collect();
    assert!(
        on_that_shard.len() < TABLES,
        "all tables on one shard: {placed:?}"
    );
    server.stop().await;
    // The newest manifest of the shard that holds t3.
    let manifest: PathBuf = files_below(server.data_dir(), "/manifest/")
        .into_iter()
        .rfind(|path| path.to_string_lossy().contains(&format!("shard/{shard}/")))
        .expect("a manifest of the shard");
    let damaged = damage(&manifest);
    server.restart().await;
    let failing = failing_tables(&server.client(), &name(&manifest)).await;
    assert_eq!(failing, on_that_shard);
    assert_eq!(std::fs::read(&manifest).expect("still there"), damaged);
    for (table, on) in &placed {
        let result = server
            .client()
            .write(format!("{table},host=new v=1i 1\n"))
            .await;
        assert_eq!(result.is_err(), *on == shard, "{table}: {result:?}");
    }
}

/// Where the records of a log segment lie: `(first byte, bytes)` (docs/on-disk-formats.md).
fn records(segment: &[u8]) -> Vec<(usize, usize)> {
    const FRAME_HEADER_BYTES: usize = 40;
    const LENGTH_AT: usize = 32;
    let mut found = Vec::new();
    let mut at = 0;
    while at + FRAME_HEADER_BYTES <= segment.len() {
        if &segment[at..at + 4] == b"FRME" {
            let length = &segment[at + LENGTH_AT..at + LENGTH_AT + 4];
            let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
            found.push((at + FRAME_HEADER_BYTES, length));
            at += FRAME_HEADER_BYTES + length;
        } else {
            at += 1;
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_record_is_named_and_only_its_shard_is_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server =
        Server::start(&folder.path().join("data"), &[("SHOAL_ENGINE_SHARDS", "4")]).await;
    fill(&server.client()).await;
    let placed = placement(&server.client()).await;
    server.stop().await;
    let segments: Vec<PathBuf> = files_below(server.data_dir(), ".log");
    assert!(!segments.is_empty(), "no log segments");
    let segment = segments.last().expect("a segment");
    let mut bytes = std::fs::read(segment).expect("read the segment");
    // A write in the middle: large, and with others behind it.
    let large: Vec<(usize, usize)> = records(&bytes)
        .into_iter()
        .filter(|(_, length)| *length > 2000)
        .collect();
    assert!(large.len() >= TABLES, "{} large records", large.len());
    let (at, length) = large[large.len() / 2];
    for byte in &mut bytes[at + length / 2..at + length / 2 + 32] {
        *byte ^= 0x5a;
    }
    std::fs::write(segment, &bytes).expect("write the segment");
    server.restart().await;
    let failing = failing_tables(&server.client(), &name(segment)).await;
    let shard_of = |table: &str| {
        placed
            .iter()
            .find(|(t, _)| t == table)
            .map(|(_, s)| s.clone())
    };
    let shard = shard_of(failing.first().expect("the damage went unnoticed"));
    let on_that_shard: Vec<String> = placed
        .iter()
        .filter(|(_, s)| Some(s) == shard.as_ref())
        .map(|(t, _)| t.clone())
        .collect();
    assert_eq!(failing, on_that_shard);
    assert!(failing.len() < TABLES, "all shards are down");
    let after = std::fs::read(segment).expect("still there");
    assert!(after.starts_with(&bytes), "the damaged segment was changed");
}
