//! The whole fold state as plain data, for manifests: a full [`FoldSnapshot`], or a [`FoldEdit`]
//! that turns an older state of the same log into a newer one and is as large as what changed.
//!
//! The bytes are the manifest's business; these types are serde structs whose newer fields have
//! defaults. Lists are sorted, so equal states give equal bytes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_types::{Offset, TableId, TableSchema, TimestampMs, WriteId};

use super::recent::RecentSchemas;
use super::{FoldHead, FoldState};
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
    pub write_ids: Vec<WriteIdPart>,
    /// Progress of imports.
    pub imports: Vec<ImportSnapshot>,
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
    pub write_ids: Vec<WriteIdPart>,
    /// Imports that advanced.
    pub imports_put: Vec<ImportSnapshot>,
    /// Imports that were forgotten.
    pub imports_forgotten: Vec<u128>,
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
        state
            .write_ids
            .apply_edit(snapshot.write_id_floor_ms, &snapshot.write_ids);
        state.imports.apply_edit(&snapshot.imports, &[]);
        state
    }

    /// What turns `older` into `self`. `older` must be an earlier state of the same log (or this
    /// one). The result is as large as what changed.
    #[must_use]
    pub fn edit_since(&self, older: &Self) -> FoldEdit {
        let from = older.head.next_offset;
        let mut put = Vec::new();
        let mut dropped = Vec::new();
        for table in self.schemas_changed_since(older) {
            match (self.schemas.get(&table), older.schemas.get(&table)) {
                (Some(now), Some(then)) if Arc::ptr_eq(now, then) || now == then => {}
                (Some(now), _) => put.push(Arc::clone(now)),
                (None, Some(_)) => dropped.push(table),
                (None, None) => {}
            }
        }
        FoldEdit {
            base: from,
            head: self.head,
            schemas_put: put,
            schemas_dropped: dropped,
            changes: self.changes.to_edit(Some((&older.changes, from))),
            write_id_floor_ms: self.write_ids.floor_ms(),
            write_ids: self.write_ids.added_since(&older.write_ids),
            imports_put: self.imports.advanced_since(from),
            imports_forgotten: self.imports.forgotten_since(&older.imports),
        }
    }

    /// Tables whose schema may differ, sorted.
    fn schemas_changed_since(&self, older: &Self) -> Vec<TableId> {
        if self.schemas.ptr_eq(&older.schemas) {
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
        }
        for schema in &edit.schemas_put {
            self.schemas.insert_mut(schema.table, Arc::clone(schema));
        }
        self.changes.apply_edit(&edit.changes);
        self.write_ids
            .apply_edit(edit.write_id_floor_ms, &edit.write_ids);
        self.imports
            .apply_edit(&edit.imports_put, &edit.imports_forgotten);
        Ok(())
    }
}
