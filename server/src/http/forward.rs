//! Requests that another process answers: a node hands those about procedures to the scheduler that
//! leads, a scheduler hands those about data to a node. A request crosses one process at most.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use shoal_types::Retry;

use super::error::ApiError;
use crate::chain::chain;

/// Set on a request that was handed on.
const FORWARDED: &str = "shoal-forwarded";
/// The largest body that is handed on: orders are small.
const BODY_BYTES_MAX: usize = 1 << 20;
/// How long the other process may take to be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Hands requests on.
#[derive(Clone, Debug)]
pub struct Forward {
    http: reqwest::Client,
}

impl Forward {
    /// No connections yet.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new() -> Result<Arc<Self>, String> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .build();
        let http = http.map_err(|e| chain(&e))?;
        Ok(Arc::new(Self { http }))
    }

    /// The answer of the process at `address` (`host:port`). `gone` resolves when that is not the one
    /// to ask any more: it may stand still.
    ///
    /// # Errors
    /// It cannot be reached (`retry` is `safe`: it has had no effect), or did not answer.
    pub async fn to(
        &self,
        address: &str,
        what: &str,
        request: &Buffered,
        gone: impl Future<Output = ()>,
    ) -> Result<Response, ApiError> {
        let url = format!("http://{address}{}", request.path);
        let sent = self.http.request(request.method.clone(), url);
        let sent = sent.body(request.body.clone());
        let sent = sent.headers(request.headers.clone());
        let sent = sent.header(FORWARDED, HeaderValue::from_static("1"));
        let unanswered = |e: reqwest::Error| {
            let retry = if e.is_connect() {
                Retry::Safe
            } else {
                Retry::Unknown
            };
            unavailable(format!("{what} at {address}: {}", chain(&e)), retry)
        };
        let answer = tokio::select! {
            answer = sent.send() => answer.map_err(unanswered)?,
            () = gone => {
                let why = format!("{what} at {address} has gone before it answered; look what came of it, and ask again");
                return Err(unavailable(why, Retry::Unknown));
            }
        };
        let status = answer.status();
        let headers = answer.headers().clone();
        let bytes: Bytes = answer.bytes().await.map_err(unanswered)?;
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = status;
        *response.headers_mut() = handed_on(&headers);
        Ok(response)
    }
}

/// A request as it is handed on, to one process or, if that cannot be reached, to the next.
#[derive(Clone, Debug)]
pub struct Buffered {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Buffered {
    /// Reads a request that is to be handed on to `what`.
    ///
    /// # Errors
    /// It was handed on before, or its body is too large.
    pub async fn read(request: Request, what: &str) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        if parts.headers.contains_key(FORWARDED) {
            let why = format!("{what} has just changed; ask again");
            return Err(unavailable(why, Retry::Safe));
        }
        let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await;
        let body = body.map_err(|_| {
            ApiError::too_large(format!(
                "more than {BODY_BYTES_MAX} bytes are no order; rows are sent to a node"
            ))
        })?;
        let path = parts.uri.path_and_query();
        Ok(Self {
            method: parts.method,
            path: path.map_or("/", |p| p.as_str()).to_owned(),
            headers: handed_on(&parts.headers),
            body,
        })
    }
}

fn unavailable(why: String, retry: Retry) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", retry, why)
}

/// Without those of a connection, and of a body that was read: they are made anew.
fn handed_on(headers: &HeaderMap) -> HeaderMap {
    let mut handed = headers.clone();
    for own in [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONNECTION,
        header::TRANSFER_ENCODING,
    ] {
        handed.remove(own);
    }
    handed
}
