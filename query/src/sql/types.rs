//! SQL type names and table options.

use datafusion::sql::sqlparser::ast::{
    DataType, ExactNumberInfo, Expr, SqlOption, TimezoneInfo, UnaryOperator, Value,
};
use shoal_types::{ColumnType, TimePrecision};

use super::names::{fold, position};
use crate::QueryError;
use crate::error::{Kind, Result, nearest};

/// The column type that a type name in `CREATE TABLE` means.
///
/// # Errors
/// Types that cannot be stored, with the nearest that can.
pub(crate) fn column_type(name: &DataType) -> Result<ColumnType> {
    Ok(match name {
        DataType::Boolean | DataType::Bool => ColumnType::Boolean,
        DataType::TinyInt(_) | DataType::SmallInt(_) | DataType::Int2(_) | DataType::Int16 => {
            ColumnType::Int16
        }
        DataType::Int(_)
        | DataType::Integer(_)
        | DataType::Int4(_)
        | DataType::MediumInt(_)
        | DataType::Int32 => ColumnType::Int32,
        DataType::BigInt(_) | DataType::Int8(_) | DataType::Int64 => ColumnType::Int64,
        DataType::Real | DataType::Float4 | DataType::Float32 => ColumnType::Float32,
        DataType::Float(ExactNumberInfo::Precision(1..=24)) => ColumnType::Float32,
        DataType::Float(_)
        | DataType::Double(_)
        | DataType::DoublePrecision
        | DataType::Float8
        | DataType::Float64 => ColumnType::Float64,
        DataType::Numeric(info) | DataType::Decimal(info) | DataType::Dec(info) => decimal(info)?,
        DataType::Text
        | DataType::TinyText
        | DataType::MediumText
        | DataType::LongText
        | DataType::String(_)
        | DataType::Char(_)
        | DataType::Character(_)
        | DataType::CharVarying(_)
        | DataType::CharacterVarying(_)
        | DataType::Varchar(_)
        | DataType::Nvarchar(_) => ColumnType::Text,
        DataType::Bytea | DataType::Blob(_) | DataType::Binary(_) | DataType::Varbinary(_) => {
            ColumnType::Binary
        }
        DataType::Date => ColumnType::Date,
        DataType::Datetime(digits) | DataType::TimestampNtz(digits) => timestamp(*digits, false)?,
        DataType::Timestamp(digits, zone) => timestamp(
            *digits,
            matches!(zone, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz),
        )?,
        other => return Err(cannot_store(other)),
    })
}

fn cannot_store(name: &DataType) -> QueryError {
    let error = QueryError::new(
        Kind::UNSUPPORTED,
        format!(
            "type {name} cannot be stored; there are BOOLEAN, SMALLINT, INTEGER, BIGINT, REAL, DOUBLE PRECISION, DECIMAL(p, s), TEXT, BYTEA, DATE, TIMESTAMP(0|3|6|9) and TIMESTAMPTZ(0|3|6|9)"
        ),
    );
    match name {
        DataType::Uuid | DataType::JSON | DataType::JSONB => error.with_hint("use TEXT"),
        _ => error,
    }
}

fn decimal(info: &ExactNumberInfo) -> Result<ColumnType> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => (38, 10),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    let bad = || {
        QueryError::new(
            Kind::INVALID_DEFINITION,
            format!(
                "DECIMAL({precision}, {scale}): precision is 1 to 38, scale 0 to the precision"
            ),
        )
    };
    let precision = u8::try_from(precision).map_err(|_| bad())?;
    let scale = i8::try_from(scale).map_err(|_| bad())?;
    if !(1..=38).contains(&precision) || scale < 0 || scale as u8 > precision {
        return Err(bad());
    }
    Ok(ColumnType::Decimal { precision, scale })
}

fn timestamp(digits: Option<u64>, utc: bool) -> Result<ColumnType> {
    let precision = match digits {
        Some(0) => TimePrecision::Second,
        Some(3) => TimePrecision::Millisecond,
        None | Some(6) => TimePrecision::Microsecond,
        Some(9) => TimePrecision::Nanosecond,
        Some(other) => {
            return Err(QueryError::new(
                Kind::INVALID_DEFINITION,
                format!("TIMESTAMP({other}): the digits are 0, 3, 6 or 9"),
            ));
        }
    };
    Ok(ColumnType::Timestamp { precision, utc })
}

/// `WITH (…)` and `SET (…)`.
#[derive(Debug, Default)]
pub(crate) struct TableOptions {
    /// Column that TTL and time windows go by.
    pub time_column: Option<String>,
    /// Milliseconds; `Some(None)`: `'none'`.
    pub ttl_ms: Option<Option<u64>>,
    /// `upsert` or `append`.
    pub mode: Option<shoal_types::TableMode>,
}

const OPTIONS: [&str; 3] = ["time_column", "ttl", "mode"];

impl TableOptions {
    /// Reads them.
    ///
    /// # Errors
    /// Unknown options, with the nearest known; bad values.
    pub(crate) fn parse(options: &[SqlOption]) -> Result<Self> {
        let mut out = Self::default();
        for option in options {
            let SqlOption::KeyValue { key, value } = option else {
                return Err(QueryError::new(
                    Kind::SYNTAX,
                    format!("table options are written name = 'value'; {option} is not"),
                ));
            };
            let text = literal_text(value).ok_or_else(|| {
                QueryError::new(
                    Kind::INVALID_VALUE,
                    format!("option {key}: {value} is not a literal"),
                )
                .at(position(key))
            })?;
            match fold(key).as_str() {
                "time_column" => out.time_column = Some(text),
                "ttl" => out.ttl_ms = Some(parse_ttl(&text)?),
                "mode" => {
                    out.mode = Some(match text.to_lowercase().as_str() {
                        "upsert" => shoal_types::TableMode::Upsert,
                        "append" => shoal_types::TableMode::Append,
                        _ => {
                            return Err(QueryError::new(
                                Kind::INVALID_VALUE,
                                format!("mode is 'upsert' or 'append', not {text:?}"),
                            ));
                        }
                    });
                }
                other => {
                    let error = QueryError::new(
                        Kind::INVALID_VALUE,
                        format!("table option {other:?} does not exist"),
                    )
                    .at(position(key));
                    return Err(match nearest(other, OPTIONS) {
                        Some(near) => error.with_hint(format!("did you mean {near:?}?")),
                        None => error.with_hint(format!("there are {}", OPTIONS.join(", "))),
                    });
                }
            }
        }
        Ok(out)
    }
}

/// The text of a literal, identifier or number.
pub(crate) fn literal_text(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text)
            | Value::DoubleQuotedString(text)
            | Value::EscapedStringLiteral(text)
            | Value::Number(text, _) => Some(text.clone()),
            Value::Boolean(b) => Some(if *b { "on" } else { "off" }.to_owned()),
            Value::Null => Some("default".to_owned()),
            _ => None,
        },
        Expr::Identifier(ident) => Some(ident.value.clone()),
        Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr,
        } => literal_text(expr).map(|text| format!("-{text}")),
        Expr::Interval(interval) => literal_text(&interval.value),
        _ => None,
    }
}

/// `30d`, `12h`, `2 weeks`; `none` (or `0`): rows are kept.
fn parse_ttl(text: &str) -> Result<Option<u64>> {
    let folded = text.trim().to_lowercase();
    if ["none", "off", "default", "0", ""].contains(&folded.as_str()) {
        return Ok(None);
    }
    let digits = folded.len()
        - folded
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .len();
    let bad = || {
        QueryError::new(
            Kind::INVALID_VALUE,
            format!("ttl {text:?} is not a time such as '30d', '12h' or 'none'"),
        )
    };
    let number: u64 = folded[..digits].parse().map_err(|_| bad())?;
    let unit_ms = match folded[digits..].trim() {
        "ms" => 1,
        "s" | "sec" | "second" | "seconds" => 1000,
        "m" | "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        "w" | "week" | "weeks" => 7 * 86_400_000,
        "y" | "year" | "years" => 365 * 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(unit_ms).map(Some).ok_or_else(bad)
}

/// A ttl as `WITH` takes it.
pub(crate) fn format_ttl(ms: u64) -> String {
    for (unit, unit_ms) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
    ] {
        if ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}
