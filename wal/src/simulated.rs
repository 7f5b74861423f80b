//! A log in memory with seeded faults, for tests and the simulator: everything that the contract
//! of [`crate::log`] allows a real log to do, on demand and repeatable.
//!
//! One [`SimulatedLogStore`] stands for the medium: keep it across "restarts" of what uses it.
//! Without [`Faults`] it is a plain log that acknowledges at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use shoal_types::{LogId, Offset, ShardId};
use tokio::sync::{Notify, oneshot};

use crate::log::{AppendReceipt, Log, LogError, LogReader, LogStore};
use crate::record::{Genesis, Record};

/// How often what goes wrong, each a probability from 0 to 1 per append (`stale_end`: per call of
/// `bounds`). They are tried in the order of the fields; the first that strikes is the only one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Refused for lack of space: [`LogError::Full`], not appended.
    pub full: f64,
    /// Appended, but the receipt says [`LogError::Unknown`].
    pub lost_ack: f64,
    /// The receipt says `Unknown` now; the record gets in behind some later append, or at
    /// [`SimulatedLogStore::deliver_late`].
    pub late: f64,
    /// The receipt says `Unknown`, and the record never gets in.
    pub lost: f64,
    /// Appended and acknowledged, and appended once more behind some later record.
    pub duplicate: f64,
    /// Appended behind a gap in the offsets.
    pub gap: f64,
    /// `bounds` answers as of an earlier moment.
    pub stale_end: f64,
}

/// The medium: all shards' logs.
#[derive(Clone, Debug)]
pub struct SimulatedLogStore {
    world: Arc<Mutex<World>>,
}

#[derive(Debug)]
struct World {
    random: u64,
    faults: Faults,
    record_bytes_max: usize,
    /// Whether a shard may get several logs, as in Kafka.
    many_logs: bool,
    /// Each shard's newest log.
    logs: HashMap<ShardId, (LogId, Arc<Medium>)>,
    /// Logs that another one took the place of.
    older: HashMap<(ShardId, LogId), Arc<Medium>>,
}

#[derive(Debug)]
struct Medium {
    shard: ShardId,
    records: Mutex<Records>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Records {
    start: u64,
    end: u64,
    /// The last bounds that were told; a stale answer lies between these and the true ones.
    told: (u64, u64),
    kept: BTreeMap<u64, Bytes>,
    late: Vec<Bytes>,
    /// Offsets that no reader gets past, from and to.
    unreadable: Option<(u64, u64)>,
    /// Where each reader goes on.
    readers: Vec<Weak<AtomicU64>>,
}

impl Records {
    fn push(&mut self, record: Bytes) -> Offset {
        let offset = self.end;
        self.kept.insert(offset, record);
        self.end += 1;
        Offset(offset)
    }
}

impl World {
    /// splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn strikes(&mut self, probability: f64) -> bool {
        // 53 bits fill a double's fraction.
        probability > 0.0
            && ((self.next_random() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }
}

impl SimulatedLogStore {
    /// An empty medium without faults. The same seed, calls and order give the same log.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            world: Arc::new(Mutex::new(World {
                random: seed,
                faults: Faults::default(),
                record_bytes_max: crate::record::RECORD_BYTES_MAX_DEFAULT,
                many_logs: false,
                logs: HashMap::new(),
                older: HashMap::new(),
            })),
        }
    }

    /// As [`Self::new`]; every `create` makes another log, as in Kafka, and what is asked of a
    /// shard's records is asked of the newest.
    #[must_use]
    pub fn with_many_logs(seed: u64) -> Self {
        let store = Self::new(seed);
        store.world.lock().many_logs = true;
        store
    }

    fn medium(&self, shard: ShardId) -> Option<Arc<Medium>> {
        let world = self.world.lock();
        world.logs.get(&shard).map(|(_, medium)| Arc::clone(medium))
    }

    /// Turns a bit of the record at `offset`: what is read from now on is not what was written.
    pub fn damage(&self, shard: ShardId, offset: Offset) {
        let Some(medium) = self.medium(shard) else {
            return;
        };
        if let Some(record) = medium.records.lock().kept.get_mut(&offset.0) {
            let mut bytes = record.to_vec();
            if let Some(last) = bytes.last_mut() {
                *last ^= 1;
            }
            *record = bytes.into();
        }
    }

    /// Makes the offsets from `from` up to `to` unreadable as a whole, as when a batch of several
    /// records does not match its checksum.
    pub fn make_unreadable(&self, shard: ShardId, from: Offset, to: Offset) {
        if let Some(medium) = self.medium(shard) {
            medium.records.lock().unreadable = Some((from.0, to.0));
        }
    }

    /// Removes a shard's log.
    pub fn remove(&self, shard: ShardId) {
        self.world.lock().logs.remove(&shard);
    }

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.world.lock().faults = faults;
    }

    /// Lets every record in that was held back, in some order.
    pub fn deliver_late(&self, shard: ShardId) {
        let Some(medium) = self.medium(shard) else {
            return;
        };
        let mut world = self.world.lock();
        let mut records = medium.records.lock();
        while !records.late.is_empty() {
            let at = (world.next_random() % records.late.len() as u64) as usize;
            let record = records.late.swap_remove(at);
            records.push(record);
        }
        drop(records);
        medium.changed.notify_waiters();
    }

    /// Cuts the log back to `end`, as if its tail had been lost. What is appended later takes the
    /// offsets anew, which no real log may do while someone has seen them: readers that stand
    /// above see [`LogError::LostTail`]. An `end` below the start moves the start there.
    pub fn truncate(&self, shard: ShardId, end: Offset) {
        let Some(medium) = self.medium(shard) else {
            return;
        };
        let mut records = medium.records.lock();
        if end.0 < records.end {
            drop(records.kept.split_off(&end.0));
            records.end = end.0;
            records.start = records.start.min(end.0);
            records.told = (records.start, records.told.1.min(end.0));
        }
        drop(records);
        medium.changed.notify_waiters();
    }

    /// Waits until every reader of a shard's log has read all of it: one that knows of records only
    /// by their receipts does not see them go.
    pub async fn all_read(&self, shard: ShardId) {
        let Some(medium) = self.medium(shard) else {
            return;
        };
        loop {
            {
                let records = medium.records.lock();
                let readers = records.readers.iter().filter_map(Weak::upgrade);
                let mut places = readers.map(|next| next.load(Ordering::SeqCst));
                if places.all(|next| next >= records.end) {
                    return;
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// All records of a shard that are kept, for tests that look behind the scenes.
    #[must_use]
    pub fn records(&self, shard: ShardId) -> Vec<(Offset, Bytes)> {
        let Some(medium) = self.medium(shard) else {
            return Vec::new();
        };
        let records = medium.records.lock();
        let kept = records.kept.iter();
        kept.map(|(o, b)| (Offset(*o), b.clone())).collect()
    }
}

#[async_trait]
impl LogStore for SimulatedLogStore {
    async fn create(&self, shard: ShardId) -> Result<LogId, LogError> {
        let mut world = self.world.lock();
        if let Some((id, _)) = world.logs.get(&shard)
            && !world.many_logs
        {
            return Ok(*id);
        }
        let (id, topic) = if world.many_logs {
            let id = LogId::generate();
            (id, format!("simulated.{shard}.{id}"))
        } else {
            (LogId::SOLE, format!("simulated.{shard}"))
        };
        let mut records = Records::default();
        let genesis = Genesis {
            cluster: "simulated".into(),
            shard,
            topic,
        };
        records.push(Record::genesis(genesis).encode());
        let medium = Medium {
            shard,
            records: Mutex::new(records),
            changed: Notify::new(),
        };
        if let Some((older, medium)) = world.logs.insert(shard, (id, Arc::new(medium))) {
            world.older.insert((shard, older), medium);
        }
        Ok(id)
    }

    async fn open(&self, shard: ShardId, log: LogId) -> Result<Arc<dyn Log>, LogError> {
        let world = self.world.lock();
        let newest = world.logs.get(&shard).filter(|(id, _)| *id == log);
        let medium = newest.map(|(_, medium)| medium);
        let medium = medium.or_else(|| world.older.get(&(shard, log))).cloned();
        let medium = medium.ok_or(LogError::NotFound { shard })?;
        Ok(Arc::new(SimulatedLog {
            world: Arc::clone(&self.world),
            medium,
        }))
    }

    async fn list(&self) -> Result<Vec<(ShardId, LogId)>, LogError> {
        let world = self.world.lock();
        let newest = world.logs.iter().map(|(shard, (id, _))| (*shard, *id));
        Ok(newest.chain(world.older.keys().copied()).collect())
    }

    async fn remove(&self, shard: ShardId) -> Result<(), LogError> {
        let mut world = self.world.lock();
        world.logs.remove(&shard);
        world.older.retain(|(of, _), _| *of != shard);
        Ok(())
    }
}

#[derive(Debug)]
struct SimulatedLog {
    world: Arc<Mutex<World>>,
    medium: Arc<Medium>,
}

impl SimulatedLog {
    fn append_now(&self, record: Bytes) -> Result<Offset, LogError> {
        let mut world = self.world.lock();
        let max = world.record_bytes_max;
        if record.len() > max {
            let bytes = record.len();
            return Err(LogError::TooLarge { bytes, max });
        }
        let faults = world.faults;
        let mut records = self.medium.records.lock();
        if world.strikes(faults.full) {
            return Err(LogError::Full("simulated".into()));
        }
        let unknown = Err(LogError::Unknown("simulated".into()));
        let outcome = if world.strikes(faults.lost_ack) {
            records.push(record);
            unknown
        } else if world.strikes(faults.late) {
            records.late.push(record);
            return unknown;
        } else if world.strikes(faults.lost) {
            return unknown;
        } else if world.strikes(faults.duplicate) {
            let offset = records.push(record.clone());
            records.late.push(record);
            Ok(offset)
        } else {
            if world.strikes(faults.gap) {
                records.end += 1 + world.next_random() % 3;
            }
            Ok(records.push(record))
        };
        // Something that was held back may get in behind this one.
        if !records.late.is_empty() && world.strikes(0.3) {
            let at = (world.next_random() % records.late.len() as u64) as usize;
            let late = records.late.swap_remove(at);
            records.push(late);
        }
        outcome
    }
}

#[async_trait]
impl Log for SimulatedLog {
    fn receipts_come_first(&self) -> bool {
        true
    }

    fn append(&self, record: Bytes) -> AppendReceipt {
        let (sender, receipt) = oneshot::channel();
        let outcome = self.append_now(record);
        self.medium.changed.notify_waiters();
        // The caller may have dropped the receipt; the append stands all the same.
        let _ = sender.send(outcome);
        receipt
    }

    async fn read(&self, from: Offset) -> Result<Box<dyn LogReader>, LogError> {
        let next = Arc::new(AtomicU64::new(from.0));
        {
            let mut records = self.medium.records.lock();
            records.check(self.medium.shard, from)?;
            records.readers.retain(|reader| reader.strong_count() > 0);
            records.readers.push(Arc::downgrade(&next));
        }
        let medium = Arc::clone(&self.medium);
        Ok(Box::new(SimulatedReader { medium, next }))
    }

    async fn bounds(&self) -> Result<(Offset, Offset), LogError> {
        let mut world = self.world.lock();
        let stale_end = world.faults.stale_end;
        let mut records = self.medium.records.lock();
        if !world.strikes(stale_end) {
            records.told = (records.start, records.end);
        }
        let (start, end) = records.told;
        Ok((Offset(start), Offset(end.max(start))))
    }

    async fn trim(&self, below: Offset) -> Result<(), LogError> {
        let mut records = self.medium.records.lock();
        let start = below.0.clamp(records.start, records.end);
        records.kept = records.kept.split_off(&start);
        records.start = start;
        Ok(())
    }

    fn retained_bytes(&self) -> u64 {
        let records = self.medium.records.lock();
        records.kept.values().map(|r| r.len() as u64).sum()
    }
}

impl Records {
    fn check(&self, shard: ShardId, asked: Offset) -> Result<(), LogError> {
        if asked.0 < self.start {
            return Err(LogError::BelowStart {
                asked,
                start: Offset(self.start),
            });
        }
        if asked.0 > self.end {
            return Err(LogError::LostTail {
                shard,
                asked,
                end: Offset(self.end),
            });
        }
        Ok(())
    }
}

struct SimulatedReader {
    medium: Arc<Medium>,
    next: Arc<AtomicU64>,
}

const READ_RECORDS_MAX: usize = 256;

#[async_trait]
impl LogReader for SimulatedReader {
    async fn next(&mut self) -> Result<Vec<(Offset, Bytes)>, LogError> {
        loop {
            let medium = Arc::clone(&self.medium);
            let changed = medium.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that a change in between is not missed.
            changed.as_mut().enable();
            {
                let records = medium.records.lock();
                let next = self.next.load(Ordering::SeqCst);
                records.check(medium.shard, Offset(next))?;
                let mut until = u64::MAX;
                if let Some((from, to)) = records.unreadable.filter(|(_, to)| *to > next) {
                    if from <= next && records.end > from {
                        return Err(LogError::Damaged {
                            shard: medium.shard,
                            place: format!("simulated offset {}", next),
                            what: "made unreadable".into(),
                            range: Some((Offset(next), Offset(to))),
                        });
                    }
                    until = from;
                }
                let found: Vec<_> = records
                    .kept
                    .range(next..until.max(next))
                    .take(READ_RECORDS_MAX)
                    .map(|(o, b)| (Offset(*o), b.clone()))
                    .collect();
                if let Some((last, _)) = found.last() {
                    self.next.store(last.0 + 1, Ordering::SeqCst);
                    return Ok(found);
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Backend};
    use crate::log::receipt_outcome;

    struct InMemory(SimulatedLogStore);

    #[async_trait]
    impl Backend for InMemory {
        async fn restart(&mut self) -> Arc<dyn LogStore> {
            Arc::new(self.0.clone())
        }
        fn record_bytes_max(&self) -> usize {
            crate::record::RECORD_BYTES_MAX_DEFAULT
        }
    }

    #[tokio::test]
    async fn the_simulated_log_keeps_the_contract() {
        conformance::passes(&mut InMemory(SimulatedLogStore::new(1))).await;
    }

    /// What the receipts said of a run, and what stood in the log after it.
    async fn run(seed: u64) -> (Vec<Result<Offset, LogError>>, Vec<(Offset, Bytes)>) {
        let store = SimulatedLogStore::new(seed);
        let shard = ShardId(ulid::Ulid(1));
        let id = store.create(shard).await.expect("made");
        let log = store.open(shard, id).await.expect("opens");
        store.set_faults(Faults {
            full: 0.1,
            lost_ack: 0.1,
            late: 0.1,
            lost: 0.1,
            duplicate: 0.1,
            gap: 0.1,
            stale_end: 0.5,
        });
        let mut told = Vec::new();
        for i in 0..500_u32 {
            told.push(receipt_outcome(log.append(Bytes::from(i.to_string()))).await);
            let (_, end) = log.bounds().await.expect("bounds");
            let true_end = store.records(shard).last().map_or(0, |(o, _)| o.0 + 1);
            assert!(end.0 <= true_end, "stale, never ahead");
        }
        store.deliver_late(shard);
        (told, store.records(shard))
    }

    #[tokio::test]
    async fn every_fault_is_one_that_the_contract_allows_and_a_seed_repeats_it() {
        let (told, kept) = run(7).await;
        let mut seen = [0; 4];
        for (i, outcome) in told.iter().enumerate() {
            let text = i.to_string();
            let times = kept.iter().filter(|(_, b)| *b == text).count();
            match outcome {
                Ok(offset) => {
                    assert!(kept.iter().any(|(o, b)| o == offset && *b == text));
                    seen[0] += usize::from(times == 2);
                }
                Err(LogError::Full(_)) => assert_eq!(times, 0, "a definite no"),
                Err(LogError::Unknown(_)) => seen[1 + times] += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(seen[..3].iter().all(|n| *n > 10), "{seen:?}");
        let again = run(7).await;
        assert_eq!(format!("{again:?}"), format!("{:?}", (told, kept)));
    }

    #[tokio::test]
    async fn a_lost_tail_is_noticed_by_who_had_read_it() {
        let store = SimulatedLogStore::new(3);
        let shard = ShardId(ulid::Ulid(1));
        let id = store.create(shard).await.expect("made");
        let log = store.open(shard, id).await.expect("opens");
        for _ in 0..5 {
            receipt_outcome(log.append("x".into())).await.expect("ok");
        }
        let mut reader = log.read(Offset(0)).await.expect("reads");
        assert_eq!(reader.next().await.expect("all").len(), 6);
        store.truncate(shard, Offset(3));
        assert!(matches!(
            reader.next().await,
            Err(LogError::LostTail { .. })
        ));
    }
}
