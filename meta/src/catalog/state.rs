//! What the catalog knows, and how it takes in what the store says.
//!
//! A key is known with the revision that put it. What is told later but was done earlier (a watch
//! lags behind our own commits and reads) is passed over, so a copy never goes back.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;
use serde::de::DeserializeOwned;
use shoal_types::{ShardId, TableId};

use super::{CATALOG_FORMAT, NamedTable, SchemaEntry, ShardEntry, TableEntry, unescape};
use crate::store::{Change, Listing, MetaError, emptied};

#[derive(Debug, Default)]
pub(super) struct State {
    pub schemas: BTreeMap<Arc<str>, Schema>,
    pub by_id: AHashMap<TableId, NamedTable>,
    pub shards: BTreeMap<ShardId, (ShardEntry, u64)>,
    /// The tables of units whose id is not their table's.
    units: AHashMap<TableId, TableId>,
    pub partitions_by_shard: AHashMap<ShardId, u64>,
    /// Keys that we removed, by the revision of that, until the watch has passed it.
    removed: AHashMap<String, u64>,
    /// The revision of the last change of names that the watch has told.
    pub ddl_revision: u64,
    pub has_format: bool,
}

#[derive(Debug)]
pub(super) struct Schema {
    /// 0: its key is missing, but it has tables.
    pub revision: u64,
    pub tables: BTreeMap<Arc<str>, (TableEntry, u64)>,
}

/// What a key names.
enum Key {
    Format,
    Ddl,
    Schema(String),
    Table(String, String),
    Shard(ShardId),
    /// Of another part of meta, or of a later version: kept, not understood, not touched.
    Other,
}

pub(super) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, MetaError> {
    rmp_serde::from_slice(value).map_err(|e| MetaError::Damaged {
        key: key.to_owned(),
        what: e.to_string(),
    })
}

fn parse(prefix: &str, key: &str) -> Result<Key, MetaError> {
    let damaged = |what: &str| MetaError::Damaged {
        key: key.to_owned(),
        what: what.to_owned(),
    };
    let path = key.strip_prefix(prefix).unwrap_or_default();
    Ok(match path.split_once('/') {
        None if path == "format" => Key::Format,
        None if path == "ddl" => Key::Ddl,
        Some(("schema", name)) => Key::Schema(unescape(name)),
        Some(("table", names)) => {
            let (schema, name) = names
                .split_once('/')
                .ok_or_else(|| damaged("names no table"))?;
            Key::Table(unescape(schema), unescape(name))
        }
        Some(("shard", id)) => Key::Shard(id.parse().map_err(|_| damaged("names no shard"))?),
        _ => Key::Other,
    })
}

impl State {
    /// The state that a listing describes.
    ///
    /// # Errors
    /// [`MetaError::Damaged`], also for another format.
    pub(super) fn load(prefix: &str, listing: &Listing) -> Result<Self, MetaError> {
        let mut state = Self::default();
        for (key, value, revision) in &listing.entries {
            state.put(prefix, key, value, *revision)?;
        }
        Ok(state)
    }

    /// Takes in everything as of a listing. What we know to be newer stays, unless the store went
    /// back.
    ///
    /// # Errors
    /// A value is damaged; the store went back to before this cluster was. Nothing is changed.
    pub(super) fn reset(
        &mut self,
        prefix: &str,
        listing: &Listing,
        restored: bool,
    ) -> Result<(), MetaError> {
        let mut fresh = Self::load(prefix, listing)?;
        if restored && fresh.shards.is_empty() && !self.shards.is_empty() {
            return Err(emptied());
        }
        if !restored {
            let at = listing.revision;
            for (name, schema) in &self.schemas {
                if schema.revision > at {
                    fresh.put_schema(name, schema.revision);
                }
                for (table, (entry, revision)) in &schema.tables {
                    if *revision > at {
                        fresh.remove_table(name, table);
                        fresh.put_table(name, table, entry.clone(), *revision);
                    }
                }
            }
            for (shard, (entry, revision)) in &self.shards {
                if *revision > at {
                    fresh.shards.insert(*shard, (*entry, *revision));
                }
            }
            for (key, revision) in std::mem::take(&mut self.removed) {
                if revision > at {
                    fresh.remove(prefix, &key, revision)?;
                    fresh.removed.insert(key, revision);
                }
            }
        }
        *self = fresh;
        Ok(())
    }

    /// Takes in changes that the watch tells; a value that does not decode is left out and said.
    pub(super) fn follow(&mut self, prefix: &str, changes: &[Change]) {
        for change in changes {
            if self
                .removed
                .get(&change.key)
                .is_some_and(|r| *r >= change.revision)
            {
                continue;
            }
            let taken = match &change.value {
                Some(value) => self.put(prefix, &change.key, value, change.revision),
                None => self.remove(prefix, &change.key, change.revision),
            };
            if let Err(error) = taken {
                tracing::error!(%error, "a change of meta is not understood");
            }
        }
        if let Some(last) = changes.last() {
            self.removed.retain(|_, revision| *revision > last.revision);
        }
    }

    /// Notes that we removed a key, until the watch has passed that.
    pub(super) fn note_removed(&mut self, key: String, revision: u64) {
        self.removed.insert(key, revision);
    }

    fn put(
        &mut self,
        prefix: &str,
        key: &str,
        value: &[u8],
        revision: u64,
    ) -> Result<(), MetaError> {
        match parse(prefix, key)? {
            Key::Format => {
                let format: u32 = decode(key, value)?;
                if format != CATALOG_FORMAT {
                    return Err(MetaError::Damaged {
                        key: key.to_owned(),
                        what: format!(
                            "catalog format {format}; this version reads {CATALOG_FORMAT}"
                        ),
                    });
                }
                self.has_format = true;
            }
            Key::Ddl => self.ddl_revision = self.ddl_revision.max(revision),
            Key::Schema(name) => {
                let _: SchemaEntry = decode(key, value)?;
                let known = self.schemas.get(&*name).map_or(0, |s| s.revision);
                self.put_schema(&name, known.max(revision));
            }
            Key::Table(schema, name) => {
                let entry: TableEntry = decode(key, value)?;
                if self.table_revision(&schema, &name) < revision {
                    self.remove_table(&schema, &name);
                    self.put_table(&schema, &name, entry, revision);
                }
            }
            Key::Shard(shard) => {
                let entry: ShardEntry = decode(key, value)?;
                if self.shards.get(&shard).is_none_or(|(_, r)| *r < revision) {
                    self.shards.insert(shard, (entry, revision));
                }
            }
            Key::Other => tracing::trace!(key, "a meta key of others"),
        }
        Ok(())
    }

    fn remove(&mut self, prefix: &str, key: &str, revision: u64) -> Result<(), MetaError> {
        match parse(prefix, key)? {
            Key::Schema(name) => {
                if self
                    .schemas
                    .get(&*name)
                    .is_some_and(|s| s.revision < revision)
                {
                    self.remove_schema(&name);
                }
            }
            Key::Table(schema, name) => {
                if self.table_revision(&schema, &name) < revision {
                    self.remove_table(&schema, &name);
                }
            }
            Key::Shard(shard) => {
                if self.shards.get(&shard).is_some_and(|(_, r)| *r < revision) {
                    self.shards.remove(&shard);
                }
            }
            Key::Format | Key::Ddl | Key::Other => {}
        }
        Ok(())
    }

    fn table_revision(&self, schema: &str, name: &str) -> u64 {
        let table = self.schemas.get(schema).and_then(|s| s.tables.get(name));
        table.map_or(0, |(_, revision)| *revision)
    }

    pub(super) fn put_schema(&mut self, name: &str, revision: u64) {
        if let Some(schema) = self.schemas.get_mut(name) {
            schema.revision = revision;
            return;
        }
        let schema = Schema {
            revision,
            tables: BTreeMap::new(),
        };
        self.schemas.insert(name.into(), schema);
    }

    pub(super) fn remove_schema(&mut self, name: &str) {
        match self.schemas.get_mut(name) {
            Some(schema) if !schema.tables.is_empty() => schema.revision = 0,
            _ => {
                self.schemas.remove(name);
            }
        }
    }

    /// Removes a schema with its tables.
    pub(super) fn forget_schema(&mut self, name: &str) {
        let tables = self.schemas.get(name).map(|s| s.tables.keys().cloned());
        let tables: Vec<Arc<str>> = tables.into_iter().flatten().collect();
        for table in tables {
            self.remove_table(name, &table);
        }
        self.schemas.remove(name);
    }

    pub(super) fn put_table(&mut self, schema: &str, name: &str, entry: TableEntry, revision: u64) {
        // A table whose schema's key is missing is still listed: a name is never lost silently.
        if !self.schemas.contains_key(schema) {
            self.put_schema(schema, 0);
        }
        let name: Arc<str> = name.into();
        let Some((schema_name, _)) = self.schemas.get_key_value(schema) else {
            return;
        };
        let schema_name = Arc::clone(schema_name);
        if let Some(found) = self.schemas.get_mut(schema) {
            let known = (entry.clone(), revision);
            found.tables.insert(Arc::clone(&name), known);
        }
        let table = entry.table;
        self.count(&entry, true);
        let named = NamedTable {
            schema_name,
            name,
            entry,
        };
        if let Some(before) = self.by_id.insert(table, named) {
            self.count(&before.entry, false);
        }
    }

    /// The table that an id is of, a table's or one of its units'.
    pub(super) fn named(&self, id: TableId) -> Option<&NamedTable> {
        let of_unit = || self.by_id.get(self.units.get(&id)?);
        self.by_id.get(&id).or_else(of_unit)
    }

    /// Takes a table's partitions in, or out.
    fn count(&mut self, entry: &TableEntry, is_there: bool) {
        for placed in entry.placed() {
            let count = self.partitions_by_shard.entry(placed.shard).or_default();
            *count = if is_there {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
        }
        let Some(layout) = &entry.layout else {
            return;
        };
        for part in layout.parts.iter().filter(|p| p.unit != entry.table) {
            if is_there {
                self.units.insert(part.unit, entry.table);
            } else if !self.has_unit(entry.table, part.unit) {
                self.units.remove(&part.unit);
            }
        }
    }

    fn has_unit(&self, table: TableId, unit: TableId) -> bool {
        let named = self.by_id.get(&table);
        named.is_some_and(|named| named.entry.placed_unit(unit).is_some())
    }

    pub(super) fn remove_table(&mut self, schema: &str, name: &str) {
        let Some(found) = self.schemas.get_mut(schema) else {
            return;
        };
        let Some((entry, _)) = found.tables.remove(name) else {
            return;
        };
        if found.revision == 0 && found.tables.is_empty() {
            self.schemas.remove(schema);
        }
        // After a rename the id may already stand under its new name.
        let here = self
            .by_id
            .get(&entry.table)
            .is_some_and(|t| &*t.schema_name == schema && &*t.name == name);
        if here {
            self.by_id.remove(&entry.table);
            self.count(&entry, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "/c/table/s/t";

    fn entry() -> TableEntry {
        TableEntry::whole(TableId::generate(), ShardId::generate())
    }

    fn put(entry: &TableEntry, revision: u64) -> Change {
        Change {
            key: KEY.into(),
            value: Some(rmp_serde::to_vec(entry).expect("value")),
            revision,
        }
    }

    fn holds(state: &State) -> Option<TableEntry> {
        let tables = &state.schemas.get("s")?.tables;
        tables.get("t").map(|(entry, _)| entry.clone())
    }

    #[test]
    fn what_is_told_late_does_not_undo_what_is_known() {
        let (old, new) = (entry(), entry());
        let mut state = State::default();
        state.put_schema("s", 1);
        state.put_table("s", "t", old.clone(), 5);
        state.remove_table("s", "t");
        state.note_removed(KEY.into(), 9);
        state.follow("/c/", &[put(&old, 5)]);
        assert_eq!(holds(&state), None, "removed after that");
        state.follow("/c/", &[put(&new, 12)]);
        assert_eq!(holds(&state), Some(new.clone()));
        let removal = Change {
            value: None,
            ..put(&old, 11)
        };
        state.follow("/c/", &[removal, put(&old, 10)]);
        assert_eq!(holds(&state), Some(new.clone()), "put after that");
        assert_eq!(state.by_id.len(), 1);
        assert_eq!(state.partitions_by_shard.get(&new.shard), Some(&1));
    }

    #[test]
    fn everything_at_once_leaves_what_is_newer_unless_the_store_went_back() {
        let (listed, ours) = (entry(), entry());
        let listing = Listing {
            entries: vec![
                (KEY.into(), rmp_serde::to_vec(&listed).expect("value"), 5),
                (
                    "/c/table/s/gone".into(),
                    rmp_serde::to_vec(&entry()).expect("value"),
                    6,
                ),
            ],
            revision: 7,
        };
        let known = || {
            let mut state = State::default();
            state.put_schema("s", 1);
            state.put_table("s", "t", ours.clone(), 8);
            state.note_removed("/c/table/s/gone".into(), 9);
            state
        };
        let mut state = known();
        state.reset("/c/", &listing, false).expect("reset");
        assert_eq!(holds(&state), Some(ours.clone()));
        assert_eq!(state.by_id.len(), 1);
        let mut state = known();
        state.reset("/c/", &listing, true).expect("reset");
        assert_eq!(holds(&state), Some(listed));
        assert_eq!(state.by_id.len(), 2);
    }

    #[test]
    fn a_rename_told_in_either_order_leaves_one_name() {
        let moved = entry();
        for new_first in [false, true] {
            let mut state = State::default();
            state.put_schema("s", 1);
            state.put_table("s", "t", moved.clone(), 5);
            let removal = Change {
                value: None,
                ..put(&moved, 9)
            };
            let named = Change {
                key: "/c/table/s/u".into(),
                ..put(&moved, 9)
            };
            let mut changes = vec![removal, named];
            if new_first {
                changes.reverse();
            }
            state.follow("/c/", &changes);
            assert_eq!(holds(&state), None);
            assert_eq!(&*state.by_id[&moved.table].name, "u");
            assert_eq!(state.partitions_by_shard.get(&moved.shard), Some(&1));
        }
    }
}
