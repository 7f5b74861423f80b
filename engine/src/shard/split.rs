//! A shard gives units to a new one (PROTOCOLS §5, `docs/decisions/0018`).
//!
//! Order: prepare the child: its entry in meta, which nobody may open yet, and its log → flush, so
//! that few rows are in memory → `Split` in this shard's log: the commit point → the rows in memory
//! become the child's first files, and its first manifest names them beside the parent's files
//! (put if absent: whoever leads the parent may do it, the first counts) → meta says that it may be
//! opened, and by whom. The child's leader tells meta which units it has (`layouts.rs`).
//!
//! Until the child has its first manifest, this shard publishes none with a replay offset above the
//! `Split`, so that whoever leads it next finds the record and does the same. No file is copied.
//!
//! What a crash leaves: before `Split`, a prepared child, which the next leader decides against
//! (`Abort` in this log, so that a late `Split` finds it decided) and removes. After it, a child to be
//! born by whoever leads.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use shoal_meta::{Birth, BirthStage, MetaError, ShardEntry};
use shoal_types::{Offset, ProcedureId, ShardId, TableId, WriterId};
use shoal_wal::fold::Decision;
use shoal_wal::record::{Move, Payload, Split};
use uuid::Uuid;

use super::adopt::chain_of;
use super::departed::Inheritance;
use super::open::newest_of;
use super::publish::Publishing;
use super::state::{FrozenTable, Released};
use super::{Counters, Shard, Stopped, position};
use crate::env::PreparedLog;
use crate::manifest::format::{Edit, FileEntry, TableEdit};
use crate::manifest::publish::{PublishError, prepare, publish};
use crate::manifest::{Chain, ManifestState};
use crate::{EngineError, WriteError};

/// Files of a new shard that are written at the same time: they are small, and writers wait.
const FIRST_FILES_AT_ONCE: usize = 16;
/// Tries against others who change the same entry of meta.
const TRIES: usize = 16;

/// What came of a procedure.
pub(crate) enum SplitSoFar {
    /// Nothing is decided.
    Open,
    /// The new shard.
    Done(ShardId),
    /// It was decided against.
    CalledOff,
}

impl Shard {
    /// Gives units to a new shard; returns it once that is decided. Meta and the child's leader may
    /// not know yet.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: a unit is not here (any more). Others: nothing is decided, unless the
    /// text says so.
    pub(crate) async fn split(
        self: &Arc<Self>,
        procedure: ProcedureId,
        units: &[TableId],
    ) -> Result<ShardId, EngineError> {
        // The most of what is in memory, while writes and other publishes go on.
        self.flush().await?;
        let mut publishing = self.publishing.lock().await;
        self.settle(&mut publishing).await?;
        self.bear_children(&publishing.newest).await?;
        self.moves_of(units)?;
        let child = self.prepare_child(procedure).await?;
        let decided = self
            .decide_split(&mut publishing, procedure, child, units)
            .await;
        if let Err(error) = decided {
            // What came of the record is not known to us; the log says it.
            if let Err(error) = self.settle_births(&mut publishing).await {
                tracing::warn!(shard = %self.id, %child, %error, "a split that was not decided is not tidied up yet");
            }
            if !matches!(self.so_far(procedure), SplitSoFar::Done(_)) {
                return Err(error);
            }
        }
        tracing::info!(shard = %self.id, %child, units = units.len(), "split");
        Counters::add(&self.counters.splits, 1);
        // So that this shard does not hold on to what has left.
        *self.flush_past.lock() = Some(position(&self.state.read()));
        if let Err(error) = self.bear_children(&publishing.newest).await {
            tracing::warn!(shard = %self.id, %child, %error, "the new shard is not born yet, will be tried again");
            self.env.wake.notify_one();
        }
        Ok(child)
    }

    /// What came of a procedure so far. What an earlier leader began of it is brought to its end.
    ///
    /// # Errors
    /// As [`Self::go_on_with_births`].
    pub(crate) async fn split_off_by(
        &self,
        procedure: ProcedureId,
    ) -> Result<SplitSoFar, EngineError> {
        let begun = self.env.catalog.children_of(self.id);
        let of_procedure = |entry: &ShardEntry| {
            entry
                .birth
                .is_some_and(|birth| birth.procedure == procedure)
        };
        if begun
            .iter()
            .any(|(_, entry)| !entry.is_born() && of_procedure(entry))
        {
            self.go_on_with_births().await?;
        }
        Ok(self.so_far(procedure))
    }

    fn so_far(&self, procedure: ProcedureId) -> SplitSoFar {
        let state = self.state.read();
        match state.fold.decided(procedure).map(|d| d.decision) {
            Some(Decision::Split { child }) => SplitSoFar::Done(child),
            Some(_) => SplitSoFar::CalledOff,
            None => SplitSoFar::Open,
        }
    }

    fn moves_of(&self, units: &[TableId]) -> Result<Vec<Move>, EngineError> {
        let state = self.state.read();
        let gone = |unit: &&TableId| state.fold.schema(**unit).is_none();
        if units.is_empty() || units.iter().any(|unit| gone(&unit)) {
            return Err(EngineError::Invalid(
                "what the shard holds has changed; look again".into(),
            ));
        }
        let whole = |unit: &TableId| Move {
            unit: *unit,
            cut: None,
        };
        Ok(units.iter().map(whole).collect())
    }

    async fn prepare_child(&self, procedure: ProcedureId) -> Result<ShardId, EngineError> {
        let child = ShardId::generate();
        let catalog = &self.env.catalog;
        let entry = ShardEntry {
            term: 0,
            created_ms: self.env.clock.now_ms(),
            log: None,
            birth: Some(Birth {
                parent: self.id,
                procedure,
                stage: BirthStage::Prepared,
            }),
        };
        // First, so that a log that is made and not noted is found again.
        catalog.put_shard(child, None, entry).await?;
        let id = self.env.logs.create(child).await?;
        let with_log = ShardEntry {
            log: Some(id),
            ..entry
        };
        catalog.put_shard(child, Some(entry), with_log).await?;
        let log = self.env.logs.open(child, id).await?;
        let reader = log.read(Offset(0)).await?;
        let mut prepared = self.env.prepared_logs.lock();
        // Those of splits that somebody else brought to their end.
        prepared.retain(|id, _| catalog.shard(*id).is_some_and(|entry| !entry.is_settled()));
        prepared.insert(child, PreparedLog { log, reader });
        Ok(child)
    }

    async fn decide_split(
        self: &Arc<Self>,
        publishing: &mut Publishing,
        procedure: ProcedureId,
        child: ShardId,
        units: &[TableId],
    ) -> Result<(), EngineError> {
        self.flush_held(publishing).await?;
        let moves = self.moves_of(units)?;
        let Some(manifest) = self.state.read().fold.manifest() else {
            return Err(self.unavailable());
        };
        let split = Split {
            procedure,
            manifest,
            child,
            moves,
        };
        self.submit(Payload::Split(split), Vec::new(), self.patience())
            .await?;
        Ok(())
    }

    /// Has every child born whose `Split` was applied here.
    ///
    /// # Errors
    /// The store's and meta's; the next call goes on. [`EngineError::ShardUnavailable`]: this replica
    /// must be opened again for it.
    pub(super) async fn bear_children(&self, newest: &ManifestState) -> Result<(), EngineError> {
        loop {
            // The child speaks of partitions that meta is to know then.
            self.tell_layouts().await?;
            let next = {
                let state = self.state.read();
                let next = state.departed.first();
                next.map(|d| (d.at, d.child))
            };
            let Some((at, child)) = next else {
                return Ok(());
            };
            self.bear(at, child, newest).await?;
            let (mut released, before, after) = {
                let mut state = self.state.write();
                let (mut released, before) = (Released::default(), state.memory_bytes);
                state.is_born(at, &mut released);
                (released, before, state.memory_bytes)
            };
            self.env.memory.change(before, after);
            released.tables.clear();
        }
    }

    async fn bear(
        &self,
        at: Offset,
        child: ShardId,
        newest: &ManifestState,
    ) -> Result<(), EngineError> {
        let chain = chain_of(&self.env, child);
        if chain.newest().await?.is_none() {
            self.publish_child(&chain, at, newest).await?;
        }
        self.tell_born(child).await
    }

    async fn tell_born(&self, child: ShardId) -> Result<(), EngineError> {
        self.rise_to(child, BirthStage::Born).await?;
        if let Some(peers) = &self.env.peers {
            peers.place_child(self.id, child).await?;
        }
        // A process that is alone opens it.
        self.env.wake.notify_one();
        tracing::info!(shard = %self.id, %child, "born");
        Ok(())
    }

    async fn publish_child(
        &self,
        chain: &Chain,
        at: Offset,
        newest: &ManifestState,
    ) -> Result<(), EngineError> {
        let inheritance = {
            let state = self.state.read();
            if state.manifest.replay_offset() != newest.replay_offset() {
                return Err(WriteError::Overloaded(format!(
                    "shard {}: the last flush's manifest is not in force yet",
                    self.id
                ))
                .into());
            }
            let departed = state.departed.iter().find(|d| d.at == at);
            departed.map(|d| d.inheritance(newest))
        };
        let Some(inheritance) = inheritance else {
            return Ok(());
        };
        let Some(inheritance) = inheritance else {
            let why = format!(
                "shard {} is to be born from rows that this replica has let go",
                chain.shard
            );
            self.stop(Stopped::Reopen(why));
            return Err(self.unavailable());
        };
        // What is written is named by nobody until the manifest is there.
        let producing = self.produce();
        let tables = self.first_files(&inheritance).await?;
        let base = newest_of(chain).await?;
        if base.hash != 0 {
            return Ok(());
        }
        let edit = Edit {
            fold: Some(inheritance.fold.edit_since(&base.fold)),
            tables,
            ..Edit::default()
        };
        let nobody = WriterId(Uuid::nil());
        let prepared = prepare(chain, &base, edit, 0, nobody, self.env.clock.now_ms())?;
        let published = publish(chain, &prepared).await;
        drop(producing);
        match published {
            Ok(()) => Ok(()),
            Err(PublishError::Undecided(e) | PublishError::Refused(e)) => Err(e),
            // Another leader of this shard was quicker, and saw the same.
            Err(_) => Ok(()),
        }
    }

    /// The files of every unit: those that it had, and new ones of what is in none.
    async fn first_files(
        &self,
        inheritance: &Inheritance,
    ) -> Result<Vec<(TableId, TableEdit)>, EngineError> {
        let (term, through) = (self.epoch().term, inheritance.through);
        let units = inheritance.units.iter();
        let rows: Vec<FrozenTable> = units.flat_map(|unit| unit.rows.iter().cloned()).collect();
        let written: Vec<(TableId, Vec<FileEntry>)> = futures::stream::iter(rows)
            .map(|rows| self.write_file(term, rows, None, through))
            .buffered(FIRST_FILES_AT_ONCE)
            .try_collect()
            .await?;
        let tables = inheritance.units.iter().map(|unit| {
            let mut add = unit.files.clone();
            let of_unit = written.iter().filter(|(id, _)| *id == unit.unit);
            add.extend(of_unit.flat_map(|(_, files)| files.iter().cloned()));
            let edit = TableEdit {
                deletes: Some(unit.deletes_of(&add)),
                add,
                ..TableEdit::default()
            };
            (unit.unit, edit)
        });
        let mut tables: Vec<_> = tables.collect();
        tables.sort_by_key(|(id, _)| *id);
        Ok(tables)
    }

    /// Notes in meta how far a shard's birth is, if it is not further.
    pub(super) async fn rise_to(
        &self,
        shard: ShardId,
        stage: BirthStage,
    ) -> Result<(), EngineError> {
        let catalog = &self.env.catalog;
        let mut known = catalog.shard(shard);
        for _ in 0..TRIES {
            let entry = match known {
                Some(entry) => entry,
                None => match catalog.reload_shard(shard).await? {
                    Some(entry) => entry,
                    None => {
                        return Err(EngineError::Invalid(format!(
                            "shard {shard} is not known to meta; restore meta"
                        )));
                    }
                },
            };
            let Some(birth) = entry.birth.filter(|birth| birth.stage < stage) else {
                return Ok(());
            };
            let next = ShardEntry {
                birth: Some(Birth { stage, ..birth }),
                ..entry
            };
            match catalog.put_shard(shard, Some(entry), next).await {
                Ok(()) => return Ok(()),
                Err(MetaError::Conflict) => known = None,
                Err(error) => return Err(error.into()),
            }
        }
        Err(MetaError::Conflict.into())
    }

    /// Goes on with every split of this shard that somebody began.
    ///
    /// # Errors
    /// The store's, the log's and meta's; the next call goes on.
    pub(crate) async fn go_on_with_births(&self) -> Result<(), EngineError> {
        let mut publishing = self.publishing.lock().await;
        self.settle(&mut publishing).await?;
        self.settle_births(&mut publishing).await
    }

    async fn settle_births(&self, publishing: &mut Publishing) -> Result<(), EngineError> {
        if !self.state.read().published.is_empty() {
            self.announce().await;
        }
        self.bear_children(&publishing.newest).await?;
        for (child, entry) in self.env.catalog.children_of(self.id) {
            let Some(birth) = entry.birth.filter(|_| !entry.is_born()) else {
                continue;
            };
            let procedure = birth.procedure;
            let decision = || {
                let state = self.state.read();
                state.fold.decided(procedure).map(|d| d.decision)
            };
            if decision().is_none() {
                let abort = Payload::Abort { procedure };
                // Refused where a `Split` came first.
                let done = self.submit(abort, Vec::new(), self.patience()).await;
                if let (Err(error), None) = (done, decision()) {
                    return Err(error.into());
                }
            }
            match decision() {
                // It is born, and meta was not told, or was brought back from before.
                Some(Decision::Split { child: born }) if born == child => {
                    self.tell_born(child).await?;
                }
                // Decided against, or for another child that was prepared later.
                _ => {
                    self.env.prepared_logs.lock().remove(&child);
                    self.env.logs.remove(child).await?;
                    match self.env.catalog.remove_shard(child, entry).await {
                        // It is looked at again.
                        Ok(()) | Err(MetaError::Conflict) => {}
                        Err(error) => return Err(error.into()),
                    }
                    tracing::info!(shard = %self.id, %child, "a split was decided against");
                }
            }
        }
        Ok(())
    }
}
