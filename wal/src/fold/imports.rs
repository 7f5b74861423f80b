//! How far each resumable import has got on this shard, in the same log records as its rows.
//!
//! Per import: the lowest chunk that is not done, and which of the 64 chunks from there on are
//! done or begun. The client sends at most [`CHUNKS_AHEAD_MAX`] = 32 chunks beyond the oldest one
//! that is not acknowledged, so a chunk that arrives 64 or more above the lowest open one proves
//! that everything it pushes out of the window was acknowledged: applied here, or without rows
//! for this shard (which never hears of such chunks). The window then slides up; it does not
//! refuse, because a chunk without rows here would block the import for ever. A client that breaks
//! the rule may have a late chunk taken for done.
//!
//! [`CHUNKS_AHEAD_MAX`]: crate::record::CHUNKS_AHEAD_MAX

use shoal_types::Offset;

use super::snapshot::{ImportSnapshot, OpenChunk};
use super::{FoldLimits, Map, Verdict};
use crate::record::ImportChunk;

/// Chunks from the lowest open one on that are told apart.
const WINDOW: u64 = 64;
/// Parts of one chunk; with 8 MiB a part this is a chunk of 1 GiB.
const PARTS_MAX: u32 = u128::BITS;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Imports {
    by_id: Map<u128, ImportSnapshot>,
}

impl Imports {
    pub(super) fn progress(&self, import: u128) -> Option<u64> {
        self.by_id.get(&import).map(|i| i.low)
    }

    pub(super) fn judge(&self, chunk: &ImportChunk) -> Verdict {
        if chunk.part >= PARTS_MAX {
            return Verdict::ExpiredId;
        }
        let seen = self.by_id.get(&chunk.import);
        if seen.is_some_and(|i| i.has(chunk)) {
            return Verdict::DuplicateId;
        }
        Verdict::Apply
    }

    pub(super) fn apply(&mut self, limits: &FoldLimits, offset: Offset, chunk: &ImportChunk) {
        if let Some(import) = self.by_id.get_mut(&chunk.import) {
            import.apply(offset, chunk);
            return;
        }
        while self.by_id.size() >= (limits.imports_max as usize).max(1) {
            // A scan, but only when an import begins while a thousand others are remembered.
            let idle = self.by_id.values().min_by_key(|i| (i.advanced, i.import));
            let Some(import) = idle.map(|i| i.import) else {
                break;
            };
            self.by_id.remove_mut(&import);
        }
        let mut import = ImportSnapshot {
            import: chunk.import,
            low: 0,
            done: 0,
            open: Vec::new(),
            advanced: offset,
        };
        import.apply(offset, chunk);
        self.by_id.insert_mut(chunk.import, import);
    }

    /// Imports that advanced at or after `from`, sorted.
    pub(super) fn advanced_since(&self, from: Offset) -> Vec<ImportSnapshot> {
        let advanced = self.by_id.values().filter(|i| i.advanced >= from);
        let mut imports: Vec<_> = advanced.cloned().collect();
        imports.sort_unstable_by_key(|i| i.import);
        imports
    }

    /// Imports of `older` that were forgotten here, sorted.
    pub(super) fn forgotten_since(&self, older: &Self) -> Vec<u128> {
        let gone = |id: &&u128| !self.by_id.contains_key(*id);
        let mut imports: Vec<u128> = older.by_id.keys().filter(gone).copied().collect();
        imports.sort_unstable();
        imports
    }

    pub(super) fn apply_edit(&mut self, put: &[ImportSnapshot], forgotten: &[u128]) {
        for import in forgotten {
            self.by_id.remove_mut(import);
        }
        for import in put {
            self.by_id.insert_mut(import.import, import.clone());
        }
    }
}

impl ImportSnapshot {
    fn has(&self, chunk: &ImportChunk) -> bool {
        let Some(above) = chunk.chunk.checked_sub(self.low) else {
            return true;
        };
        let open = self.open.iter().find(|o| o.chunk == chunk.chunk);
        (above < WINDOW && self.done >> above & 1 == 1)
            || open.is_some_and(|o| o.parts >> chunk.part & 1 == 1)
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
