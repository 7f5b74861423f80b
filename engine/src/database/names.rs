//! Making, renaming and dropping schemas and tables.
//!
//! A table has its columns in its shard's log and its name in meta. Order of `create_tables`:
//! columns first, name after. A crash in between leaves columns nobody can reach (dropped at the
//! next open); the other order would leave a name whose columns nobody knows, a half table that
//! every reader would trip over. `drop_table` is the mirror image: the name goes first.
//!
//! Two creators of one name race in meta: its transaction lets one win, the other drops the columns
//! it made and looks again.
//!
//! Each runs to its end once begun, also when its caller goes away: dropped between the log and
//! meta, or between meta and what this process knows of meta, it would leave columns without a name
//! until the next start, or a name that nobody here finds and nobody may take.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use shoal_meta::{MetaError, NamedTable, SchemaEntry, TableEntry};
use shoal_types::{PartitionId, SchemaError, ShardId, TableId, TableSchema};
use shoal_wal::record::SchemaChange;

use super::open::ByShard;
use super::tables::{TRIES, contended, handle};
use super::{NewTable, Shared, TableHandle};
use crate::{EngineError, WriteError};

/// Columns of one `Schema` record: keeps it far below the record limit.
const COLUMNS_A_RECORD: usize = 20_000;

impl Shared {
    pub(super) async fn create_schema(
        &self,
        name: &str,
        if_not_exists: bool,
    ) -> Result<bool, EngineError> {
        SchemaError::check_name("schema", name)?;
        let catalog = &self.env.catalog;
        let exists = || {
            if if_not_exists {
                Ok(false)
            } else {
                Err(EngineError::AlreadyExists {
                    what: "schema",
                    name: name.to_owned(),
                })
            }
        };
        if catalog.has_schema(name) {
            return exists();
        }
        let created_ms = self.env.clock.now_ms();
        match catalog
            .create_schema(name, SchemaEntry { created_ms })
            .await
        {
            Ok(()) => Ok(true),
            Err(MetaError::Conflict) => exists(),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) async fn drop_schema(
        &self,
        name: &str,
        if_exists: bool,
        cascade: bool,
    ) -> Result<bool, EngineError> {
        let catalog = &self.env.catalog;
        catalog.find_schema(name).await?;
        for _ in 0..TRIES {
            let Some(tables) = catalog.tables(name) else {
                return if if_exists {
                    Ok(false)
                } else {
                    Err(self.schema_not_found(name))
                };
            };
            if !tables.is_empty() && !cascade {
                return Err(EngineError::Invalid(format!(
                    "schema {name:?} holds {} tables; DROP SCHEMA … CASCADE drops them too",
                    tables.len()
                )));
            }
            match catalog.drop_schema(name, &tables).await {
                Ok(()) => {
                    self.forget(tables.iter().map(|t| t.entry)).await;
                    return Ok(true);
                }
                Err(MetaError::Conflict) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(contended(name))
    }

    pub(super) async fn create_tables(
        &self,
        tables: &[NewTable],
        if_not_exists: bool,
    ) -> Result<Vec<TableHandle>, EngineError> {
        let catalog = &self.env.catalog;
        for table in tables {
            SchemaError::check_name("table", &table.name)?;
            table.schema.check()?;
            if !catalog.find_schema(&table.schema_name).await? {
                return Err(self.schema_not_found(&table.schema_name));
            }
        }
        let mut broken = HashSet::new();
        for _ in 0..TRIES {
            let mut seen = HashSet::new();
            let mut missing = Vec::new();
            for table in tables {
                let exists = catalog.table(&table.schema_name, &table.name).is_some();
                let fresh = seen.insert((table.schema_name.as_str(), table.name.as_str()));
                if (exists || !fresh) && !if_not_exists {
                    return Err(EngineError::AlreadyExists {
                        what: "table",
                        name: table.name.clone(),
                    });
                }
                if !exists && fresh {
                    missing.push(table);
                }
            }
            match self.make_tables(&missing, &broken).await {
                Ok(()) => {}
                Err(MakeError::Raced) => continue,
                Err(MakeError::Broken { shard, error }) => {
                    tracing::warn!(%shard, %error, "no table can be placed there; the next shard is tried");
                    broken.insert(shard);
                    if broken.len() == self.slots.len() {
                        return Err(error);
                    }
                    continue;
                }
                Err(MakeError::Failed(e)) => return Err(e),
            }
            let made = tables
                .iter()
                .map(|t| self.table(&t.schema_name, &t.name))
                .collect::<Option<Vec<_>>>();
            if let Some(made) = made {
                return Ok(made);
            }
        }
        Err(contended("creating tables"))
    }

    async fn make_tables(
        &self,
        missing: &[&NewTable],
        broken: &HashSet<ShardId>,
    ) -> Result<(), MakeError> {
        if missing.is_empty() {
            return Ok(());
        }
        let mut named = Vec::with_capacity(missing.len());
        let mut by_shard: ByShard<Arc<TableSchema>> = HashMap::new();
        let mut placing = self.placing(broken)?;
        for table in missing {
            let shard = placing.next();
            let entry = TableEntry {
                table: TableId::generate(),
                partition: PartitionId::generate(),
                shard,
            };
            let schema = TableSchema {
                table: entry.table,
                version: 1,
                ..table.schema.clone()
            };
            by_shard.entry(shard).or_default().push(Arc::new(schema));
            named.push(NamedTable {
                schema_name: table.schema_name.as_str().into(),
                name: table.name.as_str().into(),
                entry,
            });
        }
        let written = by_shard
            .into_iter()
            .map(|(shard, schemas)| async move { (shard, self.put_schemas(shard, schemas).await) });
        let written = futures::future::join_all(written).await;
        let failed = written.into_iter().find(|(_, outcome)| outcome.is_err());
        if let Some((shard, Err(error))) = failed {
            let unserved = matches!(
                error,
                EngineError::Write(
                    WriteError::ShardHalted { .. } | WriteError::ShardUnavailable { .. }
                )
            );
            let others = |entry: &TableEntry| !unserved || entry.shard != shard;
            self.forget(named.iter().map(|t| t.entry).filter(others))
                .await;
            return Err(if unserved {
                MakeError::Broken { shard, error }
            } else {
                MakeError::Failed(error)
            });
        }
        match self.env.catalog.create_tables(&named).await {
            Ok(()) => Ok(()),
            Err(MetaError::Conflict) => {
                // Another creator took a name (or a schema went): what we made has none.
                let ours = |t: &&NamedTable| self.env.catalog.placement(t.entry.table).is_none();
                let lost: Vec<_> = named.iter().filter(ours).map(|t| t.entry).collect();
                self.forget(lost.into_iter()).await;
                Err(MakeError::Raced)
            }
            // It may have taken effect; the next open drops the columns if it did not.
            Err(e) => Err(MakeError::Failed(e.into())),
        }
    }

    async fn put_schemas(
        &self,
        shard: ShardId,
        schemas: Vec<Arc<TableSchema>>,
    ) -> Result<(), EngineError> {
        let mut part = Vec::new();
        let mut columns = 0;
        for schema in schemas {
            if columns + schema.columns.len() > COLUMNS_A_RECORD && !part.is_empty() {
                self.submit_schemas(shard, std::mem::take(&mut part))
                    .await?;
                columns = 0;
            }
            columns += schema.columns.len() + 8;
            part.push(SchemaChange::Put(schema));
        }
        Ok(self.submit_schemas(shard, part).await?)
    }

    fn placing(&self, broken: &HashSet<ShardId>) -> Result<Placing, EngineError> {
        let catalog = &self.env.catalog;
        let fit: Vec<ShardId> = match self.peers() {
            None => self.open_shards().iter().map(|s| s.id).collect(),
            Some(peers) => {
                let all = self.slots.keys().copied();
                all.filter(|id| peers.is_led(*id).is_ok()).collect()
            }
        };
        let counts: Vec<_> = fit
            .into_iter()
            .filter(|id| !broken.contains(id))
            .map(|id| (id, catalog.tables_on(id)))
            .collect();
        if counts.is_empty() {
            return Err(match self.slots.values().next() {
                Some(slot) => slot.shard().err().unwrap_or(EngineError::ShuttingDown),
                None => EngineError::Invalid("there are no shards".into()),
            });
        }
        Ok(Placing { counts })
    }

    /// Drops the columns of tables that have no name any more. What fails is made good at the next
    /// open: nobody can reach them.
    async fn forget(&self, tables: impl Iterator<Item = TableEntry>) {
        let mut by_shard: ByShard<SchemaChange> = HashMap::new();
        for entry in tables {
            let drop = SchemaChange::Drop { table: entry.table };
            by_shard.entry(entry.shard).or_default().push(drop);
        }
        for (shard, mut drops) in by_shard {
            match (self.led_here(shard), self.peers()) {
                (Ok(shard), _) => {
                    let state = shard.state.read();
                    drops.retain(|d| state.fold.schema(d.table()).is_some());
                }
                (Err(_), Some(_)) => {}
                (Err(_), None) => continue,
            }
            for part in drops.chunks(1024) {
                if let Err(error) = self.submit_schemas(shard, part.to_vec()).await {
                    tracing::warn!(%shard, %error, "dropped tables keep their files until the next start");
                }
            }
        }
    }

    pub(super) async fn rename_table(
        &self,
        table: &TableHandle,
        name: &str,
    ) -> Result<TableHandle, EngineError> {
        SchemaError::check_name("table", name)?;
        let catalog = &self.env.catalog;
        for _ in 0..TRIES {
            let Some(named) = catalog.named(table.id) else {
                return Err(self.table_not_found(&table.schema_name, &table.name));
            };
            if &*named.name == name {
                return Ok(handle(&named));
            }
            if catalog.table(&named.schema_name, name).is_some() {
                return Err(EngineError::AlreadyExists {
                    what: "table",
                    name: name.to_owned(),
                });
            }
            match catalog.rename_table(&named, name).await {
                Ok(()) => {
                    return Ok(TableHandle {
                        name: name.to_owned(),
                        ..handle(&named)
                    });
                }
                Err(MetaError::Conflict) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(contended(&table.name))
    }

    pub(super) async fn drop_table(&self, table: &TableHandle) -> Result<(), EngineError> {
        let catalog = &self.env.catalog;
        for _ in 0..TRIES {
            let Some(named) = catalog.named(table.id) else {
                return Err(self.table_not_found(&table.schema_name, &table.name));
            };
            match catalog.drop_table(&named).await {
                Ok(()) => {
                    self.forget(std::iter::once(named.entry)).await;
                    return Ok(());
                }
                Err(MetaError::Conflict) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(contended(&table.name))
    }
}

enum MakeError {
    Raced,
    /// A shard takes nothing, and this is known.
    Broken {
        shard: ShardId,
        error: EngineError,
    },
    Failed(EngineError),
}

impl From<EngineError> for MakeError {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

/// Gives each new table to the shard with the fewest.
struct Placing {
    counts: Vec<(ShardId, u64)>,
}

impl Placing {
    fn next(&mut self) -> ShardId {
        let mut least = 0;
        for (i, (_, count)) in self.counts.iter().enumerate() {
            if *count < self.counts[least].1 {
                least = i;
            }
        }
        self.counts[least].1 += 1;
        self.counts[least].0
    }
}
