//! What `SET`, `SHOW` and `RESET` reach: settings of one session.

use std::collections::BTreeMap;

use crate::error::{Kind, Result, nearest};
use crate::{QueryError, SessionOptions};

/// Settings of one session.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Schema in which unqualified names are looked up.
    pub schema: String,
    /// Time limit of a statement in milliseconds; 0: none.
    pub timeout_ms: u64,
    /// Time zone of TIMESTAMPTZ values in casts and output.
    pub timezone: String,
    /// The freshness asked for, as written.
    pub consistency: String,
    /// The place asked for, as written.
    pub read_from: String,
    /// Refuse writes.
    pub read_only: bool,
    /// Settings that PostgreSQL clients send and that change nothing here.
    pub accepted: BTreeMap<String, String>,
}

/// PostgreSQL settings that are taken, kept and shown, but mean nothing to this engine.
const ACCEPTED: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("extra_float_digits", "1"),
    ("idle_in_transaction_session_timeout", "0"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("lc_messages", "C"),
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
    ("lock_timeout", "0"),
    ("max_identifier_length", "255"),
    ("row_security", "on"),
    ("server_encoding", "UTF8"),
    ("server_version", "16.6"),
    ("server_version_num", "160006"),
    ("standard_conforming_strings", "on"),
    ("synchronous_commit", "on"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
    ("xmloption", "content"),
];

/// Settings of our own.
const OWN: &[&str] = &[
    "search_path",
    "statement_timeout",
    "timezone",
    "consistency",
    "read_from",
];

/// PostgreSQL settings that clients may only look at.
const FIXED: &[&str] = &[
    "integer_datetimes",
    "lc_messages",
    "max_identifier_length",
    "server_encoding",
    "server_version",
    "server_version_num",
];

impl Settings {
    pub(crate) fn new(options: &SessionOptions, timeout_ms: u64) -> Self {
        Self {
            schema: options.schema.clone(),
            timeout_ms: options.timeout_ms.unwrap_or(timeout_ms),
            timezone: "UTC".into(),
            consistency: "strong".into(),
            read_from: "nearest".into(),
            read_only: options.read_only,
            accepted: BTreeMap::new(),
        }
    }

    /// The value of a setting as text.
    pub(crate) fn get(&self, name: &str) -> Result<String> {
        let name = canonical(name);
        Ok(match name.as_str() {
            "search_path" => self.schema.clone(),
            "statement_timeout" => format_timeout(self.timeout_ms),
            "timezone" => self.timezone.clone(),
            "consistency" => self.consistency.clone(),
            "read_from" => self.read_from.clone(),
            other => match (self.accepted.get(other), default_of(other)) {
                (Some(value), _) => value.clone(),
                (None, Some(value)) => value.to_owned(),
                (None, None) => return Err(unknown(other)),
            },
        })
    }

    /// All settings, sorted by name.
    pub(crate) fn all(&self) -> Vec<(String, String)> {
        let mut names: Vec<&str> = OWN
            .iter()
            .copied()
            .chain(ACCEPTED.iter().map(|(name, _)| *name))
            .collect();
        names.sort_unstable();
        names
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), self.get(name).ok()?)))
            .collect()
    }

    /// Sets one. `values`: what stood after `=` or `TO`, quotes taken off.
    pub(crate) fn set(&mut self, name: &str, values: &[String]) -> Result<()> {
        let name = canonical(name);
        let first = values.first().map_or("", String::as_str);
        match name.as_str() {
            "search_path" => {
                // PostgreSQL clients send lists; the first schema that is not theirs counts.
                let schema = values
                    .iter()
                    .flat_map(|value| value.split(','))
                    .map(|part| part.trim().trim_matches('"'))
                    .find(|part| {
                        !part.is_empty() && !part.starts_with('$') && *part != "pg_catalog"
                    });
                self.schema = schema.unwrap_or("public").to_owned();
            }
            "statement_timeout" => self.timeout_ms = parse_timeout(first)?,
            "timezone" => self.timezone = parse_timezone(first)?,
            "consistency" => {
                check_consistency(first)?;
                self.consistency = first.to_owned();
            }
            "read_from" => {
                if !["nearest", "leader", "follower", "any"].contains(&first) {
                    return Err(QueryError::new(
                        Kind::INVALID_VALUE,
                        format!("read_from is nearest, leader, follower or any, not {first:?}"),
                    ));
                }
                self.read_from = first.to_owned();
            }
            other if FIXED.contains(&other) => {
                return Err(QueryError::new(
                    Kind::INVALID_VALUE,
                    format!("setting {other:?} cannot be changed"),
                ));
            }
            "client_encoding"
                if !["utf8", "utf-8", "unicode"].contains(&first.to_lowercase().as_str()) =>
            {
                return Err(QueryError::unsupported(format!(
                    "client_encoding is UTF8; {first:?} is not supported"
                )));
            }
            other if default_of(other).is_some() => {
                self.accepted.insert(other.to_owned(), values.join(", "));
            }
            // PostgreSQL takes any name with a dot as a setting of some extension.
            other if other.contains('.') => {
                self.accepted.insert(other.to_owned(), values.join(", "));
            }
            other => return Err(unknown(other)),
        }
        Ok(())
    }

    /// Back to what the session began with.
    pub(crate) fn reset(&mut self, name: &str, original: &Self) -> Result<()> {
        let name = canonical(name);
        match name.as_str() {
            "search_path" => self.schema.clone_from(&original.schema),
            "statement_timeout" => self.timeout_ms = original.timeout_ms,
            "timezone" => self.timezone.clone_from(&original.timezone),
            "consistency" => self.consistency.clone_from(&original.consistency),
            "read_from" => self.read_from.clone_from(&original.read_from),
            "all" => *self = original.clone(),
            other => {
                self.get(other)?;
                self.accepted.remove(other);
            }
        }
        Ok(())
    }
}

fn canonical(name: &str) -> String {
    let name = name.to_lowercase();
    match name.as_str() {
        "time zone" | "time_zone" => "timezone".into(),
        "schema" => "search_path".into(),
        "names" => "client_encoding".into(),
        "transaction isolation level" => "transaction_isolation".into(),
        _ => name.strip_prefix("shoal.").map_or(name.clone(), Into::into),
    }
}

fn default_of(name: &str) -> Option<&'static str> {
    ACCEPTED
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| *value)
}

fn unknown(name: &str) -> QueryError {
    let error = QueryError::new(
        Kind::UNDEFINED_SETTING,
        format!("setting {name:?} does not exist"),
    );
    let names = OWN.iter().copied().chain(ACCEPTED.iter().map(|(n, _)| *n));
    match nearest(name, names) {
        Some(near) => error.with_hint(format!("did you mean {near:?}?")),
        None => error,
    }
}

fn check_consistency(value: &str) -> Result<()> {
    let known = matches!(value, "strong" | "session" | "eventual")
        || value
            .strip_prefix("bounded=")
            .is_some_and(|bound| parse_timeout(bound).is_ok());
    if known {
        Ok(())
    } else {
        Err(QueryError::new(
            Kind::INVALID_VALUE,
            format!("consistency is strong, session, bounded=500ms or eventual, not {value:?}"),
        ))
    }
}

/// Milliseconds, or a number with `us`, `ms`, `s`, `min`, `h`, `d`.
pub fn parse_timeout(text: &str) -> Result<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let bad = || {
        QueryError::new(
            Kind::INVALID_VALUE,
            format!(
                "{text:?} is not a time such as 500, '500ms', '10s' or '5min'; units are us, ms, s, min, h and d"
            ),
        )
    };
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let factor = match text[digits..].trim() {
        "" | "ms" => 1,
        "us" => return Ok(number.div_ceil(1000)),
        "s" => 1000,
        "min" | "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(bad)
}

fn format_timeout(ms: u64) -> String {
    match ms {
        0 => "0".into(),
        ms if ms.is_multiple_of(60_000) => format!("{}min", ms / 60_000),
        ms if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

fn parse_timezone(text: &str) -> Result<String> {
    let zone = match text.to_lowercase().as_str() {
        "utc" | "gmt" | "default" | "local" | "etc/utc" | "" => "UTC".to_owned(),
        _ => text.to_owned(),
    };
    // Arrow knows fixed offsets, and names when it was built with the zone data base.
    zone.parse::<arrow_array::timezone::Tz>().map_err(|_| {
        QueryError::new(
            Kind::INVALID_VALUE,
            format!("time zone {text:?} is not known; use 'UTC' or an offset such as '+02:00'"),
        )
    })?;
    Ok(zone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_take_the_forms_that_postgresql_clients_send() {
        let mut settings = Settings::new(&SessionOptions::default(), 60_000);
        let mut set = |name: &str, value: &str| {
            settings
                .set(name, &[value.to_owned()])
                .and_then(|()| settings.get(name))
        };
        assert_eq!(set("statement_timeout", "1500").expect("ms"), "1500ms");
        assert_eq!(set("statement_timeout", "2min").expect("min"), "2min");
        assert_eq!(set("search_path", "\"$user\", mine").expect("path"), "mine");
        assert_eq!(set("extra_float_digits", "3").expect("kept"), "3");
        assert_eq!(set("TimeZone", "+02:00").expect("zone"), "+02:00");
        assert_eq!(
            set("consistency", "bounded=500ms").expect("level"),
            "bounded=500ms"
        );
        assert!(set("consistency", "fresh").is_err());
        let error = set("statement_timeuot", "1").expect_err("slip");
        assert_eq!(
            error.hint.as_deref(),
            Some("did you mean \"statement_timeout\"?")
        );
    }
}
