//! A `shoal` server of one's own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Client, Host};

const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
const LOG_TAIL_BYTES: usize = 6000;

/// The binary under test: `SHOAL_BIN`, or the one built beside this test.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn shoal_bin() -> PathBuf {
    let path = std::env::var_os("SHOAL_BIN")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            // target/debug/deps/system-… → target/debug/shoal
            let test = std::env::current_exe().expect("a test knows its own path");
            let folder = test
                .ancestors()
                .nth(2)
                .expect("tests are built into target/PROFILE/deps");
            folder.join("shoal")
        });
    assert!(
        path.is_file(),
        "{} is missing: set SHOAL_BIN, or build it with `cargo build --bin shoal`",
        path.display()
    );
    path
}

/// `shoal ARGUMENTS…`, ready to be run.
#[must_use]
pub fn shoal_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(shoal_bin());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// A running server. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    data_dir: PathBuf,
    /// The role and its flags.
    role: Vec<String>,
    /// Flag of the listener that the role has besides HTTP and PostgreSQL.
    listener: Option<&'static str>,
    /// The machine of a test's own network that it runs on; `None`: this one, on loopback.
    host: Option<Host>,
    settings: Vec<(String, String)>,
    child: Option<Child>,
    addresses: Value,
}

impl Server {
    /// Starts a server on a data folder and waits until it is ready. `settings` are environment
    /// variables, for example `("SHOAL_ENGINE_SHARDS", "1")`.
    ///
    /// # Panics
    /// When it does not become ready; the message has its log.
    pub async fn start(data_dir: &Path, settings: &[(&str, &str)]) -> Self {
        let mut server = Self::prepare(data_dir, settings);
        server.restart().await;
        server
    }

    /// A server that is not started yet.
    #[must_use]
    pub fn prepare(data_dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self {
            data_dir: data_dir.to_path_buf(),
            role: vec!["standalone".to_owned()],
            listener: None,
            host: None,
            settings: settings
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            child: None,
            addresses: Value::Null,
        }
    }

    /// A node of a cluster that is not started yet; `config` is its TOML file.
    #[must_use]
    pub fn prepare_node(data_dir: &Path, config: &Path, settings: &[(&str, &str)]) -> Self {
        let mut server = Self::prepare(data_dir, settings);
        server.role = vec![
            "node".to_owned(),
            "--config".to_owned(),
            config.display().to_string(),
        ];
        server.listener = Some("--grpc-addr");
        server
    }

    /// A scheduler that is not started yet; `config` is its TOML file.
    #[must_use]
    pub fn prepare_scheduler(data_dir: &Path, config: &Path, settings: &[(&str, &str)]) -> Self {
        let mut server = Self::prepare(data_dir, settings);
        server.role = vec![
            "scheduler".to_owned(),
            "--config".to_owned(),
            config.display().to_string(),
        ];
        server.listener = Some("--scheduler-addr");
        server
    }

    /// The same on a machine of the test's own network.
    #[must_use]
    pub fn on(mut self, host: &Host) -> Self {
        self.host = Some(host.clone());
        self
    }

    /// The machine that it was put on.
    ///
    /// # Panics
    /// When that is this one.
    #[must_use]
    pub fn host(&self) -> &Host {
        self.host
            .as_ref()
            .expect("a server on a machine of its own")
    }

    /// Whether it was started and not ended by us.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Starts it (again) on the same folder with the same settings and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready; the message has its log.
    pub async fn restart(&mut self) {
        if let Err(status) = self.try_restart().await {
            panic!("the server ended with {status}:\n{}", self.log_tail());
        }
    }

    /// Starts it; `Err`: it ended by itself.
    ///
    /// # Panics
    /// When it neither ends nor becomes ready.
    ///
    /// # Errors
    /// How it ended.
    pub async fn try_restart(&mut self) -> Result<(), ExitStatus> {
        assert!(self.child.is_none(), "the server still runs");
        std::fs::create_dir_all(&self.data_dir).expect("make the data folder");
        let addresses = self.data_dir.join("addresses.json");
        // The file of an earlier process would send us to its ports.
        let _ = std::fs::remove_file(&addresses);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("open the server's log");
        let (mut command, address) = match &self.host {
            None => (shoal_command(&[]), "127.0.0.1:0".to_owned()),
            Some(host) => {
                let mut command = host.command(shoal_bin());
                // Nobody else reaches it there.
                command.stdin(Stdio::null()).env("SHOAL_INSECURE", "true");
                (command, format!("{}:0", host.address()))
            }
        };
        command.args(&self.role);
        if let Some(flag) = self.listener {
            command.args([flag, &address]);
        }
        command
            .arg("--data-dir")
            .arg(&self.data_dir)
            .env("SHOAL_HTTP_ADDR", &address)
            .env("SHOAL_POSTGRES_ADDR", &address)
            .envs(self.settings.iter().map(|(k, v)| (k, v)))
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        self.child = Some(command.spawn().expect("start the server"));
        let mut waited = Duration::ZERO;
        loop {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("look at the process") {
                self.child = None;
                return Err(status);
            }
            if let Some(known) = std::fs::read_to_string(&addresses)
                .ok()
                .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            {
                self.addresses = known;
                if self.client().get("/health/ready").await.is_ok() {
                    return Ok(());
                }
            }
            assert!(
                waited < START_TIMEOUT,
                "the server is not ready:\n{}",
                self.log_tail()
            );
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
    }

    /// A client of it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.url())
    }

    /// Its HTTP address as a URL.
    ///
    /// # Panics
    /// Before it was started.
    #[must_use]
    pub fn url(&self) -> String {
        let http = self.addresses["http"]
            .as_str()
            .expect("addresses.json has \"http\"");
        if http.contains("://") {
            http.to_owned()
        } else {
            format!("http://{http}")
        }
    }

    /// `host:port` of its PostgreSQL listener.
    ///
    /// # Panics
    /// Before it was started.
    #[must_use]
    pub fn postgres(&self) -> String {
        self.addresses["postgres"]
            .as_str()
            .expect("addresses.json has \"postgres\"")
            .to_owned()
    }

    /// A node's id.
    ///
    /// # Panics
    /// Before it was started.
    #[must_use]
    pub fn node(&self) -> String {
        self.addresses["node"]
            .as_str()
            .expect("addresses.json of a node has \"node\"")
            .to_owned()
    }

    /// A scheduler's id, of this start.
    ///
    /// # Panics
    /// Before it was started.
    #[must_use]
    pub fn scheduler(&self) -> String {
        self.addresses["scheduler"]
            .as_str()
            .expect("addresses.json of a scheduler has \"scheduler\"")
            .to_owned()
    }

    /// Its data folder.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    fn log_path(&self) -> PathBuf {
        // Beside the data folder: a test may damage or fill that.
        let mut name = self
            .data_dir
            .file_name()
            .expect("a named folder")
            .to_os_string();
        name.push(".server.log");
        match std::env::var_os("SHOAL_TEST_LOG_DIR") {
            Some(folder) => Path::new(&folder).join(name),
            None => self.data_dir.with_file_name(name),
        }
    }

    /// What it has said on standard output and error, through all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of [`log`](Self::log), for a message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        let from = bytes.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the server runs");
        let pid = Pid::from_child(child);
        kill_process(pid, signal).expect("signal our own child");
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let mut child = self.child.take().expect("the server runs");
        child.wait().expect("collect the process");
    }

    /// `kill -STOP`: the process stands still.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// `kill -CONT`.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to stop as Ctrl-C does and waits until it has.
    ///
    /// # Panics
    /// When it does not.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::INT);
        let mut child = self.child.take().expect("the server runs");
        let mut waited = Duration::ZERO;
        loop {
            if let Some(status) = child.try_wait().expect("look at the process") {
                return status;
            }
            if waited >= STOP_TIMEOUT {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server does not stop:\n{}", self.log_tail());
            }
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().is_ok_and(|s| s.is_none()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("---- the server's log ends with\n{}", self.log_tail());
        }
    }
}
