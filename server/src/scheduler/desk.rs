//! What operators ask of the scheduler, whatever process they ask.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use shoal_meta::{Holding, LabelChanges, Topology};
use shoal_scheduler::{
    Command, Elected, Handle, Health, Marks, Order, Ordered, Overview, Procedure, Refused, Serving,
    Settings, State,
};
use shoal_types::{Clock, NodeId, Retry, ShardId, SystemClock};
use tokio::sync::watch;
use ulid::Ulid;

use super::metrics::Metrics;
use crate::auth::Auth;
use crate::http::{ApiError, Forward, missing_nodes, schedulers};
use crate::node::orders::one_of;

/// How long an answer may wait for its procedure.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Pause between two looks at something that is waited for, and at least so many times what a look
/// takes.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_LOOKS: u32 = 10;
/// How long it is waited for something small to be written and seen.
const CHANGE_MAX: Duration = Duration::from_secs(2);

/// What this scheduler's interface needs.
pub struct Desk {
    /// This start of it.
    pub process: Ulid,
    /// To the one who leads, if that is this one.
    pub handle: Handle,
    /// Whether it is.
    pub elected: watch::Receiver<Elected>,
    /// Nodes, assignments, schedulers.
    pub topology: Arc<Topology>,
    /// Who may come in.
    pub auth: Arc<Auth>,
    /// To others.
    pub forward: Arc<Forward>,
    /// Figures.
    pub metrics: Arc<Metrics>,
}

/// An answer and its status.
pub type Said = Result<(StatusCode, Value), ApiError>;

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let (status, code, retry) = match &refused {
            Refused::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_request", Retry::Never),
            Refused::NotFound(_) => (StatusCode::NOT_FOUND, "not_found", Retry::Never),
            Refused::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", Retry::Safe)
            }
            Refused::Busy { .. } => (StatusCode::CONFLICT, "busy", Retry::Safe),
            Refused::Changed(_) => (StatusCode::CONFLICT, "changed", Retry::Never),
        };
        Self::new(status, code, retry, refused.to_string())
    }
}

fn lost_the_lead() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "unavailable",
        Retry::Safe,
        "this scheduler has just lost the lead; ask again",
    )
}

/// A procedure as it is shown.
fn shown(procedure: &Procedure, doing: Option<&str>) -> Value {
    let task = procedure.task;
    let outcome = &procedure.outcome;
    json!({
        "procedure": procedure.id.to_string(),
        "state": procedure.state,
        "order": task.name(),
        "shard": task.shard().to_string(),
        "node": task.node().to_string(),
        "by": procedure.by,
        "why": procedure.why,
        "begun_ms": procedure.begun_ms,
        "ended_ms": outcome.ended_ms,
        "old_leader": procedure.old_leader.map(|n| n.to_string()),
        "old_term": procedure.old_term,
        "epoch": outcome.epoch.map(|e| e.to_string()),
        "bytes_copied": 0,
        "records_replayed": outcome.records_replayed,
        "pause_ms": match procedure.state {
            // A change that moves no lead has none.
            State::Done => outcome.pause_ms.or(Some(0.0)),
            _ => outcome.pause_ms,
        },
        "error": outcome.error,
        "doing": doing,
        "cancelled": procedure.cancelled,
    })
}

impl Desk {
    /// Whether this one leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self.elected.borrow() == Elected::Yes
    }

    /// A shard by its id or a unique part of its beginning.
    fn shard(&self, text: &str) -> Result<ShardId, ApiError> {
        let snapshot = self.topology.snapshot();
        let ids = snapshot.assignments.keys().map(|id| (id.to_string(), *id));
        Ok(one_of("shard", text, ids)?)
    }

    /// A node likewise; those that assignments name, too.
    fn node(&self, text: &str) -> Result<NodeId, ApiError> {
        let snapshot = self.topology.snapshot();
        let ids = snapshot.known_nodes().into_iter();
        Ok(one_of("node", text, ids.map(|id| (id.to_string(), id)))?)
    }

    async fn look(&self) -> Result<Overview, ApiError> {
        let look = self.handle.ask(Command::Look).await;
        look.ok_or_else(lost_the_lead)
    }

    /// A procedure likewise.
    fn procedure(look: Overview, text: &str) -> Result<(Procedure, Option<String>), ApiError> {
        let ids = look.procedures.iter().enumerate();
        let ids = ids.map(|(i, (p, _))| (p.id.to_string(), i));
        let at = one_of("procedure", text, ids)?;
        let found = look.procedures.into_iter().nth(at);
        found.ok_or_else(|| ApiError::internal("a procedure that is not there"))
    }

    /// Changes a shard. `wait`: the answer comes when that is done.
    ///
    /// # Errors
    /// It was refused, or failed.
    pub async fn order(
        &self,
        shard: &str,
        order: &str,
        to: Option<&str>,
        by: &str,
        wait: bool,
    ) -> Said {
        let shard = self.shard(shard)?;
        let to = to.map(|to| self.node(to)).transpose()?;
        let needed = || to.ok_or_else(ApiError::needs_node);
        let wish = match order {
            "promote" => Order::Promote(to),
            "add-follower" => Order::AddFollower(needed()?),
            "remove-follower" => Order::RemoveFollower(needed()?),
            "move" => Order::Move(needed()?),
            other => return Err(ApiError::no_shard_order(other)),
        };
        let limit = tokio::time::Instant::now() + WAIT_MAX;
        loop {
            let asked = self.handle.ask(|reply| Command::Order {
                shard,
                order: wish,
                by: by.to_owned(),
                reply,
            });
            match asked.await.ok_or_else(lost_the_lead)? {
                Ok(ordered) => return self.followed(ordered, wait).await,
                // What is under way ends first.
                Err(Refused::Busy { .. }) if wait && tokio::time::Instant::now() < limit => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(refused) => return Err(refused.into()),
            }
        }
    }

    async fn followed(&self, ordered: Ordered, wait: bool) -> Said {
        let running = (StatusCode::ACCEPTED, shown(&ordered.procedure, None));
        if !wait {
            return Ok(running);
        }
        let id = ordered.procedure.id;
        match tokio::time::timeout(WAIT_MAX, ordered.ended).await {
            Ok(Ok(ended)) => ended_as(&ended),
            Ok(Err(_)) => Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "unfinished",
                Retry::Safe,
                format!(
                    "this scheduler has lost the lead; the next one goes on with procedure {id} (`shoal admin procedures show {id}`)"
                ),
            )),
            Err(_) => Ok(running),
        }
    }

    /// All procedures, the newest first.
    ///
    /// # Errors
    /// This one does not lead any more.
    pub async fn procedures(&self) -> Said {
        let look = self.look().await?;
        let ended = look.procedures.iter().rev();
        let ended = ended.map(|(p, doing)| shown(p, doing.as_deref()));
        let drains = look.nodes.iter().filter_map(|(node, of)| {
            let marks = of.marks.as_ref()?;
            Some(self.drain_shown(*node, marks))
        });
        let all: Vec<Value> = drains.chain(ended).collect();
        Ok((StatusCode::OK, all.into()))
    }

    /// A drain, which goes on for as long as its mark is on the node.
    fn drain_shown(&self, node: NodeId, marks: &Marks) -> Value {
        let held = self.topology.snapshot().holdings();
        let Holding { leads, follows } = held.get(&node).copied().unwrap_or_default();
        let left = if marks.leads_only {
            leads
        } else {
            leads + follows
        };
        let doing = match (left, marks.leads_only) {
            (0, _) => {
                "it has nothing, and gets nothing until `shoal admin node undrain`".to_owned()
            }
            (_, true) => format!("it gives {leads} leads away"),
            (_, false) => format!("it gives {leads} leads and {follows} followers away"),
        };
        json!({
            "procedure": marks.id.to_string(),
            "state": "running",
            "order": if marks.leads_only { "drain-leads" } else { "drain" },
            "node": node.to_string(),
            "by": marks.by,
            "begun_ms": marks.since_ms,
            "doing": doing,
        })
    }

    /// The node of a drain by its whole id.
    fn drain_of<'a>(look: &'a Overview, id: &str) -> Option<(NodeId, &'a Marks)> {
        let mut marked = look.nodes.iter();
        marked.find_map(|(node, of)| {
            let marks = of.marks.as_ref()?;
            let is_it = marks.id.to_string().eq_ignore_ascii_case(id);
            is_it.then_some((*node, marks))
        })
    }

    /// One procedure.
    ///
    /// # Errors
    /// There is none.
    pub async fn show(&self, id: &str) -> Said {
        let look = self.look().await?;
        if let Some((node, marks)) = Self::drain_of(&look, id) {
            return Ok((StatusCode::OK, self.drain_shown(node, marks)));
        }
        let (procedure, doing) = Self::procedure(look, id)?;
        Ok((StatusCode::OK, shown(&procedure, doing.as_deref())))
    }

    /// Calls a procedure off.
    ///
    /// # Errors
    /// It has ended.
    pub async fn cancel(&self, id: &str) -> Said {
        let look = self.look().await?;
        if let Some((node, _)) = Self::drain_of(&look, id) {
            return self.undrain(&node.to_string()).await;
        }
        let id = Self::procedure(look, id)?.0.id;
        let asked = self.handle.ask(|reply| Command::Cancel { id, reply }).await;
        let ordered = asked.ok_or_else(lost_the_lead)??;
        match tokio::time::timeout(WAIT_MAX, ordered.ended).await {
            Ok(Ok(ended)) if ended.state == State::Done => Err(ApiError::new(
                StatusCode::CONFLICT,
                "too_late",
                Retry::Never,
                format!("procedure {id} was done before it could be called off"),
            )),
            Ok(Ok(ended)) => Ok((StatusCode::OK, shown(&ended, None))),
            _ => Err(lost_the_lead()),
        }
    }

    /// Does again what a procedure failed to do.
    ///
    /// # Errors
    /// As [`Self::order`].
    pub async fn retry(&self, id: &str, by: &str, wait: bool) -> Said {
        let id = Self::procedure(self.look().await?, id)?.0.id;
        let by = by.to_owned();
        let asked = self
            .handle
            .ask(|reply| Command::Retry { id, by, reply })
            .await;
        self.followed(asked.ok_or_else(lost_the_lead)??, wait).await
    }

    /// Empties a node; with `leads_only` of its leads alone, for a restart.
    ///
    /// # Errors
    /// There is no such node; it does not get on.
    pub async fn drain(&self, node: &str, leads_only: bool, by: &str, wait: bool) -> Said {
        let node = self.node(node)?;
        let look = self.look().await?;
        let before = look.nodes.get(&node).and_then(|of| of.marks.as_ref());
        let same = before.filter(|marks| marks.leads_only == leads_only);
        let marks = Marks {
            // Given again it is the same order.
            id: same.map_or_else(Ulid::new, |marks| marks.id),
            draining: !leads_only,
            leads_only,
            by: by.to_owned(),
            since_ms: SystemClock.now_ms(),
        };
        let asked = self.handle.ask(|reply| Command::Drain {
            node,
            marks: Some(marks),
            reply,
        });
        asked.await.ok_or_else(lost_the_lead)??;
        let begun = tokio::time::Instant::now();
        loop {
            let looked = tokio::time::Instant::now();
            let drained = self
                .handle
                .ask(|reply| Command::Drained { node, reply })
                .await;
            let took = looked.elapsed();
            let Some(drained) = drained.ok_or_else(lost_the_lead)? else {
                return Err(ApiError::new(
                    StatusCode::CONFLICT,
                    "cancelled",
                    Retry::Never,
                    format!("node {node} was told to take replicas again"),
                ));
            };
            let mut body = json!(drained);
            let spent_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            body["ms"] = spent_ms.into();
            if drained.done {
                body["state"] = "done".into();
                body["bytes_copied"] = 0.into();
                return Ok((StatusCode::OK, body));
            }
            if let Some(why) = drained
                .why
                .filter(|_| wait && begun.elapsed() > Duration::from_secs(2))
            {
                return Err(ApiError::new(
                    StatusCode::CONFLICT,
                    "cannot_drain",
                    Retry::Safe,
                    format!("node {node} stays marked as draining, and cannot be emptied: {why}"),
                ));
            }
            if !wait || begun.elapsed() > WAIT_MAX {
                body["state"] = "running".into();
                return Ok((StatusCode::ACCEPTED, body));
            }
            tokio::time::sleep(PAUSE.max(took * PAUSE_LOOKS)).await;
        }
    }

    /// Lets a node have replicas again.
    ///
    /// # Errors
    /// There is no such node.
    pub async fn undrain(&self, node: &str) -> Said {
        // One that is stopped and has nothing is named in full.
        let node = match node.parse() {
            Ok(node) => node,
            Err(_) => self.node(node)?,
        };
        let asked = self.handle.ask(|reply| Command::Drain {
            node,
            marks: None,
            reply,
        });
        asked.await.ok_or_else(lost_the_lead)??;
        Ok((
            StatusCode::OK,
            json!({ "node": node.to_string(), "state": "done" }),
        ))
    }

    /// Forgets a node that is gone for good.
    ///
    /// # Errors
    /// It runs, or has replicas.
    pub async fn remove(&self, node: &str) -> Said {
        // One that nobody knows any more is named in full.
        let node = match node.parse() {
            Ok(node) => node,
            Err(_) => self.node(node)?,
        };
        let asked = self.handle.ask(|reply| Command::Remove { node, reply });
        asked.await.ok_or_else(lost_the_lead)??;
        Ok((
            StatusCode::OK,
            json!({ "node": node.to_string(), "state": "done" }),
        ))
    }

    /// The settings.
    ///
    /// # Errors
    /// This one does not lead any more.
    pub async fn settings(&self) -> Result<Settings, ApiError> {
        let asked = self.handle.ask(Command::Settings).await;
        asked.ok_or_else(lost_the_lead)
    }

    /// Replaces the settings; those of the version that they name, if they name one.
    ///
    /// # Errors
    /// One of them is wrong, or they were changed meanwhile.
    pub async fn set(&self, settings: Settings) -> Said {
        let asked = self
            .handle
            .ask(|reply| Command::SetSettings(Box::new(settings), reply));
        asked.await.ok_or_else(lost_the_lead)??;
        Ok((StatusCode::OK, json!(self.settings().await?)))
    }

    /// Balances by itself, or does not.
    ///
    /// # Errors
    /// This one does not lead any more.
    pub async fn balance(&self, on: bool) -> Said {
        let deadline = tokio::time::Instant::now() + CHANGE_MAX;
        loop {
            let mut settings = self.settings().await?;
            settings.balance.on = on;
            let asked = self
                .handle
                .ask(|reply| Command::SetSettings(Box::new(settings), reply));
            match asked.await.ok_or_else(lost_the_lead)? {
                Ok(()) => break,
                Err(Refused::Changed(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(refused) => return Err(refused.into()),
            }
        }
        Ok((
            StatusCode::OK,
            json!({ "balance": if on { "on" } else { "off" } }),
        ))
    }

    /// Changes a node's labels, and waits until this scheduler sees them so.
    ///
    /// # Errors
    /// There is no such node, or no such label can be.
    pub async fn label(&self, node: &str, changes: LabelChanges, reset: bool) -> Said {
        let node = self.node(node)?;
        let wanted = changes.clone();
        let asked = self.handle.ask(|reply| Command::Label {
            node,
            changes,
            reset,
            reply,
        });
        asked.await.ok_or_else(lost_the_lead)??;
        let mut seen = self.topology.subscribe();
        let seen = seen.wait_for(|snapshot| {
            let none = LabelChanges::new();
            let said = snapshot.labels.get(&node).unwrap_or(&none);
            let set = wanted
                .iter()
                .all(|(name, value)| said.get(name) == Some(value));
            set && (!reset || said.len() == wanted.len())
        });
        // What was written is written; the answer may show it later.
        let _ = tokio::time::timeout(CHANGE_MAX, seen).await;
        let snapshot = self.topology.snapshot();
        let labels = snapshot.node(node).map(|n| &n.labels);
        Ok((
            StatusCode::OK,
            json!({ "node": node.to_string(), "labels": labels }),
        ))
    }

    /// What would be done next, with why.
    ///
    /// # Errors
    /// This one does not lead any more.
    pub async fn plan(&self) -> Said {
        let asked = self.handle.ask(Command::Plan).await;
        let steps = asked.ok_or_else(lost_the_lead)?;
        Ok((StatusCode::OK, json!(steps)))
    }

    /// All nodes and schedulers.
    ///
    /// # Errors
    /// This one does not lead any more.
    pub async fn nodes(&self) -> Said {
        let look = self.look().await?;
        let snapshot = self.topology.snapshot();
        let held = snapshot.holdings();
        let mut listed = Vec::new();
        for (id, node) in &look.nodes {
            let Holding { leads, follows } = held.get(id).copied().unwrap_or_default();
            let state = match (node.health, &node.marks) {
                (Health::Down, _) => "down",
                (Health::Suspect, _) => "suspect",
                (Health::Up, Some(marks)) if marks.draining && leads + follows == 0 => "drained",
                (Health::Up, Some(marks)) if marks.draining => "draining",
                (Health::Up, Some(_)) => "leaving",
                (Health::Up, None) => "up",
            };
            let load = node.report.as_ref().map(|_| {
                json!({
                    "write_bytes_per_s": node.load.write_bytes_per_s.round(),
                    "read_ms_per_s": (node.load.read_ms_per_s * 1e3).round() / 1e3,
                    "memory_bytes": node.load.memory_bytes.round(),
                })
            });
            let damaged = node.report.as_ref().map_or(0, |report| {
                let damaged =
                    |r: &&shoal_scheduler::ReplicaReport| r.beat.state == Serving::Damaged;
                report.replicas.values().filter(damaged).count()
            });
            listed.push(json!({
                "id": id.to_string(),
                "role": node.entry.role,
                "state": state,
                "since_ms": node.since_ms,
                "http": node.entry.http,
                "pg": node.entry.pg,
                "grpc": node.entry.grpc,
                "labels": node.entry.labels,
                "shards": leads + follows,
                "leads": leads,
                "follows": follows,
                "damaged": damaged,
                "cores": node.report.as_ref().map(|r| r.cores),
                "reaches_log": node.report.as_ref().map(|r| r.reaches_log),
                "load": load,
                "release": node.entry.release,
                "started_ms": node.entry.started_ms,
            }));
        }
        listed.extend(missing_nodes(&held, |id| look.nodes.contains_key(id)));
        listed.extend(schedulers(&snapshot));
        Ok((StatusCode::OK, listed.into()))
    }
}

fn ended_as(ended: &Procedure) -> Said {
    let body = shown(ended, None);
    let refused =
        |code, why: String| Err(ApiError::new(StatusCode::CONFLICT, code, Retry::Safe, why));
    let id = ended.id;
    match ended.state {
        State::Done | State::Running => Ok((StatusCode::OK, body)),
        State::Failed => {
            let error = ended
                .outcome
                .error
                .as_deref()
                .unwrap_or("no reason is known");
            refused(
                "procedure_failed",
                format!("procedure {id} failed: {error}"),
            )
        }
        State::Overtaken => refused(
            "procedure_overtaken",
            format!(
                "procedure {id}: the shard's leader changed meanwhile; look at it and decide anew"
            ),
        ),
        State::Cancelled => refused(
            "procedure_cancelled",
            format!("procedure {id} was called off, and what it had done was undone"),
        ),
    }
}
