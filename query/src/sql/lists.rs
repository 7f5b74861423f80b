//! `x = ANY (ARRAY[a, b])` is `x IN (a, b)`, and `x <> ALL (ARRAY[a, b])` is `x NOT IN (a, b)`: as a
//! list each element is read as what `x` is, as an array they are read alone.

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr, Value};

/// Makes a list of an array that is written out.
pub(super) fn unpack(expr: &mut Expr) {
    let (left, right, negated) = match expr {
        Expr::AnyOp {
            left,
            compare_op: BinaryOperator::Eq,
            right,
            ..
        } => (left, right, false),
        Expr::AllOp {
            left,
            compare_op: BinaryOperator::NotEq,
            right,
        } => (left, right, true),
        _ => return,
    };
    let mut array = right.as_mut();
    while let Expr::Nested(inner) = array {
        array = inner;
    }
    let Expr::Array(array) = array else {
        return;
    };
    let is_array = |element: &Expr| matches!(element, Expr::Array(_));
    if array.elem.is_empty() || array.elem.iter().any(is_array) {
        return;
    }
    let list = std::mem::take(&mut array.elem);
    let left = std::mem::replace(left.as_mut(), Expr::Value(Value::Null.into()));
    *expr = Expr::InList {
        expr: Box::new(left),
        list,
        negated,
    };
}
