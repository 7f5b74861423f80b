//! Text literals, read as PostgreSQL reads them where Arrow's casts do not: `'\xdead'` for BYTEA,
//! `'2026-01-01 02:00'`, `'2026-01-01T02:00Z'` and `'2026-01-01 10:00:00+02'` for timestamps.
//!
//! An analyzer rule after type coercion: by then every literal that meets a column of another
//! type stands in a cast, whether it was written in a comparison, in VALUES, in SET or as a
//! parameter. What cannot be read fails here, before anything runs, with the literal in the
//! message, so that its place can be found in the statement ([`locate`]).

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Expr, LogicalPlan, lit};
use datafusion::optimizer::AnalyzerRule;

use crate::error::Kind;
use crate::expressions::map_all;
use crate::number::Number;
use crate::text::read_text;
use crate::{QueryError, decimals, ticks};

/// The rule.
#[derive(Debug)]
pub(crate) struct TextLiterals;

impl AnalyzerRule for TextLiterals {
    fn name(&self) -> &str {
        "text_literals"
    }

    fn analyze(&self, plan: LogicalPlan, config: &ConfigOptions) -> Result<LogicalPlan> {
        let zone = config.execution.time_zone.as_deref();
        map_all(plan, |expr, schema| read_in(expr, schema, zone))
    }
}

/// All casts of text literals in an expression whose types were coerced, made values. `zone` is
/// the session's.
pub(crate) fn read_in(
    expr: Expr,
    schema: &DFSchema,
    zone: Option<&str>,
) -> Result<Transformed<Expr>> {
    let exact = ticks::compared_exactly(expr, schema, zone)?;
    let read = exact.transform_data(|expr| expr.transform_up(|expr| read_cast(expr, zone)))?;
    read.transform_data(|expr| expr.transform_up(|expr| Ok(null_in_list(expr))))
}

/// `x NOT IN (1, NULL)` as `x NOT IN (1) AND NULL`, and `x IN (1, NULL)` as `x IN (1) OR NULL`, which
/// they mean: DataFusion's simplifier loses the NULL where it joins two lists of one column.
fn null_in_list(expr: Expr) -> Transformed<Expr> {
    let Expr::InList(InList {
        expr: subject,
        list,
        negated,
    }) = expr
    else {
        return Transformed::no(expr);
    };
    let is_null = |one: &Expr| match one {
        Expr::Literal(value, _) => value.is_null(),
        Expr::Cast(cast) => matches!(&*cast.expr, Expr::Literal(value, _) if value.is_null()),
        _ => false,
    };
    let (nulls, list): (Vec<Expr>, Vec<Expr>) = list.into_iter().partition(is_null);
    let unknown = || lit(ScalarValue::Boolean(None));
    if list.is_empty() && !nulls.is_empty() {
        return Transformed::yes(unknown());
    }
    let known = Expr::InList(InList {
        expr: subject,
        list,
        negated,
    });
    match (nulls.is_empty(), negated) {
        (true, _) => Transformed::no(known),
        (false, true) => Transformed::yes(known.and(unknown())),
        (false, false) => Transformed::yes(known.or(unknown())),
    }
}

/// A cast of a text literal, made the value.
fn read_cast(expr: Expr, zone: Option<&str>) -> Result<Transformed<Expr>> {
    let (inner, wanted, must) = match &expr {
        Expr::Cast(cast) => (&cast.expr, cast.field.data_type(), true),
        Expr::TryCast(cast) => (&cast.expr, cast.field.data_type(), false),
        _ => return Ok(Transformed::no(expr)),
    };
    let Expr::Literal(literal, metadata) = inner.as_ref() else {
        return Ok(Transformed::no(expr));
    };
    if let Some(floored) = ticks::floored_scalar(literal, wanted)? {
        return Ok(Transformed::yes(Expr::Literal(floored, metadata.clone())));
    }
    let Some(Some(text)) = literal.try_as_str() else {
        return Ok(Transformed::no(expr));
    };
    let Some(name) = type_name(wanted) else {
        return Ok(Transformed::no(expr));
    };
    match read_text(text, wanted, zone) {
        Some(value) => Ok(Transformed::yes(Expr::Literal(value, metadata.clone()))),
        None if must => Err(DataFusionError::External(Box::new(QueryError::new(
            Kind::INVALID_TEXT,
            format!("{INVALID}{name}: \"{text}\""),
        )))),
        None => Ok(Transformed::no(expr)),
    }
}

const INVALID: &str = "invalid input syntax for type ";

/// The value of `$number` as the type that the plan wants.
///
/// # Errors
/// Text that is no such value.
pub(crate) fn read_parameter(
    number: usize,
    value: &ScalarValue,
    wanted: &DataType,
    zone: Option<&str>,
) -> Result<ScalarValue, QueryError> {
    let (Some(Some(text)), Some(name)) = (value.try_as_str(), type_name(wanted)) else {
        return Ok(value.clone());
    };
    let read = match wanted {
        // Stays text: compared, it may have more digits than the type wanted.
        _ if wanted.is_decimal() => Number::parse(text.trim()).map(|_| value.clone()),
        DataType::Timestamp(..) => read_timestamp(text, wanted, zone),
        _ => read_text(text, wanted, zone),
    };
    read.ok_or_else(|| {
        QueryError::new(
            Kind::INVALID_TEXT,
            format!("parameter ${number}: {INVALID}{name}: \"{text}\""),
        )
    })
}

/// Text as a timestamp of type `wanted`, or of a finer unit where it has more digits (see
/// [`fit`]); read by the rules of [`read_text`].
#[must_use]
pub fn read_timestamp(text: &str, wanted: &DataType, zone: Option<&str>) -> Option<ScalarValue> {
    let DataType::Timestamp(_, to_zone) = wanted else {
        return None;
    };
    let finest = DataType::Timestamp(TimeUnit::Nanosecond, to_zone.clone());
    match read_text(text, &finest, zone) {
        Some(fine) => ticks::uncut(&fine, wanted).ok(),
        // Nanoseconds reach from 1677 to 2262, other units further.
        None => read_text(text, wanted, zone),
    }
}

/// A bound value as the type that the plan wants for it. A timestamp with digits that this type
/// cannot hold keeps them: `ts = $1` is then true of no row, instead of those at the moment it
/// would be cut to.
///
/// # Errors
/// No such value of the type.
pub fn fit(value: &ScalarValue, wanted: &DataType) -> Result<ScalarValue, QueryError> {
    Ok(ticks::uncut(value, wanted)?)
}

/// PostgreSQL's name of the types that are read here; others are left to Arrow's casts.
fn type_name(wanted: &DataType) -> Option<&'static str> {
    Some(match wanted {
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytea",
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 => "smallint",
        DataType::Int32 => "integer",
        DataType::Int64 => "bigint",
        DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Decimal128(..) | DataType::Decimal256(..) => "numeric",
        _ => return None,
    })
}

/// Gives the error of a literal its place, where the statement holds that literal once.
pub(crate) fn locate(error: QueryError, sql: &str) -> QueryError {
    if error.position.is_some() {
        return error;
    }
    let place = literal_of(&error)
        .and_then(|literal| {
            let mut found = sql.match_indices(&literal);
            let (at, _) = found.next()?;
            found.next().is_none().then_some(at)
        })
        .map(|at| {
            let before = &sql[..at];
            let line = before.matches('\n').count() as u64 + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() as u64 + 1;
            (line, column)
        });
    error.at(place)
}

/// The literal that an error is about, as it stands in a statement.
fn literal_of(error: &QueryError) -> Option<String> {
    if let Some(rest) = error.message.strip_prefix(decimals::OVERFLOW) {
        return Some(rest.split_once(' ')?.0.to_owned());
    }
    let (_, rest) = error.message.strip_prefix(INVALID)?.split_once(": \"")?;
    let text = rest.strip_suffix('"')?;
    Some(format!("'{}'", text.replace('\'', "''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_points_at_its_literal_if_there_is_one_such() {
        let error = QueryError::new(Kind::INVALID_TEXT, format!("{INVALID}date: \"it's\""));
        let place = |sql: &str| locate(error.clone(), sql).position;
        assert_eq!(place("SELECT\n  'é', DATE 'it''s'"), Some((2, 13)));
        assert_eq!(place("SELECT 'it''s', DATE 'it''s'"), None);
    }
}
