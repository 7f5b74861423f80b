//! What a replica appended itself is applied by the log's word (decision 0014), unless something
//! stands before it that was not read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::memory::InMemory;
use shoal_engine::{Role, WriteError, WriteOptions};
use shoal_types::{LogId, Offset, ShardId, TableMode};
use shoal_wal::log::{AppendReceipt, Log, LogError, LogReader, LogStore};
use shoal_wal::record::Record;
use shoal_wal::simulated::SimulatedLogStore;
use tokio::sync::watch;

use super::support::*;

const MOMENT: Duration = Duration::from_millis(300);

/// What readers do.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    On,
    Held,
    /// They show a barrier in the place of every record.
    Wrong,
    /// They show records up to this offset with their last byte changed.
    Damaged(Offset),
}

/// Logs whose readers can be held up.
#[derive(Debug)]
struct HeldLogs {
    inner: SimulatedLogStore,
    reading: watch::Sender<Reading>,
}

impl HeldLogs {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: SimulatedLogStore::new(seed),
            reading: watch::channel(Reading::On).0,
        })
    }

    /// Two views of one world: with readers that can be held up, and without.
    fn worlds(self: &Arc<Self>) -> (World, World) {
        let held = World::new(Arc::clone(self) as _, Arc::new(InMemory::new()));
        let free = World {
            logs: Arc::new(self.inner.clone()),
            ..held.clone()
        };
        (held, free)
    }
}

#[async_trait]
impl LogStore for HeldLogs {
    async fn create(&self, shard: ShardId) -> Result<LogId, LogError> {
        self.inner.create(shard).await
    }

    async fn open(&self, shard: ShardId, log: LogId) -> Result<Arc<dyn Log>, LogError> {
        Ok(Arc::new(HeldLog {
            inner: self.inner.open(shard, log).await?,
            reading: self.reading.subscribe(),
        }))
    }

    async fn list(&self) -> Result<Vec<(ShardId, LogId)>, LogError> {
        self.inner.list().await
    }

    async fn remove(&self, shard: ShardId) -> Result<(), LogError> {
        LogStore::remove(&self.inner, shard).await
    }
}

#[derive(Debug)]
struct HeldLog {
    inner: Arc<dyn Log>,
    reading: watch::Receiver<Reading>,
}

#[async_trait]
impl Log for HeldLog {
    fn append(&self, record: Bytes) -> AppendReceipt {
        self.inner.append(record)
    }

    fn receipts_come_first(&self) -> bool {
        self.inner.receipts_come_first()
    }

    async fn read(&self, from: Offset) -> Result<Box<dyn LogReader>, LogError> {
        Ok(Box::new(HeldReader {
            inner: self.inner.read(from).await?,
            reading: self.reading.clone(),
            stash: None,
        }))
    }

    async fn bounds(&self) -> Result<(Offset, Offset), LogError> {
        self.inner.bounds().await
    }

    async fn trim(&self, below: Offset) -> Result<(), LogError> {
        self.inner.trim(below).await
    }

    fn retained_bytes(&self) -> u64 {
        self.inner.retained_bytes()
    }
}

struct HeldReader {
    inner: Box<dyn LogReader>,
    reading: watch::Receiver<Reading>,
    stash: Option<Vec<(Offset, Bytes)>>,
}

#[async_trait]
impl LogReader for HeldReader {
    async fn next(&mut self) -> Result<Vec<(Offset, Bytes)>, LogError> {
        if self.stash.is_none() {
            self.stash = Some(self.inner.next().await?);
        }
        let go_on = self.reading.wait_for(|reading| *reading != Reading::Held);
        let reading = *go_on.await.map_err(|_| LogError::Closed)?;
        let mut batch = self.stash.take().unwrap_or_default();
        for (offset, bytes) in &mut batch {
            match reading {
                Reading::On | Reading::Held => {}
                Reading::Damaged(last) if *offset > last => {}
                Reading::Wrong => *bytes = Record::barrier(uuid::Uuid::nil(), 0).encode(),
                Reading::Damaged(_) => {
                    let mut damaged = bytes.to_vec();
                    *damaged.last_mut().expect("a record") ^= 1;
                    *bytes = damaged.into();
                }
            }
        }
        Ok(batch)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_log_confirmed_is_there_before_it_is_read() {
    let logs = HeldLogs::new(51);
    let (held, free) = logs.worlds();
    let leader = held.open(config()).await;
    let table = make(&leader, "t", TableMode::Append).await;
    logs.reading.send_replace(Reading::Held);
    for at in 0..20 {
        let done = put(&leader, &table, &[("a", at, at)], WriteOptions::default()).await;
        done.expect("write");
    }
    assert_eq!(list(&leader, &table).await.len(), 20, "a strong read");
    // The log is trimmed under the reader's feet.
    leader.flush(None).await.expect("flush");
    logs.reading.send_replace(Reading::On);
    for at in 20..40 {
        let done = put(&leader, &table, &[("a", at, at)], WriteOptions::default()).await;
        done.expect("write");
    }
    let seen = list(&leader, &table).await;
    assert_eq!(seen.len(), 40);
    let follower = follow_with(&free, &table, config()).await;
    assert_eq!(list(&follower, &table).await, seen);
    assert_eq!(leader.status()[0].role, "leader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_behind_what_was_not_read_waits_for_the_reader() {
    let logs = HeldLogs::new(52);
    let (held, free) = logs.worlds();
    let leader = held.open(config()).await;
    let table = make(&leader, "t", TableMode::Append).await;
    let follower = follow_with(&free, &table, config()).await;
    logs.reading.send_replace(Reading::Held);
    // Its barrier stands in the log from here on.
    assert_eq!(list(&follower, &table).await.len(), 0);
    let rows = [("a", 1, 1)];
    let write = put(&leader, &table, &rows, WriteOptions::default());
    tokio::pin!(write);
    let early = tokio::time::timeout(MOMENT, &mut write).await;
    assert!(early.is_err(), "{early:?}");
    logs.reading.send_replace(Reading::On);
    write.await.expect("read back");
    assert_eq!(list(&follower, &table).await.len(), 1);
    // What comes next need not be read again, once the follower's second barrier was.
    tokio::time::sleep(MOMENT).await;
    logs.reading.send_replace(Reading::Held);
    let next = put(&leader, &table, &[("a", 2, 2)], WriteOptions::default()).await;
    let late = next.is_ok();
    logs.reading.send_replace(Reading::On);
    assert!(late);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_that_reads_nothing_acknowledges_nothing() {
    let logs = HeldLogs::new(53);
    let (held, free) = logs.worlds();
    let old = held.open(config()).await;
    let table = make(&old, "t", TableMode::Append).await;
    let new = free.open_node(config()).await;
    logs.reading.send_replace(Reading::Held);
    let promoted = new.set_role(table.shard, Role::Leader, 0).await;
    promoted.expect("promote");
    let rows = [("zombie", 1, 1)];
    let write = put(&old, &table, &rows, WriteOptions::default());
    tokio::pin!(write);
    let early = tokio::time::timeout(MOMENT, &mut write).await;
    assert!(early.is_err(), "{early:?}");
    logs.reading.send_replace(Reading::On);
    let refused = write.await;
    assert!(
        matches!(refused, Err(WriteError::NotLeader { .. })),
        "{refused:?}"
    );
    assert!(list(&new, &table).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_shows_another_record_than_it_confirmed_stops_the_shard() {
    let logs = HeldLogs::new(54);
    let (held, _) = logs.worlds();
    let leader = held.open(config()).await;
    let table = make(&leader, "t", TableMode::Append).await;
    // All that came before is read.
    tokio::time::sleep(MOMENT).await;
    logs.reading.send_replace(Reading::Held);
    let done = put(&leader, &table, &[("a", 1, 1)], WriteOptions::default()).await;
    done.expect("confirmed");
    logs.reading.send_replace(Reading::Wrong);
    until(&leader, "it stops", || {
        let why = leader.status()[0].why.clone();
        why.is_some_and(|why| why.contains("shows another one"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_knows_what_stood_at_a_damaged_place_leaves_it_behind() {
    let logs = HeldLogs::new(55);
    let (held, free) = logs.worlds();
    let leader = held.open(config()).await;
    let table = make(&leader, "t", TableMode::Append).await;
    // All that came before is read.
    tokio::time::sleep(MOMENT).await;
    logs.reading.send_replace(Reading::Held);
    for at in 0..3 {
        let done = put(&leader, &table, &[("a", at, at)], WriteOptions::default()).await;
        done.expect("confirmed");
    }
    let last = leader.status()[0].position;
    logs.reading.send_replace(Reading::Damaged(last));
    until(&leader, "it flushes", || {
        leader.status()[0].replay_offset > last
    })
    .await;
    logs.reading.send_replace(Reading::On);
    let done = put(&leader, &table, &[("a", 3, 3)], WriteOptions::default()).await;
    done.expect("it leads on");
    assert_eq!(leader.status()[0].role, "leader");
    let seen = list(&leader, &table).await;
    assert_eq!(seen.len(), 4);
    let follower = follow_with(&free, &table, config()).await;
    assert_eq!(list(&follower, &table).await, seen);
}
