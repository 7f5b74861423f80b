//! One open shard: its log, its fold, its rows in memory and its files.
//!
//! ```text
//!  write() ─► write.rs ──append──► log ──► apply.rs ──fold──► state.rs (rows in memory)
//!                 ▲                            │ verdicts          │ freeze
//!                 └────────────────────────────┘                   ▼
//!                                     publish.rs ◄── flush.rs, compact.rs, gc.rs
//! ```
//!
//! - `open.rs`: opening as follower; `promote.rs`: becoming leader, and ceasing to be it;
//!   `follow.rs`: switching to manifests that another leader published; `barrier.rs`: reads that
//!   are as fresh as they were asked to be.
//! - `halt.rs`: what a replica does that cannot read its log any further; `skip.rs`, `adopt.rs`: what
//!   an operator does then.
//! - `write.rs`: from a request to a record in flight; `claim.rs`: what follows a failed delivery.
//! - `apply.rs`: the one reader of the log; `state.rs`: what an applied record changes.
//! - `publish.rs`: one manifest at a time, announced through the log; `flush.rs`, `compact.rs`,
//!   `gc.rs`, `trim.rs`: what is published and what may go afterwards.

pub(crate) mod adopt;
pub(crate) mod apply;
pub(crate) mod barrier;
pub(crate) mod claim;
pub(crate) mod compact;
pub(crate) mod confirmed;
pub(crate) mod departed;
pub(crate) mod entry;
pub(crate) mod flush;
pub(crate) mod follow;
pub(crate) mod gc;
pub(crate) mod halt;
pub(crate) mod layouts;
pub(crate) mod open;
pub(crate) mod parts;
pub(crate) mod pins;
pub(crate) mod promote;
pub(crate) mod publish;
pub(crate) mod recut;
pub(crate) mod relatives;
pub(crate) mod residue;
pub(crate) mod skip;
pub(crate) mod split;
pub(crate) mod state;
pub(crate) mod trim;
pub(crate) mod warm;
pub(crate) mod write;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use shoal_types::{Epoch, Offset, ShardId, TableId, TableSchema};
use shoal_wal::log::Log;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::compaction::SstProducer;
use crate::env::Env;
use crate::manifest::Chain;
use crate::served_by::ServedBy;
use crate::{EngineError, ReadLevel, ReadView};
use barrier::Barriers;
use halt::Halted;
use pins::{Pins, Producing, Production};
use publish::Publishing;
use state::ShardState;
use write::Pipeline;

/// Why a shard is not served any more.
#[derive(Clone, Debug)]
pub(crate) enum Stopped {
    /// Damage or loss: only an operator can help.
    Failed(String),
    /// It must be opened again from the newest manifest.
    Reopen(String),
    /// The process is shutting down.
    Closed,
}

impl Stopped {
    pub(crate) fn why(&self) -> String {
        match self {
            Self::Failed(why) | Self::Reopen(why) => why.clone(),
            Self::Closed => "it is being closed".to_owned(),
        }
    }
}

/// One open shard.
pub(crate) struct Shard {
    pub id: ShardId,
    pub env: Arc<Env>,
    pub chain: Chain,
    pub log: Arc<dyn Log>,
    pub state: RwLock<ShardState>,
    /// One past the last offset applied.
    pub applied: watch::Sender<Offset>,
    /// Whether it has applied what was in the log when it was opened.
    pub caught_up: watch::Sender<bool>,
    pub barriers: Barriers,
    /// Told when an applied record named a manifest that is not in force.
    pub named: Notify,
    pub pipeline: Pipeline,
    pub publishing: tokio::sync::Mutex<Publishing>,
    pub pins: Arc<Pins>,
    /// Flushes and compactions under way: what they write is named by no manifest yet.
    pub production: Arc<Production>,
    /// Tables whose files changed since compaction last looked at them.
    pub compactable: Mutex<HashSet<TableId>>,
    /// The tasks that read the log and wait for deliveries.
    pub tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
    pub stop: CancellationToken,
    stopped: Mutex<Option<Stopped>>,
    /// Held from applying records until all who wait for them are told. Taken before `state`.
    pub telling: Mutex<()>,
    /// Why it reads its log no further and goes on to show what it has.
    pub halted: Halted,
    /// A flush must bring the replay offset beyond this.
    pub flush_past: Mutex<Option<Offset>>,
    /// Another leader took over; this replica leads again only when it is told to.
    pub deposed: AtomicBool,
    pub counters: Counters,
    /// Held from choosing what to split off until that is decided.
    pub splitting: tokio::sync::Mutex<()>,
    /// Names that partitions about to be made are to have.
    pub part_names: Mutex<HashMap<TableId, String>>,
    /// The last failure of background work, until it succeeds again.
    pub trouble: Mutex<Option<String>>,
}

/// Counts since the shard was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub rows_applied: AtomicU64,
    pub bytes_applied: AtomicU64,
    pub records_applied: AtomicU64,
    pub foreign_records: AtomicU64,
    pub claims: AtomicU64,
    pub flushes: AtomicU64,
    pub flushed_bytes: AtomicU64,
    pub compactions: AtomicU64,
    pub compacted_bytes: AtomicU64,
    pub collected_objects: AtomicU64,
    pub recuts: AtomicU64,
    pub splits: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

impl Shard {
    /// Stops the shard for good; the first reason counts. Rows in flight are answered as far as
    /// their outcome is certain.
    pub(crate) fn stop(&self, reason: Stopped) {
        {
            let mut stopped = self.stopped.lock();
            if stopped.is_some() {
                return;
            }
            match &reason {
                Stopped::Closed => tracing::debug!(shard = %self.id, "shard closed"),
                other => {
                    tracing::error!(shard = %self.id, why = %other.why(), "shard is not served any more");
                }
            }
            *stopped = Some(reason.clone());
        }
        self.pipeline.stop(&reason);
        self.stop.cancel();
        let held = self.state.write().drop_rows();
        self.env.memory.change(held.bytes, 0);
    }

    /// Why it stopped; `None`: it has not.
    pub(crate) fn stopped(&self) -> Option<Stopped> {
        self.stopped.lock().clone()
    }

    pub(crate) fn unavailable(&self) -> EngineError {
        EngineError::ShardUnavailable {
            shard: self.id,
            why: match (self.stopped(), self.halted.why()) {
                (Some(stopped), _) => stopped.why(),
                (None, Some(halt)) => halt.to_string(),
                (None, None) => "it is being opened".to_owned(),
            },
        }
    }

    /// Waits until the tasks of a stopped shard have ended.
    pub(crate) async fn join(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // One that panicked has said so; there is nothing left to wait for.
            let _ = task.await;
        }
    }

    /// Begins to write objects that no manifest names yet.
    pub(crate) fn produce(&self) -> Producing {
        self.production.begin()
    }

    /// What writes this shard's files.
    pub(crate) fn producer(&self) -> SstProducer {
        self.producer_in(self.epoch().term)
    }

    /// As [`Self::producer`], with a term of its own in the names.
    pub(crate) fn producer_in(&self, term: u64) -> SstProducer {
        SstProducer::new(
            &self.env.config,
            Arc::clone(&self.env.sst),
            self.chain.layout.clone(),
            self.id,
            term,
            Arc::clone(&self.env.compaction_budget),
            self.env.predicate.clone(),
        )
    }

    /// Whether this replica leads, or is about to.
    pub(crate) fn leads(&self) -> bool {
        self.pipeline.leads()
    }

    /// Whether a tenure ended though no other leader took over.
    pub(crate) fn has_lost_its_lead(&self) -> bool {
        !self.leads() && !self.is_deposed()
    }

    /// Whether another replica took over: leading again takes an order to.
    pub(crate) fn is_deposed(&self) -> bool {
        self.deposed.load(Ordering::Relaxed)
    }

    /// Has it follow until it is told to lead.
    pub(crate) fn depose(&self) {
        self.deposed.store(true, Ordering::Relaxed);
    }

    /// How long a record that this shard itself sends is waited for.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(self.env.config.write_timeout_ms)
    }

    /// The current epoch of this leader; of its last tenure, while it follows.
    pub(crate) fn epoch(&self) -> Epoch {
        self.pipeline.epoch()
    }

    /// The schema of a table as of now.
    pub(crate) fn schema(&self, table: TableId) -> Option<Arc<TableSchema>> {
        self.state.read().fold.schema(table).cloned()
    }

    /// Waits until everything below `end` is applied.
    ///
    /// # Errors
    /// The shard stopped, or reads no further.
    pub(crate) async fn wait_applied(&self, end: Offset) -> Result<(), EngineError> {
        let mut applied = self.applied.subscribe();
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(self.unavailable()),
            // What is there already is there, whatever happened since.
            () = self.halted.happened(), if *self.applied.borrow() < end => {
                Err(self.unavailable())
            }
            reached = applied.wait_for(|next| *next >= end) => match reached {
                Ok(_) => Ok(()),
                Err(_) => Err(self.unavailable()),
            },
        }
    }

    /// Follows the log up to where it ends now; until then `caught_up` is unset.
    pub(crate) fn begin_to_catch_up(self: &Arc<Self>) {
        self.caught_up.send_replace(false);
        let shard = Arc::clone(self);
        let task = tokio::spawn(async move {
            // A log that is away, or cannot be read on: nobody knows better than this replica.
            if let Ok((_, end)) = shard.log.bounds().await {
                let _ = shard.wait_applied(end).await;
            }
            shard.caught_up.send_replace(true);
        });
        self.tasks.lock().push(task);
    }

    /// Views of some tables, all at one position, at least as fresh as `level` asks.
    ///
    /// # Errors
    /// The shard stopped, a table is not there, or the level cannot be had within `patience`.
    pub(crate) async fn views_of(
        self: &Arc<Self>,
        tables: &[TableId],
        level: &ReadLevel,
        patience: Duration,
    ) -> Result<Vec<ReadView>, EngineError> {
        self.reach(level, patience).await?;
        let state = self.readable()?;
        let view = |table: &TableId| match state.fold.schema(*table).cloned() {
            Some(schema) => Ok(self.view_of(&state, schema)),
            None => Err(EngineError::NotFound {
                what: "table",
                name: table.to_string(),
                nearest: None,
            }),
        };
        tables.iter().map(view).collect()
    }

    /// As [`Self::views_of`], of every table that has rows, ascending by id, all at one position; the
    /// position. Takes memory in proportion to the number of tables and files.
    ///
    /// # Errors
    /// The shard stopped.
    pub(crate) async fn views(
        self: &Arc<Self>,
        level: &ReadLevel,
        patience: Duration,
    ) -> Result<(Offset, Vec<ReadView>), EngineError> {
        self.reach(level, patience).await?;
        let state = self.readable()?;
        let mut schemas: Vec<_> = state.fold.schemas().cloned().collect();
        schemas.sort_unstable_by_key(|s| s.table);
        let views = schemas
            .into_iter()
            .map(|schema| self.view_of(&state, schema))
            .filter(|view| !view.files.is_empty() || view.memory.iter().any(|m| m.rows() > 0))
            .collect();
        Ok((position(&state), views))
    }

    fn readable(&self) -> Result<RwLockReadGuard<'_, ShardState>, EngineError> {
        let state = self.state.read();
        // Under the lock: a stop is noted before it takes the rows out, so that a view without
        // them is never handed out.
        if self.stopped().is_some() {
            drop(state);
            return Err(self.unavailable());
        }
        Ok(state)
    }

    fn view_of(&self, state: &ShardState, schema: Arc<TableSchema>) -> ReadView {
        let shown = state.shown(schema.table, &schema);
        ReadView {
            bounds: state.fold.bounds(schema.table).cloned(),
            schema,
            shard: self.id,
            epoch: state.fold.claim().0,
            position: position(state),
            served_by: ServedBy {
                node: self.env.peers.as_ref().map(|peers| peers.me()),
                leader: self.leads(),
            },
            memory: shown.memory,
            files: shown.files,
            deletes: shown.deletes,
            predicate: self.env.predicate.clone(),
            _pin: Some(Arc::new(self.pins.pin(state.manifest.version()))),
        }
    }
}

/// The last offset applied.
pub(crate) fn position(state: &ShardState) -> Offset {
    Offset(state.fold.next_offset().0.saturating_sub(1))
}

impl Drop for Shard {
    fn drop(&mut self) {
        // What was applied between the stop and the reader's end.
        self.env.memory.change(self.state.get_mut().memory_bytes, 0);
    }
}
