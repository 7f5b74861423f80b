//! A log cut at every byte of its end, and one with every field of its middle changed.

use std::path::PathBuf;

use super::*;

fn only_segment(dir: &Path) -> PathBuf {
    segment::segment_path(dir, 1)
}

/// A folder in memory where there is one: these tests open hundreds of logs, and what they cut
/// and change is bytes, not syncs.
fn in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap_or_else(|_| TempDir::new().expect("dir"))
}

/// One segment for everything, so that its middle and its end are in one file.
fn open_wide(dir: &Path) -> LocalLogStore {
    LocalLogStore::open(LocalLogConfig::new(dir)).expect("the folder opens")
}

#[tokio::test]
async fn a_log_cut_anywhere_in_its_last_batch_keeps_all_that_was_acknowledged_before() {
    let dir = in_memory();
    let shards = [ShardId::generate(), ShardId::generate()];
    let store = open_wide(dir.path());
    let mut logs = Vec::new();
    for shard in shards {
        logs.push(make(&store, shard).await.expect("opens"));
    }
    for i in 0..6 {
        append(&*logs[i % 2], format!("record {i}"))
            .await
            .expect("ok");
    }
    append(&*logs[0], "the last one, whole or not at all")
        .await
        .expect("ok");
    kill(store, dir.path());
    let whole = std::fs::read(only_segment(dir.path())).expect("file");
    let batches = items(dir.path());
    let last_batch = batches
        .iter()
        .rev()
        .find(|i| matches!(i.content, LogContent::Batch { .. }))
        .expect("a batch")
        .byte as usize;
    for cut in last_batch..=whole.len() {
        // A torn write may also leave zeros where its end should be.
        for zeros in [0, (whole.len() - cut).min(100)] {
            let copy = in_memory();
            let mut bytes = whole[..cut].to_vec();
            bytes.resize(cut + zeros, 0);
            std::fs::write(only_segment(copy.path()), bytes).expect("copied");
            for round in 0..2 {
                let store = open_wide(copy.path());
                let log = LogStore::open(&store, shards[0], LogId::SOLE)
                    .await
                    .expect("opens");
                let (found, error) = read_all(&*log).await;
                let expected = 4 + usize::from(cut == whole.len()) + round;
                assert!(
                    error.is_none() && found.len() == expected,
                    "cut {cut}: {found:?}"
                );
                let other = LogStore::open(&store, shards[1], LogId::SOLE)
                    .await
                    .expect("opens");
                assert_eq!(read_all(&*other).await.0.len(), 4);
                append(&*log, format!("after, {round}"))
                    .await
                    .expect("goes on");
                kill(store, copy.path());
            }
        }
    }
}

/// A log of three shards in one segment, cleanly stopped. `c` ends in the middle of it.
async fn three_shards(dir: &Path) -> [ShardId; 3] {
    let shards = [
        ShardId::generate(),
        ShardId::generate(),
        ShardId::generate(),
    ];
    let store = open_wide(dir);
    let mut logs = Vec::new();
    for shard in shards {
        logs.push(make(&store, shard).await.expect("opens"));
    }
    for i in 0..5 {
        append(&*logs[0], format!("a {i}")).await.expect("ok");
        append(&*logs[1], format!("b {i}")).await.expect("ok");
        if i < 2 {
            append(&*logs[2], format!("c {i}")).await.expect("ok");
        }
    }
    shards
}

#[tokio::test]
async fn a_changed_byte_in_a_frame_stops_its_shard_by_name_and_no_other() {
    let dir = in_memory();
    let shards = three_shards(dir.path()).await;
    let whole = std::fs::read(only_segment(dir.path())).expect("file");
    let counts = [6_usize, 6, 3];
    let frames: Vec<(u64, ShardId, Offset, u32)> = items(dir.path())
        .iter()
        .filter_map(|i| match &i.content {
            LogContent::Frame {
                shard,
                offset,
                bytes,
                ..
            } => Some((i.byte, *shard, *offset, *bytes)),
            _ => None,
        })
        .collect();
    assert_eq!(frames.len(), 15);
    // Magic, crc, shard, offset, length, the record's crc, the record.
    for (byte, hit, hit_offset, bytes) in &frames {
        for field in [0, 4, 8, 24, 32, 36, 40, 40 + *bytes as usize - 1] {
            let copy = in_memory();
            let mut changed = whole.clone();
            changed[*byte as usize + field] ^= 0x41;
            std::fs::write(only_segment(copy.path()), &changed).expect("copied");
            // The second time with a newer segment behind the damage.
            for round in 0..2 {
                let store = open_wide(copy.path());
                for (shard, count) in shards.iter().zip(counts) {
                    let log = make(&store, *shard).await.expect("opens");
                    if shard != hit {
                        let (found, error) = read_all(&*log).await;
                        assert!(error.is_none(), "frame at {byte}+{field}: {error:?}");
                        assert_eq!(found.len(), count + round, "frame at {byte}+{field}");
                        append(&*log, "more").await.expect("unharmed");
                        continue;
                    }
                    let (found, error) = read_all(&*log).await;
                    assert_eq!(found.len() as u64, hit_offset.0, "all before the damage");
                    let Some(LogError::Damaged {
                        place,
                        shard: named,
                        ..
                    }) = error
                    else {
                        panic!("frame at {byte}+{field}: {error:?} is not damage");
                    };
                    assert_eq!(named, *hit);
                    assert!(place.contains("00001.log byte "), "{place}");
                }
                drop(store);
            }
            assert!(
                std::fs::read(only_segment(copy.path())).expect("file") == changed,
                "a damaged file is left as it is"
            );
        }
    }
}

#[tokio::test]
async fn a_changed_byte_in_a_batch_or_segment_header_loses_no_record_silently() {
    let dir = in_memory();
    let shards = three_shards(dir.path()).await;
    let whole = std::fs::read(only_segment(dir.path())).expect("file");
    let counts = [6_usize, 6, 3];
    let headers: Vec<u64> = items(dir.path())
        .iter()
        .filter_map(|i| match i.content {
            LogContent::Batch { frames, .. } => (frames > 0).then_some(i.byte),
            LogContent::Segment { .. } => Some(0),
            _ => None,
        })
        .collect();
    assert!(headers.len() > 10);
    for byte in headers {
        for field in [0, 8, 12, 16, 24, 32, 40, 60] {
            let copy = in_memory();
            let mut changed = whole.clone();
            changed[byte as usize + field] ^= 0x41;
            std::fs::write(only_segment(copy.path()), &changed).expect("copied");
            for round in 0..2 {
                let store = open_wide(copy.path());
                for (shard, count) in shards.iter().zip(counts) {
                    // All frames are whole, so all records are there; but a shard that nothing
                    // behind the damage clears says that it cannot be sure.
                    let log = LogStore::open(&store, *shard, LogId::SOLE)
                        .await
                        .expect("opens");
                    let (found, error) = read_all(&*log).await;
                    assert!(
                        found.len() >= count,
                        "header at {byte}+{field}: {}",
                        found.len()
                    );
                    match error {
                        None => assert!(append(&*log, "more").await.is_ok()),
                        Some(LogError::Damaged { .. }) => {
                            assert_eq!(found.len(), count);
                            assert!(append(&*log, "more").await.is_err());
                        }
                        Some(other) => panic!("{other}"),
                    }
                    assert!(found.len() <= count + round);
                }
                drop(store);
            }
        }
    }
}

#[tokio::test]
async fn a_batch_lost_as_a_whole_is_never_lost_silently() {
    let dir = in_memory();
    let shards = three_shards(dir.path()).await;
    let whole = std::fs::read(only_segment(dir.path())).expect("file");
    let counts = [6_usize, 6, 3];
    let batches: Vec<(usize, usize)> = items(dir.path())
        .iter()
        .filter_map(|i| match i.content {
            LogContent::Batch { frames, bytes, .. } if frames > 0 => {
                Some((i.byte as usize, bytes as usize))
            }
            _ => None,
        })
        .collect();
    for (byte, bytes) in batches {
        let copy = in_memory();
        let mut changed = whole.clone();
        changed[byte..byte + bytes].fill(0);
        std::fs::write(only_segment(copy.path()), &changed).expect("copied");
        for round in 0..2 {
            let store = open_wide(copy.path());
            let mut damaged = 0;
            for (shard, count) in shards.iter().zip(counts) {
                let log = make(&store, *shard).await.expect("opens");
                let (found, error) = read_all(&*log).await;
                match error {
                    None => {
                        assert_eq!(found.len(), count + round, "batch at {byte}");
                        append(&*log, "more").await.expect("unharmed");
                    }
                    Some(LogError::Damaged { .. }) => damaged += 1,
                    Some(other) => panic!("{other}"),
                }
            }
            assert!(damaged > 0, "batch at {byte}");
            drop(store);
        }
    }
}

#[tokio::test]
async fn a_missing_segment_stops_the_shards_that_had_records_in_it() {
    let dir = in_memory();
    let [hit, other] = [ShardId::generate(), ShardId::generate()];
    let store = open(dir.path());
    let log = make(&store, hit).await.expect("opens");
    let quiet = make(&store, other).await.expect("opens");
    for i in 0..20 {
        append(&*log, vec![i; 2000]).await.expect("ok");
    }
    append(&*quiet, "quiet").await.expect("ok");
    drop(store);
    std::fs::remove_file(segment::segment_path(dir.path(), 3)).expect("removed");
    let store = open(dir.path());
    let log = LogStore::open(&store, hit, LogId::SOLE)
        .await
        .expect("opens");
    let (found, error) = read_all(&*log).await;
    assert!(!found.is_empty() && found.len() < 20);
    assert!(
        matches!(&error, Some(LogError::Damaged { place, .. }) if place.contains("0003.log")),
        "{error:?}"
    );
    let quiet = LogStore::open(&store, other, LogId::SOLE)
        .await
        .expect("opens");
    let (found, error) = read_all(&*quiet).await;
    assert_eq!((found.len(), error.is_none()), (2, true));
}
