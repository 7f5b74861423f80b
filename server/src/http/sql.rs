//! `POST /v1/sql`: one statement in, its rows out.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use shoal_engine::CommitToken;
use shoal_query::{Session, SessionOptions, commit_tokens};

use super::answer::{Format, answer};
use super::error::ApiError;
use super::headers::{text_of, timeout_header, write_id};
use super::names;
use super::params::scalar_values;
use super::state::AppState;

/// The body of the request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlRequest {
    sql: String,
    #[serde(default)]
    params: Vec<Value>,
    schema: Option<String>,
    #[serde(default)]
    format: Format,
    timeout_ms: Option<u64>,
    consistency: Option<String>,
    read_from: Option<String>,
    commit_tokens: Option<Tokens>,
}

/// The fields of [`SqlRequest`].
const FIELDS: &[&str] = &[
    "sql",
    "params",
    "schema",
    "format",
    "timeout_ms",
    "consistency",
    "read_from",
    "commit_tokens",
];

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Tokens {
    One(String),
    Many(Vec<String>),
}

/// Runs the statement.
///
/// # Errors
/// [`ApiError`]; a failure after the first rows: see [`super::answer`].
pub async fn sql(
    State(state): State<Arc<AppState>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let began = Instant::now();
    let body = state.intake.read(&headers, body).await?;
    names::check_query(query.as_deref().unwrap_or(""), &[])?;
    let request: SqlRequest = names::object(&body.bytes, FIELDS)?;
    let freshness = Freshness::read(&request, &headers)?;
    let timeout_ms = match request.timeout_ms {
        Some(ms) => Some(ms),
        None => timeout_header(&headers)?,
    };
    let params = scalar_values(&request.params)?;
    let session = state.query.session(SessionOptions {
        schema: request.schema.unwrap_or_else(|| "public".into()),
        timeout_ms,
        ..Default::default()
    });
    let session = match write_id(&headers)? {
        Some(id) => session.with_write_id(id),
        None => session,
    };
    let freshness = freshness.applied(&session, state.cluster.is_some())?;
    let output = session.execute(&request.sql, &params).await?;
    // The text may be megabytes of VALUES: give its share of the bound back before rows are sent.
    drop(body);
    let mut response = answer(output, request.format, began).await?;
    let headers = response.headers_mut();
    if !headers.contains_key(SERVED_BY) {
        let me = match &state.cluster {
            Some(cluster) => HeaderValue::from_str(&format!("{}/node", cluster.me)).ok(),
            None => Some(HeaderValue::from_static("standalone/leader")),
        };
        if let Some(me) = me {
            headers.insert(SERVED_BY, me);
        }
    }
    if let Ok(level) = HeaderValue::from_str(&freshness) {
        headers.insert("Shoal-Consistency", level);
    }
    Ok(response)
}

/// Names the replicas that gave the rows.
const SERVED_BY: &str = "Shoal-Served-By";

/// What the reader asked for, in the request or its headers.
struct Freshness {
    level: Option<String>,
    place: Option<String>,
    tokens: Vec<CommitToken>,
}

impl Freshness {
    fn read(request: &SqlRequest, headers: &HeaderMap) -> Result<Self, ApiError> {
        let all = |name: &'static str| {
            let values = headers.get_all(name).iter();
            let texts = values.map(|value| text_of(value, name).map(str::to_owned));
            texts.collect::<Result<Vec<_>, _>>()
        };
        let one = |name: &'static str| match all(name)?.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            _ => Err(ApiError::invalid(
                "invalid_request",
                format!("{name} is given more than once"),
            )),
        };
        let texts = match &request.commit_tokens {
            Some(Tokens::One(text)) => vec![text.clone()],
            Some(Tokens::Many(texts)) => texts.clone(),
            None => all("Shoal-Commit-Token")?,
        };
        let mut tokens = Vec::new();
        for text in texts {
            tokens.extend(commit_tokens(&text)?);
        }
        Ok(Self {
            level: match &request.consistency {
                Some(level) => Some(level.clone()),
                None => one("Shoal-Consistency")?,
            },
            place: match &request.read_from {
                Some(place) => Some(place.clone()),
                None => one("Shoal-Read-From")?,
            },
            tokens,
        })
    }

    /// Sets it in the session; the level that the rows have at least.
    fn applied(&self, session: &Session, clustered: bool) -> Result<String, ApiError> {
        if let Some(level) = &self.level {
            session.set("consistency", level)?;
        }
        if let Some(place) = &self.place {
            session.set("read_from", place)?;
            if place == "follower" && !clustered {
                return Err(ApiError::invalid(
                    "no_follower",
                    "read_from = follower cannot be met: a standalone process holds the only replica, its leader",
                ));
            }
        }
        session.has_seen(&self.tokens);
        // One process holds the only replica of every shard and its durable end is its barrier
        // (PROTOCOLS §1), so every read is a strong one, which meets every level.
        Ok(match &self.level {
            Some(level) if clustered => level.clone(),
            _ => "strong".to_owned(),
        })
    }
}
