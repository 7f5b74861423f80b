//! The scheduler's HTTP interface. Any scheduler takes any request: one that does not lead hands it
//! to the one that does, and what is about data to a node.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shoal_meta::Snapshot;
use shoal_scheduler::Settings;
use shoal_types::Retry;

use super::desk::{Desk, Said};
use crate::http::{ApiError, OPERATOR, command_fields, not_leading_at};

/// An order is small.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Paths that need no token.
const OPEN_PATHS: &[&str] = &["/health", "/health/live", "/health/ready"];

/// All routes.
pub(super) fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/health", get(live))
        .route("/health/live", get(live))
        .route("/health/ready", get(live))
        .route("/metrics", get(metrics))
        .route("/v1/admin/nodes", get(lead))
        .route("/v1/admin/nodes/{node}/{order}", post(lead))
        .route("/v1/admin/shards/{shard}/{order}", post(lead))
        .route("/v1/admin/shards/{shard}/skip-record", post(to_a_node))
        .route("/v1/admin/shards/{shard}/adopt-log", post(to_a_node))
        .route("/v1/admin/procedures", get(lead))
        .route("/v1/admin/procedures/{id}", get(lead))
        .route("/v1/admin/procedures/{id}/{order}", post(lead))
        .route("/v1/admin/settings", get(lead).put(lead))
        .route("/v1/admin/balance/{order}", get(lead).post(lead))
        .fallback(to_a_node)
        .layer(middleware::from_fn_with_state(Arc::clone(&desk), guard))
        .with_state(desk)
}

async fn guard(State(desk): State<Arc<Desk>>, request: Request, next: Next) -> Response {
    let authorization = request.headers().get(header::AUTHORIZATION);
    let authorization = authorization.map(|v| v.to_str().unwrap_or("").to_owned());
    let allowed = OPEN_PATHS.contains(&request.uri().path())
        || desk
            .auth
            .accepts_http(authorization.as_deref(), request.uri().query());
    if allowed {
        return next.run(request).await;
    }
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        Retry::Never,
        "a token is needed: Authorization: Bearer TOKEN",
    )
    .into_response()
}

async fn live(State(desk): State<Arc<Desk>>) -> Response {
    let leading = desk.leads();
    axum::Json(json!({ "status": "ready", "leading": leading })).into_response()
}

async fn metrics(State(desk): State<Arc<Desk>>) -> Response {
    desk.metrics.show(&desk).await
}

/// What only the scheduler that leads can answer.
async fn lead(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    if desk.leads() {
        let said = answer(&desk, request).await;
        return match said {
            Ok((status, body)) => (status, axum::Json(body)).into_response(),
            Err(error) => error.into_response(),
        };
    }
    let leader = desk.topology.snapshot().scheduler.clone();
    match leader.filter(|l| l.process != desk.process) {
        Some(leader) => {
            let what = "the scheduler that leads";
            let gone = not_leading_at(&desk.topology, &leader.http);
            let handed = desk.forward.to(&leader.http, what, request, gone);
            handed.await.unwrap_or_else(IntoResponse::into_response)
        }
        None => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            Retry::Safe,
            "no scheduler leads at this moment; ask again",
        )
        .into_response(),
    }
}

async fn to_a_node(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let snapshot = desk.topology.snapshot();
    let node = snapshot.nodes.values().find(|n| !n.http.is_empty());
    match node {
        Some(node) => {
            let unregistered = async {
                let mut changes = desk.topology.subscribe();
                let there = |s: &Arc<Snapshot>| s.nodes.contains_key(&node.id);
                // An error means that the topology is not followed any more.
                let _ = changes.wait_for(|snapshot| !there(snapshot)).await;
            };
            let handed = desk.forward.to(&node.http, "a node", request, unregistered);
            handed.await.unwrap_or_else(IntoResponse::into_response)
        }
        None => ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            Retry::Safe,
            "this is a scheduler, and no node is heard of that could answer",
        )
        .into_response(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    #[serde(default)]
    to: Option<String>,
    #[serde(default)]
    wait: Option<bool>,
    #[serde(default)]
    leads_only: bool,
}

/// Fields of a request's query string and body.
async fn fields<T: DeserializeOwned>(
    query: Option<&str>,
    body: axum::body::Body,
    known: &[&str],
    flags: &[&str],
) -> Result<T, ApiError> {
    let bytes = bytes_of(body).await?;
    command_fields(query.unwrap_or(""), &bytes, known, flags)
}

async fn bytes_of(body: axum::body::Body) -> Result<Bytes, ApiError> {
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX).await;
    bytes.map_err(|_| ApiError::too_large(format!("more than {BODY_BYTES_MAX} bytes are no order")))
}

async fn answer(desk: &Desk, request: Request) -> Said {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let by = parts.headers.get(OPERATOR).and_then(|v| v.to_str().ok());
    let by = by.unwrap_or("operator").to_owned();
    let query = parts.uri.query();
    let words: Vec<&str> = path.trim_start_matches("/v1/admin/").split('/').collect();
    let known = ["to", "wait", "leads_only"];
    let flags = ["wait", "leads_only"];
    let changes = parts.method == axum::http::Method::POST;
    match words.as_slice() {
        ["nodes"] => desk.nodes().await,
        ["nodes", node, order] => {
            let wish: Wish = fields(query, body, &known[1..], &flags).await?;
            let wait = wish.wait.unwrap_or(true);
            match *order {
                "drain" => desk.drain(node, wish.leads_only, &by, wait).await,
                "undrain" => desk.undrain(node).await,
                "remove" => desk.remove(node).await,
                other => Err(no_order(other, "drain, undrain, remove")),
            }
        }
        ["shards", shard, order] => {
            let wish: Wish = fields(query, body, &known[..2], &flags[..1]).await?;
            let wait = wish.wait.unwrap_or(true);
            desk.order(shard, order, wish.to.as_deref(), &by, wait)
                .await
        }
        ["procedures"] => desk.procedures().await,
        ["procedures", id] => desk.show(id).await,
        ["procedures", id, order] => {
            let wish: Wish = fields(query, body, &known[1..2], &flags[..1]).await?;
            match *order {
                "cancel" => desk.cancel(id).await,
                "retry" => desk.retry(id, &by, wish.wait.unwrap_or(true)).await,
                other => Err(no_order(other, "cancel, retry")),
            }
        }
        ["settings"] if parts.method == axum::http::Method::PUT => {
            let bytes = bytes_of(body).await?;
            let invalid = |what: String| ApiError::invalid("invalid_settings", what);
            let given: Value =
                serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
            let settings: Settings =
                serde_json::from_value(given.clone()).map_err(|e| invalid(e.to_string()))?;
            if let Some(name) = unknown_member(&given, &json!(settings)) {
                return Err(invalid(format!("there is no setting {name:?}")));
            }
            desk.set(settings).await
        }
        ["settings"] => Ok((StatusCode::OK, json!(desk.settings().await?))),
        ["balance", "plan"] if !changes => desk.plan().await,
        ["balance", "on"] if changes => desk.balance(true).await,
        ["balance", "off"] if changes => desk.balance(false).await,
        ["balance", order @ ("plan" | "on" | "off")] => Err(ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            Retry::Never,
            format!("balance/{order}: GET plan, POST on, POST off"),
        )),
        ["balance", other] => Err(no_order(other, "plan, on, off")),
        _ => Err(ApiError::internal(format!("no answer to {path}"))),
    }
}

/// A member of `given` that is not in `known`, by its path.
fn unknown_member(given: &Value, known: &Value) -> Option<String> {
    let (Some(given), Some(known)) = (given.as_object(), known.as_object()) else {
        return None;
    };
    given
        .iter()
        .find_map(|(name, value)| match known.get(name) {
            None => Some(name.clone()),
            Some(below) => unknown_member(value, below).map(|path| format!("{name}.{path}")),
        })
}

fn no_order(order: &str, known: &str) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        Retry::Never,
        format!("there is no order {order:?}; there are {known}"),
    )
}
