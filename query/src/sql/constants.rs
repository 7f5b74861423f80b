//! Constant expressions: their values, and which of those that a statement gives to columns is
//! wrong.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{ColumnarValue, Expr as PlanExpr, ExprSchemable, lit};
use datafusion::sql::sqlparser::ast::{
    AssignmentTarget, Expr, Insert, ObjectName, SetExpr, Spanned, TableFactor, TableObject, Update,
    Values,
};
use shoal_types::{Column, Retry, TableSchema};

use super::Run;
use super::insert::not_null;
use super::names::{fold, single};
use crate::error::{Kind, Result};
use crate::{QueryError, decimals, literals};

/// The value of an expression without columns or queries, as type `to` where one is given. `params`
/// stand for `$1`, `$2`, ….
///
/// # Errors
/// It is not constant, or has no value of that type.
pub(super) fn constant(
    state: &SessionState,
    expr: &Expr,
    to: Option<&DataType>,
    params: &[ScalarValue],
) -> Result<ScalarValue> {
    let none = DFSchema::empty();
    let parsed = state.create_logical_expr(&expr.to_string(), &none)?;
    let bound = parsed.transform_up(|expr| {
        let value = match &expr {
            PlanExpr::Placeholder(placeholder) => placeholder
                .id
                .strip_prefix('$')
                .and_then(|number| number.parse::<usize>().ok())
                .and_then(|number| params.get(number.checked_sub(1)?)),
            _ => None,
        };
        Ok(match value {
            Some(value) => Transformed::yes(lit(value.clone())),
            None => Transformed::no(expr),
        })
    })?;
    let cast = match to {
        Some(to) => bound.data.cast_to(to, &none)?,
        None => bound.data,
    };
    let exact = decimals::in_expression(cast, &none)?.data;
    let zone = state.config_options().execution.time_zone.as_deref();
    let read = literals::read_in(exact, &none, zone)?.data;
    let one_row = RecordBatch::try_new_with_options(
        Arc::new(Schema::empty()),
        Vec::new(),
        &RecordBatchOptions::new().with_row_count(Some(1)),
    )?;
    Ok(
        match state
            .create_physical_expr(read, &none)?
            .evaluate(&one_row)?
        {
            ColumnarValue::Scalar(value) => value,
            ColumnarValue::Array(values) => ScalarValue::try_from_array(&values, 0)?,
        },
    )
}

impl Run<'_> {
    /// Says which value of `INSERT … VALUES` is at fault, if one is. Looked for only now that the
    /// statement has failed: whole lists are planned and cast at once.
    pub(super) fn blame_values(&self, insert: &Insert, error: QueryError) -> QueryError {
        let rows = match insert.source.as_ref().map(|source| source.body.as_ref()) {
            Some(SetExpr::Values(Values { rows, .. })) if error.retry == Retry::Never => rows,
            _ => return error,
        };
        let TableObject::TableName(table) = &insert.table else {
            return error;
        };
        let Some(schema) = self.schema_of(table) else {
            return error;
        };
        let columns: Option<Vec<&Column>> = match insert.columns.as_slice() {
            [] => Some(schema.columns.iter().collect()),
            named => named
                .iter()
                .map(|name| schema.column(&single(name).ok()?))
                .collect(),
        };
        let Some(columns) = columns else { return error };
        let mut cells = rows.iter().enumerate().flat_map(|(i, row)| {
            let cells = row.content.iter().zip(&columns);
            cells.map(move |(cell, column)| (cell, *column, Some(i + 1)))
        });
        cells
            .find_map(|(cell, column, row)| self.fault(cell, column, row))
            .unwrap_or(error)
    }

    /// Says which constant of `UPDATE … SET` is at fault, if one is.
    pub(super) fn blame_assignments(&self, update: &Update, error: QueryError) -> QueryError {
        let TableFactor::Table { name, .. } = &update.table.relation else {
            return error;
        };
        let schema = match self.schema_of(name) {
            Some(schema) if error.retry == Retry::Never => schema,
            _ => return error,
        };
        let wrong = update.assignments.iter().find_map(|assignment| {
            let AssignmentTarget::ColumnName(name) = &assignment.target else {
                return None;
            };
            let column = schema.column(&fold(name.0.last()?.as_ident()?))?;
            self.fault(&assignment.value, column, None)
        });
        wrong.unwrap_or(error)
    }

    fn schema_of(&self, table: &ObjectName) -> Option<Arc<TableSchema>> {
        let (schema, name) = self.qualified(table).ok()?;
        let db = self.session.engine().database();
        db.table_schema(&db.table(&schema, &name)?).ok()
    }

    /// Why a column cannot take a constant; `None`: it can, or the expression is no constant.
    fn fault(&self, cell: &Expr, column: &Column, row: Option<usize>) -> Option<QueryError> {
        let place = cell.span().start;
        let position = (place.line > 0).then_some((place.line, place.column));
        let to = column.column_type.arrow();
        let error = match constant(&self.state, cell, Some(&to), self.params) {
            Ok(value) if value.is_null() && !column.nullable => {
                let mut error = not_null(&column.name);
                if let Some(row) = row {
                    error.message = format!("{} (row {row})", error.message);
                }
                return Some(error.at(position));
            }
            Ok(_) => return None,
            Err(error) => error,
        };
        let of_value = [
            Kind::INVALID_TEXT,
            Kind::OUT_OF_RANGE,
            Kind::TYPE_MISMATCH,
            Kind::DATA_EXCEPTION,
            Kind::DIVISION_BY_ZERO,
        ];
        if !of_value.iter().any(|kind| error.is(*kind)) {
            return None;
        }
        let row = row.map_or(String::new(), |row| format!(", row {row}"));
        let message = format!("column {:?}{row}: {}", column.name, error.message);
        Some(
            QueryError {
                message,
                position: None,
                ..error
            }
            .at(position),
        )
    }
}
