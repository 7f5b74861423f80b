//! Sends chunks and sends them again until their outcome is known. That doubles nothing: the
//! server knows each chunk by import id and number, in the same log records as its rows.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::chunk::{BAD_SHOWN_MAX, BadLine, Chunk};
use crate::cli::client::Client;
use crate::cli::{CliError, UNREACHABLE, chain};

/// Longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Does what may be done again until the server answers.
///
/// # Errors
/// A refusal at once; no answer within `patience`.
pub async fn patiently<T, F>(patience: Duration, mut act: impl FnMut() -> F) -> Result<T, CliError>
where
    F: Future<Output = Result<T, CliError>>,
{
    let began = Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        match act().await {
            Err(error) if error.code == UNREACHABLE && began.elapsed() < patience => {}
            result => return result,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Where chunks go.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The server.
    pub client: Client,
    /// Path and query.
    pub path: String,
    /// `Content-Type` of a chunk.
    pub content_type: &'static str,
    /// Import id, 32 hexadecimal digits.
    pub import: String,
    /// How long one chunk is tried while the server is away or overloaded.
    pub patience: Duration,
}

/// What became of a chunk.
#[derive(Debug, Default)]
pub struct Sent {
    /// Rows stored now.
    pub rows: u64,
    /// The server had it from an earlier run.
    pub duplicate: bool,
    /// Bad lines, numbered as in the input; at most [`BAD_SHOWN_MAX`].
    pub bad: Vec<BadLine>,
    /// Number of bad lines.
    pub bad_count: u64,
}

impl Sender {
    /// Sends a chunk until the server has it.
    ///
    /// # Errors
    /// The server refuses it as a whole, or was away for too long.
    pub async fn send(&self, chunk: &Chunk) -> Result<Sent, CliError> {
        let mut sent = Sent {
            bad: chunk.bad.clone(),
            bad_count: chunk.bad_count,
            ..Default::default()
        };
        if chunk.body.is_empty() {
            return Ok(sent);
        }
        let began = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let why = match self.try_once(chunk, &mut sent).await? {
                None => return Ok(sent),
                Some(why) => why,
            };
            if began.elapsed() > self.patience {
                return Err(CliError::unreachable(format!(
                    "chunk {} was not taken within {} s: {why}\nhint: run the same command again when the server is back; it goes on where it stopped",
                    chunk.number,
                    self.patience.as_secs()
                )));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// `Some(reason)`: send it again.
    async fn try_once(&self, chunk: &Chunk, sent: &mut Sent) -> Result<Option<String>, CliError> {
        let request = self
            .client
            .request(Method::POST, &self.path)
            .header("Content-Type", self.content_type)
            .header("Shoal-Import", format!("{}/{}", self.import, chunk.number))
            .body(chunk.body.clone());
        // A broken connection leaves the outcome open; the chunk's number settles it.
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Ok(Some(chain(&error))),
        };
        let status = response.status();
        let number = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok()?.parse::<u64>().ok()
        };
        let rows = number("Shoal-Rows");
        let duplicate = response
            .headers()
            .get("Shoal-Duplicate")
            .is_some_and(|v| v.as_bytes() == b"true");
        let text = match response.text().await {
            Ok(text) => text,
            Err(error) => return Ok(Some(chain(&error))),
        };
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let lines = body["lines"].as_array();
        if status.is_success() || (status == StatusCode::BAD_REQUEST && lines.is_some()) {
            sent.duplicate = duplicate;
            sent.rows = if duplicate { 0 } else { rows.unwrap_or(0) };
            let bad = lines.into_iter().flatten().filter_map(|bad| {
                Some(BadLine {
                    line: bad["line"].as_u64()? + chunk.first_line - 1,
                    column: bad["column"].as_u64().unwrap_or(0),
                    reason: bad["reason"].as_str()?.to_owned(),
                })
            });
            sent.bad.extend(bad);
            sent.bad.sort_by_key(|b| b.line);
            sent.bad.truncate(BAD_SHOWN_MAX);
            sent.bad_count += body["rejected"].as_u64().unwrap_or(0);
            return Ok(None);
        }
        let error = &body["error"];
        let field = |name: &str| error[name].as_str().or_else(|| body[name].as_str());
        let message = field("message").unwrap_or(&text).trim().to_owned();
        // `unknown` may be tried again too, because the chunk has a number.
        if matches!(field("retry"), Some("safe" | "unknown")) {
            return Ok(Some(message));
        }
        Err(CliError::failed(format!(
            "chunk {} (from line {}) was refused: {message}",
            chunk.number, chunk.first_line
        )))
    }
}
