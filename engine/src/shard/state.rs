//! What a shard holds in memory, and what an applied record changes in it.
//!
//! Rows of a table are in at most three places, oldest first: the files of the manifest in force,
//! the frozen memtable (being flushed), the active memtable. A flush's manifest takes the frozen
//! rows' place in one step ([`ShardState::switch_to`]), so that no reader sees rows twice or not
//! at all.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use shoal_rows::RowBlock;
use shoal_sst::SstFile;
use shoal_types::{Incarnation, Offset, RowVersion, TableId, TableSchema, TimestampMs};
use shoal_wal::fold::{FoldState, Verdict, fold};
use shoal_wal::record::{ManifestRef, Payload, Record, SchemaChange, WriteHeader};

use super::residue::{Applied, ResidueTable};
use crate::PredicateDelete;
use crate::manifest::{FileEntry, ManifestState};
use crate::memtable::{MemtableView, TableMemtable};

/// Fewer small tables than this get files of their own: that many small files hurt nobody, and
/// rows in files can be read by anything that reads Parquet.
const RESIDUE_TABLES_MIN: usize = 64;

/// A record with its rows decoded.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    pub record: Record,
    pub blocks: Vec<Arc<RowBlock>>,
}

#[derive(Debug, Default)]
pub(crate) struct TableRows {
    pub active: Option<TableMemtable>,
    pub frozen: Option<TableMemtable>,
    /// What `active` and `frozen` count for in `memory_bytes`. Readers make memtables grow (sorted
    /// rows are kept), so that their size at the end is not what was added for them.
    pub active_bytes: usize,
    pub frozen_bytes: usize,
    /// What `active` holds, while that is little enough for a residue object; `None`: it is not,
    /// or a predicate delete hides some of it.
    pub small: Option<Vec<Applied>>,
}

#[derive(Debug)]
pub(crate) struct ShardState {
    pub fold: FoldState,
    pub tables: AHashMap<TableId, TableRows>,
    /// The manifest in force: the last one named by an applied record.
    pub manifest: Arc<ManifestState>,
    /// Published, not yet named by an applied record.
    pub published: VecDeque<Arc<ManifestState>>,
    /// Predicate deletes at or above the manifest's replay offset.
    pub deletes: AHashMap<TableId, Vec<PredicateDelete>>,
    /// Tables dropped or truncated whose files are still named.
    pub gone: AHashSet<TableId>,
    /// Tables that have a frozen memtable, and where they were frozen.
    pub frozen: Option<(Offset, Vec<TableId>)>,
    /// Bytes of all memtables.
    pub memory_bytes: usize,
    /// One past the last applied record that changed rows or schemas. What lies behind it (claims,
    /// announcements of manifests, barriers) no flush would write down.
    pub content_end: Offset,
    /// When the oldest row in an active memtable was applied.
    pub dirty_since_ms: Option<TimestampMs>,
    /// The log's own name, from its `Genesis`.
    pub topic: Option<String>,
    /// Rows a table may hold as residue, in bytes of memory.
    pub small_bytes_max: usize,
}

/// Rows taken out, to be freed outside the lock.
#[derive(Debug, Default)]
pub(crate) struct Released {
    pub bytes: usize,
    pub tables: Vec<TableMemtable>,
}

/// What a view shows of a table.
#[derive(Debug)]
pub(crate) struct Shown {
    pub memory: Vec<MemtableView>,
    pub files: Vec<SstFile>,
    pub deletes: Vec<PredicateDelete>,
}

/// Rows of one table at the freeze.
#[derive(Clone, Debug)]
pub(crate) struct FrozenTable {
    pub id: TableId,
    pub schema: Arc<TableSchema>,
    pub view: MemtableView,
}

/// Everything a flush writes.
#[derive(Debug)]
pub(crate) struct Frozen {
    /// The fold at the freeze; its `next_offset` is the new replay offset.
    pub fold: FoldState,
    pub tables: Vec<FrozenTable>,
    /// Rows that go into the residue object and stay in memory.
    pub residue: Vec<ResidueTable>,
    pub deletes: Vec<(TableId, Vec<PredicateDelete>)>,
    pub gone: Vec<TableId>,
    pub topic: Option<String>,
}

/// Deletes that some file still needs: newer than all of its rows, and not applied to it yet. A
/// delete inside a file's range of versions was applied when the file was written.
pub(crate) fn needed_deletes<'a>(
    files: &'a [FileEntry],
    deletes: impl Iterator<Item = &'a PredicateDelete>,
) -> Vec<PredicateDelete> {
    deletes
        .filter(|d| {
            files
                .iter()
                .any(|f| f.file.version_max < d.version && f.deletes_through < d.version)
        })
        .cloned()
        .collect()
}

impl ShardState {
    pub(crate) fn new(manifest: Arc<ManifestState>, small_bytes_max: usize) -> Self {
        let topic = Some(manifest.log.topic.clone()).filter(|t| !t.is_empty());
        Self {
            fold: manifest.fold.clone(),
            tables: AHashMap::new(),
            published: VecDeque::new(),
            deletes: AHashMap::new(),
            gone: AHashSet::new(),
            frozen: None,
            memory_bytes: 0,
            content_end: manifest.replay_offset(),
            dirty_since_ms: None,
            topic,
            small_bytes_max,
            manifest,
        }
    }

    /// Judges one record and applies it. The memory that a switch of manifests set free goes to
    /// `released`, for the caller to drop outside its lock.
    pub(crate) fn apply(
        &mut self,
        offset: Offset,
        entry: &LogEntry,
        now_ms: TimestampMs,
        released: &mut Released,
    ) -> Verdict {
        let incarnations = self.incarnations_before(&entry.record.payload);
        let verdict = fold(&mut self.fold, offset, &entry.record);
        if let (Payload::Genesis(genesis), Verdict::Noted) = (&entry.record.payload, &verdict) {
            self.topic = Some(genesis.topic.clone());
        }
        if verdict != Verdict::Apply {
            return verdict;
        }
        if let Payload::Write(_) | Payload::Schema(_) = &entry.record.payload {
            self.content_end = offset.next();
        }
        match &entry.record.payload {
            Payload::Write(write) => self.apply_write(offset, &write.header, entry, now_ms),
            Payload::Schema(changes) => self.apply_schema(changes, &incarnations, released),
            Payload::Manifest(named) | Payload::Claim(named) => self.switch_to(*named, released),
            Payload::Genesis(_) | Payload::Barrier(_) => {}
        }
        verdict
    }

    fn incarnations_before(&self, payload: &Payload) -> Vec<Option<Incarnation>> {
        match payload {
            Payload::Schema(changes) => changes
                .iter()
                .map(|c| self.fold.schema(c.table()).map(|s| s.incarnation))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn apply_write(
        &mut self,
        offset: Offset,
        header: &WriteHeader,
        entry: &LogEntry,
        now_ms: TimestampMs,
    ) {
        // Before the rows: a record that has both replaces rows, and the delete is not meant for
        // those it brings.
        for write in &header.tables {
            if let Some(predicate) = &write.delete_where {
                self.delete_where(write.table, offset, predicate);
            }
        }
        let mut first_row = 0_usize;
        for block in &entry.blocks {
            // At most 65,536 rows a record (checked where the record is built and decoded).
            let row = u16::try_from(first_row).unwrap_or(u16::MAX);
            first_row += block.rows();
            let flushed = self
                .manifest
                .table(block.table)
                .and_then(|t| t.flushed_through);
            if flushed.is_none_or(|through| offset > through) {
                self.take_rows(offset, row, block);
                self.dirty_since_ms.get_or_insert(now_ms);
            }
        }
    }

    /// Adds the rows of one block to the active memtable of its table.
    pub(crate) fn take_rows(&mut self, offset: Offset, first_row: u16, block: &Arc<RowBlock>) {
        // The fold has judged a record's rows; residue may be of a table emptied since.
        let Some(schema) = self
            .fold
            .schema(block.table)
            .filter(|s| s.incarnation == block.incarnation)
        else {
            return;
        };
        let rows = self.tables.entry(block.table).or_default();
        if rows.active.is_none() {
            rows.active = Some(TableMemtable::new(Arc::clone(schema)));
            rows.small = Some(Vec::new());
        }
        let Some(active) = &mut rows.active else {
            return;
        };
        active.apply(
            Arc::clone(block),
            self.fold.version_base(),
            offset,
            first_row,
        );
        let after = active.memory_bytes();
        let before = std::mem::replace(&mut rows.active_bytes, after);
        self.memory_bytes = (self.memory_bytes + after).saturating_sub(before);
        if let Some(small) = &mut rows.small {
            if after > self.small_bytes_max {
                rows.small = None;
            } else {
                small.push(Applied {
                    offset,
                    first_row,
                    block: Arc::clone(block),
                });
            }
        }
    }

    fn delete_where(&mut self, table: TableId, offset: Offset, predicate: &str) {
        let version = self.fold.row_version(offset, 0);
        let text: Arc<str> = predicate.into();
        if let Some(rows) = self.tables.get_mut(&table) {
            // Frozen rows are older than the delete too; the file they become gets it as every
            // other file does.
            let frozen = (&mut rows.frozen, &mut rows.frozen_bytes);
            let active = (&mut rows.active, &mut rows.active_bytes);
            for (memtable, counted) in [frozen, active] {
                let Some(memtable) = memtable else { continue };
                memtable.delete_where(version, Arc::clone(&text));
                let after = memtable.memory_bytes();
                let before = std::mem::replace(counted, after);
                self.memory_bytes = (self.memory_bytes + after).saturating_sub(before);
            }
            rows.small = None;
        }
        self.deletes
            .entry(table)
            .or_default()
            .push(PredicateDelete {
                version,
                predicate: predicate.to_owned(),
            });
    }

    fn apply_schema(
        &mut self,
        changes: &[SchemaChange],
        before: &[Option<Incarnation>],
        released: &mut Released,
    ) {
        for (change, before) in changes.iter().zip(before) {
            let emptied = match change {
                SchemaChange::Drop { .. } => true,
                SchemaChange::Put(schema) => before.is_some_and(|b| b < schema.incarnation),
            };
            if emptied {
                self.forget_rows(change.table(), released);
            }
        }
    }

    fn forget_rows(&mut self, table: TableId, released: &mut Released) {
        if let Some(rows) = self.tables.remove(&table) {
            let frozen = rows.frozen.map(|m| (m, rows.frozen_bytes));
            let active = rows.active.map(|m| (m, rows.active_bytes));
            for (memtable, counted) in [frozen, active].into_iter().flatten() {
                self.release(memtable, counted, released);
            }
        }
        self.deletes.remove(&table);
        self.gone.insert(table);
    }

    /// `bytes`: what the memtable counted for.
    fn release(&mut self, memtable: TableMemtable, bytes: usize, released: &mut Released) {
        self.memory_bytes = self.memory_bytes.saturating_sub(bytes);
        released.bytes += bytes;
        released.tables.push(memtable);
    }

    /// Puts the named manifest in force, if it is newer and known here. A leader knows all that
    /// it may be named: it published them. Lower versions change nothing.
    pub(crate) fn switch_to(&mut self, named: ManifestRef, released: &mut Released) {
        if named.version <= self.manifest.version() {
            return;
        }
        let Some(at) = self.published.iter().position(|m| m.reference == named) else {
            return;
        };
        let Some(next) = self.published.drain(..=at).next_back() else {
            return;
        };
        self.manifest = next;
        let replay = self.manifest.replay_offset();
        if let Some((frozen_at, tables)) = self.frozen.take_if(|(at, _)| *at <= replay) {
            tracing::trace!(%frozen_at, tables = tables.len(), "rows are in files now");
            self.drop_frozen(&tables, released);
            let first = self.fold.row_version(replay, 0);
            self.deletes.retain(|_, deletes| {
                deletes.retain(|d| d.version >= first);
                !deletes.is_empty()
            });
        }
    }

    fn drop_frozen(&mut self, tables: &[TableId], released: &mut Released) {
        for table in tables {
            let Some(rows) = self.tables.get_mut(table) else {
                // Dropped or truncated while it was flushed: its new file must go again.
                self.gone.insert(*table);
                continue;
            };
            let frozen = rows.frozen.take();
            let counted = std::mem::take(&mut rows.frozen_bytes);
            if rows.active.is_none() {
                self.tables.remove(table);
            }
            match frozen {
                Some(memtable) => self.release(memtable, counted, released),
                None => {
                    self.gone.insert(*table);
                }
            }
        }
    }

    /// Freezes all rows at the current position; `None` while a flush is under way. Tables whose
    /// rows fit a residue object stay as they are and are only listed, at most `residue_max` bytes
    /// of them.
    pub(crate) fn freeze(&mut self, residue_max: usize) -> Option<Frozen> {
        if self.frozen.is_some() {
            return None;
        }
        let small_tables = self.tables.values().filter(|r| r.small.is_some()).count();
        let residue_max = if small_tables < RESIDUE_TABLES_MIN {
            0
        } else {
            residue_max
        };
        let mut residue_bytes = 0;
        let mut residue = Vec::new();
        let mut tables = Vec::new();
        for (id, rows) in &mut self.tables {
            let Some(active) = rows.active.take() else {
                continue;
            };
            let bytes = active.memory_bytes();
            if let Some(small) = &rows.small
                && residue_bytes + bytes <= residue_max
            {
                residue_bytes += bytes;
                residue.push(ResidueTable {
                    applied: small.clone(),
                });
                rows.active = Some(active);
                continue;
            }
            rows.small = None;
            if let Some(schema) = self.fold.schema(*id) {
                tables.push(FrozenTable {
                    id: *id,
                    schema: Arc::clone(schema),
                    view: active.view(),
                });
            }
            rows.frozen = Some(active);
            rows.frozen_bytes = std::mem::take(&mut rows.active_bytes);
        }
        tables.sort_unstable_by_key(|t| t.id);
        let ids = tables.iter().map(|t| t.id).collect();
        self.frozen = Some((self.fold.next_offset(), ids));
        self.dirty_since_ms = None;
        Some(Frozen {
            fold: self.fold.clone(),
            tables,
            residue,
            deletes: self.deletes.iter().map(|(t, d)| (*t, d.clone())).collect(),
            gone: self.gone.drain().collect(),
            topic: self.topic.clone(),
        })
    }

    /// What a view of the table shows now.
    pub(crate) fn shown(&self, table: TableId, schema: &TableSchema) -> Shown {
        let mut memory = Vec::with_capacity(2);
        if let Some(rows) = self.tables.get(&table) {
            let parts = [&rows.frozen, &rows.active];
            memory.extend(parts.into_iter().flatten().map(TableMemtable::view));
        }
        let named = self.manifest.table(table);
        let current: Vec<FileEntry> = named
            .into_iter()
            .flat_map(|t| t.of_incarnation(schema.incarnation))
            .cloned()
            .collect();
        let deletes = {
            let old = named.map(|t| t.deletes.as_slice()).unwrap_or_default();
            let new = self
                .deletes
                .get(&table)
                .map(Vec::as_slice)
                .unwrap_or_default();
            needed_deletes(&current, old.iter().chain(new))
        };
        Shown {
            memory,
            files: current.into_iter().map(|f| f.file).collect(),
            deletes,
        }
    }

    /// Takes all rows out (the shard is closing).
    pub(crate) fn drop_rows(&mut self) -> Released {
        let mut released = Released {
            bytes: self.memory_bytes,
            tables: Vec::new(),
        };
        for (_, rows) in self.tables.drain() {
            released
                .tables
                .extend([rows.frozen, rows.active].into_iter().flatten());
        }
        self.memory_bytes = 0;
        released
    }
}

/// The version just below every version at or after `replay`.
pub(crate) fn version_before(fold: &FoldState, replay: Offset) -> RowVersion {
    RowVersion(fold.row_version(replay, 0).0.saturating_sub(1))
}
