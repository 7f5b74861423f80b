//! Changes of names: each one transaction, compared with what was seen, and `ddl` put with it.

use std::sync::Arc;

use ahash::AHashMap;
use shoal_types::{TableId, TimestampMs};

use super::state::decode;
use super::{Catalog, NamedTable, SchemaEntry, TableEntry, encode};
use crate::store::{Compare, MetaError, Op, Txn};

/// Tries to give tables up while others make some.
const FORSAKE_TRIES: u32 = 16;
/// A `gone` key outlives every creator that it must stop by far.
const GONE_KEPT_MS: u64 = 3_600_000;

impl Catalog {
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
        match self.commit_names(txn).await {
            Ok(revision) => {
                self.known.state.write().put_schema(name, revision);
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.refresh(name, &[]).await?;
                Err(MetaError::Conflict)
            }
            // It may be another's; there it is all the same.
            Err(e @ MetaError::Unknown(_)) => {
                self.settle(e, name, &[], || self.has_schema(name)).await
            }
            Err(e) => Err(e),
        }
    }

    /// Drops a schema that has exactly the tables `expected` (as [`Self::tables`] listed them), in
    /// one transaction however many they are.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: its tables are others now; list again.
    pub async fn drop_schema(&self, name: &str, expected: &[NamedTable]) -> Result<(), MetaError> {
        let schema_key = self.schema_key(name);
        let tables_prefix = self.tables_prefix(name);
        // Tables that others made may not be known here yet.
        let listing = self.store.list(&tables_prefix).await?;
        let expected_keys: AHashMap<String, TableEntry> = expected
            .iter()
            .map(|t| (self.table_key(name, &t.name), t.entry.clone()))
            .collect();
        let mut same = listing.entries.len() == expected.len();
        for (key, value, _) in &listing.entries {
            same &= expected_keys.get(key) == Some(&decode(key, value)?);
        }
        let schema = self.store.get(&schema_key).await?;
        let (Some((_, revision)), true) = (schema, same) else {
            self.reload_schema(name).await?;
            return Err(MetaError::Conflict);
        };
        let txn = Txn::default()
            .when(Compare::Revision(schema_key.clone(), revision))
            .when(Compare::NotPutSince(
                tables_prefix.clone(),
                listing.revision,
            ))
            .then(Op::Delete(schema_key.clone()))
            .then(Op::DeletePrefix(tables_prefix));
        match self.commit_names(txn).await {
            Ok(revision) => {
                let mut state = self.known.state.write();
                for table in expected {
                    state.remove_table(name, &table.name);
                    self.note_removed(&mut state, self.table_key(name, &table.name), revision);
                }
                state.remove_schema(name);
                self.note_removed(&mut state, schema_key, revision);
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.reload_schema(name).await?;
                Err(MetaError::Conflict)
            }
            Err(e @ MetaError::Unknown(_)) => {
                self.settle(e, name, &[], || !self.has_schema(name)).await
            }
            Err(e) => Err(e),
        }
    }

    /// Names tables. Each table's schema must exist and its name be free; what the id names (the
    /// schema in the shard's log) must exist already, so that no reader finds a name without
    /// columns. Those of one transaction are named together or not at all; more than the store
    /// takes at once are several.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: a name is taken, a schema is gone or an id was given up; the names
    /// are known here now. Tables before that one may have been named.
    pub async fn create_tables(&self, tables: &[NamedTable]) -> Result<(), MetaError> {
        let limits = self.store.limits();
        let mut rest = tables;
        while !rest.is_empty() {
            let mut bytes = self.ddl_key().len();
            // Two compares a table and at most one for its schema; one operation more for `ddl`.
            let most = ((limits.txn_ops - 1) / 3).max(1);
            let fits = rest.iter().take(most).take_while(|table| {
                let key = self.table_key(&table.schema_name, &table.name);
                let layout = table.entry.layout.as_ref();
                // A partition's ids, and names and values, which are bounded as keys are.
                let parts = layout.map_or(0, |layout| layout.encoded_bytes_max());
                bytes += 4 * key.len() + 256 + parts;
                bytes <= limits.txn_bytes
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            self.create_tables_chunk(now).await?;
            rest = later;
        }
        Ok(())
    }

    async fn create_tables_chunk(&self, tables: &[NamedTable]) -> Result<(), MetaError> {
        let mut txn = Txn::default();
        let mut schemas: Vec<&Arc<str>> = tables.iter().map(|t| &t.schema_name).collect();
        schemas.sort_unstable();
        schemas.dedup();
        let known: Vec<Option<u64>> = {
            let state = self.known.state.read();
            let revision = |schema: &&Arc<str>| state.schemas.get(*schema).map(|s| s.revision);
            schemas.iter().map(revision).collect()
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
            if self.store.is_shared() {
                txn = txn.when(Compare::Absent(self.gone_key(table.entry.table)));
            }
        }
        let refresh = || async {
            for schema in schemas {
                let names: Vec<&str> = tables
                    .iter()
                    .filter(|t| t.schema_name == *schema)
                    .map(|t| &*t.name)
                    .collect();
                self.refresh(schema, &names).await?;
            }
            Ok(())
        };
        match self.commit_names(txn).await {
            Ok(revision) => {
                let mut state = self.known.state.write();
                for table in tables {
                    state.put_table(
                        &table.schema_name,
                        &table.name,
                        table.entry.clone(),
                        revision,
                    );
                }
                Ok(())
            }
            Err(MetaError::Conflict) => {
                refresh().await?;
                Err(MetaError::Conflict)
            }
            // The ids are ours: where they stand now, the commit took effect.
            Err(e @ MetaError::Unknown(_)) => match refresh().await {
                Ok(()) if tables.iter().all(|t| self.named(t.entry.table).is_some()) => Ok(()),
                _ => Err(e),
            },
            Err(e) => Err(e),
        }
    }

    /// Removes the name of a table.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: the name does not hold that table any more.
    pub async fn drop_table(&self, table: &NamedTable) -> Result<(), MetaError> {
        let (schema, name) = (&*table.schema_name, &*table.name);
        let revision = self.revision_of(table).ok_or(MetaError::Conflict)?;
        let key = self.table_key(schema, name);
        let txn = Txn::default()
            .when(Compare::Revision(key.clone(), revision))
            .then(Op::Delete(key.clone()));
        match self.commit_names(txn).await {
            Ok(revision) => {
                let mut state = self.known.state.write();
                state.remove_table(schema, name);
                self.note_removed(&mut state, key, revision);
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.refresh(schema, &[name]).await?;
                Err(MetaError::Conflict)
            }
            Err(e @ MetaError::Unknown(_)) => {
                let gone = || self.table(schema, name).as_ref() != Some(&table.entry);
                self.settle(e, schema, &[name], gone).await
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
            .then(Op::Delete(old_key.clone()))
            .then(Op::Put(new_key, value));
        let names = [&*table.name, name];
        match self.commit_names(txn).await {
            Ok(revision) => {
                let mut state = self.known.state.write();
                state.remove_table(&table.schema_name, &table.name);
                self.note_removed(&mut state, old_key, revision);
                state.put_table(&table.schema_name, name, table.entry.clone(), revision);
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.refresh(&table.schema_name, &names).await?;
                Err(MetaError::Conflict)
            }
            Err(e @ MetaError::Unknown(_)) => {
                let renamed =
                    || self.table(&table.schema_name, name).as_ref() == Some(&table.entry);
                self.settle(e, &table.schema_name, &names, renamed).await
            }
            Err(e) => Err(e),
        }
    }

    /// Puts another entry in the place of a table's: its partitions have changed.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: the name does not hold that entry any more; it is known here now.
    pub async fn put_entry(&self, table: &NamedTable, entry: TableEntry) -> Result<(), MetaError> {
        let (schema, name) = (&*table.schema_name, &*table.name);
        let revision = self.revision_of(table).ok_or(MetaError::Conflict)?;
        let key = self.table_key(schema, name);
        let value = encode(&key, &entry)?;
        let txn = Txn::default()
            .when(Compare::Revision(key.clone(), revision))
            .then(Op::Put(key, value));
        match self.commit_names(txn).await {
            Ok(revision) => {
                let mut state = self.known.state.write();
                state.put_table(schema, name, entry, revision);
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.refresh(schema, &[name]).await?;
                Err(MetaError::Conflict)
            }
            Err(e @ MetaError::Unknown(_)) => {
                let put = || self.table(schema, name).as_ref() == Some(&entry);
                self.settle(e, schema, &[name], put).await
            }
            Err(e) => Err(e),
        }
    }

    /// Of `tables`, those that have no name and will get none any more: a creator that has written
    /// their columns and not yet their name fails from now on. Their columns may be dropped.
    ///
    /// # Errors
    /// The store's; [`MetaError::Conflict`]: others make tables all the time, try later.
    pub async fn forsake(
        &self,
        tables: &[TableId],
        now_ms: TimestampMs,
    ) -> Result<Vec<TableId>, MetaError> {
        let is_nameless = |table: &&TableId| self.placement(**table).is_none();
        if !self.store.is_shared() {
            return Ok(tables.iter().filter(is_nameless).copied().collect());
        }
        let all_tables = format!("{}table/", self.known.prefix);
        for _ in 0..FORSAKE_TRIES {
            let revision = self.synced().await?;
            let nameless: Vec<TableId> = tables.iter().filter(is_nameless).copied().collect();
            match self
                .mark_gone(&nameless, &all_tables, revision, now_ms)
                .await
            {
                Ok(()) => {
                    self.forget_gone(now_ms).await?;
                    return Ok(nameless);
                }
                Err(MetaError::Conflict) => {}
                Err(e) => return Err(e),
            }
        }
        Err(MetaError::Conflict)
    }

    async fn mark_gone(
        &self,
        tables: &[TableId],
        all_tables: &str,
        revision: u64,
        now_ms: TimestampMs,
    ) -> Result<(), MetaError> {
        let limits = self.store.limits();
        for chunk in tables.chunks(limits.txn_ops.min(limits.txn_bytes / 512).max(1)) {
            let unchanged = Compare::NotPutSince(all_tables.to_owned(), revision);
            let mut txn = Txn::default().when(unchanged);
            for table in chunk {
                let key = self.gone_key(*table);
                let value = encode(&key, &now_ms)?;
                txn = txn.then(Op::Put(key, value));
            }
            self.store.commit(txn).await?;
        }
        Ok(())
    }

    async fn forget_gone(&self, now_ms: TimestampMs) -> Result<(), MetaError> {
        let prefix = format!("{}gone/", self.known.prefix);
        let limits = self.store.limits();
        let mut old = Vec::new();
        for (key, value, _) in self.store.list(&prefix).await?.entries {
            let since_ms: TimestampMs = decode(&key, &value)?;
            if since_ms + GONE_KEPT_MS < now_ms {
                old.push(Op::Delete(key));
            }
        }
        for ops in old.chunks(limits.txn_ops.min(limits.txn_bytes / 512).max(1)) {
            let txn = Txn {
                compares: Vec::new(),
                ops: ops.to_vec(),
            };
            self.store.commit(txn).await?;
        }
        Ok(())
    }
}
