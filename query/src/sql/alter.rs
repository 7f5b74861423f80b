//! `ALTER TABLE`.

use datafusion::sql::sqlparser::ast::{
    AlterColumnOperation, AlterTable, AlterTableOperation, Ident, RenameTableNameKind,
};
use shoal_engine::{EngineError, Hold, TableHandle};
use shoal_types::{Column, ColumnDefault, ColumnId, ColumnType, TableSchema};

use super::names::{fold, parts, position};
use super::types::TableOptions;
use super::{Outcome, Run};
use crate::error::{Kind, Result, nearest};
use crate::{QueryError, predicate};

/// A change of a schema, applied to whatever the schema is when its turn comes.
enum Change {
    Add {
        name: String,
        column_type: ColumnType,
        if_not_exists: bool,
    },
    Drop {
        name: String,
        if_exists: bool,
    },
    Rename {
        from: String,
        to: String,
    },
    Default {
        name: String,
        default: Option<ColumnDefault>,
    },
    DropNotNull(String),
    Options(TableOptions),
}

/// How often deletes are applied before a column is dropped that they look at.
const APPLIED_TRIES: u32 = 4;

impl Run<'_> {
    /// `ALTER TABLE`.
    pub(super) async fn alter_table(&self, alter: &AlterTable) -> Result<Outcome> {
        let db = self.session.engine().database();
        let (schema, table) = self.qualified(&alter.name)?;
        if alter.if_exists && db.table(&schema, &table).is_none() {
            return Ok(Outcome::done("ALTER TABLE"));
        }
        let handle = self.table(&alter.name)?;
        if let [AlterTableOperation::RenameTable { table_name }] = &alter.operations[..] {
            self.rename_table(&handle, table_name).await?;
            return Ok(Outcome::done("ALTER TABLE"));
        }
        let mut changes = Vec::new();
        let mut place = None;
        for operation in &alter.operations {
            self.changes(operation, &mut changes, &mut place)?;
        }
        let changed = |current: &TableSchema| {
            let mut schema = current.clone();
            for change in &changes {
                change.apply(&mut schema)?;
            }
            Ok::<_, EngineError>(schema)
        };
        let placed = |error: EngineError| QueryError::from(error).at(place);
        let current = db.table_schema(&handle)?;
        let after = changed(&current).map_err(placed)?;
        let is_dropped = |column: &&Column| after.column_by_id(column.id).is_none();
        let dropped: Vec<&Column> = current.columns.iter().filter(is_dropped).collect();
        if let Some(layout) = &handle.layout
            && let Some(column) = dropped.iter().find(|c| layout.by.columns.contains(&c.id))
        {
            let error = QueryError::unsupported(format!(
                "column {:?} is a partition column and cannot be dropped",
                column.name
            ));
            return Err(error.at(place));
        }
        let mut holds = Vec::new();
        for partition in handle.partitions() {
            holds.extend(self.release(&partition, &dropped).await?);
        }
        // All of them in one schema change, or none.
        db.alter_table(&handle, &|current| {
            let schema = changed(current)?;
            Ok((schema != *current).then_some(schema))
        })
        .await
        .map_err(placed)?;
        Ok(Outcome::done("ALTER TABLE"))
    }

    /// Sees to it that no delete by predicate, which rows are still held against, looks at columns
    /// that are about to go; others' writes wait while this is held.
    async fn release(&self, table: &TableHandle, columns: &[&Column]) -> Result<Option<Hold>> {
        if columns.is_empty() {
            return Ok(None);
        }
        let db = self.session.engine().database();
        let hold = db.hold_writes(table.id);
        for _ in 0..APPLIED_TRIES {
            let pending = db.pending_deletes(table).await?;
            let looks = |column: &&Column| {
                let mut pending = pending.iter();
                pending.any(|text| predicate::names_column(text, column.id))
            };
            if !columns.iter().any(looks) {
                return Ok(Some(hold));
            }
            db.apply_deletes(table).await?;
        }
        Err(QueryError::new(
            Kind::CONFLICT,
            format!(
                "rows of table {:?} are deleted by the columns to be dropped all the time; try again",
                table.name
            ),
        ))
    }

    async fn rename_table(&self, handle: &TableHandle, to: &RenameTableNameKind) -> Result<()> {
        let (RenameTableNameKind::To(name) | RenameTableNameKind::As(name)) = to;
        let mut parts = parts(name)?;
        let new = parts.pop().unwrap_or_default();
        if parts
            .last()
            .is_some_and(|schema| *schema != handle.schema_name)
        {
            return Err(QueryError::unsupported(
                "a table cannot be moved to another schema",
            ));
        }
        self.session
            .engine()
            .database()
            .rename_table(handle, &new)
            .await?;
        Ok(())
    }

    fn changes(
        &self,
        operation: &AlterTableOperation,
        changes: &mut Vec<Change>,
        place: &mut Option<(u64, u64)>,
    ) -> Result<()> {
        let mut at = |ident: &Ident| *place = place.or(position(ident));
        match operation {
            AlterTableOperation::AddColumn {
                if_not_exists,
                column_def,
                ..
            } => {
                at(&column_def.name);
                let spec = self.column_spec(column_def)?;
                let refused = if spec.primary_key {
                    Some("the primary key of a table never changes")
                } else if spec.not_null {
                    Some("rows there are would break NOT NULL; add the column without it")
                } else if spec.default.is_some() {
                    Some(
                        "rows there are would have to be rewritten; add the column, then ALTER COLUMN … SET DEFAULT for new rows",
                    )
                } else {
                    None
                };
                if let Some(why) = refused {
                    return Err(QueryError::unsupported(format!(
                        "column {:?} cannot be added like this: {why}",
                        spec.name
                    ))
                    .at(position(&column_def.name)));
                }
                changes.push(Change::Add {
                    name: spec.name,
                    column_type: spec.column_type,
                    if_not_exists: *if_not_exists,
                });
            }
            AlterTableOperation::DropColumn {
                column_names,
                if_exists,
                ..
            } => {
                for ident in column_names {
                    at(ident);
                    changes.push(Change::Drop {
                        name: fold(ident),
                        if_exists: *if_exists,
                    });
                }
            }
            AlterTableOperation::RenameColumn {
                old_column_name,
                new_column_name,
            } => {
                at(old_column_name);
                changes.push(Change::Rename {
                    from: fold(old_column_name),
                    to: fold(new_column_name),
                });
            }
            AlterTableOperation::AlterColumn { column_name, op } => {
                at(column_name);
                let name = fold(column_name);
                changes.push(match op {
                    AlterColumnOperation::SetDefault { value } => Change::Default {
                        name,
                        default: Some(self.default(value)?),
                    },
                    AlterColumnOperation::DropDefault => Change::Default {
                        name,
                        default: None,
                    },
                    AlterColumnOperation::DropNotNull => Change::DropNotNull(name),
                    AlterColumnOperation::SetDataType { .. } => {
                        return Err(QueryError::unsupported(
                            "the type of a column never changes; add a new column and copy with UPDATE",
                        )
                        .at(position(column_name)));
                    }
                    other => {
                        return Err(QueryError::unsupported(format!(
                            "ALTER COLUMN {other} is not supported"
                        ))
                        .at(position(column_name)));
                    }
                });
            }
            AlterTableOperation::SetOptionsParens { options } => {
                let options = TableOptions::parse(options)?;
                if options.mode.is_some() {
                    return Err(QueryError::unsupported("the mode of a table never changes"));
                }
                changes.push(Change::Options(options));
            }
            other => {
                return Err(QueryError::unsupported(format!(
                    "ALTER TABLE … {other} is not supported; there are ADD, DROP and RENAME COLUMN, ALTER COLUMN … SET/DROP DEFAULT and DROP NOT NULL, RENAME TO, SET (…)"
                )));
            }
        }
        Ok(())
    }
}

fn find<'a>(schema: &'a mut TableSchema, name: &str) -> Result<&'a mut Column, EngineError> {
    let near = nearest(name, schema.columns.iter().map(|c| c.name.as_str())).map(str::to_owned);
    schema
        .columns
        .iter_mut()
        .find(|c| c.name == name)
        .ok_or(EngineError::NotFound {
            what: "column",
            name: name.to_owned(),
            nearest: near,
        })
}

impl Change {
    fn apply(&self, schema: &mut TableSchema) -> Result<(), EngineError> {
        match self {
            Self::Add {
                name,
                column_type,
                if_not_exists,
            } => {
                if schema.column(name).is_some() {
                    if *if_not_exists {
                        return Ok(());
                    }
                    return Err(EngineError::AlreadyExists {
                        what: "column",
                        name: name.clone(),
                    });
                }
                let id = schema.next_column_id;
                schema.next_column_id = ColumnId(id.0 + 1);
                schema.columns.push(Column {
                    id,
                    name: name.clone(),
                    column_type: *column_type,
                    nullable: true,
                    default: None,
                });
            }
            Self::Drop { name, if_exists } => {
                if *if_exists && schema.column(name).is_none() {
                    return Ok(());
                }
                let id = find(schema, name)?.id;
                if schema.is_key(id) || schema.time_column == Some(id) {
                    return Err(EngineError::Invalid(format!(
                        "column {name:?} is part of the primary key or the time column and cannot be dropped"
                    )));
                }
                schema.columns.retain(|c| c.id != id);
            }
            Self::Rename { from, to } => {
                if schema.column(to).is_some() {
                    return Err(EngineError::AlreadyExists {
                        what: "column",
                        name: to.clone(),
                    });
                }
                find(schema, from)?.name.clone_from(to);
            }
            Self::Default { name, default } => {
                find(schema, name)?.default.clone_from(default);
            }
            Self::DropNotNull(name) => {
                let column = find(schema, name)?;
                let id = column.id;
                column.nullable = true;
                if schema.is_key(id) {
                    return Err(EngineError::Invalid(format!(
                        "column {name:?} is part of the primary key and stays NOT NULL"
                    )));
                }
            }
            Self::Options(options) => {
                if let Some(name) = &options.time_column {
                    schema.time_column = Some(find(schema, name)?.id);
                }
                if let Some(ttl) = options.ttl_ms {
                    schema.ttl_ms = ttl;
                }
            }
        }
        schema.check()?;
        Ok(())
    }
}
