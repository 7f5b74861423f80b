//! `information_schema`: schemata, tables, columns, keys.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, RecordBatch, StringViewArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use shoal_engine::{Database, TableHandle};
use shoal_types::{ColumnDefault, ColumnType, TableSchema};

use super::virtual_table::{VirtualRows, VirtualSchema, Wanted};
use super::{CATALOG, INFORMATION_SCHEMA, SYSTEM};
use crate::QueryError;

/// The schema.
pub(super) fn schema(db: Arc<Database>) -> VirtualSchema {
    let table = |view| {
        Arc::new(InformationTable {
            db: Arc::clone(&db),
            view,
        }) as Arc<dyn VirtualRows>
    };
    VirtualSchema(vec![
        ("schemata", table(View::Schemata)),
        ("tables", table(View::Tables)),
        ("columns", table(View::Columns)),
        ("table_constraints", table(View::Constraints)),
        ("key_column_usage", table(View::Keys)),
        ("views", table(View::Views)),
    ])
}

#[derive(Clone, Copy)]
enum View {
    Schemata,
    Tables,
    Columns,
    Constraints,
    Keys,
    Views,
}

struct InformationTable {
    db: Arc<Database>,
    view: View,
}

/// A cell: text or number.
enum Cell {
    Text(Option<String>),
    Number(Option<i32>),
}

fn text(value: impl Into<String>) -> Cell {
    Cell::Text(Some(value.into()))
}

/// Columns of a view; those that end in `#` are numbers.
fn columns_of(view: View) -> &'static [&'static str] {
    match view {
        View::Schemata => &["catalog_name", "schema_name", "schema_owner"],
        View::Tables => &["table_catalog", "table_schema", "table_name", "table_type"],
        View::Columns => &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position#",
            "column_default",
            "is_nullable",
            "data_type",
            "character_maximum_length#",
            "character_octet_length#",
            "numeric_precision#",
            "numeric_precision_radix#",
            "numeric_scale#",
            "datetime_precision#",
            "interval_type",
            "udt_name",
            "is_identity",
            "is_generated",
        ],
        View::Constraints => &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "constraint_type",
        ],
        View::Keys => &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position#",
        ],
        View::Views => &[
            "table_catalog",
            "table_schema",
            "table_name",
            "view_definition",
        ],
    }
}

fn arrow_schema(view: View) -> SchemaRef {
    Arc::new(Schema::new(
        columns_of(view)
            .iter()
            .map(|name| match name.strip_suffix('#') {
                Some(name) => Field::new(name, DataType::Int32, true),
                None => Field::new(*name, DataType::Utf8View, true),
            })
            .collect::<Vec<_>>(),
    ))
}

#[async_trait]
impl VirtualRows for InformationTable {
    fn schema(&self) -> SchemaRef {
        arrow_schema(self.view)
    }

    async fn rows(&self, wanted: &Wanted) -> Result<RecordBatch, QueryError> {
        let mut rows: Vec<Vec<Cell>> = Vec::new();
        match self.view {
            View::Schemata => {
                let mut names = self.db.schema_names();
                names.extend([SYSTEM.into(), INFORMATION_SCHEMA.into()]);
                names.sort_unstable();
                rows.extend(
                    names
                        .into_iter()
                        .map(|name| vec![text(CATALOG), text(name), text("shoal")]),
                );
            }
            View::Tables => {
                for table in self.tables(wanted) {
                    rows.push(vec![
                        text(CATALOG),
                        text(table.schema_name),
                        text(table.name),
                        text("BASE TABLE"),
                    ]);
                }
            }
            View::Columns => self.each_schema(wanted, |table, schema| {
                columns(table, schema, &mut rows);
            })?,
            View::Constraints => self.each_schema(wanted, |table, schema| {
                if !schema.key.is_empty() {
                    rows.push(constraint(table, text("PRIMARY KEY"), None));
                }
            })?,
            View::Keys => self.each_schema(wanted, |table, schema| {
                for (i, id) in schema.key.iter().enumerate() {
                    if let Some(column) = schema.column_by_id(*id) {
                        let number = Cell::Number(i32::try_from(i + 1).ok());
                        rows.push(constraint(table, text(&column.name), Some(number)));
                    }
                }
            })?,
            View::Views => {}
        }
        to_batch(self.view, rows)
    }
}

impl InformationTable {
    fn tables(&self, wanted: &Wanted) -> Vec<TableHandle> {
        let schemas = self
            .db
            .schema_names()
            .into_iter()
            .filter(|schema| wanted.may_be("table_schema", schema));
        match wanted.value("table_name") {
            Some(name) => schemas
                .filter_map(|schema| self.db.table(&schema, name))
                .collect(),
            None => schemas.flat_map(|schema| self.db.tables(&schema)).collect(),
        }
    }

    fn each_schema(
        &self,
        wanted: &Wanted,
        mut each: impl FnMut(&TableHandle, &TableSchema),
    ) -> Result<(), QueryError> {
        for table in self.tables(wanted) {
            // A table dropped since it was listed is simply not there.
            if let Ok(schema) = self.db.table_schema(&table) {
                each(&table, &schema);
            }
        }
        Ok(())
    }
}

fn constraint(table: &TableHandle, last: Cell, number: Option<Cell>) -> Vec<Cell> {
    let mut row = vec![
        text(CATALOG),
        text(&table.schema_name),
        text(format!("{}_pkey", table.name)),
        text(CATALOG),
        text(&table.schema_name),
        text(&table.name),
        last,
    ];
    row.extend(number);
    row
}

fn columns(table: &TableHandle, schema: &TableSchema, rows: &mut Vec<Vec<Cell>>) {
    for (i, column) in schema.columns.iter().enumerate() {
        let names = type_names(column.column_type);
        let (precision, radix, scale) = numeric(column.column_type);
        let datetime = match column.column_type {
            ColumnType::Timestamp { precision, .. } => Some(i32::from(precision.digits())),
            ColumnType::Date => Some(0),
            _ => None,
        };
        rows.push(vec![
            text(CATALOG),
            text(&table.schema_name),
            text(&table.name),
            text(&column.name),
            Cell::Number(i32::try_from(i + 1).ok()),
            Cell::Text(
                column
                    .default
                    .as_ref()
                    .map(|ColumnDefault::Sql(sql)| sql.clone()),
            ),
            text(if column.nullable { "YES" } else { "NO" }),
            text(names.0),
            Cell::Number(None),
            Cell::Number(None),
            Cell::Number(precision),
            Cell::Number(radix),
            Cell::Number(scale),
            Cell::Number(datetime),
            Cell::Text(None),
            text(names.1),
            text("NO"),
            text("NEVER"),
        ]);
    }
}

/// The SQL standard's name of a type and PostgreSQL's own.
fn type_names(column_type: ColumnType) -> (&'static str, &'static str) {
    match column_type {
        ColumnType::Boolean => ("boolean", "bool"),
        ColumnType::Int16 => ("smallint", "int2"),
        ColumnType::Int32 => ("integer", "int4"),
        ColumnType::Int64 => ("bigint", "int8"),
        ColumnType::Float32 => ("real", "float4"),
        ColumnType::Float64 => ("double precision", "float8"),
        ColumnType::Decimal { .. } => ("numeric", "numeric"),
        ColumnType::Text => ("text", "text"),
        ColumnType::Binary => ("bytea", "bytea"),
        ColumnType::Date => ("date", "date"),
        ColumnType::Timestamp { utc: false, .. } => ("timestamp without time zone", "timestamp"),
        ColumnType::Timestamp { utc: true, .. } => ("timestamp with time zone", "timestamptz"),
    }
}

/// Precision, radix and scale of numbers.
fn numeric(column_type: ColumnType) -> (Option<i32>, Option<i32>, Option<i32>) {
    match column_type {
        ColumnType::Int16 => (Some(16), Some(2), Some(0)),
        ColumnType::Int32 => (Some(32), Some(2), Some(0)),
        ColumnType::Int64 => (Some(64), Some(2), Some(0)),
        ColumnType::Float32 => (Some(24), Some(2), None),
        ColumnType::Float64 => (Some(53), Some(2), None),
        ColumnType::Decimal { precision, scale } => {
            (Some(precision.into()), Some(10), Some(scale.into()))
        }
        _ => (None, None, None),
    }
}

fn to_batch(view: View, rows: Vec<Vec<Cell>>) -> Result<RecordBatch, QueryError> {
    let schema = arrow_schema(view);
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(i, field)| -> ArrayRef {
            if field.data_type() == &DataType::Int32 {
                Arc::new(
                    rows.iter()
                        .map(|row| match row.get(i) {
                            Some(Cell::Number(number)) => *number,
                            _ => None,
                        })
                        .collect::<Int32Array>(),
                )
            } else {
                Arc::new(
                    rows.iter()
                        .map(|row| match row.get(i) {
                            Some(Cell::Text(value)) => value.as_deref(),
                            _ => None,
                        })
                        .collect::<StringViewArray>(),
                )
            }
        })
        .collect();
    Ok(RecordBatch::try_new(schema, columns)?)
}
