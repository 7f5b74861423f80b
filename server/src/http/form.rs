//! Form bodies of `/query`: `q`, `db`, `u` and `p` as InfluxDB's clients and `curl -F` send them.
//! Not of `/write`: `curl --data-binary` calls its lines a form, and InfluxDB reads them as lines.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, header};

use super::error::ApiError;
use super::names;
use crate::auth::{Auth, not_utf8, url_pairs};

/// Bytes of a form that are read to find the token in it: before that nobody has been let in.
const UNPROVEN_BYTES_MAX: usize = 64 << 10;

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE);
    value.and_then(|v| v.to_str().ok()).unwrap_or("").trim()
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Whether a body says that it is a form.
#[must_use]
pub fn is_form(headers: &HeaderMap) -> bool {
    let kind = content_type(headers);
    starts_with(kind, "multipart/form-data")
        || starts_with(kind, "application/x-www-form-urlencoded")
}

/// The fields of a body, in order. What is not `multipart/form-data` is read as URL-encoded.
///
/// # Errors
/// 400 for a broken multipart body, or one with a field that is not UTF-8.
pub async fn fields(headers: &HeaderMap, bytes: Bytes) -> Result<Vec<(String, String)>, ApiError> {
    if !starts_with(content_type(headers), "multipart/form-data") {
        let text = std::str::from_utf8(&bytes).unwrap_or("");
        if is_form(headers)
            && let Some(name) = not_utf8(text)
        {
            return Err(names::no_text(name));
        }
        return Ok(url_pairs(text).collect());
    }
    let broken = |what: String| {
        ApiError::invalid(
            "invalid_request",
            format!("the multipart form is broken: {what}"),
        )
    };
    let mut request = Request::new(Body::from(bytes));
    *request.headers_mut() = headers.clone();
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|e| broken(e.body_text()))?;
    let mut fields = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|e| broken(e.body_text()))? {
        let Some(name) = field.name().map(str::to_owned) else {
            continue;
        };
        let value = field.text().await.map_err(|e| broken(e.body_text()))?;
        fields.push((name, value));
    }
    Ok(fields)
}

/// Whether the token stands in a form body; the request with its body put back.
pub async fn shows_token(auth: &Auth, request: Request) -> (bool, Request) {
    if !is_form(request.headers()) {
        return (false, request);
    }
    let (parts, body) = request.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, UNPROVEN_BYTES_MAX).await else {
        return (false, Request::from_parts(parts, Body::empty()));
    };
    let fields = fields(&parts.headers, bytes.clone())
        .await
        .unwrap_or_default();
    let shown = fields.iter().find(|(name, _)| name == "p");
    let accepted = shown.is_some_and(|(_, p)| auth.accepts(p));
    (accepted, Request::from_parts(parts, Body::from(bytes)))
}
