//! Errors as HTTP clients see them:
//! `{"error":{"code","message","retry"[,"position":{"line","column"}][,"hint"]}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use shoal_engine::{EngineError, WriteError};
use shoal_query::QueryError;
use shoal_types::Retry;

/// A request that failed.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable snake_case name of the kind of failure.
    pub code: &'static str,
    /// What went wrong, for the one who sent the request.
    pub message: String,
    /// What the client may do.
    pub retry: Retry,
    /// Line and column in the statement, from 1.
    pub position: Option<(u64, u64)>,
    /// A remedy.
    pub hint: Option<String>,
}

/// Why a request failed, for the log.
#[derive(Clone, Debug)]
pub struct Reason(pub String);

/// Seconds after which a client that was pushed back may try again.
const RETRY_AFTER_S: &str = "1";

impl ApiError {
    /// An error without position or hint.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        retry: Retry,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            retry,
            position: None,
            hint: None,
        }
    }

    /// The request makes no sense (400).
    pub fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, Retry::Never, message)
    }

    /// An order that there is not; `known`: those that there are.
    #[must_use]
    pub fn no_order(order: &str, known: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            Retry::Never,
            format!("there is no order {order:?}; there are {known}"),
        )
    }

    /// An order about a shard that there is not.
    #[must_use]
    pub fn no_shard_order(order: &str) -> Self {
        Self::no_order(order, "promote, add-follower, remove-follower, move")
    }

    /// An order that lacks the node.
    #[must_use]
    pub fn needs_node() -> Self {
        Self::invalid("invalid_request", "say which node: \"to\" (--to NODE)")
    }

    /// The body is too large (413).
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            Retry::Never,
            message,
        )
    }

    /// Too much is under way (429).
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "overloaded",
            Retry::Safe,
            message,
        )
    }

    /// A defect of ours (500).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            Retry::Unknown,
            message,
        )
    }

    /// The object under `error`.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut error = Map::new();
        error.insert("code".into(), self.code.into());
        error.insert("message".into(), self.message.clone().into());
        error.insert("retry".into(), self.retry.as_str().into());
        if let Some((line, column)) = self.position {
            error.insert("position".into(), json!({ "line": line, "column": column }));
        }
        if let Some(hint) = &self.hint {
            error.insert("hint".into(), hint.clone().into());
        }
        Value::Object(error)
    }

    /// The answer in the shape that InfluxDB's clients read: v1 takes `error` as text, v2 `code`
    /// and `message`.
    #[must_use]
    pub fn influx_response(&self, extra: Map<String, Value>) -> Response {
        let mut body = Map::new();
        body.insert("error".into(), self.message.clone().into());
        body.insert("code".into(), self.code.into());
        body.insert("message".into(), self.message.clone().into());
        body.insert("retry".into(), self.retry.as_str().into());
        body.extend(extra);
        let mut response = self.respond(&Value::Object(body));
        // InfluxDB's v1 clients print this header rather than the body.
        let line: String = self
            .message
            .chars()
            .map(|c| {
                if c.is_ascii() && !c.is_ascii_control() {
                    c
                } else {
                    '?'
                }
            })
            .take(400)
            .collect();
        if let Ok(value) = HeaderValue::from_str(&line) {
            response.headers_mut().insert("X-Influxdb-Error", value);
        }
        response
    }

    /// The answer with a body of its own, which holds [`Self::json`] under `error`.
    #[must_use]
    pub fn respond(&self, body: &Value) -> Response {
        let mut response = (self.status, axum::Json(body)).into_response();
        response
            .extensions_mut()
            .insert(Reason(self.message.clone()));
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"shoal\", Basic realm=\"shoal\""),
                );
            }
            _ => {}
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(&json!({ "error": self.json() }))
    }
}

/// The status that fits a kind of failure.
fn status_of(code: &str) -> StatusCode {
    match code {
        "duplicate_table" | "duplicate_column" | "duplicate_schema" | "conflict"
        | "schema_changed" | "expired_id" => StatusCode::CONFLICT,
        "read_only" | "not_allowed" => StatusCode::FORBIDDEN,
        "timeout" | "cancelled" | "outcome_unknown" | "commit_timeout" => {
            StatusCode::GATEWAY_TIMEOUT
        }
        "too_many_statements" | "overloaded" => StatusCode::TOO_MANY_REQUESTS,
        "disk_full" | "out_of_memory" => StatusCode::INSUFFICIENT_STORAGE,
        "unavailable" | "not_fresh" | "snapshot_too_old" => StatusCode::SERVICE_UNAVAILABLE,
        "data_lost" => StatusCode::GONE,
        "data_damaged" | "io_error" | "internal" => StatusCode::INTERNAL_SERVER_ERROR,
        "not_supported" => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::BAD_REQUEST,
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        Self {
            status: status_of(error.code),
            code: error.code,
            message: error.message,
            retry: error.retry,
            position: error.position,
            hint: error.hint,
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match &error {
            WriteError::TooLargeForAtomic { .. } | WriteError::RowTooLarge { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "write_too_large",
                Retry::Never,
                error.to_string(),
            ),
            _ => QueryError::from(error).into(),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Write(write) => write.into(),
            EngineError::NotFound { .. } => Self {
                status: StatusCode::NOT_FOUND,
                ..QueryError::from(error).into()
            },
            other => QueryError::from(other).into(),
        }
    }
}
