//! `POST /v1/admin/shards/{shard}/skip-record` and `…/adopt-log`: what an operator does about a
//! damaged or lost log. Without `accept_loss` the answer is 409 and says the price.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use shoal_types::{Offset, Retry, ShardId};

use super::command::{Command, NODE};
use super::error::ApiError;
use super::state::AppState;
use crate::node::orders::one_of;
use crate::node::repair::{Accepting, RepairReport, price_of_adopting, price_of_skipping};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SkipRequest {
    offset: u64,
    #[serde(default)]
    accept_loss: bool,
    #[serde(default)]
    reason: String,
}

/// Goes on behind damaged records.
///
/// # Errors
/// 400: the shard is not damaged, or not there. 409: the loss was not accepted.
pub async fn skip_record(
    State(state): State<Arc<AppState>>,
    Path(shard): Path<String>,
    command: Command,
) -> Result<Response, ApiError> {
    let request: SkipRequest = command
        .read(
            &state,
            &["offset", "accept_loss", "reason"],
            &["accept_loss"],
        )
        .await?;
    let at = Offset(request.offset);
    let accepting = Accepting {
        accept_loss: request.accept_loss,
        reason: request.reason,
    };
    let report = match &state.cluster {
        Some(cluster) => {
            let shard = cluster.orders.shard(&shard)?;
            cluster.orders.skip_record(shard, at, &accepting).await?
        }
        None => skip_here(&state, shard_here(&state, &shard)?, at, &accepting).await?,
    };
    answer(&report)
}

/// Goes on with a new log.
///
/// # Errors
/// 400: the log is in order. 409: the loss was not accepted.
pub async fn adopt_log(
    State(state): State<Arc<AppState>>,
    Path(shard): Path<String>,
    command: Command,
) -> Result<Response, ApiError> {
    let accepting: Accepting = command
        .read(&state, &["accept_loss", "reason"], &["accept_loss"])
        .await?;
    let report = match &state.cluster {
        Some(cluster) => {
            let shard = cluster.orders.shard(&shard)?;
            cluster.orders.adopt_log(shard, &accepting).await?
        }
        None => adopt_here(&state, shard_here(&state, &shard)?, &accepting).await?,
    };
    answer(&report)
}

pub(super) fn shard_here(state: &AppState, text: &str) -> Result<ShardId, ApiError> {
    let all = state.db.shard_ids().into_iter();
    Ok(one_of("shard", text, all.map(|id| (id.to_string(), id)))?)
}

async fn skip_here(
    state: &AppState,
    shard: ShardId,
    at: Offset,
    accepting: &Accepting,
) -> Result<RepairReport, ApiError> {
    let begun = Instant::now();
    let status = state.db.status();
    let halt = status.into_iter().find(|s| s.id == shard);
    let Some(halt) = halt.and_then(|status| status.halted) else {
        return Err(ApiError::invalid(
            "invalid_request",
            format!("shard {shard} is not damaged: nothing was changed"),
        ));
    };
    let price = price_of_skipping(&halt);
    let mut report = RepairReport::refused("skip-record", shard, NODE.into(), price);
    if halt.at != at || halt.end.is_none() {
        return Err(ApiError::invalid(
            "invalid_request",
            format!("the damage is at position {}, not {at}: {halt}", halt.at),
        ));
    }
    report.lost = halt.end.map(|end| (at, end));
    if !accepting.accept_loss {
        return Ok(report);
    }
    let done = state.db.skip_record(shard, at, true, accepting.give_up());
    Ok(report.done(done.await?, begun))
}

async fn adopt_here(
    state: &AppState,
    shard: ShardId,
    accepting: &Accepting,
) -> Result<RepairReport, ApiError> {
    let begun = Instant::now();
    let found = state.db.examine_log(shard).await?;
    let Some(lost) = &found.lost else {
        return Err(ApiError::invalid(
            "invalid_request",
            format!("the log of shard {shard} is in order: nothing was changed"),
        ));
    };
    let status = state.db.status();
    let status = status.into_iter().find(|s| s.id == shard);
    let passed = status
        .filter(|s| s.role != "none" || s.halted.is_some())
        .map_or(Offset(0), |s| s.halted.map_or(s.position.next(), |h| h.at));
    let price = price_of_adopting(lost, found.replay_offset, passed);
    let mut report = RepairReport::refused("adopt-log", shard, NODE.into(), price);
    report.replay_offset = Some(found.replay_offset);
    report.read_up_to = Some(passed);
    if !accepting.accept_loss {
        return Ok(report);
    }
    let done = state.db.adopt_log(shard, passed, accepting.give_up());
    Ok(report.done(done.await?, begun))
}

fn answer(report: &RepairReport) -> Result<Response, ApiError> {
    let mut document = serde_json::to_value(report)
        .map_err(|e| ApiError::internal(format!("cannot show the order: {e}")))?;
    if report.state == "done" {
        tracing::warn!(
            order = report.order, shard = %report.shard, node = report.node, price = report.price,
            "ordered"
        );
        return Ok(Json(document).into_response());
    }
    let error = ApiError::new(
        StatusCode::CONFLICT,
        "loss_not_accepted",
        Retry::Never,
        format!(
            "nothing was changed. What would be lost: {}. To go on all the same: --accept-loss (\"accept_loss\": true)",
            report.price
        ),
    );
    document["error"] = json!(error.json());
    Ok(error.respond(&document))
}
