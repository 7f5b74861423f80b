//! `information_schema`: schemata, tables, columns, keys.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use shoal_engine::{Database, TableHandle};
use shoal_types::{ColumnDefault, ColumnType, TableSchema};

use super::cells::{Cell, CellColumn, Holds, batch_of, learn, number, schema_of, tables, text};
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

/// Columns of a view.
fn columns_of(view: View) -> &'static [CellColumn] {
    use Holds::{Integer, Text};
    match view {
        View::Schemata => &[
            ("catalog_name", Text),
            ("schema_name", Text),
            ("schema_owner", Text),
        ],
        View::Tables => &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("table_type", Text),
        ],
        View::Columns => &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("column_name", Text),
            ("ordinal_position", Integer),
            ("column_default", Text),
            ("is_nullable", Text),
            ("data_type", Text),
            ("character_maximum_length", Integer),
            ("character_octet_length", Integer),
            ("numeric_precision", Integer),
            ("numeric_precision_radix", Integer),
            ("numeric_scale", Integer),
            ("datetime_precision", Integer),
            ("interval_type", Text),
            ("udt_name", Text),
            ("is_identity", Text),
            ("is_generated", Text),
        ],
        View::Constraints => &[
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("constraint_type", Text),
        ],
        View::Keys => &[
            ("constraint_catalog", Text),
            ("constraint_schema", Text),
            ("constraint_name", Text),
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("column_name", Text),
            ("ordinal_position", Integer),
        ],
        View::Views => &[
            ("table_catalog", Text),
            ("table_schema", Text),
            ("table_name", Text),
            ("view_definition", Text),
        ],
    }
}

#[async_trait]
impl VirtualRows for InformationTable {
    fn schema(&self) -> SchemaRef {
        schema_of(columns_of(self.view))
    }

    async fn rows(&self, wanted: &Wanted) -> Result<RecordBatch, QueryError> {
        let mut rows: Vec<Vec<Cell>> = Vec::new();
        if matches!(self.view, View::Columns | View::Constraints | View::Keys) {
            learn(&self.db, wanted).await;
        }
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
                for table in tables(&self.db, wanted) {
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
                        let place = number(i + 1);
                        rows.push(constraint(table, text(&column.name), Some(place)));
                    }
                }
            })?,
            View::Views => {}
        }
        batch_of(columns_of(self.view), &rows)
    }
}

impl InformationTable {
    fn each_schema(
        &self,
        wanted: &Wanted,
        mut each: impl FnMut(&TableHandle, &TableSchema),
    ) -> Result<(), QueryError> {
        for table in tables(&self.db, wanted) {
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
            number(i + 1),
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
            Cell::Number(precision.map(i64::from)),
            Cell::Number(radix.map(i64::from)),
            Cell::Number(scale.map(i64::from)),
            Cell::Number(datetime.map(i64::from)),
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
