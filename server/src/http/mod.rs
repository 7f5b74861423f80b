//! The HTTP interface (DESIGN §7): routes, who may use them, and what all of them share.

mod admin;
mod answer;
pub(crate) mod body;
mod cells;
mod cluster;
mod command;
mod error;
mod form;
mod forward;
mod headers;
mod health;
mod import;
mod influxql;
mod ingest;
mod listener;
mod names;
mod openapi;
mod params;
mod repair;
mod rows;
mod split;
mod sql;
mod state;
mod timestamps;
mod write;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Map;
use shoal_types::Retry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use body::Intake;
pub(crate) use cluster::{missing_nodes, not_leading_at, schedulers};
pub use error::ApiError;
pub use forward::{Buffered, Forward};
pub use health::OPENMETRICS;
pub use names::{check_query, command as command_fields};
pub use params::type_named;
use state::INFLUXDB_VERSION;
pub use state::{AppState, LineProtocolTables};
pub use timestamps::push_timestamp;

use crate::auth::not_utf8;

/// Header that says who gives an order, for the record of it.
pub const OPERATOR: &str = "shoal-operator";

/// Paths that need no token: probes and the greeting of InfluxDB's clients.
const OPEN_PATHS: &[&str] = &["/ping", "/health", "/health/live", "/health/ready"];
/// Paths whose errors have InfluxDB's shape.
const INFLUX_PATHS: &[&str] = &["/write", "/api/v2/write", "/query"];

/// All routes.
pub fn router(state: Arc<AppState>) -> Router {
    Router::new()
        .route("/v1/sql", post(sql::sql))
        .route("/write", post(write::write_v1))
        .route("/api/v2/write", post(write::write_v2))
        .route("/query", get(influxql::query).post(influxql::query))
        .route("/ping", get(health::ping))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/v1/ingest/{table}", post(ingest::ingest))
        .route("/v1/import/{id}", get(import::progress))
        .route("/v1/route/{table}", get(admin::route))
        .route("/v1/admin/nodes", get(cluster::nodes))
        .route("/v1/admin/nodes/{node}/{order}", post(cluster::scheduler))
        .route("/v1/admin/procedures", get(cluster::scheduler))
        .route("/v1/admin/procedures/{id}", get(cluster::scheduler))
        .route(
            "/v1/admin/procedures/{id}/{order}",
            post(cluster::scheduler),
        )
        .route(
            "/v1/admin/settings",
            get(cluster::scheduler).put(cluster::scheduler),
        )
        .route(
            "/v1/admin/balance/{order}",
            get(cluster::scheduler).post(cluster::scheduler),
        )
        .route("/v1/admin/shards", get(admin::shards))
        .route("/v1/admin/shards/{shard}/split", post(split::split))
        .route("/v1/admin/shards/{shard}/{order}", post(cluster::order))
        .route(
            "/v1/admin/shards/{shard}/skip-record",
            post(repair::skip_record),
        )
        .route(
            "/v1/admin/shards/{shard}/adopt-log",
            post(repair::adopt_log),
        )
        .route("/v1/admin/tables", get(admin::tables))
        .route("/v1/admin/flush", post(admin::flush))
        .route("/v1/admin/compact", post(admin::compact))
        .route("/v1/admin/gc", post(admin::gc))
        .route(
            "/v1/admin/checksum",
            get(admin::checksum).post(admin::checksum),
        )
        .route("/v1/openapi.json", get(openapi::document))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard))
        .with_state(state)
}

/// Serves connections until `shutdown`, then ends those that are idle and lets requests under way
/// finish.
///
/// # Errors
/// The listener failed.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AppState>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let bounded = listener::BoundedListener::new(
        listener,
        state.connections_max,
        state.metrics.http_connections.clone(),
    );
    axum::serve(bounded, router(state))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

/// Lets a request in or not, and counts it.
async fn guard(State(state): State<Arc<AppState>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let path = request.uri().path().to_owned();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let method = request.method().clone();
    let authorization = request
        .headers()
        .get(header::AUTHORIZATION)
        // A header that is not text shows nothing, but it was meant to.
        .map(|v| v.to_str().unwrap_or("").to_owned());
    let mut allowed = OPEN_PATHS.contains(&path.as_str())
        || state
            .auth
            .accepts_http(authorization.as_deref(), request.uri().query());
    let _under_way = state.metrics.request_begins();
    if !allowed && authorization.is_none() && path == "/query" {
        (allowed, request) = form::shows_token(&state.auth, request).await;
    }
    let refused = if allowed {
        request.uri().query().and_then(not_utf8).map(names::no_text)
    } else {
        Some(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            Retry::Never,
            if authorization.is_some() {
                "the token is wrong"
            } else {
                "a token is needed: Authorization: Bearer TOKEN"
            },
        ))
    };
    let mut response = match refused {
        None => next.run(request).await,
        Some(error) if INFLUX_PATHS.contains(&path.as_str()) => error.influx_response(Map::new()),
        Some(error) => error.into_response(),
    };
    if INFLUX_PATHS.contains(&path.as_str()) || path == "/ping" || path == "/health" {
        let headers = response.headers_mut();
        headers.insert(
            "X-Influxdb-Version",
            header::HeaderValue::from_static(INFLUXDB_VERSION),
        );
        headers.insert(
            "X-Influxdb-Build",
            header::HeaderValue::from_static("ShoalDB"),
        );
    }
    state
        .metrics
        .request_ends(&route, &method, response.status(), began.elapsed());
    // A statement's own time limit and what is not built yet are the client's affair; a probe's
    // 503 is its answer.
    let ours = !path.starts_with("/health")
        && response.status().is_server_error()
        && !matches!(
            response.status(),
            StatusCode::GATEWAY_TIMEOUT | StatusCode::NOT_IMPLEMENTED
        );
    if ours {
        let reason = response
            .extensions()
            .get::<error::Reason>()
            .map_or("", |r| r.0.as_str());
        tracing::warn!(%method, path, status = response.status().as_u16(), reason, "request failed");
    }
    response
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        Retry::Never,
        format!(
            "there is nothing at {}; /v1/openapi.json lists what there is",
            request.uri().path()
        ),
    )
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        Retry::Never,
        format!(
            "{} is not allowed on {}",
            request.method(),
            request.uri().path()
        ),
    )
}
