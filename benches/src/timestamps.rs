//! Timestamps as the command line and SQL spell them.

/// Nanoseconds in a second.
pub(crate) const SECOND_NS: i64 = 1_000_000_000;

/// `YYYY-MM-DD hh:mm:ss.mmm` in UTC; what is below a millisecond is cut off.
pub(crate) fn sql_text(ns: i64) -> String {
    let seconds = ns.div_euclid(SECOND_NS);
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let second_of_day = seconds.rem_euclid(86_400);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}",
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
        ns.rem_euclid(SECOND_NS) / 1_000_000
    )
}

/// Nanoseconds since the epoch of `YYYY-MM-DD[Thh:mm:ss[Z]]`, taken as UTC.
pub(crate) fn parse(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let mut time = time.split(':').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let plausible = (1970..=2200).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..60).contains(&second)
        && date.next().is_none()
        && time.next().is_none();
    plausible.then(|| {
        let seconds =
            days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        seconds * SECOND_NS
    })
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

/// Days since 1970-01-01 to year, month, day: Howard Hinnant, "chrono-compatible low-level date
/// algorithms", civil_from_days.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`], same source.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
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
