//! `/v1/admin/…` of a node: nodes, shards of the whole cluster, and orders about them
//! (`crate::node::orders`). Any node answers for all. Where a scheduler leads, orders are its: they
//! are handed to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_engine::{Compacted, Flushed, TableHandle};
use shoal_meta::{Holding, Snapshot, Topology};
use shoal_types::{NodeId, Retry, ShardId};

use super::command::Command;
use super::error::ApiError;
use super::forward::Buffered;
use super::names;
use super::state::AppState;
use crate::node::cluster::Cluster;
use crate::node::orders::OrderError;

type Answer = Result<Json<Value>, ApiError>;

impl From<OrderError> for ApiError {
    fn from(error: OrderError) -> Self {
        let (status, code, retry) = match &error {
            OrderError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid_request", Retry::Never),
            OrderError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found", Retry::Never),
            OrderError::Unavailable(_) | OrderError::Meta(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", Retry::Safe)
            }
            OrderError::Unfinished(_) => (StatusCode::GATEWAY_TIMEOUT, "unfinished", Retry::Safe),
        };
        Self::new(status, code, retry, error.to_string())
    }
}

fn cluster(state: &AppState) -> Result<&Arc<Cluster>, ApiError> {
    state.cluster.as_ref().ok_or_else(|| {
        ApiError::invalid(
            "not_clustered",
            "this is a standalone process: it has no other nodes; `shoal node` runs one of several",
        )
    })
}

/// What only a scheduler can answer: procedures, settings, draining.
///
/// # Errors
/// There is none.
pub async fn scheduler(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    match leading(cluster(&state)?) {
        Some(address) => hand_on(&state, &address, request).await,
        None => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_scheduler",
            Retry::Safe,
            "no scheduler leads: start `shoal scheduler`, or wait two seconds if one has just ended",
        )),
    }
}

/// Where the scheduler is that leads.
fn leading(cluster: &Cluster) -> Option<String> {
    let snapshot = cluster.topology.snapshot();
    snapshot.scheduler.as_ref().map(|s| s.http.clone())
}

async fn hand_on(state: &AppState, address: &str, request: Request) -> Result<Response, ApiError> {
    let Some(cluster) = &state.cluster else {
        return Err(ApiError::internal("a scheduler of no cluster"));
    };
    let what = "the scheduler that leads";
    let request = Buffered::read(request, what).await?;
    let gone = not_leading_at(&cluster.topology, address);
    state.forward.to(address, what, &request, gone).await
}

/// Resolves when the scheduler at this address does not lead.
pub(crate) async fn not_leading_at(topology: &Topology, address: &str) {
    let leads = |s: &Arc<Snapshot>| s.scheduler.as_ref().is_some_and(|s| s.http == address);
    let mut changes = topology.subscribe();
    // An error means that the topology is not followed any more: the process stops.
    let _ = changes.wait_for(|snapshot| !leads(snapshot)).await;
}

/// All nodes: `[{"id","http","pg","grpc","role","state","labels","shards",…}]`.
///
/// # Errors
/// Unknown parameters.
pub async fn nodes(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    names::check_query(request.uri().query().unwrap_or(""), &[])?;
    if let Some(address) = state.cluster.as_deref().and_then(leading) {
        match hand_on(&state, &address, request).await {
            Err(error) if error.status == StatusCode::SERVICE_UNAVAILABLE => {
                tracing::debug!(
                    why = error.message,
                    "nodes are listed without the scheduler"
                );
            }
            answered => return answered,
        }
    }
    registered(&state).map(IntoResponse::into_response)
}

/// Nodes as they are registered, where no scheduler is heard of.
fn registered(state: &AppState) -> Answer {
    let Some(cluster) = &state.cluster else {
        return Ok(Json(json!([{
            "id": super::command::NODE, "role": "standalone", "state": "up", "labels": {},
            "shards": state.db.status().len(),
        }])));
    };
    let snapshot = cluster.topology.snapshot();
    let held = snapshot.holdings();
    let mut listed: Vec<Value> = snapshot
        .nodes
        .values()
        .map(|node| {
            let Holding { leads, follows } = held.get(&node.id).copied().unwrap_or_default();
            json!({
                "id": node.id.to_string(),
                "role": node.role,
                "state": "up",
                "http": node.http,
                "pg": node.pg,
                "grpc": node.grpc,
                "labels": node.labels,
                "shards": leads + follows,
                "leads": leads,
                "follows": follows,
                "release": node.release,
                "started_ms": node.started_ms,
            })
        })
        .collect();
    listed.extend(missing_nodes(&held, |id| snapshot.nodes.contains_key(id)));
    listed.extend(schedulers(&snapshot));
    Ok(Json(listed.into()))
}

/// Schedulers that are heard of.
pub(crate) fn schedulers(snapshot: &Snapshot) -> impl Iterator<Item = Value> {
    let leading = snapshot.scheduler.as_ref().map(|s| s.process);
    snapshot.schedulers.values().map(move |s| {
        let leads = leading == Some(s.process);
        json!({
            "id": s.process.to_string(), "role": "scheduler",
            "state": if leads { "leading" } else { "standby" },
            "http": s.http, "labels": {}, "shards": 0,
            "release": s.release, "started_ms": s.started_ms,
        })
    })
}

/// Nodes that assignments name and that are not heard of.
pub(crate) fn missing_nodes(
    held: &BTreeMap<NodeId, Holding>,
    known: impl Fn(&NodeId) -> bool,
) -> impl Iterator<Item = Value> {
    let missing = held.iter().filter(move |(id, _)| !known(id));
    missing.map(|(id, Holding { leads, follows })| {
        json!({
            "id": id.to_string(), "role": "node", "state": "down", "labels": {},
            "shards": leads + follows, "leads": leads, "follows": follows,
        })
    })
}

/// All shards of the cluster, each with what its leader tells and its replicas.
///
/// # Errors
/// A defect.
pub(super) async fn shards(state: &AppState, cluster: &Cluster) -> Answer {
    let replicas = cluster.orders.all_replicas().await;
    let snapshot = cluster.topology.snapshot();
    let mut listed = Vec::new();
    for shard in state.db.shard_ids() {
        let assignment = snapshot.assignments.get(&shard);
        let leader = assignment.and_then(|a| a.leader);
        let of = |node: &NodeId| replicas.get(node)?.as_ref().ok()?.get(&shard);
        let mut document = leader.as_ref().and_then(of).cloned().unwrap_or_else(|| {
            json!({
                "id": shard.to_string(), "state": "unavailable",
                "why": match leader {
                    None => "no node leads it".to_owned(),
                    Some(leader) => match replicas.get(&leader) {
                        None => format!("node {leader}, which leads it, is not heard of"),
                        Some(Err(why)) => why.clone(),
                        Some(Ok(_)) => format!("node {leader} does not know it"),
                    },
                },
            })
        });
        if let Some(term) = document["epoch"].get("term").cloned() {
            let claim = document["epoch"]["claim"].clone();
            document["epoch"] = format!("{term}.{claim}").into();
        }
        let followers = assignment
            .map(|a| a.followers.as_slice())
            .unwrap_or_default();
        document["leader"] = leader.map(|l| l.to_string()).into();
        document["followers"] = followers.iter().map(ToString::to_string).collect();
        document["assignment"] = json!({
            "version": assignment.map(|a| a.version),
            "term": assignment.map(|a| a.term),
        });
        document["partitions"] = document["tables"].clone();
        let nodes = leader.iter().chain(followers);
        document["replicas"] = nodes
            .map(|node| {
                let told = of(node);
                let member = |name: &str| told.map(|t| t[name].clone());
                json!({
                    "node": node.to_string(),
                    "role": member("role"),
                    "state": member("state").unwrap_or_else(|| "down".into()),
                    "why": member("why"),
                    "position": member("position"),
                    "manifest": member("manifest"),
                })
            })
            .collect();
        listed.push(document);
    }
    Ok(Json(listed.into()))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderRequest {
    #[serde(default)]
    to: Option<String>,
    /// Without a scheduler an order is always waited for.
    #[serde(default, rename = "wait")]
    _wait: Option<bool>,
}

/// `POST /v1/admin/shards/{shard}/{order}` with `{"to": NODE}`: by the scheduler that leads, else
/// by this node.
///
/// # Errors
/// [`OrderError`].
pub async fn order(
    State(state): State<Arc<AppState>>,
    Path((shard, order)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    if let Some(address) = state.cluster.as_deref().and_then(leading) {
        return hand_on(&state, &address, request).await;
    }
    let Ok(command) = Command::from_request(request, &()).await;
    let carried = carry_out(&state, &shard, &order, command).await;
    carried.map(IntoResponse::into_response)
}

async fn carry_out(state: &AppState, shard: &str, order: &str, command: Command) -> Answer {
    let request: OrderRequest = command.read(state, &["to", "wait"], &["wait"]).await?;
    let cluster = cluster(state)?;
    let orders = &cluster.orders;
    let shard = orders.shard(shard)?;
    let to = request
        .to
        .as_deref()
        .map(|to| orders.node(to))
        .transpose()?;
    let needed = || to.ok_or_else(ApiError::needs_node);
    let carried = match order {
        "promote" => orders.promote(shard, to).await?,
        "add-follower" => orders.add_follower(shard, needed()?).await?,
        "remove-follower" => orders.remove_follower(shard, needed()?).await?,
        "move" => orders.relocate(shard, needed()?).await?,
        other => return Err(ApiError::no_shard_order(other)),
    };
    tracing::info!(
        order = carried.order, %shard, node = %carried.node, procedure = carried.procedure,
        pause_ms = carried.pause_ms, records_replayed = carried.records_replayed, "ordered"
    );
    serde_json::to_value(&carried)
        .map(Json)
        .map_err(|e| ApiError::internal(format!("cannot show the order: {e}")))
}

/// Checksums of a shard by each of its replicas, or of all shards.
///
/// # Errors
/// [`OrderError`].
pub(super) async fn checksums(
    state: &AppState,
    cluster: &Cluster,
    shard: Option<ShardId>,
) -> Result<Vec<Value>, ApiError> {
    let shards = match shard {
        Some(shard) => vec![shard],
        None => state.db.shard_ids(),
    };
    let mut sums = Vec::new();
    for shard in shards {
        sums.extend(cluster.orders.checksums(shard).await?);
    }
    Ok(sums)
}

/// Writes rows in memory to files, at the leaders of these shards.
///
/// # Errors
/// [`OrderError`].
pub(super) async fn flush(
    state: &AppState,
    cluster: &Cluster,
    shard: Option<ShardId>,
) -> Result<Flushed, ApiError> {
    let shards = match shard {
        Some(shard) => vec![shard],
        None => state.db.shard_ids(),
    };
    let flushed = shards.into_iter().map(|shard| cluster.orders.flush(shard));
    let flushed = futures::future::try_join_all(flushed).await?;
    let mut all = Flushed::default();
    flushed.into_iter().for_each(|one| all.add(one));
    Ok(all)
}

/// Merges files at the leaders: of one table, or of all.
pub(super) async fn compact(
    state: &AppState,
    cluster: &Cluster,
    table: Option<&TableHandle>,
) -> Result<Compacted, ApiError> {
    if let Some(table) = table {
        return Ok(cluster.orders.compact(table.shard, Some(table.id)).await?);
    }
    let mut all = Compacted::default();
    for shard in state.db.shard_ids() {
        all.add(cluster.orders.compact(shard, None).await?);
    }
    Ok(all)
}

/// Where one partition is served, for `/v1/route`.
pub(super) fn place(cluster: &Cluster, shard: ShardId) -> Value {
    let snapshot = cluster.topology.snapshot();
    let Some(assignment) = snapshot.assignments.get(&shard) else {
        return json!({});
    };
    let shown = |id: &NodeId| {
        let node = snapshot.nodes.get(id);
        json!({
            "node": id.to_string(),
            "http": node.map(|n| n.http.clone()),
            "pg": node.map(|n| n.pg.clone()),
            "labels": node.map(|n| n.labels.clone()),
        })
    };
    json!({
        "leader": assignment.leader.as_ref().map(shown),
        "followers": assignment.followers.iter().map(shown).collect::<Vec<_>>(),
        "term": assignment.term,
    })
}
