//! A broker that works.

use std::sync::Arc;

use async_trait::async_trait;
use shoal_types::Offset;
use shoal_wal::conformance::{self, Backend};
use shoal_wal::kafka::{Acks, KafkaLogConfig};
use shoal_wal::log::{LogError, LogStore};

use crate::support::{Stack, append, collect, in_time, make, open, texts};

const RECORD_BYTES_MAX: usize = 2 << 20;

struct OnKafka {
    config: KafkaLogConfig,
}

#[async_trait]
impl Backend for OnKafka {
    async fn restart(&mut self) -> Arc<dyn LogStore> {
        Arc::new(open(&self.config))
    }

    fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kafka_log_keeps_the_contract() {
    let mut config = Stack::shared().config();
    config.record_bytes_max = RECORD_BYTES_MAX;
    conformance::passes(&mut OnKafka { config }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_one_shard_and_of_many_do_not_disturb_each_other() {
    const SHARDS: usize = 6;
    const READERS: usize = 3;
    const RECORDS: usize = 200;
    let store = open(&Stack::shared().config());
    let mut readers = Vec::new();
    let mut writers = Vec::new();
    for shard in 0..SHARDS {
        let (_, _, log) = make(&store).await;
        for _ in 0..READERS {
            let mut reader = log.read(Offset(0)).await.expect("reads");
            readers.push(tokio::spawn(async move {
                let (found, error) = collect(&mut *reader, 1 + RECORDS).await;
                assert!(error.is_none(), "{error:?}");
                let expected: Vec<_> = (0..RECORDS).map(|i| format!("{shard} {i}")).collect();
                assert_eq!(texts(&found), expected);
            }));
        }
        writers.push(async move {
            let receipts: Vec<_> = (0..RECORDS)
                .map(|i| log.append(format!("{shard} {i}").into()))
                .collect();
            for receipt in receipts {
                in_time(receipt).await.expect("answered").expect("taken");
            }
        });
    }
    assert_eq!(store.stats().readers, (SHARDS * READERS) as u64);
    let writers: Vec<_> = writers.into_iter().map(tokio::spawn).collect();
    for task in writers.into_iter().chain(readers) {
        task.await.expect("no panic");
    }
    let stats = store.stats();
    assert_eq!(stats.records, (SHARDS * (1 + RECORDS)) as u64);
    assert!(stats.read_records >= (SHARDS * READERS * RECORDS) as u64);
    assert_eq!((stats.in_flight_records, stats.in_flight_bytes), (0, 0));
    assert_eq!(stats.produce_buckets.iter().sum::<u64>(), stats.records);
    assert_eq!(stats.readers, 0);
}

/// The client keeps what it fetched for a topic; a reader that comes after one that went must not
/// get what was fetched for that one.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_follows_another_begins_where_it_was_asked_to() {
    const RECORDS: usize = 400;
    let store = open(&Stack::shared().config());
    let (_, _, log) = make(&store).await;
    let receipts: Vec<_> = (0..RECORDS)
        .map(|i| log.append(format!("{i}").into()))
        .collect();
    for receipt in receipts {
        in_time(receipt).await.expect("answered").expect("taken");
    }
    for round in 0..60_usize {
        let from = (round * 7919) % RECORDS;
        let mut reader = log.read(Offset(1 + from as u64)).await.expect("reads");
        let take = 1 + round % 40;
        let (found, _) = collect(&mut *reader, take.min(RECORDS - from)).await;
        let expected: Vec<_> = (from..from + found.len()).map(|i| i.to_string()).collect();
        assert_eq!(texts(&found), expected, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_queue_is_refused_and_certainly_not_appended() {
    let mut config = Stack::shared().config();
    config.record_bytes_max = 64 << 10;
    config.queue_bytes_max = 200 << 10;
    config.queue_records_max = 50;
    let store = open(&config);
    let (_, _, log) = make(&store).await;
    let mut taken = Vec::new();
    let mut full = 0;
    for round in 0..20 {
        let big = vec![b'x'; 60 << 10];
        let receipts: Vec<_> = (0..10).map(|_| log.append(big.clone().into())).collect();
        let small: Vec<_> = (0..100)
            .map(|i| log.append(format!("{round} {i}").into()))
            .collect();
        for (receipt, text) in receipts
            .into_iter()
            .map(|r| (r, None))
            .chain(small.into_iter().enumerate().map(|(i, r)| (r, Some(i))))
        {
            match in_time(receipt).await.expect("answered") {
                Ok(_) => taken.push(text.map_or(String::new(), |i| format!("{round} {i}"))),
                Err(LogError::Full(_)) => full += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(full > 20, "only {full} refused");
    assert_eq!(store.stats().refused_full, full);
    let mut reader = log.read(Offset(1)).await.expect("reads");
    let (found, _) = collect(&mut *reader, taken.len()).await;
    let found: Vec<_> = texts(&found)
        .into_iter()
        .map(|t| if t.len() > 1000 { String::new() } else { t })
        .collect();
    assert_eq!(found, taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_stand_in_order_too_where_only_the_leader_confirms() {
    const RECORDS: usize = 300;
    let mut config = Stack::shared().config();
    config.acks = Acks::Leader;
    let store = open(&config);
    let (_, _, log) = make(&store).await;
    let receipts: Vec<_> = (0..RECORDS)
        .map(|i| log.append(format!("{i}").into()))
        .collect();
    let mut offsets = Vec::new();
    for receipt in receipts {
        offsets.push(in_time(receipt).await.expect("answered").expect("taken"));
    }
    let mut reader = log.read(Offset(1)).await.expect("reads");
    let (found, _) = collect(&mut *reader, RECORDS).await;
    let expected: Vec<_> = (0..RECORDS).map(|i| i.to_string()).collect();
    assert_eq!(texts(&found), expected);
    let told: Vec<_> = found.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(told, offsets);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_answers_what_is_in_flight_and_ends_readers() {
    let store = open(&Stack::shared().config());
    let (_, _, log) = make(&store).await;
    let mut reader = log.read(Offset(1)).await.expect("reads");
    let receipts: Vec<_> = (0..100)
        .map(|i| log.append(format!("{i}").into()))
        .collect();
    in_time(store.close()).await;
    for receipt in receipts {
        receipt.await.expect("answered").expect("taken before");
    }
    let after = append(&*log, "late").await;
    assert!(matches!(after, Err(LogError::Closed)), "{after:?}");
    loop {
        match in_time(reader.next()).await {
            Ok(_) => {}
            Err(LogError::Closed) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(matches!(log.bounds().await, Err(LogError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_bytes_follow_what_is_read_and_trimmed() {
    let config = Stack::shared().config();
    let store = open(&config);
    let (shard, id, log) = make(&store).await;
    for i in 0..50 {
        append(&*log, vec![i; 1000]).await.expect("taken");
    }
    let retained = log.retained_bytes();
    assert!((50_000..50_500).contains(&retained), "{retained}");
    // Another process learns them by reading.
    let other = open(&config);
    let log = other.open(shard, id).await.expect("opens");
    let mut reader = log.read(Offset(31)).await.expect("reads");
    collect(&mut *reader, 20).await;
    let guessed = log.retained_bytes();
    assert!((49_000..52_000).contains(&guessed), "{guessed}");
    log.trim(Offset(31)).await.expect("trims");
    assert_eq!(log.retained_bytes(), 20_000);
}

/// Trimming here tells readers of this process at once; those of others hear it from the broker,
/// behind what they had fetched before.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_another_process_that_is_overtaken_by_a_trim_is_told() {
    const RECORDS: u64 = 120;
    let mut config = Stack::shared().config();
    config.read_ahead_bytes_max = 1024;
    let (here, elsewhere) = (open(&config), open(&config));
    let (shard, id, log) = make(&here).await;
    for _ in 0..RECORDS {
        append(&*log, vec![7; 256 << 10]).await.expect("taken");
    }
    let other = elsewhere.open(shard, id).await.expect("opens");
    let mut slow = other.read(Offset(1)).await.expect("reads");
    let (some, _) = collect(&mut *slow, 1).await;
    log.trim(Offset(RECORDS)).await.expect("trims");
    let (more, error) = collect(&mut *slow, RECORDS as usize).await;
    let last = more.last().or(some.last()).expect("something").0;
    let Some(LogError::BelowStart { asked, start }) = error else {
        panic!("{error:?}");
    };
    assert_eq!((asked, start), (last.next(), Offset(RECORDS)));
    let again = in_time(slow.next()).await;
    assert!(
        matches!(again, Err(LogError::BelowStart { .. })),
        "{again:?}"
    );
}
