//! Logs that are damaged, cut or refuse to confirm, and producers that fail.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use shoal_types::{LogId, Offset, Retry, ShardId};
use shoal_wal::kafka::KafkaLogStore;
use shoal_wal::log::{LogError, receipt_outcome};

use crate::support::{Stack, append, collect, in_time, make, open, texts};

/// The file of a log's only segment on its only broker.
fn segment(stack: &Stack, store: &KafkaLogStore, shard: ShardId, id: LogId) -> PathBuf {
    let partition = format!("{}-0", store.topic_name(shard, id));
    let data = stack.dir().join("kafka1/data");
    data.join(partition).join("00000000000000000000.log")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_ends_its_readers_behind_all_that_came_before() {
    let stack = Stack::up(1, &[]);
    let store = open(&stack.config());
    let (shard, id, log) = make(&store).await;
    for i in 0..10 {
        let text = format!("record number {i}");
        append(&*log, text).await.expect("taken");
    }
    let path = segment(&stack, &store, shard, id);
    let mut bytes = std::fs::read(&path).expect("the segment");
    let damaged = b"record number 6";
    let at = bytes.windows(damaged.len()).position(|w| w == damaged);
    bytes[at.expect("in the file")] ^= 1;
    std::fs::write(&path, &bytes).expect("written");

    let mut reader = log.read(Offset(0)).await.expect("reads");
    let (found, error) = collect(&mut *reader, 11).await;
    let expected: Vec<_> = (0..6).map(|i| format!("record number {i}")).collect();
    assert_eq!(texts(&found), expected);
    for error in [error, in_time(reader.next()).await.err()] {
        let Some(LogError::Damaged {
            shard: told, place, ..
        }) = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(told, shard);
        assert!(place.ends_with("offset 7"), "{place}");
    }
    // An operator who accepts the loss goes on behind it.
    let mut behind = log.read(Offset(8)).await.expect("reads");
    let (found, _) = collect(&mut *behind, 3).await;
    assert_eq!(texts(&found)[0], "record number 7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_cut_below_a_reader_has_lost_its_tail() {
    let stack = Stack::up(1, &[]);
    let store = open(&stack.config());
    let (shard, id, log) = make(&store).await;
    for i in 0..20 {
        append(&*log, vec![i; 1000]).await.expect("taken");
    }
    let mut reader = log.read(Offset(0)).await.expect("reads");
    collect(&mut *reader, 21).await;
    let waiting = tokio::spawn(async move {
        let error = reader.next().await.expect_err("nothing was appended");
        (error, reader.next().await.expect_err("and the same again"))
    });
    stack.run(&["kill", "kafka1"]);
    let path = segment(&stack, &store, shard, id);
    let file = std::fs::OpenOptions::new().write(true).open(&path);
    let file = file.expect("the segment");
    let length = file.metadata().expect("its size").len();
    file.set_len(length / 2).expect("cut");
    stack.run(&["start", "kafka1"]);

    let (error, again) = in_time(waiting).await.expect("no panic");
    assert!(
        matches!(
            &error,
            LogError::LostTail {
                asked: Offset(21),
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.to_string(), again.to_string());
    let late = log.read(Offset(21)).await.err();
    let Some(LogError::LostTail { end, .. }) = late else {
        panic!("{late:?}");
    };
    assert!((5..15).contains(&end.0), "{end}");
    assert_eq!(log.bounds().await.expect("bounds"), (Offset(0), end));
    let mut rest = log.read(Offset(0)).await.expect("what is left is read");
    let (found, error) = collect(&mut *rest, end.0 as usize).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(found.len(), end.0 as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_replicas_are_a_commit_timeout_that_holds_no_thread() {
    const APPENDS: usize = 400;
    let stack = Stack::up(1, &[]);
    let mut config = stack.config();
    config.commit_timeout_ms = 1_500;
    let store = open(&config);
    let (_, _, log) = make(&store).await;
    append(&*log, "before").await.expect("taken");
    stack.run(&["pause", "kafka1"]);
    let threads = || {
        std::fs::read_dir("/proc/self/task")
            .expect("threads")
            .count()
    };
    let before = threads();
    let began = Instant::now();
    let receipts: Vec<_> = (0..APPENDS)
        .map(|i| log.append(format!("{i}").into()))
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Other tests come and go.
    assert!(
        threads() < before + APPENDS / 4,
        "{} of {before}",
        threads()
    );
    for receipt in receipts {
        let outcome = in_time(receipt_outcome(receipt)).await;
        let Err(error @ LogError::CommitTimeout { timeout_ms: 1_500 }) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(error.retry(), Retry::Unknown);
    }
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_400), "{took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(store.stats().commit_timeouts, APPENDS as u64);
    stack.run(&["resume", "kafka1"]);
    let last = append(&*log, "after").await.expect("taken again");
    // Those in between may have got in, late.
    let mut reader = log.read(Offset(1)).await.expect("reads");
    let mut found = Vec::new();
    while found.last().is_none_or(|(offset, _)| *offset < last) {
        found.extend(in_time(reader.next()).await.expect("readable"));
    }
    let said = texts(&found);
    assert_eq!((&*said[0], &*said[said.len() - 1]), ("before", "after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_fails_for_good_is_replaced_and_everything_is_answered() {
    const GROUPS: usize = 60;
    const EACH: usize = 20;
    let store = open(&Stack::shared().config());
    let (_, _, log) = make(&store).await;
    let mut acknowledged = Vec::new();
    let mut failed = 0;
    for group in 0..GROUPS {
        let receipts: Vec<_> = (0..EACH)
            .map(|i| {
                if group % 20 == 10 && i == EACH / 2 {
                    store.fail_producer();
                }
                let text = format!("{group:02} {i:02}");
                (log.append(text.clone().into()), text)
            })
            .collect();
        for (receipt, text) in receipts {
            match in_time(receipt_outcome(receipt)).await {
                Ok(offset) => acknowledged.push((offset, text)),
                Err(LogError::Unknown(_) | LogError::CommitTimeout { .. }) => failed += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    let stats = store.stats();
    assert_eq!(stats.producers_replaced, 3);
    assert!(failed <= 3 * EACH, "{failed}");
    assert_eq!(acknowledged.len() + failed, GROUPS * EACH);
    assert_eq!((stats.in_flight_records, stats.in_flight_bytes), (0, 0));
    let (_, end) = log.bounds().await.expect("bounds");
    let mut reader = log.read(Offset(1)).await.expect("reads");
    let (found, _) = collect(&mut *reader, end.0 as usize - 1).await;
    for (offset, text) in &acknowledged {
        let at = found.binary_search_by_key(offset, |(o, _)| *o);
        assert_eq!(found[at.expect("there")].1, text.as_bytes());
    }
}
