//! The catalog as DataFusion sees it: tables are looked up by name when a statement names them,
//! never listed unless a statement asks for the list.

mod cells;
mod information_schema;
mod partitions;
mod system;
mod virtual_table;

use std::sync::Arc;

use ahash::AHashMap;
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::TableType;
use parking_lot::RwLock;
use shoal_engine::Database;

use crate::QueryError;
use crate::running::Running;
use crate::table::ShoalTable;

pub(crate) use partitions::partition_clause;
pub use partitions::partition_owns;

/// The name of the only catalog.
pub const CATALOG: &str = "shoal";
/// The schema of `system.queries` and its kin.
pub(crate) const SYSTEM: &str = "system";
/// The SQL standard's schema of schemas.
pub(crate) const INFORMATION_SCHEMA: &str = "information_schema";

/// Schemas whose tables are made up: none of these names may be made, or written to by a protocol,
/// for what is stored there could not be read.
pub const OWN_SCHEMAS: [&str; 3] = [INFORMATION_SCHEMA, "pg_catalog", SYSTEM];

/// The catalog `shoal`: the database's schemas, `system`, `information_schema`, and read-only
/// schemas that a protocol adds (`pg_catalog`).
pub struct ShoalCatalog {
    db: Arc<Database>,
    system: Arc<dyn SchemaProvider>,
    information: Arc<dyn SchemaProvider>,
    added: RwLock<AHashMap<String, Arc<dyn SchemaProvider>>>,
}

impl std::fmt::Debug for ShoalCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShoalCatalog").finish_non_exhaustive()
    }
}

impl ShoalCatalog {
    pub(crate) fn new(db: Arc<Database>, running: Arc<Running>) -> Self {
        Self {
            system: Arc::new(system::schema(Arc::clone(&db), running)),
            information: Arc::new(information_schema::schema(Arc::clone(&db))),
            added: RwLock::new(AHashMap::default()),
            db,
        }
    }
}

impl CatalogProvider for ShoalCatalog {
    fn schema_names(&self) -> Vec<String> {
        let mut names = self.db.schema_names();
        names.extend([SYSTEM.to_owned(), INFORMATION_SCHEMA.to_owned()]);
        names.extend(self.added.read().keys().cloned());
        names.sort_unstable();
        names.dedup();
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if let Some(added) = self.added.read().get(name) {
            return Some(Arc::clone(added));
        }
        match name {
            SYSTEM => Some(Arc::clone(&self.system)),
            INFORMATION_SCHEMA => Some(Arc::clone(&self.information)),
            _ => self.db.has_schema(name).then(|| {
                Arc::new(ShoalSchema {
                    db: Arc::clone(&self.db),
                    name: name.to_owned(),
                }) as Arc<dyn SchemaProvider>
            }),
        }
    }

    fn register_schema(
        &self,
        name: &str,
        schema: Arc<dyn SchemaProvider>,
    ) -> Result<Option<Arc<dyn SchemaProvider>>, DataFusionError> {
        Ok(self.added.write().insert(name.to_owned(), schema))
    }
}

/// One schema of the database.
struct ShoalSchema {
    db: Arc<Database>,
    name: String,
}

impl std::fmt::Debug for ShoalSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShoalSchema")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for ShoalSchema {
    fn table_names(&self) -> Vec<String> {
        self.db
            .tables(&self.name)
            .into_iter()
            .map(|table| table.name)
            .collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let Some(handle) = self
            .db
            .find_table(&self.name, name)
            .await
            .map_err(|error| DataFusionError::External(Box::new(QueryError::from(error))))?
        else {
            return Ok(None);
        };
        let schema = self
            .db
            .table_schema(&handle)
            .map_err(|error| DataFusionError::External(Box::new(QueryError::from(error))))?;
        Ok(Some(Arc::new(ShoalTable::new(handle, schema)?)))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>, DataFusionError> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.db.table(&self.name, name).is_some()
    }
}

/// The list of catalogs: `shoal`, and whatever a session of DataFusion registers.
pub(crate) struct ShoalCatalogs {
    shoal: Arc<ShoalCatalog>,
    added: RwLock<AHashMap<String, Arc<dyn CatalogProvider>>>,
}

impl std::fmt::Debug for ShoalCatalogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShoalCatalogs").finish_non_exhaustive()
    }
}

impl ShoalCatalogs {
    pub(crate) fn new(shoal: Arc<ShoalCatalog>) -> Self {
        Self {
            shoal,
            added: RwLock::new(AHashMap::default()),
        }
    }
}

impl CatalogProviderList for ShoalCatalogs {
    fn register_catalog(
        &self,
        name: String,
        catalog: Arc<dyn CatalogProvider>,
    ) -> Option<Arc<dyn CatalogProvider>> {
        self.added.write().insert(name, catalog)
    }

    fn catalog_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.added.read().keys().cloned().collect();
        names.push(CATALOG.to_owned());
        names.sort_unstable();
        names.dedup();
        names
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        if name == CATALOG {
            return Some(Arc::clone(&self.shoal) as Arc<dyn CatalogProvider>);
        }
        self.added.read().get(name).cloned()
    }
}
