//! The scheduler's HTTP interface. Any scheduler takes any request: one that does not lead hands it
//! to the one that does, and what is about data to a node.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shoal_meta::{LabelChanges, Snapshot};
use shoal_scheduler::{Command, Settings};
use shoal_types::Retry;

use super::desk::{Desk, Said};
use crate::http::{ApiError, Buffered, OPERATOR, check_query, command_fields, not_leading_at};

/// An order is small.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Length of the name of who gives an order.
const OPERATOR_BYTES_MAX: usize = 128;
/// Nodes that a request is handed to, one after the other, while they cannot be reached.
const NODES_TRIED_MAX: usize = 3;
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
        .route("/v1/admin/shards/{shard}/split", post(to_a_node))
        .route("/v1/admin/shards/{shard}/adopt-log", post(to_a_node))
        .route("/v1/admin/procedures", get(lead))
        .route("/v1/admin/procedures/{id}", get(lead))
        .route("/v1/admin/procedures/{id}/{order}", post(lead))
        .route("/v1/admin/settings", get(lead).put(lead))
        .route("/v1/admin/balance/{order}", get(lead).post(lead))
        .method_not_allowed_fallback(other_method)
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
    let look = match desk.leads() {
        true => desk.handle.ask(Command::Look).await,
        false => None,
    };
    desk.metrics.show(look)
}

async fn other_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        Retry::Never,
        "this path takes another method; GET /v1/openapi.json describes all",
    )
}

/// What only the scheduler that leads can answer.
async fn lead(State(desk): State<Arc<Desk>>, request: Request) -> Result<Response, ApiError> {
    if desk.leads() {
        let (status, body) = answer(&desk, request).await?;
        return Ok((status, axum::Json(body)).into_response());
    }
    let leader = desk.topology.snapshot().scheduler.clone();
    let Some(leader) = leader.filter(|l| l.process != desk.process) else {
        return Err(unavailable(
            "no scheduler leads at this moment; ask again".into(),
        ));
    };
    let what = "the scheduler that leads";
    let request = Buffered::read(request, what).await?;
    let gone = not_leading_at(&desk.topology, &leader.http);
    desk.forward.to(&leader.http, what, &request, gone).await
}

/// Asks one node after the other, until one is reached.
async fn to_a_node(State(desk): State<Arc<Desk>>, request: Request) -> Result<Response, ApiError> {
    let request = Buffered::read(request, "a node").await?;
    let snapshot = desk.topology.snapshot();
    let mut failed =
        unavailable("this is a scheduler, and no node is heard of that could answer".into());
    let nodes = snapshot.nodes.values().filter(|n| !n.http.is_empty());
    for node in nodes.take(NODES_TRIED_MAX) {
        let unregistered = async {
            let mut changes = desk.topology.subscribe();
            let there = |s: &Arc<Snapshot>| s.nodes.contains_key(&node.id);
            // An error means that the topology is not followed any more.
            let _ = changes.wait_for(|snapshot| !there(snapshot)).await;
        };
        let handed = desk
            .forward
            .to(&node.http, "a node", &request, unregistered);
        match handed.await {
            Err(error) if error.retry == Retry::Safe => failed = error,
            answered => return answered,
        }
    }
    Err(failed)
}

fn unavailable(why: String) -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "unavailable",
        Retry::Safe,
        why,
    )
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Label {
    #[serde(default)]
    labels: LabelChanges,
    #[serde(default)]
    reset: bool,
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
    let by = operator(&parts.headers)?;
    let query = parts.uri.query();
    let words: Vec<&str> = path.trim_start_matches("/v1/admin/").split('/').collect();
    let known = ["to", "wait", "leads_only"];
    let flags = ["wait", "leads_only"];
    let changes = parts.method == axum::http::Method::POST;
    // What has no parameters says so.
    if let ["nodes"] | ["procedures"] | ["procedures", _] | ["settings"] | ["balance", _] =
        words.as_slice()
    {
        check_query(query.unwrap_or(""), &[])?;
    }
    match words.as_slice() {
        ["nodes"] => desk.nodes().await,
        ["nodes", node, "label"] => {
            let label: Label = fields(query, body, &["labels", "reset"], &["reset"]).await?;
            desk.label(node, label.labels, label.reset).await
        }
        ["nodes", node, order] => {
            let wish: Wish = fields(query, body, &known[1..], &flags).await?;
            let wait = wish.wait.unwrap_or(true);
            match *order {
                "drain" => desk.drain(node, wish.leads_only, &by, wait).await,
                "undrain" => desk.undrain(node).await,
                "remove" => desk.remove(node).await,
                other => Err(ApiError::no_order(other, "drain, undrain, label, remove")),
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
                other => Err(ApiError::no_order(other, "cancel, retry")),
            }
        }
        ["settings"] if parts.method == axum::http::Method::PUT => {
            check_query(query.unwrap_or(""), &[])?;
            let settings = settings_of(&bytes_of(body).await?)?;
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
        ["balance", other] => Err(ApiError::no_order(other, "plan, on, off")),
        _ => Err(ApiError::internal(format!("no answer to {path}"))),
    }
}

/// Who gives an order.
fn operator(headers: &HeaderMap) -> Result<String, ApiError> {
    let Some(value) = headers.get(OPERATOR) else {
        return Ok("operator".to_owned());
    };
    // A slash is in the names of rules.
    let fits = |c: char| c.is_ascii_graphic() && c != '/';
    let text = value.to_str().unwrap_or_default();
    if (1..=OPERATOR_BYTES_MAX).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(ApiError::invalid(
        "invalid_request",
        format!(
            "Shoal-Operator must be 1 to {OPERATOR_BYTES_MAX} printable characters of ASCII without a slash"
        ),
    ))
}

/// Settings as a document; what it leaves out has its default.
fn settings_of(bytes: &[u8]) -> Result<Settings, ApiError> {
    let invalid = |what: String| ApiError::invalid("invalid_settings", what);
    let given: Value = serde_json::from_slice(bytes).map_err(|e| invalid(e.to_string()))?;
    let all = json!(Settings::default());
    if !given.is_object() {
        return Err(invalid("the settings are one JSON object".into()));
    }
    // An array would be read as the members in their order.
    if let Some(name) = all.as_object().and_then(|all| {
        let mut objects = all.iter().filter(|(_, value)| value.is_object());
        objects.find_map(|(name, _)| given.get(name).filter(|v| !v.is_object()).map(|_| name))
    }) {
        return Err(invalid(format!("{name} must be an object")));
    }
    if let Some(groups) = given["groups"].as_object()
        && let Some((name, _)) = groups.iter().find(|(_, group)| !group.is_object())
    {
        return Err(invalid(format!("groups.{name} must be an object")));
    }
    let settings: Settings = serde_path_to_error::deserialize(&given)
        .map_err(|e| invalid(format!("{}: {}", e.path(), e.inner())))?;
    match unknown_member(&given, &json!(settings)) {
        Some(name) => Err(invalid(format!("there is no setting {name:?}"))),
        None => Ok(settings),
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
