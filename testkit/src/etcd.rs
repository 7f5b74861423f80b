//! etcd: one member or several.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Process, free_port, http_ok, program, wait_ready};

/// A running etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    arguments: Vec<String>,
    scheme: &'static str,
    dir: TempDir,
}

/// Files that make etcd speak TLS with its clients and ask them for a certificate.
#[derive(Clone, Copy, Debug)]
pub struct EtcdTlsFiles<'a> {
    /// The server's certificate, PEM.
    pub certificate: &'a Path,
    /// Its key, PEM.
    pub key: &'a Path,
    /// Whose certificates clients must have, PEM.
    pub clients_ca: &'a Path,
}

#[derive(Debug)]
struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    /// Answers `/health` without TLS.
    health_port: u16,
    process: Option<Process>,
}

impl Etcd {
    /// One member with etcd's own limits.
    pub async fn start() -> Self {
        Self::start_members(1, &[]).await
    }

    /// Several members, each with these further arguments.
    pub async fn start_members(count: usize, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Self::launch_all("http", count, arguments).await
    }

    /// One member that speaks TLS.
    pub async fn start_secure(files: EtcdTlsFiles<'_>) -> Self {
        let file = |path: &Path| path.display().to_string();
        let arguments = vec![
            "--cert-file".into(),
            file(files.certificate),
            "--key-file".into(),
            file(files.key),
            "--trusted-ca-file".into(),
            file(files.clients_ca),
            "--client-cert-auth".into(),
        ];
        Self::launch_all("https", 1, arguments).await
    }

    async fn launch_all(scheme: &'static str, count: usize, arguments: Vec<String>) -> Self {
        let members = (0..count)
            .map(|i| Member {
                name: format!("m{i}"),
                client_port: free_port(),
                peer_port: free_port(),
                health_port: free_port(),
                process: None,
            })
            .collect();
        let mut etcd = Self {
            members,
            arguments,
            scheme,
            dir: tempfile::tempdir().expect("a folder"),
        };
        for i in 0..count {
            etcd.launch(i);
        }
        for i in 0..count {
            etcd.wait(i).await;
        }
        etcd
    }

    fn launch(&mut self, i: usize) {
        let peers: Vec<String> = self
            .members
            .iter()
            .map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer_port))
            .collect();
        let member = &self.members[i];
        let client = self.url(member);
        let health = format!("http://127.0.0.1:{}", member.health_port);
        let peer = format!("http://127.0.0.1:{}", member.peer_port);
        let mut command = Command::new(program("etcd", "SHOAL_ETCD"));
        command
            .arg("--name")
            .arg(&member.name)
            .arg("--data-dir")
            .arg(self.data_dir(i))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-metrics-urls", &health])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(",")])
            .args(&self.arguments);
        let process = Process::start(&mut command, &self.output(i));
        self.members[i].process = Some(process);
    }

    async fn wait(&mut self, i: usize) {
        let output = self.output(i);
        let member = &mut self.members[i];
        let address = format!("127.0.0.1:{}", member.health_port);
        if let Some(process) = &mut member.process {
            wait_ready("etcd", &output, process, || http_ok(&address, "/health")).await;
        }
    }

    fn output(&self, i: usize) -> PathBuf {
        self.dir
            .path()
            .join(format!("{}.log", self.members[i].name))
    }

    fn data_dir(&self, i: usize) -> PathBuf {
        self.dir.path().join(&self.members[i].name)
    }

    /// URLs of all members.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|m| self.url(m)).collect()
    }

    fn url(&self, member: &Member) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, member.client_port)
    }

    /// Kills a member.
    pub fn kill(&mut self, i: usize) {
        self.members[i].process = None;
    }

    /// Starts a member that was killed, with the data it had.
    pub async fn restart(&mut self, i: usize) {
        self.launch(i);
        self.wait(i).await;
    }

    /// Stops a member from running without ending it.
    pub fn freeze(&self, i: usize) {
        if let Some(process) = &self.members[i].process {
            process.freeze();
        }
    }

    /// Lets a frozen member run again.
    pub fn thaw(&self, i: usize) {
        if let Some(process) = &self.members[i].process {
            process.thaw();
        }
    }

    /// Copies the data of a single member that was killed, as a backup would be.
    pub fn backup(&self) -> TempDir {
        let copy = tempfile::tempdir().expect("a folder");
        copy_folder(&self.data_dir(0), copy.path());
        copy
    }

    /// Puts a backup in the place of the data of a single member that was killed.
    pub fn restore(&self, backup: &TempDir) {
        std::fs::remove_dir_all(self.data_dir(0)).expect("remove");
        std::fs::create_dir(self.data_dir(0)).expect("folder");
        copy_folder(backup.path(), &self.data_dir(0));
    }
}

fn copy_folder(from: &Path, to: &Path) {
    let done = Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to)
        .status();
    assert!(done.is_ok_and(|s| s.success()), "cannot copy {from:?}");
}
