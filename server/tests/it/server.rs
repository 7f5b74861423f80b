//! A `shoal standalone` process of a test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};

/// The binary under test.
pub const SHOAL: &str = env!("CARGO_BIN_EXE_shoal");

/// A command of the binary, free of this process's `SHOAL_` variables.
pub fn shoal(args: &[&str]) -> Command {
    let mut command = Command::new(SHOAL);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SHOAL_") {
            command.env_remove(name);
        }
    }
    // Not the notes of the user who runs the tests.
    command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command.args(args);
    command
}

/// Runs a command to its end.
pub fn run(args: &[&str]) -> Output {
    shoal(args)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

/// Standard error of a finished command.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub dir: PathBuf,
    pub url: String,
    pub http: Client,
    token: Option<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one on a folder; more flags and variables at will.
    pub fn start(dir: &Path, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("stderr.log"))
            .expect("log file");
        let data = dir.join("data");
        let mut child = shoal(&["standalone", "--data-dir"])
            .arg(&data)
            .args([
                "--http-addr",
                "127.0.0.1:0",
                "--postgres-addr",
                "127.0.0.1:0",
            ])
            .args(flags)
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let began = Instant::now();
        let addresses = loop {
            let text = std::fs::read_to_string(data.join("addresses.json")).unwrap_or_default();
            let found: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            // A killed process leaves its file behind.
            if found["pid"] == child.id() {
                break found;
            }
            let exited = child.try_wait().expect("wait");
            assert!(
                exited.is_none() && began.elapsed() < Duration::from_secs(60),
                "the server did not start ({exited:?}): {}",
                std::fs::read_to_string(dir.join("stderr.log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        let address = addresses["http"].as_str().expect("HTTP address");
        Self {
            child,
            dir: dir.to_path_buf(),
            url: format!("http://{address}"),
            http: Client::builder().no_proxy().build().expect("client"),
            token: None,
        }
    }

    /// With default flags.
    pub fn plain(dir: &Path) -> Self {
        Self::start(dir, &[], &[])
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// As Ctrl-C; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).expect("pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal");
        self.child.wait().expect("wait").code()
    }

    fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.sign(self.http.get(format!("{}{path}", self.url)))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.sign(self.http.post(format!("{}{path}", self.url)))
    }

    /// `POST /write…` with line protocol.
    pub async fn write(&self, query: &str, lines: &str) -> Response {
        let request = self.post(&format!("/write{query}")).body(lines.to_owned());
        request.send().await.expect("an answer")
    }

    /// A statement; status and body.
    pub async fn sql_raw(&self, request: &Value) -> (u16, Value) {
        let response = self
            .post("/v1/sql")
            .json(request)
            .send()
            .await
            .expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().await.expect("JSON"))
    }

    /// The rows of a statement that must succeed.
    pub async fn rows(&self, sql: &str) -> Value {
        let (status, mut body) = self.sql_raw(&json!({ "sql": sql })).await;
        assert_eq!(status, 200, "{sql}: {body}");
        body["rows"].take()
    }

    /// The single number of a statement.
    pub async fn number(&self, sql: &str) -> i64 {
        let rows = self.rows(sql).await;
        rows[0][0]
            .as_i64()
            .unwrap_or_else(|| panic!("{sql}: {rows}"))
    }
}
