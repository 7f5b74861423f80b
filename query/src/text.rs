//! Text as values, read as PostgreSQL reads it where Arrow's casts do not.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;

use crate::number::Number;

/// Text as a value of a type, by PostgreSQL's rules. `zone` is the session's: that of a
/// timestamp with time zone whose text names none; `None`: the type's own. A zone in the text of
/// a timestamp without time zone is ignored, as PostgreSQL does.
///
/// `None`: the text is no such value.
#[must_use]
pub fn read_text(text: &str, wanted: &DataType, zone: Option<&str>) -> Option<ScalarValue> {
    let cast = |text: &str, to: &DataType| ScalarValue::from(text).cast_to(to).ok();
    let trimmed = text.trim();
    match wanted {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            ScalarValue::Binary(Some(bytea(text)?)).cast_to(wanted).ok()
        }
        DataType::Timestamp(unit, to_zone) => {
            let Some(parts) = Parts::of(trimmed) else {
                return cast(trimmed, wanted);
            };
            let Some(to_zone) = to_zone else {
                return cast(&parts.moment(), wanted);
            };
            match parts.offset() {
                Some(offset) => cast(&format!("{}{}", parts.moment(), offset?), wanted),
                None => {
                    let zone = zone.unwrap_or(to_zone);
                    let there = DataType::Timestamp(*unit, Some(zone.into()));
                    cast(&parts.moment(), &there)?.cast_to(wanted).ok()
                }
            }
        }
        DataType::Date32 | DataType::Date64 => match Parts::of(trimmed) {
            Some(parts) => cast(&parts.date, wanted),
            None => cast(trimmed, wanted),
        },
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            let value = Number::parse(trimmed)?.to_decimal(*precision, *scale)?;
            value.cast_to(wanted).ok()
        }
        _ => cast(trimmed, wanted),
    }
}

/// The parts of a timestamp's text.
struct Parts<'a> {
    /// `YYYY-MM-DD`.
    date: String,
    /// `HH:MM:SS`, with up to nine digits of a fraction.
    time: String,
    /// What follows: `Z`, an offset, or nothing.
    zone: &'a str,
}

impl<'a> Parts<'a> {
    /// `None`: a shape that is not known here.
    fn of(text: &'a str) -> Option<Self> {
        let (year, rest) = number(text, 4, 4)?;
        let (month, rest) = number(rest.strip_prefix('-')?, 1, 2)?;
        let (day, rest) = number(rest.strip_prefix('-')?, 1, 2)?;
        let date = format!("{year:0>4}-{month:0>2}-{day:0>2}");
        let after = rest.trim_start_matches(['T', 't', ' ']);
        if after.is_empty() && rest.trim().is_empty() {
            let time = "00:00:00".to_owned();
            return Some(Self {
                date,
                time,
                zone: "",
            });
        }
        if after.len() == rest.len() {
            return None;
        }
        let (hour, rest) = number(after, 1, 2)?;
        let (minute, mut rest) = number(rest.strip_prefix(':')?, 2, 2)?;
        let mut time = format!("{hour:0>2}:{minute}");
        let mut second = "00";
        if let Some(more) = rest.strip_prefix(':') {
            (second, rest) = number(more, 2, 2)?;
        }
        time.push(':');
        time.push_str(second);
        if let Some(more) = rest.strip_prefix('.') {
            let digits = more.len() - more.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (fraction, more) = more.split_at(digits);
            if !fraction.is_empty() {
                time.push('.');
                time.push_str(&fraction[..fraction.len().min(9)]);
            }
            rest = more;
        }
        Some(Self {
            date,
            time,
            zone: rest.trim(),
        })
        .filter(|parts| parts.offset().is_none_or(|offset| offset.is_some()))
    }

    fn moment(&self) -> String {
        format!("{}T{}", self.date, self.time)
    }

    /// The zone as `±HH:MM`; `None`: none is given; `Some(None)`: none that is known here.
    fn offset(&self) -> Option<Option<String>> {
        if self.zone.is_empty() {
            return None;
        }
        let known = match self.zone.to_ascii_lowercase().as_str() {
            "z" | "utc" | "gmt" => Some("+00:00".to_owned()),
            _ => self.numeric_offset(),
        };
        Some(known)
    }

    fn numeric_offset(&self) -> Option<String> {
        let sign = self.zone.get(..1).filter(|s| matches!(*s, "+" | "-"))?;
        let (hours, rest) = number(&self.zone[1..], 1, 2)?;
        let minutes = match rest.strip_prefix(':').unwrap_or(rest) {
            "" if rest.is_empty() => "00",
            digits => number(digits, 2, 2).filter(|(_, end)| end.is_empty())?.0,
        };
        Some(format!("{sign}{hours:0>2}:{minutes}"))
    }
}

/// Digits at the start, between `least` and `most` of them, and what follows.
fn number(text: &str, least: usize, most: usize) -> Option<(&str, &str)> {
    let digits = text
        .bytes()
        .take(most)
        .take_while(u8::is_ascii_digit)
        .count();
    (digits >= least).then(|| text.split_at(digits))
}

/// The bytes of a `bytea` literal, `\x…` or escaped; `None`: it is neither.
#[must_use]
pub fn bytea(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8, radix: u32| (b as char).to_digit(radix).map(|d| d as u8);
    if let Some(hex) = text.strip_prefix("\\x") {
        // Blanks may stand between bytes, not within one.
        return hex
            .split_ascii_whitespace()
            .flat_map(|part| part.as_bytes().chunks(2))
            .map(|pair| match pair {
                [high, low] => Some(digit(*high, 16)? << 4 | digit(*low, 16)?),
                _ => None,
            })
            .collect();
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = match (first, tail) {
            (b'\\', [b'\\', more @ ..]) => {
                out.push(b'\\');
                more
            }
            (b'\\', [a @ b'0'..=b'3', b, c, more @ ..]) => {
                out.push(digit(*a, 8)? << 6 | digit(*b, 8)? << 3 | digit(*c, 8)?);
                more
            }
            (b'\\', _) => return None,
            (other, more) => {
                out.push(*other);
                more
            }
        };
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::datatypes::TimeUnit;

    use super::*;

    /// 2026-01-01 00:00 UTC in seconds.
    const DAY: i64 = 1_767_225_600;

    #[test]
    fn timestamps_are_read_in_postgresqls_spellings() {
        let plain = DataType::Timestamp(TimeUnit::Second, None);
        let zoned = DataType::Timestamp(TimeUnit::Second, Some("UTC".into()));
        let seconds = |text: &str, to: &DataType| match read_text(text, to, Some("+01:00")) {
            Some(ScalarValue::TimestampSecond(Some(s), _)) => Some(s - DAY),
            _ => None,
        };
        for (text, without, with) in [
            ("2026-01-01", 0, -3600),
            (" 2026-1-1 ", 0, -3600),
            ("2026-01-01 02:00", 7200, 3600),
            ("2026-01-01T02:00Z", 7200, 7200),
            ("2026-01-01 02:00:00.123456789123 UTC", 7200, 7200),
            ("2026-01-01 10:00:00+02", 36_000, 28_800),
            ("2026-01-01 10:00:00 +0230", 36_000, 27_000),
            ("2026-01-01t10:00:00-02:30", 36_000, 45_000),
        ] {
            assert_eq!(seconds(text, &plain), Some(without), "{text}");
            assert_eq!(seconds(text, &zoned), Some(with), "{text}");
        }
        for text in [
            "",
            "yesterdayish",
            "2026-13-01",
            "2026-01-01 25:00",
            "2026-01-01 02:00+2x",
        ] {
            assert_eq!(seconds(text, &plain), None, "{text}");
            assert_eq!(seconds(text, &zoned), None, "{text}");
        }
    }

    #[test]
    fn bytes_are_read_as_hex_or_with_escapes() {
        assert_eq!(bytea("\\xdeAD"), Some(vec![0xde, 0xad]));
        assert_eq!(bytea("\\x"), Some(vec![]));
        assert_eq!(bytea("a\\\\b\\001"), Some(b"a\\b\x01".to_vec()));
        for bad in ["\\xd", "\\xgg", "\\q", "\\x€"] {
            assert_eq!(bytea(bad), None, "{bad}");
        }
    }
}
