//! Column types: their SQL names and their Arrow shape.

use std::fmt;

use arrow_schema::{DataType, TimeUnit};
use serde::{Deserialize, Serialize};

/// Fractional digits of a timestamp: `TIMESTAMP(0|3|6|9)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TimePrecision {
    /// `TIMESTAMP(0)`
    Second,
    /// `TIMESTAMP(3)`
    Millisecond,
    /// `TIMESTAMP(6)`, what a bare `TIMESTAMP` means (as in PostgreSQL)
    Microsecond,
    /// `TIMESTAMP(9)`, what line protocol writes
    Nanosecond,
}

impl TimePrecision {
    /// The Arrow unit.
    #[must_use]
    pub fn unit(self) -> TimeUnit {
        match self {
            Self::Second => TimeUnit::Second,
            Self::Millisecond => TimeUnit::Millisecond,
            Self::Microsecond => TimeUnit::Microsecond,
            Self::Nanosecond => TimeUnit::Nanosecond,
        }
    }

    /// The precision of an Arrow unit.
    #[must_use]
    pub fn from_unit(unit: TimeUnit) -> Self {
        match unit {
            TimeUnit::Second => Self::Second,
            TimeUnit::Millisecond => Self::Millisecond,
            TimeUnit::Microsecond => Self::Microsecond,
            TimeUnit::Nanosecond => Self::Nanosecond,
        }
    }

    /// Fractional digits: 0, 3, 6 or 9.
    #[must_use]
    pub fn digits(self) -> u8 {
        match self {
            Self::Second => 0,
            Self::Millisecond => 3,
            Self::Microsecond => 6,
            Self::Nanosecond => 9,
        }
    }

    /// How many of this unit make one second.
    #[must_use]
    pub fn per_second(self) -> i64 {
        10_i64.pow(u32::from(self.digits()))
    }
}

/// The type of a table column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ColumnType {
    /// `BOOLEAN`
    Boolean,
    /// `SMALLINT`
    Int16,
    /// `INTEGER`
    Int32,
    /// `BIGINT`
    Int64,
    /// `REAL`
    Float32,
    /// `DOUBLE PRECISION`
    Float64,
    /// `DECIMAL(precision, scale)`, precision up to 38
    Decimal {
        /// Digits in all, 1 to 38.
        precision: u8,
        /// Digits after the point.
        scale: i8,
    },
    /// `TEXT`, `VARCHAR`
    Text,
    /// `BYTEA`
    Binary,
    /// `DATE`
    Date,
    /// `TIMESTAMP(p)` or, with `utc`, `TIMESTAMPTZ(p)`
    Timestamp {
        /// Fractional digits.
        precision: TimePrecision,
        /// With time zone: stored as UTC.
        utc: bool,
    },
}

/// An Arrow type that no column can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "type {0} cannot be stored; cast it to one of BOOLEAN, SMALLINT, INTEGER, BIGINT, REAL, DOUBLE PRECISION, DECIMAL, TEXT, BYTEA, DATE, TIMESTAMP"
)]
pub struct ColumnTypeError(pub DataType);

impl ColumnType {
    /// The Arrow type in which this column travels, is stored in memory and is written to
    /// Parquet. Text is `Utf8View`: group-by and comparison are fastest on it.
    #[must_use]
    pub fn arrow(self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::Int16 => DataType::Int16,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(precision, scale),
            Self::Text => DataType::Utf8View,
            Self::Binary => DataType::BinaryView,
            Self::Date => DataType::Date32,
            Self::Timestamp { precision, utc } => {
                DataType::Timestamp(precision.unit(), utc.then(|| "UTC".into()))
            }
        }
    }

    /// The column type that holds values of an Arrow type without loss of meaning.
    ///
    /// # Errors
    /// [`ColumnTypeError`] for nested and interval types and for unsigned 64-bit integers' kin
    /// that have no SQL name; the caller casts first.
    pub fn from_arrow(data_type: &DataType) -> Result<Self, ColumnTypeError> {
        Ok(match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => Self::Int16,
            DataType::Int32 | DataType::UInt16 => Self::Int32,
            DataType::Int64 | DataType::UInt32 | DataType::UInt64 => Self::Int64,
            DataType::Float16 | DataType::Float32 => Self::Float32,
            DataType::Float64 => Self::Float64,
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale) => Self::Decimal {
                precision: *precision,
                scale: *scale,
            },
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {
                Self::Text
            }
            DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
            | DataType::FixedSizeBinary(_) => Self::Binary,
            DataType::Date32 | DataType::Date64 => Self::Date,
            DataType::Timestamp(unit, tz) => Self::Timestamp {
                precision: TimePrecision::from_unit(*unit),
                utc: tz.is_some(),
            },
            DataType::Dictionary(_, value) => Self::from_arrow(value)?,
            other => return Err(ColumnTypeError(other.clone())),
        })
    }

    /// Whether values of this type may be part of a primary key (floats may not: NaN and signed
    /// zero have no one place in an order).
    #[must_use]
    pub fn may_be_key(self) -> bool {
        !matches!(self, Self::Float32 | Self::Float64)
    }
}

impl fmt::Display for ColumnType {
    /// The SQL name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::Int16 => f.write_str("SMALLINT"),
            Self::Int32 => f.write_str("INTEGER"),
            Self::Int64 => f.write_str("BIGINT"),
            Self::Float32 => f.write_str("REAL"),
            Self::Float64 => f.write_str("DOUBLE PRECISION"),
            Self::Decimal { precision, scale } => write!(f, "DECIMAL({precision}, {scale})"),
            Self::Text => f.write_str("TEXT"),
            Self::Binary => f.write_str("BYTEA"),
            Self::Date => f.write_str("DATE"),
            Self::Timestamp { precision, utc } => {
                let name = if *utc { "TIMESTAMPTZ" } else { "TIMESTAMP" };
                write!(f, "{name}({})", precision.digits())
            }
        }
    }
}
