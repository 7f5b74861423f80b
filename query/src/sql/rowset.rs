//! Small results made here: what SHOW and DESCRIBE answer.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringViewArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use super::Outcome;
use crate::error::Result;

/// A schema of nullable text columns.
pub(crate) fn text_schema(names: &[&str]) -> SchemaRef {
    Arc::new(Schema::new(
        names
            .iter()
            .map(|name| Field::new(*name, DataType::Utf8View, true))
            .collect::<Vec<_>>(),
    ))
}

/// Rows of text columns.
pub(crate) fn text_rows(names: &[&str], rows: Vec<Vec<Option<String>>>) -> Result<Outcome> {
    let columns: Vec<ArrayRef> = (0..names.len())
        .map(|i| {
            let values: StringViewArray = rows
                .iter()
                .map(|row| row.get(i).and_then(Option::as_deref))
                .collect();
            Arc::new(values) as ArrayRef
        })
        .collect();
    let batch = RecordBatch::try_new(text_schema(names), columns)?;
    Ok(Outcome::Rows(one_batch(batch)))
}

/// A stream of one batch.
pub(crate) fn one_batch(batch: RecordBatch) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(
        batch.schema(),
        futures::stream::iter([Ok(batch)]),
    ))
}
