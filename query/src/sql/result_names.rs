//! Names of result columns as PostgreSQL gives them: an expression without an alias is named
//! after its function, its column or its cast, else `?column?`. DataFusion names it after its
//! text (`count(*)`, `Int64(1)`), which drivers' lookups by name do not find.
//!
//! The rules are those of `FigureColname` in PostgreSQL's parser. Several columns may have one name.

use std::sync::Arc;

use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    CastKind, Expr, ObjectName, Query, SelectItem, SetExpr, Statement,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;

use super::names::fold;

/// The longest text that is parsed for its names alone.
const BYTES_MAX: usize = 64 << 10;

/// Names of columns that DataFusion would name otherwise; the others stay as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    /// Of the first columns.
    left: Vec<Option<String>>,
    /// Of the last ones, after a `*`; the last column comes first.
    right: Vec<Option<String>>,
}

impl Names {
    /// Those of a parsed statement; none, if it is no query.
    pub(crate) fn of_statement(body: &DfStatement) -> Self {
        match body {
            DfStatement::Statement(statement) => match statement.as_ref() {
                Statement::Query(query) => of_query(query),
                _ => Self::default(),
            },
            _ => Self::default(),
        }
    }

    /// Those of a query within another statement.
    pub(crate) fn of_query(query: &Query) -> Self {
        of_query(query)
    }

    /// A result's schema with these names; `None`: it has them.
    pub(crate) fn put_on(&self, schema: &Schema) -> Option<SchemaRef> {
        let width = schema.fields().len();
        let is_other = |(at, field): (usize, &Arc<Field>)| {
            self.get(at, width).is_some_and(|name| name != field.name())
        };
        if !schema.fields().iter().enumerate().any(is_other) {
            return None;
        }
        let fields = schema.fields().iter().enumerate().map(|(at, field)| {
            let name = self.get(at, width).unwrap_or(field.name());
            Field::clone(field).with_name(name)
        });
        let fields: Vec<Field> = fields.collect();
        let metadata = schema.metadata().clone();
        Some(Arc::new(Schema::new_with_metadata(fields, metadata)))
    }

    /// Reads them from a text: for a statement that is rewritten before it is run, and keeps the
    /// names that it had. None, if it is no query or cannot be parsed.
    #[must_use]
    pub fn of(sql: &str) -> Self {
        if sql.len() > BYTES_MAX {
            return Self::default();
        }
        match Parser::parse_sql(&PostgreSqlDialect {}, sql).as_deref() {
            Ok([Statement::Query(query)]) => of_query(query),
            _ => Self::default(),
        }
    }

    /// The name of a column of `width`, if it is to be another than DataFusion's.
    #[must_use]
    pub fn get(&self, index: usize, width: usize) -> Option<&str> {
        let from_right = width.checked_sub(index + 1)?;
        let named = self.left.get(index).or_else(|| self.right.get(from_right));
        named.and_then(Option::as_deref)
    }
}

fn of_query(query: &Query) -> Names {
    let mut body = query.body.as_ref();
    loop {
        match body {
            SetExpr::SetOperation { left, .. } => body = left,
            SetExpr::Query(query) => return of_query(query),
            SetExpr::Select(select) => {
                let items = &select.projection;
                let first_star = items.iter().position(is_star).unwrap_or(items.len());
                let left = items[..first_star].iter().map(of_item).collect();
                let right = items[first_star..].iter().rev();
                let right = right
                    .take_while(|item| !is_star(item))
                    .map(of_item)
                    .collect();
                return Names { left, right };
            }
            SetExpr::Values(values) => {
                let width = values.rows.first().map_or(0, |row| row.len());
                let left = (1..=width).map(|i| Some(format!("column{i}"))).collect();
                return Names {
                    left,
                    right: Vec::new(),
                };
            }
            _ => return Names::default(),
        }
    }
}

/// Whether an item stands for any number of columns.
pub(super) fn is_star(item: &SelectItem) -> bool {
    matches!(
        item,
        SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)
    )
}

fn of_item(item: &SelectItem) -> Option<String> {
    match item {
        SelectItem::UnnamedExpr(Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => None,
        SelectItem::UnnamedExpr(expr) => {
            Some(of_expr(expr).map_or_else(|| "?column?".to_owned(), |(name, _)| name))
        }
        _ => None,
    }
}

fn last(name: &ObjectName) -> Option<String> {
    name.0.last()?.as_ident().map(fold)
}

/// A name and whether it is a good one: a cast prefers its operand's good name to its type.
fn of_expr(expr: &Expr) -> Option<(String, bool)> {
    let good = |name: &str| Some((name.to_owned(), true));
    match expr {
        Expr::Identifier(ident) => good(&ident.value),
        Expr::CompoundIdentifier(parts) => good(&parts.last()?.value),
        Expr::Function(function) => Some((last(&function.name)?, true)),
        Expr::Nested(inner) => of_expr(inner),
        Expr::CompoundFieldAccess { root, .. } => of_expr(root),
        Expr::Cast {
            expr,
            data_type,
            kind: CastKind::Cast | CastKind::DoubleColon,
            ..
        } => match of_expr(expr) {
            Some((name, true)) => Some((name, true)),
            _ => {
                let text = data_type.to_string().to_lowercase();
                let word = text.split(['(', ' ', '[']).next().unwrap_or_default();
                Some((internal_name(word).to_owned(), false))
            }
        },
        Expr::Case { else_result, .. } => match else_result.as_deref().and_then(of_expr) {
            Some((name, true)) => Some((name, true)),
            _ => Some(("case".to_owned(), false)),
        },
        Expr::TypedString(typed) => {
            let text = typed.data_type.to_string().to_lowercase();
            let word = text.split(['(', ' ']).next().unwrap_or_default();
            Some((internal_name(word).to_owned(), false))
        }
        Expr::Interval(_) => Some(("interval".to_owned(), false)),
        Expr::Extract { .. } => good("extract"),
        Expr::Floor { .. } => good("floor"),
        Expr::Ceil { .. } => good("ceil"),
        Expr::Substring { .. } => good("substring"),
        Expr::Position { .. } => good("position"),
        Expr::Trim { .. } => good("btrim"),
        Expr::Exists { .. } => good("exists"),
        Expr::Array(_) => good("array"),
        Expr::Subquery(query) => match of_query(query).left.into_iter().next() {
            Some(Some(name)) => Some((name, true)),
            _ => match query.body.as_ref() {
                SetExpr::Select(select) => match select.projection.first()? {
                    SelectItem::UnnamedExpr(expr) => of_expr(expr),
                    SelectItem::ExprWithAlias { alias, .. } => good(&alias.value),
                    _ => None,
                },
                _ => None,
            },
        },
        _ => None,
    }
}

/// The name of a type in `pg_type`.
fn internal_name(word: &str) -> &str {
    match word {
        "bigint" => "int8",
        "integer" | "int" => "int4",
        "smallint" => "int2",
        "double" | "float" => "float8",
        "real" => "float4",
        "boolean" => "bool",
        "decimal" => "numeric",
        "character" | "char" => "bpchar",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(sql: &str, width: usize) -> Vec<String> {
        let names = Names::of(sql);
        (0..width)
            .map(|i| names.get(i, width).unwrap_or("-").to_owned())
            .collect()
    }

    #[test]
    fn columns_are_named_as_postgresql_names_them() {
        assert_eq!(
            named(
                "SELECT 1, count(*), Max(a), a, t.b, a AS x, a + 1, a::text, '5'::bigint, CASE WHEN a THEN 1 END, pg_catalog.version() FROM t",
                11
            ),
            [
                "?column?", "count", "max", "-", "-", "-", "?column?", "a", "int8", "case",
                "version"
            ]
        );
        assert_eq!(
            named("SELECT count(*), *, sum(a), 2 FROM t", 6),
            ["count", "-", "-", "-", "sum", "?column?"]
        );
        assert_eq!(
            named(
                "WITH x AS (SELECT 1) SELECT max(a) FROM x UNION SELECT 2",
                1
            ),
            ["max"]
        );
        assert_eq!(named("VALUES (1, 2)", 2), ["column1", "column2"]);
        assert_eq!(named("SHOW TABLES", 1), ["-"]);
        assert_eq!(named("not sql", 1), ["-"]);
    }
}
