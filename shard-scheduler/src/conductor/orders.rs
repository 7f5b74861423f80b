//! What operators want of the scheduler that leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use shoal_meta::{LabelChanges, MetaError, NodeEntry};
use shoal_types::{NodeId, ShardId, TimestampMs};
use tokio::sync::{mpsc, oneshot};
use ulid::Ulid;

use super::{Conductor, Ended, Event, Wish};
use crate::beat::Report;
use crate::plan::Step;
use crate::procedure::{Procedure, Task};
use crate::records::Marks;
use crate::settings::Settings;
use crate::view::{Health, Load, Node, Replica, ReplicaState};

/// Who waits for an order to be taken.
type Reply = oneshot::Sender<Result<Ordered, Refused>>;

/// Labels of a node that an operator may say something of.
const LABELS_MAX: usize = 64;
/// Length of a label's name, and of its value.
const LABEL_BYTES_MAX: usize = 128;

/// A change of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A follower leads: the one named, or the one that is furthest.
    Promote(Option<NodeId>),
    /// A node follows.
    AddFollower(NodeId),
    /// A node follows no more.
    RemoveFollower(NodeId),
    /// The lead, and the replica that has it, goes to a node.
    Move(NodeId),
}

/// Why an order was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It makes no sense; the text names the remedy.
    #[error("{0}")]
    Invalid(String),
    /// No such thing.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done now.
    #[error("{0}")]
    Unavailable(String),
    /// It was changed meanwhile by somebody else: read it again.
    #[error("{0}")]
    Changed(String),
    /// The shard is being changed by another procedure.
    #[error(
        "shard {shard} is being changed by procedure {procedure}; wait for it, or cancel it (`shoal admin procedures cancel {procedure}`)"
    )]
    Busy {
        /// The shard.
        shard: ShardId,
        /// The procedure.
        procedure: Ulid,
    },
}

/// An order that was taken.
#[derive(Debug)]
pub struct Ordered {
    /// Its procedure.
    pub procedure: Procedure,
    /// The same when it has ended; an error means that this scheduler has lost the lead before, and
    /// the next one goes on with it.
    pub ended: oneshot::Receiver<Procedure>,
}

/// How far the draining of a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drained {
    /// The order.
    pub procedure: Ulid,
    /// The node.
    pub node: NodeId,
    /// Shards that it leads still.
    pub leads: usize,
    /// Shards that it follows still.
    pub follows: usize,
    /// Shards of the cluster that have fewer replicas than they should.
    pub short: usize,
    /// Why it does not get on, where that is known.
    pub why: Option<String>,
    /// Whether nothing is left to be done.
    pub done: bool,
}

/// A node, as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct NodeOverview {
    /// Its registration, the last one that was seen.
    pub entry: NodeEntry,
    /// Whether it is there.
    pub health: Health,
    /// Since when.
    pub since_ms: TimestampMs,
    /// What operators said of it.
    pub marks: Option<Marks>,
    /// What it tells.
    pub report: Option<Report>,
    /// What its replicas cost, all together.
    pub load: Load,
}

/// All that the scheduler knows.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Nodes that are heard of, or were in this tenure.
    pub nodes: BTreeMap<NodeId, NodeOverview>,
    /// How many there are by health, those that only assignments name, too.
    pub health: NodeCounts,
    /// Procedures, with what each does now.
    pub procedures: Vec<(Procedure, Option<String>)>,
    /// Shards by what they lack.
    pub shards: ShardCounts,
    /// Since when this scheduler leads.
    pub leads_since_ms: TimestampMs,
}

/// How many nodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// See [`Health::Up`].
    pub up: usize,
    /// See [`Health::Suspect`].
    pub suspect: usize,
    /// See [`Health::Down`].
    pub down: usize,
}

/// How many shards there are, and how many of them are not as they should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardCounts {
    /// All.
    pub all: usize,
    /// Nobody leads them, or a node that does not (yet).
    pub unled: usize,
    /// They have fewer replicas that could take over at once than their group wants.
    pub short: usize,
    /// Their log or manifest is damaged: an operator has to decide.
    pub damaged: usize,
}

/// What the one who leads is asked.
#[derive(Debug)]
pub enum Command {
    /// Change a shard.
    Order {
        /// The shard.
        shard: ShardId,
        /// What is wanted.
        order: Order,
        /// Who wants it.
        by: String,
        /// The answer.
        reply: oneshot::Sender<Result<Ordered, Refused>>,
    },
    /// Empty a node, or let it have replicas again.
    Drain {
        /// The node.
        node: NodeId,
        /// `None`: it may have replicas again.
        marks: Option<Marks>,
        /// The answer.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// How far the draining of a node is.
    Drained {
        /// The node.
        node: NodeId,
        /// The answer; `None`: it is not being drained.
        reply: oneshot::Sender<Option<Drained>>,
    },
    /// Change a node's labels.
    Label {
        /// The node.
        node: NodeId,
        /// The labels to set (`None`: to take away).
        changes: LabelChanges,
        /// The others are as the node is configured again.
        reset: bool,
        /// The answer.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Forget what was said of a node that is gone for good.
    Remove {
        /// The node.
        node: NodeId,
        /// The answer.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Call a procedure off.
    Cancel {
        /// Its id.
        id: Ulid,
        /// The answer.
        reply: oneshot::Sender<Result<Ordered, Refused>>,
    },
    /// Do again what a procedure failed to do.
    Retry {
        /// Its id.
        id: Ulid,
        /// Who wants it.
        by: String,
        /// The answer.
        reply: oneshot::Sender<Result<Ordered, Refused>>,
    },
    /// The settings.
    Settings(oneshot::Sender<Settings>),
    /// Replace the settings; if they have a version, those of that version alone.
    SetSettings(Box<Settings>, oneshot::Sender<Result<(), Refused>>),
    /// What would be done next, with balance on.
    Plan(oneshot::Sender<Vec<Step>>),
    /// All that is known.
    Look(oneshot::Sender<Overview>),
}

/// Gives commands to the scheduler of this process, if it leads.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Commands that wait; beyond it their senders wait.
    const WAITING_MAX: usize = 256;

    /// A handle and the end that is listened to.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Command>) {
        let (commands, taken) = mpsc::channel(Self::WAITING_MAX);
        (Self { commands }, taken)
    }

    /// Gives a command and waits for its answer; `None`: this scheduler does not lead (any more).
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Conductor {
    /// Answers; one that does not wait for the answer any more is no trouble.
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Order {
                shard,
                order,
                by,
                reply,
            } => {
                let task = self.task(shard, order);
                self.ordered(task, by, reply);
            }
            Command::Drain { node, marks, reply } => match self.may_mark(node, marks.as_ref()) {
                Ok(()) => self.keep(Wish::Marks(node, marks), reply),
                Err(refused) => drop(reply.send(Err(refused))),
            },
            Command::Label {
                node,
                changes,
                reset,
                reply,
            } => match self.may_label(node, &changes, reset) {
                Ok(()) => self.keep(
                    Wish::Labels {
                        node,
                        changes,
                        reset,
                    },
                    reply,
                ),
                Err(refused) => drop(reply.send(Err(refused))),
            },
            Command::Drained { node, reply } => {
                let _ = reply.send(self.drained(node));
            }
            Command::Remove { node, reply } => match self.may_remove(node) {
                Ok(()) => self.keep(Wish::Forget(node), reply),
                Err(refused) => drop(reply.send(Err(refused))),
            },
            Command::Cancel { id, reply } => {
                let _ = reply.send(self.call_off(id));
            }
            Command::Retry { id, by, reply } => self.again(id, by, reply),
            Command::Settings(reply) => {
                let _ = reply.send(self.kept.settings.clone());
            }
            Command::SetSettings(settings, reply) => match self.may_set(*settings) {
                Ok(settings) => {
                    self.settings_wait = true;
                    self.keep(Wish::Settings(Box::new(settings)), reply);
                }
                Err(refused) => drop(reply.send(Err(refused))),
            },
            Command::Plan(reply) => {
                let _ = reply.send(self.planned());
            }
            Command::Look(reply) => {
                let _ = reply.send(self.overview());
            }
        }
    }

    fn task(&self, shard: ShardId, order: Order) -> Result<Task, Refused> {
        let Some(assignment) = self.assignment(shard) else {
            return Err(Refused::NotFound(format!(
                "shard {shard} is assigned to no node"
            )));
        };
        let there = |node: NodeId| {
            if self.entries.contains_key(&node) && !self.is_down(node) {
                return Ok(node);
            }
            Err(Refused::Unavailable(format!(
                "node {node} is not there; start it, or choose another"
            )))
        };
        Ok(match order {
            Order::Promote(to) => {
                let to = match to {
                    Some(to) => there(to)?,
                    None => self.furthest(shard)?,
                };
                if assignment.leader.is_some() && !assignment.involves(to) {
                    return Err(Refused::Invalid(format!(
                        "node {to} has no replica of shard {shard}; `shoal admin shard add-follower {shard} --to {to}` first, or `shard move`"
                    )));
                }
                let term = assignment.term;
                if assignment.involves(to) {
                    Task::Promote { shard, to, term }
                } else {
                    Task::FailOver { shard, to, term }
                }
            }
            Order::AddFollower(to) => Task::AddFollower {
                shard,
                to: there(to)?,
                had: assignment.involves(to),
            },
            Order::RemoveFollower(node) => {
                if assignment.leader == Some(node) {
                    return Err(Refused::Invalid(format!(
                        "node {node} leads shard {shard}; `shoal admin shard promote` another first, or `shard move`"
                    )));
                }
                Task::RemoveFollower { shard, node }
            }
            Order::Move(to) => {
                let to = there(to)?;
                let from = assignment.leader.ok_or_else(|| {
                    Refused::Unavailable(format!(
                        "no node leads shard {shard}; `shoal admin shard promote` one"
                    ))
                })?;
                if from == to {
                    let term = assignment.term;
                    return Ok(Task::Promote { shard, to, term });
                }
                let had = assignment.involves(to);
                Task::Move {
                    shard,
                    from,
                    to,
                    had,
                }
            }
        })
    }

    /// The follower that is there and has applied most.
    fn furthest(&self, shard: ShardId) -> Result<NodeId, Refused> {
        let view = self.view(Some(&[shard].into()));
        let of = view.shards.first();
        let followers = of.into_iter().flat_map(|s| {
            let followers = s.replicas.iter().filter(|r| s.leader != Some(r.node));
            followers.filter(|r| r.state == ReplicaState::Ready && !self.is_down(r.node))
        });
        let furthest = followers.max_by_key(|r| r.position);
        furthest.map(|r| r.node).ok_or_else(|| {
            Refused::Unavailable(format!(
                "no follower of shard {shard} can take over; `--to NODE` names one, `shard add-follower` makes one"
            ))
        })
    }

    /// Begins what was ordered; that is answered once it is written down.
    fn ordered(&mut self, task: Result<Task, Refused>, by: String, reply: Reply) {
        let begun = task.and_then(|task| self.begin_ordered(task, by));
        match begun {
            Ok(ordered) => {
                let shard = ordered.procedure.task.shard();
                self.unsaved.insert(shard, (reply, ordered));
            }
            Err(refused) => drop(reply.send(Err(refused))),
        }
    }

    fn begin_ordered(&mut self, task: Task, by: String) -> Result<Ordered, Refused> {
        let shard = task.shard();
        if let Some(running) = self.running.get(&shard) {
            return Err(Refused::Busy {
                shard,
                procedure: running.procedure.id,
            });
        }
        let begun = self.begin(vec![(task, by, "it was ordered".into())]);
        let procedure = begun.into_iter().next();
        let procedure = procedure.ok_or_else(|| Refused::Unavailable("not begun".into()))?;
        Ok(self.with_end(procedure))
    }

    fn with_end(&mut self, procedure: Procedure) -> Ordered {
        let (tell, ended) = oneshot::channel();
        if procedure.is_running() {
            self.waiting.entry(procedure.id).or_default().push(tell);
        } else {
            let _ = tell.send(procedure.clone());
        }
        Ordered { procedure, ended }
    }

    fn known(&self, id: Ulid) -> Result<Procedure, Refused> {
        let running = self.running.values().map(|r| &r.procedure);
        let mut all = running.chain(self.kept.procedures.values());
        let found = all.find(|p| p.id == id).cloned();
        found.ok_or_else(|| {
            Refused::NotFound(format!(
                "there is no procedure {id}; `shoal admin procedures` lists them"
            ))
        })
    }

    fn call_off(&mut self, id: Ulid) -> Result<Ordered, Refused> {
        let procedure = self.known(id)?;
        if !procedure.is_running() {
            return Err(Refused::Invalid(format!(
                "procedure {id} has ended; nothing is left to call off"
            )));
        }
        self.cancel(procedure.task.shard());
        Ok(self.with_end(procedure))
    }

    fn again(&mut self, id: Ulid, by: String, reply: Reply) {
        let procedure = match self.known(id) {
            Ok(procedure) => procedure,
            Err(refused) => return drop(reply.send(Err(refused))),
        };
        if procedure.is_running() {
            let running = self.with_end(procedure);
            return drop(reply.send(Ok(running)));
        }
        let order = match procedure.task {
            Task::FailOver { to, .. } | Task::Promote { to, .. } | Task::Reconcile { to, .. } => {
                Order::Promote(Some(to))
            }
            Task::AddFollower { to, .. } => Order::AddFollower(to),
            Task::RemoveFollower { node, .. } => Order::RemoveFollower(node),
            Task::Move { to, .. } => Order::Move(to),
        };
        let task = self.task(procedure.task.shard(), order);
        self.ordered(task, by, reply);
    }

    /// The settings as they are to be kept.
    fn may_set(&self, settings: Settings) -> Result<Settings, Refused> {
        let known = self.kept.settings.version;
        settings
            .check()
            .map_err(|error| Refused::Invalid(error.to_string()))?;
        if self.settings_wait || settings.version != 0 && settings.version != known {
            return Err(Refused::Changed(format!(
                "the settings were changed meanwhile, they have version {known}; read them, and change them again"
            )));
        }
        let snapshot = self.backends.topology.snapshot();
        let unknown = settings.shards.keys().find(|shard| {
            !snapshot.assignments.contains_key(*shard)
                && !self.kept.settings.shards.contains_key(*shard)
        });
        if let Some(shard) = unknown {
            return Err(Refused::Invalid(format!(
                "shards.{shard}: there is no such shard; `shoal admin shards` lists them"
            )));
        }
        Ok(Settings {
            version: known + 1,
            ..settings
        })
    }

    /// Whether a node is heard of, was, or is named by anything.
    fn must_know(&self, node: NodeId) -> Result<(), Refused> {
        let snapshot = self.backends.topology.snapshot();
        let known = self.entries.contains_key(&node)
            || self.kept.marks.contains_key(&node)
            || snapshot.labels.contains_key(&node)
            || snapshot.known_nodes().contains(&node);
        if known {
            return Ok(());
        }
        Err(Refused::NotFound(format!(
            "there is no node {node}; `shoal admin nodes` lists them"
        )))
    }

    fn may_label(&self, node: NodeId, changes: &LabelChanges, reset: bool) -> Result<(), Refused> {
        self.must_know(node)?;
        let snapshot = self.backends.topology.snapshot();
        let said = snapshot.labels.get(&node).into_iter().flatten();
        let others = said.filter(|(name, _)| !reset && !changes.contains_key(*name));
        let all = changes.len() + others.count();
        if all > LABELS_MAX {
            return Err(Refused::Invalid(format!(
                "something would be said of {all} labels of node {node}, at most {LABELS_MAX} are kept; `shoal admin label {node} --reset` forgets all"
            )));
        }
        let texts = changes
            .iter()
            .flat_map(|(name, value)| [Some(name), value.as_ref()]);
        match texts.flatten().find(|text| !is_label_text(text)) {
            Some(text) => Err(Refused::Invalid(format!(
                "{text:?} cannot be a label or its value: use 1 to {LABEL_BYTES_MAX} of A-Z, a-z, 0-9, '_', '-' and '.'"
            ))),
            None => Ok(()),
        }
    }

    fn may_mark(&self, node: NodeId, marks: Option<&Marks>) -> Result<(), Refused> {
        self.must_know(node)?;
        let Some(marks) = marks else { return Ok(()) };
        let drains = self.kept.marks.get(&node).is_some_and(|m| m.draining);
        if marks.leads_only && drains {
            return Err(Refused::Invalid(format!(
                "node {node} is being drained of all that it has; `shoal admin node undrain {node}` first"
            )));
        }
        Ok(())
    }

    /// Writes what is wanted down; it counts, and is answered, when that is done.
    fn keep(&mut self, wish: Wish, reply: oneshot::Sender<Result<(), Refused>>) {
        let (records, fence) = (self.records.clone(), self.fence.clone());
        let topology = Arc::clone(&self.backends.topology);
        self.spawn(async move {
            let done = match &wish {
                Wish::Settings(settings) => records.write_settings(settings).await,
                Wish::Marks(node, marks) => records.write_marks(*node, marks.as_ref()).await,
                Wish::Forget(node) => {
                    let none = LabelChanges::new();
                    match topology.change_labels(&fence, *node, &none, true).await {
                        Ok(()) => records.write_marks(*node, None).await,
                        Err(error) => Err(error),
                    }
                }
                Wish::Labels {
                    node,
                    changes,
                    reset,
                } => topology.change_labels(&fence, *node, changes, *reset).await,
            };
            Event::Kept { wish, done, reply }
        });
    }

    pub(super) fn was_kept(
        &mut self,
        wish: Wish,
        done: Result<(), MetaError>,
        reply: oneshot::Sender<Result<(), Refused>>,
    ) {
        if matches!(wish, Wish::Settings(_)) {
            self.settings_wait = false;
        }
        match done {
            Ok(()) => {}
            Err(MetaError::Conflict) => {
                self.over = Some(Ended::Fenced);
                return;
            }
            Err(error) => {
                let why = format!("it is not written down, ask again: {error}");
                let _ = reply.send(Err(Refused::Unavailable(why)));
                return;
            }
        }
        match wish {
            Wish::Settings(settings) => self.kept.settings = *settings,
            Wish::Marks(node, Some(marks)) => drop(self.kept.marks.insert(node, marks)),
            // The topology tells of them.
            Wish::Labels { .. } => {}
            Wish::Marks(node, None) | Wish::Forget(node) => {
                self.undrained.insert(node, self.now_ms());
                self.kept.marks.remove(&node);
            }
        }
        self.next_round = tokio::time::Instant::now();
        let _ = reply.send(Ok(()));
    }

    fn drained(&self, node: NodeId) -> Option<Drained> {
        let marks = self.kept.marks.get(&node)?;
        let view = self.view(None);
        let such = |is: &dyn Fn(&Node) -> bool| -> BTreeSet<NodeId> {
            let nodes = view.nodes.iter().filter(|n| is(n));
            nodes.map(|n| n.id).collect()
        };
        let up = such(&|n| n.health == Health::Up);
        let may_lead = such(&Node::takes_leads);
        let (mut leads, mut follows, mut short, mut stuck) = (0, 0, 0, 0);
        for shard in &view.shards {
            let leads_it = shard.leader == Some(node);
            leads += usize::from(leads_it);
            follows += usize::from(!leads_it && shard.replica(node).is_some());
            let ready = shard
                .replicas
                .iter()
                .filter(|r| r.node != node && r.state == ReplicaState::Ready);
            let wanted = self.kept.settings.replication(&shard.group);
            let able = ready.clone().any(|r| may_lead.contains(&r.node));
            let ready = ready.filter(|r| up.contains(&r.node)).count();
            // What is damaged waits for an operator, not for this.
            short += usize::from(ready < wanted && !shard.is_damaged());
            stuck += usize::from(leads_it && !able);
        }
        let nodes = view.nodes.iter().filter(|n| n.takes_replicas()).count();
        let most = view
            .shards
            .iter()
            .map(|s| self.kept.settings.replication(&s.group))
            .max();
        let why = if marks.leads_only {
            (stuck > 0).then(|| {
                format!(
                    "{stuck} shards have no follower that could lead: its node is down, leaves as well or is to be empty, or there is none; wait for it, `shoal admin node undrain` it, raise replication, or drain this node of all that it has"
                )
            })
        } else {
            most.filter(|most| *most > nodes).map(|most| {
                format!(
                    "shards are to have {most} replicas and {nodes} other nodes can take them; add a node, or lower replication"
                )
            })
        };
        Some(Drained {
            procedure: marks.id,
            node,
            leads,
            follows,
            short,
            why,
            done: if marks.leads_only {
                leads == 0
            } else {
                leads + follows + short == 0
            },
        })
    }

    fn may_remove(&self, node: NodeId) -> Result<(), Refused> {
        self.must_know(node)?;
        let view = self.view(None);
        let held = view.shards.iter().filter(|s| s.replica(node).is_some());
        let held = held.count();
        if held > 0 {
            return Err(Refused::Invalid(format!(
                "node {node} has {held} replicas; `shoal admin node drain {node} --wait` first"
            )));
        }
        if self.backends.topology.snapshot().nodes.contains_key(&node) {
            return Err(Refused::Invalid(format!(
                "node {node} runs; stop it, then remove it"
            )));
        }
        Ok(())
    }

    fn counts(&self) -> (NodeCounts, ShardCounts) {
        let view = self.view(None);
        let up: BTreeSet<NodeId> = view
            .nodes
            .iter()
            .filter(|n| n.health == Health::Up)
            .map(|n| n.id)
            .collect();
        let health = |health| view.nodes.iter().filter(|n| n.health == health).count();
        let nodes = NodeCounts {
            up: health(Health::Up),
            suspect: health(Health::Suspect),
            down: health(Health::Down),
        };
        let mut counts = ShardCounts {
            all: view.shards.len(),
            ..ShardCounts::default()
        };
        for shard in &view.shards {
            let able = |r: &&Replica| r.state == ReplicaState::Ready && up.contains(&r.node);
            let leads = shard.replicas.iter().filter(able);
            let leads = leads.filter(|r| shard.leader == Some(r.node)).count();
            let able = shard.replicas.iter().filter(able).count();
            counts.unled += usize::from(leads == 0);
            counts.short += usize::from(able < self.kept.settings.replication(&shard.group));
            counts.damaged += usize::from(shard.is_damaged());
        }
        (nodes, counts)
    }

    fn overview(&self) -> Overview {
        let now_ms = self.now_ms();
        let nodes = self.entries.iter().map(|(id, entry)| {
            let (health, since_ms) = self
                .detector
                .health(*id)
                .unwrap_or((Health::Suspect, self.began_ms));
            let node = NodeOverview {
                entry: entry.clone(),
                health,
                since_ms,
                marks: self.kept.marks.get(id).cloned(),
                load: self.reports.get(id).map_or_else(Load::default, |report| {
                    let replicas = report.replicas.values();
                    replicas.map(|r| r.load(now_ms)).sum()
                }),
                report: self.reports.get(id).cloned(),
            };
            (*id, node)
        });
        let running = self.running.values();
        let running = running.map(|r| (r.procedure.clone(), Some(r.doing())));
        let ended = self.kept.procedures.values();
        let ended = ended.filter(|p| !p.is_running()).map(|p| (p.clone(), None));
        let mut procedures: Vec<_> = running.chain(ended).collect();
        procedures.sort_by_key(|(p, _)| p.id);
        let (health, shards) = self.counts();
        Overview {
            nodes: nodes.collect(),
            health,
            procedures,
            shards,
            leads_since_ms: self.began_ms,
        }
    }
}

/// What a label's name or value may be.
fn is_label_text(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.chars().all(fits)
}
