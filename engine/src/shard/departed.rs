//! What a replica keeps of units that have left with a `Split`, until the shard that they went to
//! is born.
//!
//! Together with the files that the manifest in force names, the rows kept here are all that the
//! units had at the `Split`. A manifest with a higher replay offset breaks that: then the rows are
//! let go, and a replica that must bear the child after all is opened anew from the newest manifest,
//! whose replay offset is not above the `Split` as long as the child is not born.

use std::sync::Arc;

use shoal_types::{Offset, RowVersion, ShardId, TableId, TableSchema};
use shoal_wal::fold::FoldState;
use shoal_wal::record::Split;

use super::recut::files_of;
use super::state::{FrozenTable, Released, ShardState, TableRows, needed_deletes, version_before};
use crate::PredicateDelete;
use crate::manifest::ManifestState;
use crate::manifest::format::FileEntry;

/// Units that went to one new shard.
#[derive(Debug)]
pub(crate) struct Departed {
    /// Where the `Split` stands.
    pub at: Offset,
    pub child: ShardId,
    /// The child's first state.
    fold: FoldState,
    units: Vec<DepartedUnit>,
    /// No row is newer.
    through: RowVersion,
    /// The rows do not fit the manifest in force any more.
    is_partial: bool,
}

#[derive(Debug)]
struct DepartedUnit {
    unit: TableId,
    rows: TableRows,
    /// The units of the manifest in force that its files are those of.
    sources: Vec<TableId>,
    /// Predicate deletes at or above the manifest's replay offset.
    deletes: Vec<PredicateDelete>,
}

/// What a child begins with.
#[derive(Debug)]
pub(super) struct Inheritance {
    pub fold: FoldState,
    pub through: RowVersion,
    pub units: Vec<InheritedUnit>,
}

#[derive(Debug)]
pub(super) struct InheritedUnit {
    pub unit: TableId,
    /// Rows in no file, oldest first.
    pub rows: Vec<FrozenTable>,
    pub files: Vec<FileEntry>,
    /// All deletes that there are; some may concern no file.
    pub deletes: Vec<PredicateDelete>,
}

impl InheritedUnit {
    /// Those of the deletes that some of these files need.
    pub(super) fn deletes_of(&self, files: &[FileEntry]) -> Vec<PredicateDelete> {
        needed_deletes(files, self.deletes.iter())
    }
}

impl Departed {
    /// Columns of the units.
    pub(super) fn schemas(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.fold.schemas()
    }

    /// What the child begins with, given the newest manifest; `None`: this replica does not have
    /// all of it any more.
    pub(super) fn inheritance(&self, newest: &ManifestState) -> Option<Inheritance> {
        if self.is_partial {
            return None;
        }
        let of_unit = |departed: &DepartedUnit| {
            let unit = departed.unit;
            let schema = self.fold.schema(unit)?;
            let bounds = self.fold.bounds(unit);
            let part = |view| FrozenTable {
                id: unit,
                schema: schema.clone(),
                bounds: bounds.cloned(),
                view,
            };
            let mut files = files_of(newest, &departed.sources, unit);
            files.retain(|entry| entry.file.incarnation == schema.incarnation);
            let named = departed.sources.iter().filter_map(|s| newest.table(*s));
            let mut deletes: Vec<_> = named.flat_map(|t| t.deletes.iter().cloned()).collect();
            deletes.extend(departed.deletes.iter().cloned());
            deletes.sort_by_key(|delete| delete.version);
            deletes.dedup_by_key(|delete| delete.version);
            Some(InheritedUnit {
                unit,
                rows: departed
                    .rows
                    .all()
                    .map(|h| part(h.memtable.view()))
                    .collect(),
                files,
                deletes,
            })
        };
        Some(Inheritance {
            fold: self.fold.clone(),
            through: self.through,
            units: self.units.iter().filter_map(of_unit).collect(),
        })
    }
}

impl ShardState {
    /// Carries out a [`Split`] that the fold has applied; `child`: the new shard's first state.
    pub(super) fn depart(&mut self, at: Offset, split: &Split, child: FoldState) {
        let replay = self.manifest.replay_offset();
        let mut units = Vec::new();
        for one in &split.moves {
            let (unit, rows) = match &one.cut {
                None => (one.unit, self.tables.remove(&one.unit).unwrap_or_default()),
                Some(cut) => (cut.right_unit, self.share_rows(one.unit, cut.right_unit)),
            };
            let deletes = match &one.cut {
                None => self.deletes.remove(&one.unit),
                Some(_) => self.deletes.get(&one.unit).cloned(),
            };
            if one.cut.is_none() {
                for (_, tables) in &mut self.boundaries {
                    tables.retain(|table| *table != one.unit);
                }
                // The next flush stops naming its files.
                self.gone.insert(one.unit);
            }
            units.push(DepartedUnit {
                unit,
                rows,
                sources: self.changes.sources(replay, one.unit),
                deletes: deletes.unwrap_or_default(),
            });
        }
        self.departed.push(Departed {
            at,
            child: split.child,
            fold: child,
            units,
            through: version_before(&self.fold, at.next()),
            is_partial: false,
        });
    }

    /// A manifest with another replay offset has come into force.
    pub(super) fn pass_departed(&mut self, replay: Offset, released: &mut Released) {
        let departed = std::mem::take(&mut self.departed);
        for mut one in departed {
            for unit in &mut one.units {
                self.release_rows(std::mem::take(&mut unit.rows), released);
            }
            one.is_partial = true;
            if one.at >= replay {
                self.departed.push(one);
            }
        }
    }

    /// The child of the `Split` at `at` is born.
    pub(super) fn is_born(&mut self, at: Offset, released: &mut Released) {
        let departed = std::mem::take(&mut self.departed);
        for one in departed {
            if one.at != at {
                self.departed.push(one);
                continue;
            }
            for unit in one.units {
                self.release_rows(unit.rows, released);
            }
        }
    }

    fn release_rows(&mut self, rows: TableRows, released: &mut Released) {
        for held in rows.into_all() {
            self.release(held, released);
        }
    }
}
