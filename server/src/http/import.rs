//! `GET /v1/import/{id}`: how far an import got (see `crate::cli::import`). Its chunks come in by
//! `/write` and `/v1/ingest` with a `Shoal-Import` header.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use serde_json::{Value, json};

use super::error::ApiError;
use super::ingest::import_id;
use super::names;
use super::state::AppState;

/// `{"import", "progress"}`: the chunk to go on with (every shard has all below it); null if
/// nothing of the import is known.
///
/// # Errors
/// 400 if the id is not 32 hexadecimal digits.
pub async fn progress(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, ApiError> {
    names::check_query(query.as_deref().unwrap_or(""), &[])?;
    let import = import_id(&id).ok_or_else(|| {
        ApiError::invalid("invalid_request", "an import id has 32 hexadecimal digits")
    })?;
    let progress = state.db.import_progress(import).await?;
    Ok(Json(json!({ "import": id, "progress": progress })))
}
