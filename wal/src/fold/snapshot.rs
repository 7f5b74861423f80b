//! The whole fold state as plain data, for manifests: a full [`FoldSnapshot`], or a [`FoldEdit`]
//! that turns an older state of the same log into a newer one and is as large as what changed.
//!
//! The bytes are the manifest's business; these types are serde structs whose newer fields have
//! defaults. Lists are sorted, so equal states give equal bytes.

use std::sync::Arc;

use hashbrown::HashSet;
use serde::{Deserialize, Serialize};
use shoal_types::{Offset, TableId, TableSchema, TimestampMs, WriteId};

use super::ownership::OwnedUnit;
use super::procedures::Decided;
use super::recent::RecentSchemas;
use super::scopes::ScopeSnapshot;
use super::{FoldHead, FoldState, Map};
use crate::record::WriteIdPart;

/// A whole fold state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldSnapshot {
    /// The small part.
    pub head: FoldHead,
    /// All tables.
    pub schemas: Vec<Arc<TableSchema>>,
    /// When tables last changed.
    pub changes: ChangesEdit,
    /// Write ids made before this are refused.
    pub write_id_floor_ms: TimestampMs,
    /// The write ids applied.
    pub write_ids: Vec<WriteIdEntry>,
    /// Progress of imports.
    pub imports: Vec<ImportSnapshot>,
    /// Units that own a part of their table.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<OwnedUnit>,
    /// Procedures decided, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decided: Vec<Decided>,
    /// The scopes that write ids name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub write_id_scopes: Vec<ScopeSnapshot>,
}

/// What changed between two states of one log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoldEdit {
    /// [`FoldState::next_offset`] of the state that this edit starts from.
    pub base: Offset,
    /// The small part, as it is now.
    pub head: FoldHead,
    /// Tables made or changed.
    pub schemas_put: Vec<Arc<TableSchema>>,
    /// Tables dropped.
    pub schemas_dropped: Vec<TableId>,
    /// When tables last changed.
    pub changes: ChangesEdit,
    /// Write ids made before this are refused.
    pub write_id_floor_ms: TimestampMs,
    /// Write ids applied since.
    pub write_ids: Vec<WriteIdEntry>,
    /// Imports that advanced.
    pub imports_put: Vec<ImportSnapshot>,
    /// Imports that were forgotten.
    pub imports_forgotten: Vec<u128>,
    /// Units that own another part of their table than before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units_put: Vec<OwnedUnit>,
    /// Units that own all of their table now, having been dropped and made anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub units_whole: Vec<TableId>,
    /// Procedures decided since, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decided: Vec<Decided>,
    /// Scopes that write ids name and that are new, or have a number that was another's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub write_id_scopes: Vec<ScopeSnapshot>,
    /// Imports that were forgotten for one unit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports_forgotten_units: Vec<(u128, TableId)>,
}

/// What was applied of one part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteIdEntry {
    /// The client's id.
    pub id: WriteId,
    /// The part.
    pub part: u32,
    /// The number of the scope: which rows of the part. 0: those of a record from before
    /// partitions; 1: nothing can be told of it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scope: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants it so
fn is_zero(scope: &u32) -> bool {
    *scope == 0
}

impl WriteIdEntry {
    /// Without the scope.
    #[must_use]
    pub fn part(&self) -> WriteIdPart {
        WriteIdPart {
            id: self.id,
            part: self.part,
        }
    }
}

/// An edit that does not belong to the state it was applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a fold edit from offset {base} cannot follow a state at offset {state}: the manifest chain is broken"
)]
pub struct FoldEditError {
    /// Where the edit starts.
    pub base: Offset,
    /// Where the state is.
    pub state: Offset,
}

/// When tables last changed, by generation (see the `changes` module).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangesEdit {
    /// How often the generations moved on.
    pub rotations: u64,
    /// No change of the previous generation is above this.
    pub previous_end: Offset,
    /// Tables that are not listed changed here at the latest.
    pub floor: Offset,
    /// Changes of the current generation.
    pub current: Vec<TableChange>,
    /// The previous generation; `None`: as it was, and `current` adds to what was there.
    pub previous: Option<Vec<TableChange>>,
}

/// The last change of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChange {
    /// The table.
    pub table: TableId,
    /// By anybody.
    pub at: Offset,
    /// The write id of that change, if it had one.
    pub by: Option<WriteId>,
    /// By anybody else than `by`, at the latest.
    pub before: Offset,
}

/// Progress of one import on one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSnapshot {
    /// The import.
    pub import: u128,
    /// Every chunk below is done.
    pub low: u64,
    /// Bit `i`: chunk `low + i` is done.
    pub done: u64,
    /// Chunks of which some parts are applied.
    pub open: Vec<OpenChunk>,
    /// Offset of the last record that advanced it.
    pub advanced: Offset,
    /// The unit whose rows it is about; `None`: records that named no unit, and those from before
    /// partitions, which are about the whole shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<TableId>,
    /// Without a unit: only records without rows were seen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty: bool,
    /// Nothing can be told any more: its chunks are refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expired: bool,
}

/// A chunk that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenChunk {
    /// Its number.
    pub chunk: u64,
    /// Bit `i`: part `i` is applied.
    pub parts: u128,
    /// The number of its last part, once that was seen.
    pub last: Option<u32>,
}

impl FoldState {
    /// The whole state as plain data.
    #[must_use]
    pub fn to_snapshot(&self) -> FoldSnapshot {
        let mut schemas: Vec<_> = self.schemas.values().cloned().collect();
        schemas.sort_unstable_by_key(|s| s.table);
        FoldSnapshot {
            head: self.head,
            schemas,
            changes: self.changes.to_edit(None),
            write_id_floor_ms: self.write_ids.floor_ms(),
            write_ids: self.write_ids.added_since(&Default::default()),
            imports: self.imports.advanced_since(Offset(0)),
            units: sorted_units(&self.units),
            decided: self.procedures.since(Offset(0)),
            write_id_scopes: self.write_ids.scopes_added_since(&Default::default()),
        }
    }

    /// The state that [`Self::to_snapshot`] described.
    #[must_use]
    pub fn from_snapshot(snapshot: &FoldSnapshot) -> Self {
        let mut state = Self::new(snapshot.head.limits);
        state.head = snapshot.head;
        state.recent = RecentSchemas::complete_from(snapshot.head.next_offset);
        for schema in &snapshot.schemas {
            state.schemas.insert_mut(schema.table, Arc::clone(schema));
        }
        state.changes.apply_edit(&snapshot.changes);
        state.write_ids.apply_edit(
            snapshot.write_id_floor_ms,
            &snapshot.write_id_scopes,
            &snapshot.write_ids,
        );
        state.imports.apply_edit(&snapshot.imports, &[]);
        for unit in &snapshot.units {
            state.units.insert_mut(unit.unit, unit.clone());
        }
        let limits = state.head.limits;
        state.procedures.apply_edit(&limits, &snapshot.decided);
        state
    }

    /// What turns `older` into `self`. `older` must be an earlier state of the same log (or this
    /// one). The result is as large as what changed.
    #[must_use]
    pub fn edit_since(&self, older: &Self) -> FoldEdit {
        let from = older.head.next_offset;
        let mut put = Vec::new();
        let mut dropped = Vec::new();
        let mut units_put = Vec::new();
        let mut units_whole = Vec::new();
        for table in self.schemas_changed_since(older) {
            match (self.schemas.get(&table), older.schemas.get(&table)) {
                (Some(now), Some(then)) if Arc::ptr_eq(now, then) || now == then => {}
                (Some(now), _) => put.push(Arc::clone(now)),
                (None, Some(_)) => dropped.push(table),
                (None, None) => {}
            }
            match (self.units.get(&table), older.units.get(&table)) {
                (Some(now), then) if then != Some(now) => units_put.push(now.clone()),
                (None, Some(_)) if self.schemas.contains_key(&table) => units_whole.push(table),
                _ => {}
            }
        }
        let (imports_forgotten, imports_forgotten_units) =
            self.imports.forgotten_since(&older.imports);
        FoldEdit {
            base: from,
            head: self.head,
            schemas_put: put,
            schemas_dropped: dropped,
            changes: self.changes.to_edit(Some((&older.changes, from))),
            write_id_floor_ms: self.write_ids.floor_ms(),
            write_ids: self.write_ids.added_since(&older.write_ids),
            imports_put: self.imports.advanced_since(from),
            imports_forgotten,
            units_put,
            units_whole,
            decided: self.procedures.since(from),
            write_id_scopes: self.write_ids.scopes_added_since(&older.write_ids),
            imports_forgotten_units,
        }
    }

    /// Tables whose schema or bounds may differ, sorted.
    fn schemas_changed_since(&self, older: &Self) -> Vec<TableId> {
        if self.schemas.ptr_eq(&older.schemas) && self.units.ptr_eq(&older.units) {
            return Vec::new();
        }
        self.recent
            .since(older.head.next_offset)
            .unwrap_or_else(|| {
                let all = self.schemas.keys().chain(older.schemas.keys());
                let mut tables: Vec<_> = all.copied().collect();
                tables.sort_unstable();
                tables.dedup();
                tables
            })
    }

    /// Moves this state to where the edit leads.
    ///
    /// # Errors
    /// [`FoldEditError`] if the edit starts from another position; the state is unchanged.
    pub fn apply_edit(&mut self, edit: &FoldEdit) -> Result<(), FoldEditError> {
        if edit.base != self.head.next_offset {
            return Err(FoldEditError {
                base: edit.base,
                state: self.head.next_offset,
            });
        }
        self.head = edit.head;
        self.recent = RecentSchemas::complete_from(edit.head.next_offset);
        for table in &edit.schemas_dropped {
            self.schemas.remove_mut(table);
            self.units.remove_mut(table);
        }
        for schema in &edit.schemas_put {
            self.schemas.insert_mut(schema.table, Arc::clone(schema));
        }
        self.changes.apply_edit(&edit.changes);
        self.write_ids.apply_edit(
            edit.write_id_floor_ms,
            &edit.write_id_scopes,
            &edit.write_ids,
        );
        let whole = edit.imports_forgotten.iter().map(|import| (*import, None));
        let of_units = edit.imports_forgotten_units.iter();
        let of_units = of_units.map(|(import, unit)| (*import, Some(*unit)));
        let forgotten: Vec<_> = whole.chain(of_units).collect();
        self.imports.apply_edit(&edit.imports_put, &forgotten);
        for unit in &edit.units_whole {
            self.units.remove_mut(unit);
        }
        for unit in &edit.units_put {
            self.units.insert_mut(unit.unit, unit.clone());
        }
        let limits = self.head.limits;
        self.procedures.apply_edit(&limits, &edit.decided);
        Ok(())
    }
}

impl FoldSnapshot {
    /// Forgets the oldest write ids until at most `count` are left: they are refused as expired
    /// from then on, as if the window were smaller. For a `Merge` that is too large for a record.
    pub fn keep_newest_write_ids(&mut self, count: usize) {
        let Some(surplus) = self.write_ids.len().checked_sub(count).filter(|n| *n > 0) else {
            return;
        };
        self.write_ids.sort_unstable_by_key(|w| (w.id, w.part));
        let newest_forgotten = self.write_ids[surplus - 1].id.created_ms();
        self.write_id_floor_ms = self.write_id_floor_ms.max(newest_forgotten + 1);
        let floor_ms = self.write_id_floor_ms;
        self.write_ids.retain(|w| w.id.created_ms() >= floor_ms);
        let named: HashSet<u32> = self.write_ids.iter().map(|w| w.scope).collect();
        self.write_id_scopes.retain(|s| named.contains(&s.number));
    }
}

fn sorted_units(units: &Map<TableId, OwnedUnit>) -> Vec<OwnedUnit> {
    let mut sorted: Vec<_> = units.values().cloned().collect();
    sorted.sort_unstable_by_key(|u| u.unit);
    sorted
}
