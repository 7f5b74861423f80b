//! How the benchmark talks to a server.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};

use crate::BenchError;

/// Where the server is.
#[derive(Clone, Debug, clap::Args)]
pub struct Target {
    /// The server's HTTP address.
    #[arg(long, default_value = "http://127.0.0.1:7420", env = "SHOAL_URL")]
    pub url: String,
    /// Sent as `Authorization: Bearer …`.
    #[arg(long, env = "SHOAL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// The schema that holds the tables.
    #[arg(long, default_value = "public")]
    pub schema: String,
}

/// Longer than any request of a benchmark may take; a server that hangs must not hang us too.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

/// A connection pool to one server.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    target: Target,
}

/// A status and the whole body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

impl Client {
    pub(crate) fn new(target: &Target) -> Result<Self, BenchError> {
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .map_err(|source| BenchError::Http {
                url: target.url.clone(),
                source,
            })?;
        let url = target.url.trim_end_matches('/').to_owned();
        Ok(Self {
            http,
            target: Target {
                url,
                ..target.clone()
            },
        })
    }

    fn post(&self, url: &str) -> reqwest::RequestBuilder {
        let request = self.http.post(url);
        match &self.target.token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    async fn send(url: &str, request: reqwest::RequestBuilder) -> Result<Answer, BenchError> {
        let http = |source| BenchError::Http {
            url: url.to_owned(),
            source,
        };
        let response = request.send().await.map_err(http)?;
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(http)?;
        Ok(Answer { status, body })
    }

    pub(crate) fn write_url(&self) -> String {
        format!(
            "{}/write?db={}&precision=ns",
            self.target.url, self.target.schema
        )
    }

    /// Sends line protocol. Any status is an `Ok`: the caller decides what to try again.
    pub(crate) async fn write(&self, lines: Bytes, gzip: bool) -> Result<Answer, BenchError> {
        let url = self.write_url();
        let mut request = self.post(&url).body(lines);
        if gzip {
            request = request.header(CONTENT_ENCODING, "gzip");
        }
        Self::send(&url, request).await
    }

    /// Runs a statement and reads the whole answer in `format` (`json` or `arrow`).
    pub(crate) async fn sql(&self, statement: &str, format: &str) -> Result<Bytes, BenchError> {
        let url = format!("{}/v1/sql", self.target.url);
        let body = serde_json::json!({
            "sql": statement,
            "schema": self.target.schema,
            "format": format,
        });
        let request = self
            .post(&url)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        let answer = Self::send(&url, request).await?;
        if answer.status != 200 {
            return Err(BenchError::refused(&url, answer.status, &answer.body));
        }
        Ok(answer.body)
    }
}
