//! Last-value queries: where only the newest row of each series can decide an answer, only the
//! last rows of each series of each source are read.
//!
//! Sound because the key ends with the time: the newest time T of a series lies in the last row
//! of every source that has a version of key T, so that all versions of that row are read and
//! merge to the right one; rows before T may be missing or half merged, but never win. Deletes
//! break this (the last row of a source may be gone), so that the scan reads everything where
//! there are any.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Aggregate, Expr, Filter, LogicalPlan, Operator, TableScan};
use datafusion::optimizer::optimizer::ApplyOrder;
use datafusion::optimizer::{OptimizerConfig, OptimizerRule};
use shoal_types::{TableMode, TableSchema};

use super::ShoalTable;

/// Marks scans of which only the last rows of each series are needed.
#[derive(Debug)]
pub(crate) struct LastRows;

impl OptimizerRule for LastRows {
    fn name(&self) -> &str {
        "last_rows"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(
        &self,
        plan: LogicalPlan,
        _config: &dyn OptimizerConfig,
    ) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Aggregate(aggregate) = &plan else {
            return Ok(Transformed::no(plan));
        };
        let Some(input) = narrowed(aggregate)? else {
            return Ok(Transformed::no(plan));
        };
        let new = Aggregate::try_new_with_schema(
            Arc::new(input),
            aggregate.group_expr.clone(),
            aggregate.aggr_expr.clone(),
            Arc::clone(&aggregate.schema),
        )?;
        Ok(Transformed::yes(LogicalPlan::Aggregate(new)))
    }
}

/// The aggregate's input with its scan marked; `None`: other rows matter, or it is marked.
fn narrowed(aggregate: &Aggregate) -> Result<Option<LogicalPlan>> {
    let (scan, filter) = match aggregate.input.as_ref() {
        LogicalPlan::TableScan(scan) => (scan, None),
        LogicalPlan::Filter(filter) => match filter.input.as_ref() {
            LogicalPlan::TableScan(scan) => (scan, Some(filter)),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    let Ok(provider) = source_as_provider(&scan.source) else {
        return Ok(None);
    };
    let Some(table) = provider.downcast_ref::<ShoalTable>() else {
        return Ok(None);
    };
    let schema = &table.schema;
    let fits = !table.last_rows
        && scan.fetch.is_none()
        && schema.key_ends_with_time()
        && groups_series(schema, &aggregate.group_expr)
        && !aggregate.aggr_expr.is_empty()
        && aggregate
            .aggr_expr
            .iter()
            .all(|expr| decided_by_last(schema, &aggregate.group_expr, expr))
        && scan.filters.iter().all(|f| keeps_last(schema, f))
        && filter.is_none_or(|f| keeps_last(schema, &f.predicate));
    if !fits {
        return Ok(None);
    }
    let marked = LogicalPlan::TableScan(TableScan {
        source: provider_as_source(Arc::new(table.last())),
        ..scan.clone()
    });
    Ok(Some(match filter {
        None => marked,
        Some(filter) => {
            LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(marked))?)
        }
    }))
}

fn is_time(schema: &TableSchema, expr: &Expr) -> bool {
    let time = schema.time_column.and_then(|id| schema.column_by_id(id));
    matches!((expr, time), (Expr::Column(column), Some(time)) if column.name == time.name)
}

fn is_series(schema: &TableSchema, name: &str) -> bool {
    schema
        .column(name)
        .is_some_and(|column| schema.series_columns().contains(&column.id))
}

/// Whether every group is made of whole series.
fn groups_series(schema: &TableSchema, groups: &[Expr]) -> bool {
    groups
        .iter()
        .all(|expr| matches!(expr, Expr::Column(column) if is_series(schema, &column.name)))
}

/// Whether the newest rows of the group's series decide the value.
fn decided_by_last(schema: &TableSchema, groups: &[Expr], expr: &Expr) -> bool {
    let expr = match expr {
        Expr::Alias(alias) => alias.expr.as_ref(),
        other => other,
    };
    let Expr::AggregateFunction(AggregateFunction { func, params }) = expr else {
        return false;
    };
    if params.distinct || params.filter.is_some() || params.null_treatment.is_some() {
        return false;
    }
    if func.name() == "max" {
        return matches!(&params.args[..], [arg] if is_time(schema, arg));
    }
    let newest_is_ascending = match func.name() {
        "first_value" => false,
        "last_value" => true,
        _ => return false,
    };
    let mut order = params
        .order_by
        .iter()
        .filter(|sort| !groups.contains(&sort.expr));
    let by_time = order
        .next()
        .is_some_and(|sort| is_time(schema, &sort.expr) && sort.asc == newest_is_ascending);
    // An append table may have several rows of one series and time, of which only one is read: it
    // must not matter which.
    by_time && (schema.mode == TableMode::Upsert || order.next().is_none())
}

/// Whether a series' last row passes the filter if any of its rows does.
fn keeps_last(schema: &TableSchema, filter: &Expr) -> bool {
    if let Expr::BinaryExpr(binary) = filter {
        match binary.op {
            Operator::And => {
                return keeps_last(schema, &binary.left) && keeps_last(schema, &binary.right);
            }
            Operator::Gt | Operator::GtEq
                if is_time(schema, &binary.left)
                    && matches!(binary.right.as_ref(), Expr::Literal(..)) =>
            {
                return true;
            }
            _ => {}
        }
    }
    let columns = filter.column_refs();
    !filter.is_volatile()
        && !columns.is_empty()
        && columns.iter().all(|column| is_series(schema, &column.name))
}
