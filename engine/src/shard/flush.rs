//! Flush: rows from memory into files (PROTOCOLS §2).
//!
//! Order: append a `Manifest` record that names what is in force already; where it is read back, at
//! X, every replica freezes its memtables (`state.rs`, "Boundaries") → write SSTs (and one residue object for very
//! small tables) → publish the manifest with `replay_offset = X + 1` and the fold state at X →
//! append the `Manifest` record → on reading it, files take the frozen rows' place in one step →
//! trim the log.
//!
//! What a crash leaves: before the publish, objects that nobody names (garbage) and a log that
//! still has all rows. After it, a manifest from which the next opener replays only what is above
//! X. There is no moment at which rows are in neither.
//!
//! A failure (no space, a store that does not answer) keeps the frozen rows readable and everything
//! written so far; the next call goes on where this one stopped.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStoreExt, PutPayload, path::Path};
use shoal_sst::{SstError, SstFile};
use shoal_types::{Offset, PartitionId, RowVersion, TableId};
use shoal_wal::record::Payload;

use super::pins::Producing;
use super::publish::Publishing;
use super::state::{Frozen, FrozenTable, needed_deletes, version_before};
use super::{Counters, Shard, residue};
use crate::background::{on_own_thread, to_the_end};
use crate::manifest::ManifestState;
use crate::manifest::format::{Edit, FileEntry, LogIdentity, Residue, ResidueEdit, TableEdit};
use crate::{EngineError, PredicateDelete};

/// Files encoded at the same time in one flush.
const FILES_AT_ONCE: usize = 2;

/// A flush between its freeze and its publish.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(super) frozen: Frozen,
    written: Vec<(TableId, Vec<FileEntry>)>,
    residue: Option<Option<Residue>>,
    /// The term that stands in the names of what is written.
    term: u64,
    /// Keeps what is written from being taken for garbage.
    _producing: Producing,
}

impl Begun {
    fn replay_offset(&self) -> Offset {
        self.frozen.fold.next_offset()
    }
}

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Flushed {
    /// Files written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Rows in files.
    pub rows: u64,
}

impl Flushed {
    /// Counts another's work in.
    pub fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.rows += other.rows;
    }
}

impl Shard {
    /// Writes all rows in memory to files and waits until the files have taken their place. Runs
    /// to its end even if the caller goes away: a flush dropped halfway would leave rows frozen
    /// that nobody goes on writing.
    ///
    /// # Errors
    /// [`EngineError`]; nothing is lost, and the next call goes on from where this one stopped.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<Flushed, EngineError> {
        let shard = Arc::clone(self);
        to_the_end(async move { shard.flush_now().await }).await
    }

    /// As [`Self::flush`], and such that a restart replays from behind `offset`, even if there is
    /// nothing to be written.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(crate) async fn flush_beyond(self: &Arc<Self>, offset: Offset) -> Result<(), EngineError> {
        *self.flush_past.lock() = Some(offset);
        self.flush().await.map(|_| ())
    }

    async fn flush_now(self: &Arc<Self>) -> Result<Flushed, EngineError> {
        let mut publishing = self.publishing.lock().await;
        self.settle(&mut publishing).await?;
        self.flush_held(&mut publishing).await
    }

    /// As [`Self::flush`], for whoever holds the publishing lock and has settled.
    pub(super) async fn flush_held(
        self: &Arc<Self>,
        publishing: &mut Publishing,
    ) -> Result<Flushed, EngineError> {
        let published = publishing.newest.replay_offset();
        if let Some(begun) = publishing.flush.take_if(|b| b.replay_offset() <= published) {
            // It was published after all, by settling.
            self.flushed(&begun);
        }
        let mut begun = match publishing.flush.take() {
            Some(begun) => begun,
            None => match self.begin_flush(&publishing.newest).await? {
                Some(begun) => begun,
                None => return Ok(Flushed::default()),
            },
        };
        if let Err(error) = self.write_files(&mut begun, &publishing.newest).await {
            publishing.flush = Some(begun);
            return Err(error);
        }
        let edit = flush_edit(&publishing.newest, &begun);
        match self.publish(publishing, edit).await {
            Ok(_) => {
                let done = self.flushed(&begun);
                self.trim_in_time(Arc::clone(&publishing.newest)).await;
                Ok(done)
            }
            Err(error) => {
                publishing.flush = Some(begun);
                Err(error)
            }
        }
    }

    /// Whether a flush is worth a manifest. Each manifest adds its own record to the log, so a
    /// flush that writes nothing must at least free more of the log than that; else an idle shard
    /// would publish for ever, and the log would grow by it. Replay stays bounded: records without
    /// content count in the bytes that the log holds back.
    async fn is_worth_flushing(&self, newest: &ManifestState) -> bool {
        let config = &self.env.config;
        {
            let state = self.state.read();
            let frozen = !state.boundaries.is_empty() || state.flush_ready.is_some();
            let past = *self.flush_past.lock();
            let behind = past.is_some_and(|past| past >= newest.replay_offset());
            if frozen || behind || state.content_end > newest.replay_offset() {
                return true;
            }
            if state.memory_bytes > 0 && self.env.memory.used() > config.memtable_bytes_max {
                // Residue that has become too much: its tables get files.
                return state.fold.next_offset() > newest.replay_offset();
            }
        }
        if self.log.held_back_bytes() <= config.log_bytes_max {
            return false;
        }
        // Perhaps only an earlier trim failed.
        self.trim(newest).await;
        let position = self.state.read().fold.next_offset();
        position > newest.replay_offset() && self.log.held_back_bytes() > config.log_bytes_max
    }

    async fn begin_flush(&self, newest: &ManifestState) -> Result<Option<Begun>, EngineError> {
        if !self.is_worth_flushing(newest).await {
            return Ok(None);
        }
        let unannounced = {
            let mut state = self.state.write();
            if let Some(frozen) = state.flush_ready.take() {
                // Asked for by a flush that gave up waiting.
                return Ok(Some(self.begun(frozen)));
            }
            !state.published.is_empty()
        };
        if unannounced {
            // The last flush is published; its record was not applied yet.
            self.announce().await;
            if !self.is_worth_flushing(newest).await {
                return Ok(None);
            }
        }
        // All shards' residue together stays within a quarter of the memory budget.
        let shards = self.env.catalog.shards().len().max(1);
        let residue_max = self.env.config.memtable_bytes_max / 4 / shards;
        // From the next replay offset on nobody finds them in the log.
        // Boxed: it is rarely needed, and goes deep.
        Box::pin(self.bear_children(newest)).await?;
        let in_force = {
            let mut state = self.state.write();
            if !state.published.is_empty() {
                return Err(crate::WriteError::Overloaded(format!(
                    "shard {}: the last flush's manifest is not in force yet",
                    self.id
                ))
                .into());
            }
            state.flush_asked = Some(residue_max);
            state.manifest.reference
        };
        self.submit(Payload::Manifest(in_force), Vec::new(), self.patience())
            .await?;
        let frozen = self.state.write().flush_ready.take();
        match frozen {
            Some(frozen) => Ok(Some(self.begun(frozen))),
            None => Err(crate::WriteError::NotLeader { shard: self.id }.into()),
        }
    }

    fn begun(&self, frozen: Frozen) -> Begun {
        self.begun_in(self.epoch().term, frozen)
    }

    /// As a flush in another term than that of this replica's tenure.
    pub(super) fn begun_in(&self, term: u64, frozen: Frozen) -> Begun {
        Begun {
            frozen,
            written: Vec::new(),
            residue: None,
            term,
            _producing: self.produce(),
        }
    }

    pub(super) async fn write_files(
        &self,
        begun: &mut Begun,
        newest: &ManifestState,
    ) -> Result<(), EngineError> {
        let done = begun.written.len();
        let frozen = &begun.frozen;
        let deletes_through = version_before(&frozen.fold, frozen.fold.next_offset());
        let rest: Vec<(FrozenTable, Option<Vec<SstFile>>)> = frozen.tables[done..]
            .iter()
            .enumerate()
            .map(|(at, table)| {
                // A table may have several parts, the oldest first: only that one can be the
                // bottom.
                let first = (done + at)
                    .checked_sub(1)
                    .is_none_or(|before| frozen.tables[before].id != table.id);
                let older = first.then(|| {
                    let mut older = frozen.changes.files(newest, table.id);
                    older.retain(|f| f.file.incarnation == table.schema.incarnation);
                    older.into_iter().map(|f| f.file).collect()
                });
                (table.clone(), older)
            })
            .collect();
        let mut written = futures::stream::iter(rest)
            .map(|(table, older)| self.write_file(begun.term, table, older, deletes_through))
            // In order: on failure, what is done is a prefix.
            .buffered(FILES_AT_ONCE);
        let mut fresh = Vec::new();
        let outcome = loop {
            match written.try_next().await {
                Ok(Some(one)) => fresh.push(one),
                Ok(None) => break Ok(()),
                Err(e) => break Err(e),
            }
        };
        drop(written);
        begun.written.extend(fresh);
        outcome?;
        if begun.residue.is_none() {
            begun.residue = Some(self.write_residue(begun.term, &begun.frozen).await?);
        }
        Ok(())
    }

    pub(super) async fn write_file(
        &self,
        term: u64,
        table: FrozenTable,
        older: Option<Vec<SstFile>>,
        deletes_through: RowVersion,
    ) -> Result<(TableId, Vec<FileEntry>), EngineError> {
        let id = table.id;
        // A table without a name was dropped; its `Drop` record is on its way. Meta is asked before
        // that is believed: rows of a name not heard of yet would be left out of the file and, with
        // the replay offset behind them, lost.
        let catalog = &self.env.catalog;
        if catalog
            .find_placement(table.schema.owner())
            .await?
            .is_none()
        {
            return Ok((id, Vec::new()));
        }
        // A unit that came with a split may not be in meta yet.
        let placed = catalog.placed(id);
        let partition = placed.map_or(PartitionId(id.0), |placed| placed.partition);
        let producer = self.producer_in(term);
        let files = on_own_thread(move || async move {
            producer
                .flush_memtable(
                    &table.view,
                    &table.schema,
                    partition,
                    older.as_deref(),
                    table.bounds,
                )
                .await
        })
        .await?;
        let entry = |file| FileEntry {
            file,
            deletes_through,
        };
        Ok((id, files.into_iter().map(entry).collect()))
    }

    async fn write_residue(
        &self,
        term: u64,
        frozen: &Frozen,
    ) -> Result<Option<Residue>, EngineError> {
        if frozen.residue.is_empty() {
            return Ok(None);
        }
        let (bytes, rows) = residue::encode(&frozen.residue);
        let folder = self.chain.layout.manifests(self.id);
        let root = folder.as_ref().trim_end_matches("manifest");
        let name = format!("{root}residue/{}-{}-{term}", ulid::Ulid::new(), self.id,);
        let path = Path::from(name);
        let crc = crc32fast::hash(&bytes);
        let size = bytes.len() as u64;
        self.env
            .store
            .put(&path, PutPayload::from_bytes(bytes))
            .await
            .map_err(|e| SstError::from_store(&path, e))?;
        Ok(Some(Residue {
            path: path.to_string(),
            bytes: size,
            crc,
            rows,
        }))
    }

    fn flushed(&self, begun: &Begun) -> Flushed {
        let mut done = Flushed::default();
        let mut candidates = self.compactable.lock();
        for (table, files) in &begun.written {
            candidates.insert(*table);
            for entry in files {
                done.files += 1;
                done.bytes += entry.file.bytes;
                done.rows += entry.file.rows;
            }
        }
        drop(candidates);
        Counters::add(&self.counters.flushes, 1);
        Counters::add(&self.counters.flushed_bytes, done.bytes);
        tracing::info!(
            shard = %self.id, replay_offset = %begun.replay_offset(),
            files = done.files, bytes = done.bytes, rows = done.rows, "flushed"
        );
        done
    }
}

pub(super) fn flush_edit(base: &ManifestState, begun: &Begun) -> Edit {
    let frozen = &begun.frozen;
    let through = Offset(begun.replay_offset().0.saturating_sub(1));
    let mut tables: std::collections::BTreeMap<TableId, TableEdit> = Default::default();
    let replay = base.replay_offset();
    for id in frozen.changes.touched(replay) {
        let Some(schema) = frozen.fold.schema(id) else {
            let edit = tables.entry(id).or_default();
            edit.dropped = true;
            continue;
        };
        let named: Vec<FileEntry> = base.table(id).map(|t| t.files.clone()).unwrap_or_default();
        let mut files = frozen.changes.files(base, id);
        files.retain(|f| {
            let is_named = named.iter().any(|n| n.file.path == f.file.path);
            f.file.incarnation == schema.incarnation && !is_named
        });
        let edit = tables.entry(id).or_default();
        edit.add.extend(files);
        edit.deletes = Some(Vec::new());
    }
    let old_deletes = |id: TableId| -> Vec<PredicateDelete> {
        let sources = frozen.changes.sources(replay, id);
        let named = sources.into_iter().filter_map(|source| base.table(source));
        named.flat_map(|t| t.deletes.clone()).collect()
    };
    for (id, entry) in &begun.written {
        let edit = tables.entry(*id).or_default();
        edit.add.extend(entry.iter().cloned());
        edit.flushed_through = Some(through);
    }
    for id in &frozen.gone {
        let edit = tables.entry(*id).or_default();
        match frozen.fold.schema(*id) {
            None => {
                *edit = TableEdit {
                    dropped: true,
                    ..TableEdit::default()
                };
            }
            Some(schema) => {
                let old = base
                    .table(*id)
                    .map(|t| t.files.as_slice())
                    .unwrap_or_default();
                let outdated = old
                    .iter()
                    .filter(|f| f.file.incarnation < schema.incarnation);
                edit.remove.extend(outdated.map(|f| f.file.path.clone()));
                edit.deletes = Some(Vec::new());
            }
        }
    }
    let new_deletes: HashMap<TableId, &Vec<PredicateDelete>> =
        frozen.deletes.iter().map(|(id, new)| (*id, new)).collect();
    let touched = tables.iter().filter(|(_, edit)| edit.deletes.is_some());
    let mut with_deletes: BTreeSet<TableId> = touched.map(|(id, _)| *id).collect();
    with_deletes.extend(new_deletes.keys());
    for id in with_deletes {
        let emptied = frozen.gone.contains(&id);
        let edit = tables.entry(id).or_default();
        if edit.dropped {
            continue;
        }
        let old = base.table(id);
        let mut files: Vec<FileEntry> = old.map(|t| t.files.clone()).unwrap_or_default();
        files.retain(|f| !edit.remove.contains(&f.file.path));
        files.extend(edit.add.iter().cloned());
        // A truncated table keeps none of its older deletes.
        let kept = match emptied {
            true => Vec::new(),
            false => old_deletes(id),
        };
        let new = new_deletes.get(&id).into_iter().flat_map(|new| new.iter());
        edit.deletes = Some(needed_deletes(&files, kept.iter().chain(new)));
    }
    let log = frozen
        .topic
        .as_ref()
        .filter(|_| base.log.topic.is_empty())
        .map(|topic| LogIdentity {
            topic: topic.clone(),
            ..base.log.clone()
        });
    let residue = begun.residue.clone().unwrap_or_default();
    Edit {
        log,
        fold: Some(frozen.fold.edit_since(&base.fold)),
        tables: tables.into_iter().collect(),
        residue: (residue != base.residue)
            .then(|| residue.map_or(ResidueEdit::Removed, ResidueEdit::Replaced)),
        forgotten: Vec::new(),
        losses: Vec::new(),
    }
}
