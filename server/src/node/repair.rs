//! What operators order about a shard whose log is damaged or lost (`docs/decisions/0013`).
//!
//! - **skip-record**: the replicas that are heard of tell where they stand. One that has passed the
//!   place read the record before it was damaged: it leads, what it has goes into files, and nothing
//!   is lost. Only where nobody has, one of those that stand there leads from behind the damage.
//! - **adopt-log**: the replica that has read most leads with a new log, with all rows that it has.
//!
//! Either is a compare-and-swap of the assignment, as a promotion is, then an order to the new
//! leader, which publishes a manifest. The others find that in the store, by the new assignment or
//! by looking now and then. Without `accept_loss` nothing is changed and the answer says the price.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shoal_engine::{GiveUp, Halt, HaltKind, Loss, Repaired, ShardStatus};
use shoal_meta::Assignment;
use shoal_types::{NodeId, Offset, ShardId};

use super::orders::{OrderError, Orders, another_kind, rounded_ms};
use super::roles::Repair;
use super::wire::{Answer, Ask};

/// How long a node may take to repair a shard.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(120);

/// What was done, or would be.
#[derive(Clone, Debug, Serialize)]
pub struct RepairReport {
    /// `done`, or `refused`: nothing was changed because the loss was not accepted.
    pub state: &'static str,
    /// `skip-record` or `adopt-log`.
    pub order: &'static str,
    /// The shard.
    pub shard: ShardId,
    /// The node that leads it now, or would.
    pub node: String,
    /// What is lost, in words; of a refused order: would be.
    pub price: String,
    /// Positions given up, from and to; `None`: none.
    pub lost: Option<(Offset, Offset)>,
    /// Of a lost log: everything below this position is in files, whatever happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay_offset: Option<Offset>,
    /// Of a lost log: one past the last position that any replica which answers has applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_up_to: Option<Offset>,
    /// The manifest that says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<u64>,
    /// The leader's epoch; absent: it does not lead yet, which is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
    /// The trace in the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<Loss>,
    /// From the order until the new leader served.
    pub took_ms: f64,
}

impl RepairReport {
    /// Nothing was changed yet.
    #[must_use]
    pub fn refused(order: &'static str, shard: ShardId, node: String, price: String) -> Self {
        Self {
            state: "refused",
            order,
            shard,
            node,
            price,
            lost: None,
            replay_offset: None,
            read_up_to: None,
            manifest: None,
            epoch: None,
            trace: None,
            took_ms: 0.0,
        }
    }

    /// It was done.
    #[must_use]
    pub fn done(mut self, done: Repaired, begun: Instant) -> Self {
        self.state = "done";
        self.lost = done.loss.as_ref().map(|loss| (loss.from, loss.to));
        self.manifest = Some(done.manifest);
        self.epoch = done.epoch.map(|epoch| epoch.to_string());
        self.trace = done.loss;
        self.took_ms = rounded_ms(begun.elapsed());
        self
    }
}

/// What an operator asks for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Accepting {
    /// Whether the loss is accepted.
    pub accept_loss: bool,
    /// Why, in the operator's words.
    pub reason: String,
}

impl Accepting {
    /// As the engine takes it.
    #[must_use]
    pub fn give_up(&self) -> GiveUp {
        GiveUp {
            reason: self.reason.clone(),
            term_min: 0,
        }
    }
}

/// What going on behind damage costs, in words.
#[must_use]
pub fn price_of_skipping(halt: &Halt) -> String {
    let end = halt.end.unwrap_or(halt.at.next());
    let lost = if end.0 > halt.at.0 + 1 {
        format!("the records at positions {} to {}", halt.at, end.0 - 1)
    } else {
        format!("the record at position {}", halt.at)
    };
    let remains = halt.remains.as_ref().map_or_else(
        || "what it was cannot be told".to_owned(),
        |remains| format!("it says of itself, as far as can be read: {remains}"),
    );
    format!(
        "{lost} ({}: {}); {remains}. If it held rows, they are lost though they may have been acknowledged; if a change of columns, so are rows that use them; if a claim, rows may come twice that their writer was told were not written",
        halt.place, halt.what
    )
}

/// A node's replica of one shard.
struct Told {
    node: NodeId,
    status: ShardStatus,
}

impl Told {
    fn halt(&self) -> Option<&Halt> {
        self.status.halted.as_ref()
    }

    /// One past the last position applied; 0 of a replica that is not open.
    fn passed(&self) -> Offset {
        match self.halt() {
            Some(halt) => halt.at,
            None if self.status.role == "none" => Offset(0),
            None => self.status.position.next(),
        }
    }
}

impl Orders {
    /// The replicas that answer, and the nodes that do not.
    async fn heard_of(
        &self,
        assignment: &Assignment,
        shard: ShardId,
    ) -> Result<(Vec<Told>, Vec<NodeId>), OrderError> {
        let nodes = assignment.leader.iter().chain(&assignment.followers);
        let (mut told, mut silent) = (Vec::new(), Vec::new());
        for node in nodes {
            let status = match self.replicas(*node).await {
                Ok(mut replicas) => replicas.remove(&shard),
                Err(_) => None,
            };
            match status {
                Some(status) => told.push(Told {
                    node: *node,
                    status: serde_json::from_value(status)
                        .map_err(|e| OrderError::Invalid(format!("node {node}: {e}")))?,
                }),
                None => silent.push(*node),
            }
        }
        Ok((told, silent))
    }

    /// Gives a node the lead, in a new term.
    async fn lead(&self, shard: ShardId, node: NodeId) -> Result<Assignment, OrderError> {
        self.reassign(shard, |old| {
            let mut followers = old.followers.clone();
            followers.retain(|follower| *follower != node);
            followers.extend(old.leader.filter(|leader| *leader != node));
            Ok(Some(Assignment {
                term: old.term + 1,
                leader: Some(node),
                predecessor: None,
                followers,
                ..old.clone()
            }))
        })
        .await
    }

    async fn repair(
        &self,
        shard: ShardId,
        node: NodeId,
        repair: Repair,
    ) -> Result<Repaired, OrderError> {
        let assignment = self.lead(shard, node).await?;
        if node == self.me {
            return Ok(self.roles.repair(shard, &assignment, repair).await?);
        }
        let ask = match repair {
            Repair::Skip { at, skip, by } => Ask::SkipRecord {
                shard,
                assignment,
                at,
                skip,
                by,
            },
            Repair::Adopt { above, by } => Ask::AdoptLog {
                shard,
                assignment,
                above,
                by,
            },
        };
        match self.ask(node, &ask, REPAIR_TIMEOUT).await? {
            Answer::Repaired(done) => Ok(*done),
            _ => another_kind(),
        }
    }

    /// Goes on behind damaged records.
    ///
    /// # Errors
    /// [`OrderError::Invalid`]: the shard is not damaged, or not there (the text says where).
    pub async fn skip_record(
        &self,
        shard: ShardId,
        at: Offset,
        accepting: &Accepting,
    ) -> Result<RepairReport, OrderError> {
        let begun = Instant::now();
        let assignment = self.assignment(shard).await?;
        let (told, silent) = self.heard_of(&assignment, shard).await?;
        let damaged = |told: &&Told| told.halt().is_some_and(|h| h.kind == HaltKind::Damaged);
        let places: Vec<&Halt> = told.iter().filter(damaged).filter_map(Told::halt).collect();
        if places.is_empty() {
            let other = told.iter().find_map(Told::halt);
            return Err(OrderError::Invalid(match other {
                Some(halt) => format!("shard {shard} is not damaged: {halt}"),
                None => format!("shard {shard} is not damaged: nothing was changed"),
            }));
        }
        let Some(here) = told.iter().find(|t| t.halt().is_some_and(|h| h.at == at)) else {
            let mut right: Vec<String> = places.iter().map(|h| h.at.to_string()).collect();
            right.dedup();
            return Err(OrderError::Invalid(format!(
                "no replica of shard {shard} stands at position {at}; the damage is at {}: {}",
                right.join(" and "),
                places[0]
            )));
        };
        // Of those that have passed it, one that serves still is best, then the one that is furthest.
        let passed = told.iter().filter(|t| t.passed() > at);
        if let Some(saver) = passed.max_by_key(|t| (t.halt().is_none(), t.passed())) {
            return self.save(shard, at, saver, accepting, begun).await;
        }
        let halt = here
            .halt()
            .ok_or_else(|| OrderError::Invalid("it is not damaged".into()))?;
        let mut price = price_of_skipping(halt);
        if !silent.is_empty() {
            let silent: Vec<String> = silent.iter().map(ToString::to_string).collect();
            price.push_str(&format!(
                ". Of the replicas at {} nothing is heard: one that runs may have read the record before it was damaged; then nothing is lost if it answers first",
                silent.join(", ")
            ));
        }
        let leader = told.iter().find(|t| Some(t.node) == assignment.leader);
        let leader = leader.filter(|t| t.halt().is_some_and(|h| h.at == at));
        let node = leader.unwrap_or(here).node;
        let mut report = RepairReport::refused("skip-record", shard, node.to_string(), price);
        report.lost = Some((at, halt.end.unwrap_or(at.next())));
        if !accepting.accept_loss {
            return Ok(report);
        }
        let by = accepting.give_up();
        let repair = Repair::Skip { at, skip: true, by };
        let done = self.repair(shard, node, repair).await?;
        Ok(report.done(done, begun))
    }

    /// Has a replica that passed the damage lead, with everything it has in files.
    async fn save(
        &self,
        shard: ShardId,
        at: Offset,
        saver: &Told,
        accepting: &Accepting,
        begun: Instant,
    ) -> Result<RepairReport, OrderError> {
        let price = format!(
            "nothing: the replica at node {} read position {at} before it was damaged",
            saver.node
        );
        let mut report = RepairReport::refused("skip-record", shard, saver.node.to_string(), price);
        if !accepting.accept_loss {
            return Ok(report);
        }
        if let Some(halt) = saver.halt() {
            let repair = Repair::Skip {
                at: halt.at,
                skip: false,
                by: accepting.give_up(),
            };
            let done = self.repair(shard, saver.node, repair).await?;
            return Ok(report.done(done, begun));
        }
        if self.assignment(shard).await?.leader != Some(saver.node) {
            report.epoch = self.promote(shard, Some(saver.node)).await?.epoch;
        }
        if saver.node == self.me {
            report.manifest = Some(self.db.flush_beyond(shard, at).await?);
        } else {
            let ask = Ask::FlushBeyond { shard, offset: at };
            self.ask(saver.node, &ask, REPAIR_TIMEOUT).await?;
        }
        report.state = "done";
        report.took_ms = rounded_ms(begun.elapsed());
        Ok(report)
    }

    /// Goes on with a new log.
    ///
    /// # Errors
    /// [`OrderError::Invalid`]: the log is in order.
    pub async fn adopt_log(
        &self,
        shard: ShardId,
        accepting: &Accepting,
    ) -> Result<RepairReport, OrderError> {
        let begun = Instant::now();
        let assignment = self.assignment(shard).await?;
        let (told, silent) = self.heard_of(&assignment, shard).await?;
        let furthest = told.iter().max_by_key(|t| {
            let leads = Some(t.node) == assignment.leader;
            (t.passed(), leads)
        });
        let Some(furthest) = furthest else {
            return Err(OrderError::Unavailable(format!(
                "no node that has a replica of shard {shard} is heard of; start one, or `shoal admin shard promote {shard} --to NODE` names another"
            )));
        };
        let node = furthest.node;
        let found = if node == self.me {
            self.db.examine_log(shard).await?
        } else {
            match self
                .ask(node, &Ask::ExamineLog { shard }, REPAIR_TIMEOUT)
                .await?
            {
                Answer::Log(found) => *found,
                _ => return another_kind(),
            }
        };
        let Some(lost) = &found.lost else {
            return Err(OrderError::Invalid(
                match told.iter().find_map(Told::halt) {
                    Some(halt) => format!("the log of shard {shard} is not lost: {halt}"),
                    None => format!("the log of shard {shard} is in order: nothing was changed"),
                },
            ));
        };
        let passed = furthest.passed();
        let mut price = price_of_adopting(lost, found.replay_offset, passed);
        if !silent.is_empty() {
            let silent: Vec<String> = silent.iter().map(ToString::to_string).collect();
            price.push_str(&format!(
                ". Of the replicas at {} nothing is heard: one that runs may have more in memory; wait for it, if it can be had",
                silent.join(", ")
            ));
        }
        let mut report = RepairReport::refused("adopt-log", shard, node.to_string(), price);
        report.replay_offset = Some(found.replay_offset);
        report.read_up_to = Some(passed);
        if !accepting.accept_loss {
            return Ok(report);
        }
        let repair = Repair::Adopt {
            above: passed,
            by: accepting.give_up(),
        };
        let done = self.repair(shard, node, repair).await?;
        Ok(report.done(done, begun))
    }
}

/// What going on with a new log costs, in words.
#[must_use]
pub fn price_of_adopting(lost: &str, replay_offset: Offset, passed: Offset) -> String {
    let kept = replay_offset.max(passed);
    let saved = if passed > replay_offset {
        format!("a replica has everything below position {passed}, which is saved")
    } else {
        "no replica that answers has more in memory".to_owned()
    };
    format!(
        "{lost}. Everything below position {replay_offset} is in files; {saved}. What was acknowledged at position {kept} and above is lost, if anything was; session reads of it fail from then on; imports and write ids that only it held are taken for new"
    )
}
