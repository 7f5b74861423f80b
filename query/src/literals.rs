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

/// Text as a value of a type, by PostgreSQL's rules. `zone` is the session's: that of a
/// timestamp with time zone whose text names none; `None`: the type's own. A zone in the text of
/// a timestamp without time zone is ignored, as PostgreSQL does.
///
/// `None`: the text is no such value.
#[must_use]
pub fn read_text(text: &str, wanted: &DataType, zone: Option<&str>) -> Option<ScalarValue> {
    let cast = |text: &str, to: &DataType| ScalarValue::from(text).cast_to(to).ok();
    let trimmed = text.trim();
    match wanted {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            ScalarValue::Binary(Some(bytea(text)?)).cast_to(wanted).ok()
        }
        DataType::Timestamp(unit, to_zone) => {
            let Some(parts) = Parts::of(trimmed) else {
                return cast(trimmed, wanted);
            };
            let Some(to_zone) = to_zone else {
                return cast(&parts.moment(), wanted);
            };
            match parts.offset() {
                Some(offset) => cast(&format!("{}{}", parts.moment(), offset?), wanted),
                None => {
                    let zone = zone.unwrap_or(to_zone);
                    let there = DataType::Timestamp(*unit, Some(zone.into()));
                    cast(&parts.moment(), &there)?.cast_to(wanted).ok()
                }
            }
        }
        DataType::Date32 | DataType::Date64 => match Parts::of(trimmed) {
            Some(parts) => cast(&parts.date, wanted),
            None => cast(trimmed, wanted),
        },
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            let value = Number::parse(trimmed)?.to_decimal(*precision, *scale)?;
            value.cast_to(wanted).ok()
        }
        _ => cast(trimmed, wanted),
    }
}

/// The parts of a timestamp's text.
struct Parts<'a> {
    /// `YYYY-MM-DD`.
    date: String,
    /// `HH:MM:SS`, with up to nine digits of a fraction.
    time: String,
    /// What follows: `Z`, an offset, or nothing.
    zone: &'a str,
}

impl<'a> Parts<'a> {
    /// `None`: a shape that is not known here.
    fn of(text: &'a str) -> Option<Self> {
        let (year, rest) = number(text, 4, 4)?;
        let (month, rest) = number(rest.strip_prefix('-')?, 1, 2)?;
        let (day, rest) = number(rest.strip_prefix('-')?, 1, 2)?;
        let date = format!("{year:0>4}-{month:0>2}-{day:0>2}");
        let after = rest.trim_start_matches(['T', 't', ' ']);
        if after.is_empty() && rest.trim().is_empty() {
            let time = "00:00:00".to_owned();
            return Some(Self {
                date,
                time,
                zone: "",
            });
        }
        if after.len() == rest.len() {
            return None;
        }
        let (hour, rest) = number(after, 1, 2)?;
        let (minute, mut rest) = number(rest.strip_prefix(':')?, 2, 2)?;
        let mut time = format!("{hour:0>2}:{minute}");
        let mut second = "00";
        if let Some(more) = rest.strip_prefix(':') {
            (second, rest) = number(more, 2, 2)?;
        }
        time.push(':');
        time.push_str(second);
        if let Some(more) = rest.strip_prefix('.') {
            let digits = more.len() - more.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (fraction, more) = more.split_at(digits);
            if !fraction.is_empty() {
                time.push('.');
                time.push_str(&fraction[..fraction.len().min(9)]);
            }
            rest = more;
        }
        Some(Self {
            date,
            time,
            zone: rest.trim(),
        })
        .filter(|parts| parts.offset().is_none_or(|offset| offset.is_some()))
    }

    fn moment(&self) -> String {
        format!("{}T{}", self.date, self.time)
    }

    /// The zone as `±HH:MM`; `None`: none is given; `Some(None)`: none that is known here.
    fn offset(&self) -> Option<Option<String>> {
        if self.zone.is_empty() {
            return None;
        }
        let known = match self.zone.to_ascii_lowercase().as_str() {
            "z" | "utc" | "gmt" => Some("+00:00".to_owned()),
            _ => self.numeric_offset(),
        };
        Some(known)
    }

    fn numeric_offset(&self) -> Option<String> {
        let sign = self.zone.get(..1).filter(|s| matches!(*s, "+" | "-"))?;
        let (hours, rest) = number(&self.zone[1..], 1, 2)?;
        let minutes = match rest.strip_prefix(':').unwrap_or(rest) {
            "" if rest.is_empty() => "00",
            digits => number(digits, 2, 2).filter(|(_, end)| end.is_empty())?.0,
        };
        Some(format!("{sign}{hours:0>2}:{minutes}"))
    }
}

/// Digits at the start, between `least` and `most` of them, and what follows.
fn number(text: &str, least: usize, most: usize) -> Option<(&str, &str)> {
    let digits = text
        .bytes()
        .take(most)
        .take_while(u8::is_ascii_digit)
        .count();
    (digits >= least).then(|| text.split_at(digits))
}

/// The bytes of a `bytea` literal, `\x…` or escaped; `None`: it is neither.
#[must_use]
pub fn bytea(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8, radix: u32| (b as char).to_digit(radix).map(|d| d as u8);
    if let Some(hex) = text.strip_prefix("\\x") {
        // Blanks may stand between bytes, not within one.
        return hex
            .split_ascii_whitespace()
            .flat_map(|part| part.as_bytes().chunks(2))
            .map(|pair| match pair {
                [high, low] => Some(digit(*high, 16)? << 4 | digit(*low, 16)?),
                _ => None,
            })
            .collect();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = match (first, tail) {
            (b'\\', [b'\\', more @ ..]) => {
                out.push(b'\\');
                more
            }
            (b'\\', [a @ b'0'..=b'3', b, c, more @ ..]) => {
                out.push(digit(*a, 8)? << 6 | digit(*b, 8)? << 3 | digit(*c, 8)?);
                more
            }
            (b'\\', _) => return None,
            (other, more) => {
                out.push(*other);
                more
            }
        };
    }
    Some(out)
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

    /// 2026-01-01 00:00 UTC in seconds.
    const DAY: i64 = 1_767_225_600;

    #[test]
    fn timestamps_are_read_in_postgresqls_spellings() {
        let plain = DataType::Timestamp(TimeUnit::Second, None);
        let zoned = DataType::Timestamp(TimeUnit::Second, Some("UTC".into()));
        let seconds = |text: &str, to: &DataType| match read_text(text, to, Some("+01:00")) {
            Some(ScalarValue::TimestampSecond(Some(s), _)) => Some(s - DAY),
            _ => None,
        };
        for (text, without, with) in [
            ("2026-01-01", 0, -3600),
            (" 2026-1-1 ", 0, -3600),
            ("2026-01-01 02:00", 7200, 3600),
            ("2026-01-01T02:00Z", 7200, 7200),
            ("2026-01-01 02:00:00.123456789123 UTC", 7200, 7200),
            ("2026-01-01 10:00:00+02", 36_000, 28_800),
            ("2026-01-01 10:00:00 +0230", 36_000, 27_000),
            ("2026-01-01t10:00:00-02:30", 36_000, 45_000),
        ] {
            assert_eq!(seconds(text, &plain), Some(without), "{text}");
            assert_eq!(seconds(text, &zoned), Some(with), "{text}");
        }
        for text in [
            "",
            "yesterdayish",
            "2026-13-01",
            "2026-01-01 25:00",
            "2026-01-01 02:00+2x",
        ] {
            assert_eq!(seconds(text, &plain), None, "{text}");
            assert_eq!(seconds(text, &zoned), None, "{text}");
        }
    }

    #[test]
    fn bytes_are_read_as_hex_or_with_escapes() {
        assert_eq!(bytea("\\xdeAD"), Some(vec![0xde, 0xad]));
        assert_eq!(bytea("\\x"), Some(vec![]));
        assert_eq!(bytea("a\\\\b\\001"), Some(b"a\\b\x01".to_vec()));
        for bad in ["\\xd", "\\xgg", "\\q", "\\x€"] {
            assert_eq!(bytea(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_error_points_at_its_literal_if_there_is_one_such() {
        let error = QueryError::new(Kind::INVALID_TEXT, format!("{INVALID}date: \"it's\""));
        let place = |sql: &str| locate(error.clone(), sql).position;
        assert_eq!(place("SELECT\n  'é', DATE 'it''s'"), Some((2, 13)));
        assert_eq!(place("SELECT 'it''s', DATE 'it''s'"), None);
    }
}
