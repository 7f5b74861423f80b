//! Probes and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::error::ApiError;
use super::{AppState, INFLUXDB_VERSION};
use crate::auth::serde_urlencoded_value;

/// `/ping`: 204, or with `verbose=true` the version as JSON, as InfluxDB 1.x.
pub async fn ping(RawQuery(query): RawQuery) -> Response {
    let verbose = serde_urlencoded_value(query.as_deref().unwrap_or(""), "verbose");
    match verbose.as_deref() {
        None | Some("" | "0" | "false") => StatusCode::NO_CONTENT.into_response(),
        Some(_) => Json(json!({ "version": INFLUXDB_VERSION })).into_response(),
    }
}

/// `/health`, in InfluxDB's shape.
pub async fn health(State(state): State<Arc<AppState>>) -> Response {
    let ready = readiness(&state);
    let (status, word, message) = match &ready {
        Ok(()) => (
            StatusCode::OK,
            "pass",
            "ready for queries and writes".to_owned(),
        ),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "fail", why.clone()),
    };
    let body = json!({
        "name": "influxdb",
        "message": message,
        "status": word,
        "checks": [],
        "version": INFLUXDB_VERSION,
        "product": format!("ShoalDB {}", env!("CARGO_PKG_VERSION")),
    });
    (status, Json(body)).into_response()
}

/// `/health/live`: the process answers.
pub async fn live() -> Json<serde_json::Value> {
    Json(json!({ "status": "live" }))
}

/// `/health/ready`: it takes reads and writes. A damaged shard does not make it unready: the
/// others are served, and `/v1/admin/shards` names the damage.
pub async fn ready(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    readiness(&state).map_err(|why| {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            shoal_types::Retry::Safe,
            why,
        )
    })?;
    Ok(Json(json!({ "status": "ready" })).into_response())
}

fn readiness(state: &AppState) -> Result<(), String> {
    if state.is_stopping() {
        return Err("the process is stopping".into());
    }
    Ok(())
}

/// `/metrics`, in the OpenMetrics text format.
pub async fn metrics(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let text = state
        .metrics
        .encode()
        .map_err(|e| ApiError::internal(format!("cannot write the metrics: {e}")))?;
    let content = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content)], text).into_response())
}
