//! The names that a request may use. One that is not known is refused: `?tabel=cpu` must not mean
//! "all tables", nor `?presicion=s` nanoseconds. On InfluxDB's paths those are known that its
//! clients send, whether they mean something here or not.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::auth::url_pairs;
use crate::nearest::nearest;

/// Parameters of every path: how InfluxDB's clients show the token.
const CREDENTIALS: &[&str] = &["u", "p"];

/// What InfluxDB's clients send with a write. Of no meaning here: `rp` (retention is a table's
/// TTL), `consistency` (a write is acknowledged once it is durable), `org` and `orgID`.
pub const INFLUX_WRITE: &[&str] = &[
    "db",
    "bucket",
    "precision",
    "rp",
    "consistency",
    "org",
    "orgID",
    "atomic",
];

/// What they send with a query; only `q` and `db` mean something to the statements that are
/// understood.
pub const INFLUX_QUERY: &[&str] = &[
    "q",
    "db",
    "rp",
    "epoch",
    "precision",
    "pretty",
    "chunked",
    "chunk_size",
    "params",
    "async",
    "node_id",
    "org",
    "orgID",
    "bucket",
];

/// Refuses a parameter that InfluxDB's clients do not send on this path.
///
/// # Errors
/// 400 with the nearest known one.
pub fn check_influx<'a>(
    names: impl IntoIterator<Item = &'a str>,
    known: &[&str],
) -> Result<(), ApiError> {
    for name in names {
        if !CREDENTIALS.contains(&name) && !known.contains(&name) {
            return Err(unknown("parameter", name, known));
        }
    }
    Ok(())
}

/// The error for a parameter that is no text.
#[must_use]
pub fn no_text(name: String) -> ApiError {
    ApiError::invalid(
        "invalid_request",
        format!("query parameter {name:?} is not valid UTF-8"),
    )
}

/// Refuses a query parameter that is not among `known`, or that is there twice.
///
/// # Errors
/// 400 with the nearest known one.
pub fn check_query(query: &str, known: &[&str]) -> Result<(), ApiError> {
    let mut seen: Vec<String> = Vec::new();
    for (name, _) in url_pairs(query) {
        if CREDENTIALS.contains(&name.as_str()) {
            continue;
        }
        if !known.contains(&name.as_str()) {
            return Err(unknown("query parameter", &name, known));
        }
        if seen.contains(&name) {
            return Err(ApiError::invalid(
                "invalid_request",
                format!("query parameter {name:?} is there twice"),
            ));
        }
        seen.push(name);
    }
    Ok(())
}

/// A body that is a JSON object with some of the fields `known`.
///
/// # Errors
/// 400; for an unknown field with the nearest known one.
pub fn object<T: DeserializeOwned>(bytes: &[u8], known: &[&str]) -> Result<T, ApiError> {
    // An array would be read as the fields in their order.
    let is_array = bytes.trim_ascii_start().first() == Some(&b'[');
    let what = match serde_json::from_slice::<T>(bytes) {
        _ if is_array => "an object is expected".to_owned(),
        Ok(read) => return Ok(read),
        Err(error) => error.to_string(),
    };
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_slice(bytes).unwrap_or_default();
    match fields.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(unknown("field", name, known)),
        None => Err(ApiError::invalid(
            "invalid_request",
            format!("the body is not right: {what}"),
        )),
    }
}

/// The fields of a command: from the query string and from a body, which may be empty. Those of
/// `flags` are true or false.
///
/// # Errors
/// 400: an unknown one, one that is there twice, a wrong type.
pub fn command<T: DeserializeOwned>(
    query: &str,
    body: &[u8],
    known: &[&str],
    flags: &[&str],
) -> Result<T, ApiError> {
    check_query(query, known)?;
    let mut fields: Map<String, Value> = if body.is_empty() {
        Map::new()
    } else {
        // Unknown ones are found here already, before those of the query string join them.
        object::<T>(body, known)?;
        object(body, known)?
    };
    for (name, value) in url_pairs(query).filter(|(name, _)| known.contains(&name.as_str())) {
        if fields.contains_key(&name) {
            return Err(ApiError::invalid(
                "invalid_request",
                format!("{name:?} is both in the query string and in the body"),
            ));
        }
        let value = if flags.contains(&name.as_str()) {
            flag(&name, &value)?.into()
        } else {
            value.into()
        };
        fields.insert(name, value);
    }
    serde_json::from_value(Value::Object(fields))
        .map_err(|e| ApiError::invalid("invalid_request", e.to_string()))
}

/// `true` or `false` of a query parameter; the bare name means yes.
///
/// # Errors
/// 400 for anything else.
pub fn flag(name: &str, text: &str) -> Result<bool, ApiError> {
    match text {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(ApiError::invalid(
            "invalid_request",
            format!("{name} = {other:?} is neither true nor false"),
        )),
    }
}

fn unknown(kind: &str, name: &str, known: &[&str]) -> ApiError {
    let remedy = match (nearest(name, known.iter().copied()), known) {
        (Some(near), _) => format!("did you mean {near:?}?"),
        (None, []) => "none is known here".to_owned(),
        (None, known) => format!("known here: {}", known.join(", ")),
    };
    ApiError::invalid(
        "invalid_request",
        format!("unknown {kind} {name:?}; {remedy}"),
    )
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Wanted {
        table: Option<String>,
        dry_run: bool,
    }

    fn read(query: &str, body: &str) -> Result<Wanted, String> {
        let known = &["table", "dry_run"];
        command(query, body.as_bytes(), known, &["dry_run"]).map_err(|e| e.message)
    }

    #[test]
    fn fields_come_from_either_place_and_unknown_ones_name_the_nearest() {
        let wanted = Wanted {
            table: Some("a b".into()),
            dry_run: true,
        };
        assert_eq!(read("table=a+b&dry_run&p=token", ""), Ok(wanted));
        assert_eq!(read("", "").map(|w| w.table), Ok(None));
        assert!(read("dry_run=1", r#"{"table":"x"}"#).is_ok_and(|w| w.dry_run));
        for (query, body, part) in [
            ("tabel=x", "", r#"did you mean "table"?"#),
            ("", r#"{"tabel":"x"}"#, r#"did you mean "table"?"#),
            ("", r#"{"zzz":1}"#, "known here: table, dry_run"),
            ("table=a&table=b", "", "twice"),
            ("table=a", r#"{"table":"b"}"#, "both"),
            ("dry_run=maybe", "", "neither true nor false"),
            ("", r#"["x"]"#, "an object is expected"),
            ("", r#"{"table":1}"#, "expected a string"),
            ("", "{", "EOF"),
        ] {
            let error = read(query, body).expect_err(body);
            assert!(error.contains(part), "{query} {body}: {error}");
        }
    }
}
