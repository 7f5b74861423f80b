//! `INSERT`: DataFusion plans the rows, they go to the engine in bounded blocks.

use std::sync::Arc;

use arrow_array::{ArrayRef, Decimal128Array, RecordBatch};
use arrow_schema::{DataType, SchemaRef};
use arrow_select::concat::concat_batches;
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{DmlStatement, Expr, LogicalPlan, Projection};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{Insert, Statement as SqlStatement};
use futures::StreamExt;
use shoal_engine::{Commit, WriteError};
use shoal_rows::{BatchError, RowBlock, block_from_batch};
use shoal_types::{ColumnId, Retry, TableMode, TableSchema};

use super::names::single;
use super::{Outcome, Run};
use crate::QueryError;
use crate::error::{Kind, Result};
use crate::number::Number;
use crate::table::ShoalTable;
use crate::ticks::floored;

/// Rows of a block, at most.
const BLOCK_ROWS_MAX: usize = 65_536;
/// Bytes of a block in memory, at most (single rows may be larger).
const BLOCK_BYTES_MAX: usize = 16 << 20;

impl Run<'_> {
    /// `INSERT INTO … VALUES` and `INSERT INTO … SELECT`.
    pub(super) async fn insert(&self, insert: &Insert) -> Result<Outcome> {
        let outcome = self.insert_rows(insert).await;
        outcome.map_err(|error| self.blame_values(insert, error))
    }

    async fn insert_rows(&self, insert: &Insert) -> Result<Outcome> {
        if insert.returning.is_some() {
            return Err(QueryError::unsupported("RETURNING is not supported"));
        }
        if insert.on.is_some() {
            return Err(QueryError::unsupported("ON CONFLICT is not supported").with_hint(
                "in a table of mode 'upsert' a row replaces the older one of its key, column by column",
            ));
        }
        let body = DfStatement::Statement(Box::new(SqlStatement::Insert(insert.clone())));
        let LogicalPlan::Dml(dml) = self.plan(body).await? else {
            return Err(QueryError::new(Kind::INTERNAL, "INSERT without a plan"));
        };
        let schema = Arc::clone(&target(&dml)?.schema);
        let named = insert
            .columns
            .iter()
            .map(single)
            .collect::<Result<Vec<_>>>()?;
        // Columns that the statement does not name keep what an older row of the key has.
        let mut written = Vec::new();
        let mut places = Vec::new();
        for (i, column) in schema.columns.iter().enumerate() {
            if named.is_empty() || named.contains(&column.name) || column.default.is_some() {
                written.push(column.id);
                places.push(i);
            } else if !column.nullable {
                return Err(not_null(&column.name));
            }
        }
        let stream = self.stream(uncast(&dml.input)?).await?;
        let input = stream.schema();
        let projected = stream.map(move |batch| Ok(batch?.project(&places)?));
        let projected = Box::pin(
            datafusion::physical_plan::stream::RecordBatchStreamAdapter::new(
                Arc::new(input.project(&places_of(&schema, &written))?),
                projected,
            ),
        );
        let (rows, commit) = Writer::new(self, schema, written)
            .write_all(projected)
            .await?;
        Ok(Outcome::Affected {
            tag: format!("INSERT 0 {rows}"),
            rows,
            commit,
        })
    }
}

/// The rows of an INSERT before the casts to the table's types: the writer does these, and names the
/// column where one fails.
fn uncast(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let LogicalPlan::Projection(projection) = plan else {
        return Ok(plan.clone());
    };
    let exprs = projection.expr.iter().map(|expr| {
        let (relation, name) = expr.qualified_name();
        match expr.clone().unalias() {
            // A literal is read by rules of its own.
            Expr::Cast(cast) if !matches!(*cast.expr, Expr::Literal(..)) => {
                cast.expr.alias_qualified(relation, name)
            }
            _ => expr.clone(),
        }
    });
    let projection = Projection::try_new(exprs.collect(), Arc::clone(&projection.input))?;
    Ok(LogicalPlan::Projection(projection))
}

fn places_of(schema: &TableSchema, ids: &[ColumnId]) -> Vec<usize> {
    ids.iter()
        .filter_map(|id| schema.position_of(*id))
        .collect()
}

/// The table that a plan writes to.
pub(super) fn target(dml: &DmlStatement) -> Result<Arc<TargetTable>> {
    let provider = datafusion::datasource::source_as_provider(&dml.target)?;
    match provider.downcast_ref::<ShoalTable>() {
        Some(table) => Ok(Arc::new(TargetTable {
            handle: table.handle.clone(),
            schema: Arc::clone(&table.schema),
        })),
        None => Err(QueryError::new(
            Kind::NOT_ALLOWED,
            format!("{} cannot be written to", dml.table_name),
        )),
    }
}

/// A table to write to.
pub(super) struct TargetTable {
    pub handle: shoal_engine::TableHandle,
    pub schema: Arc<TableSchema>,
}

/// Writes batches of given columns to a table.
pub(super) struct Writer<'a> {
    run: &'a Run<'a>,
    schema: Arc<TableSchema>,
    columns: Vec<ColumnId>,
    /// What the batches are cast to.
    arrow: SchemaRef,
}

impl<'a> Writer<'a> {
    /// A writer of batches whose column `i` is `columns[i]`.
    pub(super) fn new(run: &'a Run<'a>, schema: Arc<TableSchema>, columns: Vec<ColumnId>) -> Self {
        let all = schema.arrow();
        let fields: Vec<_> = columns
            .iter()
            .filter_map(|id| schema.position_of(*id))
            .map(|i| all.field(i).clone().with_nullable(true))
            .collect();
        Self {
            run,
            columns,
            arrow: Arc::new(arrow_schema::Schema::new(fields)),
            schema,
        }
    }

    /// Writes all rows of a stream in blocks; each is durable before the next is built.
    ///
    /// # Errors
    /// The first failure; blocks before it stay written, and the error says how many rows.
    pub(super) async fn write_all(
        &self,
        mut stream: SendableRecordBatchStream,
    ) -> Result<(u64, Option<Commit>)> {
        let (mut rows, mut commit) = (0_u64, None);
        let mut held: Vec<RecordBatch> = Vec::new();
        let (mut held_rows, mut held_bytes) = (0, 0);
        loop {
            let next = stream.next().await.transpose();
            let next = next.map_err(|error| after(rows, error.into()))?;
            let end = next.is_none();
            if let Some(batch) = next {
                held_rows += batch.num_rows();
                held_bytes += batch.get_array_memory_size();
                held.push(batch);
            }
            // A second block with the same id would count as the first one once more.
            let once = self.run.session.write_id().is_some();
            if once && (held_rows > BLOCK_ROWS_MAX || held_bytes > BLOCK_BYTES_MAX) {
                return Err(WriteError::TooLargeForAtomic {
                    what: format!(
                        "with a write id a statement takes {BLOCK_ROWS_MAX} rows and {} MiB at most",
                        BLOCK_BYTES_MAX >> 20
                    ),
                }
                .into());
            }
            if held_rows > 0
                && (end || !once && (held_rows >= BLOCK_ROWS_MAX || held_bytes >= BLOCK_BYTES_MAX))
            {
                let written = self.write(&held).await.map_err(|e| after(rows, e))?;
                rows += held_rows as u64;
                commit = Some(written);
                held.clear();
                (held_rows, held_bytes) = (0, 0);
            }
            if end {
                return Ok((rows, commit));
            }
        }
    }

    async fn write(&self, batches: &[RecordBatch]) -> Result<Commit> {
        let block = self.block(batches)?;
        let options = self.run.write_options();
        let db = self.run.session.engine().database();
        Ok(db.write(vec![block], options).await?)
    }

    fn block(&self, batches: &[RecordBatch]) -> Result<RowBlock> {
        let cast = batches
            .iter()
            .map(|batch| cast_to(batch, &self.arrow))
            .collect::<Result<Vec<_>>>()?;
        let batch = concat_batches(&self.arrow, &cast)?;
        block_of(&self.schema, &batch, &self.columns, false)
    }
}

/// Casts a batch's columns, by place, to the types of `schema`.
pub(super) fn cast_to(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                return Ok(Arc::clone(column));
            }
            if let DataType::Decimal128(precision, scale) = field.data_type()
                && matches!(
                    column.data_type(),
                    DataType::Float64 | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
                )
            {
                return decimals_of(column, *precision, *scale, field.name());
            }
            let coarse = floored(column, field.data_type())?;
            let column = coarse.as_ref().unwrap_or(column);
            let options = arrow_cast::CastOptions {
                safe: false,
                ..Default::default()
            };
            arrow_cast::cast_with_options(column, field.data_type(), &options).map_err(|error| {
                let error = QueryError::from(error);
                let message = format!("column {:?}: {}", field.name(), error.message);
                QueryError { message, ..error }
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(
        Arc::clone(schema),
        columns,
        &options,
    )?)
}

/// Doubles and text as `DECIMAL`, read as literals are: Arrow multiplies doubles by a power of ten,
/// which loses digits, and takes no exponent in text.
fn decimals_of(column: &ArrayRef, precision: u8, scale: i8, name: &str) -> Result<ArrayRef> {
    let mut values = Vec::with_capacity(column.len());
    for row in 0..column.len() {
        let value = ScalarValue::try_from_array(column, row)?;
        if value.is_null() {
            values.push(None);
            continue;
        }
        let number = match (&value, value.try_as_str()) {
            (ScalarValue::Float64(Some(double)), _) => Number::of_double(*double),
            (_, Some(Some(text))) => Number::parse(text.trim()),
            _ => None,
        };
        let Some(number) = number else {
            return Err(QueryError::new(
                Kind::INVALID_TEXT,
                format!("column {name:?}: invalid input syntax for type numeric: \"{value}\""),
            ));
        };
        match number.to_decimal(precision, scale) {
            Some(ScalarValue::Decimal128(value, ..)) => values.push(value),
            _ => {
                return Err(QueryError::new(
                    Kind::OUT_OF_RANGE,
                    format!(
                        "column {name:?}: numeric field overflow: {number} does not fit \
                         DECIMAL({precision}, {scale})"
                    ),
                ));
            }
        }
    }
    let values = Decimal128Array::from(values).with_precision_and_scale(precision, scale)?;
    Ok(Arc::new(values))
}

/// The block of a batch; what is wrong with a row, in SQL's words.
pub(super) fn block_of(
    schema: &TableSchema,
    batch: &RecordBatch,
    columns: &[ColumnId],
    deletes: bool,
) -> Result<RowBlock> {
    block_from_batch(schema, batch, columns, deletes).map_err(|error| match error {
        BatchError::Null { column, .. } | BatchError::KeyColumnMissing(column) => not_null(&column),
        BatchError::WrongType { .. } => QueryError::new(Kind::TYPE_MISMATCH, error.to_string()),
        BatchError::Columns(what) => QueryError::new(Kind::INTERNAL, what),
    })
}

pub(super) fn not_null(column: &str) -> QueryError {
    QueryError::new(
        Kind::NOT_NULL,
        format!("null value in column {column:?}, which is NOT NULL"),
    )
}

/// A failure after some rows were written: a retry would write them again.
fn after(rows: u64, mut error: QueryError) -> QueryError {
    if rows > 0 {
        if error.is_schema_change() {
            // Planned anew, the statement would begin again.
            error = QueryError::new(Kind::CONFLICT, error.message);
        }
        error.message = format!("{}; {rows} rows before it are written", error.message);
        error.retry = Retry::Unknown;
    }
    error
}

/// Whether rows of a table replace older ones of their key.
pub(super) fn is_upsert(schema: &TableSchema) -> bool {
    schema.mode == TableMode::Upsert
}
