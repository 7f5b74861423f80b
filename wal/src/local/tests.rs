//! Tests of the local log: the shared suite, then what only a disk can do to it.

mod damage;
pub(super) mod faults;
mod kill;
mod rate;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_types::{LogId, Offset, ShardId};
use tempfile::TempDir;

use super::inspect::{FrameRecord, LogContent, LogItem};
use super::*;
use crate::conformance::{self, Backend};
use crate::log::Log;
use faults::Faults;

/// A store with small segments, so that tests cross their borders.
fn open(dir: &Path) -> LocalLogStore {
    let mut config = LocalLogConfig::new(dir);
    config.segment_bytes = 8 << 10;
    config.record_bytes_max = 2 << 20;
    LocalLogStore::open_with(config).expect("the folder opens")
}

/// As a process that is killed: nothing marks the end.
fn kill(store: LocalLogStore, dir: &Path) {
    let no_clean_end = Faults {
        no_clean_end: true,
        ..Faults::default()
    };
    faults::set(dir, no_clean_end);
    drop(store);
    faults::set(dir, Faults::default());
}

/// The shard's log, made if there is none.
async fn make(store: &LocalLogStore, shard: ShardId) -> Result<Arc<dyn Log>, LogError> {
    let id = store.create(shard).await?;
    LogStore::open(store, shard, id).await
}

async fn append(log: &dyn Log, bytes: impl Into<Bytes>) -> Result<Offset, LogError> {
    receipt_outcome(log.append(bytes.into())).await
}

/// All records of a shard from its start, and the error that ends them, if any.
async fn read_all(log: &dyn Log) -> (Vec<(Offset, Bytes)>, Option<LogError>) {
    let (start, end) = log.bounds().await.expect("bounds");
    let mut reader = log.read(start).await.expect("reads from the start");
    let mut found: Vec<(Offset, Bytes)> = Vec::new();
    loop {
        let done = found.last().is_some_and(|(last, _)| last.next() == end);
        // At a damaged end the error is there at once; at a good one, nothing is.
        let next = reader.next();
        let answer = if done || start == end {
            futures::FutureExt::now_or_never(next)
        } else {
            let patience = std::time::Duration::from_secs(10);
            Some(tokio::time::timeout(patience, next).await.expect("in time"))
        };
        match answer {
            Some(Ok(records)) => found.extend(records),
            Some(Err(error)) => return (found, Some(error)),
            None => return (found, None),
        }
    }
}

fn items(dir: &Path) -> Vec<LogItem> {
    let items = inspect::inspect(dir).expect("folder");
    items.map(|i| i.expect("readable")).collect()
}

struct OnDisk {
    dir: TempDir,
    store: Option<Arc<LocalLogStore>>,
}

#[async_trait]
impl Backend for OnDisk {
    async fn restart(&mut self) -> Arc<dyn LogStore> {
        if let Some(store) = self.store.take() {
            store.close();
        }
        let store = Arc::new(open(self.dir.path()));
        self.store = Some(Arc::clone(&store));
        store
    }

    fn record_bytes_max(&self) -> usize {
        2 << 20
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_log_keeps_the_contract() {
    let dir = TempDir::new().expect("dir");
    conformance::passes(&mut OnDisk { dir, store: None }).await;
}

#[tokio::test]
async fn a_full_disk_refuses_for_sure_and_recovers_without_a_restart() {
    let dir = TempDir::new().expect("dir");
    let (shard, dir) = (ShardId::generate(), dir.path());
    let store = open(dir);
    let log = make(&store, shard).await.expect("opens");
    let mut acknowledged = Vec::new();
    for round in 0..4_u8 {
        for i in 0..3_u8 {
            let bytes = vec![round * 10 + i; 5000];
            let offset = append(&*log, bytes.clone()).await.expect("space");
            acknowledged.push((offset, Bytes::from(bytes)));
        }
        let full = Faults {
            // Nothing, part of a header, part of a record.
            bytes_left: Some([0, 30, 3000, 12_000][usize::from(round)]),
            ..Faults::default()
        };
        faults::set(dir, full);
        for _ in 0..3 {
            let outcome = append(&*log, vec![0xEE; 9000]).await;
            if let Ok(offset) = outcome {
                acknowledged.push((offset, Bytes::from(vec![0xEE; 9000])));
                continue;
            }
            assert!(matches!(outcome, Err(LogError::Full(_))), "{outcome:?}");
            let (found, error) = read_all(&*log).await;
            assert!(
                error.is_none() && found[1..] == acknowledged[..],
                "reads go on"
            );
        }
        faults::set(dir, Faults::default());
    }
    assert!(store.stats().refused_full > 0);
    kill(store, dir);
    let store = open(dir);
    let log = LogStore::open(&store, shard, LogId::SOLE)
        .await
        .expect("opens");
    let (found, error) = read_all(&*log).await;
    assert!(error.is_none() && found[1..] == acknowledged[..]);
}

#[tokio::test]
async fn a_failed_fsync_is_an_unknown_outcome_and_ends_its_segment() {
    let dir = TempDir::new().expect("dir");
    let (shard, dir) = (ShardId::generate(), dir.path());
    let store = open(dir);
    let log = make(&store, shard).await.expect("opens");
    let mut acknowledged = vec![(append(&*log, "before").await.expect("ok"), "before".into())];
    for i in 0..3 {
        let failing = Faults {
            failing_syncs: 1,
            ..Faults::default()
        };
        faults::set(dir, failing);
        let outcome = append(&*log, format!("unknown {i}")).await;
        assert!(matches!(outcome, Err(LogError::Unknown(_))), "{outcome:?}");
        let bytes = Bytes::from(format!("after {i}"));
        let offset = append(&*log, bytes.clone()).await.expect("a new segment");
        acknowledged.push((offset, bytes));
    }
    assert_eq!(
        (store.stats().segments, store.stats().fsync_failures),
        (4, 3)
    );
    let (found, error) = read_all(&*log).await;
    assert!(error.is_none() && found[1..] == acknowledged[..]);
    kill(store, dir);
    // The batches whose outcome was unknown are whole in their files, but superseded.
    let store = open(dir);
    let log = LogStore::open(&store, shard, LogId::SOLE)
        .await
        .expect("opens");
    let (found, error) = read_all(&*log).await;
    assert!(
        error.is_none() && found[1..] == acknowledged[..],
        "{found:?} {error:?}"
    );
}

#[tokio::test]
async fn segments_go_when_every_shard_has_trimmed_them() {
    let dir = TempDir::new().expect("dir");
    let store = open(dir.path());
    let hot = make(&store, ShardId::generate()).await.expect("opens");
    let cold = make(&store, ShardId::generate()).await.expect("opens");
    append(&*cold, "cold").await.expect("ok");
    for _ in 0..40 {
        append(&*hot, vec![1; 2000]).await.expect("ok");
    }
    let files = || items(dir.path()).iter().filter(|i| i.byte == 0).count();
    let before = files();
    assert!(before > 5, "several segments");
    let (_, end) = hot.bounds().await.expect("bounds");
    hot.trim(end).await.expect("trims");
    assert_eq!(hot.retained_bytes(), 0);
    assert_eq!(files(), before, "the cold shard's record is in the first");
    assert!(
        cold.held_back_bytes() >= 60_000,
        "and it is told what it costs"
    );
    assert!(cold.retained_bytes() < 1000);
    append(&*hot, vec![1; 2000]).await.expect("ok");
    assert_eq!(
        hot.held_back_bytes(),
        hot.retained_bytes(),
        "the last segment is no reason to flush: it stays"
    );
    let (_, cold_end) = cold.bounds().await.expect("bounds");
    cold.trim(cold_end).await.expect("trims");
    assert_eq!(files(), 1);
    assert_eq!(store.stats().segments, 1);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let dir = TempDir::new().expect("dir");
    let mut config = LocalLogConfig::new(dir.path());
    config.queue_bytes_max = 100_000;
    let store = LocalLogStore::open(config).expect("opens");
    let log = make(&store, ShardId::generate()).await.expect("opens");
    let receipts: Vec<_> = (0..100)
        .map(|_| log.append(vec![0; 20_000].into()))
        .collect();
    let (mut taken, mut refused) = (0, 0);
    for receipt in receipts {
        match receipt_outcome(receipt).await {
            Ok(_) => taken += 1,
            Err(LogError::Full(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(
        taken >= 4 && refused > 0,
        "{taken} taken, {refused} refused"
    );
    assert_eq!(read_all(&*log).await.0.len(), 1 + taken);
    assert_eq!(store.stats().queue_bytes, 0);
}

#[tokio::test]
async fn after_close_nothing_is_taken_and_readers_end() {
    let dir = TempDir::new().expect("dir");
    let store = open(dir.path());
    let log = make(&store, ShardId::generate()).await.expect("opens");
    let last = log.append("queued".into());
    store.close();
    assert!(
        receipt_outcome(last).await.is_ok(),
        "what was queued is written"
    );
    assert!(matches!(append(&*log, "late").await, Err(LogError::Closed)));
    let (found, error) = read_all(&*log).await;
    assert_eq!(found.len(), 2);
    assert!(matches!(error, Some(LogError::Closed)), "{error:?}");
}

#[tokio::test]
async fn inspection_shows_every_record_and_the_clean_end() {
    let dir = TempDir::new().expect("dir");
    let store = open(dir.path());
    let shard = ShardId::generate();
    let log = make(&store, shard).await.expect("opens");
    append(&*log, "not a record").await.expect("ok");
    drop(store);
    let items = items(dir.path());
    let mut records = Vec::new();
    for item in &items {
        match &item.content {
            LogContent::Frame {
                shard: of, record, ..
            } => {
                assert_eq!(*of, shard);
                records.push(record);
            }
            LogContent::Damage { what } => panic!("{what}"),
            LogContent::Segment { .. } | LogContent::Batch { .. } => {}
        }
    }
    assert!(
        matches!(records[0], FrameRecord::Record(r) if r.text.starts_with("genesis of local."))
    );
    assert!(matches!(records[1], FrameRecord::NotARecord(_)));
    let last = &items[items.len() - 1].content;
    assert!(
        matches!(last, LogContent::Batch { frames: 0, .. }),
        "{last:?}"
    );
}
