//! What a node tells of itself, a few times a second, and what is known of it from that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_types::{Epoch, NodeId, Offset, ShardId, TimestampMs};
use ulid::Ulid;

use crate::view::{Load, ReplicaState};

/// A node's state, or what has changed of it since its last beat of the same stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// This start of the node.
    pub process: Ulid,
    /// Replicas: all of them in the first beat of a stream, then those that changed.
    pub replicas: Vec<ReplicaBeat>,
    /// Shards of which it has no replica any more.
    pub gone: Vec<ShardId>,
    /// Whether it reaches the log.
    pub reaches_log: bool,
    /// Cores that it may use.
    pub cores: f64,
    /// Other nodes that it wants to reach and does not.
    #[serde(default)]
    pub unreached: Vec<NodeId>,
}

/// A node's replica of a shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaBeat {
    /// The shard.
    pub shard: ShardId,
    /// Whether it leads, as far as it knows.
    pub leads: bool,
    /// The leader's epoch.
    pub epoch: Epoch,
    /// What it has applied.
    pub position: Offset,
    /// Whether it serves at all, and can go on.
    pub state: Serving,
    /// What is wrong, where something is.
    pub why: Option<String>,
    /// The version of the assignment that it has obeyed.
    pub obeyed: u64,
    /// Bytes of rows applied since it was opened.
    pub applied_bytes: u64,
    /// Time that reads of it took since it was opened, in microseconds.
    pub read_us: u64,
    /// Bytes of rows in memory.
    pub memory_bytes: u64,
}

/// How a replica is, as its node tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serving {
    /// It is being opened, or cannot be now.
    No,
    /// It serves.
    Yes,
    /// It can read its log no further; an operator has to decide.
    Damaged,
}

/// Followers within so many records of the leader take over at once: they replay these in
/// milliseconds.
const READY_WITHIN: u64 = 10_000;
/// Weight of a new measurement of load, for each second that it is about.
const SMOOTHING_PER_S: f64 = 0.1;

/// What is known of a node from its beats.
#[derive(Clone, Debug)]
pub struct Report {
    /// The start of the node that told.
    pub process: Ulid,
    /// Its replicas.
    pub replicas: BTreeMap<ShardId, Replica>,
    /// See [`Beat::reaches_log`].
    pub reaches_log: bool,
    /// See [`Beat::cores`].
    pub cores: f64,
    /// See [`Beat::unreached`].
    pub unreached: Vec<NodeId>,
}

/// A replica and what it costs.
#[derive(Clone, Debug)]
pub struct Replica {
    /// As it was told last.
    pub beat: ReplicaBeat,
    /// Smoothed, when it was told.
    load: Load,
    /// When it was told.
    told_ms: TimestampMs,
}

impl Replica {
    /// What it costs now. A node tells of a replica only when something of it has changed: since
    /// then nothing was written or read.
    #[must_use]
    pub fn load(&self, now_ms: TimestampMs) -> Load {
        let seconds = now_ms.saturating_sub(self.told_ms) as f64 / 1e3;
        let left = (1.0 - SMOOTHING_PER_S).powf(seconds);
        Load {
            write_bytes_per_s: self.load.write_bytes_per_s * left,
            read_ms_per_s: self.load.read_ms_per_s * left,
            memory_bytes: self.load.memory_bytes,
        }
    }
}

impl Report {
    /// Nothing was told by this start of a node.
    #[must_use]
    pub fn new(process: Ulid) -> Self {
        Self {
            process,
            replicas: BTreeMap::new(),
            reaches_log: true,
            cores: 1.0,
            unreached: Vec::new(),
        }
    }

    /// Takes a beat in. The first one of a stream begins with [`Report::new`].
    pub fn take(&mut self, now_ms: TimestampMs, beat: Beat) {
        self.reaches_log = beat.reaches_log;
        self.cores = beat.cores;
        self.unreached = beat.unreached;
        for shard in beat.gone {
            self.replicas.remove(&shard);
        }
        for told in beat.replicas {
            let known = self.replicas.remove(&told.shard);
            let load = known.map_or_else(
                || Load {
                    memory_bytes: told.memory_bytes as f64,
                    ..Load::default()
                },
                |known| smoothed(&known, &told, now_ms),
            );
            let replica = Replica {
                load,
                told_ms: now_ms,
                beat: told,
            };
            self.replicas.insert(replica.beat.shard, replica);
        }
    }

    /// Notes that the node has said that it leads in this epoch.
    pub fn leads(&mut self, shard: ShardId, epoch: Epoch, obeyed: u64) {
        if let Some(replica) = self.replicas.get_mut(&shard) {
            replica.beat.leads = true;
            replica.beat.epoch = epoch;
            replica.beat.obeyed = replica.beat.obeyed.max(obeyed);
            replica.beat.state = Serving::Yes;
        }
    }
}

fn smoothed(known: &Replica, told: &ReplicaBeat, now_ms: TimestampMs) -> Load {
    let seconds = now_ms.saturating_sub(known.told_ms) as f64 / 1e3;
    if seconds <= 0.0 {
        return known.load;
    }
    // Counters begin anew when a replica is opened again.
    let rate = |now: u64, before: u64| now.checked_sub(before).map_or(0.0, |d| d as f64 / seconds);
    let weight = 1.0 - (1.0 - SMOOTHING_PER_S).powf(seconds);
    let mix = |old: f64, new: f64| old + (new - old) * weight;
    let old = &known.load;
    Load {
        write_bytes_per_s: mix(
            old.write_bytes_per_s,
            rate(told.applied_bytes, known.beat.applied_bytes),
        ),
        read_ms_per_s: mix(
            old.read_ms_per_s,
            rate(told.read_us, known.beat.read_us) / 1e3,
        ),
        memory_bytes: mix(old.memory_bytes, told.memory_bytes as f64),
    }
}

/// How a replica is for those who plan; `leader` is the leader's position, where known.
#[must_use]
pub fn state_of(
    told: Option<&Replica>,
    is_leader: bool,
    term: u64,
    leader: Option<Offset>,
) -> ReplicaState {
    let Some(told) = told else {
        return ReplicaState::Unknown;
    };
    match told.beat.state {
        Serving::Damaged => ReplicaState::Damaged,
        Serving::No => ReplicaState::CatchingUp,
        Serving::Yes if is_leader => {
            let leads = told.beat.leads && told.beat.epoch.term >= term;
            if leads {
                ReplicaState::Ready
            } else {
                ReplicaState::CatchingUp
            }
        }
        Serving::Yes => {
            let behind = leader.is_some_and(|l| told.beat.position.0 + READY_WITHIN < l.0);
            if behind {
                ReplicaState::CatchingUp
            } else {
                ReplicaState::Ready
            }
        }
    }
}

/// What is known of all nodes.
pub type Reports = BTreeMap<NodeId, Report>;

#[cfg(test)]
mod tests {
    use super::*;

    fn told(applied_bytes: u64, position: u64) -> ReplicaBeat {
        ReplicaBeat {
            shard: ShardId(Ulid::nil()),
            leads: false,
            epoch: Epoch { term: 3, claim: 1 },
            position: Offset(position),
            state: Serving::Yes,
            why: None,
            obeyed: 1,
            applied_bytes,
            read_us: 0,
            memory_bytes: 0,
        }
    }

    fn beat(replicas: Vec<ReplicaBeat>) -> Beat {
        Beat {
            process: Ulid::nil(),
            replicas,
            gone: Vec::new(),
            reaches_log: true,
            cores: 2.0,
            unreached: Vec::new(),
        }
    }

    #[test]
    fn steady_load_is_met_within_a_minute_and_a_restart_is_no_negative_load() {
        let mut report = Report::new(Ulid::nil());
        for second in 0..=60_u64 {
            report.take(second * 1_000, beat(vec![told(second * 1_000_000, 0)]));
        }
        let load = |report: &Report, now_ms| {
            let replica = report.replicas.values().next().expect("one");
            replica.load(now_ms).write_bytes_per_s
        };
        assert!((load(&report, 60_000) - 1e6).abs() < 1e4);
        report.take(61_000, beat(vec![told(5, 0)]));
        assert!(load(&report, 61_000) > 0.0);
        report.take(
            62_000,
            Beat {
                gone: vec![ShardId(Ulid::nil())],
                ..beat(Vec::new())
            },
        );
        assert!(report.replicas.is_empty());
    }

    #[test]
    fn a_load_that_stops_is_forgotten_although_nothing_is_told_any_more() {
        let mut report = Report::new(Ulid::nil());
        for second in 0..=60_u64 {
            report.take(second * 1_000, beat(vec![told(second * 1_000_000, 0)]));
        }
        // Beats come, and say nothing of what has not changed.
        report.take(120_000, beat(Vec::new()));
        let replica = report.replicas.values().next().expect("one");
        let left = replica.load(120_000).write_bytes_per_s;
        assert!(left < 1e4, "{left} bytes a second a minute later");
        let before = replica.load(60_000).write_bytes_per_s;
        // One that goes on is measured over the whole time.
        report.take(120_000, beat(vec![told(120_000_000, 0)]));
        let replica = report.replicas.values().next().expect("one");
        let after = replica.load(120_000).write_bytes_per_s;
        assert!((after - before).abs() < 0.02 * before, "{before}, {after}");
    }

    #[test]
    fn a_follower_is_ready_when_it_is_near_and_a_leader_when_it_leads_in_its_term() {
        let mut report = Report::new(Ulid::nil());
        report.take(0, beat(vec![told(0, 1_000)]));
        let replica = report.replicas.values().next();
        let as_follower = |leader| state_of(replica, false, 3, leader);
        assert_eq!(as_follower(None), ReplicaState::Ready);
        assert_eq!(as_follower(Some(Offset(11_000))), ReplicaState::Ready);
        assert_eq!(as_follower(Some(Offset(11_001))), ReplicaState::CatchingUp);
        assert_eq!(state_of(replica, true, 3, None), ReplicaState::CatchingUp);
        report.leads(ShardId(Ulid::nil()), Epoch { term: 4, claim: 0 }, 2);
        let replica = report.replicas.values().next();
        assert_eq!(state_of(replica, true, 4, None), ReplicaState::Ready);
        assert_eq!(state_of(replica, true, 5, None), ReplicaState::CatchingUp);
        assert_eq!(state_of(None, true, 5, None), ReplicaState::Unknown);
    }
}
