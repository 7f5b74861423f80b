//! How far each resumable import has got on this shard, in the same log records as its rows.
//!
//! Per import and unit: the lowest chunk that is not done, and which of the 64 chunks from there on
//! are done or begun. The client sends at most [`CHUNKS_AHEAD_MAX`] = 32 chunks beyond the oldest one
//! that is not acknowledged, so a chunk that arrives 64 or more above the lowest open one proves
//! that everything it pushes out of the window was acknowledged: applied, or without rows for the
//! unit (which need not hear of such chunks). The window then slides up; it does not refuse, because
//! a chunk without rows here would block the import for ever. A client that breaks the rule may have
//! a late chunk taken for done.
//!
//! A part that is noted as done for a unit says: *all rows of that part of the chunk that the unit
//! owns are applied*. Chunks are cut into parts before rows are routed, as requests with a write id
//! are (see `write_ids`), so that stays true
//!
//! - when the unit goes to another shard: its progress goes along;
//! - when it is cut: both halves have it;
//! - when other units come to this shard: theirs stands beside it, and a record that names units of
//!   which some are done is answered with `Overlaps`.
//!
//! Two units that are joined may have got on differently. Of such an import nothing can be told of
//! the joined unit, so its chunks are refused there from then on: it was under way while its shard
//! was merged and its units joined, and has to begin anew. One that is over is not asked again.
//!
//! Records without units are noted for the shard as a whole. They say that there were no rows for
//! it by the layout of then, so they are forgotten when units come in. Records from before
//! partitions are noted there, too, for whatever units they had rows of; when units come in nothing
//! can be told of these imports any more.
//!
//! [`CHUNKS_AHEAD_MAX`]: crate::record::CHUNKS_AHEAD_MAX

use shoal_types::{Offset, TableId};

use super::scopes::{Piece, left_out};
use super::snapshot::{ImportSnapshot, OpenChunk};
use super::{FoldLimits, Map, Verdict};
use crate::record::{Covered, ImportChunk};

/// Chunks from the lowest open one on that are told apart.
const WINDOW: u64 = 64;
/// Parts of one chunk; with 8 MiB a part this is a chunk of 1 GiB.
const PARTS_MAX: u32 = u128::BITS;

/// An import and the unit that its progress is about.
type Key = (u128, Option<TableId>);

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Imports {
    by_key: Map<Key, ImportSnapshot>,
}

impl Imports {
    /// One past the highest chunk below which all are done for every unit heard of.
    pub(super) fn progress(&self, import: u128) -> Option<u64> {
        let of_import = || self.by_key.values().filter(|i| i.import == import);
        let whole = self.by_key.get(&(import, None));
        let units = || of_import().filter(|i| i.unit.is_some());
        let lowest = units().map(|i| i.low).min();
        let done = |chunk: u64| {
            let by_units = lowest.is_some() && units().all(|i| i.is_done(chunk));
            by_units || whole.is_some_and(|i| i.is_done(chunk))
        };
        let mut low = lowest.max(whole.map(|i| i.low))?;
        // At most a window's length above each of the two.
        while done(low) && low < u64::MAX {
            low += 1;
        }
        Some(low)
    }

    pub(super) fn judge(
        &self,
        chunk: &ImportChunk,
        besides: Option<&[Covered]>,
        pieces: &[Piece],
    ) -> Verdict {
        if chunk.part >= PARTS_MAX {
            return Verdict::ExpiredId;
        }
        let whole = self.by_key.get(&(chunk.import, None));
        let of_unit = |piece: &&Piece| self.by_key.get(&(chunk.import, Some(piece.unit)));
        let expired = |i: &ImportSnapshot| i.expired;
        if whole.is_some_and(expired) || pieces.iter().any(|p| of_unit(&p).is_some_and(expired)) {
            return Verdict::ExpiredId;
        }
        if whole.is_some_and(|i| i.has(chunk)) {
            return Verdict::DuplicateId;
        }
        let Some(besides) = besides else {
            return Verdict::Apply;
        };
        let done = |piece: &&Piece| of_unit(piece).is_some_and(|i| i.has(chunk));
        let covered = |piece: &Piece| Covered {
            unit: piece.unit,
            bounds: None,
        };
        let known: Vec<Covered> = pieces.iter().filter(done).map(covered).collect();
        if !pieces.is_empty() && known.len() == pieces.len() {
            Verdict::DuplicateId
        } else if known != left_out(besides, pieces) {
            Verdict::Overlaps { covered: known }
        } else {
            Verdict::Apply
        }
    }

    /// `pieces`: of a record that says what it brings.
    pub(super) fn apply(
        &mut self,
        limits: &FoldLimits,
        at: Offset,
        chunk: &ImportChunk,
        pieces: Option<&[Piece]>,
    ) {
        match pieces {
            Some([]) => self.note(at, chunk, None, true),
            None => self.note(at, chunk, None, false),
            Some(pieces) => {
                for piece in pieces {
                    self.note(at, chunk, Some(piece.unit), false);
                }
            }
        }
        self.forget_idle(limits, Some(chunk.import));
    }

    fn note(&mut self, at: Offset, chunk: &ImportChunk, unit: Option<TableId>, empty: bool) {
        let key = (chunk.import, unit);
        if let Some(import) = self.by_key.get_mut(&key) {
            import.empty &= empty;
            // A record may name units without rows that have it already.
            if !import.has(chunk) {
                import.apply(at, chunk);
            }
            return;
        }
        let mut import = ImportSnapshot {
            import: chunk.import,
            low: 0,
            done: 0,
            open: Vec::new(),
            advanced: at,
            unit,
            empty,
            expired: false,
        };
        import.apply(at, chunk);
        self.by_key.insert_mut(key, import);
    }

    /// Forgets whole imports, the one idle for longest first, but never `current`.
    fn forget_idle(&mut self, limits: &FoldLimits, current: Option<u128>) {
        while self.by_key.size() > (limits.imports_max as usize).max(1) {
            // Scans, but only when an import begins while a thousand others are remembered. What is
            // idle is told by the unit that advanced last.
            let others = self.by_key.values().filter(|i| Some(i.import) != current);
            let mut last: hashbrown::HashMap<u128, Offset> = hashbrown::HashMap::new();
            for import in others {
                let advanced = last.entry(import.import).or_insert(import.advanced);
                *advanced = import.advanced.max(*advanced);
            }
            let idle = last.into_iter().min_by_key(|(import, at)| (*at, *import));
            let Some((idle, _)) = idle else {
                return;
            };
            let keys = self.by_key.keys().filter(|(import, _)| *import == idle);
            let keys: Vec<Key> = keys.copied().collect();
            for key in keys {
                self.by_key.remove_mut(&key);
            }
        }
    }

    fn of_unit(&self, unit: TableId) -> Vec<ImportSnapshot> {
        let of_unit = self.by_key.values().filter(|i| i.unit == Some(unit));
        of_unit.cloned().collect()
    }

    /// A unit goes, or is dropped.
    pub(super) fn remove_unit(&mut self, unit: TableId) {
        for import in self.of_unit(unit) {
            self.by_key.remove_mut(&(import.import, Some(unit)));
        }
    }

    /// What is known of `unit` in `from` holds for `right`, which was a part of it, too.
    pub(super) fn copy_unit(&mut self, from: &Self, unit: TableId, right: TableId, at: Offset) {
        for import in from.of_unit(unit) {
            let copy = ImportSnapshot {
                unit: Some(right),
                advanced: at,
                ..import
            };
            self.by_key.insert_mut((copy.import, copy.unit), copy);
        }
    }

    /// The shard-wide progress of `from`, which a part of its units takes along.
    pub(super) fn copy_whole(&mut self, from: &Self, at: Offset) {
        for import in from.by_key.values().filter(|i| i.unit.is_none()) {
            let copy = ImportSnapshot {
                advanced: at,
                ..import.clone()
            };
            self.by_key.insert_mut((copy.import, None), copy);
        }
    }

    /// `right` becomes a part of `left`.
    pub(super) fn join_units(&mut self, left: TableId, right: TableId, at: Offset) {
        for mine in self.of_unit(left) {
            let its = self.by_key.get(&(mine.import, Some(right)));
            if !its.is_some_and(|its| mine.is_as_far_as(its)) {
                self.expire(mine, left, at);
            }
        }
        for its in self.of_unit(right) {
            self.by_key.remove_mut(&(its.import, Some(right)));
            if !self.by_key.contains_key(&(its.import, Some(left))) {
                self.expire(its, left, at);
            }
        }
    }

    fn expire(&mut self, import: ImportSnapshot, unit: TableId, at: Offset) {
        let expired = ImportSnapshot {
            unit: Some(unit),
            advanced: at,
            expired: true,
            ..import
        };
        self.by_key
            .insert_mut((expired.import, Some(unit)), expired);
    }

    /// Another shard's units come in, with what is known of them.
    pub(super) fn unite(&mut self, limits: &FoldLimits, at: Offset, other: &Self) {
        let whole = |imports: &Self| {
            let whole = imports.by_key.values().filter(|i| i.unit.is_none());
            whole.cloned().collect::<Vec<_>>()
        };
        for import in whole(self).into_iter().chain(whole(other)) {
            let key = (import.import, None);
            let known = self.by_key.get(&key);
            if import.empty && known.is_none_or(|known| known.empty) {
                self.by_key.remove_mut(&key);
                continue;
            }
            let expired = ImportSnapshot {
                advanced: at,
                empty: false,
                expired: true,
                ..import
            };
            self.by_key.insert_mut(key, expired);
        }
        for import in other.by_key.values().filter(|i| i.unit.is_some()) {
            let import = ImportSnapshot {
                advanced: at,
                ..import.clone()
            };
            self.by_key.insert_mut((import.import, import.unit), import);
        }
        self.forget_idle(limits, None);
    }

    /// Imports that advanced at or after `from`, sorted.
    pub(super) fn advanced_since(&self, from: Offset) -> Vec<ImportSnapshot> {
        let advanced = self.by_key.values().filter(|i| i.advanced >= from);
        let mut imports: Vec<_> = advanced.cloned().collect();
        imports.sort_unstable_by_key(|i| (i.import, i.unit));
        imports
    }

    /// Imports of `older` that were forgotten here, sorted: for the whole shard, and for a unit.
    pub(super) fn forgotten_since(&self, older: &Self) -> (Vec<u128>, Vec<(u128, TableId)>) {
        let gone = |key: &&Key| !self.by_key.contains_key(*key);
        let mut whole = Vec::new();
        let mut units = Vec::new();
        for (import, unit) in older.by_key.keys().filter(gone) {
            match unit {
                Some(unit) => units.push((*import, *unit)),
                None => whole.push(*import),
            }
        }
        whole.sort_unstable();
        units.sort_unstable();
        (whole, units)
    }

    pub(super) fn apply_edit(&mut self, put: &[ImportSnapshot], forgotten: &[Key]) {
        for key in forgotten {
            self.by_key.remove_mut(key);
        }
        for import in put {
            let key = (import.import, import.unit);
            self.by_key.insert_mut(key, import.clone());
        }
    }
}

impl ImportSnapshot {
    fn is_as_far_as(&self, other: &Self) -> bool {
        self.low == other.low
            && self.done == other.done
            && self.open == other.open
            && !self.expired
            && !other.expired
    }

    fn is_done(&self, chunk: u64) -> bool {
        let Some(above) = chunk.checked_sub(self.low) else {
            return true;
        };
        above < WINDOW && self.done >> above & 1 == 1
    }

    fn has(&self, chunk: &ImportChunk) -> bool {
        let open = self.open.iter().find(|o| o.chunk == chunk.chunk);
        self.is_done(chunk.chunk) || open.is_some_and(|o| o.parts >> chunk.part & 1 == 1)
    }

    fn apply(&mut self, offset: Offset, chunk: &ImportChunk) {
        self.advanced = offset;
        self.slide_to(chunk.chunk.saturating_sub(WINDOW - 1));
        let at = match self.open.iter().position(|o| o.chunk == chunk.chunk) {
            Some(at) => at,
            None => {
                self.open.push(OpenChunk {
                    chunk: chunk.chunk,
                    parts: 0,
                    last: None,
                });
                self.open.len() - 1
            }
        };
        let open = &mut self.open[at];
        open.parts |= 1 << chunk.part;
        if chunk.last_part {
            open.last = Some(chunk.part);
        }
        let complete = open
            .last
            .is_some_and(|last| open.parts.trailing_ones() > last);
        if complete {
            self.open.swap_remove(at);
            self.done |= 1 << (chunk.chunk - self.low);
            let contiguous = self.done.trailing_ones();
            self.slide_to(self.low.saturating_add(u64::from(contiguous)));
        }
        self.open.sort_unstable_by_key(|o| o.chunk);
    }

    /// Takes everything below `low` for done.
    fn slide_to(&mut self, low: u64) {
        let Some(by) = low.checked_sub(self.low) else {
            return;
        };
        self.done = u32::try_from(by)
            .ok()
            .and_then(|by| self.done.checked_shr(by))
            .unwrap_or(0);
        self.low = low;
        self.open.retain(|o| o.chunk >= low);
    }
}
