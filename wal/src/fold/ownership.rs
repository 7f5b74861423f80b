//! What this shard owns of which table, and `Split` and `Recut`, which change it.
//!
//! A plan was made from a state that other leaders may have moved on since. It applies only if
//!
//! - the manifest that it names is the last one named here, attempt and all (→ a new leader opened
//!   from a newer one; the child would lack its rows), and
//! - every move fits the units as they are: there, named once, cut into two real parts that join
//!   to exactly what is owned now.
//!
//! Otherwise it is a *stale plan* and changes nothing. Applied, it raises the generation, so that
//! every write that was routed by the old layout is refused wherever it still is, and the units
//! that it touches count as changed, so that no UPDATE or DELETE that read before it applies.
//!
//! **The child** ([`FoldState::carve`]) is a pure function of the parent's state before the `Split`
//! and the record: whoever computes it, from memory or from a manifest and the log, gets the same.
//! It copies what speaks of rows (schemas, bounds, write ids, imports) and nothing that speaks of
//! the parent's log (claim, seal, decisions, manifest). Its log counts from 0 anew, so its version
//! base lies above every version that the parent gave, and nothing is known to have changed in it:
//! the floor of its changes is offset 0. A statement that read in the parent cannot reach it: it
//! is of another generation, and a read position is one of a shard; the engine compares the shard
//! before it writes and re-plans a statement that was refused for its generation.

use std::sync::Arc;

use hashbrown::HashSet;
use serde::{Deserialize, Serialize};
use shoal_types::{
    ColumnId, Extent, KeyRange, Offset, PartitionBounds, PartitionMethod, ProcedureId, ShardId,
    TableId, TableSchema,
};

use super::procedures::Decision;
use super::recent::RecentSchemas;
use super::{FoldState, Verdict};
use crate::record::{Join, ManifestRef, Move, Recut, Split, UnitCut};

/// No version base is above this: `(base + offset) << 16 | row` must fit into 64 bits, and half of
/// the positions stay for offsets. A procedure that would lead beyond it is a stale plan for good.
pub const VERSION_BASE_MAX: u64 = 1 << 47;

/// A unit that owns a part of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedUnit {
    /// The unit.
    pub unit: TableId,
    /// The table.
    pub of: TableId,
    /// Which part.
    pub bounds: Arc<PartitionBounds>,
}

/// The split that a shard comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The parent.
    pub shard: ShardId,
    /// The procedure.
    pub procedure: ProcedureId,
    /// Offset of the `Split` in the parent's log.
    pub at: Offset,
}

impl FoldState {
    /// What of its table a unit owns; `None`: all of it (or there is no such unit).
    #[must_use]
    pub fn bounds(&self, unit: TableId) -> Option<&Arc<PartitionBounds>> {
        self.units.get(&unit).map(|owned| &owned.bounds)
    }

    /// The table that a unit is a part of: itself, unless it was said or cut otherwise.
    #[must_use]
    pub fn table_of(&self, unit: TableId) -> TableId {
        self.units.get(&unit).map_or(unit, |owned| owned.of)
    }

    /// The split that made this shard; `None`: none did.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        self.head.origin
    }

    /// The first state of the child of a split that stands at `at` in this shard's log; `self` is
    /// the state before it. `None`: the split does not apply to this state.
    #[must_use]
    pub fn carve(&self, parent: ShardId, split: &Split, at: Offset) -> Option<Self> {
        if self.judge_split(at, split) != Verdict::Apply {
            return None;
        }
        let mut child = Self::new(self.head.limits);
        child.head.version_base = self.child_base(at)?;
        child.head.generation = self.generation_above(0)?;
        child.head.origin = Some(Origin {
            shard: parent,
            procedure: split.procedure,
            at,
        });
        child.write_ids = self.write_ids.clone();
        child.write_ids.close_unscoped(&self.head.limits);
        child.imports.copy_whole(&self.imports, Offset(0));
        // No edit leads from an empty state to this one but one that looks at every unit.
        child.recent = RecentSchemas::complete_from(Offset(1));
        for one in &split.moves {
            let schema = self.schemas.get(&one.unit)?;
            match &one.cut {
                None => {
                    child.schemas.insert_mut(one.unit, Arc::clone(schema));
                    (child.imports).copy_unit(&self.imports, one.unit, one.unit, Offset(0));
                    if let Some(owned) = self.units.get(&one.unit) {
                        child.units.insert_mut(one.unit, owned.clone());
                    }
                }
                Some(cut) => {
                    child.add_right(schema, self.table_of(one.unit), cut);
                    let right = cut.right_unit;
                    (child.imports).copy_unit(&self.imports, one.unit, right, Offset(0));
                }
            }
        }
        Some(child)
    }

    fn child_base(&self, at: Offset) -> Option<u64> {
        let base = self.head.version_base.checked_add(at.0)?.checked_add(1)?;
        (base <= VERSION_BASE_MAX).then_some(base)
    }

    /// The generation that follows this one and `other`.
    pub(super) fn generation_above(&self, other: u64) -> Option<u64> {
        self.head.generation.max(other).checked_add(1)
    }

    fn add_right(&mut self, schema: &TableSchema, of: TableId, cut: &UnitCut) {
        let right = TableSchema {
            table: cut.right_unit,
            part_of: Some(of),
            ..schema.clone()
        };
        self.schemas.insert_mut(cut.right_unit, Arc::new(right));
        self.own(cut.right_unit, of, &cut.right);
    }

    fn own(&mut self, unit: TableId, of: TableId, bounds: &PartitionBounds) {
        let bounds = Arc::new(bounds.clone());
        self.units.insert_mut(unit, OwnedUnit { unit, of, bounds });
    }

    fn remove_unit(&mut self, at: Offset, unit: TableId) {
        self.schemas.remove_mut(&unit);
        self.units.remove_mut(&unit);
        self.imports.remove_unit(unit);
        self.note_changed(at, unit);
    }

    fn keep_left(&mut self, at: Offset, unit: TableId, cut: &UnitCut) {
        self.own(unit, self.table_of(unit), &cut.left);
        self.note_changed(at, unit);
    }

    pub(super) fn fold_split(&mut self, at: Offset, split: &Split) -> Verdict {
        let verdict = self.judge_split(at, split);
        let (Verdict::Apply, Some(generation)) = (&verdict, self.generation_above(0)) else {
            return verdict;
        };
        for one in &split.moves {
            match &one.cut {
                None => self.remove_unit(at, one.unit),
                Some(cut) => self.keep_left(at, one.unit, cut),
            }
        }
        self.head.generation = generation;
        self.write_ids.close_unscoped(&self.head.limits);
        let child = split.child;
        self.decide(at, split.procedure, Decision::Split { child });
        Verdict::Apply
    }

    fn judge_split(&self, at: Offset, split: &Split) -> Verdict {
        let verdict = self.judge_plan(split.procedure, split.manifest);
        if verdict != Verdict::Apply {
            return verdict;
        }
        let fits = !split.moves.is_empty()
            && self.moves_fit(&split.moves, &mut HashSet::new())
            && self.child_base(at).is_some()
            && self.generation_above(0).is_some();
        if fits {
            Verdict::Apply
        } else {
            Verdict::StalePlan
        }
    }

    pub(super) fn fold_recut(&mut self, at: Offset, recut: &Recut) -> Verdict {
        let verdict = self.judge_recut(recut);
        let (Verdict::Apply, Some(generation)) = (&verdict, self.generation_above(0)) else {
            return verdict;
        };
        for one in &recut.cuts {
            let (Some(cut), Some(schema)) = (&one.cut, self.schemas.get(&one.unit).cloned()) else {
                continue;
            };
            self.add_right(&schema, self.table_of(one.unit), cut);
            let known = self.imports.clone();
            (self.imports).copy_unit(&known, one.unit, cut.right_unit, at);
            self.note_changed(at, cut.right_unit);
            self.keep_left(at, one.unit, cut);
        }
        for join in &recut.joins {
            self.own(join.left, self.table_of(join.left), &join.bounds);
            self.note_changed(at, join.left);
            self.imports.join_units(join.left, join.right, at);
            self.remove_unit(at, join.right);
        }
        self.head.generation = generation;
        self.write_ids.close_unscoped(&self.head.limits);
        self.decide(at, recut.procedure, Decision::Recut);
        Verdict::Apply
    }

    fn judge_recut(&self, recut: &Recut) -> Verdict {
        let verdict = self.judge_plan(recut.procedure, recut.manifest);
        if verdict != Verdict::Apply {
            return verdict;
        }
        let mut named = HashSet::new();
        let fits = !(recut.cuts.is_empty() && recut.joins.is_empty())
            && recut.cuts.iter().all(|one| one.cut.is_some())
            && self.moves_fit(&recut.cuts, &mut named)
            && recut.joins.iter().all(|join| {
                named.insert(join.left) && named.insert(join.right) && self.join_fits(join)
            })
            && self.generation_above(0).is_some();
        if fits {
            Verdict::Apply
        } else {
            Verdict::StalePlan
        }
    }

    fn judge_plan(&self, procedure: ProcedureId, manifest: ManifestRef) -> Verdict {
        let verdict = self.judge_procedure(procedure);
        if verdict == Verdict::Apply && self.head.manifest != Some(manifest) {
            return Verdict::StalePlan;
        }
        verdict
    }

    /// Whether every move fits. `named`: the units seen so far, old and new.
    fn moves_fit(&self, moves: &[Move], named: &mut HashSet<TableId>) -> bool {
        moves.iter().all(|one| {
            let Some(schema) = self.schemas.get(&one.unit) else {
                return false;
            };
            named.insert(one.unit)
                && one.cut.as_ref().is_none_or(|cut| {
                    named.insert(cut.right_unit)
                        && !self.schemas.contains_key(&cut.right_unit)
                        && self.cut_fits(schema, cut)
                })
        })
    }

    fn cut_fits(&self, schema: &TableSchema, cut: &UnitCut) -> bool {
        let (left, right) = (&cut.left, &cut.right);
        let whole = match self.bounds(schema.table) {
            Some(bounds) if bounds.by != left.by => return false,
            Some(bounds) => bounds.extent.clone(),
            None if left.by.method == PartitionMethod::Range => Extent::Keys(KeyRange::WHOLE),
            None => return false,
        };
        let known = |column: &ColumnId| schema.column_by_id(*column).is_some();
        // That neither part is the whole says that neither is empty.
        let part = |part: &Extent| whole.covers(part) && !part.covers(&whole);
        left.by == right.by
            && left.by.columns.iter().all(known)
            && part(&left.extent)
            && part(&right.extent)
            && !left.extent.meets(&right.extent)
            && left.extent.join(&right.extent).as_ref() == Some(&whole)
    }

    fn join_fits(&self, join: &Join) -> bool {
        let units = (self.units.get(&join.left), self.units.get(&join.right));
        let schemas = (self.schemas.get(&join.left), self.schemas.get(&join.right));
        let ((Some(left), Some(right)), (Some(kept), Some(gone))) = (units, schemas) else {
            return false;
        };
        let alike = kept.incarnation == gone.incarnation
            && kept.columns == gone.columns
            && kept.key == gone.key
            && kept.mode == gone.mode;
        alike
            && left.of == right.of
            && left.bounds.by == right.bounds.by
            && join.bounds.by == left.bounds.by
            && !left.bounds.extent.meets(&right.bounds.extent)
            && left.bounds.extent.join(&right.bounds.extent).as_ref() == Some(&join.bounds.extent)
    }
}
