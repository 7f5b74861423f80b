//! One array: its type, its NULLs, its values.
//!
//! ```text
//! array   type u8 [parameters] | nulls u8 (0 none, 1 bitmap of values that are not NULL, 2 all)
//!         | values (absent if all are NULL)
//! BOOLEAN                          bitmap
//! SMALLINT … BIGINT, DATE, TIMESTAMP   ints
//! DECIMAL                          0 | 16 bytes each, or 1 | ints
//! REAL                             4 bytes each
//! DOUBLE PRECISION                 0 | 8 bytes each, or 1 | ints (all are whole numbers)
//! TEXT, BYTEA                      lengths: ints | bytes
//! ```
//! Values under NULL are written as some value that costs least.

use std::sync::Arc;

use arrow_array::builder::make_view;
use arrow_array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int16Array, Int32Array, StringViewArray,
};
use arrow_buffer::{Buffer, NullBuffer, ScalarBuffer};
use shoal_types::ColumnType;

use super::ints::{Int, chunks, decode_ints, encode_ints};
use super::reader::{Reader, write_bitmap};
use super::{CodecError, read_type, write_type};
use crate::values::{Values, i64_array, stored_type, values_of};

const NO_NULLS: u8 = 0;
const SOME_NULLS: u8 = 1;
const ALL_NULLS: u8 = 2;
const AS_THEY_ARE: u8 = 0;
const AS_INTS: u8 = 1;
/// Strings up to this length stand in the view itself (Arrow columnar format, "variable-size
/// binary view layout").
const INLINE_BYTES_MAX: usize = 12;

pub(super) fn encode_array(array: &dyn Array, out: &mut Vec<u8>) {
    let column_type =
        stored_type(array.data_type()).expect("RowBlock::check admits only stored types");
    let values = values_of(array).expect("RowBlock::check admits only stored types");
    write_type(column_type, out);
    let nulls = array.nulls().filter(|n| n.null_count() > 0);
    match nulls {
        None => out.push(NO_NULLS),
        Some(n) if n.null_count() == n.len() => {
            out.push(ALL_NULLS);
            return;
        }
        Some(n) => {
            out.push(SOME_NULLS);
            write_bitmap(n.inner(), out);
        }
    }
    match values {
        Values::Boolean(v) => match nulls {
            None => write_bitmap(v.values(), out),
            Some(n) => write_bitmap(&(v.values() & n.inner()), out),
        },
        Values::Int16(v) => encode_nullable(v, nulls, out),
        Values::Int32(v) => encode_nullable(v, nulls, out),
        Values::Int64(v) => encode_nullable(v, nulls, out),
        Values::Int128(v) => encode_decimals(&filled(v, nulls), out),
        Values::Float32(v) => filled(v, nulls)
            .iter()
            .for_each(|v| out.extend(v.to_le_bytes())),
        Values::Float64(v) => encode_floats(&filled(v, nulls), out),
        Values::Text(v) => encode_strings(v.len(), |i| v.value(i).as_bytes(), nulls, out),
        Values::Binary(v) => encode_strings(v.len(), |i| v.value(i), nulls, out),
    }
}

/// The values with those under NULL replaced by the first that is not.
fn filled<'a, T: Copy>(values: &'a [T], nulls: Option<&NullBuffer>) -> std::borrow::Cow<'a, [T]> {
    let first = nulls.and_then(|n| n.valid_indices().next());
    let (Some(nulls), Some(first)) = (nulls, first) else {
        return values.into();
    };
    let filler = values[first];
    values
        .iter()
        .zip(nulls)
        .map(|(v, valid)| if valid { *v } else { filler })
        .collect()
}

fn encode_nullable<T: Int>(values: &[T], nulls: Option<&NullBuffer>, out: &mut Vec<u8>) {
    encode_ints(&filled(values, nulls), out);
}

fn encode_decimals(values: &[i128], out: &mut Vec<u8>) {
    let narrow: Result<Vec<i64>, _> = values.iter().map(|v| i64::try_from(*v)).collect();
    if let Ok(narrow) = narrow {
        out.push(AS_INTS);
        encode_ints(&narrow, out);
    } else {
        out.push(AS_THEY_ARE);
        values.iter().for_each(|v| out.extend(v.to_le_bytes()));
    }
}

fn encode_floats(values: &[f64], out: &mut Vec<u8>) {
    // Compared bit by bit: -0.0 and NaN are no integers.
    let whole = |v: &f64| (*v as i64 as f64).to_bits() == v.to_bits();
    if values.iter().all(whole) {
        out.push(AS_INTS);
        let ints: Vec<i64> = values.iter().map(|v| *v as i64).collect();
        encode_ints(&ints, out);
    } else {
        out.push(AS_THEY_ARE);
        out.reserve(values.len() * 8);
        values
            .iter()
            .for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
    }
}

fn encode_strings<'a>(
    len: usize,
    value: impl Fn(usize) -> &'a [u8],
    nulls: Option<&NullBuffer>,
    out: &mut Vec<u8>,
) {
    let value = |i: usize| {
        if nulls.is_some_and(|n| n.is_null(i)) {
            &[]
        } else {
            value(i)
        }
    };
    let lengths: Vec<i64> = (0..len).map(|i| value(i).len() as i64).collect();
    encode_ints(&lengths, out);
    (0..len).for_each(|i| out.extend_from_slice(value(i)));
}

pub(super) fn decode_array(reader: &mut Reader<'_>, len: usize) -> Result<ArrayRef, CodecError> {
    let column_type = read_type(reader)?;
    let nulls = match reader.u8()? {
        NO_NULLS => None,
        SOME_NULLS => Some(NullBuffer::new(reader.bitmap(len)?)),
        ALL_NULLS => return reader.null_array(column_type, len),
        _ => return Err(reader.fail("unknown form of NULLs")),
    };
    Ok(match column_type {
        ColumnType::Boolean => Arc::new(BooleanArray::new(reader.bitmap(len)?, nulls)),
        ColumnType::Int16 => Arc::new(Int16Array::new(decode_ints(reader, len)?, nulls)),
        ColumnType::Int32 => Arc::new(Int32Array::new(decode_ints(reader, len)?, nulls)),
        ColumnType::Date => Arc::new(Date32Array::new(decode_ints(reader, len)?, nulls)),
        ColumnType::Int64 | ColumnType::Timestamp { .. } => {
            i64_array(column_type, decode_ints(reader, len)?, nulls)
        }
        ColumnType::Float32 => {
            reader.charge(len * 4)?;
            let values = chunks::<4>(reader, len)?.iter();
            let values: ScalarBuffer<f32> = values.map(|c| f32::from_le_bytes(*c)).collect();
            Arc::new(Float32Array::new(values, nulls))
        }
        ColumnType::Float64 => Arc::new(Float64Array::new(decode_floats(reader, len)?, nulls)),
        ColumnType::Decimal { precision, scale } => {
            let array = Decimal128Array::new(decode_decimals(reader, len)?, nulls)
                .with_precision_and_scale(precision, scale)
                .map_err(|e| reader.fail(e.to_string()))?;
            Arc::new(array)
        }
        ColumnType::Text => {
            let (views, data) = decode_views(reader, len)?;
            let array = StringViewArray::try_new(views, data, nulls)
                .map_err(|e| reader.fail(e.to_string()))?;
            Arc::new(array)
        }
        ColumnType::Binary => {
            let (views, data) = decode_views(reader, len)?;
            let array = BinaryViewArray::try_new(views, data, nulls)
                .map_err(|e| reader.fail(e.to_string()))?;
            Arc::new(array)
        }
    })
}

fn decode_floats(reader: &mut Reader<'_>, len: usize) -> Result<ScalarBuffer<f64>, CodecError> {
    reader.charge(len * 8)?;
    match reader.u8()? {
        AS_INTS => Ok(decode_ints::<i64>(reader, len)?
            .iter()
            .map(|v| *v as f64)
            .collect()),
        AS_THEY_ARE => Ok(chunks::<8>(reader, len)?
            .iter()
            .map(|c| f64::from_le_bytes(*c))
            .collect()),
        _ => Err(reader.fail("unknown form of floats")),
    }
}

fn decode_decimals(reader: &mut Reader<'_>, len: usize) -> Result<ScalarBuffer<i128>, CodecError> {
    reader.charge(len * 16)?;
    match reader.u8()? {
        AS_INTS => Ok(decode_ints::<i64>(reader, len)?
            .iter()
            .map(|v| i128::from(*v))
            .collect()),
        AS_THEY_ARE => Ok(chunks::<16>(reader, len)?
            .iter()
            .map(|c| i128::from_le_bytes(*c))
            .collect()),
        _ => Err(reader.fail("unknown form of decimals")),
    }
}

/// The views of strings, and their bytes where they are too long to stand in the view.
fn decode_views(
    reader: &mut Reader<'_>,
    len: usize,
) -> Result<(ScalarBuffer<u128>, Vec<Buffer>), CodecError> {
    reader.charge(len * 16)?;
    let lengths = decode_ints::<i64>(reader, len)?;
    let mut total = 0_usize;
    for length in lengths.iter() {
        total = usize::try_from(*length)
            .ok()
            .and_then(|l| total.checked_add(l))
            .ok_or_else(|| reader.fail("a length that cannot be"))?;
    }
    let mut data = reader.take(total)?;
    reader.charge(total)?;
    // Offsets in views are 32 bit.
    if u32::try_from(total).is_err() {
        return Err(reader.fail("more than 4 GiB of text"));
    }
    let mut long = Vec::new();
    let mut views = Vec::with_capacity(len);
    for length in lengths.iter() {
        let (value, rest) = data.split_at(*length as usize);
        data = rest;
        views.push(make_view(value, 0, long.len() as u32));
        if value.len() > INLINE_BYTES_MAX {
            long.extend_from_slice(value);
        }
    }
    let buffers = if long.is_empty() {
        Vec::new()
    } else {
        vec![Buffer::from_vec(long)]
    };
    Ok((views.into(), buffers))
}
