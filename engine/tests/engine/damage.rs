//! Damage is named, keeps to its shard, and nothing is deleted.

use std::path::{Path, PathBuf};

use shoal_engine::{Database, EngineConfig, TableHandle, WriteOptions};
use shoal_types::TableMode;

use super::support::*;

fn two() -> EngineConfig {
    EngineConfig {
        shards: 2,
        ..config()
    }
}

fn find(root: &Path, wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if wanted(&path.to_string_lossy()) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Two shards with a table each, one row flushed, one in the log.
async fn prepared(dir: &Path) -> (TableHandle, TableHandle) {
    let db = embedded(dir, two()).await;
    let a = make(&db, "a", TableMode::Upsert).await;
    let b = make(&db, "b", TableMode::Upsert).await;
    assert_ne!(a.shard, b.shard);
    for v in 0..2 {
        for table in [&a, &b] {
            put(&db, table, &[("x", v, v)], WriteOptions::default())
                .await
                .expect("write");
        }
        if v == 0 {
            db.flush(None).await.expect("flush");
        }
    }
    db.shutdown().await;
    (a, b)
}

async fn only_one_is_hurt(db: &Database, hurt: &TableHandle, well: &TableHandle, named: &str) {
    let error = db.read_view(hurt).await.expect_err("hurt").to_string();
    assert!(error.contains(named), "{error} does not name {named}");
    assert_eq!(read(db, well).await, rows(&[("x", 0, 0), ("x", 1, 1)]));
    put(db, well, &[("y", 1, 1)], WriteOptions::default())
        .await
        .expect("the other shard takes writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_manifest_isolates_its_shard() {
    let dir = tempfile::tempdir().expect("dir");
    let (a, b) = prepared(dir.path()).await;
    let shard = a.shard.to_string();
    let manifests = find(dir.path(), &|p| {
        p.contains(&shard) && p.contains("/manifest/")
    });
    let newest = manifests.last().expect("manifest");
    let whole = std::fs::read(newest).expect("read");
    let mut bytes = whole.clone();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x40;
    std::fs::write(newest, &bytes).expect("write");
    let name = newest
        .file_name()
        .expect("name")
        .to_string_lossy()
        .into_owned();
    let db = embedded(dir.path(), two()).await;
    only_one_is_hurt(&db, &a, &b, &name).await;
    let still = std::fs::read(newest).expect("still there");
    assert_eq!(still, bytes);
    drop(db);
    std::fs::write(newest, whole).expect("restore");
    let db = embedded(dir.path(), two()).await;
    assert_eq!(read(&db, &a).await, rows(&[("x", 0, 0), ("x", 1, 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_or_cut_sst_isolates_its_shard() {
    let dir = tempfile::tempdir().expect("dir");
    let (a, b) = prepared(dir.path()).await;
    let table = a.id.to_string();
    let files = find(dir.path(), &|p| {
        p.contains(&table) && p.ends_with(".parquet")
    });
    let file = files.first().expect("file");
    let whole = std::fs::read(file).expect("read");
    let name = file
        .file_name()
        .expect("name")
        .to_string_lossy()
        .into_owned();
    std::fs::write(file, &whole[..whole.len() / 2]).expect("cut");
    let db = embedded(dir.path(), two()).await;
    only_one_is_hurt(&db, &a, &b, &name).await;
    drop(db);
    std::fs::remove_file(file).expect("remove");
    let db = embedded(dir.path(), two()).await;
    let error = db.read_view(&a).await.expect_err("missing").to_string();
    assert!(error.contains(&name), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meta_that_is_gone_is_refused_before_anything_is_changed() {
    let dir = tempfile::tempdir().expect("dir");
    prepared(dir.path()).await;
    let meta = dir.path().join("meta.redb");
    let kept = dir.path().join("kept");
    std::fs::rename(&meta, &kept).expect("move");
    let clock = std::sync::Arc::new(shoal_types::SystemClock);
    let mut error = String::new();
    for _ in 0..100 {
        let opened = Database::open_embedded(dir.path(), two(), clock.clone(), None).await;
        error = opened.expect_err("refused").to_string();
        if !error.contains("in use") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(error.contains("meta.redb"), "{error}");
    std::fs::rename(&kept, &meta).expect("back");
    let db = embedded(dir.path(), two()).await;
    assert_eq!(db.tables("public").len(), 2);
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// Bytes flip at many places of the newest segment, each in a fresh copy. Whatever they hit, the
/// database opens, tells what is wrong, and a shard that serves serves every acknowledged row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_told_and_never_read_as_if_it_were_whole() {
    let dir = tempfile::tempdir().expect("dir");
    let (a, b) = prepared(dir.path()).await;
    let mut stopped = 0;
    for place in 1..12 {
        let other = tempfile::tempdir().expect("dir");
        copy(dir.path(), other.path());
        let segments = find(&other.path().join("wal"), &|_| true);
        let newest = segments.last().expect("segment");
        let mut bytes = std::fs::read(newest).expect("read");
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        let at = used * place / 12;
        for byte in &mut bytes[at..(at + 8).min(used)] {
            *byte ^= 0xff;
        }
        std::fs::write(newest, &bytes).expect("write");
        let db = embedded(other.path(), two()).await;
        for table in [&a, &b] {
            match db.read_view(table).await {
                Ok(_) => assert_eq!(read(&db, table).await, rows(&[("x", 0, 0), ("x", 1, 1)])),
                Err(e) => {
                    stopped += 1;
                    assert!(e.to_string().contains("damaged"), "{e}");
                }
            }
        }
    }
    assert!(stopped > 0, "no place hit a record that is needed");
}

/// Its number would be given away, and its files taken for garbage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_newest_manifest_is_missing_is_not_led_and_loses_no_files() {
    let dir = tempfile::tempdir().expect("dir");
    let (hurt, well) = prepared(dir.path()).await;
    let shard = hurt.shard.to_string();
    let is_ours = |path: &str| path.contains("/manifest/") && path.contains(&shard);
    let newest = find(dir.path(), &is_ours).pop().expect("a manifest");
    std::fs::remove_file(&newest).expect("remove");
    let is_sst = |path: &str| path.ends_with(".parquet");
    let files = find(dir.path(), &is_sst);
    let db = embedded(dir.path(), two()).await;
    let status = db.status();
    let status = status.iter().find(|s| s.id == hurt.shard).expect("status");
    let why = status.why.as_deref().unwrap_or_default();
    assert!(
        status.role == "none" && why.contains("missing"),
        "{status:?}"
    );
    only_one_is_hurt(&db, &hurt, &well, "manifest").await;
    db.gc(false).await.expect("gc");
    let left = find(dir.path(), &is_sst);
    assert!(files.iter().all(|file| left.contains(file)), "{left:?}");
    db.shutdown().await;
}
