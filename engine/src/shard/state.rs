//! What a shard holds in memory, and what an applied record changes in it.
//!
//! Rows of a table are in these places, oldest first: the files of the manifest in force, frozen
//! memtables (being flushed), the active memtable. A flush's manifest takes the frozen rows' place
//! in one step ([`ShardState::switch_to`]), so that no reader sees rows twice or not at all.
//!
//! **Boundaries.** A leader freezes only where it reads back a `Manifest` record that names nothing
//! new; every follower freezes there too. So a manifest's replay offset is always a place at which
//! a follower's memtables end, and the follower drops exactly the rows that are in files now,
//! without sorting, copying or reading the log again.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use shoal_rows::RowBlock;
use shoal_sst::SstFile;
use shoal_types::{
    Incarnation, Offset, PartitionBounds, RowVersion, TableId, TableSchema, TimestampMs, WriterId,
};
use shoal_wal::fold::{FoldState, Verdict, fold};
use shoal_wal::record::{ManifestRef, Payload, SchemaChange, WriteHeader};

use super::confirmed::Confirmed;
use super::departed::Departed;
use super::entry::LogEntry;
use super::layouts::Untold;
use super::recut::Changes;
use super::residue::{Applied, ResidueTable};
use crate::PredicateDelete;
use crate::manifest::{FileEntry, ManifestState};
use crate::memtable::{MemtableView, TableMemtable};

/// Fewer small tables than this get files of their own: that many small files hurt nobody, and
/// rows in files can be read by anything that reads Parquet.
const RESIDUE_TABLES_MIN: usize = 64;

/// A memtable and what the shard has to know of it.
#[derive(Debug)]
pub(crate) struct Held {
    pub memtable: TableMemtable,
    /// What it counts for in `memory_bytes`. Readers make memtables grow (sorted rows are kept),
    /// so that its size at the end is not what was added for it.
    pub counted: usize,
    /// What it holds, while that is little enough for a residue object; `None`: it is not, or a
    /// predicate delete hides some of it.
    pub small: Option<Vec<Applied>>,
}

/// Rows of a table below a boundary.
#[derive(Debug)]
pub(crate) struct FrozenRows {
    /// One past the last offset that may be in it.
    pub end: Offset,
    pub rows: Held,
}

#[derive(Debug, Default)]
pub(crate) struct TableRows {
    pub active: Option<Held>,
    /// Closed parts below `active` that are not frozen: from before the unit was cut or joined.
    pub sealed: Vec<Held>,
    /// Oldest first.
    pub frozen: VecDeque<FrozenRows>,
}

impl TableRows {
    pub(super) fn all(&self) -> impl Iterator<Item = &Held> {
        let frozen = self.frozen.iter().map(|f| &f.rows);
        frozen.chain(&self.sealed).chain(&self.active)
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        let frozen = self.frozen.iter_mut().map(|f| &mut f.rows);
        frozen.chain(&mut self.sealed).chain(&mut self.active)
    }

    pub(super) fn into_all(self) -> impl Iterator<Item = Held> {
        let frozen = self.frozen.into_iter().map(|f| f.rows);
        frozen.chain(self.sealed).chain(self.active)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.active.is_none() && self.sealed.is_empty() && self.frozen.is_empty()
    }
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
    /// Changes of units above the manifest's replay offset.
    pub changes: Changes,
    /// Of those what meta may not have been told.
    pub untold: Vec<Untold>,
    /// Units that have left above the manifest's replay offset, for a shard that may not be born.
    pub departed: Vec<Departed>,
    /// Tables dropped or truncated whose files are still named.
    pub gone: AHashSet<TableId>,
    /// Boundaries above the replay offset of the manifest in force, and the tables that have rows
    /// frozen at each.
    pub boundaries: VecDeque<(Offset, Vec<TableId>)>,
    /// Who this replica writes as, if it leads.
    pub me: Option<WriterId>,
    /// A flush waits for the next boundary; the bytes of residue that it may leave in memory.
    pub flush_asked: Option<usize>,
    /// What was frozen at the boundary that a flush asked for.
    pub flush_ready: Option<Frozen>,
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
    /// Own records that the log confirmed and that were not read back yet.
    pub confirmed: Confirmed,
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
    /// What the unit owns.
    pub bounds: Option<Arc<PartitionBounds>>,
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
    pub changes: Changes,
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
        .filter(|d| files.iter().any(|f| needs(f, d)))
        .cloned()
        .collect()
}

/// Whether a delete concerns a file and was not yet applied to it.
pub(crate) fn needs(file: &FileEntry, delete: &PredicateDelete) -> bool {
    file.file.version_max < delete.version && file.deletes_through < delete.version
}

impl ShardState {
    pub(crate) fn new(manifest: Arc<ManifestState>, small_bytes_max: usize) -> Self {
        let topic = Some(manifest.log.topic.clone()).filter(|t| !t.is_empty());
        Self {
            fold: manifest.fold.clone(),
            tables: AHashMap::new(),
            published: VecDeque::new(),
            deletes: AHashMap::new(),
            changes: Changes::default(),
            untold: Vec::new(),
            departed: Vec::new(),
            gone: AHashSet::new(),
            boundaries: VecDeque::new(),
            me: None,
            flush_asked: None,
            flush_ready: None,
            memory_bytes: 0,
            content_end: manifest.replay_offset(),
            dirty_since_ms: None,
            topic,
            small_bytes_max,
            confirmed: Confirmed::default(),
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
        let child = match &entry.record.payload {
            Payload::Split(split) => self.fold.carve(self.manifest.shard, split, offset),
            _ => None,
        };
        let verdict = fold(&mut self.fold, offset, &entry.record);
        if let (Payload::Genesis(genesis), Verdict::Noted) = (&entry.record.payload, &verdict) {
            self.topic = Some(genesis.topic.clone());
        }
        if let (Payload::Manifest(_), Verdict::Noted) = (&entry.record.payload, &verdict) {
            self.pass_boundary();
        }
        if verdict != Verdict::Apply {
            return verdict;
        }
        if let Payload::Write(_) | Payload::Schema(_) | Payload::Recut(_) | Payload::Split(_) =
            &entry.record.payload
        {
            self.content_end = offset.next();
        }
        match &entry.record.payload {
            Payload::Write(write) => self.apply_write(offset, &write.header, entry, now_ms),
            Payload::Schema(changes) => self.apply_schema(changes, &incarnations, released),
            Payload::Recut(recut) => {
                self.recut(offset, recut);
                let untold = Untold::of_recut(offset, recut, &self.fold);
                self.untold.push(untold);
            }
            Payload::Split(split) => {
                if let Some(child) = child {
                    self.depart(offset, split, child);
                }
            }
            Payload::Manifest(named) => self.switch_to(*named, released),
            Payload::Claim(named) => {
                self.switch_to(*named, released);
                if self.leads() {
                    self.gather_small();
                } else {
                    self.flush_asked = None;
                    self.flush_ready = None;
                }
            }
            _ => {}
        }
        verdict
    }

    /// Whether the claim in force is this replica's.
    pub(crate) fn leads(&self) -> bool {
        self.me == Some(self.fold.claim().1)
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
        let owned = self.fold.bounds(block.table);
        let rows = self.tables.entry(block.table).or_default();
        let active = rows.active.get_or_insert_with(|| Held {
            memtable: TableMemtable::new(Arc::clone(schema)).written_under(owned.cloned()),
            counted: 0,
            small: Some(Vec::new()),
        });
        active.memtable.apply(
            Arc::clone(block),
            self.fold.version_base(),
            offset,
            first_row,
        );
        let after = active.memtable.memory_bytes();
        let before = std::mem::replace(&mut active.counted, after);
        self.memory_bytes = (self.memory_bytes + after).saturating_sub(before);
        if let Some(small) = &mut active.small {
            if after > self.small_bytes_max {
                active.small = None;
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
            for held in rows.all_mut() {
                held.memtable.delete_where(version, Arc::clone(&text));
                let after = held.memtable.memory_bytes();
                let before = std::mem::replace(&mut held.counted, after);
                self.memory_bytes = (self.memory_bytes + after).saturating_sub(before);
                held.small = None;
            }
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
                SchemaChange::Own { .. } => false,
                SchemaChange::Put(schema) => before.is_some_and(|b| b < schema.incarnation),
            };
            if emptied {
                self.forget_rows(change.table(), released);
            }
        }
    }

    fn forget_rows(&mut self, table: TableId, released: &mut Released) {
        if let Some(rows) = self.tables.remove(&table) {
            for held in rows.into_all() {
                self.release(held, released);
            }
        }
        self.deletes.remove(&table);
        self.gone.insert(table);
    }

    pub(super) fn release(&mut self, held: Held, released: &mut Released) {
        self.memory_bytes = self.memory_bytes.saturating_sub(held.counted);
        released.bytes += held.counted;
        released.tables.push(held.memtable);
    }

    /// Puts the named manifest in force, if it is newer and known here; a replica that does not
    /// know it (a follower) loads it and comes back with [`Self::take_manifest`]. Lower versions
    /// change nothing.
    pub(crate) fn switch_to(&mut self, named: ManifestRef, released: &mut Released) {
        if !self.manifest.is_before(named.version) {
            return;
        }
        let Some(at) = self.published.iter().position(|m| m.reference == named) else {
            return;
        };
        let Some(next) = self.published.drain(..=at).next_back() else {
            return;
        };
        self.put_in_force(next, released);
    }

    fn put_in_force(&mut self, next: Arc<ManifestState>, released: &mut Released) {
        let before = self.manifest.replay_offset();
        self.manifest = next;
        let replay = self.manifest.replay_offset();
        if replay == before {
            // Residue at this very boundary is still in no file.
            return;
        }
        while let Some((end, tables)) = self.boundaries.pop_front_if(|(end, _)| *end <= replay) {
            tracing::trace!(%end, tables = tables.len(), "rows are in files now");
            self.drop_frozen(end, &tables, released);
        }
        self.pass_departed(replay, released);
        self.changes.keep_from(replay);
        self.untold.retain(|untold| untold.at >= replay);
        let first = self.fold.row_version(replay, 0);
        self.deletes.retain(|_, deletes| {
            deletes.retain(|d| d.version >= first);
            !deletes.is_empty()
        });
    }

    fn drop_frozen(&mut self, end: Offset, tables: &[TableId], released: &mut Released) {
        for table in tables {
            let dropped = match self.tables.get_mut(table) {
                Some(rows) => {
                    let dropped = rows.frozen.pop_front_if(|f| f.end <= end);
                    if rows.is_empty() {
                        self.tables.remove(table);
                    }
                    dropped
                }
                None => None,
            };
            match dropped {
                Some(frozen) => self.release(frozen.rows, released),
                // Dropped or truncated while it was flushed: its new file must go again.
                None => {
                    self.gone.insert(*table);
                }
            }
        }
    }

    /// A boundary was read: freezes, if this replica is to.
    fn pass_boundary(&mut self) {
        if !self.leads() {
            self.freeze_below(self.fold.next_offset(), &AHashSet::new());
        } else if let Some(residue_max) = self.flush_asked.take() {
            self.flush_ready = Some(self.freeze(residue_max));
        }
    }

    /// A follower that becomes leader: small tables are made whole again, so that their rows can
    /// stay in memory beyond the next flush as a leader's do.
    fn gather_small(&mut self) {
        let small_bytes_max = self.small_bytes_max;
        let small: Vec<TableId> = self
            .tables
            .iter()
            .filter(|(_, rows)| {
                let bytes: usize = rows.all().map(|held| held.counted).sum();
                !rows.frozen.is_empty()
                    && bytes <= small_bytes_max
                    && rows.all().all(|held| held.small.is_some())
            })
            .map(|(id, _)| *id)
            .collect();
        if small.is_empty() {
            return;
        }
        let gathered: AHashSet<TableId> = small.iter().copied().collect();
        for (_, tables) in &mut self.boundaries {
            tables.retain(|table| !gathered.contains(table));
        }
        for table in small {
            let Some(rows) = self.tables.remove(&table) else {
                continue;
            };
            for held in rows.into_all() {
                self.memory_bytes = self.memory_bytes.saturating_sub(held.counted);
                self.take_all(&held.small.unwrap_or_default());
            }
        }
    }

    /// Applies the predicate deletes from a version on to rows that are older.
    fn delete_since(&mut self, table: TableId, first: RowVersion, held: &mut Held) {
        for delete in self.deletes.get(&table).into_iter().flatten() {
            if delete.version >= first {
                let text = delete.predicate.as_str().into();
                held.memtable.delete_where(delete.version, text);
                held.small = None;
            }
        }
        let after = held.memtable.memory_bytes();
        let before = std::mem::replace(&mut held.counted, after);
        self.memory_bytes = (self.memory_bytes + after).saturating_sub(before);
    }

    pub(crate) fn take_all(&mut self, applied: &[Applied]) {
        for one in applied {
            self.take_rows(one.offset, one.first_row, &one.block);
        }
    }

    /// The manifest that the last applied `Manifest` or `Claim` named, where it is not in force:
    /// another leader published it.
    pub(crate) fn unknown_manifest(&self) -> Option<ManifestRef> {
        let named = self.fold.manifest()?;
        let ours = self.published.iter().any(|m| m.reference == named);
        (self.manifest.is_before(named.version) && !ours).then_some(named)
    }

    /// Puts a manifest in force that was loaded because an applied record named it (or a newer
    /// one). `residue`: the rows of its residue object, if that is another than now.
    ///
    /// # Errors
    /// Its replay offset is no boundary here (the replica read only later than it): the shard must
    /// be opened again from it.
    pub(crate) fn take_manifest(
        &mut self,
        next: Arc<ManifestState>,
        residue: Option<Vec<Applied>>,
        released: &mut Released,
    ) -> Result<(), String> {
        if !self.manifest.is_before(next.version()) {
            return Ok(());
        }
        if !next.log.is_same(&self.manifest.log) {
            return Err(format!(
                "manifest {} says that another log has taken the place of this one",
                next.version()
            ));
        }
        let replay = next.replay_offset();
        let known = replay == self.manifest.replay_offset()
            || self.boundaries.iter().any(|(end, _)| *end == replay);
        if !known {
            return Err(format!(
                "manifest {} replays from {replay}, where this replica has no boundary",
                next.version()
            ));
        }
        self.published.retain(|m| m.version() > next.version());
        self.put_in_force(Arc::clone(&next), released);
        if let Some(residue) = residue {
            self.take_residue(replay, residue);
        }
        let fold = &self.fold;
        self.gone.retain(|table| {
            let incarnation = fold.schema(*table).map(|s| s.incarnation);
            next.table(*table).is_some_and(|t| {
                t.files
                    .iter()
                    .any(|f| Some(f.file.incarnation) != incarnation)
            })
        });
        Ok(())
    }

    /// Rows below `replay` that are in no file. They are older than all else in memory. A unit that
    /// was cut or joined since has them with those that it became.
    fn take_residue(&mut self, replay: Offset, residue: Vec<Applied>) {
        let mut by_table: AHashMap<TableId, Vec<Applied>> = AHashMap::new();
        for applied in residue {
            by_table
                .entry(applied.block.table)
                .or_default()
                .push(applied);
        }
        let first = self.fold.row_version(replay, 0);
        let mut kept = Vec::new();
        for (table, applied) in by_table {
            let Some(mut held) = self.residue_of(table, applied) else {
                continue;
            };
            let heirs = self.heirs(replay, table);
            if heirs != [table] {
                held.small = None;
            }
            for (at, heir) in heirs.into_iter().enumerate() {
                let Some(schema) = self.fold.schema(heir) else {
                    continue;
                };
                let mut rows = Held {
                    memtable: held.memtable.shared_as(Arc::clone(schema)),
                    counted: if at == 0 { held.counted } else { 0 },
                    small: held.small.clone(),
                };
                self.memory_bytes += rows.counted;
                self.delete_since(heir, first, &mut rows);
                let of_heir = self.tables.entry(heir).or_default();
                of_heir.frozen.push_front(FrozenRows { end: replay, rows });
                kept.push(heir);
            }
        }
        if !kept.is_empty() {
            self.boundaries.push_front((replay, kept));
        }
    }

    /// Rows of one table as they were at the replay offset of the manifest in force.
    fn residue_of(&self, table: TableId, applied: Vec<Applied>) -> Option<Held> {
        let fold = &self.manifest.fold;
        let schema = fold.schema(table)?;
        let bounds = fold.bounds(table).cloned();
        let mut memtable = TableMemtable::new(Arc::clone(schema)).written_under(bounds);
        for one in &applied {
            if one.block.incarnation == schema.incarnation {
                let block = Arc::clone(&one.block);
                memtable.apply(block, fold.version_base(), one.offset, one.first_row);
            }
        }
        Some(Held {
            counted: memtable.memory_bytes(),
            memtable,
            small: Some(applied),
        })
    }

    /// The units that have what a unit had at `replay`, if it was not emptied since.
    fn heirs(&self, replay: Offset, unit: TableId) -> Vec<TableId> {
        let before = self.manifest.fold.schema(unit).map(|s| s.incarnation);
        let mut heirs = self.changes.touched(replay);
        heirs.push(unit);
        heirs.sort_unstable();
        heirs.dedup();
        heirs.retain(|heir| {
            let now = self.fold.schema(*heir).map(|s| s.incarnation);
            now.is_some() && now == before && self.changes.sources(replay, *heir).contains(&unit)
        });
        heirs
    }

    /// Moves the active rows of all tables but `kept` below a boundary.
    fn freeze_below(&mut self, end: Offset, kept: &AHashSet<TableId>) {
        let mut tables = Vec::new();
        for (id, rows) in &mut self.tables {
            if kept.contains(id) {
                continue;
            }
            for rows_of_part in rows.sealed.drain(..).chain(rows.active.take()) {
                rows.frozen.push_back(FrozenRows {
                    end,
                    rows: rows_of_part,
                });
                tables.push(*id);
            }
        }
        self.boundaries.push_back((end, tables));
    }

    /// Freezes all rows at the current position. Tables whose rows fit a residue object stay as
    /// they are and are only listed, at most `residue_max` bytes of them.
    pub(crate) fn freeze(&mut self, residue_max: usize) -> Frozen {
        let small = |rows: &TableRows| match &rows.active {
            // Rows frozen before go with their boundary, so they cannot stay.
            Some(active) if rows.frozen.is_empty() && rows.sealed.is_empty() => {
                active.small.is_some()
            }
            _ => false,
        };
        let small_tables = self.tables.values().filter(|r| small(r)).count();
        let residue_max = if small_tables < RESIDUE_TABLES_MIN {
            0
        } else {
            residue_max
        };
        let mut residue_bytes = 0;
        let mut residue = Vec::new();
        let mut kept = AHashSet::new();
        for (id, rows) in self.tables.iter().filter(|(_, rows)| small(rows)) {
            let Some(active) = &rows.active else { continue };
            if let Some(applied) = &active.small
                && residue_bytes + active.counted <= residue_max
            {
                residue_bytes += active.counted;
                residue.push(ResidueTable {
                    applied: applied.clone(),
                });
                kept.insert(*id);
            }
        }
        let end = self.fold.next_offset();
        self.freeze_below(end, &kept);
        let mut tables = Vec::new();
        for (id, rows) in &mut self.tables {
            let Some(schema) = self.fold.schema(*id) else {
                continue;
            };
            for frozen in &mut rows.frozen {
                frozen.rows.small = None;
                tables.push(FrozenTable {
                    id: *id,
                    schema: Arc::clone(schema),
                    bounds: self.fold.bounds(*id).cloned(),
                    view: frozen.rows.memtable.view(),
                });
            }
        }
        // Stable: a table's parts stay in their order.
        tables.sort_by_key(|t| t.id);
        self.dirty_since_ms = None;
        Frozen {
            fold: self.fold.clone(),
            tables,
            residue,
            deletes: self.deletes.iter().map(|(t, d)| (*t, d.clone())).collect(),
            changes: self.changes.clone(),
            gone: self.gone.drain().collect(),
            topic: self.topic.clone(),
        }
    }

    /// What a view of the table shows now.
    pub(crate) fn shown(&self, table: TableId, schema: &TableSchema) -> Shown {
        let memory = self.tables.get(&table).map_or_else(Vec::new, |rows| {
            rows.all().map(|held| held.memtable.view()).collect()
        });
        let mut current = self.changes.files(&self.manifest, table);
        current.retain(|entry| entry.file.incarnation == schema.incarnation);
        let deletes = {
            let sources = self.changes.sources(self.manifest.replay_offset(), table);
            let named = sources.into_iter().filter_map(|t| self.manifest.table(t));
            let old: Vec<_> = named.flat_map(|t| &t.deletes).collect();
            let new = self
                .deletes
                .get(&table)
                .map(Vec::as_slice)
                .unwrap_or_default();
            needed_deletes(&current, old.into_iter().chain(new))
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
            let all = rows.into_all().map(|held| held.memtable);
            released.tables.extend(all);
        }
        self.departed.clear();
        self.boundaries.clear();
        self.memory_bytes = 0;
        released
    }
}

/// The version just below every version at or after `replay`.
pub(crate) fn version_before(fold: &FoldState, replay: Offset) -> RowVersion {
    RowVersion(fold.row_version(replay, 0).0.saturating_sub(1))
}
