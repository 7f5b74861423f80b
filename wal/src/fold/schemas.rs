//! `Schema` records: units made, changed and dropped, all changes of a record or none.

use std::sync::Arc;

use shoal_types::{Offset, TableId};

use super::ownership::OwnedUnit;
use super::{FoldState, Verdict};
use crate::record::SchemaChange;

impl FoldState {
    pub(super) fn fold_schema(&mut self, offset: Offset, changes: &[SchemaChange]) -> Verdict {
        if self.head.seal.is_some() {
            return Verdict::Sealed;
        }
        // On copies (which share everything), so that a refused change undoes those before it.
        let mut schemas = self.schemas.clone();
        let mut units = self.units.clone();
        for change in changes {
            let table = change.table();
            let current = schemas.get(&table).map(|s| s.version);
            match change {
                SchemaChange::Put(schema) => {
                    let next = current.map_or(Some(1), |v| v.checked_add(1));
                    if next != Some(schema.version) {
                        return Verdict::StaleSchema { table };
                    }
                    schemas.insert_mut(table, Arc::clone(schema));
                }
                SchemaChange::Drop { .. } => {
                    if current.is_none() {
                        return Verdict::StaleSchema { table };
                    }
                    schemas.remove_mut(&table);
                    units.remove_mut(&table);
                }
                SchemaChange::Own { of, bounds, .. } => {
                    // Of a unit that may have rows, only records that raise the generation change
                    // what it owns.
                    if current.is_none()
                        || self.schemas.contains_key(&table)
                        || units.contains_key(&table)
                    {
                        return Verdict::StaleSchema { table };
                    }
                    let unit = OwnedUnit {
                        unit: table,
                        of: *of,
                        bounds: Arc::clone(bounds),
                    };
                    units.insert_mut(table, unit);
                }
            }
        }
        self.schemas = schemas;
        self.units = units;
        for change in changes {
            if let SchemaChange::Drop { table } = change {
                self.imports.remove_unit(*table);
            }
            self.note_changed(offset, change.table());
        }
        Verdict::Apply
    }

    /// A unit counts as changed here, for UPDATE and DELETE as for edits.
    pub(super) fn note_changed(&mut self, offset: Offset, unit: TableId) {
        self.changes.note(&self.head.limits, unit, offset, None);
        self.recent.note(offset, unit);
    }
}

impl SchemaChange {
    /// The unit that it changes.
    #[must_use]
    pub fn table(&self) -> TableId {
        match self {
            Self::Put(schema) => schema.table,
            Self::Drop { table } | Self::Own { table, .. } => *table,
        }
    }
}
