//! Schemas and tables: looking them up, and changing columns. Names are made and dropped in
//! `names.rs`.

use std::sync::Arc;
use std::time::Duration;

use shoal_meta::NamedTable;
use shoal_types::{Incarnation, TableId, TableSchema};
use shoal_wal::record::SchemaChange;

use super::{Database, NewTable, Shared, TableHandle};
use crate::background::to_the_end;
use crate::{EngineError, WriteError};

/// How often a change is tried when others change the same thing.
pub(super) const TRIES: u32 = 32;

fn nearest<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Option<String> {
    all.map(|other| (strsim::damerau_levenshtein(name, other), other))
        .filter(|(distance, _)| *distance <= 2.max(name.len() / 4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other.to_owned())
}

pub(super) fn contended(what: &str) -> EngineError {
    WriteError::Overloaded(format!("{what}: others change it all the time")).into()
}

impl Shared {
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.env.config.write_timeout_ms)
    }

    pub(super) fn schema_not_found(&self, name: &str) -> EngineError {
        let names = self.env.catalog.schema_names();
        EngineError::NotFound {
            what: "schema",
            name: name.to_owned(),
            nearest: nearest(name, names.iter().map(String::as_str)),
        }
    }

    pub(super) fn table_not_found(&self, schema_name: &str, name: &str) -> EngineError {
        let Some(tables) = self.env.catalog.tables(schema_name) else {
            return self.schema_not_found(schema_name);
        };
        EngineError::NotFound {
            what: "table",
            name: name.to_owned(),
            nearest: nearest(name, tables.iter().map(|t| &*t.name)),
        }
    }

    pub(super) fn table(&self, schema_name: &str, name: &str) -> Option<TableHandle> {
        let entry = self.env.catalog.table(schema_name, name)?;
        Some(TableHandle::of(&NamedTable {
            schema_name: schema_name.into(),
            name: name.into(),
            entry,
        }))
    }
}

impl Database {
    /// The error for a table that does not exist, naming the closest one that does.
    #[must_use]
    pub fn table_not_found(&self, schema_name: &str, name: &str) -> EngineError {
        self.shared.table_not_found(schema_name, name)
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

    /// A table by name (exact).
    pub fn table(&self, schema_name: &str, name: &str) -> Option<TableHandle> {
        self.shared.table(schema_name, name)
    }

    /// As [`Self::table`], asking meta (and the shard's leader for the columns) before it says that there is none: another node may have
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
        let Some(found) = self.table(schema_name, name) else {
            return Ok(None);
        };
        match self.shared.learn_schema(&found).await {
            // It was dropped meanwhile, or its shard is away; whoever uses it is told.
            Ok(()) | Err(EngineError::NotFound { .. } | EngineError::ShardUnavailable { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(Some(found))
    }

    /// Makes sure that all names are known that any node had made before this was called.
    ///
    /// # Errors
    /// [`EngineError::Meta`]: names known here may be old.
    pub async fn sync_names(&self) -> Result<(), EngineError> {
        Ok(self.shared.env.catalog.sync().await?)
    }

    /// The table that an id is of: a table's, or one of its partitions' in its shard.
    #[must_use]
    pub fn table_by_id(&self, table: TableId) -> Option<TableHandle> {
        let named = self.shared.env.catalog.named(table);
        named.as_ref().map(TableHandle::of)
    }

    /// Tables of a schema, sorted by name.
    pub fn tables(&self, schema_name: &str) -> Vec<TableHandle> {
        let tables = self.shared.env.catalog.tables(schema_name);
        tables
            .unwrap_or_default()
            .iter()
            .map(TableHandle::of)
            .collect()
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
        self.shared.known_schema(table)
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
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        to_the_end(async move { shared.create_schema(&name, if_not_exists).await }).await
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
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        to_the_end(async move { shared.drop_schema(&name, if_exists, cascade).await }).await
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
        let shared = Arc::clone(&self.shared);
        to_the_end(async move { shared.create_tables(&tables, if_not_exists).await }).await
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
        let shared = Arc::clone(&self.shared);
        let (table, name) = (table.clone(), name.to_owned());
        to_the_end(async move { shared.rename_table(&table, &name).await }).await
    }

    /// Drops a table; its files become garbage.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], [`EngineError::Meta`].
    pub async fn drop_table(&self, table: &TableHandle) -> Result<(), EngineError> {
        let (shared, table) = (Arc::clone(&self.shared), table.clone());
        to_the_end(async move { shared.drop_table(&table).await }).await
    }

    /// Changes a table's schema: `change` gets the current schema and returns the new one (whose
    /// version is set here); called again when another change came between. `Ok(None)` from it:
    /// nothing to do. A caller that goes away leaves the change done or not done: it is one record.
    ///
    /// # Errors
    /// `change`'s own, [`EngineError::Schema`], [`EngineError::NotFound`], [`EngineError::Write`].
    pub async fn alter_table(
        &self,
        table: &TableHandle,
        change: &(dyn Fn(&TableSchema) -> Result<Option<TableSchema>, EngineError> + Send + Sync),
    ) -> Result<Arc<TableSchema>, EngineError> {
        for _ in 0..TRIES {
            let (shard, current) = self.shared.current_place(table).await?;
            let Some(mut new) = change(&current)? else {
                return Ok(current);
            };
            new.table = current.table;
            new.part_of = current.part_of;
            new.version = current.version + 1;
            new.check()?;
            if new.incarnation < current.incarnation {
                return Err(EngineError::Invalid(
                    "a table's incarnation cannot go back".into(),
                ));
            }
            let new = Arc::new(new);
            let changes = vec![SchemaChange::Put(Arc::clone(&new))];
            match self.shared.submit_schemas(shard, changes).await {
                Ok(()) => {
                    self.shared.bring_up_all(table, &new).await;
                    return Ok(new);
                }
                Err(WriteError::StaleSchema { .. }) => {}
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
