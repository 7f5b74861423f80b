//! `IS [NOT] DISTINCT FROM` binds closer than `NOT`, `AND` and `OR`. sqlparser takes all that follows
//! for its right operand, so that `a IS DISTINCT FROM b AND c` means another thing than in PostgreSQL.
//! What it read is put in order here; parentheses are nodes of their own and are left alone.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Statement, UnaryOperator, Value, VisitMut, VisitorMut,
};

/// Puts all such conditions of a statement in order, and makes lists of written-out arrays.
pub(super) fn mend(statement: &mut Statement) {
    let _ = VisitMut::visit(statement, &mut Mender);
}

struct Mender;

impl VisitorMut for Mender {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        super::lists::unpack(expr);
        if reaches_too_far(expr) {
            let taken = std::mem::replace(expr, Expr::Value(Value::Null.into()));
            let mut items = Vec::new();
            flatten(taken, &mut items);
            *expr = Builder(items.into_iter().peekable()).or();
        }
        ControlFlow::Continue(())
    }
}

fn is_logical(op: &BinaryOperator) -> bool {
    matches!(op, BinaryOperator::And | BinaryOperator::Or)
}

/// Whether a condition without parentheses holds a comparison that took in what follows it.
fn reaches_too_far(mut expr: &Expr) -> bool {
    loop {
        match expr {
            Expr::BinaryOp { left, op, right } if is_logical(op) => {
                // Chains are long to the left.
                if reaches_too_far(right) {
                    return true;
                }
                expr = left;
            }
            Expr::UnaryOp {
                op: UnaryOperator::Not,
                expr: inner,
            } => expr = inner,
            Expr::IsDistinctFrom(_, right) | Expr::IsNotDistinctFrom(_, right) => {
                return match right.as_ref() {
                    Expr::BinaryOp { op, .. } if is_logical(op) => true,
                    other => reaches_too_far(other),
                };
            }
            _ => return false,
        }
    }
}

enum Item {
    Operand(Box<Expr>),
    And,
    Or,
    Not,
}

/// The condition from left to right.
fn flatten(expr: Expr, items: &mut Vec<Item>) {
    match expr {
        Expr::BinaryOp { left, op, right } if is_logical(&op) => {
            flatten(*left, items);
            items.push(match op {
                BinaryOperator::And => Item::And,
                _ => Item::Or,
            });
            flatten(*right, items);
        }
        Expr::UnaryOp {
            op: UnaryOperator::Not,
            expr,
        } => {
            items.push(Item::Not);
            flatten(*expr, items);
        }
        Expr::IsDistinctFrom(left, right) => {
            compared(*right, items, |right| Expr::IsDistinctFrom(left, right));
        }
        Expr::IsNotDistinctFrom(left, right) => {
            compared(*right, items, |right| Expr::IsNotDistinctFrom(left, right));
        }
        other => items.push(Item::Operand(Box::new(other))),
    }
}

/// The comparison with the first operand of what was taken for the right one, and the rest.
fn compared(right: Expr, items: &mut Vec<Item>, with: impl FnOnce(Box<Expr>) -> Expr) {
    let mut taken = Vec::new();
    flatten(right, &mut taken);
    let mut rest = Builder(taken.into_iter().peekable());
    let first = rest.not();
    // In parentheses, so that its text reads back alike.
    let compared = Expr::Nested(Box::new(with(Box::new(first))));
    items.push(Item::Operand(Box::new(compared)));
    items.extend(rest.0);
}

/// Builds a condition by precedence: `NOT`, `AND`, `OR`.
struct Builder(std::iter::Peekable<std::vec::IntoIter<Item>>);

impl Builder {
    fn or(&mut self) -> Expr {
        let mut left = self.and();
        while self.0.next_if(|item| matches!(item, Item::Or)).is_some() {
            left = binary(left, BinaryOperator::Or, self.and());
        }
        left
    }

    fn and(&mut self) -> Expr {
        let mut left = self.not();
        while self.0.next_if(|item| matches!(item, Item::And)).is_some() {
            left = binary(left, BinaryOperator::And, self.not());
        }
        left
    }

    fn not(&mut self) -> Expr {
        match self.0.next() {
            Some(Item::Not) => Expr::UnaryOp {
                op: UnaryOperator::Not,
                expr: Box::new(self.not()),
            },
            Some(Item::Operand(operand)) => *operand,
            // An operand follows each operator: the items came out of a whole condition.
            _ => Expr::Value(Value::Null.into()),
        }
    }
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp {
        left: Box::new(left),
        op,
        right: Box::new(right),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    #[test]
    fn distinct_from_binds_closer_than_not_and_or() {
        let parsed = |sql: &str| {
            let sql = format!("SELECT {sql}");
            let mut all = Parser::parse_sql(&PostgreSqlDialect {}, &sql).expect("parses");
            all.remove(0)
        };
        for (written, meant) in [
            ("a IS DISTINCT FROM b AND c", "(a IS DISTINCT FROM b) AND c"),
            (
                "p AND a IS DISTINCT FROM b OR c AND d",
                "p AND (a IS DISTINCT FROM b) OR c AND d",
            ),
            (
                "NOT a IS NOT DISTINCT FROM b OR NOT c",
                "NOT (a IS NOT DISTINCT FROM b) OR NOT c",
            ),
            (
                "a IS DISTINCT FROM b AND c IS DISTINCT FROM d OR e",
                "(a IS DISTINCT FROM b) AND (c IS DISTINCT FROM d) OR e",
            ),
            (
                "CASE WHEN a IS DISTINCT FROM b + d AND c THEN e END",
                "CASE WHEN (a IS DISTINCT FROM b + d) AND c THEN e END",
            ),
        ] {
            let mut mended = parsed(written);
            mend(&mut mended);
            assert_eq!(mended, parsed(meant), "{written}");
        }
        for same in [
            "a IS DISTINCT FROM (b AND c)",
            "(a IS DISTINCT FROM b) AND c",
        ] {
            let mut mended = parsed(same);
            mend(&mut mended);
            assert_eq!(mended, parsed(same));
        }
    }
}
