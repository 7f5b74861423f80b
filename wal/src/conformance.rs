//! The suite that every log backend passes: the promises of [`crate::log`] that can be checked
//! from outside. A backend's test calls [`passes`]; it panics with what was broken.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_types::{LogId, Offset, ShardId};

use crate::log::{Log, LogError, LogReader, LogStore, receipt_outcome};
use crate::record::{Payload, Record};

/// What the suite needs of a backend.
#[async_trait]
pub trait Backend: Send {
    /// Stops what runs, if anything, and starts again on the same medium.
    async fn restart(&mut self) -> Arc<dyn LogStore>;
    /// The largest record that it takes, in bytes.
    fn record_bytes_max(&self) -> usize;
}

/// Far above what any healthy step takes; only there to name the step that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks every question of the suite, each on fresh shards.
///
/// # Panics
/// With the promise that the backend broke.
pub async fn passes(backend: &mut dyn Backend) {
    let store = backend.restart().await;
    a_log_begins_with_its_genesis(&*store).await;
    records_stand_in_the_order_of_their_appends(&*store).await;
    any_bytes_come_back_as_they_were(&*store).await;
    a_reader_waits_at_the_end_and_loses_nothing_when_cancelled(&*store).await;
    a_reader_starts_anywhere_between_start_and_end(&*store).await;
    a_record_over_the_limit_is_refused_alone(&*store, backend.record_bytes_max()).await;
    shards_do_not_mix(&*store).await;
    trimmed_records_are_gone_and_the_rest_is_not(&*store).await;
    drop(store);
    what_was_acknowledged_survives_a_restart(backend).await;
    an_emptied_log_knows_its_end_after_a_restart(backend).await;
}

async fn fresh(store: &dyn LogStore) -> Arc<dyn Log> {
    let shard = ShardId::generate();
    let id = store.create(shard).await.expect("a new log is made");
    store.open(shard, id).await.expect("a new log opens")
}

async fn append(log: &dyn Log, bytes: impl Into<Bytes>) -> Offset {
    in_time(receipt_outcome(log.append(bytes.into())))
        .await
        .expect("a healthy log takes a record")
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("a log answers in time")
}

async fn collect(reader: &mut dyn LogReader, count: usize) -> Vec<(Offset, Bytes)> {
    let mut found = Vec::new();
    while found.len() < count {
        let batch = in_time(reader.next()).await.expect("readable");
        assert!(!batch.is_empty(), "`next` returns at least one record");
        found.extend(batch);
    }
    assert_eq!(found.len(), count, "no record more than was appended");
    assert!(
        found.windows(2).all(|w| w[0].0 < w[1].0),
        "offsets rise within and across batches"
    );
    found
}

async fn a_log_begins_with_its_genesis(store: &dyn LogStore) {
    let shard = ShardId::generate();
    assert!(
        matches!(
            store.open(shard, LogId::SOLE).await,
            Err(LogError::NotFound { .. })
        ),
        "a log that nobody made is not found"
    );
    let id = store.create(shard).await.expect("made");
    let listed = store.list().await.expect("lists");
    assert!(
        listed.contains(&(shard, id)),
        "a log that was made is listed"
    );
    let log = store.open(shard, id).await.expect("opened");
    let again = store.open(shard, id).await.expect("opened once more");
    for log in [&log, &again] {
        let mut reader = log.read(Offset(0)).await.expect("reads from 0");
        let found = collect(&mut *reader, 1).await;
        assert_eq!(found[0].0, Offset(0));
        let record = Record::decode(&found[0].1).expect("a record");
        let Payload::Genesis(genesis) = record.payload else {
            panic!("offset 0 holds {record:?}, not a genesis");
        };
        assert_eq!(genesis.shard, shard);
    }
    let (start, end) = log.bounds().await.expect("bounds");
    assert_eq!(start, Offset(0));
    assert!(end > Offset(0));
}

async fn records_stand_in_the_order_of_their_appends(store: &dyn LogStore) {
    const CALLERS: usize = 8;
    const EACH: usize = 50;
    let log = fresh(store).await;
    let mut reader = log.read(Offset(0)).await.expect("reads");
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let receipts: Vec<_> = (0..EACH)
                    .map(|i| log.append(Bytes::from(format!("{caller} {i:04}"))))
                    .collect();
                let mut offsets = Vec::new();
                for receipt in receipts {
                    offsets.push(in_time(receipt_outcome(receipt)).await.expect("taken"));
                }
                offsets
            })
        })
        .collect();
    let found = collect(&mut *reader, 1 + CALLERS * EACH).await;
    for (caller, task) in callers.into_iter().enumerate() {
        let told = task.await.expect("no panic");
        let prefix = format!("{caller} ");
        let mine: Vec<_> = found
            .iter()
            .filter(|(_, b)| b.starts_with(prefix.as_bytes()))
            .collect();
        let expected: Vec<_> = (0..EACH).map(|i| format!("{caller} {i:04}")).collect();
        let bytes: Vec<_> = mine.iter().map(|(_, b)| &b[..]).collect();
        assert_eq!(
            bytes,
            expected.iter().map(String::as_bytes).collect::<Vec<_>>()
        );
        let offsets: Vec<_> = mine.iter().map(|(o, _)| *o).collect();
        assert_eq!(offsets, told, "receipts name the offsets that readers see");
    }
}

async fn any_bytes_come_back_as_they_were(store: &dyn LogStore) {
    let log = fresh(store).await;
    let shapes: Vec<Bytes> = vec![
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from(vec![0xAB; 100_000]),
        Bytes::from((0..=255_u8).cycle().take(1_000_003).collect::<Vec<_>>()),
    ];
    for shape in &shapes {
        append(&*log, shape.clone()).await;
    }
    let mut reader = log.read(Offset(0)).await.expect("reads");
    let found = collect(&mut *reader, 1 + shapes.len()).await;
    for (shape, (offset, bytes)) in shapes.iter().zip(&found[1..]) {
        assert!(shape == bytes, "the record at {offset} came back changed");
    }
}

async fn a_reader_waits_at_the_end_and_loses_nothing_when_cancelled(store: &dyn LogStore) {
    let log = fresh(store).await;
    let mut reader = log.read(Offset(0)).await.expect("reads");
    collect(&mut *reader, 1).await;
    for i in 0..20 {
        // Cancelled at the end, and sometimes in the middle of an append.
        let wait = Duration::from_millis(i % 3);
        let early = tokio::time::timeout(wait, reader.next()).await;
        assert!(early.is_err(), "nothing is there to read");
        let offset = append(&*log, format!("{i}")).await;
        let found = collect(&mut *reader, 1).await;
        assert_eq!(found, vec![(offset, Bytes::from(format!("{i}")))]);
    }
    let writer = Arc::clone(&log);
    let waiting = tokio::spawn(async move { reader.next().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    append(&*writer, "wake").await;
    let woken = in_time(waiting).await.expect("no panic").expect("readable");
    assert_eq!(woken[0].1, "wake");
}

async fn a_reader_starts_anywhere_between_start_and_end(store: &dyn LogStore) {
    let log = fresh(store).await;
    let mut offsets = vec![Offset(0)];
    for i in 0..30 {
        offsets.push(append(&*log, format!("{i}")).await);
    }
    let (_, end) = log.bounds().await.expect("bounds");
    assert!(
        end > offsets[30],
        "the end is past every acknowledged record"
    );
    for (at, offset) in offsets.iter().enumerate() {
        let mut reader = log.read(*offset).await.expect("within bounds");
        let found = collect(&mut *reader, offsets.len() - at).await;
        assert_eq!(found[0].0, *offset);
    }
    assert!(log.read(end).await.is_ok(), "a reader may start at the end");
    let beyond = log.read(end.next()).await.err();
    assert!(
        matches!(beyond, Some(LogError::LostTail { .. })),
        "beyond the end is a lost tail, not {beyond:?}"
    );
}

async fn a_record_over_the_limit_is_refused_alone(store: &dyn LogStore, max: usize) {
    let log = fresh(store).await;
    append(&*log, "before").await;
    let outcome = in_time(receipt_outcome(log.append(vec![1; max + 1].into()))).await;
    assert!(
        matches!(outcome, Err(LogError::TooLarge { .. })),
        "over the limit is refused, not {outcome:?}"
    );
    append(&*log, vec![2; max]).await;
    let mut reader = log.read(Offset(0)).await.expect("reads");
    let found = collect(&mut *reader, 3).await;
    assert_eq!(found[2].1.len(), max);
}

async fn shards_do_not_mix(store: &dyn LogStore) {
    let logs = [fresh(store).await, fresh(store).await, fresh(store).await];
    for i in 0..40 {
        append(&*logs[i % 3], format!("{} {i}", i % 3)).await;
    }
    for (shard, log) in logs.iter().enumerate() {
        let count = (0..40).filter(|i| i % 3 == shard).count();
        let mut reader = log.read(Offset(0)).await.expect("reads");
        let found = collect(&mut *reader, 1 + count).await;
        let prefix = format!("{shard} ");
        assert!(
            found[1..]
                .iter()
                .all(|(_, b)| b.starts_with(prefix.as_bytes()))
        );
    }
}

async fn trimmed_records_are_gone_and_the_rest_is_not(store: &dyn LogStore) {
    let log = fresh(store).await;
    let mut offsets = Vec::new();
    for i in 0..20 {
        offsets.push(append(&*log, vec![i; 1000]).await);
    }
    let before = log.retained_bytes();
    let mut slow = log.read(Offset(0)).await.expect("reads");
    for _ in 0..2 {
        log.trim(offsets[10]).await.expect("trims, and again");
    }
    log.trim(offsets[3])
        .await
        .expect("trimming lower is nothing");
    let (start, end) = log.bounds().await.expect("bounds");
    assert_eq!(start, offsets[10]);
    assert!(log.retained_bytes() < before);
    assert!(log.held_back_bytes() >= log.retained_bytes());
    let below = log.read(offsets[9]).await.err();
    assert!(
        matches!(below, Some(LogError::BelowStart { .. })),
        "{below:?}"
    );
    let overtaken = in_time(slow.next()).await.err();
    assert!(
        matches!(overtaken, Some(LogError::BelowStart { .. })),
        "a reader below the start is told so, not {overtaken:?}"
    );
    let mut reader = log.read(offsets[10]).await.expect("at the start");
    let found = collect(&mut *reader, 10).await;
    assert_eq!(found[0].0, offsets[10]);
    log.trim(end).await.expect("trims all");
    let (start, same_end) = log.bounds().await.expect("bounds");
    assert_eq!((start, same_end), (end, end));
    let next = append(&*log, "after").await;
    assert!(next >= end, "a trimmed offset is not given again");
}

async fn what_was_acknowledged_survives_a_restart(backend: &mut dyn Backend) {
    let store = backend.restart().await;
    let shard = ShardId::generate();
    let id = store.create(shard).await.expect("made");
    let mut kept: Vec<(Offset, Bytes)> = Vec::new();
    drop(store);
    for round in 0..4 {
        let store = backend.restart().await;
        let log = store.open(shard, id).await.expect("still known");
        let mut reader = log.read(Offset(0)).await.expect("reads");
        let found = collect(&mut *reader, 1 + kept.len()).await;
        assert!(
            found[1..] == kept[..],
            "round {round}: not what was acknowledged"
        );
        for i in 0..25 {
            let bytes = Bytes::from(format!("{round} {i}").repeat(i + 1));
            let offset = append(&*log, bytes.clone()).await;
            assert!(kept.last().is_none_or(|(last, _)| offset > *last));
            kept.push((offset, bytes));
        }
    }
}

async fn an_emptied_log_knows_its_end_after_a_restart(backend: &mut dyn Backend) {
    let store = backend.restart().await;
    let shard = ShardId::generate();
    let id = store.create(shard).await.expect("made");
    let log = store.open(shard, id).await.expect("opens");
    let mut last = Offset(0);
    for i in 0..10 {
        last = append(&*log, format!("{i}")).await;
    }
    log.trim(last.next()).await.expect("trims");
    drop((log, store));
    for _ in 0..2 {
        let store = backend.restart().await;
        let log = store.open(shard, id).await.expect("still known");
        let (_, end) = log.bounds().await.expect("bounds");
        assert!(end > last, "the end went back from above {last} to {end}");
        let next = append(&*log, "more").await;
        assert!(next > last, "offset {next} was given before");
        last = next;
        log.trim(last.next()).await.expect("trims");
    }
}
