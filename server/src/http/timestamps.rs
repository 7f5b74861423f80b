//! Instants as RFC 3339 text in UTC.

use crate::civil::civil;

fn digits(out: &mut Vec<u8>, mut value: u64, width: usize) {
    let at = out.len();
    out.resize(at + width, b'0');
    for place in (at..at + width).rev() {
        out[place] = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Appends `2026-01-31` for a number of days since 1970-01-01. Years outside 0000 to 9999 get a
/// sign and six digits (ISO 8601 expanded form), which RFC 3339 has no words for.
pub fn push_date(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = civil(days);
    if (0..=9999).contains(&year) {
        digits(out, year.unsigned_abs(), 4);
    } else {
        out.push(if year < 0 { b'-' } else { b'+' });
        let width = year.unsigned_abs().to_string().len().max(6);
        digits(out, year.unsigned_abs(), width);
    }
    out.push(b'-');
    digits(out, u64::from(month), 2);
    out.push(b'-');
    digits(out, u64::from(day), 2);
}

/// Appends `2026-01-31T12:00:00.5Z`: an instant in units of which `per_second` make a second.
/// The fraction has 3, 6 or 9 digits, none where it is zero.
pub fn push_timestamp(out: &mut Vec<u8>, value: i64, per_second: i64) {
    let seconds = value.div_euclid(per_second);
    let fraction = value.rem_euclid(per_second);
    push_date(out, seconds.div_euclid(86_400));
    out.push(b'T');
    push_time(out, seconds.rem_euclid(86_400), fraction, per_second);
    out.push(b'Z');
}

/// Appends `12:00:00.500` for seconds of a day and a fraction.
pub fn push_time(out: &mut Vec<u8>, seconds: i64, fraction: i64, per_second: i64) {
    let seconds = seconds.unsigned_abs();
    digits(out, seconds / 3600, 2);
    out.push(b':');
    digits(out, seconds / 60 % 60, 2);
    out.push(b':');
    digits(out, seconds % 60, 2);
    if fraction == 0 {
        return;
    }
    let nanos = (fraction * (1_000_000_000 / per_second)).unsigned_abs();
    out.push(b'.');
    if nanos.is_multiple_of(1_000_000) {
        digits(out, nanos / 1_000_000, 3);
    } else if nanos.is_multiple_of(1000) {
        digits(out, nanos / 1000, 6);
    } else {
        digits(out, nanos, 9);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_rfc_3339_on_both_sides_of_the_epoch() {
        let text = |value, per_second| {
            let mut out = Vec::new();
            push_timestamp(&mut out, value, per_second);
            String::from_utf8(out).expect("ascii")
        };
        assert_eq!(text(0, 1), "1970-01-01T00:00:00Z");
        assert_eq!(text(-1, 1000), "1969-12-31T23:59:59.999Z");
        assert_eq!(
            text(1_767_225_600_000_000_001, 1_000_000_000),
            "2026-01-01T00:00:00.000000001Z"
        );
        assert_eq!(
            text(951_782_400_500_000, 1_000_000),
            "2000-02-29T00:00:00.500Z"
        );
        assert_eq!(
            text(i64::MIN, 1_000_000_000),
            "1677-09-21T00:12:43.145224192Z"
        );
        assert_eq!(text(253_402_300_800, 1), "+010000-01-01T00:00:00Z");
        assert_eq!(text(i64::MAX, 1).get(..1), Some("+"));
    }
}
