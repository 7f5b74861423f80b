//! Integer arithmetic that fails where its result does not fit, as PostgreSQL's does.
//!
//! DataFusion wraps around: `9223372036854775807 + 1` is a large negative number, and an `UPDATE … SET
//! n = n + 1` stores it. An analyzer rule, once types are coerced, puts a checked function in the
//! place of `+`, `-`, `*` and the sign of integers; all other types keep DataFusion's operators.

use std::sync::Arc;

use arrow_schema::{ArrowError, DataType};
use datafusion::arrow::compute::kernels::numeric::{add, mul, sub};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::physical_expr_common::datum::apply;

use crate::QueryError;
use crate::error::Kind;
use crate::expressions::map_all;

/// The rule.
#[derive(Debug)]
pub(crate) struct CheckedArithmetic;

impl AnalyzerRule for CheckedArithmetic {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        map_all(plan, |expr, schema| {
            expr.transform_up(|expr| checked(expr, schema))
        })
    }
}

fn checked(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let (op, left, right) = match expr {
        Expr::BinaryExpr(BinaryExpr {
            left,
            op: op @ (Operator::Plus | Operator::Minus | Operator::Multiply),
            right,
        }) if is_integer(&left, schema)? && is_integer(&right, schema)? => (op, *left, *right),
        // A literal's sign is the literal's.
        Expr::Negative(inner)
            if !matches!(*inner, Expr::Literal(..)) && is_integer(&inner, schema)? =>
        {
            let zero = lit(ScalarValue::new_zero(&inner.get_type(schema)?)?);
            (Operator::Minus, zero, *inner)
        }
        other => return Ok(Transformed::no(other)),
    };
    // `a + b - c` is one call: planning takes more than the square of the depth of calls.
    let (mut ops, mut args) = match left {
        Expr::ScalarFunction(ScalarFunction { func, args }) => match ops_of(&func) {
            Some(ops) => (ops.to_vec(), args),
            None => {
                let call = ScalarFunction { func, args };
                (Vec::new(), vec![Expr::ScalarFunction(call)])
            }
        },
        other => (Vec::new(), vec![other]),
    };
    ops.push(op);
    args.push(right);
    let call = ScalarFunction::new_udf(Arc::new(ScalarUDF::from(Checked::new(ops))), args);
    Ok(Transformed::yes(Expr::ScalarFunction(call)))
}

fn is_integer(expr: &Expr, schema: &DFSchema) -> Result<bool> {
    Ok(match expr {
        Expr::ScalarFunction(call) if is_checked(&call.func) => true,
        other => other.get_type(schema)?.is_integer(),
    })
}

/// Whether this is one of the functions of the rule.
pub(crate) fn is_checked(function: &ScalarUDF) -> bool {
    ops_of(function).is_some()
}

fn ops_of(function: &ScalarUDF) -> Option<&[Operator]> {
    let inner = function.inner().downcast_ref::<Checked>()?;
    Some(&inner.ops)
}

/// `a op b op c …`, from left to right, of integers of one type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    /// One fewer than there are arguments.
    ops: Vec<Operator>,
    signature: Signature,
}

impl Checked {
    fn new(ops: Vec<Operator>) -> Self {
        Self {
            ops,
            signature: Signature::variadic_any(Volatility::Immutable),
        }
    }
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        match self.ops[..] {
            [Operator::Plus] => "checked_add",
            [Operator::Minus] => "checked_subtract",
            [Operator::Multiply] => "checked_multiply",
            _ => "checked_arithmetic",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [first, rest @ ..] if rest.iter().all(|t| t == first) => Ok(first.clone()),
            _ => plan_err!("{} takes integers of one type", self.name()),
        }
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let wanted = args.return_type().clone();
        let mut args = args.args.into_iter();
        let Some(mut value) = args.next() else {
            return plan_err!("{} takes integers", self.name());
        };
        for (op, right) in self.ops.iter().zip(args) {
            let kernel = match op {
                Operator::Plus => add,
                Operator::Minus => sub,
                _ => mul,
            };
            value = apply(&value, &right, kernel).map_err(|error| overflow(error, &wanted))?;
        }
        Ok(value)
    }
}

/// PostgreSQL's words for a result that does not fit.
fn overflow(error: DataFusionError, wanted: &DataType) -> DataFusionError {
    let DataFusionError::ArrowError(arrow, _) = &error else {
        return error;
    };
    let ArrowError::ArithmeticOverflow(what) = arrow.as_ref() else {
        return error;
    };
    let name = match wanted {
        DataType::Int8 | DataType::Int16 => "smallint",
        DataType::Int32 => "integer",
        DataType::Int64 => "bigint",
        _ => "number",
    };
    let operation = what.rsplit(": ").next().unwrap_or(what);
    let message = format!("{name} out of range: {operation}");
    DataFusionError::External(Box::new(QueryError::new(Kind::OUT_OF_RANGE, message)))
}
