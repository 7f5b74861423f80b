//! Probes and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use shoal_types::ShardId;

use super::error::ApiError;
use super::state::{AppState, INFLUXDB_VERSION};
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
    let readiness = Readiness::of(&state);
    let (status, word) = match readiness.refusal() {
        None => (StatusCode::OK, "pass"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "fail"),
    };
    let body = json!({
        "name": "influxdb",
        "message": readiness.summary(),
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

/// `/health/ready`: it takes reads and writes of at least one shard. One damaged shard must not
/// take the whole process out of a load balancer, but the answer names it.
pub async fn ready(State(state): State<Arc<AppState>>) -> Response {
    let readiness = Readiness::of(&state);
    let unserved: Vec<Value> = readiness
        .unserved
        .iter()
        .map(|(shard, why)| json!({ "shard": shard.to_string(), "why": why }))
        .collect();
    let mut body = json!({
        "status": "ready",
        "shards_serving": readiness.serving,
        "shards_unserved": unserved,
    });
    let Some(why) = readiness.refusal() else {
        return Json(body).into_response();
    };
    let error = ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "unavailable",
        shoal_types::Retry::Safe,
        why,
    );
    body["status"] = "not ready".into();
    body["error"] = error.json();
    error.respond(&body)
}

/// Whether requests should come here.
struct Readiness {
    stopping: bool,
    /// Of a node: whether it has joined its cluster, which serves what it does not serve itself.
    joined: Option<bool>,
    serving: usize,
    unserved: Vec<(ShardId, String)>,
}

impl Readiness {
    fn of(state: &AppState) -> Self {
        let (serving, unserved) = state.db.served();
        Self {
            stopping: state.is_stopping(),
            joined: state.cluster.as_ref().map(|cluster| cluster.has_joined()),
            serving,
            unserved,
        }
    }

    /// Why not.
    fn refusal(&self) -> Option<&'static str> {
        match (self.stopping, self.joined, self.serving) {
            (true, ..) => Some("the process is stopping"),
            (false, Some(false), _) => Some("the node has not joined its cluster yet"),
            (false, None, 0) => Some("no shard is served"),
            (false, ..) => None,
        }
    }

    fn summary(&self) -> String {
        let mut text = self
            .refusal()
            .unwrap_or("ready for queries and writes")
            .to_owned();
        for (shard, why) in &self.unserved {
            text.push_str(&format!("; shard {shard} is not served: {why}"));
        }
        text
    }
}

/// Content type of the OpenMetrics text format.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `/metrics`, in the OpenMetrics text format.
pub async fn metrics(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let text = state
        .metrics
        .encode()
        .map_err(|e| ApiError::internal(format!("cannot write the metrics: {e}")))?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response())
}
