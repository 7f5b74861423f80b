//! Values bound to `$1`, `$2`, …: from the wire, text or binary, to what the plan expects.
//!
//! The client says with which type it encoded a value, or leaves it to the server; the plan says
//! which type it wants. Values are read as the former and cast to the latter.

use std::sync::Arc;

use arrow_schema::{DataType, Field, IntervalUnit, TimeUnit};
use datafusion::scalar::ScalarValue;
use pgwire::api::Type;
use pgwire::error::{PgWireError, PgWireResult};

use super::{errors, rows};

const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The Arrow type that a client's declared parameter type stands for; `None`: undeclared, or a
/// type that tells nothing, so that the plan decides.
#[must_use]
pub fn arrow_type(pg_type: &Type) -> Option<DataType> {
    Some(match *pg_type {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 => DataType::Int64,
        Type::OID => DataType::Int32,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::BYTEA => DataType::Binary,
        Type::DATE => DataType::Date32,
        Type::TIME => DataType::Time64(TimeUnit::Microsecond),
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        Type::INTERVAL => DataType::Interval(IntervalUnit::MonthDayNano),
        Type::TEXT
        | Type::VARCHAR
        | Type::BPCHAR
        | Type::NAME
        | Type::UUID
        | Type::JSON
        | Type::JSONB => DataType::Utf8,
        _ => {
            let element = element_type(pg_type)?;
            DataType::List(Arc::new(Field::new_list_field(arrow_type(&element)?, true)))
        }
    })
}

fn element_type(pg_type: &Type) -> Option<Type> {
    match pg_type.kind() {
        postgres_types::Kind::Array(element) => Some(element.clone()),
        _ => None,
    }
}

/// One bound value. `declared` is the client's type, `wanted` the plan's.
///
/// # Errors
/// 22P02, 22P03 or 22003, naming the parameter (`index` from 0).
pub fn decode(
    index: usize,
    value: Option<&[u8]>,
    binary: bool,
    declared: Option<&Type>,
    wanted: &DataType,
) -> PgWireResult<ScalarValue> {
    let place = |e: PgWireError| match e {
        PgWireError::UserError(mut info) => {
            info.message = format!("parameter ${}: {}", index + 1, info.message);
            PgWireError::UserError(info)
        }
        other => other,
    };
    let Some(value) = value else {
        return ScalarValue::try_from(wanted)
            .map_err(|e| errors::error("22023", format!("parameter ${}: {e}", index + 1)));
    };
    let pg_type = match declared {
        Some(t) if *t != Type::UNKNOWN => t.clone(),
        _ => rows::type_of(wanted)?,
    };
    let read = if binary {
        from_binary(&pg_type, value)
    } else {
        from_text(&pg_type, value)
    }
    .map_err(place)?;
    // A number for a DECIMAL stays as it came: compared, it may have more digits than the type, and
    // the query layer reads it digit by digit.
    let is_number = matches!(read, ScalarValue::Utf8(_) | ScalarValue::Float64(_));
    if read.data_type() == *wanted || (wanted.is_decimal() && is_number) {
        return Ok(read);
    }
    shoal_query::fit(&read, wanted).map_err(|e| place(errors::error("22P02", e.message)))
}

fn invalid(pg_type: &Type) -> PgWireError {
    errors::error(
        "22P03",
        format!("incorrect binary data format for type {}", pg_type.name()),
    )
}

fn fixed<const N: usize>(pg_type: &Type, value: &[u8]) -> PgWireResult<[u8; N]> {
    value.try_into().map_err(|_| invalid(pg_type))
}

fn from_binary(pg_type: &Type, value: &[u8]) -> PgWireResult<ScalarValue> {
    Ok(match *pg_type {
        Type::BOOL => ScalarValue::Boolean(Some(fixed::<1>(pg_type, value)?[0] != 0)),
        Type::INT2 => ScalarValue::Int16(Some(i16::from_be_bytes(fixed(pg_type, value)?))),
        Type::INT4 | Type::OID => {
            ScalarValue::Int32(Some(i32::from_be_bytes(fixed(pg_type, value)?)))
        }
        Type::INT8 => ScalarValue::Int64(Some(i64::from_be_bytes(fixed(pg_type, value)?))),
        Type::FLOAT4 => ScalarValue::Float32(Some(f32::from_be_bytes(fixed(pg_type, value)?))),
        Type::FLOAT8 => ScalarValue::Float64(Some(f64::from_be_bytes(fixed(pg_type, value)?))),
        Type::BYTEA => ScalarValue::Binary(Some(value.to_vec())),
        Type::DATE => {
            let days = i32::from_be_bytes(fixed(pg_type, value)?);
            ScalarValue::Date32(Some(days.saturating_add(EPOCH_DAYS)))
        }
        Type::TIME => {
            ScalarValue::Time64Microsecond(Some(i64::from_be_bytes(fixed(pg_type, value)?)))
        }
        Type::TIMESTAMP | Type::TIMESTAMPTZ => {
            let micros = i64::from_be_bytes(fixed(pg_type, value)?);
            let zone = (*pg_type == Type::TIMESTAMPTZ).then(|| Arc::from("+00:00"));
            ScalarValue::TimestampMicrosecond(Some(micros.saturating_add(EPOCH_MICROS)), zone)
        }
        Type::INTERVAL => {
            let bytes: [u8; 16] = fixed(pg_type, value)?;
            let micros = i64::from_be_bytes(fixed(pg_type, &bytes[..8])?);
            let days = i32::from_be_bytes(fixed(pg_type, &bytes[8..12])?);
            let months = i32::from_be_bytes(fixed(pg_type, &bytes[12..])?);
            ScalarValue::new_interval_mdn(months, days, micros.saturating_mul(1_000))
        }
        Type::NUMERIC => ScalarValue::Utf8(Some(numeric_text(value)?)),
        Type::UUID => {
            let bytes: [u8; 16] = fixed(pg_type, value)?;
            ScalarValue::Utf8(Some(uuid::Uuid::from_bytes(bytes).to_string()))
        }
        Type::JSONB => ScalarValue::Utf8(Some(utf8(value.get(1..).unwrap_or_default())?)),
        _ => match element_type(pg_type) {
            Some(element) => array_from_binary(pg_type, &element, value)?,
            None => ScalarValue::Utf8(Some(utf8(value)?)),
        },
    })
}

fn utf8(value: &[u8]) -> PgWireResult<String> {
    let invalid = "invalid byte sequence for encoding \"UTF8\"";
    // PostgreSQL's texts hold no NUL; clients in C would read it as the text's end.
    if value.contains(&0) {
        return Err(errors::error("22021", format!("{invalid}: 0x00")));
    }
    std::str::from_utf8(value)
        .map(str::to_owned)
        .map_err(|_| errors::error("22021", invalid))
}

/// The counterpart of `rows::write_numeric`.
fn numeric_text(value: &[u8]) -> PgWireResult<String> {
    let words: Vec<i16> = value
        .chunks_exact(2)
        .map(|c| i16::from_be_bytes([c[0], c[1]]))
        .collect();
    let [count, weight, sign, scale, digits @ ..] = words.as_slice() else {
        return Err(invalid(&Type::NUMERIC));
    };
    if usize::try_from(*count).ok() != Some(digits.len())
        || digits.iter().any(|d| !(0..10_000).contains(d))
        || !(-40..=40).contains(weight)
        || !(0..=160).contains(scale)
    {
        return Err(invalid(&Type::NUMERIC));
    }
    let digit = |place: i32| {
        usize::try_from(i32::from(*weight) - place)
            .ok()
            .and_then(|i| digits.get(i))
            .copied()
            .unwrap_or(0)
    };
    let mut out = match *sign as u16 {
        0 => String::new(),
        0x4000 => "-".to_owned(),
        _ => return Ok("NaN".to_owned()),
    };
    let mut whole = String::from("0");
    for place in (0..=i32::from(*weight).max(0)).rev() {
        whole.push_str(&format!("{:04}", digit(place)));
    }
    let whole = whole.trim_start_matches('0');
    out.push_str(if whole.is_empty() { "0" } else { whole });
    if *scale > 0 {
        let mut fraction = String::new();
        let mut place = -1;
        while fraction.len() < *scale as usize {
            fraction.push_str(&format!("{:04}", digit(place)));
            place -= 1;
        }
        out.push('.');
        out.push_str(&fraction[..*scale as usize]);
    }
    Ok(out)
}

fn from_text(pg_type: &Type, value: &[u8]) -> PgWireResult<ScalarValue> {
    let text = utf8(value)?;
    if *pg_type == Type::BYTEA {
        return Ok(ScalarValue::Binary(Some(bytea(&text)?)));
    }
    if let Some(element) = element_type(pg_type) {
        return array_from_text(&element, &text);
    }
    // Arrow's cast knows neither PostgreSQL's short booleans nor blanks around numbers.
    let text = match *pg_type {
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON | Type::JSONB => text,
        _ => text.trim().to_owned(),
    };
    let text = match *pg_type {
        Type::TIMESTAMP => without_offset(&text).to_owned(),
        _ => text,
    };
    match arrow_type(pg_type) {
        Some(DataType::Utf8) | None => Ok(ScalarValue::Utf8(Some(text))),
        Some(read) => match read {
            DataType::Timestamp(..) => shoal_query::read_timestamp(&text, &read, None),
            _ => shoal_query::read_text(&text, &read, None),
        }
        .ok_or_else(|| {
            errors::error(
                "22P02",
                format!(
                    "invalid input syntax for type {}: \"{text}\"",
                    pg_type.name()
                ),
            )
        }),
    }
}

/// A timestamp without what follows its time: PostgreSQL reads a time zone given for a TIMESTAMP
/// and ignores it, and JDBC sends the machine's with every timestamp, leaving the choice to the
/// server.
fn without_offset(text: &str) -> &str {
    let Some(colon) = text.find(':') else {
        return text;
    };
    let is_time = |c: char| c.is_ascii_digit() || matches!(c, ':' | '.');
    match text[colon..].find(|c| !is_time(c)) {
        Some(end) => text[..colon + end].trim_end(),
        None => text,
    }
}

/// The bytes of a `bytea` literal, `\x…` or escaped.
pub(super) fn bytea(text: &str) -> PgWireResult<Vec<u8>> {
    shoal_query::bytea(text)
        .ok_or_else(|| errors::error("22P02", "invalid input syntax for type bytea"))
}

fn list(values: Vec<ScalarValue>, element: &Type) -> PgWireResult<ScalarValue> {
    let data_type = match values.first() {
        Some(first) => first.data_type(),
        None => arrow_type(element).unwrap_or(DataType::Utf8),
    };
    // Elements that came as NULL before the type was known take the first value's type.
    let values = values
        .into_iter()
        .map(|v| v.cast_to(&data_type))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| errors::error("22P02", shoal_query::QueryError::from(e).message))?;
    Ok(ScalarValue::List(ScalarValue::new_list_nullable(
        &values, &data_type,
    )))
}

fn null_of(element: &Type) -> PgWireResult<ScalarValue> {
    ScalarValue::try_from(&arrow_type(element).unwrap_or(DataType::Utf8))
        .map_err(|e| errors::error("22023", e.to_string()))
}

fn array_from_binary(pg_type: &Type, element: &Type, value: &[u8]) -> PgWireResult<ScalarValue> {
    let word = |at: usize| -> PgWireResult<i32> {
        let bytes = value.get(at..at + 4).ok_or_else(|| invalid(pg_type))?;
        Ok(i32::from_be_bytes(fixed(pg_type, bytes)?))
    };
    match word(0)? {
        0 => return list(Vec::new(), element),
        1 => {}
        _ => return Err(errors::unsupported("an array of more than one dimension")),
    }
    let count = usize::try_from(word(12)?).map_err(|_| invalid(pg_type))?;
    let mut at = 20;
    let mut values = Vec::new();
    for _ in 0..count {
        let len = word(at)?;
        at += 4;
        if len < 0 {
            values.push(null_of(element)?);
            continue;
        }
        let bytes = value
            .get(at..at + len as usize)
            .ok_or_else(|| invalid(pg_type))?;
        values.push(from_binary(element, bytes)?);
        at += len as usize;
    }
    list(values, element)
}

/// `{1,NULL,"a,b"}`
fn array_from_text(element: &Type, text: &str) -> PgWireResult<ScalarValue> {
    let bad = || errors::error("22P02", format!("malformed array literal: \"{text}\""));
    let inner = text
        .trim()
        .strip_prefix('{')
        .and_then(|t| t.strip_suffix('}'))
        .ok_or_else(bad)?;
    let mut values = Vec::new();
    let mut chars = inner.chars().peekable();
    while chars.peek().is_some() {
        let (mut item, mut was_quoted, mut in_quotes) = (String::new(), false, false);
        loop {
            match chars.next() {
                Some('\\') => item.push(chars.next().ok_or_else(bad)?),
                Some('"') => {
                    in_quotes = !in_quotes;
                    was_quoted = true;
                }
                Some('{') if !in_quotes => {
                    return Err(errors::unsupported("an array of more than one dimension"));
                }
                Some(',') if !in_quotes => break,
                None if in_quotes => return Err(bad()),
                None => break,
                Some(c) => item.push(c),
            }
        }
        if !was_quoted && item.trim().eq_ignore_ascii_case("null") {
            values.push(null_of(element)?);
        } else {
            let item = if was_quoted {
                item.as_str()
            } else {
                item.trim()
            };
            values.push(from_text(element, item.as_bytes())?);
        }
    }
    list(values, element)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &[u8], binary: bool, declared: Option<Type>, wanted: DataType) -> String {
        match decode(0, Some(value), binary, declared.as_ref(), &wanted) {
            Ok(v) => format!("{v:?}"),
            Err(PgWireError::UserError(info)) => format!("{} {}", info.code, info.message),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn values_are_read_as_the_client_wrote_them_and_cast_to_what_the_plan_wants() {
        use DataType::{Float64, Int64, Utf8};
        let ts = DataType::Timestamp(TimeUnit::Nanosecond, None);
        assert_eq!(
            read(&7_i16.to_be_bytes(), true, Some(Type::INT2), Float64),
            "Float64(7)"
        );
        assert_eq!(read(b" 42 ", false, None, Int64), "Int64(42)");
        assert_eq!(read(b" x ", false, None, Utf8), "Utf8(\" x \")");
        assert_eq!(
            read(
                b"2016-01-01 01:00:00+01",
                false,
                Some(Type::TIMESTAMPTZ),
                ts.clone()
            ),
            "TimestampNanosecond(1451606400000000000, None)"
        );
        assert_eq!(
            read(
                &(505_051_200_000_000_i64).to_be_bytes(),
                true,
                Some(Type::TIMESTAMPTZ),
                ts
            ),
            "TimestampNanosecond(1451736000000000000, None)"
        );
        assert!(read(b"abc", false, None, Int64).starts_with("22P02 parameter $1: "));
        assert!(read(b"12", true, Some(Type::INT4), Int64).starts_with("22P03 parameter $1: "));
    }

    #[test]
    fn a_time_zone_given_for_a_plain_timestamp_is_ignored() {
        let ts = DataType::Timestamp(TimeUnit::Millisecond, None);
        for text in [
            "2016-01-01 00:00:00+01",
            "2016-01-01T00:00:00.000Z",
            "2016-01-01 00:00:00 -08:30",
        ] {
            assert_eq!(
                read(text.as_bytes(), false, None, ts.clone()),
                "TimestampMillisecond(1451606400000, None)",
                "{text}"
            );
        }
        assert_eq!(without_offset("2016-01-01"), "2016-01-01");
    }

    #[test]
    fn digits_that_the_column_cannot_hold_are_kept_for_comparisons() {
        let ms = DataType::Timestamp(TimeUnit::Millisecond, None);
        let micros = (1_451_606_400_001_500_i64 - EPOCH_MICROS).to_be_bytes();
        for (value, binary, declared, wanted) in [
            (
                &b"2016-01-01 00:00:00.0015"[..],
                false,
                None,
                "TimestampMicrosecond(1451606400001500, None)",
            ),
            (
                &micros,
                true,
                Some(Type::TIMESTAMP),
                "TimestampMicrosecond(1451606400001500, None)",
            ),
            (
                b"2016-01-01 00:00:00.001",
                false,
                Some(Type::TIMESTAMP),
                "TimestampMillisecond(1451606400001, None)",
            ),
            (
                b"9999-12-31 23:59:59.999",
                false,
                None,
                "TimestampMillisecond(253402300799999, None)",
            ),
        ] {
            assert_eq!(read(value, binary, declared, ms.clone()), wanted);
        }
    }

    #[test]
    fn numerics_arrays_and_bytes_come_through_whole() {
        let words = |w: &[i16]| w.iter().flat_map(|v| v.to_be_bytes()).collect::<Vec<_>>();
        assert_eq!(
            numeric_text(&words(&[2, 0, 0x4000, 4, 123, 4500])).unwrap(),
            "-123.4500"
        );
        assert_eq!(numeric_text(&words(&[1, -1, 0, 4, 5])).unwrap(), "0.0005");
        assert_eq!(numeric_text(&words(&[1, 1, 0, 0, 12])).unwrap(), "120000");
        assert!(numeric_text(&words(&[9, 0, 0, 0, 1])).is_err());
        assert_eq!(bytea("\\x00ff").unwrap(), [0, 255]);
        assert_eq!(bytea("a\\\\\\101").unwrap(), b"a\\A");
        assert!(bytea("\\xf").is_err());
        let texts = array_from_text(&Type::TEXT, r#"{a,NULL,"b,\"c"}"#).unwrap();
        assert_eq!(texts.to_string(), "[a, , b,\"c]");
    }
}
