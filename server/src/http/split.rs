//! `POST /v1/admin/shards/{shard}/split`: gives tables or partitions of a shard to a new one.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_engine::{SplitOff, TableHandle};
use shoal_types::{Retry, ShardId, TableId};

use super::admin::no_such_table;
use super::command::Command;
use super::error::ApiError;
use super::repair::shard_here;
use super::state::AppState;

/// What goes: whole tables, or partitions of one table; neither: about half of the shard.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitRequest {
    #[serde(default)]
    schema: Option<String>,
    /// What the shard has of these tables.
    #[serde(default)]
    tables: Vec<String>,
    /// The table of the partitions.
    #[serde(default)]
    table: Option<String>,
    #[serde(default)]
    partitions: Vec<String>,
}

const FIELDS: &[&str] = &["schema", "tables", "table", "partitions"];

/// Splits a shard; answers when the new one can be written and read.
///
/// # Errors
/// 400: nothing could go, or it is not in this shard. 404: no such shard, table or partition.
pub async fn split(
    State(state): State<Arc<AppState>>,
    Path(shard): Path<String>,
    command: Command,
) -> Result<Json<Value>, ApiError> {
    let request: SplitRequest = command.read(&state, FIELDS, &[]).await?;
    let shard = match &state.cluster {
        Some(cluster) => cluster.orders.shard(&shard)?,
        None => shard_here(&state, &shard)?,
    };
    if state.db.is_clustered() {
        state.db.sync_names().await?;
    }
    let what = units(&state, shard, &request)?;
    let begun = Instant::now();
    let child = state.db.split_shard(shard, what).await?;
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(order = "split", %shard, %child, took_ms, "ordered");
    Ok(Json(json!({
        "state": "done",
        "order": "split",
        "shard": shard.to_string(),
        "child": child.to_string(),
        "took_ms": took_ms,
    })))
}

fn units(state: &AppState, shard: ShardId, request: &SplitRequest) -> Result<SplitOff, ApiError> {
    let schema = request.schema.as_deref().unwrap_or("public");
    let named = |table: &str| {
        let found = state.db.table(schema, table);
        found.ok_or_else(|| no_such_table(state, schema, table))
    };
    match (&request.table, &request.partitions[..]) {
        (None, []) if request.tables.is_empty() => Ok(SplitOff::Half),
        (None, []) => {
            let mut units = Vec::new();
            for name in &request.tables {
                let of_table = of_shard(&named(name)?, shard);
                if of_table.is_empty() {
                    return Err(ApiError::invalid(
                        "invalid_request",
                        format!("shard {shard} has nothing of table {name:?}"),
                    ));
                }
                units.extend(of_table);
            }
            Ok(SplitOff::Units(units))
        }
        (Some(table), partitions) if request.tables.is_empty() && !partitions.is_empty() => {
            let table = named(table)?;
            let one = |name: &String| one_of(&table, name, shard);
            let units: Result<Vec<TableId>, ApiError> = partitions.iter().map(one).collect();
            Ok(SplitOff::Units(units?))
        }
        _ => Err(ApiError::invalid(
            "invalid_request",
            "give \"tables\", or \"table\" with \"partitions\", or nothing for about half of the shard",
        )),
    }
}

/// What a shard has of a table.
fn of_shard(table: &TableHandle, shard: ShardId) -> Vec<TableId> {
    let partitions = table.partitions().into_iter();
    let here = partitions.filter(|partition| partition.shard == shard);
    here.map(|partition| partition.id).collect()
}

fn one_of(table: &TableHandle, name: &str, shard: ShardId) -> Result<TableId, ApiError> {
    let partitions = table.partitions().into_iter();
    let mut named = partitions.filter(|p| p.part().is_some_and(|part| part.name == name));
    match named.next() {
        None => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "undefined_partition",
            Retry::Never,
            format!("table {:?} has no partition {name:?}", table.name),
        )),
        Some(partition) if partition.shard != shard => Err(ApiError::invalid(
            "invalid_request",
            format!(
                "partition {name:?} is in shard {}, not in {shard}",
                partition.shard
            ),
        )),
        Some(partition) => Ok(partition.id),
    }
}
