//! Values of Arrow arrays as JSON and CSV text.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time32SecondType,
    Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::timestamps::{push_date, push_time, push_timestamp};

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// NULL and NaN are `null`, texts are quoted and escaped.
    Json,
    /// NULL is nothing, texts are quoted where CSV (RFC 4180) needs it or where they are empty,
    /// so that an empty text differs from NULL.
    Csv,
}

type CellWriter<'a> = Box<dyn Fn(&mut Vec<u8>, usize) + 'a>;

/// Appends the rows of a batch as JSON arrays, comma-separated: `[1,"a"],[2,null]`.
///
/// # Errors
/// A column of a type that cannot be shown.
pub fn push_json_rows(out: &mut Vec<u8>, batch: &RecordBatch) -> Result<(), ArrowError> {
    let cells = writers(batch, Style::Json)?;
    for row in 0..batch.num_rows() {
        out.extend_from_slice(if row == 0 { b"[" } else { b",[" });
        for (i, cell) in cells.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            cell(out, row);
        }
        out.push(b']');
    }
    Ok(())
}

/// Appends the rows of a batch as CSV lines.
///
/// # Errors
/// A column of a type that cannot be shown.
pub fn push_csv_rows(out: &mut Vec<u8>, batch: &RecordBatch) -> Result<(), ArrowError> {
    let cells = writers(batch, Style::Csv)?;
    for row in 0..batch.num_rows() {
        for (i, cell) in cells.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            cell(out, row);
        }
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}

/// Appends a CSV field, quoted if it must be.
pub fn push_csv_text(out: &mut Vec<u8>, text: &str) {
    let plain = !text.is_empty()
        && !text
            .bytes()
            .any(|b| matches!(b, b'"' | b',' | b'\n' | b'\r'));
    if plain {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn writers(batch: &RecordBatch, style: Style) -> Result<Vec<CellWriter<'_>>, ArrowError> {
    batch.columns().iter().map(|c| writer(c, style)).collect()
}

/// Serde's writers are the quickest at hand for numbers and JSON texts; a `Vec` takes everything.
fn push_serde<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok());
}

fn push_text(out: &mut Vec<u8>, text: &str, style: Style) {
    match style {
        Style::Json => push_serde(out, text),
        Style::Csv => push_csv_text(out, text),
    }
}

/// A text of ours (date, number) that needs no escaping.
fn push_quoted(out: &mut Vec<u8>, style: Style, push: impl Fn(&mut Vec<u8>)) {
    if style == Style::Json {
        out.push(b'"');
    }
    push(out);
    if style == Style::Json {
        out.push(b'"');
    }
}

fn number<T>(array: &ArrayRef) -> CellWriter<'_>
where
    T: ArrowPrimitiveType,
    T::Native: Serialize,
{
    let array = array.as_primitive::<T>();
    Box::new(move |out, row| push_serde(out, &array.value(row)))
}

fn quoted<'a, T: ArrowPrimitiveType>(
    array: &'a ArrayRef,
    style: Style,
    push: impl Fn(&mut Vec<u8>, T::Native) + 'a,
) -> CellWriter<'a> {
    let array = array.as_primitive::<T>();
    Box::new(move |out, row| push_quoted(out, style, |out| push(out, array.value(row))))
}

fn binary<'a>(style: Style, value: impl Fn(usize) -> &'a [u8] + 'a) -> CellWriter<'a> {
    Box::new(move |out, row| {
        push_text(out, &STANDARD.encode(value(row)), style);
    })
}

/// A writer of a column's values; NULLs are handled here for all types.
fn writer(array: &ArrayRef, style: Style) -> Result<CellWriter<'_>, ArrowError> {
    let value = value_writer(array, style)?;
    let null: &'static [u8] = if style == Style::Json { b"null" } else { b"" };
    if array.data_type() == &DataType::Null {
        return Ok(Box::new(move |out, _| out.extend_from_slice(null)));
    }
    let Some(nulls) = array.nulls() else {
        return Ok(value);
    };
    Ok(Box::new(move |out, row| {
        if nulls.is_null(row) {
            out.extend_from_slice(null);
        } else {
            value(out, row);
        }
    }))
}

fn value_writer(array: &ArrayRef, style: Style) -> Result<CellWriter<'_>, ArrowError> {
    Ok(match array.data_type() {
        DataType::Null => Box::new(|_, _| {}),
        DataType::Boolean => {
            let array = array.as_boolean();
            Box::new(move |out, row| {
                out.extend_from_slice(if array.value(row) { b"true" } else { b"false" });
            })
        }
        DataType::Int8 => number::<Int8Type>(array),
        DataType::Int16 => number::<Int16Type>(array),
        DataType::Int32 => number::<Int32Type>(array),
        DataType::Int64 => number::<Int64Type>(array),
        DataType::UInt8 => number::<UInt8Type>(array),
        DataType::UInt16 => number::<UInt16Type>(array),
        DataType::UInt32 => number::<UInt32Type>(array),
        // Its type is said to be DECIMAL(20, 0): it may be beyond BIGINT.
        DataType::UInt64 => {
            let array = array.as_primitive::<UInt64Type>();
            Box::new(move |out, row| {
                push_quoted(out, style, |out| {
                    out.extend_from_slice(array.value(row).to_string().as_bytes());
                });
            })
        }
        DataType::Float32 => {
            let array = array.as_primitive::<Float32Type>();
            Box::new(move |out, row| push_float(out, style, array.value(row), |v| v.is_finite()))
        }
        DataType::Float64 => {
            let array = array.as_primitive::<Float64Type>();
            Box::new(move |out, row| push_float(out, style, array.value(row), |v| v.is_finite()))
        }
        DataType::Decimal128(_, _) => {
            let array = array.as_primitive::<Decimal128Type>();
            Box::new(move |out, row| {
                push_quoted(out, style, |out| {
                    out.extend_from_slice(array.value_as_string(row).as_bytes());
                });
            })
        }
        DataType::Utf8 => {
            let array = array.as_string::<i32>();
            Box::new(move |out, row| push_text(out, array.value(row), style))
        }
        DataType::LargeUtf8 => {
            let array = array.as_string::<i64>();
            Box::new(move |out, row| push_text(out, array.value(row), style))
        }
        DataType::Utf8View => {
            let array = array.as_string_view();
            Box::new(move |out, row| push_text(out, array.value(row), style))
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            binary(style, move |row| array.value(row))
        }
        DataType::LargeBinary => {
            let array = array.as_binary::<i64>();
            binary(style, move |row| array.value(row))
        }
        DataType::BinaryView => {
            let array = array.as_binary_view();
            binary(style, move |row| array.value(row))
        }
        DataType::FixedSizeBinary(_) => {
            let array = array.as_fixed_size_binary();
            binary(style, move |row| array.value(row))
        }
        DataType::Date32 => {
            quoted::<Date32Type>(array, style, |out, v| push_date(out, i64::from(v)))
        }
        DataType::Date64 => quoted::<Date64Type>(array, style, |out, v| {
            push_date(out, v.div_euclid(86_400_000))
        }),
        DataType::Timestamp(unit, _) => match unit {
            TimeUnit::Second => quoted::<TimestampSecondType>(array, style, |out, v| {
                push_timestamp(out, v, 1);
            }),
            TimeUnit::Millisecond => quoted::<TimestampMillisecondType>(array, style, |out, v| {
                push_timestamp(out, v, 1000);
            }),
            TimeUnit::Microsecond => quoted::<TimestampMicrosecondType>(array, style, |out, v| {
                push_timestamp(out, v, 1_000_000);
            }),
            TimeUnit::Nanosecond => quoted::<TimestampNanosecondType>(array, style, |out, v| {
                push_timestamp(out, v, 1_000_000_000);
            }),
        },
        DataType::Time32(TimeUnit::Second) => {
            quoted::<Time32SecondType>(array, style, |out, v| push_time(out, i64::from(v), 0, 1))
        }
        DataType::Time32(_) => quoted::<Time32MillisecondType>(array, style, |out, v| {
            push_time(out, i64::from(v) / 1000, i64::from(v) % 1000, 1000);
        }),
        DataType::Time64(TimeUnit::Microsecond) => {
            quoted::<Time64MicrosecondType>(array, style, |out, v| {
                push_time(out, v / 1_000_000, v % 1_000_000, 1_000_000);
            })
        }
        DataType::Time64(_) => quoted::<Time64NanosecondType>(array, style, |out, v| {
            push_time(out, v / 1_000_000_000, v % 1_000_000_000, 1_000_000_000);
        }),
        DataType::List(_) if style == Style::Json => {
            let array = array.as_list::<i32>();
            let items = writer(array.values(), style)?;
            let offsets = array.value_offsets();
            Box::new(move |out, row| {
                push_list(
                    out,
                    offsets[row] as usize..offsets[row + 1] as usize,
                    &items,
                );
            })
        }
        DataType::Struct(fields) if style == Style::Json => {
            let array = array.as_struct();
            let members = fields
                .iter()
                .zip(array.columns())
                .map(|(field, column)| Ok((field.name().as_str(), writer(column, style)?)))
                .collect::<Result<Vec<_>, ArrowError>>()?;
            Box::new(move |out, row| {
                out.push(b'{');
                for (i, (name, member)) in members.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    push_serde(out, *name);
                    out.push(b':');
                    member(out, row);
                }
                out.push(b'}');
            })
        }
        // Dictionaries, intervals, durations, maps: as Arrow shows them, as text.
        _ => {
            static OPTIONS: FormatOptions<'static> = FormatOptions::new().with_display_error(true);
            let formatter = ArrayFormatter::try_new(array.as_ref(), &OPTIONS)?;
            Box::new(move |out, row| push_text(out, &formatter.value(row).to_string(), style))
        }
    })
}

fn push_list(out: &mut Vec<u8>, range: std::ops::Range<usize>, items: &CellWriter<'_>) {
    out.push(b'[');
    let first = range.start;
    for item in range {
        if item > first {
            out.push(b',');
        }
        items(out, item);
    }
    out.push(b']');
}

/// JSON has no word for NaN and the infinities: `null`. CSV says NaN, inf, -inf.
fn push_float<T: Copy + Serialize + std::fmt::Display>(
    out: &mut Vec<u8>,
    style: Style,
    value: T,
    finite: impl Fn(T) -> bool,
) {
    if finite(value) {
        push_serde(out, &value);
    } else if style == Style::Json {
        out.extend_from_slice(b"null");
    } else {
        out.extend_from_slice(value.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        BinaryArray, Decimal128Array, Float64Array, Int64Array, StringViewArray,
        TimestampMillisecondArray,
    };

    use super::*;

    fn batch() -> RecordBatch {
        let decimal = Decimal128Array::from(vec![Some(-12_345), None, Some(1)])
            .with_precision_and_scale(38, 3)
            .expect("decimal");
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("i", Arc::new(Int64Array::from(vec![i64::MAX, i64::MIN, 0]))),
            (
                "f",
                Arc::new(Float64Array::from(vec![f64::NAN, 0.1, f64::INFINITY])),
            ),
            (
                "t",
                Arc::new(StringViewArray::from(vec![Some("a\"b,\n"), Some(""), None])),
            ),
            ("d", Arc::new(decimal)),
            (
                "b",
                Arc::new(BinaryArray::from(vec![&b"\xff\x00"[..], b"", b"x"])),
            ),
            (
                "ts",
                Arc::new(TimestampMillisecondArray::from(vec![
                    Some(1),
                    None,
                    Some(-1),
                ])),
            ),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true)))
            .expect("batch")
    }

    #[test]
    fn json_keeps_large_integers_decimals_and_bytes_exactly() {
        let mut out = Vec::new();
        push_json_rows(&mut out, &batch()).expect("json");
        assert_eq!(
            String::from_utf8(out).expect("utf-8"),
            concat!(
                r#"[9223372036854775807,null,"a\"b,\n","-12.345","/wA=","1970-01-01T00:00:00.001Z"],"#,
                r#"[-9223372036854775808,0.1,"",null,"",null],"#,
                r#"[0,null,null,"0.001","eA==","1969-12-31T23:59:59.999Z"]"#
            )
        );
    }

    #[test]
    fn csv_tells_an_empty_text_from_null() {
        let mut out = Vec::new();
        push_csv_rows(&mut out, &batch()).expect("csv");
        let text = String::from_utf8(out).expect("utf-8");
        assert!(
            text.starts_with("9223372036854775807,NaN,\"a\"\"b,\n\",-12.345,/wA=,1970"),
            "{text}"
        );
        assert!(
            text.contains("\r\n-9223372036854775808,0.1,\"\",,\"\",\r\n"),
            "{text}"
        );
    }
}
