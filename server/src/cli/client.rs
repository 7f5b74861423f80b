//! The HTTP client of the commands that talk to a server.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use super::{CliError, chain};
use crate::http::OPERATOR;

/// For how long what cannot be done at this moment is asked for, and how often.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// Where the server is and how to be let in.
#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// The server's HTTP address.
    #[arg(
        long,
        global = true,
        env = "SHOAL_URL",
        default_value = "http://127.0.0.1:7420"
    )]
    pub url: String,
    /// The token, if the server asks for one.
    #[arg(long, global = true, env = "SHOAL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// A server, spoken to over HTTP.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    /// For the record of what was ordered by whom.
    user: Option<String>,
}

/// What the server answered when it refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// `error.code` of the body, or empty.
    pub code: String,
    /// `error.message`, or the body's text.
    pub message: String,
    /// `error.retry`: `safe`, `unknown` or `never`.
    pub retry: String,
    /// The body as JSON, if it is.
    pub body: Value,
}

impl From<Refusal> for CliError {
    fn from(refusal: Refusal) -> Self {
        let mut message = refusal.message;
        if let Some(hint) = refusal.body["error"]["hint"].as_str() {
            message.push_str(&format!("\nhint: {hint}"));
        }
        if refusal.status == 401 {
            message.push_str("\nhint: pass --token or set SHOAL_TOKEN");
        }
        Self::failed(message)
    }
}

impl Client {
    /// A client; nothing is sent yet.
    ///
    /// # Errors
    /// The address is not a URL.
    pub fn new(args: &ClientArgs) -> Result<Self, CliError> {
        let base = args.url.trim_end_matches('/');
        let base = if base.contains("://") {
            base.to_owned()
        } else {
            format!("http://{base}")
        };
        reqwest::Url::parse(&base)
            .map_err(|e| CliError::usage(format!("--url {:?} is not a URL: {e}", args.url)))?;
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .no_proxy()
            .build()?;
        Ok(Self {
            http,
            base,
            token: args.token.clone(),
            user: std::env::var("USER").ok().filter(|user| {
                let fits = |b: u8| b.is_ascii_graphic() && b != b'/';
                (1..=128).contains(&user.len()) && user.bytes().all(fits)
            }),
        })
    }

    /// The server's address.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A request to a path of the server, with the token.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        match &self.user {
            Some(user) => request.header(OPERATOR, user),
            None => request,
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Exit code 3 if the server cannot be reached.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        request.send().await.map_err(|e| self.unreachable(&e))
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        CliError::unreachable(format!(
            "cannot talk to {}: {}\nhint: is `shoal standalone` running there? --url or SHOAL_URL names another",
            self.base,
            chain(error)
        ))
    }

    /// The body of a good answer; what was refused otherwise.
    ///
    /// # Errors
    /// The outer error: no answer. The inner one: a refusal.
    pub async fn text(&self, request: RequestBuilder) -> Result<Result<String, Refusal>, CliError> {
        let response = self.send(request).await?;
        let status = response.status();
        let text = response.text().await.map_err(|e| self.unreachable(&e))?;
        if status.is_success() {
            return Ok(Ok(text));
        }
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let error = &body["error"];
        let word = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        let message = match (error["message"].as_str(), error.as_str()) {
            (Some(message), _) | (None, Some(message)) => message.to_owned(),
            (None, None) if text.trim().is_empty() => format!("the server answered {status}"),
            (None, None) => format!("the server answered {status}: {}", text.trim()),
        };
        Ok(Err(Refusal {
            status: status.as_u16(),
            code: word("code"),
            message,
            retry: word("retry"),
            body,
        }))
    }

    /// As [`Self::text`]; what cannot be done at this moment, and had no effect, is asked again for a
    /// while: a scheduler or leader may have just ended, and the next one leads within seconds.
    async fn patient_text(
        &self,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Result<String, Refusal>, CliError> {
        let begun = Instant::now();
        loop {
            match self.text(request()).await? {
                Err(refusal)
                    if refusal.status == 503
                        && refusal.retry == "safe"
                        && begun.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                answered => return Ok(answered),
            }
        }
    }

    /// GET of a JSON document.
    ///
    /// # Errors
    /// [`CliError`].
    pub async fn get_json(&self, path: &str) -> Result<Value, CliError> {
        let text = self
            .patient_text(|| self.request(Method::GET, path))
            .await??;
        Ok(serde_json::from_str(&text)?)
    }

    /// POST of a JSON document.
    ///
    /// # Errors
    /// [`CliError`].
    pub async fn post_json(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let request = || self.request(Method::POST, path).json(body);
        let text = self.patient_text(request).await??;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_str(&text)?)
    }
}
