//! Values from outside (bounds of partitions, constants of a query) in the encoding of keys.

use shoal_types::{ColumnType, TimePrecision};

use crate::key::{KeyValue, Plain, encode_null, encode_plain};

/// Above every marker that a column's encoding begins with, so that this after some columns is
/// above all keys that begin with them.
pub(crate) const ABOVE_ALL: u8 = 0xFF;

/// One column of a bound.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyBound {
    /// Below all values, NULL too.
    MinValue,
    /// A value.
    Value(KeyValue),
    /// Above all values.
    MaxValue,
}

/// Values that columns cannot have. Columns are counted from 0.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ValueError {
    /// One value a column.
    #[error("{found} values for {columns} columns")]
    Count {
        /// Number of columns.
        columns: usize,
        /// Number of values.
        found: usize,
    },
    /// A value of another kind.
    #[error("{value} is no value of type {column_type}")]
    WrongType {
        /// The column.
        column: usize,
        /// Its type.
        column_type: ColumnType,
        /// The value.
        value: KeyValue,
    },
    /// Smaller or larger than the type can hold.
    #[error("{value} is out of range for type {column_type}")]
    OutOfRange {
        /// The column.
        column: usize,
        /// Its type.
        column_type: ColumnType,
        /// The value.
        value: KeyValue,
    },
    /// More digits after the point than the type has.
    #[error("{value} has more digits after the point than type {column_type}")]
    Inexact {
        /// The column.
        column: usize,
        /// Its type.
        column_type: ColumnType,
        /// The value.
        value: KeyValue,
    },
}

/// Encodes one value for each type: what [`decode_key`](crate::decode_key) reads back.
///
/// Numbers and timestamps may be of another width or scale than the column, if nothing is lost;
/// only to `REAL` are they rounded.
///
/// # Errors
/// [`ValueError`] for the first value that the column cannot have.
pub fn encode_key_values(types: &[ColumnType], values: &[KeyValue]) -> Result<Vec<u8>, ValueError> {
    check_count(types.len(), values.len())?;
    let mut key = Vec::new();
    for (column, value) in values.iter().enumerate() {
        encode_value(types, column, value, &mut key)?;
    }
    Ok(key)
}

/// Encodes the end of a key range (`VALUES LESS THAN`), or its beginning. What follows a
/// `MINVALUE` or `MAXVALUE` does not count. `None`: above all keys, there is no end.
///
/// # Errors
/// As [`encode_key_values`].
pub fn encode_bound(
    types: &[ColumnType],
    bound: &[KeyBound],
) -> Result<Option<Vec<u8>>, ValueError> {
    check_count(types.len(), bound.len())?;
    let mut key = Vec::new();
    for (column, value) in bound.iter().enumerate() {
        match value {
            KeyBound::Value(value) => encode_value(types, column, value, &mut key)?,
            KeyBound::MinValue => break,
            KeyBound::MaxValue if column == 0 => return Ok(None),
            KeyBound::MaxValue => {
                key.push(ABOVE_ALL);
                break;
            }
        }
    }
    Ok(Some(key))
}

fn check_count(columns: usize, found: usize) -> Result<(), ValueError> {
    if columns == found {
        return Ok(());
    }
    Err(ValueError::Count { columns, found })
}

/// Why a number cannot be had in another scale.
enum Unfit {
    OutOfRange,
    Inexact,
}

fn encode_value(
    types: &[ColumnType],
    column: usize,
    value: &KeyValue,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let column_type = types[column];
    let plain = match (value, column_type) {
        (KeyValue::Null, _) => {
            encode_null(out);
            return Ok(());
        }
        (KeyValue::Boolean(v), ColumnType::Boolean) => Ok(Plain::Boolean(*v)),
        (KeyValue::Int(v), ColumnType::Float32) => Ok(Plain::Float32(*v as f32)),
        (KeyValue::Int(v), ColumnType::Float64) => exact_double(*v),
        (KeyValue::Int(v), _) if is_exact_number(column_type) => {
            exact(i128::from(*v), 0, column_type)
        }
        (KeyValue::Decimal(v, scale), _) if is_exact_number(column_type) => {
            exact(*v, i32::from(*scale), column_type)
        }
        (KeyValue::Float(v), ColumnType::Float32) => Ok(Plain::Float32(*v as f32)),
        (KeyValue::Float(v), ColumnType::Float64) => Ok(Plain::Float64(*v)),
        (KeyValue::Text(v), ColumnType::Text) => Ok(Plain::Bytes(v.as_bytes())),
        (KeyValue::Binary(v), ColumnType::Binary) => Ok(Plain::Bytes(v)),
        (KeyValue::Date(v), ColumnType::Date) => Ok(Plain::Int32(*v)),
        (KeyValue::Timestamp(v, from), ColumnType::Timestamp { precision, .. }) => {
            timestamp(*v, *from, precision)
        }
        _ => {
            return Err(ValueError::WrongType {
                column,
                column_type,
                value: value.clone(),
            });
        }
    };
    let value = || value.clone();
    let plain = plain.map_err(|unfit| match unfit {
        Unfit::OutOfRange => ValueError::OutOfRange {
            column,
            column_type,
            value: value(),
        },
        Unfit::Inexact => ValueError::Inexact {
            column,
            column_type,
            value: value(),
        },
    })?;
    encode_plain(&plain, out);
    Ok(())
}

fn is_exact_number(column_type: ColumnType) -> bool {
    matches!(
        column_type,
        ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 | ColumnType::Decimal { .. }
    )
}

fn exact_double<'a>(value: i64) -> Result<Plain<'a>, Unfit> {
    let double = value as f64;
    match double as i128 == i128::from(value) {
        true => Ok(Plain::Float64(double)),
        false => Err(Unfit::Inexact),
    }
}

/// A number of `scale` digits after the point as a value of an integer or decimal column.
fn exact<'a>(value: i128, scale: i32, column_type: ColumnType) -> Result<Plain<'a>, Unfit> {
    let to = match column_type {
        ColumnType::Decimal { scale, .. } => i32::from(scale),
        _ => 0,
    };
    let value = rescaled(value, to - scale)?;
    let fits = |_| Unfit::OutOfRange;
    Ok(match column_type {
        ColumnType::Int16 => Plain::Int16(i16::try_from(value).map_err(fits)?),
        ColumnType::Int32 => Plain::Int32(i32::try_from(value).map_err(fits)?),
        ColumnType::Decimal { precision, .. } => {
            // 10^39 and more are above every i128.
            let limit = 10_u128.checked_pow(u32::from(precision));
            if limit.is_some_and(|limit| value.unsigned_abs() >= limit) {
                return Err(Unfit::OutOfRange);
            }
            Plain::Int128(value)
        }
        _ => Plain::Int64(i64::try_from(value).map_err(fits)?),
    })
}

/// `value` times 10 to the `digits`.
fn rescaled(value: i128, digits: i32) -> Result<i128, Unfit> {
    if value == 0 {
        return Ok(0);
    }
    let factor = 10_i128.checked_pow(digits.unsigned_abs());
    match factor {
        Some(factor) if digits >= 0 => value.checked_mul(factor).ok_or(Unfit::OutOfRange),
        Some(factor) if value % factor == 0 => Ok(value / factor),
        None if digits >= 0 => Err(Unfit::OutOfRange),
        _ => Err(Unfit::Inexact),
    }
}

fn timestamp<'a>(value: i64, from: TimePrecision, to: TimePrecision) -> Result<Plain<'a>, Unfit> {
    let digits = i32::from(to.digits()) - i32::from(from.digits());
    let value = rescaled(i128::from(value), digits)?;
    i64::try_from(value)
        .map(Plain::Int64)
        .map_err(|_| Unfit::OutOfRange)
}
