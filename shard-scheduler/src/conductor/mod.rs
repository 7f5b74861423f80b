//! The scheduler that leads: hears the nodes, plans, carries procedures out.
//!
//! One task holds all state and decides; what takes time (meta, nodes) is done by tasks that send
//! what came of it back. It ends when it has lost the lead: everything that it knows is in meta or
//! told anew by the nodes, so the next one begins with nothing.
//!
//! - [`hear`]: nodes come and go, beats, probes, who is down.
//! - [`round`]: the view that plans are made of, and the steps that are begun.
//! - [`carry`]: procedures, from their first record to their end.
//! - [`orders`]: what operators want.

mod carry;
mod hear;
mod orders;
mod round;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_meta::{
    AssignError, Assignment, Fence, LabelChanges, MetaError, MetaStore, NodeEntry, Topology,
};
use shoal_types::{NodeId, ShardId, TimestampMs};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use ulid::Ulid;

use crate::beat::{Beat, Reports};
use crate::detector::{Detector, DetectorLimits, Probe};
use crate::nodes::{Led, Nodes, NotHeard};
use crate::procedure::Procedure;
use crate::records::{Kept, Marks, Records};
use crate::settings::Settings;

use carry::Running;
use hear::Watched;
pub use orders::{
    Command, Drained, Handle, NodeCounts, NodeOverview, Order, Ordered, Overview, Refused,
    ShardCounts,
};

/// Events that wait; beyond it their senders wait.
const EVENTS_MAX: usize = 4_096;
/// After so long without most of the nodes the lead is left to another scheduler.
const DEAF_MAX: Duration = Duration::from_secs(2);
/// How often time is let pass.
const TICK: Duration = Duration::from_millis(50);

/// Times and bounds of a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct ConductorLimits {
    /// When nodes are given up.
    pub detector: DetectorLimits,
    /// Pause between two rounds of planning.
    pub round: Duration,
    /// For so long after taking the lead nodes that were not heard of are waited for.
    pub grace: Duration,
    /// Procedures that have ended and are kept.
    pub ended_max: usize,
}

impl Default for ConductorLimits {
    fn default() -> Self {
        Self {
            detector: DetectorLimits::default(),
            round: Duration::from_millis(500),
            grace: Duration::from_secs(3),
            ended_max: 1_000,
        }
    }
}

/// What a scheduler works with.
#[derive(Clone)]
pub struct Backends {
    /// Where assignments, settings and procedures are.
    pub meta: Arc<dyn MetaStore>,
    /// `cluster.name`.
    pub cluster: String,
    /// Nodes and assignments, followed.
    pub topology: Arc<Topology>,
    /// The nodes.
    pub nodes: Arc<dyn Nodes>,
    /// Gets every procedure that has ended, when it has, and those of former leaders at the start;
    /// one that finds no room is not told.
    pub ended: mpsc::Sender<Procedure>,
}

/// Why a tenure ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// Another scheduler leads.
    #[error("another scheduler leads")]
    Fenced,
    /// Meta cannot be read.
    #[error("meta: {0}")]
    Meta(#[from] MetaError),
    /// Most nodes are not heard, and another scheduler may hear them.
    #[error("most nodes are not heard from here; another scheduler may")]
    Deaf,
    /// Nodes do not let this scheduler in.
    #[error("{0}; auth.token of this scheduler must be that of the nodes")]
    NotLetIn(String),
    /// Nobody gives commands any more: the process stops.
    #[error("stopped")]
    Stopped,
}

/// What came of something that takes time.
enum Event {
    Beat {
        node: NodeId,
        stream: Ulid,
        first: bool,
        beat: Beat,
    },
    Broken {
        node: NodeId,
        stream: Ulid,
        why: NotHeard,
    },
    Probed(NodeId, Probe),
    Saved(Vec<ShardId>, Result<(), MetaError>),
    Assigned {
        shard: ShardId,
        procedure: Ulid,
        new: Assignment,
        sent: Instant,
        done: Result<(), AssignError>,
    },
    Told {
        shard: ShardId,
        procedure: Ulid,
        node: NodeId,
        version: u64,
        done: Result<Option<Led>, String>,
    },
    /// What an operator wanted was written, or not.
    Kept {
        wish: Wish,
        done: Result<(), MetaError>,
        reply: oneshot::Sender<Result<(), Refused>>,
    },
}

/// What an operator wants to be kept.
enum Wish {
    Settings(Box<Settings>),
    Marks(NodeId, Option<Marks>),
    Forget(NodeId),
    Labels {
        node: NodeId,
        changes: LabelChanges,
        reset: bool,
    },
}

/// One tenure.
pub struct Conductor {
    backends: Backends,
    fence: Fence,
    records: Records,
    limits: ConductorLimits,
    began: Instant,
    began_ms: TimestampMs,
    detector: Detector,
    reports: Reports,
    watched: BTreeMap<NodeId, Watched>,
    /// Nodes that count as down.
    down: BTreeSet<NodeId>,
    /// The entry of every node that was ever registered in this tenure.
    entries: BTreeMap<NodeId, NodeEntry>,
    kept: Kept,
    running: BTreeMap<ShardId, Running>,
    /// Procedures to look at.
    dirty: BTreeSet<ShardId>,
    /// Shards whose leader went down.
    orphans: BTreeSet<ShardId>,
    /// Those of them that nobody could take over when it was looked at last.
    unrescued: BTreeSet<ShardId>,
    /// Shards whose leader is up and does not lead, and since when.
    unled: BTreeMap<ShardId, Instant>,
    /// Assignments that were made here and may not be heard of by the watch yet.
    assigned: BTreeMap<ShardId, (Assignment, Instant)>,
    /// When shards were last moved for balance.
    balanced: BTreeMap<ShardId, TimestampMs>,
    /// Shards of which nodes have obeyed more than meta knows, and since when.
    behind: BTreeMap<ShardId, Instant>,
    /// When nodes came: see `Conductor::joined_ms`.
    joined: BTreeMap<NodeId, TimestampMs>,
    /// When nodes were allowed to have replicas again.
    undrained: BTreeMap<NodeId, TimestampMs>,
    waiting: BTreeMap<Ulid, Vec<oneshot::Sender<Procedure>>>,
    /// Orders that are answered once their procedure is written down.
    unsaved: BTreeMap<ShardId, (oneshot::Sender<Result<Ordered, Refused>>, Ordered)>,
    /// Since when most nodes are silent.
    deaf_since: Option<Instant>,
    /// New settings are being written.
    settings_wait: bool,
    next_round: Instant,
    next_idle: Instant,
    tell: mpsc::Sender<Event>,
    tasks: JoinSet<()>,
    over: Option<Ended>,
}

impl Conductor {
    /// Takes up what is in meta.
    ///
    /// # Errors
    /// [`Ended::Meta`].
    pub async fn run(
        backends: Backends,
        fence: Fence,
        limits: ConductorLimits,
        now_ms: TimestampMs,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Ended {
        let records = Records::new(Arc::clone(&backends.meta), &backends.cluster, fence.clone());
        let kept = match records.read().await {
            Ok(kept) => kept,
            Err(error) => return error.into(),
        };
        let (tell, mut told) = mpsc::channel(EVENTS_MAX);
        let began = Instant::now();
        let mut conductor = Self {
            fence,
            records,
            limits,
            began,
            began_ms: now_ms,
            detector: Detector::new(limits.detector),
            reports: Reports::new(),
            watched: BTreeMap::new(),
            down: BTreeSet::new(),
            entries: BTreeMap::new(),
            running: BTreeMap::new(),
            dirty: BTreeSet::new(),
            orphans: BTreeSet::new(),
            unrescued: BTreeSet::new(),
            unled: BTreeMap::new(),
            assigned: BTreeMap::new(),
            balanced: BTreeMap::new(),
            behind: BTreeMap::new(),
            joined: BTreeMap::new(),
            undrained: BTreeMap::new(),
            waiting: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            deaf_since: None,
            settings_wait: false,
            next_round: began,
            next_idle: began,
            tell,
            tasks: JoinSet::new(),
            over: None,
            kept,
            backends,
        };
        conductor.resume();
        let mut topology = conductor.backends.topology.subscribe();
        topology.mark_unchanged();
        conductor.topology_changed();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = told.recv() => {
                    let Some(event) = event else { return Ended::Stopped };
                    conductor.take(event);
                }
                changed = topology.changed() => {
                    if changed.is_err() {
                        return Ended::Stopped;
                    }
                    topology.borrow_and_update();
                    conductor.topology_changed();
                }
                command = commands.recv() => {
                    let Some(command) = command else { return Ended::Stopped };
                    conductor.command(command);
                }
                _ = tick.tick() => conductor.tick(),
            }
            // What has come meanwhile belongs to the same look.
            while let Ok(event) = told.try_recv() {
                conductor.take(event);
            }
            conductor.rescue();
            conductor.advance_all();
            while conductor.tasks.try_join_next().is_some() {}
            if let Some(over) = conductor.over.take() {
                return over;
            }
        }
    }

    /// Now: by the clock that ran since the tenure began, so that no jump of the machine's clock
    /// takes nodes for dead.
    fn now_ms(&self) -> TimestampMs {
        self.began_ms + u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Beat {
                node,
                stream,
                first,
                beat,
            } => self.beat(node, stream, first, beat),
            Event::Broken { node, stream, why } => self.broken(node, stream, why),
            Event::Probed(node, probe) => self.probed(node, probe),
            Event::Saved(shards, done) => self.saved(&shards, done),
            Event::Assigned {
                shard,
                procedure,
                new,
                sent,
                done,
            } => self.was_assigned(shard, procedure, new, sent, done),
            Event::Told {
                shard,
                procedure,
                node,
                version,
                done,
            } => self.was_told(shard, procedure, node, version, done),
            Event::Kept { wish, done, reply } => self.was_kept(wish, done, reply),
        }
    }

    fn tick(&mut self) {
        self.look();
        let now = Instant::now();
        if self.detector.most_are_silent() && self.has_standby() {
            let since = *self.deaf_since.get_or_insert(now);
            if now.duration_since(since) >= DEAF_MAX {
                self.over = Some(Ended::Deaf);
            }
        } else {
            self.deaf_since = None;
        }
        self.assigned
            .retain(|_, (_, since)| now.duration_since(*since) < hear::OVERLAY_MAX);
        self.dirty.extend(self.running.keys());
        self.orphans.append(&mut self.unrescued);
        if now >= self.next_round {
            self.next_round = now + self.limits.round;
            self.round();
        }
    }

    /// Whether another scheduler could lead.
    fn has_standby(&self) -> bool {
        let snapshot = self.backends.topology.snapshot();
        let me = snapshot.scheduler.as_ref().map(|s| s.process);
        snapshot.schedulers.keys().any(|other| Some(*other) != me)
    }

    /// Does something that takes time, and hears what came of it.
    fn spawn(&mut self, work: impl Future<Output = Event> + Send + 'static) {
        let tell = self.tell.clone();
        self.tasks.spawn(async move {
            let event = work.await;
            // An error means that the tenure is over.
            let _ = tell.send(event).await;
        });
    }

    /// A shard's assignment: as the watch tells, or newer if it was made here a moment ago.
    fn assignment(&self, shard: ShardId) -> Option<Assignment> {
        let snapshot = self.backends.topology.snapshot();
        let seen = snapshot.assignments.get(&shard);
        self.newest(shard, seen).cloned()
    }

    /// Of what the watch tells and what was made here the newer assignment.
    fn newest<'a>(
        &'a self,
        shard: ShardId,
        seen: Option<&'a Assignment>,
    ) -> Option<&'a Assignment> {
        let made = self.assigned.get(&shard).map(|(made, _)| made);
        made.filter(|made| seen.is_none_or(|s| s.version < made.version))
            .or(seen)
    }

    /// Whether a shard has no leader that is there.
    fn is_orphaned(&self, shard: ShardId) -> bool {
        self.assignment(shard)
            .is_some_and(|a| a.leader.is_none_or(|l| self.is_down(l)))
    }
}
