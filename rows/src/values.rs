//! The Arrow arrays a column can be, as typed slices: one match per array instead of one per
//! value, and one place that knows which arrays those are.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use arrow_array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Int64Array, StringViewArray,
    TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
    TimestampSecondArray,
};
use arrow_buffer::{NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, TimeUnit};
use shoal_types::{ColumnType, TimePrecision};

/// The values of one array; entries under NULL are arbitrary.
pub(crate) enum Values<'a> {
    Boolean(&'a BooleanArray),
    Int16(&'a [i16]),
    /// `INTEGER` and `DATE`.
    Int32(&'a [i32]),
    /// `BIGINT` and timestamps.
    Int64(&'a [i64]),
    Int128(&'a [i128]),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    Text(&'a StringViewArray),
    Binary(&'a BinaryViewArray),
}

/// The typed view of `array`, or `None` if no column can have its type ([`stored_type`]).
pub(crate) fn values_of(array: &dyn Array) -> Option<Values<'_>> {
    Some(match array.data_type() {
        DataType::Boolean => Values::Boolean(array.as_boolean()),
        DataType::Int16 => Values::Int16(array.as_primitive::<Int16Type>().values()),
        DataType::Int32 => Values::Int32(array.as_primitive::<Int32Type>().values()),
        DataType::Date32 => Values::Int32(array.as_primitive::<Date32Type>().values()),
        DataType::Int64 | DataType::Timestamp(..) => Values::Int64(i64_values(array)?),
        DataType::Decimal128(..) => Values::Int128(array.as_primitive::<Decimal128Type>().values()),
        DataType::Float32 => Values::Float32(array.as_primitive::<Float32Type>().values()),
        DataType::Float64 => Values::Float64(array.as_primitive::<Float64Type>().values()),
        DataType::Utf8View => Values::Text(array.as_string_view()),
        DataType::BinaryView => Values::Binary(array.as_binary_view()),
        _ => return None,
    })
}

/// The column type whose values travel in exactly this Arrow type.
pub(crate) fn stored_type(data_type: &DataType) -> Option<ColumnType> {
    ColumnType::from_arrow(data_type)
        .ok()
        .filter(|t| t.arrow() == *data_type)
}

/// The values of a `BIGINT` or timestamp array.
pub(crate) fn i64_values(array: &dyn Array) -> Option<&ScalarBuffer<i64>> {
    Some(match array.data_type() {
        DataType::Int64 => array.as_primitive::<Int64Type>().values(),
        DataType::Timestamp(TimeUnit::Second, _) => {
            array.as_primitive::<TimestampSecondType>().values()
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            array.as_primitive::<TimestampMillisecondType>().values()
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            array.as_primitive::<TimestampMicrosecondType>().values()
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            array.as_primitive::<TimestampNanosecondType>().values()
        }
        _ => return None,
    })
}

/// A timestamp array where `column_type` is one, otherwise a `BIGINT` array. The NULLs, if any,
/// must be as many as the values.
#[must_use]
pub fn i64_array(
    column_type: ColumnType,
    values: ScalarBuffer<i64>,
    nulls: Option<NullBuffer>,
) -> ArrayRef {
    let ColumnType::Timestamp { precision, utc } = column_type else {
        return Arc::new(Int64Array::new(values, nulls));
    };
    let zone = utc.then(|| Arc::<str>::from("UTC"));
    match precision {
        TimePrecision::Second => {
            Arc::new(TimestampSecondArray::new(values, nulls).with_timezone_opt(zone))
        }
        TimePrecision::Millisecond => {
            Arc::new(TimestampMillisecondArray::new(values, nulls).with_timezone_opt(zone))
        }
        TimePrecision::Microsecond => {
            Arc::new(TimestampMicrosecondArray::new(values, nulls).with_timezone_opt(zone))
        }
        TimePrecision::Nanosecond => {
            Arc::new(TimestampNanosecondArray::new(values, nulls).with_timezone_opt(zone))
        }
    }
}
