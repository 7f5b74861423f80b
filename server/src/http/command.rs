//! What the requests for operators share.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::names;
use super::state::AppState;

/// What this process is called where nodes are named.
pub(super) const NODE: &str = "standalone";

/// What a command says, in its query string or its body.
pub struct Command {
    query: Option<String>,
    headers: HeaderMap,
    body: Body,
}

impl<S: Sync> FromRequest<S> for Command {
    type Rejection = Infallible;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Infallible> {
        let (parts, body) = request.into_parts();
        Ok(Self {
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers,
            body,
        })
    }
}

impl Command {
    pub(super) async fn read<T: DeserializeOwned>(
        self,
        state: &AppState,
        known: &[&str],
        flags: &[&str],
    ) -> Result<T, ApiError> {
        let body = state.intake.read(&self.headers, self.body).await?;
        let query = self.query.as_deref().unwrap_or("");
        names::command(query, &body.bytes, known, flags)
    }
}
