//! `POST /v1/ingest/{table}`: an Arrow IPC stream of rows, and what all writes share.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use shoal_engine::{Commit, WriteError, WriteOptions};
use shoal_types::{TableMode, WriteId};
use shoal_wal::record::ImportChunk;

use super::answer::commit_token;
use super::body::INLINE_BYTES;
use super::error::ApiError;
use super::headers::{header_text, timeout_header, write_id};
use super::names;
use super::rows::{blocks, read_batches};
use super::state::AppState;
use crate::auth::url_pairs;

/// How often rows are rebuilt because the table was altered while they were on their way.
pub const REBUILDS_MAX: usize = 8;

/// What headers and query string say of a write.
///
/// # Errors
/// 400 naming the header or parameter.
pub fn write_options(headers: &HeaderMap, query: &str) -> Result<WriteOptions, ApiError> {
    let write_id = write_id(headers)?;
    let import = header_text(headers, "Shoal-Import")?
        .map(import_chunk)
        .transpose()?;
    if import.is_some() && write_id.is_some() {
        return Err(ApiError::invalid(
            "invalid_request",
            "Shoal-Import and Shoal-Write-Id exclude each other",
        ));
    }
    let atomic = match url_pairs(query).find(|(k, _)| k == "atomic") {
        None => false,
        Some((name, text)) => names::flag(&name, &text)?,
    };
    Ok(WriteOptions {
        write_id,
        import,
        read_at: None,
        atomic,
        record_a_shard: false,
        timeout: timeout_header(headers)?.map(Duration::from_millis),
    })
}

/// `{32 hexadecimal digits}/{number}`
fn import_chunk(text: &str) -> Result<ImportChunk, ApiError> {
    text.split_once('/')
        .and_then(|(id, chunk)| Some((import_id(id)?, chunk.parse().ok()?)))
        .map(|(import, chunk)| ImportChunk {
            import,
            chunk,
            // The engine cuts a chunk into records and numbers them.
            part: 0,
            last_part: true,
        })
        .ok_or_else(|| {
            ApiError::invalid(
                "invalid_request",
                "Shoal-Import must be 32 hexadecimal digits, '/', and the chunk's number",
            )
        })
}

/// The import id that a text names.
pub fn import_id(text: &str) -> Option<u128> {
    (text.len() == 32)
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

/// Headers that tell of an acknowledged write.
pub fn commit_headers(response: &mut Response, commit: &Commit) {
    let headers = response.headers_mut();
    if let Some(token) = commit_token(commit) {
        headers.insert("Shoal-Commit-Token", token);
    }
    headers.insert("Shoal-Rows", HeaderValue::from(commit.rows));
    if commit.duplicate {
        headers.insert("Shoal-Duplicate", HeaderValue::from_static("true"));
    }
}

/// Stores the stream's rows in the table.
///
/// # Errors
/// [`ApiError`]; nothing is stored if a row does not fit the table.
pub async fn ingest(
    State(state): State<Arc<AppState>>,
    Path(table): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let query = query.unwrap_or_default();
    names::check_query(&query, &["schema", "db", "atomic"])?;
    let mut options = write_options(&headers, &query)?;
    let schema_name = url_pairs(&query)
        .find(|(k, _)| k == "schema" || k == "db")
        .map_or_else(|| "public".to_owned(), |(_, v)| v);
    let body = state.intake.read(&headers, body).await?;
    let parser = state.intake.parser().await?;
    let batches = if body.bytes.len() > INLINE_BYTES {
        tokio::task::block_in_place(|| read_batches(&body.bytes))?
    } else {
        read_batches(&body.bytes)?
    };
    drop(parser);
    let rows: usize = batches.iter().map(arrow_array::RecordBatch::num_rows).sum();
    if rows == 0 {
        return Ok(Json(json!({ "rows": 0 })).into_response());
    }
    let handle = state
        .db
        .find_table(&schema_name, &table)
        .await?
        .ok_or_else(|| super::admin::no_such_table(&state, &schema_name, &table))?;
    for round in 0.. {
        let schema = state.db.table_schema(&handle)?;
        // Rows of an append table that need several records: should the table be altered between
        // two of them, only an id keeps the first from being stored again.
        let several = rows > state.record_rows_max || body.bytes.len() > state.record_bytes_max / 2;
        if schema.mode == TableMode::Append
            && several
            && options.write_id.is_none()
            && options.import.is_none()
        {
            options.write_id = Some(WriteId(ulid::Ulid::new().0));
        }
        let blocks = tokio::task::block_in_place(|| blocks(&schema, &batches))?;
        match state.db.write(blocks, options.clone()).await {
            Ok(commit) => {
                state
                    .metrics
                    .rows_written("arrow", rows as u64, body.bytes.len() as u64, 0);
                let mut response =
                    Json(json!({ "rows": rows, "duplicate": commit.duplicate })).into_response();
                commit_headers(&mut response, &commit);
                return Ok(response);
            }
            Err(WriteError::StaleSchema { .. }) if round < REBUILDS_MAX => {}
            Err(WriteError::Invalid(_)) if state.db.table(&schema_name, &table).is_none() => {
                return Err(super::admin::no_such_table(&state, &schema_name, &table));
            }
            Err(error) => {
                state.metrics.write_failed();
                return Err(error.into());
            }
        }
    }
    Err(ApiError::internal("the rows were rebuilt without end"))
}
