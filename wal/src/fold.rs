//! The fold (PROTOCOLS §1): `fold(state, offset, record) -> verdict`, pure.
//!
//! Every replica, the leader included, judges every record with [`fold`] and with nothing else.
//! Two replicas that folded the same records therefore agree on every verdict, whenever and
//! wherever they did it: no clock, no configuration and no randomness enters. Times are stamps
//! that stand in the records, and the bounds ([`FoldLimits`]) are part of the state, because a
//! replica with another bound would forget another write id and judge its retry otherwise.
//!
//! Order of the questions asked of a sequenced record, first match decides:
//!
//! 1. Is it of the current claim, in order? (`NotCurrent`, `Duplicate`, `Gap`)
//!    From here on the record consumes its `seq`, whatever else is said of it; otherwise one
//!    refused write would poison its epoch.
//! 2. `Sealed`: this shard is about to become part of another.
//! 3. `WrongGeneration`: its rows may belong to another shard by now.
//! 4. `StaleSchema`: its rows cannot be stored as they are.
//! 5. `Conflict`: it was computed from rows that have changed.
//! 6. `DuplicateId`, `Overlaps`, `ExpiredId`: it is done already, or in part, or nobody can tell.
//! 7. `Apply`.
//!
//! Of a record that changes what the shard owns: 1, then `Decided`, `Sealed`, `StalePlan`, `Apply`
//! (the `ownership` and `procedures` modules say why).
//!
//! Question 1 is asked with more patience behind records that an operator gave up ([`Skipped`]).

mod changes;
mod imports;
mod merge;
mod ownership;
mod procedures;
mod recent;
mod schemas;
mod scopes;
mod snapshot;
#[cfg(test)]
mod tests;
mod write_ids;

use std::sync::Arc;

use rpds::HashTrieMapSync;
use serde::{Deserialize, Serialize};
use shoal_types::{
    Epoch, ManifestVersion, Offset, ProcedureId, RowVersion, Seq, TableId, TableSchema, WriteId,
    WriterId,
};
use uuid::Uuid;

use crate::record::{Covered, ManifestRef, Payload, Record, WriteHeader, WriteIdPart};
use changes::TableChanges;
use imports::Imports;
pub use ownership::{Origin, OwnedUnit, VERSION_BASE_MAX};
use procedures::Procedures;
pub use procedures::{Decided, Decision};
use recent::RecentSchemas;
pub use scopes::{ScopeSnapshot, TablePart};
pub use snapshot::{
    ChangesEdit, FoldEdit, FoldEditError, FoldSnapshot, ImportSnapshot, OpenChunk, TableChange,
    WriteIdEntry,
};
use write_ids::WriteIds;

/// Persistent map; `BuildHasherDefault` hashes alike in every process, and ids need no defence
/// against chosen keys: ours are generated, clients' ids are bounded in number.
type Map<K, V> = HashTrieMapSync<K, V, std::hash::BuildHasherDefault<ahash::AHasher>>;

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect.
    Apply,
    /// A record of an epoch or writer that is not the current claim; a claim that is not above it.
    NotCurrent,
    /// A `seq` that was seen already (a producer's duplicate); the current claim once more; any
    /// record at an offset that was folded already.
    Duplicate,
    /// A `seq` above the next one, or a record after such: the epoch is poisoned.
    Gap,
    /// A `Write` routed by another ownership generation.
    WrongGeneration,
    /// A `Write` for a dropped table, another incarnation or an unknown column; or a `Schema`
    /// whose version is not the next.
    StaleSchema {
        /// The table.
        table: TableId,
    },
    /// An UPDATE or DELETE whose table changed after the position it read at.
    Conflict {
        /// The table.
        table: TableId,
    },
    /// A write id or import chunk that is applied already: success for the client.
    DuplicateId,
    /// Of a write id or import chunk some rows are applied and some not, because its units were cut,
    /// joined or brought together since. The writer leaves out what is covered and sends the rest
    /// with this as [`WriteHeader::besides`]; if nothing is left, all is applied.
    Overlaps {
        /// What is applied, of the units named. Empty: nothing is, though the record says so.
        covered: Vec<Covered>,
    },
    /// A write id that the window does not reach: too old, or dated too far ahead, or from before
    /// partitions and its units have changed. Also a part number that an import chunk cannot have,
    /// and an import of which units were joined that it had got on with differently.
    ExpiredId,
    /// The shard is sealed: it takes no writes and nothing that changes what it owns until the
    /// procedure that sealed it is decided. Also a `Seal` while another procedure holds one.
    Sealed,
    /// A `Split`, `Merge` or `Recut` that does not fit this state any more, or an `Unseal` by who
    /// does not hold the seal: plan anew from this state.
    StalePlan,
    /// Its procedure was decided here before ([`FoldState::decided`] tells how).
    Decided,
    /// It changes no state: a barrier, a genesis, a `Manifest` that is not above the last named;
    /// a `Seal` or `Abort` that says once more what holds.
    Noted,
}

/// Bounds of what the fold remembers. They are fold state: chosen when the shard is made, then
/// carried by every snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FoldLimits {
    /// Write ids remembered, about 50 bytes each.
    pub write_ids_max: u32,
    /// Parts of tables that are named in the different scopes of write ids, about 50 bytes each.
    /// Beyond it the oldest ids are forgotten: only requests that each write to another set of
    /// tables get there.
    pub write_id_parts_max: u32,
    /// A write id older than this, by the stamp of the record that carries it, is refused.
    pub write_id_age_ms_max: u64,
    /// A write id dated further ahead of the stamp than this is refused: it would stay in the
    /// window and push honest ids out.
    pub write_id_ahead_ms_max: u64,
    /// Tables whose last change is remembered for UPDATE and DELETE.
    pub changed_tables_max: u32,
    /// Imports whose progress is remembered, counted once for every unit that they write to.
    pub imports_max: u32,
    /// Procedures whose outcome is remembered; of more, the oldest is forgotten. Whoever may still
    /// send a record of a procedure must not have seen so many others decided since.
    pub procedures_max: u32,
}

impl Default for FoldLimits {
    fn default() -> Self {
        Self {
            write_ids_max: 1 << 18,
            write_id_parts_max: 1 << 18,
            write_id_age_ms_max: 24 * 3_600_000,
            write_id_ahead_ms_max: 24 * 3_600_000,
            changed_tables_max: 65_536,
            imports_max: 1024,
            procedures_max: 1024,
        }
    }
}

/// The small part of the state, copied whole into every snapshot and edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoldHead {
    /// Bounds.
    #[serde(default)]
    pub limits: FoldLimits,
    /// One past the last offset folded (or passed as foreign).
    pub next_offset: Offset,
    /// Epoch of the current claim.
    pub epoch: Epoch,
    /// Writer of the current claim.
    pub writer: WriterId,
    /// The `seq` that the current claim's next sequenced record must have.
    pub next_seq: Seq,
    /// A gap was seen: nothing sequenced applies until the next claim.
    pub poisoned: bool,
    /// Version base of `__seq`.
    pub version_base: u64,
    /// Ownership generation.
    pub generation: u64,
    /// The last manifest named by an applied `Manifest` or `Claim`.
    pub manifest: Option<ManifestRef>,
    /// Records given up that nothing has settled yet.
    #[serde(default)]
    pub skipped: Skipped,
    /// The merge that this shard is sealed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<ProcedureId>,
    /// The split that made this shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// What records that an operator gave up ([`FoldState::skip`]) may have been, until later records
/// tell. A lost record of the current claim leaves a hole in its numbers, a lost claim leaves its
/// epoch without one; judged as always, everything acknowledged behind either would be refused.
/// (`docs/decisions/0013` has the price.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Skipped {
    /// At most so many numbers of the current claim may be missing: 0 once a record of it applied
    /// or another claim did.
    pub records: u32,
    /// A claim of any term below this may have been lost: its records are taken without it. Whoever
    /// skipped did so in this term, which was above all terms in the log; once a claim of this term
    /// or a higher one applies, no epoch from before the loss can come up any more. 0: none.
    pub term: u64,
}

/// Everything a verdict depends on; the whole of it is in every manifest (PROTOCOLS M1).
/// Cloning is cheap (a few reference counts): large maps are persistent.
#[derive(Clone, Debug)]
pub struct FoldState {
    head: FoldHead,
    schemas: Map<TableId, Arc<TableSchema>>,
    /// What units own that are parts of a table; the others own all of theirs.
    units: Map<TableId, OwnedUnit>,
    changes: TableChanges,
    write_ids: WriteIds,
    imports: Imports,
    procedures: Procedures,
    /// Only to find what an edit holds; no verdict asks it.
    recent: RecentSchemas,
}

/// Equal states judge every record alike.
impl PartialEq for FoldState {
    fn eq(&self, other: &Self) -> bool {
        self.head == other.head
            && self.schemas == other.schemas
            && self.units == other.units
            && self.changes == other.changes
            && self.write_ids == other.write_ids
            && self.imports == other.imports
            && self.procedures == other.procedures
    }
}

impl Default for FoldState {
    fn default() -> Self {
        Self::new(FoldLimits::default())
    }
}

impl FoldState {
    /// The state before offset 0 of a new shard: nobody's, empty, version base 0.
    #[must_use]
    pub fn new(limits: FoldLimits) -> Self {
        Self {
            head: FoldHead {
                limits,
                next_offset: Offset(0),
                epoch: Epoch::default(),
                writer: WriterId(Uuid::nil()),
                next_seq: Seq(0),
                poisoned: false,
                version_base: 0,
                generation: 0,
                manifest: None,
                skipped: Skipped::default(),
                seal: None,
                origin: None,
            },
            schemas: Map::default(),
            units: Map::default(),
            changes: TableChanges::default(),
            write_ids: WriteIds::default(),
            imports: Imports::default(),
            procedures: Procedures::default(),
            recent: RecentSchemas::default(),
        }
    }

    /// The small part of the state.
    #[must_use]
    pub fn head(&self) -> &FoldHead {
        &self.head
    }
    /// One past the last offset folded: where reading goes on (`replay_offset` of a manifest that
    /// holds this state).
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.head.next_offset
    }
    /// The current claim: epoch and writer (`0.0` and nil before the first).
    #[must_use]
    pub fn claim(&self) -> (Epoch, WriterId) {
        (self.head.epoch, self.head.writer)
    }
    /// The `seq` that the current claim's next sequenced record must have.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.head.next_seq
    }
    /// Whether a gap ended the current claim's right to write.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.head.poisoned
    }
    /// Version base of `__seq` (PROTOCOLS §3).
    #[must_use]
    pub fn version_base(&self) -> u64 {
        self.head.version_base
    }
    /// The version of row `row` of the record at `offset`.
    #[must_use]
    pub fn row_version(&self, offset: Offset, row: u16) -> RowVersion {
        RowVersion::new(self.head.version_base, offset, row)
    }
    /// Ownership generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.head.generation
    }
    /// The last manifest named by an applied `Manifest` or `Claim`.
    #[must_use]
    pub fn manifest(&self) -> Option<ManifestRef> {
        self.head.manifest
    }
    /// A table's schema.
    #[must_use]
    pub fn schema(&self, table: TableId) -> Option<&Arc<TableSchema>> {
        self.schemas.get(&table)
    }
    /// All schemas, in no order.
    pub fn schemas(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.schemas.values()
    }
    /// Number of tables.
    #[must_use]
    pub fn table_count(&self) -> usize {
        self.schemas.size()
    }
    /// An offset at or after the last change of a table (rows or schema) by anybody.
    #[must_use]
    pub fn changed_at(&self, table: TableId) -> Offset {
        self.changes.changed_at(table, None)
    }
    /// Whether anything of a write with this id was applied, as far as is remembered.
    #[must_use]
    pub fn has_write_id(&self, id: WriteId) -> bool {
        self.write_ids.contains(WriteIdPart { id, part: 0 })
    }
    /// Whether all rows of a part of a request that a unit owns were applied, as far as is told:
    /// `false` also of an id that is forgotten, or from before partitions with its units changed.
    #[must_use]
    pub fn covers_write_id(&self, unit: TableId, part: WriteIdPart) -> bool {
        self.write_ids.covers(part, &self.piece(unit))
    }
    /// Write ids remembered, for the gauge.
    #[must_use]
    pub fn write_id_count(&self) -> usize {
        self.write_ids.len()
    }
    /// Parts of tables in the scopes of write ids, for the gauge.
    #[must_use]
    pub fn write_id_part_count(&self) -> usize {
        self.write_ids.scope_parts()
    }
    /// For a resumable import: one past the highest chunk below which all are done as far as this
    /// shard can tell; `None` if it has seen none of it.
    ///
    /// A chunk has rows on some shards only, so one shard's answer may be below another's. To
    /// resume, send again from the smallest answer of the shards concerned (`None` counts as 0);
    /// what a shard has applied already it answers with `DuplicateId`. Where the import writes to
    /// several units of this shard, records should name all of them, also without rows: a unit that
    /// never hears of a chunk holds the answer back.
    #[must_use]
    pub fn import_progress(&self, import: u128) -> Option<u64> {
        self.imports.progress(import)
    }

    /// Moves the position past an offset whose bytes are not a record of ours (no magic). Nothing
    /// else changes.
    pub fn pass(&mut self, offset: Offset) {
        self.head.next_offset = self.head.next_offset.max(offset.next());
    }

    /// Moves the position to `end` past records that an operator gave up, in `term`, which must be
    /// above every term in the log. Nothing, if the position is there already.
    pub fn skip(&mut self, end: Offset, term: u64) {
        let Some(lost) = end
            .0
            .checked_sub(self.head.next_offset.0)
            .filter(|n| *n > 0)
        else {
            return;
        };
        let skipped = &mut self.head.skipped;
        skipped.records = skipped
            .records
            .saturating_add(u32::try_from(lost).unwrap_or(u32::MAX));
        skipped.term = skipped.term.max(term);
        self.head.next_offset = end;
    }

    /// Moves the position to where another log begins that takes this one's place; all positions in
    /// it are at or above `begin`, and all below are of the past. What was read below conflicts with
    /// every later write, because nobody knows which changes were lost.
    pub fn begin_log(&mut self, begin: Offset) {
        self.head.next_offset = self.head.next_offset.max(begin);
        self.head.skipped = Skipped::default();
        self.changes.forget_below(begin);
    }

    fn check_schemas(&self, header: &WriteHeader) -> Option<TableId> {
        header
            .tables
            .iter()
            .find(|write| {
                let Some(schema) = self.schemas.get(&write.table) else {
                    return true;
                };
                // An older schema version is fine as long as every column is still known.
                schema.incarnation != write.incarnation || !knows_columns(schema, &write.columns)
            })
            .map(|write| write.table)
    }

    fn judge_write(&self, header: &WriteHeader, stamp_ms: u64) -> Verdict {
        if self.head.seal.is_some() {
            return Verdict::Sealed;
        }
        if header.generation != self.head.generation {
            return Verdict::WrongGeneration;
        }
        if let Some(table) = self.check_schemas(header) {
            return Verdict::StaleSchema { table };
        }
        if let Some(read_at) = header.read_at {
            let own = header.write_id.map(|w| w.id);
            let changed =
                |w: &&crate::record::TableWrite| self.changes.changed_at(w.table, own) > read_at;
            if let Some(write) = header.tables.iter().find(changed) {
                return Verdict::Conflict { table: write.table };
            }
        }
        if header.import.is_none() && header.write_id.is_none() {
            return Verdict::Apply;
        }
        let pieces = self.pieces(header);
        let besides = header.besides.as_deref();
        if let Some(chunk) = &header.import {
            let verdict = self.imports.judge(chunk, besides, &pieces);
            if verdict != Verdict::Apply {
                return verdict;
            }
        }
        let limits = &self.head.limits;
        match header.write_id {
            Some(part) => (self.write_ids).judge(limits, stamp_ms, part, besides, &pieces),
            None => Verdict::Apply,
        }
    }

    fn apply_write(&mut self, offset: Offset, stamp_ms: u64, header: &WriteHeader) {
        let limits = self.head.limits;
        let by = header.write_id.map(|w| w.id);
        for write in &header.tables {
            self.changes.note(&limits, write.table, offset, by);
        }
        if header.import.is_none() && header.write_id.is_none() {
            return;
        }
        let pieces = header.besides.as_ref().map(|_| self.pieces(header));
        let pieces = pieces.as_deref();
        if let Some(part) = header.write_id {
            self.write_ids.insert(&limits, stamp_ms, part, pieces);
        }
        if let Some(chunk) = &header.import {
            self.imports.apply(&limits, offset, chunk, pieces);
        }
    }

    fn fold_claim(&mut self, record: &Record, manifest: ManifestRef) -> Verdict {
        let (epoch, writer) = self.claim();
        if record.epoch == epoch && record.writer == writer {
            return Verdict::Duplicate;
        }
        if record.epoch <= epoch {
            return Verdict::NotCurrent;
        }
        self.head.epoch = record.epoch;
        self.head.writer = record.writer;
        self.head.next_seq = Seq(0);
        self.head.poisoned = false;
        self.head.skipped.records = 0;
        if record.epoch.term >= self.head.skipped.term {
            self.head.skipped = Skipped::default();
        }
        self.raise_manifest(manifest);
        Verdict::Apply
    }

    /// Whether this record can only be of a claim that was given up: in a whole log the claim stands
    /// before every record of its epoch.
    fn implies_claim(&self, record: &Record) -> bool {
        record.epoch > self.head.epoch && record.epoch.term < self.head.skipped.term
    }

    /// The version only rises: a late `Manifest` or `Claim` must not send replicas back to files
    /// that are gone. Returns whether it rose.
    fn raise_manifest(&mut self, named: ManifestRef) -> bool {
        let newest = self.head.manifest.map(|m| m.version);
        let rises = newest.is_none_or(|v: ManifestVersion| named.version > v);
        if rises {
            self.head.manifest = Some(named);
        }
        rises
    }

    /// The verdict on a sequenced record's place in its epoch; `Apply` consumes the `seq`.
    fn sequence(&mut self, record: &Record) -> Verdict {
        if self.implies_claim(record) {
            self.head.epoch = record.epoch;
            self.head.writer = record.writer;
            self.head.next_seq = record.seq;
            self.head.poisoned = false;
            self.head.skipped.records = 0;
        }
        if (record.epoch, record.writer) != self.claim() || record.epoch == Epoch::default() {
            return Verdict::NotCurrent;
        }
        if record.seq < self.head.next_seq {
            return Verdict::Duplicate;
        }
        let missing = record.seq.0 - self.head.next_seq.0;
        if self.head.poisoned || missing > u64::from(self.head.skipped.records) {
            self.head.poisoned = true;
            return Verdict::Gap;
        }
        self.head.skipped.records = 0;
        match record.seq.0.checked_add(1) {
            Some(next) => {
                self.head.next_seq = Seq(next);
                Verdict::Apply
            }
            // No writer gets there; a made-up record must not overflow.
            None => Verdict::Gap,
        }
    }
}

/// Judges a record and moves the state. The only way in which rows, schemas and claims change.
///
/// Offsets must rise; gaps are fine. A record below [`FoldState::next_offset`] was folded already
/// and is answered with `Duplicate`.
pub fn fold(state: &mut FoldState, offset: Offset, record: &Record) -> Verdict {
    if offset < state.head.next_offset {
        return Verdict::Duplicate;
    }
    state.pass(offset);
    match &record.payload {
        Payload::Genesis(_) | Payload::Barrier(_) => return Verdict::Noted,
        Payload::Claim(manifest) => return state.fold_claim(record, *manifest),
        _ => {}
    }
    let place = state.sequence(record);
    if place != Verdict::Apply {
        return place;
    }
    match &record.payload {
        Payload::Write(write) => {
            let verdict = state.judge_write(&write.header, record.stamp_ms);
            if verdict == Verdict::Apply {
                state.apply_write(offset, record.stamp_ms, &write.header);
            }
            verdict
        }
        Payload::Schema(changes) => state.fold_schema(offset, changes),
        Payload::Manifest(manifest) => {
            if state.raise_manifest(*manifest) {
                Verdict::Apply
            } else {
                Verdict::Noted
            }
        }
        Payload::Split(split) => state.fold_split(offset, split),
        Payload::Recut(recut) => state.fold_recut(offset, recut),
        Payload::Merge(merge) => state.fold_merge(offset, merge),
        Payload::Seal { procedure } => state.fold_seal(*procedure),
        Payload::Unseal { procedure } => state.fold_unseal(offset, *procedure),
        Payload::Abort { procedure } => state.fold_abort(offset, *procedure),
        Payload::Genesis(_) | Payload::Barrier(_) | Payload::Claim(_) => Verdict::Noted,
    }
}

/// Whether the schema has every column. Writers name columns in the schema's order almost always,
/// so each search starts behind the last hit; a wide table costs one pass, not a square.
fn knows_columns(schema: &TableSchema, ids: &[shoal_types::ColumnId]) -> bool {
    let columns = &schema.columns;
    let mut from = 0;
    ids.iter().all(|id| {
        let ahead = columns[from..].iter().position(|c| c.id == *id);
        let found = ahead
            .map(|i| from + i)
            .or_else(|| columns[..from].iter().position(|c| c.id == *id));
        if let Some(at) = found {
            from = at + 1;
        }
        found.is_some()
    })
}
