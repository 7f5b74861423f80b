//! What a change of ownership does to rows in memory and to the files that units have.
//!
//! No row is moved or copied. After a cut both halves have the same parts of memory and the same
//! files, and show what they own of them (`owned.rs`); the parts are closed, so that what comes
//! later is only the owner's. A join brings the parts of two units together; who plans it sees to
//! it that neither has rows that it does not own, and no predicate deletes that files still need.
//!
//! The manifest in force knows nothing of a change that stands above its replay offset. Until a flush
//! writes it down, a unit's files are those of the manifest's units that it came from
//! ([`Changes::sources`]); whoever replays the log comes to the same.

use std::sync::Arc;

use shoal_types::{Offset, PartitionId, ProcedureId, TableId};
use shoal_wal::record::{Join, Move, Payload, Recut};

use super::state::{FrozenRows, Held, ShardState, TableRows};
use super::{Counters, Shard};
use crate::EngineError;
use crate::manifest::ManifestState;
use crate::manifest::format::FileEntry;

/// One change of the units of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The right unit has what the left one had, up to here.
    Cut { left: TableId, right: TableId },
    /// The left unit has what the right one had, too; that is gone.
    Join { left: TableId, right: TableId },
}

/// Changes above the replay offset of a manifest, in the order of the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes(Vec<(Offset, Change)>);

impl Changes {
    fn note(&mut self, at: Offset, change: Change) {
        self.0.push((at, change));
    }

    /// A manifest with this replay offset has the others written down.
    pub(crate) fn keep_from(&mut self, replay: Offset) {
        self.0.retain(|(at, _)| *at >= replay);
    }

    /// Which units of a manifest with this replay offset a unit's files are those of.
    pub(crate) fn sources(&self, replay: Offset, unit: TableId) -> Vec<TableId> {
        let mut sources = vec![unit];
        // From the newest change back: what the unit has come from.
        for (at, change) in self.0.iter().rev() {
            if *at < replay {
                break;
            }
            match change {
                Change::Cut { left, right } => {
                    for source in &mut sources {
                        if source == right {
                            *source = *left;
                        }
                    }
                }
                Change::Join { left, right } if sources.contains(left) => sources.push(*right),
                Change::Join { .. } => {}
            }
        }
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// Units whose files a manifest with this replay offset does not have by their names.
    pub(crate) fn touched(&self, replay: Offset) -> Vec<TableId> {
        let above = self.0.iter().filter(|(at, _)| *at >= replay);
        let mut touched: Vec<TableId> = above
            .flat_map(|(_, change)| match change {
                Change::Cut { right, .. } => [*right, *right],
                Change::Join { left, right } => [*left, *right],
            })
            .collect();
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// The files that a unit has by a manifest and the changes above it, as entries of its own.
    pub(crate) fn files(&self, manifest: &ManifestState, unit: TableId) -> Vec<FileEntry> {
        let sources = self.sources(manifest.replay_offset(), unit);
        files_of(manifest, &sources, unit)
    }
}

/// The files of some units of a manifest, as entries of one unit.
pub(super) fn files_of(
    manifest: &ManifestState,
    sources: &[TableId],
    unit: TableId,
) -> Vec<FileEntry> {
    if sources == [unit] {
        let named = manifest.table(unit);
        return named.map(|t| t.files.clone()).unwrap_or_default();
    }
    let mut files: Vec<FileEntry> = Vec::new();
    for source in sources {
        for entry in manifest.table(*source).into_iter().flat_map(|t| &t.files) {
            // Cut and joined again, a unit may have a file from both.
            if files.iter().all(|f| f.file.path != entry.file.path) {
                files.push(of_unit(entry, unit));
            }
        }
    }
    files.sort_by_key(|f| (f.file.version_max, f.file.version_min));
    files
}

/// A file as another unit names it.
pub(crate) fn of_unit(entry: &FileEntry, unit: TableId) -> FileEntry {
    let mut entry = entry.clone();
    entry.file.table = unit;
    entry.file.partition = PartitionId(unit.0);
    entry
}

impl ShardState {
    /// Carries out a [`Recut`] that the fold has applied.
    pub(super) fn recut(&mut self, at: Offset, recut: &Recut) {
        for one in &recut.cuts {
            if let Some(cut) = &one.cut {
                let rows = self.share_rows(one.unit, cut.right_unit);
                self.take_cut(one.unit, cut.right_unit, rows);
                let (left, right) = (one.unit, cut.right_unit);
                self.changes.note(at, Change::Cut { left, right });
            }
        }
        for join in &recut.joins {
            self.join_rows(join.left, join.right);
            let (left, right) = (join.left, join.right);
            self.changes.note(at, Change::Join { left, right });
        }
    }

    /// Closes a unit's memory and gives it as another one's, too.
    pub(super) fn share_rows(&mut self, unit: TableId, other: TableId) -> TableRows {
        let Some(rows) = self.tables.get_mut(&unit) else {
            return TableRows::default();
        };
        if let Some(active) = rows.active.take() {
            rows.sealed.push(active);
        }
        let Some(schema) = self.fold.schema(other).or(self.fold.schema(unit)) else {
            return TableRows::default();
        };
        let share = |held: &mut Held| {
            // A residue object could not say whose its rows are.
            held.small = None;
            Held {
                memtable: held.memtable.shared_as(Arc::clone(schema)),
                counted: 0,
                small: None,
            }
        };
        TableRows {
            frozen: rows
                .frozen
                .iter_mut()
                .map(|frozen| FrozenRows {
                    end: frozen.end,
                    rows: share(&mut frozen.rows),
                })
                .collect(),
            sealed: rows.sealed.iter_mut().map(share).collect(),
            active: None,
        }
    }

    fn take_cut(&mut self, left: TableId, right: TableId, rows: TableRows) {
        for (_, tables) in &mut self.boundaries {
            let times = tables.iter().filter(|t| **t == left).count();
            tables.extend(std::iter::repeat_n(right, times));
        }
        if !rows.is_empty() {
            self.tables.insert(right, rows);
        }
        if let Some(deletes) = self.deletes.get(&left).cloned() {
            self.deletes.insert(right, deletes);
        }
    }

    fn join_rows(&mut self, left: TableId, right: TableId) {
        for (_, tables) in &mut self.boundaries {
            for table in tables.iter_mut().filter(|t| **t == right) {
                *table = left;
            }
        }
        let mut rows = self.tables.remove(&left).unwrap_or_default();
        rows.sealed.extend(rows.active.take());
        let more = self.tables.remove(&right).unwrap_or_default();
        rows.frozen.extend(more.frozen);
        rows.frozen
            .make_contiguous()
            .sort_by_key(|frozen| frozen.end);
        rows.sealed.extend(more.sealed);
        rows.sealed.extend(more.active);
        for held in rows.all_mut() {
            held.small = None;
        }
        if !rows.is_empty() {
            self.tables.insert(left, rows);
        }
        self.deletes.remove(&right);
        self.gone.remove(&right);
    }

    /// Why two units cannot be joined as they are; `None`: they can.
    pub(crate) fn not_joinable(&self, left: TableId, right: TableId) -> Option<&'static str> {
        for unit in [left, right] {
            let owned = self.fold.bounds(unit).map(|b| &**b);
            let files = self.changes.files(&self.manifest, unit);
            let rows = self.tables.get(&unit);
            let shared = files
                .iter()
                .any(|f| !crate::owned::owns_all(owned, f.file.bounds.as_deref()))
                || rows.is_some_and(|rows| {
                    rows.all().any(|h| {
                        !crate::owned::owns_all(owned, h.memtable.written_under.as_deref())
                    })
                });
            if shared {
                return Some(
                    "files still hold rows of other partitions; compaction takes them apart",
                );
            }
            let pending = |unit| {
                self.manifest
                    .table(unit)
                    .is_some_and(|t| !t.deletes.is_empty())
            };
            if self.deletes.contains_key(&unit) || pending(unit) {
                return Some("deletes are still to be applied to files; compaction does that");
            }
        }
        None
    }
}

/// Tries to bring two units to where they can be joined: flushes and compactions may come in
/// between.
const JOIN_TRIES: u32 = 8;

/// Cuts and joins of a [`Recut`].
pub(crate) type Plan = (Vec<Move>, Vec<Join>);

impl Shard {
    /// Cuts and joins units as `plan` says of the state that it is given; returns when meta knows.
    ///
    /// # Errors
    /// The plan's; [`EngineError::Invalid`]: two units cannot be joined now.
    pub(crate) async fn recut(
        self: &Arc<Self>,
        procedure: ProcedureId,
        plan: impl Fn(&ShardState) -> Result<Plan, EngineError> + Send + 'static,
    ) -> Result<(), EngineError> {
        for _ in 0..JOIN_TRIES {
            let waiting = {
                let mut publishing = self.publishing.lock().await;
                self.settle(&mut publishing).await?;
                let (recut, waiting) = self.planned(procedure, &plan)?;
                if waiting.is_empty() {
                    // Nothing is published meanwhile, so that the plan's manifest is the last.
                    let payload = Payload::Recut(recut);
                    self.submit(payload, Vec::new(), self.patience()).await?;
                    Counters::add(&self.counters.recuts, 1);
                    drop(publishing);
                    return self.tell_layouts().await;
                }
                waiting
            };
            self.flush().await?;
            for unit in waiting {
                self.compact_fully(unit).await?;
            }
        }
        Err(EngineError::Invalid(
            "the files of the partitions hold rows of others, and were not taken apart in time; try again".into(),
        ))
    }

    /// The record, and the units whose files must be taken apart before.
    fn planned(
        &self,
        procedure: ProcedureId,
        plan: &dyn Fn(&ShardState) -> Result<Plan, EngineError>,
    ) -> Result<(Recut, Vec<TableId>), EngineError> {
        let state = self.state.read();
        let (cuts, joins) = plan(&state)?;
        let mut waiting = Vec::new();
        for join in &joins {
            if let Some(why) = state.not_joinable(join.left, join.right) {
                tracing::debug!(shard = %self.id, why, "not joined yet");
                waiting.extend([join.left, join.right]);
            }
        }
        let Some(manifest) = state.fold.manifest() else {
            return Err(self.unavailable());
        };
        let recut = Recut {
            procedure,
            manifest,
            cuts,
            joins,
        };
        Ok((recut, waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_units_files_are_those_of_the_units_it_came_from() {
        let [a, b, c] = [(); 3].map(|()| TableId::generate());
        let mut changes = Changes::default();
        changes.note(Offset(10), Change::Cut { left: a, right: b });
        changes.note(Offset(20), Change::Cut { left: b, right: c });
        assert_eq!(changes.sources(Offset(5), c), [a]);
        assert_eq!(
            changes.sources(Offset(11), c),
            [b],
            "the first cut is written down"
        );
        assert_eq!(changes.sources(Offset(21), c), [c]);
        changes.note(Offset(30), Change::Join { left: a, right: b });
        let mut both = vec![a, b];
        both.sort_unstable();
        assert_eq!(changes.sources(Offset(25), a), both);
        assert_eq!(changes.sources(Offset(5), a), [a], "both come from one");
        changes.keep_from(Offset(25));
        assert_eq!(changes.sources(Offset(5), c), [c]);
    }
}
