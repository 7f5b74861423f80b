//! The catalog: names → ids → placement, kept in memory and in a [`MetaStore`].
//!
//! Keys, under `/shoal/{cluster}/` (values are `rmp-serde` arrays, so that 100,000 tables load
//! quickly; a field is only ever added at the end):
//!
//! | key | value |
//! |---|---|
//! | `format` | [`CATALOG_FORMAT`] |
//! | `schema/{name}` | [`SchemaEntry`] |
//! | `table/{schema}/{name}` | [`TableEntry`] |
//! | `shard/{shard}` | [`ShardEntry`] |
//!
//! `%` and `/` in names are escaped as `%25` and `%2F`. Columns and keys of tables are not here:
//! they live in shard logs and manifests (DESIGN §4).
//!
//! Every change is committed to the store first and enters memory after; compares on the
//! revisions seen keep two processes from overwriting each other. When one fails, the keys it
//! named are read again ([`Catalog::refresh`]) and the caller decides anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;
use parking_lot::RwLock;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use shoal_types::{LogId, PartitionId, ShardId, TableId, TimestampMs};

use crate::store::{Compare, MetaError, MetaStore, Op, Txn};

/// Version of the keys and values.
pub const CATALOG_FORMAT: u32 = 1;

/// A schema (a namespace of tables).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaEntry {
    /// When it was made.
    pub created_ms: TimestampMs,
}

/// Where a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    /// The table.
    pub table: TableId,
    /// Its only partition.
    pub partition: PartitionId,
    /// The shard that holds the partition.
    pub shard: ShardId,
}

/// A shard as meta knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// The newest term given out; rises with every open as leader.
    pub term: u64,
    /// When it was made.
    pub created_ms: TimestampMs,
    /// Its log, once that was made: from then on a missing log is a loss, not a new shard.
    #[serde(deserialize_with = "log_or_whether")]
    pub log: Option<LogId>,
}

/// The first version wrote only whether there is a log, of which there was one kind.
fn log_or_whether<'de, D: Deserializer<'de>>(from: D) -> Result<Option<LogId>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Whether(bool),
        Log(Option<LogId>),
    }
    Ok(match Either::deserialize(from)? {
        Either::Whether(made) => made.then_some(LogId::SOLE),
        Either::Log(log) => log,
    })
}

/// A table with its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTable {
    /// Schema name.
    pub schema_name: Arc<str>,
    /// Table name.
    pub name: Arc<str>,
    /// Where it is.
    pub entry: TableEntry,
}

#[derive(Debug, Default)]
struct State {
    schemas: BTreeMap<Arc<str>, Schema>,
    by_id: AHashMap<TableId, NamedTable>,
    shards: BTreeMap<ShardId, (ShardEntry, u64)>,
    tables_by_shard: AHashMap<ShardId, u64>,
}

#[derive(Debug)]
struct Schema {
    revision: u64,
    tables: BTreeMap<Arc<str>, (TableEntry, u64)>,
}

/// Names and placement of one cluster.
#[derive(Debug)]
pub struct Catalog {
    store: Arc<dyn MetaStore>,
    prefix: String,
    state: RwLock<State>,
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, MetaError> {
    rmp_serde::to_vec(value).map_err(|e| MetaError::Damaged {
        key: key.to_owned(),
        what: e.to_string(),
    })
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, MetaError> {
    rmp_serde::from_slice(value).map_err(|e| MetaError::Damaged {
        key: key.to_owned(),
        what: e.to_string(),
    })
}

fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

fn unescape(name: &str) -> String {
    name.replace("%2F", "/").replace("%25", "%")
}

impl Catalog {
    /// Loads the catalog; writes the format into an empty store.
    ///
    /// # Errors
    /// [`MetaError`]: unreadable, damaged, or written in another format.
    pub async fn open(store: Arc<dyn MetaStore>, cluster: &str) -> Result<Self, MetaError> {
        let prefix = format!("/shoal/{}/", escape(cluster));
        let mut state = State::default();
        let mut has_format = false;
        let listed = store.list(&prefix).await?;
        let mut tables = Vec::with_capacity(listed.len());
        for (key, value, revision) in listed {
            let path = &key[prefix.len()..];
            match path.split_once('/') {
                None if path == "format" => {
                    let format: u32 = decode(&key, &value)?;
                    if format != CATALOG_FORMAT {
                        return Err(MetaError::Damaged {
                            key,
                            what: format!(
                                "catalog format {format}; this version reads {CATALOG_FORMAT}"
                            ),
                        });
                    }
                    has_format = true;
                }
                Some(("schema", name)) => {
                    let _: SchemaEntry = decode(&key, &value)?;
                    let schema = Schema {
                        revision,
                        tables: BTreeMap::new(),
                    };
                    state.schemas.insert(unescape(name).into(), schema);
                }
                Some(("table", names)) => {
                    let entry: TableEntry = decode(&key, &value)?;
                    let Some((schema, name)) = names.split_once('/') else {
                        return Err(MetaError::Damaged {
                            key,
                            what: "names no table".into(),
                        });
                    };
                    tables.push((unescape(schema), unescape(name), entry, revision));
                }
                Some(("shard", id)) => {
                    let Ok(shard) = id.parse::<ShardId>() else {
                        return Err(MetaError::Damaged {
                            key,
                            what: "names no shard".into(),
                        });
                    };
                    state
                        .shards
                        .insert(shard, (decode(&key, &value)?, revision));
                }
                // A key of a later minor version: kept, not understood, not touched.
                _ => tracing::debug!(key, "unknown meta key"),
            }
        }
        for (schema, name, entry, revision) in tables {
            state.put_table(&schema, &name, entry, revision);
        }
        if !has_format {
            let key = format!("{prefix}format");
            let value = encode(&key, &CATALOG_FORMAT)?;
            let txn = Txn::default()
                .when(Compare::Absent(key.clone()))
                .then(Op::Put(key, value));
            match store.commit(txn).await {
                Ok(_) | Err(MetaError::Conflict) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Self {
            store,
            prefix,
            state: RwLock::new(state),
        })
    }

    fn schema_key(&self, name: &str) -> String {
        format!("{}schema/{}", self.prefix, escape(name))
    }

    fn table_key(&self, schema: &str, name: &str) -> String {
        format!("{}table/{}/{}", self.prefix, escape(schema), escape(name))
    }

    fn shard_key(&self, shard: ShardId) -> String {
        format!("{}shard/{shard}", self.prefix)
    }

    /// Names of all schemas, sorted.
    #[must_use]
    pub fn schema_names(&self) -> Vec<String> {
        let state = self.state.read();
        state.schemas.keys().map(|name| name.to_string()).collect()
    }

    /// Whether a schema exists.
    #[must_use]
    pub fn has_schema(&self, name: &str) -> bool {
        self.state.read().schemas.contains_key(name)
    }

    /// A table by name. Allocates nothing.
    #[must_use]
    pub fn table(&self, schema: &str, name: &str) -> Option<TableEntry> {
        let state = self.state.read();
        state.schemas.get(schema)?.tables.get(name).map(|t| t.0)
    }

    /// A table by id: where it is. Allocates nothing.
    #[must_use]
    pub fn placement(&self, table: TableId) -> Option<TableEntry> {
        self.state.read().by_id.get(&table).map(|t| t.entry)
    }

    /// A table by id, with its names.
    #[must_use]
    pub fn named(&self, table: TableId) -> Option<NamedTable> {
        self.state.read().by_id.get(&table).cloned()
    }

    /// Tables of a schema, sorted by name; `None`: no such schema.
    #[must_use]
    pub fn tables(&self, schema: &str) -> Option<Vec<NamedTable>> {
        let state = self.state.read();
        let (schema_name, schema) = state.schemas.get_key_value(schema)?;
        Some(
            schema
                .tables
                .iter()
                .map(|(name, (entry, _))| NamedTable {
                    schema_name: Arc::clone(schema_name),
                    name: Arc::clone(name),
                    entry: *entry,
                })
                .collect(),
        )
    }

    /// All tables, in no order.
    #[must_use]
    pub fn all_tables(&self) -> Vec<NamedTable> {
        self.state.read().by_id.values().cloned().collect()
    }

    /// Number of tables.
    #[must_use]
    pub fn tables_count(&self) -> usize {
        self.state.read().by_id.len()
    }

    /// All shards, ascending.
    #[must_use]
    pub fn shards(&self) -> Vec<(ShardId, ShardEntry)> {
        let state = self.state.read();
        state.shards.iter().map(|(id, (e, _))| (*id, *e)).collect()
    }

    /// Number of tables placed on a shard.
    #[must_use]
    pub fn tables_on(&self, shard: ShardId) -> u64 {
        let state = self.state.read();
        state.tables_by_shard.get(&shard).copied().unwrap_or(0)
    }

    /// Makes a schema.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: it exists (and is now known here).
    pub async fn create_schema(&self, name: &str, entry: SchemaEntry) -> Result<(), MetaError> {
        let key = self.schema_key(name);
        let value = encode(&key, &entry)?;
        let txn = Txn::default()
            .when(Compare::Absent(key.clone()))
            .then(Op::Put(key, value));
        match self.store.commit(txn).await {
            Ok(revision) => {
                let mut state = self.state.write();
                state.put_schema(name, revision);
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.refresh(name, &[]).await?;
                Err(MetaError::Conflict)
            }
            Err(e) => Err(e),
        }
    }

    /// Drops a schema that has exactly the tables `expected` (as [`Self::tables`] listed them).
    /// All go in one transaction unless there are very many, then the tables go first.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: its tables are others now; list again.
    pub async fn drop_schema(&self, name: &str, expected: &[NamedTable]) -> Result<(), MetaError> {
        let revision = {
            let state = self.state.read();
            let Some(schema) = state.schemas.get(name) else {
                return Err(MetaError::Conflict);
            };
            let same = schema.tables.len() == expected.len()
                && expected
                    .iter()
                    .all(|t| schema.tables.get(&*t.name).map(|s| s.0) == Some(t.entry));
            if !same {
                return Err(MetaError::Conflict);
            }
            schema.revision
        };
        for chunk in expected.chunks(crate::store::TXN_OPS_MAX - 1) {
            self.drop_tables(chunk).await?;
        }
        let key = self.schema_key(name);
        let txn = Txn::default()
            .when(Compare::Revision(key.clone(), revision))
            .then(Op::Delete(key));
        match self.store.commit(txn).await {
            Ok(_) => {
                let mut state = self.state.write();
                if state.schemas.get(name).is_some_and(|s| s.tables.is_empty()) {
                    state.schemas.remove(name);
                }
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.refresh(name, &[]).await?;
                Err(MetaError::Conflict)
            }
            Err(e) => Err(e),
        }
    }

    /// Names tables, all or none. Each table's schema must exist and its name be free; what the
    /// id names (the schema in the shard's log) must exist already, so that no reader finds a
    /// name without columns.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: a name is taken or a schema is gone; the names are known here now.
    pub async fn create_tables(&self, tables: &[NamedTable]) -> Result<(), MetaError> {
        for chunk in tables.chunks(crate::store::TXN_OPS_MAX) {
            self.create_tables_chunk(chunk).await?;
        }
        Ok(())
    }

    async fn create_tables_chunk(&self, tables: &[NamedTable]) -> Result<(), MetaError> {
        let mut txn = Txn::default();
        let mut schemas: Vec<&Arc<str>> = tables.iter().map(|t| &t.schema_name).collect();
        schemas.sort_unstable();
        schemas.dedup();
        let known = {
            let state = self.state.read();
            let mut known = Vec::with_capacity(schemas.len());
            for schema in &schemas {
                known.push(state.schemas.get(*schema).map(|s| s.revision));
            }
            known
        };
        for (schema, revision) in schemas.iter().zip(known) {
            let revision = revision.ok_or(MetaError::Conflict)?;
            txn = txn.when(Compare::Revision(self.schema_key(schema), revision));
        }
        for table in tables {
            let key = self.table_key(&table.schema_name, &table.name);
            let value = encode(&key, &table.entry)?;
            txn = txn
                .when(Compare::Absent(key.clone()))
                .then(Op::Put(key, value));
        }
        match self.store.commit(txn).await {
            Ok(revision) => {
                let mut state = self.state.write();
                for table in tables {
                    state.put_table(&table.schema_name, &table.name, table.entry, revision);
                }
                Ok(())
            }
            Err(MetaError::Conflict) => {
                for schema in schemas {
                    let names: Vec<&str> = tables
                        .iter()
                        .filter(|t| t.schema_name == *schema)
                        .map(|t| &*t.name)
                        .collect();
                    self.refresh(schema, &names).await?;
                }
                Err(MetaError::Conflict)
            }
            Err(e) => Err(e),
        }
    }

    /// Removes the names of tables, all or none.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: a name does not hold that table any more.
    pub async fn drop_tables(&self, tables: &[NamedTable]) -> Result<(), MetaError> {
        let mut txn = Txn::default();
        for table in tables {
            let revision = self.revision_of(table).ok_or(MetaError::Conflict)?;
            let key = self.table_key(&table.schema_name, &table.name);
            txn = txn
                .when(Compare::Revision(key.clone(), revision))
                .then(Op::Delete(key));
        }
        match self.store.commit(txn).await {
            Ok(_) => {
                let mut state = self.state.write();
                for table in tables {
                    state.remove_table(&table.schema_name, &table.name);
                }
                Ok(())
            }
            Err(MetaError::Conflict) => {
                for table in tables {
                    self.refresh(&table.schema_name, &[&table.name]).await?;
                }
                Err(MetaError::Conflict)
            }
            Err(e) => Err(e),
        }
    }

    /// Gives a table another name in its schema.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: the new name is taken, or the old one does not hold that table.
    pub async fn rename_table(&self, table: &NamedTable, name: &str) -> Result<(), MetaError> {
        let revision = self.revision_of(table).ok_or(MetaError::Conflict)?;
        let old_key = self.table_key(&table.schema_name, &table.name);
        let new_key = self.table_key(&table.schema_name, name);
        let value = encode(&new_key, &table.entry)?;
        let txn = Txn::default()
            .when(Compare::Absent(new_key.clone()))
            .when(Compare::Revision(old_key.clone(), revision))
            .then(Op::Delete(old_key))
            .then(Op::Put(new_key, value));
        match self.store.commit(txn).await {
            Ok(revision) => {
                let mut state = self.state.write();
                state.remove_table(&table.schema_name, &table.name);
                state.put_table(&table.schema_name, name, table.entry, revision);
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.refresh(&table.schema_name, &[&table.name, name])
                    .await?;
                Err(MetaError::Conflict)
            }
            Err(e) => Err(e),
        }
    }

    /// Adds a shard or changes its entry; `None` expects that it does not exist.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: somebody else changed it (the entry known here is the new one now).
    pub async fn put_shard(
        &self,
        shard: ShardId,
        expected: Option<ShardEntry>,
        entry: ShardEntry,
    ) -> Result<(), MetaError> {
        let key = self.shard_key(shard);
        let known = self.state.read().shards.get(&shard).copied();
        let compare = match (known, expected) {
            (None, None) => Compare::Absent(key.clone()),
            (Some((have, revision)), Some(wanted)) if have == wanted => {
                Compare::Revision(key.clone(), revision)
            }
            _ => return Err(MetaError::Conflict),
        };
        let value = encode(&key, &entry)?;
        let txn = Txn::default()
            .when(compare)
            .then(Op::Put(key.clone(), value));
        match self.store.commit(txn).await {
            Ok(revision) => {
                self.state.write().shards.insert(shard, (entry, revision));
                Ok(())
            }
            Err(MetaError::Conflict) => {
                if let Some((value, revision)) = self.store.get(&key).await? {
                    let found = decode(&key, &value)?;
                    self.state.write().shards.insert(shard, (found, revision));
                }
                Err(MetaError::Conflict)
            }
            Err(e) => Err(e),
        }
    }

    /// Reads a shard's entry from the store.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn reload_shard(&self, shard: ShardId) -> Result<Option<ShardEntry>, MetaError> {
        let key = self.shard_key(shard);
        let Some((value, revision)) = self.store.get(&key).await? else {
            return Ok(None);
        };
        let entry = decode(&key, &value)?;
        self.state.write().shards.insert(shard, (entry, revision));
        Ok(Some(entry))
    }

    /// Reads a schema and some of its table names from the store again.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn refresh(&self, schema: &str, tables: &[&str]) -> Result<(), MetaError> {
        let found_schema = self.store.get(&self.schema_key(schema)).await?;
        let mut found = Vec::with_capacity(tables.len());
        for name in tables {
            let key = self.table_key(schema, name);
            let entry = match self.store.get(&key).await? {
                None => None,
                Some((value, revision)) => Some((decode::<TableEntry>(&key, &value)?, revision)),
            };
            found.push((*name, entry));
        }
        let mut state = self.state.write();
        if let Some((_, revision)) = found_schema {
            state.put_schema(schema, revision);
        }
        for (name, entry) in found {
            match entry {
                None => state.remove_table(schema, name),
                Some((entry, revision)) => {
                    state.remove_table(schema, name);
                    state.put_table(schema, name, entry, revision);
                }
            }
        }
        Ok(())
    }

    fn revision_of(&self, table: &NamedTable) -> Option<u64> {
        let state = self.state.read();
        let schema = state.schemas.get(&*table.schema_name)?;
        let (entry, revision) = schema.tables.get(&*table.name)?;
        (*entry == table.entry).then_some(*revision)
    }
}

impl State {
    fn put_schema(&mut self, name: &str, revision: u64) {
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

    fn put_table(&mut self, schema: &str, name: &str, entry: TableEntry, revision: u64) {
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
            found.tables.insert(Arc::clone(&name), (entry, revision));
        }
        let named = NamedTable {
            schema_name,
            name,
            entry,
        };
        if self.by_id.insert(entry.table, named).is_none() {
            *self.tables_by_shard.entry(entry.shard).or_default() += 1;
        }
    }

    fn remove_table(&mut self, schema: &str, name: &str) {
        let Some(found) = self.schemas.get_mut(schema) else {
            return;
        };
        if let Some((entry, _)) = found.tables.remove(name) {
            self.by_id.remove(&entry.table);
            if let Some(count) = self.tables_by_shard.get_mut(&entry.shard) {
                *count = count.saturating_sub(1);
            }
        }
    }
}
