//! What a condition guards is not computed for the rows that it leaves out.
//!
//! `i <> 0 AND 10 / i > 7` divides by no zero, as users of other databases expect. DataFusion
//! evaluates both sides of `AND` and `OR` for all rows of a batch (apache/datafusion#8927), and takes
//! a `CASE` of booleans apart into the same. So what can fail goes into a `CASE` of numbers, whose
//! branches are evaluated for their own rows only.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::expr::Case;
use datafusion::logical_expr::{
    BinaryExpr, Cast, Expr, ExprSchemable, LogicalPlan, Operator, binary_expr, lit,
};
use datafusion::optimizer::AnalyzerRule;

use crate::arithmetic::is_checked;
use crate::expressions::map_all;

/// Conditions before an operand that are looked at, the nearest ones.
const GUARDS_MAX: usize = 32;

/// The rule; it runs after the one that checks arithmetic.
#[derive(Debug)]
pub(crate) struct Guards;

impl AnalyzerRule for Guards {
    fn name(&self) -> &'static str {
        "guards"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        map_all(plan, |expr, schema| {
            expr.transform_up(|expr| match expr {
                Expr::BinaryExpr(binary) if is_logical(binary.op) => in_chain(binary, schema),
                Expr::Case(case) => in_case(case, schema),
                other => Ok(Transformed::no(other)),
            })
        })
    }
}

fn is_logical(op: Operator) -> bool {
    matches!(op, Operator::And | Operator::Or)
}

/// Puts the right operand under those before it that speak of its columns and cannot fail
/// themselves. Where one is NULL, it guards nothing.
fn in_chain(chain: BinaryExpr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let BinaryExpr { left, op, right } = chain;
    let mut guards: Option<Expr> = None;
    if can_fail(&right, schema)? && !has_subquery(&right)? {
        let columns = right.column_refs();
        let mut next = Some(left.as_ref());
        for _ in 0..GUARDS_MAX {
            let guard = match next {
                Some(Expr::BinaryExpr(before)) if before.op == op => {
                    next = Some(&before.left);
                    before.right.as_ref()
                }
                Some(first) => {
                    next = None;
                    first
                }
                None => break,
            };
            let speaks = !columns.is_disjoint(&guard.column_refs());
            if !speaks || guard.is_volatile() || has_subquery(guard)? || can_fail(guard, schema)? {
                continue;
            }
            guards = Some(match guards {
                Some(later) => binary_expr(guard.clone(), op, later),
                None => guard.clone(),
            });
        }
    }
    let Some(guards) = guards else {
        return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr {
            left,
            op,
            right,
        })));
    };
    let (decided, value) = match op {
        Operator::Or => (guards.is_true(), true),
        _ => (guards.is_false(), false),
    };
    let guarded = of_numbers(Case {
        expr: None,
        when_then_expr: vec![(Box::new(decided), Box::new(lit(value)))],
        else_expr: Some(right),
    });
    Ok(Transformed::yes(binary_expr(*left, op, guarded)))
}

/// A `CASE` of booleans of which a branch can fail.
fn in_case(case: Case, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let branches = case.when_then_expr.iter().map(|(_, then)| then);
    for branch in branches.chain(&case.else_expr) {
        if branch.get_type(schema)? == DataType::Boolean && can_fail(branch, schema)? {
            return Ok(Transformed::yes(of_numbers(case)));
        }
    }
    Ok(Transformed::no(Expr::Case(case)))
}

/// A `CASE` of booleans as one of numbers.
fn of_numbers(case: Case) -> Expr {
    let number = |branch| Box::new(Expr::Cast(Cast::new(branch, DataType::Int8)));
    let when_then_expr = case.when_then_expr.into_iter();
    Expr::Case(Case {
        expr: case.expr,
        when_then_expr: when_then_expr
            .map(|(when, then)| (when, number(then)))
            .collect(),
        else_expr: case.else_expr.map(number),
    })
    .eq(lit(1_i8))
}

/// Whether there may be rows for which an expression has no value: a division by zero, a result out
/// of range, a text that is no number.
fn can_fail(expr: &Expr, schema: &DFSchema) -> Result<bool> {
    expr.exists(|expr| {
        Ok(match expr {
            Expr::BinaryExpr(BinaryExpr {
                op: Operator::Divide | Operator::Modulo,
                right,
                ..
            }) => !is_nonzero(right) && !right.get_type(schema)?.is_floating(),
            Expr::ScalarFunction(call) => is_checked(&call.func),
            Expr::Cast(cast) => cast_can_fail(&cast.expr.get_type(schema)?, cast.field.data_type()),
            _ => false,
        })
    })
}

fn is_nonzero(expr: &Expr) -> bool {
    let Expr::Literal(value, _) = expr else {
        return false;
    };
    !value.is_null() && ScalarValue::new_zero(&value.data_type()).is_ok_and(|zero| zero != *value)
}

fn cast_can_fail(from: &DataType, to: &DataType) -> bool {
    let narrows = match (from.primitive_width(), to.primitive_width()) {
        (Some(from), Some(to)) => to < from,
        _ => false,
    };
    (from.is_string() && !to.is_string())
        || (to.is_integer() && (narrows || from.is_floating() || from.is_decimal()))
}

fn has_subquery(expr: &Expr) -> Result<bool> {
    expr.exists(|expr| {
        Ok(matches!(
            expr,
            Expr::ScalarSubquery(_)
                | Expr::InSubquery(_)
                | Expr::Exists(_)
                | Expr::SetComparison(_)
                | Expr::OuterReferenceColumn(..)
        ))
    })
}
