//! Going over the expressions of a plan.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{Expr, LogicalPlan};

/// What the expressions of a node are over; `None`: it has no inputs.
pub(crate) fn input_schema(node: &LogicalPlan) -> Option<DFSchemaRef> {
    match node.inputs()[..] {
        [] => None,
        [input] => Some(Arc::clone(input.schema())),
        ref inputs => Some(Arc::new(merge_schema(inputs))),
    }
}

/// Changes the expressions of one node; its columns keep their names.
pub(crate) fn map_named(
    node: LogicalPlan,
    change: impl Fn(Expr) -> Result<Transformed<Expr>>,
) -> Result<Transformed<LogicalPlan>> {
    let names = NamePreserver::new(&node);
    node.map_expressions(|expr| {
        let name = names.save(&expr);
        Ok(change(expr)?.update_data(|expr| name.restore(expr)))
    })
}

/// Changes the expressions of all nodes, of queries in expressions too. `change` is told what they
/// are over; of a node without inputs, its own columns.
pub(crate) fn map_all(
    plan: LogicalPlan,
    change: impl Fn(Expr, &DFSchema) -> Result<Transformed<Expr>>,
) -> Result<LogicalPlan> {
    let changed = plan.transform_up_with_subqueries(|node| {
        let schema = input_schema(&node).unwrap_or_else(|| Arc::clone(node.schema()));
        map_named(node, |expr| change(expr, &schema))
    })?;
    Ok(changed.data)
}
