//! The rows of a running statement, handed out a few at a time.

use std::pin::Pin;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::{Stream, StreamExt};
use pgwire::api::results::FieldInfo;
use pgwire::error::PgWireResult;
use pgwire::messages::data::DataRow;
use shoal_query::{Names, QueryError};

use super::{errors, rows};

/// Batches of a statement; dropping it stops the statement.
pub type Batches = Pin<Box<dyn Stream<Item = Result<RecordBatch, QueryError>> + Send>>;

/// The most rows encoded before they are handed to the connection.
pub const ROWS_AT_ONCE: usize = 512;

/// A statement's rows, read as far as the client asked.
pub struct Cursor {
    schema: SchemaRef,
    names: Names,
    batches: Batches,
    current: Option<(RecordBatch, usize)>,
    done: bool,
}

impl Cursor {
    /// At the first row.
    pub fn new(schema: SchemaRef, names: Names, batches: Batches) -> Self {
        Self {
            schema,
            names,
            batches,
            current: None,
            done: false,
        }
    }

    /// Columns.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What the columns are called.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Whether the last row was handed out.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The next rows, at most `most` and at most [`ROWS_AT_ONCE`]; none: there are no more.
    ///
    /// # Errors
    /// The statement failed, or a value cannot be sent; no rows follow.
    pub async fn next(
        &mut self,
        fields: &Arc<Vec<FieldInfo>>,
        most: usize,
    ) -> PgWireResult<Vec<DataRow>> {
        let mut out = Vec::new();
        while !self.done {
            if let Some((batch, from)) = &mut self.current {
                let to = batch.num_rows().min(*from + most.min(ROWS_AT_ONCE));
                rows::encode(batch, fields, *from, to, &mut out)?;
                *from = to;
                if to == batch.num_rows() {
                    self.current = None;
                }
                if !out.is_empty() {
                    break;
                }
            }
            match self.batches.next().await {
                Some(Ok(batch)) => self.current = Some((batch, 0)),
                Some(Err(failed)) => {
                    self.done = true;
                    return Err(errors::from_query(failed, "", 0));
                }
                None => self.done = true,
            }
        }
        Ok(out)
    }
}
