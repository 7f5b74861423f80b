//! Timestamps as the command line and SQL spell them.

use chrono::{DateTime, NaiveDate, NaiveDateTime};

/// Nanoseconds in a second.
pub(crate) const SECOND_NS: i64 = 1_000_000_000;

/// `YYYY-MM-DD hh:mm:ss.mmm` in UTC; what is below a millisecond is cut off.
pub(crate) fn sql_text(ns: i64) -> String {
    DateTime::from_timestamp_nanos(ns)
        .format("%Y-%m-%d %H:%M:%S%.3f")
        .to_string()
}

/// Nanoseconds since the epoch of `YYYY-MM-DD[Thh:mm:ss[Z]]`, taken as UTC.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text).replace(' ', "T");
    let instant = if text.contains('T') {
        NaiveDateTime::parse_from_str(&text, "%Y-%m-%dT%H:%M:%S").ok()?
    } else {
        NaiveDate::parse_from_str(&text, "%Y-%m-%d")
            .ok()?
            .and_hms_opt(0, 0, 0)?
    };
    instant.and_utc().timestamp_nanos_opt()
}

/// Seconds of `10s`, `5m`, `24h`, `3d`.
pub(crate) fn parse_seconds(text: &str) -> Option<u64> {
    let (number, unit_s) = match text.char_indices().last()? {
        (at, 's') => (&text[..at], 1),
        (at, 'm') => (&text[..at], 60),
        (at, 'h') => (&text[..at], 3600),
        (at, 'd') => (&text[..at], 86_400),
        _ => return None,
    };
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(unit_s)
        .filter(|s| *s > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_survive_a_round_trip_through_their_text() {
        for text in [
            "1970-01-01 00:00:00.000",
            "2000-02-29 23:59:59.000",
            "2026-12-31 12:30:01.000",
        ] {
            let ns = parse(&text[..19]).expect("a date");
            assert_eq!(sql_text(ns), text);
        }
        assert_eq!(
            parse("2026-01-01T00:00:00Z"),
            Some(1_767_225_600 * SECOND_NS)
        );
        assert_eq!(parse("2026-13-01"), None);
        assert_eq!(parse_seconds("24h"), Some(86_400));
        assert_eq!(parse_seconds("0s"), None);
        assert_eq!(parse_seconds("h"), None);
    }
}
