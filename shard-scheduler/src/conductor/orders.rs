//! What operators want of the scheduler that leads.

use std::collections::BTreeMap;

use serde::Serialize;
use shoal_meta::{MetaError, NodeEntry};
use shoal_types::{NodeId, ShardId, TimestampMs};
use tokio::sync::{mpsc, oneshot};
use ulid::Ulid;

use super::{Conductor, Ended, Event, Wish};
use crate::beat::Report;
use crate::plan::Step;
use crate::procedure::{Procedure, Task};
use crate::records::Marks;
use crate::settings::Settings;
use crate::view::{Health, ReplicaState};

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
}

/// All that the scheduler knows.
#[derive(Clone, Debug)]
pub struct Overview {
    /// Nodes that are heard of, or were in this tenure.
    pub nodes: BTreeMap<NodeId, NodeOverview>,
    /// Procedures, with what each does now.
    pub procedures: Vec<(Procedure, Option<String>)>,
    /// Since when this scheduler leads.
    pub leads_since_ms: TimestampMs,
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
    /// Replace the settings.
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
                let _ = reply.send(task.and_then(|task| self.ordered(task, by)));
            }
            Command::Drain { node, marks, reply } => match self.may_mark(node, marks.as_ref()) {
                Ok(()) => self.keep(Wish::Marks(node, marks), reply),
                Err(refused) => drop(reply.send(Err(refused))),
            },
            Command::Drained { node, reply } => {
                let _ = reply.send(self.drained(node));
            }
            Command::Remove { node, reply } => match self.may_remove(node) {
                Ok(()) => self.keep(Wish::Marks(node, None), reply),
                Err(refused) => drop(reply.send(Err(refused))),
            },
            Command::Cancel { id, reply } => {
                let _ = reply.send(self.call_off(id));
            }
            Command::Retry { id, by, reply } => {
                let _ = reply.send(self.again(id, by));
            }
            Command::Settings(reply) => {
                let _ = reply.send(self.kept.settings.clone());
            }
            Command::SetSettings(settings, reply) => match settings.check() {
                Ok(()) => self.keep(Wish::Settings(settings), reply),
                Err(error) => drop(reply.send(Err(Refused::Invalid(error.to_string())))),
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

    fn ordered(&mut self, task: Task, by: String) -> Result<Ordered, Refused> {
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

    fn again(&mut self, id: Ulid, by: String) -> Result<Ordered, Refused> {
        let procedure = self.known(id)?;
        if procedure.is_running() {
            return Ok(self.with_end(procedure));
        }
        let order = match procedure.task {
            Task::FailOver { to, .. } | Task::Promote { to, .. } | Task::Reconcile { to, .. } => {
                Order::Promote(Some(to))
            }
            Task::AddFollower { to, .. } => Order::AddFollower(to),
            Task::RemoveFollower { node, .. } => Order::RemoveFollower(node),
            Task::Move { to, .. } => Order::Move(to),
        };
        let task = self.task(procedure.task.shard(), order)?;
        self.ordered(task, by)
    }

    fn may_mark(&self, node: NodeId, marks: Option<&Marks>) -> Result<(), Refused> {
        let Some(marks) = marks else { return Ok(()) };
        if !self.entries.contains_key(&node) {
            return Err(Refused::NotFound(format!("node {node} is not heard of")));
        }
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
        let records = self.records.clone();
        self.spawn(async move {
            let done = match &wish {
                Wish::Settings(settings) => records.write_settings(settings).await,
                Wish::Marks(node, marks) => records.write_marks(*node, marks.as_ref()).await,
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
            Wish::Marks(node, None) => {
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
        let up = |n: NodeId| {
            view.nodes
                .iter()
                .any(|v| v.id == n && v.health == Health::Up)
        };
        let (mut leads, mut follows, mut short, mut stuck) = (0, 0, 0, 0);
        for shard in &view.shards {
            let leads_it = shard.leader == Some(node);
            leads += usize::from(leads_it);
            follows += usize::from(!leads_it && shard.replica(node).is_some());
            let ready = shard
                .replicas
                .iter()
                .filter(|r| r.node != node && r.state == ReplicaState::Ready && up(r.node));
            let wanted = self.kept.settings.replication(&shard.group);
            let ready = ready.count();
            // What is damaged waits for an operator, not for this.
            short += usize::from(ready < wanted && !shard.is_damaged());
            stuck += usize::from(leads_it && ready == 0);
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
                    "{stuck} shards have no follower that could lead; raise replication, or drain the node of all that it has"
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

    fn overview(&self) -> Overview {
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
        Overview {
            nodes: nodes.collect(),
            procedures,
            leads_since_ms: self.began_ms,
        }
    }
}
