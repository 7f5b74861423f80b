//! Programs of the stack, as child processes.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a service may take to answer its first request.
const START_MAX: Duration = Duration::from_secs(60);

/// The program named by `variable`, else the one that `scripts/stack install` left in the cache:
/// in a folder named `name` or `name-VERSION`.
pub(crate) fn program(name: &str, variable: &str) -> PathBuf {
    if let Some(given) = std::env::var_os(variable) {
        return given.into();
    }
    let cache = std::env::var_os("SHOAL_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/shoal"),
        PathBuf::from,
    );
    let stack = cache.join("stack");
    let folders = std::fs::read_dir(&stack).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = folders
        .filter(|folder| {
            let folder = folder.file_name();
            let folder = folder.to_string_lossy();
            folder == name || folder.starts_with(&format!("{name}-"))
        })
        .map(|folder| folder.path().join(name))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| {
        panic!(
            "{name} is not in {}; run `scripts/stack install` or set {variable}",
            stack.display()
        )
    })
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts it; what it prints goes to `output`.
    pub(crate) fn start(command: &mut Command, output: &Path) -> Self {
        let log = File::create(output).expect("a log file");
        let errors = log.try_clone().expect("a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self { child }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let done = Command::new("kill").args([name, &pid]).status();
        assert!(
            done.is_ok_and(|s| s.success()),
            "cannot send {name} to {pid}"
        );
    }

    /// Stops it from running without ending it.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets a frozen process run again.
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL also ends a frozen process; errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `ready` says so.
pub(crate) async fn wait_ready<F: Future<Output = bool>>(
    what: &str,
    output: &Path,
    process: &mut Process,
    mut ready: impl FnMut() -> F,
) {
    let begun = Instant::now();
    while !ready().await {
        if process.has_ended() || begun.elapsed() > START_MAX {
            let said = std::fs::read_to_string(output).unwrap_or_default();
            panic!("{what} does not answer; it said:\n{said}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether an HTTP server answers `GET path` with 200.
pub(crate) async fn http_ok(address: &str, path: &str) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(Duration::from_secs(2), ask).await {
        Ok(Ok(answer)) => answer.starts_with(b"HTTP/1.1 200"),
        _ => false,
    }
}
