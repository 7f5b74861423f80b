//! Request headers of ours.

use axum::http::{HeaderMap, HeaderValue};
use shoal_types::WriteId;

use super::error::ApiError;

/// A header's text, if it is there.
///
/// # Errors
/// As [`text_of`].
pub fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    headers
        .get(name)
        .map(|value| text_of(value, name))
        .transpose()
}

/// A header's text. One that cannot be read must not be taken for none.
///
/// # Errors
/// 400, naming the header.
pub fn text_of<'a>(value: &'a HeaderValue, name: &str) -> Result<&'a str, ApiError> {
    let text = value.to_str();
    text.map_err(|_| ApiError::invalid("invalid_request", format!("{name} is not text")))
}

/// The id of `Shoal-Write-Id`: a retry with it is never applied twice.
///
/// # Errors
/// 400 if it is neither a UUIDv7 nor a ULID.
pub fn write_id(headers: &HeaderMap) -> Result<Option<WriteId>, ApiError> {
    header_text(headers, "Shoal-Write-Id")?
        .map(|id| {
            id.parse::<WriteId>()
                .map_err(|what| ApiError::invalid("invalid_write_id", what))
        })
        .transpose()
}

/// The time limit of `Shoal-Timeout`: `500ms`, `5s`, `2m` or a number of milliseconds.
///
/// # Errors
/// 400 for anything else.
pub fn timeout_header(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("Shoal-Timeout") else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(duration_ms)
        .filter(|ms| *ms > 0)
        .map(Some)
        .ok_or_else(|| {
            ApiError::invalid(
                "invalid_request",
                "Shoal-Timeout must be such as 500ms, 5s or 2m",
            )
        })
}

/// Milliseconds of `500ms`, `5s`, `2m`, `1h` or `500`.
fn duration_ms(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok()?.checked_mul(factor)
}
