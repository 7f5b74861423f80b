//! Procedures, from their first record to their end.

use std::time::Duration;

use shoal_meta::{AssignError, Assignment, MetaError};
use shoal_types::{NodeId, ShardId};
use tokio::time::Instant;
use ulid::Ulid;

use super::{Conductor, Ended, Event, Refused};
use crate::beat;
use crate::nodes::Led;
use crate::plan::Rule;
use crate::procedure::{Act, NodeSight, Procedure, ReplicaSight, Sight, State, Task, next};
use crate::view::ReplicaState;

/// Pause before something that failed is tried again; doubles up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A node that was told its role tells of it in its beats; after this it is told again.
const TELL_AGAIN: Duration = Duration::from_secs(2);
/// A node may take this long to lead: then another one is looked for.
const LEAD_MAX: Duration = Duration::from_secs(20);
/// A node may take this long to catch up, or to let go.
const FOLLOW_MAX: Duration = Duration::from_secs(600);

/// After a procedure has ended the next round comes this soon.
const ROUND_SOON: Duration = Duration::from_millis(20);

/// What is under way for a procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    /// Nothing.
    No,
    /// Its record is being written.
    Saving,
    /// The assignment is being changed.
    Assigning,
    /// Its last record is being written.
    Ending,
}

/// A procedure that is being carried out.
pub(super) struct Running {
    pub(super) procedure: Procedure,
    busy: Busy,
    /// The node that was told its role by the assignment of this version, and when it is told again.
    told: Option<(NodeId, u64, Instant)>,
    telling: bool,
    pause: Duration,
    /// Nothing is done before.
    not_before: Instant,
    /// Since when the step that it is at was waited for.
    since: Instant,
    /// When the lead was given away: from then on nobody could write.
    unled_since: Option<Instant>,
    /// For how long, in ms.
    unled_ms: Option<f64>,
    /// What a node last said when it could not.
    trouble: Option<String>,
}

impl Running {
    fn new(procedure: Procedure, busy: Busy, now: Instant) -> Self {
        Self {
            procedure,
            busy,
            told: None,
            telling: false,
            pause: PAUSE_MIN,
            not_before: now,
            since: now,
            unled_since: None,
            unled_ms: None,
            trouble: None,
        }
    }

    /// What it does meanwhile, for people.
    pub(super) fn doing(&self) -> String {
        let doing = match (self.busy, self.told) {
            (Busy::Saving, _) => "being written down".into(),
            (Busy::Assigning, _) => "changing the assignment".into(),
            (Busy::Ending, _) => "ending".into(),
            (Busy::No, Some((node, version, _))) => {
                format!("waiting for node {node} to take its role of assignment {version}")
            }
            (Busy::No, None) => "beginning".into(),
        };
        match &self.trouble {
            Some(trouble) => format!("{doing}; it said: {trouble}"),
            None => doing,
        }
    }

    fn fail_softly(&mut self, why: String) {
        self.trouble = Some(why);
        self.not_before = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn goes_on(&mut self) {
        self.pause = PAUSE_MIN;
        self.not_before = Instant::now();
        self.since = self.not_before;
        self.trouble = None;
    }
}

impl Conductor {
    /// Takes up the procedures of the leader before.
    pub(super) fn resume(&mut self) {
        let now = Instant::now();
        let mut procedures: Vec<Procedure> = self.kept.procedures.values().cloned().collect();
        procedures.sort_by_key(|p| p.id);
        for procedure in procedures {
            self.note_balanced(&procedure);
            if procedure.is_running() {
                tracing::info!(
                    id = %procedure.id, task = procedure.task.name(), shard = %procedure.task.shard(),
                    "taken up"
                );
                let shard = procedure.task.shard();
                self.running
                    .insert(shard, Running::new(procedure, Busy::No, now));
            } else {
                // Whoever led before may have had no time to hand it on.
                self.hand_on(procedure);
            }
        }
    }

    fn hand_on(&self, procedure: Procedure) {
        if let Err(error) = self.backends.ended.try_send(procedure) {
            tracing::warn!(%error, "an ended procedure is not in the journal");
        }
    }

    fn note_balanced(&mut self, procedure: &Procedure) {
        // What an operator moved stays as what was moved for balance does.
        let moved = matches!(procedure.task, Task::Move { .. } | Task::Promote { .. });
        let wanted = procedure.by == by_rule(Rule::Balance) || !procedure.by.contains('/');
        if moved && wanted && procedure.state == State::Done {
            let at = procedure.outcome.ended_ms.unwrap_or(procedure.begun_ms);
            self.balanced.insert(procedure.task.shard(), at);
        }
    }

    /// Writes procedures down; once that is done they are carried out.
    pub(super) fn begin(&mut self, tasks: Vec<(Task, String, String)>) -> Vec<Procedure> {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        let mut begun = Vec::new();
        for (task, by, why) in tasks {
            let shard = task.shard();
            if self.running.contains_key(&shard) {
                continue;
            }
            let mut procedure = Procedure::new(task, &by, &why, now_ms);
            if let Some(assignment) = self.assignment(shard) {
                procedure.old_leader = assignment.leader;
                procedure.old_term = assignment.term;
            }
            tracing::info!(
                id = %procedure.id, task = task.name(), %shard, node = %task.node(), by, why, "begun"
            );
            self.running
                .insert(shard, Running::new(procedure.clone(), Busy::Saving, now));
            begun.push(procedure);
        }
        if !begun.is_empty() {
            self.save(begun.clone(), Vec::new());
        }
        begun
    }

    fn save(&mut self, procedures: Vec<Procedure>, forget: Vec<Ulid>) {
        let records = self.records.clone();
        self.spawn(async move {
            let shards = procedures.iter().map(|p| p.task.shard()).collect();
            let mut pause = PAUSE_MIN;
            loop {
                match records.write_procedures(&procedures, &forget).await {
                    Ok(()) => return Event::Saved(shards, Ok(())),
                    Err(error @ (MetaError::Conflict | MetaError::Refused(_))) => {
                        return Event::Saved(shards, Err(error));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "procedures cannot be written down, trying again");
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        });
    }

    pub(super) fn saved(&mut self, shards: &[ShardId], done: Result<(), MetaError>) {
        match done {
            Ok(()) => {}
            Err(MetaError::Conflict) => {
                self.over = Some(Ended::Fenced);
                return;
            }
            Err(error) => {
                tracing::error!(%error, "procedures cannot be written down");
                // What was not written down is not done.
                self.running
                    .retain(|shard, r| r.busy != Busy::Saving || !shards.contains(shard));
            }
        }
        for shard in shards {
            if let Some((reply, ordered)) = self.unsaved.remove(shard) {
                let answer = match self.running.contains_key(shard) {
                    true => Ok(ordered),
                    false => Err(Refused::Unavailable(
                        "the order cannot be written down, nothing was done; ask again".into(),
                    )),
                };
                // Whoever does not wait any more finds it among the procedures.
                let _ = reply.send(answer);
            }
            let Some(running) = self.running.get_mut(shard) else {
                continue;
            };
            if running.busy == Busy::Ending {
                self.finish(*shard);
            } else {
                running.busy = Busy::No;
                self.dirty.insert(*shard);
            }
        }
    }

    /// A procedure has ended and that is written down.
    fn finish(&mut self, shard: ShardId) {
        let Some(Running { procedure, .. }) = self.running.remove(&shard) else {
            return;
        };
        self.note_balanced(&procedure);
        // What waited for its place may begin.
        self.next_round = self.next_round.min(Instant::now() + ROUND_SOON);
        for waiting in self.waiting.remove(&procedure.id).into_iter().flatten() {
            // One that waits no more is no trouble.
            let _ = waiting.send(procedure.clone());
        }
        self.hand_on(procedure.clone());
        self.kept.procedures.insert(procedure.id, procedure);
        if self.is_orphaned(shard) {
            self.orphans.insert(shard);
        }
    }

    /// Does what is next in every procedure of which something may have changed.
    pub(super) fn advance_all(&mut self) {
        for shard in std::mem::take(&mut self.dirty) {
            self.advance(shard);
        }
    }

    fn node_sight(
        &self,
        shard: ShardId,
        node: NodeId,
        assignment: Option<&Assignment>,
    ) -> NodeSight {
        let told = self.reports.get(&node).and_then(|r| r.replicas.get(&shard));
        let leader = assignment.and_then(|a| a.leader);
        let far = leader
            .and_then(|l| self.reports.get(&l)?.replicas.get(&shard))
            .map(|r| r.beat.position);
        let state = beat::state_of(told, false, 0, far);
        NodeSight {
            down: self.is_down(node),
            replica: told.map(|replica| ReplicaSight {
                leads: replica.beat.leads.then_some(replica.beat.epoch.term),
                ready: state == ReplicaState::Ready,
            }),
        }
    }

    fn advance(&mut self, shard: ShardId) {
        let now = Instant::now();
        let Some(running) = self.running.get(&shard) else {
            return;
        };
        if running.busy != Busy::No || now < running.not_before {
            return;
        }
        let assignment = self.assignment(shard);
        let sight = Sight {
            assignment: assignment.as_ref(),
            node: &|node| self.node_sight(shard, node, assignment.as_ref()),
        };
        let act = next(&running.procedure, &sight);
        match (act, assignment) {
            (Act::Assign { leader, followers }, Some(old)) => {
                self.assign(shard, &old, leader, followers);
            }
            (Act::Tell(node), Some(assignment)) => self.tell(shard, node, assignment),
            (Act::End(state, error), _) => self.end(shard, state, error),
            // `next` gives these only where there is an assignment.
            (Act::Assign { .. } | Act::Tell(_), None) => {}
        }
    }

    /// The newest version of a shard's assignment that a node has obeyed, and the highest term that
    /// one leads in.
    pub(super) fn newest_obeyed(&self, shard: ShardId) -> (u64, u64) {
        let told = self.reports.values().filter_map(|r| r.replicas.get(&shard));
        told.fold((0, 0), |(version, term), replica| {
            let beat = &replica.beat;
            (version.max(beat.obeyed), term.max(beat.epoch.term))
        })
    }

    fn assign(
        &mut self,
        shard: ShardId,
        old: &Assignment,
        leader: Option<NodeId>,
        followers: Vec<NodeId>,
    ) {
        let now = Instant::now();
        // A node that has obeyed a newer assignment than meta knows, from before a backup was
        // restored, obeys none that is older.
        let (obeyed, term) = self.newest_obeyed(shard);
        let changes_hands = leader != old.leader || obeyed > old.version;
        let new = Assignment {
            version: old.version.max(obeyed) + 1,
            term: if changes_hands {
                old.term.max(term) + 1
            } else {
                old.term
            },
            leader,
            predecessor: None,
            followers,
            topic: old.topic.clone(),
            changed_ms: self.now_ms(),
        };
        let Some(running) = self.running.get(&shard) else {
            return;
        };
        let planned = matches!(
            running.procedure.task,
            Task::Promote { .. } | Task::Move { .. }
        );
        let new = Assignment {
            predecessor: old
                .leader
                .filter(|old| changes_hands && planned && !self.is_down(*old)),
            ..new
        };
        let Some(running) = self.running.get_mut(&shard) else {
            return;
        };
        running.busy = Busy::Assigning;
        if changes_hands {
            running.unled_since = Some(now);
        }
        let procedure = running.procedure.id;
        let (topology, fence) = (self.backends.topology.clone(), self.fence.clone());
        let expected = old.version;
        self.spawn(async move {
            let assigned = topology.assign_when(Some(&fence), shard, expected, &new);
            let done = assigned.await;
            Event::Assigned {
                shard,
                procedure,
                new,
                sent: now,
                done,
            }
        });
    }

    pub(super) fn was_assigned(
        &mut self,
        shard: ShardId,
        procedure: Ulid,
        new: Assignment,
        sent: Instant,
        done: Result<(), AssignError>,
    ) {
        let now = Instant::now();
        let overlay = match &done {
            Ok(()) => Some(new),
            Err(AssignError::Stale { found }) => found.clone(),
            Err(AssignError::Meta(MetaError::Conflict)) => {
                self.over = Some(Ended::Fenced);
                return;
            }
            Err(_) => None,
        };
        if let Some(assignment) = overlay {
            self.assigned.insert(shard, (assignment, now));
        }
        let Some(running) = self.running.get_mut(&shard) else {
            return;
        };
        if running.procedure.id != procedure {
            return;
        }
        running.busy = Busy::No;
        match done {
            Ok(()) => {
                tracing::debug!(%shard, %procedure, ms = sent.elapsed().as_millis(), "assigned");
                running.goes_on();
            }
            Err(AssignError::Stale { .. }) => running.goes_on(),
            Err(error) => running.fail_softly(error.to_string()),
        }
        self.dirty.insert(shard);
    }

    /// Tells a node its role, unless that was done a moment ago.
    fn tell(&mut self, shard: ShardId, node: NodeId, assignment: Assignment) {
        let now = Instant::now();
        let entry = self.entries.get(&node).cloned();
        let Some(running) = self.running.get_mut(&shard) else {
            return;
        };
        let task = running.procedure.task;
        let most = match task {
            Task::FailOver { .. } | Task::Promote { .. } | Task::Reconcile { .. } => LEAD_MAX,
            Task::Move { .. } if assignment.leader == Some(task.node()) => LEAD_MAX,
            _ => FOLLOW_MAX,
        };
        if now.duration_since(running.since) > most {
            let said = running.trouble.clone().unwrap_or_else(|| "nothing".into());
            let why = format!(
                "node {node} has not taken its role within {} s; it said: {said}",
                most.as_secs()
            );
            self.end(shard, State::Failed, Some(why));
            return;
        }
        let told_lately = running.told.is_some_and(|(of, version, again)| {
            of == node && version == assignment.version && now < again
        });
        if running.telling || told_lately {
            return;
        }
        // One that is not registered may still be heard; its beats say when it has its role.
        let Some(entry) = entry else {
            return;
        };
        running.telling = true;
        running.told = Some((node, assignment.version, now + TELL_AGAIN));
        let (procedure, version) = (running.procedure.id, assignment.version);
        let nodes = self.backends.nodes.clone();
        self.spawn(async move {
            let done = nodes.obey(&entry, shard, &assignment).await;
            Event::Told {
                shard,
                procedure,
                node,
                version,
                done,
            }
        });
    }

    pub(super) fn was_told(
        &mut self,
        shard: ShardId,
        procedure: Ulid,
        node: NodeId,
        version: u64,
        done: Result<Option<Led>, String>,
    ) {
        if let (Ok(Some(led)), Some(report)) = (&done, self.reports.get_mut(&node)) {
            report.leads(shard, led.epoch, version);
        }
        let assignment = self.assignment(shard);
        let handed_over = assignment.is_some_and(|a| a.predecessor.is_some());
        let Some(running) = self.running.get_mut(&shard) else {
            return;
        };
        if running.procedure.id != procedure {
            return;
        }
        running.telling = false;
        match done {
            Ok(Some(led)) => {
                if let Some(since) = running.unled_since {
                    let ms = match led.pause {
                        // Its predecessor led until then.
                        Some(pause) if handed_over => rounded_ms(pause),
                        _ => rounded_ms(since.elapsed()),
                    };
                    running.unled_ms.get_or_insert(ms);
                }
                running.procedure.outcome.epoch = Some(led.epoch);
                running.procedure.outcome.records_replayed += led.records_replayed;
            }
            Ok(None) => {}
            Err(why) => {
                tracing::warn!(%shard, %procedure, %node, why, "a node has not taken its role");
                running.fail_softly(why);
                running.told = None;
            }
        }
        self.dirty.insert(shard);
    }

    fn end(&mut self, shard: ShardId, state: State, error: Option<String>) {
        let now_ms = self.now_ms();
        let assignment = self.assignment(shard);
        let Some(running) = self.running.get(&shard) else {
            return;
        };
        let to = running.procedure.task.node();
        let leads = assignment.as_ref().is_some_and(|a| a.leader == Some(to));
        let epoch = self
            .reports
            .get(&to)
            .and_then(|r| r.replicas.get(&shard))
            .filter(|r| leads && r.beat.leads)
            .map(|r| r.beat.epoch);
        // A leader that was lost wrote nothing since it was last heard; one that was asked to go
        // wrote until its successor's claim.
        let lost_since = match (running.procedure.task, running.procedure.old_leader) {
            (Task::FailOver { .. }, Some(from)) if self.is_down(from) => {
                self.detector.heard_ms(from)
            }
            _ => None,
        };
        let pause_ms = match (lost_since, running.unled_since) {
            _ if state != State::Done => None,
            (Some(since), _) => Some(now_ms.saturating_sub(since) as f64),
            (None, Some(since)) => running
                .unled_ms
                .or_else(|| Some(rounded_ms(since.elapsed()))),
            (None, None) => None,
        };
        let Some(running) = self.running.get_mut(&shard) else {
            return;
        };
        running.busy = Busy::Ending;
        let procedure = &mut running.procedure;
        procedure.state = state;
        procedure.outcome.ended_ms = Some(now_ms);
        procedure.outcome.error = error;
        procedure.outcome.epoch = procedure.outcome.epoch.or(epoch);
        procedure.outcome.pause_ms = pause_ms;
        let (id, task, outcome) = (procedure.id, procedure.task, &procedure.outcome);
        match state {
            State::Failed => tracing::warn!(
                %id, task = task.name(), %shard, node = %to,
                error = outcome.error.as_deref().unwrap_or_default(), "failed"
            ),
            _ => tracing::info!(
                %id, task = task.name(), %shard, node = %to, ?state,
                pause_ms = outcome.pause_ms, "ended"
            ),
        }
        let ended = procedure.clone();
        let forget = self.forget();
        self.save(vec![ended], forget);
    }

    /// The oldest procedures that have ended, where there are too many.
    fn forget(&mut self) -> Vec<Ulid> {
        let ended = self.kept.procedures.values().filter(|p| !p.is_running());
        let ended: Vec<Ulid> = ended.map(|p| p.id).collect();
        let most = self.limits.ended_max.saturating_sub(1);
        let forget = ended[..ended.len().saturating_sub(most)].to_vec();
        for id in &forget {
            self.kept.procedures.remove(id);
        }
        forget
    }

    /// Calls a procedure off; what it has done is undone where that is possible.
    pub(super) fn cancel(&mut self, shard: ShardId) {
        let Some(running) = self.running.get_mut(&shard) else {
            return;
        };
        running.procedure.cancelled = true;
        running.goes_on();
        self.dirty.insert(shard);
        // One that is amid something ends as cancelled, which is written down then.
        if running.busy == Busy::No {
            running.busy = Busy::Saving;
            let record = running.procedure.clone();
            self.save(vec![record], Vec::new());
        }
    }
}

fn rounded_ms(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

/// What a procedure's `by` is where a rule wanted it.
pub(super) fn by_rule(rule: Rule) -> String {
    format!("scheduler/{}", rule.name())
}
