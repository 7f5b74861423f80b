//! The view that plans are made of, and the steps that are begun.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_meta::{Assignment, NodeEntry};
use shoal_types::{NodeId, ShardId, TimestampMs};
use tokio::time::Instant;

use super::Conductor;
use super::carry::by_rule;
use crate::beat::state_of;
use crate::detector;
use crate::plan::{Action, Rule, Step, idle_shards, plan, plan_failovers};
use crate::procedure::{State, Task};
use crate::view::{Health, Node, Replica, ReplicaState, Shard, View};

/// For so long meta must have known less than the nodes before it is told so.
const BEHIND_MIN: Duration = Duration::from_secs(2);

/// A leader that is up and does not lead for so long gives way to a follower; twice as long after
/// each that failed within [`UNLED_MEMORY_MS`].
const UNLED_MAX: Duration = Duration::from_secs(15);
const UNLED_MEMORY_MS: u64 = 600_000;

/// How often it is told which shards have the least load.
const IDLE_EVERY: Duration = Duration::from_secs(5);

impl Conductor {
    /// The cluster at this moment; of the shards only those named, if any are.
    pub(super) fn view(&self, only: Option<&BTreeSet<ShardId>>) -> View {
        let snapshot = self.backends.topology.snapshot();
        let mut view = View {
            now_ms: self.now_ms(),
            nodes: Vec::new(),
            shards: Vec::new(),
        };
        let mut changes: BTreeMap<NodeId, usize> = BTreeMap::new();
        for running in self.running.values() {
            for node in running.procedure.task.nodes().into_iter().flatten() {
                *changes.entry(node).or_default() += 1;
            }
        }
        let unreached = self.unreached();
        for (id, entry) in &self.entries {
            let report = self.reports.get(id);
            let (health, since_ms) = self
                .detector
                .health(*id)
                .unwrap_or((Health::Suspect, view.now_ms));
            let health = match health {
                // Down for the detector, and it may be us who hear nothing.
                Health::Down if !self.detector.is_down(*id) => Health::Suspect,
                health => health,
            };
            let marks = self.kept.marks.get(id);
            view.nodes.push(Node {
                id: *id,
                labels: entry.labels.clone(),
                cores: report.map_or(1.0, |r| r.cores),
                health,
                since_ms,
                joined_ms: self.joined_ms(*id, entry),
                draining: marks.is_some_and(|m| m.draining),
                leaves: marks.is_some_and(|m| m.leads_only),
                reaches_log: report.is_none_or(|r| r.reaches_log),
                reached: !unreached.contains(id),
                changes: changes.get(id).copied().unwrap_or(0),
            });
        }
        // Nodes that were not heard of in this tenure may be about to register; after a while they
        // are taken for nodes that have just gone.
        let waited = self.began.elapsed() >= self.limits.grace;
        let mut expected = BTreeSet::new();
        for (id, seen) in &snapshot.assignments {
            if only.is_some_and(|only| !only.contains(id)) {
                continue;
            }
            let assignment = self.newest(*id, Some(seen)).unwrap_or(seen);
            let nodes = assignment.leader.iter().chain(&assignment.followers);
            expected.extend(nodes.filter(|n| !self.entries.contains_key(n)).copied());
            let shard = self.shard(*id, assignment, view.now_ms);
            view.shards.push(shard);
        }
        view.nodes.extend(expected.into_iter().map(|id| Node {
            id,
            labels: BTreeMap::new(),
            cores: 1.0,
            health: if waited {
                Health::Down
            } else {
                Health::Suspect
            },
            since_ms: self.began_ms,
            joined_ms: 0,
            draining: false,
            leaves: false,
            reaches_log: true,
            reached: true,
            changes: 0,
        }));
        view
    }

    fn shard(&self, id: ShardId, assignment: &Assignment, now_ms: TimestampMs) -> Shard {
        let told = |node: &NodeId| self.reports.get(node).and_then(|r| r.replicas.get(&id));
        let leading = assignment.leader.as_ref().and_then(told);
        let far = leading.map(|r| r.beat.position);
        let nodes = assignment.leader.iter().chain(&assignment.followers);
        let replicas = nodes.map(|node| {
            let replica = told(node);
            let leads = assignment.leader == Some(*node);
            Replica {
                node: *node,
                state: state_of(replica, leads, assignment.term, far),
                position: replica.map(|r| r.beat.position).unwrap_or_default(),
            }
        });
        Shard {
            id,
            group: self.kept.settings.group_of(id).to_owned(),
            leader: assignment.leader,
            replicas: replicas.collect(),
            load: leading.map(|r| r.load(now_ms)).unwrap_or_default(),
            changing: self.running.contains_key(&id),
            unled: self.is_unled(id),
            balanced_ms: self.balanced.get(&id).copied(),
        }
    }

    /// Nodes that are up and that others that are up do not reach.
    fn unreached(&self) -> BTreeSet<NodeId> {
        let up = |id: &NodeId| matches!(self.detector.health(*id), Some((Health::Up, _)));
        let tellers = self.reports.iter().filter(|(id, _)| up(id));
        let tellers = tellers.map(|(id, report)| {
            let named = report.unreached.iter().filter(|id| up(id));
            (*id, named.copied().collect())
        });
        detector::unreached(&tellers.collect())
    }

    /// Since when a node may get shards that have not rested since they were moved: its start, or
    /// its last one that was not soon after another: one that comes and goes gets them once.
    fn joined_ms(&self, node: NodeId, entry: &NodeEntry) -> TimestampMs {
        let joined_ms = self.joined.get(&node).copied().unwrap_or(entry.started_ms);
        let undrained_ms = self.undrained.get(&node).copied().unwrap_or(0);
        joined_ms.max(undrained_ms)
    }

    /// Whether enough is known to plan more than failovers: every node that is up has told of its
    /// replicas.
    fn has_heard_all(&self) -> bool {
        let up = |id: &NodeId| matches!(self.detector.health(*id), Some((Health::Up, _)));
        self.began.elapsed() >= self.limits.grace
            || self
                .entries
                .keys()
                .all(|id| up(id) && self.reports.contains_key(id))
    }

    /// A leader for the shards whose leader has just gone down.
    pub(super) fn rescue(&mut self) {
        if self.orphans.is_empty() {
            return;
        }
        let orphans = std::mem::take(&mut self.orphans);
        let view = self.view(Some(&orphans));
        let steps = plan_failovers(&view, &self.kept.settings);
        self.begin_steps(&view, steps);
        // What nobody can take over at this moment is looked at again with the next tick.
        let waiting = orphans
            .into_iter()
            .filter(|shard| self.is_orphaned(*shard) && !self.running.contains_key(shard));
        self.unrescued = waiting.collect();
    }

    pub(super) fn round(&mut self) {
        if !self.has_heard_all() {
            return;
        }
        self.reconcile();
        let view = self.view(None);
        self.note_unled(&view);
        self.forget_nodes(&view);
        self.tell_idle(&view);
        let steps = plan(&view, &self.kept.settings);
        self.begin_steps(&view, steps);
    }

    /// Tells now and then which shards have room for new tables.
    fn tell_idle(&mut self, view: &View) {
        if Instant::now() < self.next_idle {
            return;
        }
        self.next_idle = Instant::now() + IDLE_EVERY;
        let idle = idle_shards(view);
        if idle == self.backends.topology.snapshot().idle_shards {
            return;
        }
        let (topology, fence) = (Arc::clone(&self.backends.topology), self.fence.clone());
        self.tasks.spawn(async move {
            if let Err(error) = topology.tell_idle(&fence, &idle).await {
                tracing::debug!(%error, "which shards are idle is not told now");
            }
        });
    }

    /// Since when shards are not led by a leader that is up.
    fn note_unled(&mut self, view: &View) {
        let before = std::mem::take(&mut self.unled);
        for shard in &view.shards {
            let leader = shard.leader.and_then(|l| shard.replica(l));
            let leads = leader.is_none_or(|r| r.state == ReplicaState::Ready);
            let up = leader.is_some_and(|r| !self.is_down(r.node));
            if !leads && up && !shard.is_damaged() {
                let since = before.get(&shard.id).copied();
                self.unled
                    .insert(shard.id, since.unwrap_or_else(Instant::now));
            }
        }
    }

    /// Whether another node is to try to lead a shard: the longer after each that has failed.
    fn is_unled(&self, shard: ShardId) -> bool {
        self.unled.get(&shard).is_some_and(|since| {
            let failed = self.kept.procedures.values().rev().take_while(|p| {
                let ended_ms = p.outcome.ended_ms.unwrap_or(p.begun_ms);
                ended_ms + UNLED_MEMORY_MS > self.now_ms()
            });
            let failed = failed.filter(|p| p.task.shard() == shard && p.state == State::Failed);
            let doublings = u32::try_from(failed.count()).unwrap_or(5).min(5);
            since.elapsed() > UNLED_MAX * 2_u32.pow(doublings)
        })
    }

    /// Tells meta what is the case where it was restored from a backup that is older than what the
    /// nodes have obeyed since.
    fn reconcile(&mut self) {
        let mut obeyed: BTreeMap<ShardId, u64> = BTreeMap::new();
        for report in self.reports.values() {
            for (shard, replica) in &report.replicas {
                let newest = obeyed.entry(*shard).or_default();
                *newest = (*newest).max(replica.beat.obeyed);
            }
        }
        let mut tasks = Vec::new();
        let mut behind = std::mem::take(&mut self.behind);
        behind.retain(|shard, _| obeyed.contains_key(shard));
        for (shard, version) in obeyed {
            let is_behind = self.assignment(shard).is_some_and(|a| a.version < version);
            if !is_behind || self.running.contains_key(&shard) {
                behind.remove(&shard);
                continue;
            }
            // A beat may be quicker than the watch.
            if behind.entry(shard).or_insert_with(Instant::now).elapsed() < BEHIND_MIN {
                continue;
            }
            // One that leads, in the highest epoch; else the one that is furthest.
            let told = self
                .reports
                .iter()
                .filter(|(node, _)| !self.is_down(**node));
            let replicas =
                told.filter_map(|(node, r)| Some((*node, &r.replicas.get(&shard)?.beat)));
            let best = replicas.max_by_key(|(_, beat)| (beat.leads, beat.epoch, beat.position));
            if let Some((to, _)) = best {
                let why = format!(
                    "meta has an older assignment than version {version}, which nodes have obeyed: it was restored from a backup"
                );
                let task = Task::Reconcile { shard, to, version };
                tasks.push((task, by_rule(Rule::FailOver), why));
            }
        }
        self.behind = behind;
        self.begin(tasks);
    }

    /// Nodes that are gone, and that nothing is missed of.
    fn forget_nodes(&mut self, view: &View) {
        if self.down.is_empty() {
            return;
        }
        let snapshot = self.backends.topology.snapshot();
        let gone = self
            .down
            .iter()
            .filter(|id| !snapshot.nodes.contains_key(id));
        let mut gone: BTreeSet<NodeId> = gone.copied().collect();
        for replica in view.shards.iter().flat_map(|s| &s.replicas) {
            gone.remove(&replica.node);
        }
        for node in gone {
            tracing::info!(%node, "a node is gone, and nothing is missed of it");
            self.entries.remove(&node);
            self.joined.remove(&node);
            self.down.remove(&node);
            self.detector.forget(node);
        }
    }

    /// What the next round would do, with balance on.
    pub(super) fn planned(&self) -> Vec<Step> {
        let mut settings = self.kept.settings.clone();
        settings.balance.on = true;
        plan(&self.view(None), &settings)
    }

    fn begin_steps(&mut self, view: &View, steps: Vec<Step>) {
        let shards: BTreeMap<ShardId, &Shard> = view.shards.iter().map(|s| (s.id, s)).collect();
        let mut tasks = Vec::with_capacity(steps.len());
        for step in steps {
            let (Some(shard), Some(assignment)) =
                (shards.get(&step.shard), self.assignment(step.shard))
            else {
                continue;
            };
            let task = task_of(step.shard, step.action, shard, assignment.term);
            tasks.push((task, by_rule(step.rule), step.why));
        }
        self.begin(tasks);
    }
}

fn task_of(shard: ShardId, action: Action, of: &Shard, term: u64) -> Task {
    match action {
        Action::FailOver { to } => Task::FailOver { shard, to, term },
        Action::Promote { to } => Task::Promote { shard, to, term },
        Action::AddFollower { to } => Task::AddFollower {
            shard,
            to,
            had: false,
        },
        Action::RemoveFollower { node } => Task::RemoveFollower { shard, node },
        Action::Move { from, to } => Task::Move {
            shard,
            from,
            to,
            had: of.replica(to).is_some(),
        },
    }
}
