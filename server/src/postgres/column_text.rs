//! Values of a column as text, gathered into Arrow arrays: what `COPY … FROM STDIN` receives.
//!
//! The usual spellings of numbers, booleans and timestamps are read here, without allocating; all
//! others go through [`shoal_query::read_text`], which reads literals everywhere else, so that
//! both ways give the same value for the same text.

use std::str::FromStr;
use std::sync::Arc;

use arrow_array::builder::{
    BinaryViewBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder,
    Float64Builder, Int16Builder, Int32Builder, Int64Builder, StringViewBuilder,
};
use arrow_array::{Array, ArrayRef, Int64Array};
use arrow_schema::DataType;
use datafusion::scalar::ScalarValue;
use shoal_query::read_text;
use shoal_types::{Column, ColumnType, TimePrecision};

use crate::civil::days;

/// Why a text is no value of its column: SQLSTATE and message.
#[derive(Debug, PartialEq)]
pub struct Wrong(pub &'static str, pub String);

/// The values of one column so far.
pub struct ColumnText {
    /// Its name, for messages.
    pub name: String,
    nullable: bool,
    wanted: DataType,
    /// The session's time zone, and whether that is UTC.
    zone: Option<String>,
    zone_is_utc: bool,
    values: Values,
}

enum Values {
    Boolean(BooleanBuilder),
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Decimal(Decimal128Builder),
    Text(StringViewBuilder),
    Binary(BinaryViewBuilder),
    Date(Date32Builder),
    Timestamp(Int64Builder, TimePrecision, bool),
}

impl ColumnText {
    /// No values yet. `zone`: the session's time zone.
    pub fn new(column: &Column, zone: Option<&str>) -> Self {
        let values = match column.column_type {
            ColumnType::Boolean => Values::Boolean(BooleanBuilder::new()),
            ColumnType::Int16 => Values::Int16(Int16Builder::new()),
            ColumnType::Int32 => Values::Int32(Int32Builder::new()),
            ColumnType::Int64 => Values::Int64(Int64Builder::new()),
            ColumnType::Float32 => Values::Float32(Float32Builder::new()),
            ColumnType::Float64 => Values::Float64(Float64Builder::new()),
            ColumnType::Decimal { .. } => Values::Decimal(Decimal128Builder::new()),
            ColumnType::Text => Values::Text(StringViewBuilder::new()),
            ColumnType::Binary => Values::Binary(BinaryViewBuilder::new()),
            ColumnType::Date => Values::Date(Date32Builder::new()),
            ColumnType::Timestamp { precision, utc } => {
                Values::Timestamp(Int64Builder::new(), precision, utc)
            }
        };
        Self {
            name: column.name.clone(),
            nullable: column.nullable,
            wanted: column.column_type.arrow(),
            zone: zone.map(str::to_owned),
            zone_is_utc: zone.is_none_or(|z| {
                let utc = ["utc", "etc/utc", "gmt", "z", "+00:00", "+00"];
                utc.contains(&z.to_ascii_lowercase().as_str())
            }),
            values,
        }
    }

    /// Adds NULL.
    ///
    /// # Errors
    /// The column is NOT NULL.
    pub fn push_null(&mut self) -> Result<(), Wrong> {
        if !self.nullable {
            return Err(Wrong(
                "23502",
                format!("null value in column {:?}, which is NOT NULL", self.name),
            ));
        }
        match &mut self.values {
            Values::Boolean(b) => b.append_null(),
            Values::Int16(b) => b.append_null(),
            Values::Int32(b) => b.append_null(),
            Values::Int64(b) | Values::Timestamp(b, ..) => b.append_null(),
            Values::Float32(b) => b.append_null(),
            Values::Float64(b) => b.append_null(),
            Values::Decimal(b) => b.append_null(),
            Values::Text(b) => b.append_null(),
            Values::Binary(b) => b.append_null(),
            Values::Date(b) => b.append_null(),
        }
        Ok(())
    }

    /// Adds a value.
    ///
    /// # Errors
    /// The text is none of the column's type, or not UTF-8.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Wrong> {
        let encoding = || {
            Wrong(
                "22021",
                "invalid byte sequence for encoding \"UTF8\"".into(),
            )
        };
        let text = std::str::from_utf8(bytes).map_err(|_| encoding())?;
        let (wanted, zone) = (&self.wanted, self.zone.as_deref());
        let wrong = || wrong(text, wanted);
        match &mut self.values {
            Values::Boolean(b) => b.append_value(match text {
                "t" | "true" | "1" => true,
                "f" | "false" | "0" => false,
                other => read(other, wanted).ok_or_else(wrong)?,
            }),
            Values::Int16(b) => b.append_value(number(text, wanted).ok_or_else(wrong)?),
            Values::Int32(b) => b.append_value(number(text, wanted).ok_or_else(wrong)?),
            Values::Int64(b) => b.append_value(number(text, wanted).ok_or_else(wrong)?),
            Values::Float32(b) => b.append_value(number(text, wanted).ok_or_else(wrong)?),
            Values::Float64(b) => b.append_value(number(text, wanted).ok_or_else(wrong)?),
            Values::Decimal(b) => match read_text(text, wanted, None) {
                Some(ScalarValue::Decimal128(Some(value), ..)) => b.append_value(value),
                _ => return Err(wrong()),
            },
            Values::Text(b) => {
                if bytes.contains(&0) {
                    return Err(Wrong(
                        "22021",
                        "invalid byte sequence for encoding \"UTF8\": 0x00".into(),
                    ));
                }
                b.append_value(text);
            }
            Values::Binary(b) => {
                b.append_value(shoal_query::bytea(text).ok_or_else(wrong)?);
            }
            Values::Date(b) => b.append_value(match read_text(text, wanted, None) {
                Some(ScalarValue::Date32(Some(value))) => value,
                _ => return Err(wrong()),
            }),
            Values::Timestamp(b, precision, utc) => {
                let value = Moment::of(text)
                    .filter(|m| !*utc || m.zoned || self.zone_is_utc)
                    .and_then(|m| m.at(*precision))
                    .or_else(|| timestamp(read_text(text, wanted, zone)?));
                b.append_value(value.ok_or_else(wrong)?);
            }
        }
        Ok(())
    }

    /// The values as an array of the column's type; none are left.
    pub fn take(&mut self) -> ArrayRef {
        match &mut self.values {
            Values::Boolean(b) => Arc::new(b.finish()),
            Values::Int16(b) => Arc::new(b.finish()),
            Values::Int32(b) => Arc::new(b.finish()),
            Values::Int64(b) => Arc::new(b.finish()),
            Values::Float32(b) => Arc::new(b.finish()),
            Values::Float64(b) => Arc::new(b.finish()),
            Values::Decimal(b) => Arc::new(b.finish().with_data_type(self.wanted.clone())),
            Values::Text(b) => Arc::new(b.finish()),
            Values::Binary(b) => Arc::new(b.finish()),
            Values::Date(b) => Arc::new(b.finish()),
            Values::Timestamp(b, ..) => {
                let values: Int64Array = b.finish();
                let data = values.into_data().into_builder();
                let data = data.data_type(self.wanted.clone()).build();
                arrow_array::make_array(data.expect("a timestamp is a 64-bit integer"))
            }
        }
    }
}

fn number<T: FromStr + TryFrom<ScalarValue>>(text: &str, wanted: &DataType) -> Option<T> {
    text.parse().ok().or_else(|| read(text, wanted))
}

fn read<T: TryFrom<ScalarValue>>(text: &str, wanted: &DataType) -> Option<T> {
    T::try_from(read_text(text, wanted, None)?).ok()
}

fn timestamp(value: ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::TimestampSecond(value, _)
        | ScalarValue::TimestampMillisecond(value, _)
        | ScalarValue::TimestampMicrosecond(value, _)
        | ScalarValue::TimestampNanosecond(value, _) => value,
        _ => None,
    }
}

/// PostgreSQL's words for a text that is no value of a type.
fn wrong(text: &str, wanted: &DataType) -> Wrong {
    let name = super::functions::type_name_of(wanted).unwrap_or_else(|| wanted.to_string());
    let whole = wanted.is_integer() && text.trim().parse::<i128>().is_ok();
    if whole {
        return Wrong(
            "22003",
            format!("value \"{}\" is out of range for type {name}", text.trim()),
        );
    }
    Wrong(
        "22P02",
        format!("invalid input syntax for type {name}: \"{text}\""),
    )
}

/// A point in time as `YYYY-MM-DD HH:MM:SS`, with up to nine digits of a fraction and UTC or
/// nothing as its zone.
struct Moment {
    seconds: i64,
    nanos: i64,
    zoned: bool,
}

impl Moment {
    /// `None`: another shape, or no such time.
    fn of(text: &str) -> Option<Self> {
        let (head, rest) = text.as_bytes().split_at_checked(19)?;
        let [
            y0,
            y1,
            y2,
            y3,
            b'-',
            m0,
            m1,
            b'-',
            d0,
            d1,
            b' ' | b'T',
            h0,
            h1,
            b':',
            i0,
            i1,
            b':',
            s0,
            s1,
        ] = head
        else {
            return None;
        };
        let two = |a: &u8, b: &u8| digits(&[*a, *b]);
        let year = digits(&[*y0, *y1, *y2, *y3])?;
        let (month, day) = (two(m0, m1)?, two(d0, d1)?);
        let (hour, minute, second) = (two(h0, h1)?, two(i0, i1)?, two(s0, s1)?);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let month_days = match month {
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            1..=12 => 31,
            _ => return None,
        };
        if !(1..=month_days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let (nanos, zone) = match rest.split_first() {
            Some((b'.', more)) => {
                let len = more.iter().take_while(|b| b.is_ascii_digit()).count();
                let (fraction, zone) = more.split_at(len);
                let scale = 10_i64.pow(u32::try_from(9_usize.checked_sub(len)?).ok()?);
                (digits(fraction)? * scale, zone)
            }
            _ => (0, rest),
        };
        let zoned = match zone {
            b"" => false,
            b"Z" | b"z" | b"+00" | b"+00:00" => true,
            _ => return None,
        };
        Some(Self {
            seconds: days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second,
            nanos,
            zoned,
        })
    }

    /// In the units of a precision; `None`: it is finer, or does not fit.
    fn at(&self, precision: TimePrecision) -> Option<i64> {
        let per_second = precision.per_second();
        let step = 1_000_000_000 / per_second;
        if self.nanos % step != 0 {
            return None;
        }
        self.seconds
            .checked_mul(per_second)?
            .checked_add(self.nanos / step)
    }
}

/// A number of decimal digits; `None`: there is none, or another character.
fn digits(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0_i64, |n, b| {
        b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::ColumnId;

    fn column(column_type: ColumnType) -> Column {
        Column {
            id: ColumnId(0),
            name: "c".into(),
            column_type,
            nullable: true,
            default: None,
        }
    }

    fn stored(column_type: ColumnType, zone: &str, text: &str) -> Option<ScalarValue> {
        let mut values = ColumnText::new(&column(column_type), Some(zone));
        values.push(text.as_bytes()).ok()?;
        ScalarValue::try_from_array(&values.take(), 0).ok()
    }

    #[test]
    fn a_text_gives_the_value_that_the_same_literal_gives() {
        let timestamp = |precision, utc| ColumnType::Timestamp { precision, utc };
        let types = [
            ColumnType::Boolean,
            ColumnType::Int16,
            ColumnType::Int64,
            ColumnType::Float32,
            ColumnType::Float64,
            ColumnType::Decimal {
                precision: 12,
                scale: 3,
            },
            ColumnType::Date,
            timestamp(TimePrecision::Second, true),
            timestamp(TimePrecision::Millisecond, false),
            timestamp(TimePrecision::Microsecond, true),
            timestamp(TimePrecision::Nanosecond, false),
        ];
        let texts = [
            "t",
            "no",
            "1",
            "-7",
            " 42 ",
            "40000",
            "1e3",
            "2.5",
            "nan",
            "-inf",
            "1.2345",
            "x",
            "",
            "2026-01-01",
            "2026-01-01 02:03:04",
            "2026-01-01T02:03:04Z",
            "1969-12-31 23:59:59.5",
            "2024-02-29 00:00:00.123456789+00",
            "2023-02-29 00:00:00",
            "2026-01-01 02:03:04+02",
            "1900-02-29 00:00:00",
            "2000-02-29 23:59:59.999999+00:00",
            "2026-01-01 24:00:00",
            "2026-01-01 02:03",
            "2600-01-01 00:00:00",
            "2026-01-01 00:00:00.0000000001",
        ];
        for column_type in types {
            for zone in ["UTC", "+03:00"] {
                for text in texts {
                    let literal = read_text(text, &column_type.arrow(), Some(zone))
                        .filter(|value| !value.is_null());
                    let copied = stored(column_type, zone, text);
                    assert_eq!(copied, literal, "{column_type} in {zone}: {text:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_value_is_refused_in_postgresqls_words() {
        let refused = |column_type, text: &[u8]| {
            let mut values = ColumnText::new(&column(column_type), None);
            values.push(text).expect_err("refused")
        };
        assert_eq!(
            refused(ColumnType::Int16, b"40000"),
            Wrong(
                "22003",
                "value \"40000\" is out of range for type smallint".into()
            )
        );
        assert_eq!(
            refused(ColumnType::Float64, b"fast"),
            Wrong(
                "22P02",
                "invalid input syntax for type double precision: \"fast\"".into()
            )
        );
        assert_eq!(refused(ColumnType::Text, b"a\0b").0, "22021");
        assert_eq!(refused(ColumnType::Text, b"\xff").0, "22021");
        let mut values = ColumnText::new(
            &Column {
                nullable: false,
                ..column(ColumnType::Text)
            },
            None,
        );
        assert_eq!(values.push_null().expect_err("refused").0, "23502");
        values.push(b"").expect("empty is not NULL");
        assert_eq!(values.take().len(), 1);
    }
}
