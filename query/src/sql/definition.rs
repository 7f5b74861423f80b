//! Schemas, and what becomes of whole tables: `CREATE/DROP SCHEMA`, `DROP TABLE`, `TRUNCATE`.

use datafusion::sql::sqlparser::ast::{ObjectName, ObjectType, SchemaName, Truncate};

use super::names::{position_of, single};
use super::{Outcome, Run};
use crate::QueryError;
use crate::catalog::OWN_SCHEMAS;
use crate::error::{Kind, Result};

impl Run<'_> {
    /// `CREATE SCHEMA`, `CREATE DATABASE`.
    pub(super) async fn create_schema(
        &self,
        name: &ObjectName,
        if_not_exists: bool,
        tag: &str,
    ) -> Result<Outcome> {
        let place = position_of(name);
        let name = single(name)?;
        if OWN_SCHEMAS.contains(&name.as_str()) {
            return Err(QueryError::new(
                Kind::NOT_ALLOWED,
                format!("schema {name:?} is ShoalDB's own; choose another name"),
            )
            .at(place));
        }
        self.session
            .engine()
            .database()
            .create_schema(&name, if_not_exists)
            .await
            .map_err(|error| QueryError::from(error).at(place))?;
        Ok(Outcome::done(tag))
    }

    /// `DROP …`.
    pub(super) async fn drop_objects(
        &self,
        object_type: ObjectType,
        names: &[ObjectName],
        if_exists: bool,
        cascade: bool,
    ) -> Result<Outcome> {
        let db = self.session.engine().database();
        match object_type {
            ObjectType::Table => {
                for name in names {
                    let (schema, table) = self.qualified(name)?;
                    if if_exists && db.table(&schema, &table).is_none() {
                        continue;
                    }
                    db.drop_table(&self.table(name)?).await?;
                }
                Ok(Outcome::done("DROP TABLE"))
            }
            ObjectType::Schema | ObjectType::Database => {
                for name in names {
                    db.drop_schema(&single(name)?, if_exists, cascade)
                        .await
                        .map_err(|error| QueryError::from(error).at(position_of(name)))?;
                }
                Ok(Outcome::done(format!("DROP {object_type}")))
            }
            other => Err(QueryError::unsupported(format!(
                "DROP {other} is not supported"
            ))),
        }
    }

    /// `TRUNCATE`.
    pub(super) async fn truncate(&self, truncate: &Truncate) -> Result<Outcome> {
        let db = self.session.engine().database();
        for target in &truncate.table_names {
            let (schema, table) = self.qualified(&target.name)?;
            if truncate.if_exists && db.table(&schema, &table).is_none() {
                continue;
            }
            db.truncate_table(&self.table(&target.name)?).await?;
        }
        Ok(Outcome::done("TRUNCATE TABLE"))
    }
}

/// The name of the schema in `CREATE SCHEMA`.
pub(super) fn schema_name(name: &SchemaName) -> Result<&ObjectName> {
    match name {
        SchemaName::Simple(name) | SchemaName::NamedAuthorization(name, _) => Ok(name),
        SchemaName::UnnamedAuthorization(_) => Err(QueryError::unsupported(
            "CREATE SCHEMA needs a name; AUTHORIZATION alone is not supported",
        )),
    }
}
