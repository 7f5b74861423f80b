//! Schemas and tables.
//!
//! A table has its columns in its shard's log and its name in meta. Order of `create_tables`:
//! columns first, name after. A crash in between leaves columns nobody can reach (dropped at the
//! next open); the other order would leave a name whose columns nobody knows, a half table that
//! every reader would trip over. `drop_table` is the mirror image: the name goes first.
//!
//! Two creators of one name race in meta: its transaction lets one win, the other drops the columns
//! it made and looks again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_meta::{MetaError, NamedTable, SchemaEntry, TableEntry};
use shoal_types::{Incarnation, PartitionId, SchemaError, ShardId, TableId, TableSchema};
use shoal_wal::record::{Payload, SchemaChange};

use super::open::ByShard;
use super::{Database, NewTable, TableHandle};
use crate::{EngineError, WriteError};

/// How often a change is tried when others change the same thing.
const TRIES: u32 = 32;
/// Columns of one `Schema` record: keeps it far below the record limit.
const COLUMNS_A_RECORD: usize = 20_000;

fn handle(table: &NamedTable) -> TableHandle {
    TableHandle {
        schema_name: table.schema_name.to_string(),
        name: table.name.to_string(),
        id: table.entry.table,
        partition: table.entry.partition,
        shard: table.entry.shard,
    }
}

fn nearest<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Option<String> {
    all.map(|other| (strsim::damerau_levenshtein(name, other), other))
        .filter(|(distance, _)| *distance <= 2.max(name.len() / 4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other.to_owned())
}

fn contended(what: &str) -> EngineError {
    WriteError::Overloaded(format!("{what}: others change it all the time")).into()
}

impl Database {
    fn patience(&self) -> Duration {
        Duration::from_millis(self.shared.env.config.write_timeout_ms)
    }

    fn schema_not_found(&self, name: &str) -> EngineError {
        let names = self.schema_names();
        EngineError::NotFound {
            what: "schema",
            name: name.to_owned(),
            nearest: nearest(name, names.iter().map(String::as_str)),
        }
    }

    /// The error for a table that does not exist, naming the closest one that does.
    #[must_use]
    pub fn table_not_found(&self, schema_name: &str, name: &str) -> EngineError {
        let Some(tables) = self.shared.env.catalog.tables(schema_name) else {
            return self.schema_not_found(schema_name);
        };
        EngineError::NotFound {
            what: "table",
            name: name.to_owned(),
            nearest: nearest(name, tables.iter().map(|t| &*t.name)),
        }
    }

    /// Names of all schemas, sorted.
    pub fn schema_names(&self) -> Vec<String> {
        self.shared.env.catalog.schema_names()
    }

    /// Whether a schema exists.
    #[must_use]
    pub fn has_schema(&self, name: &str) -> bool {
        self.shared.env.catalog.has_schema(name)
    }

    /// Makes a schema. `Ok(false)`: it was there and `if_not_exists`.
    ///
    /// # Errors
    /// [`EngineError::AlreadyExists`], [`EngineError::Schema`] for a bad name, [`EngineError::Meta`].
    pub async fn create_schema(
        &self,
        name: &str,
        if_not_exists: bool,
    ) -> Result<bool, EngineError> {
        SchemaError::check_name("schema", name)?;
        let catalog = &self.shared.env.catalog;
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
        let created_ms = self.shared.env.clock.now_ms();
        match catalog
            .create_schema(name, SchemaEntry { created_ms })
            .await
        {
            Ok(()) => Ok(true),
            Err(MetaError::Conflict) => exists(),
            Err(e) => Err(e.into()),
        }
    }

    /// Drops a schema and, with `cascade`, its tables. `Ok(false)`: it was not there and
    /// `if_exists`.
    ///
    /// # Errors
    /// [`EngineError::NotFound`]; [`EngineError::Invalid`] if it has tables and not `cascade`.
    pub async fn drop_schema(
        &self,
        name: &str,
        if_exists: bool,
        cascade: bool,
    ) -> Result<bool, EngineError> {
        let catalog = &self.shared.env.catalog;
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

    /// A table by name (exact).
    pub fn table(&self, schema_name: &str, name: &str) -> Option<TableHandle> {
        let entry = self.shared.env.catalog.table(schema_name, name)?;
        Some(TableHandle {
            schema_name: schema_name.to_owned(),
            name: name.to_owned(),
            id: entry.table,
            partition: entry.partition,
            shard: entry.shard,
        })
    }

    /// As [`Self::table`], asking meta before it says that there is none: another node may have
    /// made it a moment ago. For statements; whoever lists names calls [`Self::sync_names`] first.
    ///
    /// # Errors
    /// [`EngineError::Meta`].
    pub async fn find_table(
        &self,
        schema_name: &str,
        name: &str,
    ) -> Result<Option<TableHandle>, EngineError> {
        let catalog = &self.shared.env.catalog;
        catalog.find_table(schema_name, name).await?;
        Ok(self.table(schema_name, name))
    }

    /// Makes sure that all names are known that any node had made before this was called.
    ///
    /// # Errors
    /// [`EngineError::Meta`]: names known here may be old.
    pub async fn sync_names(&self) -> Result<(), EngineError> {
        Ok(self.shared.env.catalog.sync().await?)
    }

    /// A table by id.
    #[must_use]
    pub fn table_by_id(&self, table: TableId) -> Option<TableHandle> {
        self.shared.env.catalog.named(table).map(|t| handle(&t))
    }

    /// Tables of a schema, sorted by name.
    pub fn tables(&self, schema_name: &str) -> Vec<TableHandle> {
        let tables = self.shared.env.catalog.tables(schema_name);
        tables.unwrap_or_default().iter().map(handle).collect()
    }

    /// Number of tables of all schemas.
    #[must_use]
    pub fn tables_count(&self) -> usize {
        self.shared.env.catalog.tables_count()
    }

    /// The current schema of a table.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] once it was dropped, [`EngineError::ShardUnavailable`].
    pub fn table_schema(&self, table: &TableHandle) -> Result<Arc<TableSchema>, EngineError> {
        let shard = self.shared.shard(table.shard)?;
        shard
            .schema(table.id)
            .ok_or_else(|| self.table_not_found(&table.schema_name, &table.name))
    }

    /// Makes tables: one meta transaction and one `Schema` record a shard for all of them (more
    /// records where there are very many columns). A name that exists already: its handle is
    /// returned if `if_not_exists`, else an error for all.
    ///
    /// # Errors
    /// [`EngineError::Schema`], [`EngineError::NotFound`] for the schema,
    /// [`EngineError::AlreadyExists`], [`EngineError::Write`], [`EngineError::Meta`].
    pub async fn create_tables(
        &self,
        tables: Vec<NewTable>,
        if_not_exists: bool,
    ) -> Result<Vec<TableHandle>, EngineError> {
        let catalog = &self.shared.env.catalog;
        for table in &tables {
            SchemaError::check_name("table", &table.name)?;
            table.schema.check()?;
            if !catalog.find_schema(&table.schema_name).await? {
                return Err(self.schema_not_found(&table.schema_name));
            }
        }
        for _ in 0..TRIES {
            let mut seen = HashSet::new();
            let mut missing = Vec::new();
            for table in &tables {
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
            match self.make_tables(&missing).await {
                Ok(()) => {}
                Err(MakeError::Raced) => continue,
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

    async fn make_tables(&self, missing: &[&NewTable]) -> Result<(), MakeError> {
        if missing.is_empty() {
            return Ok(());
        }
        let mut named = Vec::with_capacity(missing.len());
        let mut by_shard: ByShard<Arc<TableSchema>> = HashMap::new();
        let mut placing = self.placing()?;
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
            .map(|(shard, schemas)| self.put_schemas(shard, schemas));
        let written = futures::future::join_all(written).await;
        if let Some(error) = written.into_iter().find_map(Result::err) {
            self.forget(named.iter().map(|t| t.entry)).await;
            return Err(MakeError::Failed(error));
        }
        match self.shared.env.catalog.create_tables(&named).await {
            Ok(()) => Ok(()),
            Err(MetaError::Conflict) => {
                // Another creator took a name (or a schema went): what we made has none.
                let ours =
                    |t: &&NamedTable| self.shared.env.catalog.placement(t.entry.table).is_none();
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
        let shard = self.shared.shard(shard)?;
        let mut part = Vec::new();
        let mut columns = 0;
        for schema in schemas {
            if columns + schema.columns.len() > COLUMNS_A_RECORD && !part.is_empty() {
                let record = Payload::Schema(std::mem::take(&mut part));
                shard.submit(record, Vec::new(), self.patience()).await?;
                columns = 0;
            }
            columns += schema.columns.len() + 8;
            part.push(SchemaChange::Put(schema));
        }
        shard
            .submit(Payload::Schema(part), Vec::new(), self.patience())
            .await?;
        Ok(())
    }

    fn placing(&self) -> Result<Placing, EngineError> {
        let catalog = &self.shared.env.catalog;
        let open = self.shared.open_shards();
        let counts: Vec<_> = open
            .iter()
            .map(|s| (s.id, catalog.tables_on(s.id)))
            .collect();
        if counts.is_empty() {
            return Err(match self.shared.slots.values().next() {
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
            let Ok(shard) = self.shared.shard(shard) else {
                continue;
            };
            {
                let state = shard.state.read();
                drops.retain(|d| state.fold.schema(d.table()).is_some());
            }
            for part in drops.chunks(1024) {
                let record = Payload::Schema(part.to_vec());
                if let Err(error) = shard.submit(record, Vec::new(), self.patience()).await {
                    tracing::warn!(shard = %shard.id, %error, "dropped tables keep their files until the next start");
                }
            }
        }
    }

    /// Changes a table's schema: `change` gets the current schema and returns the new one (whose
    /// version is set here); called again when another change came between. `Ok(None)` from it:
    /// nothing to do.
    ///
    /// # Errors
    /// `change`'s own, [`EngineError::Schema`], [`EngineError::NotFound`], [`EngineError::Write`].
    pub async fn alter_table(
        &self,
        table: &TableHandle,
        change: &(dyn Fn(&TableSchema) -> Result<Option<TableSchema>, EngineError> + Send + Sync),
    ) -> Result<Arc<TableSchema>, EngineError> {
        for _ in 0..TRIES {
            let shard = self.shared.shard(table.shard)?;
            let current = self.table_schema(table)?;
            let Some(mut new) = change(&current)? else {
                return Ok(current);
            };
            new.table = current.table;
            new.version = current.version + 1;
            new.check()?;
            if new.incarnation < current.incarnation {
                return Err(EngineError::Invalid(
                    "a table's incarnation cannot go back".into(),
                ));
            }
            let new = Arc::new(new);
            let record = Payload::Schema(vec![SchemaChange::Put(Arc::clone(&new))]);
            match shard.submit(record, Vec::new(), self.patience()).await {
                Ok(_) => return Ok(new),
                Err(WriteError::StaleSchema { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(contended(&table.name))
    }

    /// Renames a table.
    ///
    /// # Errors
    /// [`EngineError::AlreadyExists`], [`EngineError::NotFound`], [`EngineError::Meta`].
    pub async fn rename_table(
        &self,
        table: &TableHandle,
        name: &str,
    ) -> Result<TableHandle, EngineError> {
        SchemaError::check_name("table", name)?;
        let catalog = &self.shared.env.catalog;
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

    /// Drops a table; its files become garbage.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Meta`].
    pub async fn drop_table(&self, table: &TableHandle) -> Result<(), EngineError> {
        let catalog = &self.shared.env.catalog;
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

    /// Empties a table (its incarnation rises).
    ///
    /// # Errors
    /// As [`Self::alter_table`].
    pub async fn truncate_table(&self, table: &TableHandle) -> Result<(), EngineError> {
        self.alter_table(table, &|schema| {
            Ok(Some(TableSchema {
                incarnation: Incarnation(schema.incarnation.0 + 1),
                ..schema.clone()
            }))
        })
        .await
        .map(|_| ())
    }
}

enum MakeError {
    Raced,
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
