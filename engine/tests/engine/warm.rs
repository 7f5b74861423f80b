//! A replica's cache disk is filled before anybody reads.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use shoal_engine::{EngineConfig, WriteOptions};
use shoal_sst::DiskCacheOptions;
use shoal_types::TableMode;
use shoal_wal::simulated::SimulatedLogStore;

use super::support::*;

const ROWS: i64 = 20_000;

fn with_disk(dir: &std::path::Path, bytes: usize) -> EngineConfig {
    EngineConfig {
        cache_disk: Some(DiskCacheOptions {
            directory: dir.to_owned(),
            bytes_max: bytes,
        }),
        ..config()
    }
}

/// A number that does not compress.
fn mixed(i: i64) -> i64 {
    const ODD: i64 = 0x5E37_79B9_7F4A_7C15;
    i.wrapping_mul(ODD).rotate_left(31).wrapping_mul(ODD)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_has_its_files_near_before_it_is_asked() {
    let world = World::new(
        Arc::new(SimulatedLogStore::new(61)),
        Arc::new(InMemory::new()),
    );
    let leader = world.open(config()).await;
    let table = make(&leader, "t", TableMode::Append).await;
    let rows: Vec<(&str, i64, i64)> = (0..ROWS).map(|i| ("a", i, mixed(i))).collect();
    let done = put(&leader, &table, &rows, WriteOptions::default()).await;
    done.expect("write");
    leader.flush(None).await.expect("flush");
    let bytes = leader.status()[0].bytes;
    assert!(bytes > 20 << 10, "{bytes} bytes of files");

    let large = tempfile::tempdir().expect("folder");
    let small = tempfile::tempdir().expect("folder");
    let near = follow_with(&world, &table, with_disk(large.path(), 64 << 20)).await;
    // Two blocks would be more than the nine tenths that are filled ahead.
    let narrow = follow_with(&world, &table, with_disk(small.path(), 20 << 10)).await;
    for turn in 0.. {
        let warmed = near.sst_store().stats().warmed_bytes.get();
        let kept = near.sst_store().stats().disk.bytes();
        if warmed == bytes && kept >= bytes {
            break;
        }
        assert!(turn < 500, "{warmed} of {bytes} bytes fetched ahead");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stats = narrow.sst_store();
    assert!(stats.stats().warmed_bytes.get() < bytes);
    assert!(stats.stats().disk.bytes() <= 20 << 10);
    assert_eq!(list(&narrow, &table).await.len() as i64, ROWS);

    // Nobody else has them any more.
    let listed: Vec<_> = world.store.list(None).try_collect().await.expect("list");
    let mut gone = 0;
    for object in listed {
        if object.location.as_ref().ends_with(".parquet") {
            world.store.delete(&object.location).await.expect("delete");
            gone += 1;
        }
    }
    assert!(gone > 0);
    assert_eq!(list(&near, &table).await.len() as i64, ROWS);
}
