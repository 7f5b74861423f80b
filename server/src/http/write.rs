//! `/write` and `/api/v2/write`: line protocol in, as InfluxDB's clients send it.
//!
//! Order: take in the body → parse it into columns by measurement → make what the catalog lacks
//! (schema, tables, columns; few records for all of them) → resolve names to columns → write, all
//! tables in one call. A table that is dropped or altered in between: the last three again, without
//! parsing. A crash after making tables leaves them empty; the next write uses them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use shoal_engine::{Commit, EngineError, NewTable, TableHandle, WriteError, WriteOptions};
use shoal_ingest::{
    LineErrors, LineParser, ParseOptions, Parsed, PendingTable, Precision, extend_schema,
};
use shoal_query::OWN_SCHEMAS;
use shoal_rows::RowBlock;
use shoal_types::{Clock, Retry, SchemaError, SystemClock, TableId, TableOrigin, TableSchema};

use super::body::INLINE_BYTES;
use super::error::ApiError;
use super::ingest::{REBUILDS_MAX, commit_headers, write_options};
use super::names;
use super::state::AppState;
use crate::auth::{serde_urlencoded_value, url_pairs};

/// InfluxDB 1.x: `db`, `rp`, `precision`. A retention policy is ignored: retention is a table's
/// TTL here.
pub async fn write_v1(
    State(state): State<Arc<AppState>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    write(state, "db", &query.unwrap_or_default(), &headers, body).await
}

/// InfluxDB 2.x: `bucket` (`name` or `database/policy`), `org` (ignored), `precision`.
pub async fn write_v2(
    State(state): State<Arc<AppState>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Response {
    write(state, "bucket", &query.unwrap_or_default(), &headers, body).await
}

/// What a request names.
struct Target {
    schema_name: String,
    precision: Precision,
    options: WriteOptions,
}

impl Target {
    fn read(parameter: &str, query: &str, headers: &HeaderMap) -> Result<Self, ApiError> {
        let pairs: Vec<(String, String)> = url_pairs(query).collect();
        names::check_influx(pairs.iter().map(|(k, _)| k.as_str()), names::INFLUX_WRITE)?;
        let value = |name: &str| serde_urlencoded_value(query, name).filter(|v| !v.is_empty());
        let other = if parameter == "db" { "bucket" } else { "db" };
        // Some clients use the other version's word; with both there, one would be passed over.
        let (word, named) = match (value(parameter), value(other)) {
            (Some(named), Some(also)) if named != also => {
                return Err(ApiError::invalid(
                    "invalid_request",
                    format!("{parameter} = {named:?} and {other} = {also:?} name two schemas"),
                ));
            }
            (None, Some(named)) => (other, named),
            (named, _) => (parameter, named.unwrap_or_default()),
        };
        let schema_name = match named.split_once('/') {
            // In a database's own name a slash is a character like others.
            Some((database, _policy)) if word == "bucket" => database.to_owned(),
            _ => named,
        };
        refuse_own_schema(&schema_name)?;
        let precision = match url_pairs(query).find(|(k, _)| k == "precision") {
            Some((_, text)) if !text.is_empty() => text
                .parse::<Precision>()
                .map_err(|e| ApiError::invalid("invalid_request", e.to_string()))?,
            _ => Precision::default(),
        };
        Ok(Self {
            schema_name: if schema_name.is_empty() {
                "public".to_owned()
            } else {
                schema_name
            },
            precision,
            options: write_options(headers, query)?,
        })
    }
}

/// Refuses a database of a name that SQL reads as the database's own schema: what is written there
/// could never be read.
///
/// # Errors
/// 403.
pub fn refuse_own_schema(name: &str) -> Result<(), ApiError> {
    if OWN_SCHEMAS.contains(&name) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "not_allowed",
            Retry::Never,
            format!("schema {name:?} is the database's own; write to another db or bucket"),
        ));
    }
    Ok(())
}

/// What became of a request.
struct Stored {
    commit: Commit,
    rows: u64,
    errors: LineErrors,
}

async fn write(
    state: Arc<AppState>,
    parameter: &str,
    query: &str,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    match store(&state, parameter, query, headers, body).await {
        Ok(stored) if stored.errors.is_empty() => {
            let mut response = StatusCode::NO_CONTENT.into_response();
            commit_headers(&mut response, &stored.commit);
            response
        }
        Ok(stored) => refused_lines(&stored),
        Err(error) => {
            if error.status.is_server_error() {
                state.metrics.write_failed();
            }
            error.influx_response(Map::new())
        }
    }
}

async fn store(
    state: &Arc<AppState>,
    parameter: &str,
    query: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Stored, ApiError> {
    let mut body = state.intake.read(headers, body).await?;
    let target = Target::read(parameter, query, headers)?;
    let size = body.bytes.len();
    let parsed = {
        let _parser = state.intake.parser().await?;
        let now_ns = i64::try_from(SystemClock.now_ms())
            .unwrap_or(i64::MAX)
            .saturating_mul(1_000_000);
        let parser = LineParser::new(ParseOptions::new(target.precision, now_ns));
        let schema_of = |name: &str| {
            let handle = state.db.table(&target.schema_name, name)?;
            state.db.table_schema(&handle).ok()
        };
        heavy(size, || parser.parse_for(&body.bytes, &schema_of))
    };
    // The text is done with; its share of the bound stands for the columns until they are written.
    body.bytes = bytes::Bytes::new();
    let errors = parsed.errors.total;
    if target.options.atomic && errors > 0 {
        return Ok(Stored {
            commit: Commit::default(),
            rows: 0,
            errors: parsed.errors,
        });
    }
    // A task of its own: a client that goes away must not stop the catalog halfway.
    let task = {
        let state = Arc::clone(state);
        tokio::spawn(async move {
            let stored = store_parsed(&state, &target, parsed, size).await;
            drop(body);
            stored
        })
    };
    let stored = task
        .await
        .map_err(|e| ApiError::internal(format!("the write broke off: {e}")))??;
    state
        .metrics
        .rows_written("lp", stored.rows, size as u64, stored.errors.total);
    Ok(stored)
}

/// Runs it on this thread; where it takes long, other requests are moved off the thread first.
fn heavy<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes > INLINE_BYTES {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

async fn store_parsed(
    state: &AppState,
    target: &Target,
    parsed: Parsed,
    size: usize,
) -> Result<Stored, ApiError> {
    let Parsed { tables, errors, .. } = parsed;
    if tables.is_empty() && target.options.import.is_none() {
        return Ok(Stored {
            commit: Commit::default(),
            rows: 0,
            errors,
        });
    }
    for round in 0.. {
        let schemas = match prepare(state, &target.schema_name, &tables).await {
            Ok(schemas) => schemas,
            // Dropped between two steps: make it anew.
            Err(EngineError::NotFound { .. }) if round < REBUILDS_MAX => continue,
            Err(error) => return Err(error.into()),
        };
        let mut errors = errors.clone();
        let blocks = heavy(size, || resolve(&tables, &schemas, &mut errors));
        let rows: u64 = blocks.iter().map(|b| b.rows() as u64).sum();
        if target.options.atomic && !errors.is_empty() {
            return Ok(Stored {
                commit: Commit::default(),
                rows: 0,
                errors,
            });
        }
        // A chunk of an import is noted by the log even if none of its lines is good.
        if blocks.is_empty() && target.options.import.is_none() {
            return Ok(Stored {
                commit: Commit::default(),
                rows,
                errors,
            });
        }
        match state.db.write(blocks, target.options.clone()).await {
            Ok(commit) => {
                return Ok(Stored {
                    commit,
                    rows,
                    errors,
                });
            }
            Err(WriteError::StaleSchema { .. }) if round < REBUILDS_MAX => {}
            // Dropped while the rows were on their way: made anew, as if the drop had come first.
            Err(WriteError::Invalid(_))
                if round < REBUILDS_MAX
                    && tables
                        .iter()
                        .any(|t| state.db.table(&target.schema_name, &t.name).is_none()) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::internal("the rows were rebuilt without end"))
}

/// A table's schema, and why it could not take more columns, where it could not.
type Prepared = (Arc<TableSchema>, Option<SchemaError>);

/// Makes the schema, tables and columns that these rows need; the tables' schemas, in order.
async fn prepare(
    state: &AppState,
    schema_name: &str,
    tables: &[PendingTable],
) -> Result<Vec<Prepared>, EngineError> {
    let db = &state.db;
    let mut handles: Vec<Option<TableHandle>> = Vec::with_capacity(tables.len());
    for table in tables {
        handles.push(db.find_table(schema_name, &table.name).await?);
    }
    let absent: Vec<usize> = (0..tables.len())
        .filter(|i| handles[*i].is_none())
        .collect();
    if !absent.is_empty() {
        if !db.has_schema(schema_name) {
            db.create_schema(schema_name, true).await?;
        }
        let new = absent
            .iter()
            .map(|i| {
                let schema = tables[*i].new_schema(TableId::generate())?;
                Ok(NewTable {
                    schema_name: schema_name.to_owned(),
                    name: tables[*i].name.clone(),
                    partitions: state.line_protocol.partitions(&schema),
                    schema,
                })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let made = db.create_tables(new, true).await?;
        for (i, handle) in absent.into_iter().zip(made) {
            handles[i] = Some(handle);
        }
    }
    let mut prepared = Vec::with_capacity(tables.len());
    for (table, handle) in tables.iter().zip(&handles) {
        // `create_tables` gives one handle a table.
        let Some(handle) = handle else {
            return Err(EngineError::Invalid(format!(
                "table {:?} was not made",
                table.name
            )));
        };
        prepared.push(with_columns(state, table, handle).await?);
    }
    Ok(prepared)
}

/// The table's schema with the columns that the rows need, as far as it takes them.
async fn with_columns(
    state: &AppState,
    table: &PendingTable,
    handle: &TableHandle,
) -> Result<Prepared, EngineError> {
    let schema = state.db.table_schema(handle)?;
    // Columns of a table made by SQL are changed by ALTER TABLE only; its lines are refused by
    // name when they are resolved.
    if schema.origin != TableOrigin::LineProtocol || table.missing(&schema).is_empty() {
        return Ok((schema, None));
    }
    let change = |current: &TableSchema| {
        let missing = table.missing(current);
        if missing.is_empty() {
            return Ok(None);
        }
        Ok(Some(extend_schema(current, &missing)?))
    };
    match state.db.alter_table(handle, &change).await {
        Ok(schema) => Ok((schema, None)),
        Err(EngineError::Schema(why)) => Ok((schema, Some(why))),
        Err(error) => Err(error),
    }
}

fn resolve(
    tables: &[PendingTable],
    schemas: &[Prepared],
    errors: &mut LineErrors,
) -> Vec<RowBlock> {
    let mut blocks = Vec::with_capacity(tables.len());
    for (table, (schema, why)) in tables.iter().zip(schemas) {
        let mut resolved = table.resolve(schema);
        if let Some(why) = why {
            for error in &mut resolved.errors.first {
                error.reason = format!("{}; {why}", error.reason);
            }
        }
        errors.merge(resolved.errors);
        if resolved.block.rows() > 0 {
            blocks.push(resolved.block);
        }
    }
    blocks
}

fn refused(lines: u64) -> String {
    match lines {
        1 => "1 line was refused".to_owned(),
        n => format!("{n} lines were refused"),
    }
}

/// 400 with the first bad lines. The words are those that InfluxDB's clients look for: Telegraf
/// does not send a "partial write" or what it was "unable to parse" again.
fn refused_lines(stored: &Stored) -> Response {
    let errors = &stored.errors;
    let first = errors.first.first();
    let example = first.map_or_else(String::new, |e| {
        format!(": line {}, column {}: {}", e.line, e.column, e.reason)
    });
    let message = if stored.rows > 0 {
        format!(
            "partial write: {}, {} stored{example} dropped={}",
            refused(errors.total),
            stored.rows,
            errors.total
        )
    } else {
        format!("unable to parse: {}{example}", refused(errors.total))
    };
    let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid", Retry::Never, message);
    let mut extra = Map::new();
    extra.insert("stored".into(), stored.rows.into());
    extra.insert("rejected".into(), errors.total.into());
    let lines: Vec<Value> = errors
        .first
        .iter()
        .map(|e| json!({ "line": e.line, "column": e.column, "reason": e.reason }))
        .collect();
    extra.insert("lines".into(), lines.into());
    let mut response = error.influx_response(extra);
    commit_headers(&mut response, &stored.commit);
    response
}
