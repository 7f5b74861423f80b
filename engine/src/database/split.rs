//! A shard in two (`shard/split.rs`): which units go, and when it is done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_types::{ProcedureId, ShardId, TableId};
use tokio::time::Instant;

use super::slots::Slot;
use super::{Database, Role, Served, Shared};
use crate::background::to_the_end;
use crate::shard::Shard;
use crate::shard::split::SplitSoFar;
use crate::{EngineError, WriteError};

/// How often it is looked whether a new shard can be asked.
const LOOK: Duration = Duration::from_millis(5);
/// How long a split is tried while the shard's leader changes.
const SPLIT_WAIT: Duration = Duration::from_secs(60);

/// An order to split a shard: given again, it does the same once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitOrder {
    /// Tells the order from others.
    pub procedure: ProcedureId,
    /// What goes.
    pub what: SplitOff,
}

/// What of a shard goes to a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SplitOff {
    /// These units (a table that has no partitions is one with the table's id).
    Units(Vec<TableId>),
    /// About half of the rows. If most are in one unit, that is cut in two where it is before.
    Half,
}

impl Database {
    /// Gives units of a shard to a new shard, which the same nodes serve; returns it once it can be
    /// written and read. No file is copied.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: there is nothing that could go, or something is not there (any more).
    /// [`WriteError::OutcomeUnknown`]: it was not done in time; if it is decided it goes on by itself.
    pub async fn split_shard(
        &self,
        shard: ShardId,
        what: SplitOff,
    ) -> Result<ShardId, EngineError> {
        let deadline = Instant::now() + SPLIT_WAIT;
        let mut order = SplitOrder {
            procedure: ProcedureId::generate(),
            what,
        };
        let child = loop {
            let done = self.shared.of_leader(
                shard,
                |_| self.split_shard_here(shard, order.clone()),
                |peers| {
                    let order = order.clone();
                    async move { peers.split_shard(shard, order).await }
                },
            );
            let error = match done.await {
                Ok(child) => break child,
                Err(error) => error,
            };
            let leader_changes = self.shared.peers().is_some() && is_of_leaders(&error);
            if !leader_changes || Instant::now() >= deadline {
                return Err(error);
            }
            // The same order once more does the same once, whoever leads by then.
            if let EngineError::Write(WriteError::Overloaded(_)) = &error {
                order.procedure = ProcedureId::generate();
            }
            tracing::debug!(%shard, %error, "not split yet");
            tokio::time::sleep(LOOK).await;
        };
        self.shared.is_settled(child).await?;
        Ok(child)
    }

    /// As [`Self::split_shard`], of a shard that this process leads; returns once it is decided.
    ///
    /// # Errors
    /// As [`Self::split_shard`]; `NotLeader`.
    pub async fn split_shard_here(
        &self,
        shard: ShardId,
        order: SplitOrder,
    ) -> Result<ShardId, EngineError> {
        let led = self.shared.led_here(shard)?;
        to_the_end(async move {
            let _one = led.splitting.lock().await;
            let procedure = order.procedure;
            match led.split_off_by(procedure).await? {
                SplitSoFar::Done(child) => return Ok(child),
                SplitSoFar::CalledOff => {
                    return Err(WriteError::Overloaded(format!(
                        "the split of shard {shard} was called off, for its leader changed; nothing was done"
                    ))
                    .into());
                }
                SplitSoFar::Open => {}
            }
            let units = match order.what {
                SplitOff::Units(units) => units,
                SplitOff::Half => led.half().await?,
            };
            led.split(procedure, &units).await
        })
        .await
    }
}

/// Whether an order has met a change of leaders: given again it may be carried out.
fn is_of_leaders(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::ShardUnavailable { .. }
            | EngineError::Write(
                WriteError::NotLeader { .. }
                    | WriteError::Overloaded(_)
                    | WriteError::OutcomeUnknown(_)
                    | WriteError::ShardUnavailable { .. }
            )
    )
}

impl Database {
    /// Whether the cluster has a shard. When this returns, the catalog here names it as the place of
    /// all units that somebody may have written to there.
    ///
    /// # Errors
    /// Meta's, where it must be asked.
    pub async fn learn_shard(&self, shard: ShardId) -> Result<bool, EngineError> {
        let (shared, catalog) = (&self.shared, &self.shared.env.catalog);
        let is_known = catalog.shard(shard).is_some_and(|entry| entry.is_settled());
        if is_known && shared.slots.contains(shard) {
            return Ok(true);
        }
        let entry = catalog.reload_shard(shard).await?;
        if !entry.is_some_and(|entry| entry.is_born()) {
            return Ok(false);
        }
        catalog.sync().await?;
        if !shared.slots.contains(shard) {
            shared.slots.add(shared.new_slot(shard));
        }
        Ok(true)
    }
}

impl Shared {
    /// Waits until a new shard is named by meta as the place of its units.
    async fn is_settled(&self, child: ShardId) -> Result<(), EngineError> {
        let deadline = Instant::now() + self.patience();
        loop {
            let entry = self.env.catalog.reload_shard(child).await?;
            if entry.is_some_and(|entry| entry.is_settled()) {
                return Ok(self.env.catalog.sync().await?);
            }
            if Instant::now() >= deadline {
                return Err(WriteError::OutcomeUnknown(format!(
                    "shard {child} is split off and not led yet; it goes on by itself"
                ))
                .into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes places for shards that came into being.
    pub(super) fn meet_shards(&self) {
        let catalog = &self.env.catalog;
        if catalog.shards_count() == self.slots.len() {
            return;
        }
        for (id, entry) in catalog.shards() {
            if entry.is_born() && !self.slots.contains(id) {
                self.slots.add(self.new_slot(id));
            }
        }
    }

    /// The place of a shard that this process has just heard of.
    pub(super) fn new_slot(&self, id: ShardId) -> Slot {
        if self.env.peers.is_some() {
            return Slot::new(id, Role::None, Served::NotPlaced);
        }
        let soon = Served::Unavailable {
            why: "it is about to be opened".into(),
            try_again: true,
        };
        Slot::new(id, Role::Leader, soon)
    }
}

impl Shard {
    /// Units with about half of the shard's rows.
    async fn half(self: &Arc<Self>) -> Result<Vec<TableId>, EngineError> {
        let mut weights = self.weights();
        weights.sort_unstable_by_key(|(unit, rows)| (std::cmp::Reverse(*rows), *unit));
        let all: u64 = weights.iter().map(|(_, rows)| rows).sum();
        let Some((largest, rows)) = weights.first().copied() else {
            return Err(EngineError::Invalid("the shard holds no tables".into()));
        };
        // Three quarters with one of them is no half.
        if weights.len() == 1 || rows > all - all / 4 {
            let right = TableId::generate();
            let cut = self.cut_unit(largest, None, right, None).await;
            match cut {
                Ok(()) => return Ok(vec![right]),
                Err(error) if weights.len() == 1 => return Err(error),
                // A single hot key: the others leave it alone.
                Err(_) => {}
            }
        }
        let (mut stays, mut goes) = (0, 0);
        let mut going = BTreeSet::new();
        for (unit, rows) in &weights {
            if goes < stays {
                goes += rows;
                going.insert(*unit);
            } else {
                stays += rows;
            }
        }
        if going.is_empty() {
            // All of it is empty, or in the first.
            going.extend(weights.iter().skip(1).map(|(unit, _)| *unit));
        }
        Ok(going.into_iter().collect())
    }

    /// Rows of every unit, as far as counts tell.
    fn weights(&self) -> Vec<(TableId, u64)> {
        let state = self.state.read();
        let weight = |schema: &Arc<shoal_types::TableSchema>| {
            let shown = state.shown(schema.table, schema);
            let files: u64 = shown.files.iter().map(|f| f.rows).sum();
            let memory: u64 = shown.memory.iter().map(|m| m.rows() as u64).sum();
            (schema.table, files + memory)
        };
        state.fold.schemas().map(weight).collect()
    }
}
