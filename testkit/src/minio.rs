//! MinIO: one server, one folder.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Process, free_port, http_ok, program, wait_ready};

/// A running MinIO.
#[derive(Debug)]
pub struct Minio {
    port: u16,
    dir: TempDir,
    process: Option<Process>,
}

impl Minio {
    /// The root user.
    pub const ACCESS_KEY: &str = "shoal-test";
    /// Its password.
    pub const SECRET_KEY: &str = "shoal-test-secret";
    /// A bucket that exists from the start.
    pub const BUCKET: &str = "shoal";

    /// Starts it with one empty bucket.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(dir.path().join("data").join(Self::BUCKET)).expect("a bucket");
        let mut minio = Self {
            port: free_port(),
            dir,
            process: None,
        };
        minio.restart().await;
        minio
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("minio.log")
    }

    /// `host:port`
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of its S3 interface.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Kills it; the objects stay.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it (again) with the objects it had.
    pub async fn restart(&mut self) {
        self.process = None;
        let mut command = Command::new(program("minio", "SHOAL_MINIO"));
        command
            .arg("server")
            .arg(self.dir.path().join("data"))
            .args(["--address", &self.address()])
            .args(["--console-address", "127.0.0.1:0"])
            .env("MINIO_ROOT_USER", Self::ACCESS_KEY)
            .env("MINIO_ROOT_PASSWORD", Self::SECRET_KEY)
            .env("MINIO_BROWSER", "off")
            .env("MINIO_UPDATE", "off");
        let output = self.output();
        let mut process = Process::start(&mut command, &output);
        let address = self.address();
        wait_ready("MinIO", &output, &mut process, || {
            http_ok(&address, "/minio/health/ready")
        })
        .await;
        self.process = Some(process);
    }

    /// Stops it from running without ending it.
    pub fn freeze(&self) {
        if let Some(process) = &self.process {
            process.freeze();
        }
    }

    /// Lets it run again.
    pub fn thaw(&self) {
        if let Some(process) = &self.process {
            process.thaw();
        }
    }
}
