//! `/v1/admin/…` and `/v1/route/{table}`: what the process holds, and maintenance on command. An
//! answer to a command means that the work is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_engine::{Compacted, Flushed, TableHandle, TableStatus};
use shoal_query::partition_owns;
use shoal_types::{ColumnId, Retry, ShardId, TableId, TableSchema};

use super::command::{Command, NODE};
use super::error::ApiError;
use super::names;
use super::state::AppState;
use crate::auth::serde_urlencoded_value;

type Answer = Result<Json<Value>, ApiError>;

/// All shards, in the shape of DESIGN §7 and with the engine's own figures.
pub async fn shards(State(state): State<Arc<AppState>>, RawQuery(query): RawQuery) -> Answer {
    names::check_query(query.as_deref().unwrap_or(""), &[])?;
    if let Some(cluster) = &state.cluster {
        return super::cluster::shards(&state, cluster).await;
    }
    let shards = state
        .db
        .status()
        .into_iter()
        .map(|shard| {
            let mut document = serde_json::to_value(&shard)
                .map_err(|e| ApiError::internal(format!("cannot show a shard: {e}")))?;
            document["epoch"] = shard.epoch.to_string().into();
            document["leader"] = (shard.role == "leader").then_some(NODE).into();
            document["followers"] = json!([]);
            document["partitions"] = shard.tables.into();
            Ok(document)
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    Ok(Json(shards.into()))
}

/// Tables of all schemas or of one.
pub async fn tables(State(state): State<Arc<AppState>>, RawQuery(query): RawQuery) -> Answer {
    let query = query.unwrap_or_default();
    names::check_query(&query, &["schema"])?;
    if state.db.is_clustered() {
        state.db.sync_names().await?;
    }
    let only = serde_urlencoded_value(&query, "schema");
    let schemas = match only {
        Some(name) if !state.db.has_schema(&name) => {
            return Err(ApiError::new(
                StatusCode::NOT_FOUND,
                "undefined_schema",
                Retry::Never,
                format!("schema {name:?} does not exist"),
            ));
        }
        Some(name) => vec![name],
        None => state.db.schema_names(),
    };
    let tables = schemas
        .iter()
        .flat_map(|schema| state.db.tables(schema))
        .map(|handle| {
            // A table of a shard that is not served is listed without figures.
            let schema = state.db.table_schema(&handle).ok();
            let parts = handle.partitions();
            let statuses: Option<Vec<_>> = parts
                .iter()
                .map(|partition| state.db.table_status(partition).ok())
                .collect();
            let sum = |of: fn(&TableStatus) -> u64| {
                let statuses = statuses.as_ref()?;
                Some(statuses.iter().map(of).sum::<u64>())
            };
            json!({
                "schema": handle.schema_name,
                "name": handle.name,
                "id": handle.table.to_string(),
                "shard": handle.shard.to_string(),
                "partitions": parts.len(),
                "mode": schema.as_ref().map(|s| s.mode),
                "columns": schema.as_ref().map(|s| s.columns.len()),
                // Versions of a key that are not merged yet count each.
                "rows": sum(|s| s.file_rows + s.memory_rows),
                "files": sum(|s| s.files),
                "bytes": sum(|s| s.bytes),
            })
        })
        .collect::<Vec<_>>();
    Ok(Json(tables.into()))
}

/// One table: where it is and what its rows look like.
pub async fn route(
    State(state): State<Arc<AppState>>,
    Path(table): Path<String>,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = query.unwrap_or_default();
    names::check_query(&query, &["schema"])?;
    let schema_name = serde_urlencoded_value(&query, "schema").unwrap_or_else(|| "public".into());
    let handle = state
        .db
        .find_table(&schema_name, &table)
        .await?
        .ok_or_else(|| no_such_table(&state, &schema_name, &table))?;
    let schema = state.db.table_schema(&handle)?;
    let shown = |partition: &TableHandle| {
        let mut document = json!({
            "id": partition.partition.to_string(),
            "name": partition.part().map(|part| &part.name),
            "owns": partition_owns(partition, &schema),
            "shard": partition.shard.to_string(),
            "leader": NODE,
        });
        if let Some(cluster) = &state.cluster {
            let place = super::cluster::place(cluster, partition.shard);
            for (name, value) in place.as_object().into_iter().flatten() {
                document[name] = value.clone();
            }
        }
        document
    };
    let partitions: Vec<Value> = handle.partitions().iter().map(shown).collect();
    let names = |ids: &[ColumnId]| -> Vec<String> {
        ids.iter()
            .filter_map(|id| schema.column_by_id(*id).map(|c| c.name.clone()))
            .collect()
    };
    Ok(Json(json!({
        "schema": handle.schema_name,
        "table": handle.name,
        "id": handle.table.to_string(),
        "incarnation": schema.incarnation,
        "version": schema.version,
        "mode": schema.mode,
        "key": names(&schema.key),
        "time_column": schema.time_column.and_then(|id| names(&[id]).pop()),
        "ttl_ms": schema.ttl_ms,
        "columns": columns(&schema),
        "partition_by": handle.layout.as_ref().map(|layout| json!({
            "method": layout.by.method,
            "columns": names(&layout.by.columns),
        })),
        "partitions": partitions,
    })))
}

fn columns(schema: &TableSchema) -> Vec<Value> {
    schema
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.column_type.to_string(),
                "nullable": column.nullable,
            })
        })
        .collect()
}

/// 404 with the nearest name.
pub fn no_such_table(state: &AppState, schema_name: &str, table: &str) -> ApiError {
    state.db.table_not_found(schema_name, table).into()
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scope {
    #[serde(default)]
    schema: Option<String>,
    #[serde(default)]
    table: Option<String>,
}

impl Scope {
    const FIELDS: &[&str] = &["schema", "table"];

    /// The table named, if one is.
    fn table(&self, state: &AppState) -> Result<Option<TableHandle>, ApiError> {
        let schema_name = self.schema.as_deref().unwrap_or("public");
        match &self.table {
            None if self.schema.is_some() => Err(ApiError::invalid(
                "invalid_request",
                "schema needs a table beside it",
            )),
            None => Ok(None),
            Some(table) => state
                .db
                .table(schema_name, table)
                .map(Some)
                .ok_or_else(|| no_such_table(state, schema_name, table)),
        }
    }
}

/// Writes rows in memory to files: of one table's shard, or of all.
pub async fn flush(State(state): State<Arc<AppState>>, command: Command) -> Answer {
    let scope: Scope = command.read(&state, Scope::FIELDS, &[]).await?;
    let shards = match scope.table(&state)? {
        None => vec![None],
        Some(table) => {
            let shards: BTreeSet<_> = table.partitions().iter().map(|p| p.shard).collect();
            shards.into_iter().map(Some).collect()
        }
    };
    let mut flushed = Flushed::default();
    for shard in shards {
        flushed.add(match &state.cluster {
            Some(cluster) => super::cluster::flush(&state, cluster, shard).await?,
            None => state.db.flush(shard).await?,
        });
    }
    Ok(Json(json!({
        "state": "done",
        "files": flushed.files,
        "bytes": flushed.bytes,
        "rows": flushed.rows,
    })))
}

/// Merges the files of one table, or of all.
pub async fn compact(State(state): State<Arc<AppState>>, command: Command) -> Answer {
    let scope: Scope = command.read(&state, Scope::FIELDS, &[]).await?;
    let partitions = match scope.table(&state)? {
        None => vec![None],
        Some(table) => table.partitions().into_iter().map(Some).collect(),
    };
    let mut done = Compacted::default();
    for partition in partitions {
        done.add(match &state.cluster {
            Some(cluster) => super::cluster::compact(&state, cluster, partition.as_ref()).await?,
            None => state.db.compact(partition.as_ref()).await?,
        });
    }
    Ok(Json(json!({
        "state": "done",
        "jobs": done.jobs,
        "files_in": done.files_in,
        "files_out": done.files_out,
        "bytes_out": done.bytes_out,
        "expired": done.expired,
    })))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChecksumScope {
    #[serde(default)]
    schema: Option<String>,
    #[serde(default)]
    table: Option<String>,
    #[serde(default)]
    shard: Option<String>,
}

/// The checksum of the rows of one table, one shard, or all shards: see `shoal_engine`'s
/// `checksum.rs` for what it is made of.
pub async fn checksum(State(state): State<Arc<AppState>>, command: Command) -> Answer {
    let ChecksumScope {
        schema,
        table,
        shard,
    } = command
        .read(&state, &["schema", "table", "shard"], &[])
        .await?;
    let shard = shard
        .map(|text| {
            if let Some(cluster) = &state.cluster {
                return Ok(cluster.orders.shard(&text)?);
            }
            text.parse::<ShardId>().map_err(|_| {
                ApiError::invalid("invalid_request", format!("{text:?} is no shard id"))
            })
        })
        .transpose()?;
    if let (Some(cluster), None) = (&state.cluster, &table) {
        let sums = super::cluster::checksums(&state, cluster, shard).await?;
        return Ok(Json(sums.into()));
    }
    if let Some(id) = shard
        && !state.db.status().iter().any(|s| s.id == id)
    {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            Retry::Never,
            format!("there is no shard {id} here; GET /v1/admin/shards lists them"),
        ));
    }
    let table = Scope { schema, table }.table(&state)?;
    let sums = match (&table, shard) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(
                "invalid_request",
                "give a table or a shard, not both",
            ));
        }
        (Some(table), None) => {
            let mut sums = Vec::new();
            for partition in table.partitions() {
                sums.push(state.db.checksum_table(&partition).await?);
            }
            sums
        }
        (None, shard) => state.db.checksum(shard).await?,
    };
    let schemas = state.db.schema_names();
    let names: BTreeMap<TableId, TableHandle> = schemas
        .iter()
        .flat_map(|schema| state.db.tables(schema))
        .flat_map(|handle| handle.partitions())
        .map(|partition| (partition.id, partition))
        .collect();
    let shown = sums
        .iter()
        .map(|sum| {
            let mut document = serde_json::to_value(sum)
                .map_err(|e| ApiError::internal(format!("cannot show a checksum: {e}")))?;
            let rows = document["tables"].as_array_mut().into_iter().flatten();
            for (row, sum) in rows.zip(&sum.tables) {
                // A table dropped since has no name any more.
                let handle = names.get(&sum.table);
                row["id"] = row["table"].take();
                row["schema"] = handle.map(|h| h.schema_name.as_str()).into();
                row["table"] = handle.map(|h| h.name.as_str()).into();
            }
            Ok(document)
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    Ok(Json(shown.into()))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GcRequest {
    #[serde(default)]
    dry_run: bool,
}

/// Deletes what no manifest names any more, or says what it would delete.
pub async fn gc(State(state): State<Arc<AppState>>, command: Command) -> Answer {
    let request: GcRequest = command.read(&state, &["dry_run"], &["dry_run"]).await?;
    let report = match &state.cluster {
        Some(cluster) => cluster.orders.collect(request.dry_run).await?,
        None => state.db.gc(request.dry_run).await?,
    };
    serde_json::to_value(&report)
        .map(Json)
        .map_err(|e| ApiError::internal(format!("cannot show the report: {e}")))
}
