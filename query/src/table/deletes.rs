//! What of a file's rows does not show: predicate deletes of append tables, applied to files that
//! are older, and rows that the partition does not own.

use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{PhysicalExpr, conjunction};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use shoal_engine::PredicateDelete;
use shoal_types::TableSchema;

use super::owned::OwnedExpr;
use crate::error::Kind;
use crate::{QueryError, predicate};

/// Rows of `plan` (all columns of the table) that no delete matches and that are `owned`, with
/// `projection`'s columns.
pub(super) fn without(
    plan: Arc<dyn ExecutionPlan>,
    schema: &TableSchema,
    deletes: &[&PredicateDelete],
    owned: Option<OwnedExpr>,
    projection: Option<&Vec<usize>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let mut kept = deletes
        .iter()
        .map(|delete| {
            predicate::kept(schema, &delete.predicate).map_err(|what| {
                DataFusionError::External(Box::new(QueryError::new(Kind::INTERNAL, what)))
            })
        })
        .collect::<Result<Vec<_>>>()?;
    kept.extend(owned.map(|owned| Arc::new(owned) as Arc<dyn PhysicalExpr>));
    let plan: Arc<dyn ExecutionPlan> = Arc::new(FilterExec::try_new(conjunction(kept), plan)?);
    let Some(projection) = projection else {
        return Ok(plan);
    };
    let schema = plan.schema();
    let columns: Vec<(Arc<dyn PhysicalExpr>, String)> = projection
        .iter()
        .map(|&i| {
            let name = schema.field(i).name();
            (
                Arc::new(Column::new(name, i)) as Arc<dyn PhysicalExpr>,
                name.clone(),
            )
        })
        .collect();
    Ok(Arc::new(ProjectionExec::try_new(columns, plan)?))
}
