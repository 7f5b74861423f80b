//! Integers as distances from the smallest, in steps of their greatest common divisor, in as few
//! bytes as hold the largest.
//!
//! `ints = form u8 (low bits: bytes a value, 0 1 2 4 or 8; 0x10: in steps) | smallest zigzag
//! | [step varint] | values`. The steps make nanosecond times of a 10 s interval one byte each.

use arrow_buffer::{ArrowNativeType, ScalarBuffer};

use super::CodecError;
use super::reader::{Reader, write_varint, write_zigzag};

const IN_STEPS: u8 = 0x10;
/// Narrower values are not divided: the step could not save a byte.
const STEP_RANGE_MIN: u64 = 1 << 8;

/// An integer that travels as an `i64`.
pub(super) trait Int: ArrowNativeType + Ord {
    fn widen(self) -> i64;
    /// The low bits: bytes that [`encode_ints`] wrote never lose any.
    fn narrow(value: i64) -> Self;
}

macro_rules! int {
    ($($type:ty),*) => {$(
        impl Int for $type {
            fn widen(self) -> i64 {
                self.into()
            }
            fn narrow(value: i64) -> Self {
                value as Self
            }
        }
    )*};
}
int!(i16, i32, i64);

pub(super) fn encode_ints<T: Int>(values: &[T], out: &mut Vec<u8>) {
    let smallest = values.iter().copied().min().map_or(0, T::widen);
    let largest = values.iter().copied().max().map_or(0, T::widen);
    let range = largest.wrapping_sub(smallest) as u64;
    let distance = |v: &T| v.widen().wrapping_sub(smallest) as u64;
    let step = if range < STEP_RANGE_MIN {
        1
    } else {
        common_divisor(values.iter().map(distance))
    };
    let width = match range / step {
        0 => 0,
        1..=0xFF => 1,
        0x100..=0xFFFF => 2,
        0x1_0000..=0xFFFF_FFFF => 4,
        _ => 8,
    };
    out.push(width | if step > 1 { IN_STEPS } else { 0 });
    write_zigzag(smallest, out);
    if step > 1 {
        write_varint(step, out);
        write_values(width, values.iter().map(|v| distance(v) / step), out);
    } else {
        write_values(width, values.iter().map(distance), out);
    }
}

fn write_values(width: u8, values: impl Iterator<Item = u64>, out: &mut Vec<u8>) {
    match width {
        0 => {}
        1 => out.extend(values.map(|v| v as u8)),
        2 => append(values.map(|v| (v as u16).to_le_bytes()), out),
        4 => append(values.map(|v| (v as u32).to_le_bytes()), out),
        _ => append(values.map(u64::to_le_bytes), out),
    }
}

fn append<const N: usize>(values: impl Iterator<Item = [u8; N]>, out: &mut Vec<u8>) {
    out.reserve(values.size_hint().0 * N);
    values.for_each(|v| out.extend_from_slice(&v));
}

/// Above zero; stops looking once nothing but 1 is left, which is soon where there is no step.
fn common_divisor(values: impl Iterator<Item = u64>) -> u64 {
    let mut divisor = 0;
    for value in values {
        if divisor == 0 {
            divisor = value;
        } else if value % divisor != 0 {
            let (mut a, mut b) = (divisor, value);
            while b != 0 {
                (a, b) = (b, a % b);
            }
            divisor = a;
        }
        if divisor == 1 {
            break;
        }
    }
    divisor.max(1)
}

pub(super) fn decode_ints<T: Int>(
    reader: &mut Reader<'_>,
    length: usize,
) -> Result<ScalarBuffer<T>, CodecError> {
    reader.charge(length * size_of::<T>())?;
    let form = reader.u8()?;
    let smallest = reader.zigzag()?;
    let step = if form & IN_STEPS == 0 {
        1
    } else {
        reader.varint()?
    };
    let value = |v: u64| T::narrow(smallest.wrapping_add(v.wrapping_mul(step) as i64));
    let values: Vec<T> = match form & !IN_STEPS {
        0 => vec![T::narrow(smallest); length],
        1 => reader
            .take(length)?
            .iter()
            .map(|b| value(u64::from(*b)))
            .collect(),
        2 => chunks::<2>(reader, length)?
            .iter()
            .map(|c| value(u64::from(u16::from_le_bytes(*c))))
            .collect(),
        4 => chunks::<4>(reader, length)?
            .iter()
            .map(|c| value(u64::from(u32::from_le_bytes(*c))))
            .collect(),
        8 => chunks::<8>(reader, length)?
            .iter()
            .map(|c| value(u64::from_le_bytes(*c)))
            .collect(),
        _ => return Err(reader.fail("unknown form of integers")),
    };
    Ok(values.into())
}

/// `count` values of `N` bytes each.
pub(super) fn chunks<'a, const N: usize>(
    reader: &mut Reader<'a>,
    count: usize,
) -> Result<&'a [[u8; N]], CodecError> {
    // `count` is a checked number of rows: the product cannot overflow.
    Ok(reader.take(count * N)?.as_chunks().0)
}
