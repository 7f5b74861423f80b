//! Rows of small tables made here: what their columns are, and the batch of their cells.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringViewArray, TimestampMillisecondArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use futures::StreamExt;
use shoal_engine::{Database, TableHandle};

use super::virtual_table::Wanted;
use crate::QueryError;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Text,
    /// `INTEGER`, as the SQL standard has it in `information_schema`.
    Integer,
    /// `BIGINT`.
    Number,
    /// Milliseconds since 1970.
    Time,
}

/// Name of a column and what it holds.
pub(super) type CellColumn = (&'static str, Holds);

/// One value; NULL where there is none.
#[derive(Debug)]
pub(super) enum Cell {
    Text(Option<String>),
    Number(Option<i64>),
}

/// A text.
pub(super) fn text(value: impl ToString) -> Cell {
    Cell::Text(Some(value.to_string()))
}

/// A number; NULL if it is out of range.
pub(super) fn number(value: impl TryInto<i64>) -> Cell {
    Cell::Number(value.try_into().ok())
}

/// The schema of columns, all nullable.
pub(super) fn schema_of(columns: &[CellColumn]) -> SchemaRef {
    let fields = columns.iter().map(|(name, holds)| {
        let data_type = match holds {
            Holds::Text => DataType::Utf8View,
            Holds::Integer => DataType::Int32,
            Holds::Number => DataType::Int64,
            Holds::Time => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        };
        Field::new(*name, data_type, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The batch of rows of cells.
///
/// # Errors
/// None that rows of these columns can cause.
pub(super) fn batch_of(
    columns: &[CellColumn],
    rows: &[Vec<Cell>],
) -> Result<RecordBatch, QueryError> {
    let numbers = |i: usize| {
        rows.iter().map(move |row| match row.get(i) {
            Some(Cell::Number(number)) => *number,
            _ => None,
        })
    };
    let array = |(i, (_, holds)): (usize, &CellColumn)| -> ArrayRef {
        match holds {
            Holds::Text => {
                let texts = rows.iter().map(|row| match row.get(i) {
                    Some(Cell::Text(value)) => value.as_deref(),
                    _ => None,
                });
                Arc::new(texts.collect::<StringViewArray>())
            }
            Holds::Integer => {
                let small = numbers(i).map(|number| i32::try_from(number?).ok());
                Arc::new(small.collect::<Int32Array>())
            }
            Holds::Number => Arc::new(numbers(i).collect::<Int64Array>()),
            Holds::Time => {
                let times = numbers(i).collect::<TimestampMillisecondArray>();
                Arc::new(times.with_timezone("UTC"))
            }
        }
    };
    let arrays = columns.iter().enumerate().map(array).collect();
    Ok(RecordBatch::try_new(schema_of(columns), arrays)?)
}

/// Tables whose columns are fetched from other nodes at a time.
const LEARNED_AT_ONCE: usize = 16;

/// Sees to it that this process knows the columns of [`tables`]; those of a shard that does not
/// answer stay unknown.
pub(super) async fn learn(db: &Database, wanted: &Wanted) {
    if !db.is_clustered() {
        return;
    }
    futures::stream::iter(tables(db, wanted))
        .for_each_concurrent(LEARNED_AT_ONCE, |table| async move {
            if let Err(error) = db.find_table(&table.schema_name, &table.name).await {
                tracing::debug!(table = table.name, %error, "columns not known");
            }
        })
        .await;
}

/// The tables that a statement may want, by its `table_schema` and `table_name`.
pub(super) fn tables(db: &Database, wanted: &Wanted) -> Vec<TableHandle> {
    let schemas = db
        .schema_names()
        .into_iter()
        .filter(|schema| wanted.may_be("table_schema", schema));
    match wanted.value("table_name") {
        Some(name) => schemas
            .filter_map(|schema| db.table(&schema, name))
            .collect(),
        None => schemas.flat_map(|schema| db.tables(&schema)).collect(),
    }
}
