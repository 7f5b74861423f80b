//! `CREATE TABLE`, also from a query.

use datafusion::common::DFSchema;
use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, CreateTable, CreateTableOptions, Expr, Ident, IndexColumn,
    TableConstraint,
};
use shoal_engine::NewTable;
use shoal_types::{
    Column, ColumnDefault, ColumnId, ColumnType, Incarnation, TableId, TableMode, TableOrigin,
    TableSchema,
};

use super::insert::Writer;
use super::names::{fold, position, position_of};
use super::partitions::PartitionClause;
use super::result_names::Names;
use super::types::{TableOptions, column_type};
use super::{Outcome, Run};
use crate::catalog::{INFORMATION_SCHEMA, SYSTEM};
use crate::error::{Kind, Result, nearest};
use crate::{QueryError, decimals, predicate};

/// A column as `CREATE TABLE` and `ADD COLUMN` write it.
pub(super) struct ColumnSpec {
    pub name: String,
    pub column_type: ColumnType,
    pub not_null: bool,
    pub primary_key: bool,
    pub default: Option<ColumnDefault>,
}

impl Run<'_> {
    /// `CREATE TABLE`.
    pub(super) async fn create_table(
        &self,
        create: &CreateTable,
        partitions: Option<&PartitionClause>,
    ) -> Result<Outcome> {
        refuse_clauses(create)?;
        let (schema_name, name) = self.qualified(&create.name)?;
        if [SYSTEM, INFORMATION_SCHEMA, "pg_catalog"].contains(&schema_name.as_str()) {
            return Err(QueryError::new(
                Kind::NOT_ALLOWED,
                format!("schema {schema_name:?} is the database's own"),
            )
            .at(position_of(&create.name)));
        }
        let db = self.session.engine().database();
        if db.table(&schema_name, &name).is_some() {
            if create.if_not_exists {
                return Ok(Outcome::done("CREATE TABLE"));
            }
            return Err(QueryError::new(
                Kind::DUPLICATE_TABLE,
                format!("table {name:?} already exists"),
            )
            .at(position_of(&create.name)));
        }
        let mut columns = create
            .columns
            .iter()
            .map(|column| self.column_spec(column))
            .collect::<Result<Vec<_>>>()?;
        let query = match &create.query {
            None => None,
            Some(query) => {
                if !columns.is_empty() {
                    return Err(QueryError::unsupported(
                        "CREATE TABLE … AS takes names and types from the query; give columns there, with AS and CAST",
                    ));
                }
                let plan = self.plan_query(query.as_ref().clone()).await?;
                columns = columns_of(plan.schema(), &Names::of_query(query))?;
                Some(plan)
            }
        };
        let schema = table_schema(create, columns)?;
        let partitions = partitions
            .map(|clause| self.new_partitions(clause, &schema))
            .transpose()?;
        let table = NewTable {
            schema_name,
            name,
            schema,
            partitions,
        };
        let handles = db
            .create_tables(vec![table], create.if_not_exists)
            .await
            .map_err(|error| QueryError::from(error).at(position_of(&create.name)))?;
        let (Some(plan), Some(handle)) = (query, handles.into_iter().next()) else {
            return Ok(Outcome::done("CREATE TABLE"));
        };
        let schema = db.table_schema(&handle)?;
        let ids = schema.columns.iter().map(|column| column.id).collect();
        let writer = Writer::new(self, schema, ids);
        let stream = self.stream(plan).await?;
        match writer.write_all(stream).await {
            Ok((rows, commit)) => Ok(Outcome::Affected {
                tag: format!("SELECT {rows}"),
                rows,
                commit,
            }),
            Err(error) => {
                // Half a table would look like a whole one.
                if let Err(drop) = db.drop_table(&handle).await {
                    tracing::warn!(table = %handle.id, error = %drop, "table of a failed CREATE TABLE AS stays");
                }
                Err(error)
            }
        }
    }

    pub(super) fn column_spec(&self, column: &ColumnDef) -> Result<ColumnSpec> {
        let place = position(&column.name);
        let mut out = ColumnSpec {
            name: fold(&column.name),
            column_type: column_type(&column.data_type).map_err(|e| e.at(place))?,
            not_null: false,
            primary_key: false,
            default: None,
        };
        for option in &column.options {
            match &option.option {
                ColumnOption::Null => out.not_null = false,
                ColumnOption::NotNull => out.not_null = true,
                ColumnOption::PrimaryKey(_) => out.primary_key = true,
                ColumnOption::Default(expr) => out.default = Some(self.default(expr)?),
                ColumnOption::Comment(_) => {}
                other => {
                    return Err(QueryError::unsupported(format!(
                        "column {:?}: {other} is not supported; there are NOT NULL, DEFAULT and PRIMARY KEY",
                        out.name
                    ))
                    .at(place));
                }
            }
        }
        Ok(out)
    }

    /// Checks a default: it may not name columns.
    pub(super) fn default(&self, expr: &Expr) -> Result<ColumnDefault> {
        let sql = decimals::unmark_text(&expr.to_string());
        predicate::constant(&sql)?;
        Ok(ColumnDefault::Sql(sql))
    }
}

fn refuse_clauses(create: &CreateTable) -> Result<()> {
    let refused = [
        (create.or_replace, "OR REPLACE"),
        (create.temporary, "TEMPORARY"),
        (create.external, "EXTERNAL"),
        (create.like.is_some(), "LIKE"),
        (create.clone.is_some(), "CLONE"),
        (create.inherits.is_some(), "INHERITS"),
        (create.order_by.is_some(), "ORDER BY"),
        (create.cluster_by.is_some(), "CLUSTER BY"),
        (create.partition_of.is_some(), "PARTITION OF"),
        (create.on_commit.is_some(), "ON COMMIT"),
        (create.location.is_some(), "LOCATION"),
    ];
    if let Some((_, clause)) = refused.iter().find(|(is_there, _)| *is_there) {
        return Err(QueryError::unsupported(format!(
            "CREATE TABLE … {clause} is not supported"
        )));
    }
    Ok(())
}

/// Columns of a query's result.
fn columns_of(schema: &DFSchema, names: &Names) -> Result<Vec<ColumnSpec>> {
    let width = schema.fields().len();
    schema
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| {
            Ok(ColumnSpec {
                name: names.get(at, width).unwrap_or(field.name()).to_owned(),
                column_type: ColumnType::from_arrow(field.data_type()).map_err(|error| {
                    QueryError::new(
                        Kind::TYPE_MISMATCH,
                        format!("column {:?}: {error}", field.name()),
                    )
                })?,
                not_null: false,
                primary_key: false,
                default: None,
            })
        })
        .collect()
}

fn table_schema(create: &CreateTable, columns: Vec<ColumnSpec>) -> Result<TableSchema> {
    let options = match &create.table_options {
        CreateTableOptions::None => TableOptions::default(),
        CreateTableOptions::With(options)
        | CreateTableOptions::Options(options)
        | CreateTableOptions::Plain(options)
        | CreateTableOptions::TableProperties(options) => TableOptions::parse(options)?,
    };
    let find = |name: &str, place: Option<(u64, u64)>| -> Result<usize> {
        columns.iter().position(|c| c.name == name).ok_or_else(|| {
            let error = QueryError::new(
                Kind::UNDEFINED_COLUMN,
                format!("column {name:?} does not exist"),
            )
            .at(place);
            match nearest(name, columns.iter().map(|c| c.name.as_str())) {
                Some(near) => error.with_hint(format!("did you mean {near:?}?")),
                None => error,
            }
        })
    };
    let mut key = Vec::new();
    for ident in key_idents(&create.constraints)? {
        key.push(find(&fold(&ident), position(&ident))?);
    }
    let inline = columns.iter().enumerate().filter(|(_, c)| c.primary_key);
    let inline: Vec<usize> = inline.map(|(i, _)| i).collect();
    if !inline.is_empty() && (!key.is_empty() || inline.len() > 1) {
        return Err(QueryError::new(
            Kind::INVALID_DEFINITION,
            "several primary keys; name all key columns in one PRIMARY KEY (…)",
        ));
    }
    key.extend(inline);
    let mode = options.mode.unwrap_or(if key.is_empty() {
        TableMode::Append
    } else {
        TableMode::Upsert
    });
    let is_time = |i: usize| matches!(columns[i].column_type, ColumnType::Timestamp { .. });
    let time = match &options.time_column {
        Some(name) => Some(find(&fold(&Ident::new(name)), None).or_else(|_| find(name, None))?),
        None => key.last().copied().filter(|i| is_time(*i)),
    };
    let key_is_declared = !key.is_empty();
    if key.is_empty() && mode == TableMode::Append {
        // Rows are kept sorted by time, so that time ranges read little.
        key.extend(time);
    }
    let id = |i: usize| ColumnId(u32::try_from(i).unwrap_or(u32::MAX));
    let schema = TableSchema {
        table: TableId::generate(),
        version: 1,
        incarnation: Incarnation(0),
        key: key.iter().map(|i| id(*i)).collect(),
        time_column: time.map(id),
        mode,
        ttl_ms: options.ttl_ms.flatten(),
        origin: TableOrigin::Sql,
        next_column_id: id(columns.len()),
        part_of: None,
        columns: columns
            .into_iter()
            .enumerate()
            .map(|(i, column)| Column {
                id: id(i),
                name: column.name,
                column_type: column.column_type,
                nullable: !column.not_null
                    && !(key.contains(&i) && (key_is_declared || time == Some(i))),
                default: column.default,
            })
            .collect(),
    };
    schema
        .check()
        .map_err(|error| QueryError::from(shoal_engine::EngineError::from(error)))?;
    Ok(schema)
}

/// Columns of the PRIMARY KEY constraint.
fn key_idents(constraints: &[TableConstraint]) -> Result<Vec<Ident>> {
    let mut key = Vec::new();
    for constraint in constraints {
        let TableConstraint::PrimaryKey(primary) = constraint else {
            return Err(QueryError::unsupported(format!(
                "constraint {constraint} is not supported; only PRIMARY KEY is"
            )));
        };
        if !key.is_empty() {
            return Err(QueryError::new(
                Kind::INVALID_DEFINITION,
                "several primary keys",
            ));
        }
        for IndexColumn { column, .. } in &primary.columns {
            let Expr::Identifier(ident) = &column.expr else {
                return Err(QueryError::new(
                    Kind::INVALID_DEFINITION,
                    format!("{column} in the PRIMARY KEY is not a column"),
                ));
            };
            key.push(ident.clone());
        }
    }
    Ok(key)
}
