//! Order-preserving ("memcomparable") encoding of keys: comparing encoded bytes compares keys
//! column by column, ascending, NULLs first. Golden vectors are in the tests.
//!
//! Each column is one marker byte, `0x00` for NULL or `0x01`, and in the second case its value:
//!
//! | type | bytes |
//! |---|---|
//! | BOOLEAN | `0x00` or `0x01` |
//! | SMALLINT, INTEGER, BIGINT, DATE, TIMESTAMP, DECIMAL | big endian with the sign bit flipped; 2, 4, 8, 4, 8, 16 bytes |
//! | TEXT, BYTEA | the bytes with `0x00` written as `0x00 0xFF`, then `0x00 0x01` |
//! | REAL, DOUBLE PRECISION | IEEE 754 total order, 4 or 8 bytes (schemas do not admit them as keys) |
//!
//! No encoded column is a prefix of another value's encoding, so the encoding of the first
//! columns of a key bounds exactly the keys that begin with them.

use std::fmt;

use arrow_array::Array;
use arrow_buffer::NullBuffer;
use shoal_types::{ColumnType, TimePrecision};
use xxhash_rust::xxh3::xxh3_64;

use crate::values::{Values, values_of};
use crate::{RowBlock, Series};

/// One of a table's [`shoal_types::SLOTS`] hash slots: the top 16 bits of xxh3-64 (seed 0) of the encoded key.
pub type Slot = u16;

const NULL: u8 = 0x00;
const VALUE: u8 = 0x01;
const ESCAPE: u8 = 0xFF;
const END: u8 = 0x01;

/// Keys encoded one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedKeys {
    /// Where each key begins in `bytes`, then where the last ends: one more than there are keys.
    pub offsets: Vec<u32>,
    /// All keys.
    pub bytes: Vec<u8>,
}

impl EncodedKeys {
    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Key `index`, which must be below [`Self::len`].
    #[must_use]
    pub fn get(&self, index: usize) -> &[u8] {
        &self.bytes[self.offsets[index] as usize..self.offsets[index + 1] as usize]
    }

    /// The keys in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }
}

/// One key column, ready to be encoded row by row.
pub(crate) struct KeyColumn<'a> {
    nulls: Option<&'a NullBuffer>,
    values: Values<'a>,
}

impl<'a> KeyColumn<'a> {
    pub(crate) fn new(array: &'a dyn Array) -> Self {
        Self::of(array).expect("RowBlock::check and block_from_batch admit only stored types")
    }

    /// `None`: no column can have the array's type.
    pub(crate) fn of(array: &'a dyn Array) -> Option<Self> {
        Some(Self {
            nulls: array.nulls(),
            values: values_of(array)?,
        })
    }

    #[inline]
    pub(crate) fn encode(&self, index: usize, out: &mut Vec<u8>) {
        if self.nulls.is_some_and(|n| n.is_null(index)) {
            out.push(NULL);
            return;
        }
        let value = match &self.values {
            Values::Boolean(v) => Plain::Boolean(v.value(index)),
            Values::Int16(v) => Plain::Int16(v[index]),
            Values::Int32(v) => Plain::Int32(v[index]),
            Values::Int64(v) => Plain::Int64(v[index]),
            Values::Int128(v) => Plain::Int128(v[index]),
            Values::Float32(v) => Plain::Float32(v[index]),
            Values::Float64(v) => Plain::Float64(v[index]),
            Values::Text(v) => Plain::Bytes(v.value(index).as_bytes()),
            Values::Binary(v) => Plain::Bytes(v.value(index)),
        };
        encode_plain(&value, out);
    }

    /// Whether two values are encoded alike.
    pub(crate) fn is_same(&self, a: usize, b: usize) -> bool {
        if let Some(nulls) = self.nulls {
            let (a, b) = (nulls.is_null(a), nulls.is_null(b));
            if a || b {
                return a && b;
            }
        }
        match &self.values {
            Values::Boolean(v) => v.value(a) == v.value(b),
            Values::Int16(v) => v[a] == v[b],
            Values::Int32(v) => v[a] == v[b],
            Values::Int64(v) => v[a] == v[b],
            Values::Int128(v) => v[a] == v[b],
            Values::Float32(v) => v[a].to_bits() == v[b].to_bits(),
            Values::Float64(v) => v[a].to_bits() == v[b].to_bits(),
            // Equal views are equal values; those of one array's repeated values mostly are.
            Values::Text(v) => v.views()[a] == v.views()[b] || v.value(a) == v.value(b),
            Values::Binary(v) => v.views()[a] == v.views()[b] || v.value(a) == v.value(b),
        }
    }
}

/// Appends the encoding of a column that is NULL.
pub(crate) fn encode_null(out: &mut Vec<u8>) {
    out.push(NULL);
}

/// A value without its marker; integers as wide as their type.
pub(crate) enum Plain<'a> {
    Boolean(bool),
    Int16(i16),
    Int32(i32),
    Int64(i64),
    Int128(i128),
    Float32(f32),
    Float64(f64),
    Bytes(&'a [u8]),
}

/// Appends the encoding of a value that is not NULL.
#[inline]
pub(crate) fn encode_plain(value: &Plain<'_>, out: &mut Vec<u8>) {
    out.push(VALUE);
    match value {
        Plain::Boolean(v) => out.push(u8::from(*v)),
        Plain::Int16(v) => out.extend(((*v as u16) ^ (1 << 15)).to_be_bytes()),
        Plain::Int32(v) => out.extend(((*v as u32) ^ (1 << 31)).to_be_bytes()),
        Plain::Int64(v) => out.extend(flip(*v).to_be_bytes()),
        Plain::Int128(v) => out.extend(((*v as u128) ^ (1 << 127)).to_be_bytes()),
        Plain::Float32(v) => out.extend(total_order_32(*v).to_be_bytes()),
        Plain::Float64(v) => out.extend(total_order_64(*v).to_be_bytes()),
        Plain::Bytes(v) => encode_bytes(v, out),
    }
}

fn total_order_32(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

fn total_order_64(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 1 {
        !bits
    } else {
        bits | 1 << 63
    }
}

fn flip(value: i64) -> u64 {
    (value as u64) ^ (1 << 63)
}

fn encode_bytes(value: &[u8], out: &mut Vec<u8>) {
    if value.contains(&0) {
        for &byte in value {
            out.push(byte);
            if byte == 0 {
                out.push(ESCAPE);
            }
        }
    } else {
        out.extend_from_slice(value);
    }
    out.extend([0, END]);
}

/// Appends the encoding of series `index` to `out`.
pub fn encode_series(series: &Series, index: usize, out: &mut Vec<u8>) {
    for array in &series.values {
        KeyColumn::new(array).encode(index, out);
    }
}

/// Appends a closing time column to an encoded series, which makes it a whole key.
pub fn encode_time(time: i64, out: &mut Vec<u8>) {
    out.push(VALUE);
    out.extend(flip(time).to_be_bytes());
}

/// Appends the encoding of row `row`'s whole key (series, then time) to `out`.
pub fn encode_key(block: &RowBlock, row: usize, out: &mut Vec<u8>) {
    encode_series(&block.series, block.series_of[row] as usize, out);
    if let Some(time) = &block.time {
        encode_time(time[row], out);
    }
}

/// The encodings of all series of a block.
#[must_use]
pub fn encode_series_all(series: &Series) -> EncodedKeys {
    let columns: Vec<_> = series
        .values
        .iter()
        .map(|a| KeyColumn::new(a.as_ref()))
        .collect();
    let mut offsets = Vec::with_capacity(series.len + 1);
    let mut bytes = Vec::with_capacity(series.len * columns.len() * 16);
    offsets.push(0);
    for index in 0..series.len {
        for column in &columns {
            column.encode(index, &mut bytes);
        }
        offsets.push(offset(&bytes));
    }
    EncodedKeys { offsets, bytes }
}

/// The encodings of all rows' whole keys.
#[must_use]
pub fn encode_keys_all(block: &RowBlock) -> EncodedKeys {
    let series = encode_series_all(&block.series);
    let mut offsets = Vec::with_capacity(block.rows() + 1);
    let mut bytes = Vec::new();
    offsets.push(0);
    for (row, &index) in block.series_of.iter().enumerate() {
        bytes.extend_from_slice(series.get(index as usize));
        if let Some(time) = &block.time {
            encode_time(time[row], &mut bytes);
        }
        offsets.push(offset(&bytes));
    }
    EncodedKeys { offsets, bytes }
}

fn offset(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("the keys of one block are bounded by the record size")
}

/// The slot of an encoded key.
#[must_use]
pub fn slot_of(encoded: &[u8]) -> Slot {
    (xxh3_64(encoded) >> 48) as Slot
}

/// A value of a key. Shown as a SQL literal.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyValue {
    /// NULL
    Null,
    /// `BOOLEAN`
    Boolean(bool),
    /// `SMALLINT`, `INTEGER`, `BIGINT`
    Int(i64),
    /// `REAL`, `DOUBLE PRECISION`
    Float(f64),
    /// The unscaled value and the digits after the point.
    Decimal(i128, i8),
    /// `TEXT`
    Text(String),
    /// `BYTEA`
    Binary(Vec<u8>),
    /// Days since 1970-01-01.
    Date(i32),
    /// In units of the precision since the Unix epoch.
    Timestamp(i64, TimePrecision),
}

impl fmt::Display for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Boolean(v) => v.fmt(f),
            Self::Int(v) => v.fmt(f),
            Self::Float(v) => v.fmt(f),
            Self::Decimal(v, scale) => write_decimal(*v, *scale, f),
            Self::Text(v) => write!(f, "'{}'", v.replace('\'', "''")),
            Self::Binary(v) => {
                f.write_str("'\\x")?;
                v.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
                f.write_str("'")
            }
            Self::Date(v) => write!(f, "'{}'", Day(i64::from(*v))),
            Self::Timestamp(v, precision) => {
                let per_second = precision.per_second();
                let (second, fraction) = (v.div_euclid(per_second), v.rem_euclid(per_second));
                let (day, second) = (Day(second.div_euclid(86_400)), second.rem_euclid(86_400));
                let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
                write!(f, "'{day} {hour:02}:{minute:02}:{second:02}")?;
                let digits = usize::from(precision.digits());
                if digits > 0 {
                    write!(f, ".{fraction:0digits$}")?;
                }
                f.write_str("'")
            }
        }
    }
}

fn write_decimal(unscaled: i128, scale: i8, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let sign = if unscaled < 0 { "-" } else { "" };
    let digits = unscaled.unsigned_abs();
    let Ok(point @ 1..) = usize::try_from(scale) else {
        let zeros = if unscaled == 0 {
            0
        } else {
            usize::from(scale.unsigned_abs())
        };
        return write!(f, "{sign}{digits}{:0>zeros$}", "");
    };
    let padded = format!("{digits:0>width$}", width = point + 1);
    let (whole, fraction) = padded.split_at(padded.len() - point);
    write!(f, "{sign}{whole}.{fraction}")
}

/// Days since 1970-01-01, shown as a date of the Gregorian calendar.
struct Day(i64);

impl fmt::Display for Day {
    /// Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`: years
    /// begin in March, so that the leap day is a year's last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shifted = self.0 + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

/// Bytes that are no encoded key of the given types.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("encoded key at byte {at}: {what}")]
pub struct KeyError {
    /// Place in the key.
    pub at: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// Reads an encoded key, or the first columns of one, back: as many values as `types`.
///
/// # Errors
/// [`KeyError`] for bytes that are not the encoding of such values.
pub fn decode_key(encoded: &[u8], types: &[ColumnType]) -> Result<Vec<KeyValue>, KeyError> {
    let mut reader = KeyReader {
        bytes: encoded,
        at: 0,
    };
    let values = types
        .iter()
        .map(|t| reader.value(*t))
        .collect::<Result<_, _>>()?;
    if reader.at < encoded.len() {
        return Err(reader.fail("bytes after the last column"));
    }
    Ok(values)
}

/// Where each column of an encoded key ends.
///
/// # Errors
/// As [`decode_key`].
pub(crate) fn column_ends(encoded: &[u8], types: &[ColumnType]) -> Result<Vec<usize>, KeyError> {
    let mut reader = KeyReader {
        bytes: encoded,
        at: 0,
    };
    let ends = types
        .iter()
        .map(|t| reader.value(*t).map(|_| reader.at))
        .collect::<Result<_, _>>()?;
    if reader.at < encoded.len() {
        return Err(reader.fail("bytes after the last column"));
    }
    Ok(ends)
}

struct KeyReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl KeyReader<'_> {
    fn fail(&self, what: &'static str) -> KeyError {
        KeyError { at: self.at, what }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], KeyError> {
        let found = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.first_chunk::<N>())
            .ok_or_else(|| self.fail("ends within a column"))?;
        self.at += N;
        Ok(*found)
    }

    fn value(&mut self, column_type: ColumnType) -> Result<KeyValue, KeyError> {
        match self.take::<1>()? {
            [NULL] => return Ok(KeyValue::Null),
            [VALUE] => {}
            _ => return Err(self.fail("a column begins with neither 0x00 nor 0x01")),
        }
        Ok(match column_type {
            ColumnType::Boolean => match self.take::<1>()? {
                [0] => KeyValue::Boolean(false),
                [1] => KeyValue::Boolean(true),
                _ => return Err(self.fail("a boolean that is neither 0x00 nor 0x01")),
            },
            ColumnType::Int16 => KeyValue::Int(i64::from(
                (u16::from_be_bytes(self.take()?) ^ (1 << 15)) as i16,
            )),
            ColumnType::Int32 => KeyValue::Int(i64::from(self.int32()?)),
            ColumnType::Int64 => KeyValue::Int(self.int64()?),
            ColumnType::Date => KeyValue::Date(self.int32()?),
            ColumnType::Timestamp { precision, .. } => {
                KeyValue::Timestamp(self.int64()?, precision)
            }
            ColumnType::Decimal { scale, .. } => KeyValue::Decimal(
                (u128::from_be_bytes(self.take()?) ^ (1 << 127)) as i128,
                scale,
            ),
            ColumnType::Float32 => {
                let ordered = u32::from_be_bytes(self.take()?);
                let bits = if ordered >> 31 == 1 {
                    ordered ^ (1 << 31)
                } else {
                    !ordered
                };
                KeyValue::Float(f64::from(f32::from_bits(bits)))
            }
            ColumnType::Float64 => {
                let ordered = u64::from_be_bytes(self.take()?);
                let bits = if ordered >> 63 == 1 {
                    ordered ^ (1 << 63)
                } else {
                    !ordered
                };
                KeyValue::Float(f64::from_bits(bits))
            }
            ColumnType::Text => {
                let bytes = self.escaped()?;
                KeyValue::Text(
                    String::from_utf8(bytes).map_err(|_| self.fail("a text that is not UTF-8"))?,
                )
            }
            ColumnType::Binary => KeyValue::Binary(self.escaped()?),
        })
    }

    fn int32(&mut self) -> Result<i32, KeyError> {
        Ok((u32::from_be_bytes(self.take()?) ^ (1 << 31)) as i32)
    }

    fn int64(&mut self) -> Result<i64, KeyError> {
        Ok((u64::from_be_bytes(self.take()?) ^ (1 << 63)) as i64)
    }

    fn escaped(&mut self) -> Result<Vec<u8>, KeyError> {
        let mut value = Vec::new();
        loop {
            match self.take::<1>()? {
                [0] => match self.take::<1>()? {
                    [ESCAPE] => value.push(0),
                    [END] => return Ok(value),
                    _ => return Err(self.fail("0x00 followed by neither 0xFF nor 0x01")),
                },
                [byte] => value.push(byte),
            }
        }
    }
}
