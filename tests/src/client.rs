//! An HTTP client of one server.

use std::time::Duration;

use serde_json::{Value, json};

/// Long enough for a loaded machine; a hang still ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// What the server said when it did not do what was asked.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The HTTP status; `None`: the connection broke, so nothing is known.
    pub status: Option<u16>,
    /// The body, or what the connection said.
    pub text: String,
    /// `safe`, `unknown`, `never`, or empty.
    pub retry: String,
}

/// A result whose error is a [`Failure`].
pub type Failed<T> = Result<T, Failure>;

/// An answer with its headers.
#[derive(Clone, Debug)]
pub struct Answer {
    headers: reqwest::header::HeaderMap,
    /// The body.
    pub text: String,
}

impl Answer {
    /// A header's value; empty if it is not there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The only number of the only row of a JSON result.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn count(&self) -> u64 {
        let parsed: Value = serde_json::from_str(&self.text).expect("JSON");
        let number = parsed["rows"][0][0].as_u64();
        number.unwrap_or_else(|| panic!("no number in {}", self.text))
    }
}

/// An HTTP client of one server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client; nothing is sent yet. `base` is like `http://127.0.0.1:7420`.
    #[must_use]
    pub fn new(base: &str) -> Self {
        let http = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .no_proxy()
            .build()
            .expect("a client without TLS always builds");
        Self {
            http,
            base: base.to_owned(),
        }
    }

    /// The server's address.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Failed<(u16, String)> {
        let (status, answer) = self.send_whole(request).await?;
        Ok((status, answer.text))
    }

    async fn send_whole(&self, request: reqwest::RequestBuilder) -> Failed<(u16, Answer)> {
        let broken = |e: reqwest::Error| Failure {
            status: None,
            text: e.to_string(),
            retry: "unknown".into(),
        };
        let answer = request.send().await.map_err(broken)?;
        let status = answer.status().as_u16();
        let headers = answer.headers().clone();
        let text = answer.text().await.map_err(broken)?;
        if (200..300).contains(&status) {
            return Ok((status, Answer { headers, text }));
        }
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        // `/v1` nests the error, InfluxDB's paths do not.
        let retry = body["error"]["retry"]
            .as_str()
            .or(body["retry"].as_str())
            .unwrap_or_default();
        Err(Failure {
            status: Some(status),
            retry: retry.to_owned(),
            text,
        })
    }

    /// POST with headers; the whole answer.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn post_with(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Failed<Answer> {
        let request = self.http.post(format!("{}{path}", self.base));
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        Ok(self.send_whole(request.body(body.to_owned())).await?.1)
    }

    /// Runs SQL with headers; the whole answer.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn sql_with(&self, statement: &str, headers: &[(&str, &str)]) -> Failed<Answer> {
        let mut all = vec![("Content-Type", "application/json")];
        all.extend_from_slice(headers);
        let body = json!({ "sql": statement }).to_string();
        self.post_with("/v1/sql", &all, &body).await
    }

    /// GET; the body.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn get(&self, path: &str) -> Failed<String> {
        let request = self.http.get(format!("{}{path}", self.base));
        Ok(self.send(request).await?.1)
    }

    /// POST of a JSON document; the body.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn post(&self, path: &str, body: &Value) -> Failed<String> {
        let request = self
            .http
            .post(format!("{}{path}", self.base))
            .header("Content-Type", "application/json")
            .body(body.to_string());
        Ok(self.send(request).await?.1)
    }

    /// POST of a text; the body of the answer.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn post_text(&self, path: &str, body: &str) -> Failed<String> {
        let request = self
            .http
            .post(format!("{}{path}", self.base))
            .body(body.to_owned());
        Ok(self.send(request).await?.1)
    }

    /// Writes line protocol with nanosecond timestamps into schema `public`.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn write(&self, lines: String) -> Failed<()> {
        let url = format!("{}/write?db=public&precision=ns", self.base);
        let (status, text) = self.send(self.http.post(url).body(lines)).await?;
        assert_eq!(
            status, 204,
            "a good write is answered with 204, not with {text:?}"
        );
        Ok(())
    }

    /// Runs SQL; the whole JSON answer.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn answer(&self, statement: &str) -> Failed<Value> {
        let text = self.post("/v1/sql", &json!({ "sql": statement })).await?;
        let parsed = serde_json::from_str(&text);
        Ok(parsed.unwrap_or_else(|e| panic!("{statement}: {e} in the answer {text:?}")))
    }

    /// Runs SQL; the rows.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn sql(&self, statement: &str) -> Failed<Vec<Vec<Value>>> {
        let answer = self.answer(statement).await?;
        let rows = answer["rows"].as_array().cloned().unwrap_or_default();
        Ok(rows
            .into_iter()
            .map(|row| row.as_array().cloned().unwrap_or_default())
            .collect())
    }

    /// The only value of a statement's only row.
    ///
    /// # Panics
    /// When the statement fails or has no row: for statements that must work.
    pub async fn value(&self, statement: &str) -> Value {
        match self.sql(statement).await {
            Ok(rows) if rows.len() == 1 && rows[0].len() == 1 => rows[0][0].clone(),
            other => panic!("{statement}: {other:?}"),
        }
    }

    /// Like [`Self::value`] for a whole number.
    ///
    /// # Panics
    /// As [`Self::value`].
    pub async fn count(&self, statement: &str) -> u64 {
        let value = self.value(statement).await;
        value
            .as_u64()
            .unwrap_or_else(|| panic!("{statement}: {value} is no whole number"))
    }

    /// Flushes every table.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn flush(&self) -> Failed<()> {
        self.post("/v1/admin/flush", &json!({})).await.map(drop)
    }

    /// Compacts every table.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn compact(&self) -> Failed<()> {
        self.post("/v1/admin/compact", &json!({})).await.map(drop)
    }
}
