//! Arrow batches as PostgreSQL data rows, text and binary.
//!
//! The usual types are written here straight into the row's buffer: `arrow-pg` formats timestamps
//! with a fixed six digits, loses decimals beyond 96 bits and takes a NULL interval for zero. The
//! unusual ones (lists, structs, times, intervals) go through it.
//!
//! Wire types differ from Arrow's where PostgreSQL has none: unsigned 64-bit integers travel as
//! `int8` (an error beyond its range), nanosecond timestamps are cut to microseconds, which is all
//! that the protocol can carry.

use std::io::Write as _;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use bytes::{BufMut, BytesMut};
use datafusion_postgres::arrow_pg::{datatypes, encoder};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo};
use pgwire::error::PgWireResult;
use pgwire::messages::data::DataRow;
use shoal_query::Names;

use super::errors;
use crate::civil::civil;

/// Days from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400 * 1_000_000;

/// What `RowDescription` says of a result's columns.
///
/// # Errors
/// An Arrow type that PostgreSQL has no counterpart for.
pub fn fields(
    schema: &Schema,
    format: &Format,
    names: &Names,
) -> PgWireResult<Arc<Vec<FieldInfo>>> {
    let width = schema.fields().len();
    let fields = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| {
            let pg_type = wire_type(field)?;
            let size = type_size(&pg_type);
            let modifier = match field.data_type() {
                DataType::Decimal128(precision, scale) if *scale >= 0 => {
                    ((i32::from(*precision) << 16) | i32::from(*scale)) + 4
                }
                _ => -1,
            };
            let name = names.get(index, width).unwrap_or(field.name());
            Ok(FieldInfo::new(
                name.to_owned(),
                None,
                None,
                pg_type,
                format_of(format, index),
            )
            .with_type_size(size)
            .with_type_modifier(modifier))
        })
        .collect::<PgWireResult<Vec<_>>>()?;
    Ok(Arc::new(fields))
}

/// The format of one column. `Format::format_for` panics on a short list, which a client can send.
fn format_of(format: &Format, index: usize) -> FieldFormat {
    match format {
        Format::UnifiedText => FieldFormat::Text,
        Format::UnifiedBinary => FieldFormat::Binary,
        Format::Individual(codes) => FieldFormat::from(codes.get(index).copied().unwrap_or(0)),
    }
}

/// The PostgreSQL type that a column is sent as.
fn wire_type(field: &Arc<Field>) -> PgWireResult<Type> {
    match field.data_type() {
        DataType::Null => Ok(Type::TEXT),
        DataType::UInt64 => Ok(Type::INT8),
        _ => datatypes::field_into_pg_type(field),
    }
}

/// The PostgreSQL type of an Arrow type, for parameters.
///
/// # Errors
/// An Arrow type that PostgreSQL has no counterpart for.
pub fn type_of(data_type: &DataType) -> PgWireResult<Type> {
    wire_type(&Arc::new(Field::new("", data_type.clone(), true)))
}

/// `pg_type.typlen`.
fn type_size(pg_type: &Type) -> i16 {
    match *pg_type {
        Type::BOOL | Type::CHAR => 1,
        Type::INT2 => 2,
        Type::INT4 | Type::FLOAT4 | Type::DATE | Type::OID | Type::REGCLASS | Type::REGTYPE => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::TIME => 8,
        Type::INTERVAL => 16,
        _ => -1,
    }
}

/// Appends the rows of a batch to `out`, `from` up to `to`.
///
/// # Errors
/// A value that the wire type cannot hold.
pub fn encode(
    batch: &RecordBatch,
    fields: &Arc<Vec<FieldInfo>>,
    from: usize,
    to: usize,
    out: &mut Vec<DataRow>,
) -> PgWireResult<()> {
    let columns = batch
        .columns()
        .iter()
        .zip(batch.schema_ref().fields())
        .zip(fields.iter())
        .map(|((array, field), info)| Column::new(array, field, info))
        .collect::<Vec<_>>();
    let count = i16::try_from(columns.len()).map_err(|_| {
        errors::error(
            "54011",
            "a result has at most 32767 columns over the PostgreSQL protocol",
        )
    })?;
    let mut buffer = BytesMut::with_capacity(64 * columns.len());
    for row in from..to {
        for column in &columns {
            column.write(row, &mut buffer)?;
        }
        out.push(DataRow::new(buffer.split(), count));
    }
    Ok(())
}

struct Column<'a> {
    array: &'a ArrayRef,
    field: &'a Arc<Field>,
    info: &'a FieldInfo,
    binary: bool,
}

impl<'a> Column<'a> {
    fn new(array: &'a ArrayRef, field: &'a Arc<Field>, info: &'a FieldInfo) -> Self {
        Self {
            array,
            field,
            info,
            binary: info.format() == FieldFormat::Binary,
        }
    }

    fn write(&self, row: usize, out: &mut BytesMut) -> PgWireResult<()> {
        if self.array.is_null(row) || *self.array.data_type() == DataType::Null {
            out.put_i32(-1);
            return Ok(());
        }
        let start = out.len();
        out.put_i32(0);
        if !self.write_plain(row, out)? {
            out.truncate(start);
            return self.write_with_arrow_pg(row, out);
        }
        let len = i32::try_from(out.len() - start - 4).map_err(|_| {
            errors::error(
                "54000",
                "a value is larger than the PostgreSQL protocol carries (2 GiB)",
            )
        })?;
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
        Ok(())
    }

    /// Writes a value of a usual type; `false`: not one of them, nothing written.
    fn write_plain(&self, row: usize, out: &mut BytesMut) -> PgWireResult<bool> {
        // Columns of pg_catalog that stand for oids or "char" have wire types of their own.
        if !self.field.metadata().is_empty()
            && (self
                .field
                .metadata()
                .contains_key(datatypes::PG_OID_ALIAS_KEY)
                || datatypes::is_pg_char_field(self.field))
        {
            return Ok(false);
        }
        let array = self.array.as_ref();
        match array.data_type() {
            DataType::Boolean => {
                let value = array.as_boolean().value(row);
                match (self.binary, value) {
                    (true, _) => out.put_u8(value.into()),
                    (false, true) => out.put_u8(b't'),
                    (false, false) => out.put_u8(b'f'),
                }
            }
            DataType::Int8 => self.integer(array.as_primitive::<Int8Type>().value(row).into(), out),
            DataType::Int16 => {
                self.integer(array.as_primitive::<Int16Type>().value(row).into(), out);
            }
            DataType::Int32 => {
                self.integer(array.as_primitive::<Int32Type>().value(row).into(), out);
            }
            DataType::Int64 => self.integer(array.as_primitive::<Int64Type>().value(row), out),
            DataType::UInt8 => {
                self.integer(array.as_primitive::<UInt8Type>().value(row).into(), out);
            }
            DataType::UInt16 => {
                self.integer(array.as_primitive::<UInt16Type>().value(row).into(), out);
            }
            DataType::UInt32 => {
                self.integer(array.as_primitive::<UInt32Type>().value(row).into(), out);
            }
            DataType::UInt64 => {
                let value = array.as_primitive::<UInt64Type>().value(row);
                let value = i64::try_from(value).map_err(|_| {
                    errors::error("22003", format!("{value} is out of range for type bigint"))
                })?;
                self.integer(value, out);
            }
            DataType::Float32 => {
                let value = array.as_primitive::<Float32Type>().value(row);
                if self.binary {
                    out.put_f32(value);
                } else {
                    write_float(&format!("{value:e}"), f64::from(value), 6, out);
                }
            }
            DataType::Float64 => {
                let value = array.as_primitive::<Float64Type>().value(row);
                if self.binary {
                    out.put_f64(value);
                } else {
                    write_float(&format!("{value:e}"), value, 15, out);
                }
            }
            DataType::Decimal128(_, scale) => {
                let value = array.as_primitive::<Decimal128Type>().value(row);
                if self.binary {
                    write_numeric(value, *scale, out);
                } else {
                    let _ = write!(out.writer(), "{}", decimal_text(value, *scale));
                }
            }
            DataType::Utf8 => out.put_slice(array.as_string::<i32>().value(row).as_bytes()),
            DataType::LargeUtf8 => out.put_slice(array.as_string::<i64>().value(row).as_bytes()),
            DataType::Utf8View => out.put_slice(array.as_string_view().value(row).as_bytes()),
            DataType::Binary => self.bytes(array.as_binary::<i32>().value(row), out),
            DataType::LargeBinary => self.bytes(array.as_binary::<i64>().value(row), out),
            DataType::BinaryView => self.bytes(array.as_binary_view().value(row), out),
            DataType::Date32 => {
                let days = array.as_primitive::<Date32Type>().value(row);
                if self.binary {
                    out.put_i32(days.saturating_sub(EPOCH_DAYS));
                } else {
                    write_date(i64::from(days), out);
                }
            }
            DataType::Timestamp(unit, zone) => {
                let micros = micros(array, *unit, row)?;
                if self.binary {
                    out.put_i64(micros.saturating_sub(EPOCH_MICROS));
                } else {
                    write_timestamp(micros, zone.is_some(), out);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn integer(&self, value: i64, out: &mut BytesMut) {
        if !self.binary {
            let _ = write!(out.writer(), "{value}");
            return;
        }
        // The wire type was chosen wide enough for every value of the Arrow type.
        match *self.info.datatype() {
            Type::INT2 => out.put_i16(value as i16),
            Type::INT4 => out.put_i32(value as i32),
            _ => out.put_i64(value),
        }
    }

    fn bytes(&self, value: &[u8], out: &mut BytesMut) {
        if self.binary {
            out.put_slice(value);
            return;
        }
        out.put_slice(b"\\x");
        for byte in value {
            let _ = write!(out.writer(), "{byte:02x}");
        }
    }

    fn write_with_arrow_pg(&self, row: usize, out: &mut BytesMut) -> PgWireResult<()> {
        let mut one = DataRowEncoder::new(Arc::new(vec![self.info.clone()]));
        encoder::encode_value(&mut one, self.array, row, self.field, self.info)?;
        out.put_slice(&one.take_row().data);
        Ok(())
    }
}

/// Microseconds since 1970 of a timestamp.
fn micros(array: &dyn Array, unit: TimeUnit, row: usize) -> PgWireResult<i64> {
    use arrow_array::types::{
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType,
    };
    let micros = match unit {
        TimeUnit::Second => array
            .as_primitive::<TimestampSecondType>()
            .value(row)
            .checked_mul(1_000_000),
        TimeUnit::Millisecond => array
            .as_primitive::<TimestampMillisecondType>()
            .value(row)
            .checked_mul(1_000),
        TimeUnit::Microsecond => Some(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        TimeUnit::Nanosecond => Some(
            array
                .as_primitive::<TimestampNanosecondType>()
                .value(row)
                .div_euclid(1_000),
        ),
    };
    micros.ok_or_else(|| errors::error("22008", "timestamp out of range"))
}

fn write_date(days: i64, out: &mut BytesMut) {
    let (year, month, day) = civil(days);
    let mut writer = out.writer();
    // PostgreSQL has no year 0: 1 BC comes before 1 AD.
    if year > 0 {
        let _ = write!(writer, "{year:04}-{month:02}-{day:02}");
    } else {
        let _ = write!(writer, "{:04}-{month:02}-{day:02} BC", 1 - year);
    }
}

fn write_timestamp(micros: i64, utc: bool, out: &mut BytesMut) {
    const DAY: i64 = 86_400_000_000;
    let (days, rest) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
    let mut writer = out.writer();
    let shown = if year > 0 { year } else { 1 - year };
    let _ = write!(
        writer,
        "{shown:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    );
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        let _ = write!(writer, ".{}", digits.trim_end_matches('0'));
    }
    if utc {
        let _ = writer.write_all(b"+00");
    }
    if year <= 0 {
        let _ = writer.write_all(b" BC");
    }
}

/// A float as PostgreSQL prints it: shortest digits that read back to the same value, exponent
/// form below 1e-4 and from `10^digits_max` on. `scientific` is Rust's `{:e}` form of the value.
fn write_float(scientific: &str, value: f64, digits_max: i32, out: &mut BytesMut) {
    if value.is_nan() {
        out.put_slice(b"NaN");
        return;
    }
    if value.is_infinite() {
        out.put_slice(if value > 0.0 {
            b"Infinity"
        } else {
            b"-Infinity"
        });
        return;
    }
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    let mut writer = out.writer();
    let _ = writer.write_all(sign.as_bytes());
    if exponent < -4 || exponent >= digits_max {
        let direction = if exponent < 0 { '-' } else { '+' };
        let _ = write!(writer, "{mantissa}e{direction}{:02}", exponent.abs());
    } else if exponent < 0 {
        let zeros = "0".repeat((-exponent - 1) as usize);
        let _ = write!(writer, "0.{zeros}{digits}");
    } else {
        let whole = exponent as usize + 1;
        if digits.len() <= whole {
            let _ = write!(writer, "{digits}{}", "0".repeat(whole - digits.len()));
        } else {
            let _ = write!(writer, "{}.{}", &digits[..whole], &digits[whole..]);
        }
    }
}

/// A decimal in plain digits.
pub(crate) fn decimal_text(value: i128, scale: i8) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let digits = value.unsigned_abs().to_string();
    if scale <= 0 {
        let zeros = if value == 0 {
            0
        } else {
            usize::from(scale.unsigned_abs())
        };
        return format!("{sign}{digits}{}", "0".repeat(zeros));
    }
    let scale = scale as usize;
    let padded = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = padded.split_at(padded.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

/// The binary form of `numeric`: base-10000 digits, weight of the first, sign, digits shown after
/// the point (PostgreSQL source, `numeric_send`).
fn write_numeric(value: i128, scale: i8, out: &mut BytesMut) {
    let text = decimal_text(value, scale);
    let unsigned = text.trim_start_matches('-');
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let whole_padded = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
    let fraction_padded = format!("{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
    let mut digits = Vec::with_capacity(16);
    for group in whole_padded
        .as_bytes()
        .chunks(4)
        .chain(fraction_padded.as_bytes().chunks(4))
    {
        digits.push(
            group
                .iter()
                .fold(0_i16, |n, c| n * 10 + i16::from(c - b'0')),
        );
    }
    let mut weight = (whole_padded.len() / 4) as i16 - 1;
    let leading = digits.iter().take_while(|d| **d == 0).count();
    digits.drain(..leading);
    weight -= leading as i16;
    while digits.last() == Some(&0) {
        digits.pop();
    }
    if digits.is_empty() {
        weight = 0;
    }
    out.put_i16(digits.len() as i16);
    out.put_i16(weight);
    out.put_u16(if value < 0 { 0x4000 } else { 0 });
    out.put_i16(fraction.len() as i16);
    for digit in digits {
        out.put_i16(digit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Decimal128Array, Float32Array, Float64Array, TimestampNanosecondArray};

    fn text(array: ArrayRef) -> Vec<String> {
        let schema = Schema::new(vec![Field::new("c", array.data_type().clone(), true)]);
        let batch = RecordBatch::try_new(Arc::new(schema), vec![array]).unwrap();
        let fields = fields(batch.schema_ref(), &Format::UnifiedText, &Names::default()).unwrap();
        let mut rows = Vec::new();
        encode(&batch, &fields, 0, batch.num_rows(), &mut rows).unwrap();
        rows.iter()
            .map(|r| {
                if r.data[..4] == [255; 4] {
                    "NULL".into()
                } else {
                    String::from_utf8(r.data[4..].to_vec()).unwrap()
                }
            })
            .collect()
    }

    #[test]
    fn floats_read_as_postgresql_prints_them() {
        let values = vec![
            Some(0.1),
            Some(1.0),
            Some(-12.5),
            Some(1e14),
            Some(1e15),
            Some(1.5e-5),
            Some(0.0001),
            Some(f64::NAN),
            Some(f64::NEG_INFINITY),
            Some(0.0),
            None,
        ];
        assert_eq!(
            text(Arc::new(Float64Array::from(values))),
            [
                "0.1",
                "1",
                "-12.5",
                "100000000000000",
                "1e+15",
                "1.5e-05",
                "0.0001",
                "NaN",
                "-Infinity",
                "0",
                "NULL"
            ]
        );
        assert_eq!(
            text(Arc::new(Float32Array::from(vec![0.1_f32, 999_999.0, 1e6]))),
            ["0.1", "999999", "1e+06"]
        );
    }

    #[test]
    fn timestamps_show_no_more_digits_than_they_have_and_round_down() {
        let array = TimestampNanosecondArray::from(vec![
            1_451_606_400_000_000_000,
            1_451_606_400_100_000_000,
            -1,
            1_709_208_000_000_001_999,
        ]);
        assert_eq!(
            text(Arc::new(array.clone())),
            [
                "2016-01-01 00:00:00",
                "2016-01-01 00:00:00.1",
                "1969-12-31 23:59:59.999999",
                "2024-02-29 12:00:00.000001"
            ]
        );
        assert_eq!(
            text(Arc::new(array.with_timezone("+00:00")))[1],
            "2016-01-01 00:00:00.1+00"
        );
    }

    #[test]
    fn decimals_keep_all_38_digits_in_both_formats() {
        let max = 99_999_999_999_999_999_999_999_999_999_999_999_999_i128;
        let array = Decimal128Array::from(vec![max, -1_234_500, 5, 0])
            .with_precision_and_scale(38, 4)
            .unwrap();
        assert_eq!(
            text(Arc::new(array)),
            [
                "9999999999999999999999999999999999.9999",
                "-123.4500",
                "0.0005",
                "0.0000"
            ]
        );
        let numeric = |value, scale| {
            let mut out = BytesMut::new();
            write_numeric(value, scale, &mut out);
            out.chunks(2)
                .map(|c| i16::from_be_bytes([c[0], c[1]]))
                .collect::<Vec<_>>()
        };
        assert_eq!(numeric(-1_234_500, 4), [2, 0, 0x4000, 4, 123, 4500]);
        assert_eq!(numeric(5, 4), [1, -1, 0, 4, 5]);
        assert_eq!(numeric(120_000, 0), [1, 1, 0, 0, 12]);
    }
}
