//! Nodes over real Kafka, MinIO and etcd.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Client, EtcdMember, Host, Server, root};

const POLL: Duration = Duration::from_millis(20);
/// Long enough for a loaded machine; a hang still ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// Kafka, MinIO and etcd by `scripts/stack`, ended and removed when dropped.
#[derive(Debug)]
pub struct Stack {
    folder: PathBuf,
    /// The machine of a test's own network that it runs on; `None`: this one, on loopback.
    host: Option<Host>,
}

/// How many members the services of a [`Stack`] have: 1 or 3.
#[derive(Clone, Copy, Debug)]
pub struct Members {
    /// Of Kafka. Of three each has every record, and two confirm it.
    pub brokers: usize,
    /// Of etcd.
    pub etcds: usize,
}

impl Default for Members {
    fn default() -> Self {
        Self {
            brokers: 1,
            etcds: 1,
        }
    }
}

fn script(host: Option<&Host>, name: &str, words: &[&str]) -> Result<String, String> {
    let path = root().join("scripts").join(name);
    let done = host
        .map_or_else(|| Command::new(&path), |host| host.command(&path))
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("scripts/{name}: {e}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    Err(format!("scripts/{name} {}: {said}", words.join(" ")))
}

impl Stack {
    /// Starts one with one broker and one etcd below `folder`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(folder: &Path) -> Self {
        Self::with(folder, Members::default())
    }

    /// Where its brokers are, as a client's `bootstrap.servers`.
    ///
    /// # Panics
    /// When its configuration does not name them.
    #[must_use]
    pub fn brokers(&self) -> String {
        self.configured("brokers")
    }

    /// The members of its etcd.
    ///
    /// # Panics
    /// When its configuration does not name them.
    #[must_use]
    pub fn etcds(&self) -> Vec<EtcdMember> {
        let endpoints = self.configured("endpoints");
        let endpoints: Vec<&str> = endpoints.split(',').collect();
        let alone = endpoints.len() == 1;
        let members = endpoints.into_iter().zip(1..);
        members
            .map(|(url, number)| {
                let number = if alone {
                    String::new()
                } else {
                    format!("{number}")
                };
                EtcdMember::new(&format!("etcd{number}"), url)
            })
            .collect()
    }

    fn configured(&self, key: &str) -> String {
        let config = self.config("any");
        let start = format!("{key} = ");
        let line = config.lines().find_map(|l| l.strip_prefix(&start));
        let value = line.unwrap_or_else(|| panic!("{key} in the configuration"));
        value.trim_matches('"').to_owned()
    }

    /// Starts one with 1 or 3 brokers and one etcd below `folder`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn with_brokers(folder: &Path, brokers: usize) -> Self {
        let one = Members::default();
        Self::with(folder, Members { brokers, ..one })
    }

    /// Starts one with so many members below `folder`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn with(folder: &Path, members: Members) -> Self {
        Self::up(folder, None, members, &[])
    }

    /// Starts one with one broker and one etcd on a machine of the test's own network. Kafka, S3
    /// and etcd have its first three addresses, in this order.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_on(folder: &Path, host: &Host) -> Self {
        let addresses = host.addresses().iter().map(ToString::to_string);
        let flags = ["--kafka-host", "--s3-host", "--etcd-host"];
        let words: Vec<String> = flags
            .into_iter()
            .zip(addresses)
            .flat_map(|(flag, address)| [flag.to_owned(), address])
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Self::up(folder, Some(host), Members::default(), &words)
    }

    #[expect(clippy::zombie_processes, reason = "the watcher outlives this process")]
    fn up(folder: &Path, host: Option<&Host>, members: Members, words: &[&str]) -> Self {
        let stack = Self {
            folder: folder.join("stack"),
            host: host.cloned(),
        };
        // A test that is killed cannot end its stack: somebody waits for its end.
        let watch = "while kill -0 \"$1\" 2>/dev/null; do sleep 1; done; exec \"$2\" down --purge --dir \"$3\"";
        Command::new("sh")
            .args(["-c", watch, "watch"])
            .arg(std::process::id().to_string())
            .arg(root().join("scripts/stack"))
            .arg(&stack.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the stack's watcher");
        eprintln!(
            "starting Kafka, MinIO and etcd in {}",
            stack.folder.display()
        );
        let (brokers, etcds) = (members.brokers.to_string(), members.etcds.to_string());
        let members = ["--brokers", &brokers, "--etcds", &etcds];
        stack.act(&[&["up", "--timeout", "300"], &members[..], words].concat());
        stack
    }

    /// `scripts/stack WORDS… --dir …`.
    ///
    /// # Panics
    /// When it fails.
    pub fn act(&self, words: &[&str]) {
        let folder = self.folder.display().to_string();
        let words = [words, &["--dir", &folder]].concat();
        if let Err(why) = script(self.host.as_ref(), "stack", &words) {
            panic!("{why}");
        }
    }

    /// The folder in which the broker keeps the log of a shard.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn log_folder(&self, cluster: &str, shard: &str) -> PathBuf {
        let wanted = format!("shoal.{cluster}.{shard}.");
        let mut left = vec![self.folder.clone()];
        while let Some(folder) = left.pop() {
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            for entry in entries.filter(|e| e.path().is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(&wanted) {
                    return entry.path();
                }
                left.push(entry.path());
            }
        }
        panic!("no folder {wanted}… below {}", self.folder.display());
    }

    /// Where a component keeps its data.
    #[must_use]
    pub fn data_folder(&self, component: &str) -> PathBuf {
        self.folder.join(component)
    }

    /// Freezes components.
    pub fn pause(&self, component: &str) {
        self.act(&["pause", component]);
    }

    /// Lets them go on.
    pub fn resume(&self, component: &str) {
        self.act(&["resume", component]);
    }

    /// The config for `shoal` that it prints, for a cluster of this name.
    fn config(&self, cluster: &str) -> String {
        let text = std::fs::read_to_string(self.folder.join("shoal.toml")).expect("its config");
        text.replace("name = \"default\"", &format!("name = \"{cluster}\""))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let folder = self.folder.display().to_string();
        if let Err(why) = script(None, "stack", &["down", "--purge", "--dir", &folder]) {
            eprintln!("{why}");
        }
    }
}

/// Nodes of one cluster; killed when dropped.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    config: PathBuf,
    settings: Vec<(String, String)>,
    /// The nodes, in the order in which they were started.
    pub nodes: Vec<Server>,
    /// The schedulers, likewise.
    pub schedulers: Vec<Server>,
}

impl Cluster {
    /// Starts nodes, one after another; the first leads all shards.
    ///
    /// # Panics
    /// When one does not become ready.
    pub async fn start(
        stack: &Stack,
        folder: &Path,
        name: &str,
        nodes: usize,
        settings: &[(&str, &str)],
    ) -> Self {
        let mut cluster = Self::prepare(stack, folder, name, settings);
        for _ in 0..nodes {
            cluster.add_node(&[]).await;
        }
        cluster.known(nodes).await;
        cluster
    }

    /// Starts a node on each of these machines, and a scheduler on each of those.
    ///
    /// # Panics
    /// When one does not become ready.
    pub async fn start_on(
        stack: &Stack,
        folder: &Path,
        name: &str,
        (nodes, schedulers): (&[Host], &[Host]),
        settings: &[(&str, &str)],
    ) -> Self {
        let mut cluster = Self::prepare(stack, folder, name, settings);
        for (n, host) in nodes.iter().enumerate() {
            let mut node = cluster.prepare_node(&format!("n{n}"), &[]).on(host);
            node.restart().await;
            cluster.nodes.push(node);
        }
        cluster.known(nodes.len()).await;
        for (n, host) in schedulers.iter().enumerate() {
            let folder = cluster.folder.join(format!("s{n}"));
            let scheduler = Server::prepare_scheduler(&folder, &cluster.config, &[]);
            let mut scheduler = scheduler.on(host);
            scheduler.restart().await;
            cluster.schedulers.push(scheduler);
        }
        cluster
    }

    /// No nodes yet.
    fn prepare(stack: &Stack, folder: &Path, name: &str, settings: &[(&str, &str)]) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("make the cluster's folder");
        let config = folder.join("shoal.toml");
        std::fs::write(&config, stack.config(name)).expect("write the config");
        let settings = settings.iter();
        Self {
            folder,
            config,
            settings: settings
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            nodes: Vec::new(),
            schedulers: Vec::new(),
        }
    }

    /// Starts one more node.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn add_node(&mut self, settings: &[(&str, &str)]) {
        let mut node = self.prepare_node(&format!("n{}", self.nodes.len()), settings);
        node.restart().await;
        self.nodes.push(node);
    }

    /// Starts one more scheduler.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn add_scheduler(&mut self) {
        let folder = self.folder.join(format!("s{}", self.schedulers.len()));
        let mut scheduler = Server::prepare_scheduler(&folder, &self.config, &[]);
        scheduler.restart().await;
        self.schedulers.push(scheduler);
    }

    /// Waits until a scheduler leads; its place among [`Self::schedulers`].
    ///
    /// # Panics
    /// When none does.
    pub async fn leading_scheduler(&self, asked_at: usize) -> usize {
        let mut leading = None;
        let client = self.client(asked_at);
        let mut waited = Duration::ZERO;
        while leading.is_none() {
            let nodes = client.get("/v1/admin/nodes").await.unwrap_or_default();
            let nodes: Value = serde_json::from_str(&nodes).unwrap_or_default();
            let mut nodes = nodes.as_array().into_iter().flatten();
            let found = nodes.find(|n| n["state"] == "leading");
            leading = found.and_then(|n| {
                let mut all = self.schedulers.iter();
                all.position(|s| s.runs() && n["id"] == s.scheduler().as_str())
            });
            assert!(waited < PATIENCE, "no scheduler leads");
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
        leading.expect("just found")
    }

    /// Waits until every shard has a leader that serves and so many replicas that do.
    ///
    /// # Panics
    /// When that does not come.
    pub async fn placed(&self, asked_at: usize, replicas: usize) {
        let what = format!("{replicas} replicas of every shard");
        self.until(asked_at, &what, "/v1/admin/shards", |shards| {
            let shards = shards.as_array().map(Vec::as_slice).unwrap_or_default();
            !shards.is_empty()
                && shards.iter().all(|shard| {
                    let told = shard["replicas"].as_array().into_iter().flatten();
                    let serving = told.filter(|r| r["state"] == "serving");
                    shard["state"] == "serving" && serving.count() >= replicas
                })
        })
        .await;
    }

    /// A node with a data folder of that name that is not started yet.
    #[must_use]
    pub fn prepare_node(&self, folder: &str, settings: &[(&str, &str)]) -> Server {
        let all: Vec<(&str, &str)> = self
            .settings
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .chain(settings.iter().copied())
            .collect();
        Server::prepare_node(&self.folder.join(folder), &self.config, &all)
    }

    /// A client of a node.
    #[must_use]
    pub fn client(&self, node: usize) -> Client {
        self.nodes[node].client()
    }

    /// Waits until the first node hears of so many.
    async fn known(&self, count: usize) {
        if count == 0 {
            return;
        }
        self.until(0, "the nodes know each other", "/v1/admin/nodes", |nodes| {
            let up = nodes.as_array().into_iter().flatten();
            up.filter(|n| n["state"] == "up").count() >= count
        })
        .await;
    }

    /// Asks a node until its answer is as it must be.
    ///
    /// # Panics
    /// When it does not become so.
    pub async fn until(&self, node: usize, what: &str, path: &str, holds: impl Fn(&Value) -> bool) {
        let client = self.client(node);
        let mut waited = Duration::ZERO;
        loop {
            let answer = client.get(path).await;
            let parsed = answer
                .as_ref()
                .ok()
                .and_then(|text| serde_json::from_str(text).ok());
            if parsed.as_ref().is_some_and(&holds) {
                return;
            }
            assert!(waited < PATIENCE, "not in time: {what}: {answer:?}");
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
    }

    /// Who leads the shard of a table, as a node tells: the place among [`Self::nodes`].
    ///
    /// # Panics
    /// When nobody does, or the table has several shards.
    pub async fn leader_of(&self, table: &str, asked_at: usize) -> usize {
        let path = format!("/v1/route/{table}");
        let route = self.client(asked_at).get(&path).await;
        let route: Value = serde_json::from_str(&route.expect("a route")).expect("JSON");
        let leader = &route["partitions"][0]["leader"]["node"];
        let mut nodes = self.nodes.iter();
        nodes
            .position(|n| *leader == n.node().as_str())
            .unwrap_or_else(|| panic!("{route}"))
    }

    /// All shards, as a node tells.
    ///
    /// # Panics
    /// When it does not.
    pub async fn shards(&self, node: usize) -> Vec<Value> {
        let text = self.client(node).get("/v1/admin/shards").await;
        let text = text.expect("shards");
        let parsed: Value = serde_json::from_str(&text).expect("JSON");
        parsed.as_array().cloned().unwrap_or_default()
    }

    /// Ids of all shards.
    ///
    /// # Panics
    /// As [`Self::shards`].
    pub async fn shard_ids(&self, node: usize) -> Vec<String> {
        let shards = self.shards(node).await;
        let ids = shards.iter().filter_map(|s| s["id"].as_str());
        ids.map(str::to_owned).collect()
    }

    /// Gives an order at a node: `promote`, `add-follower`, `remove-follower`, `move`.
    ///
    /// # Panics
    /// When it is not carried out.
    pub async fn order(&self, at: usize, shard: &str, order: &str, to: usize) -> Value {
        let path = format!("/v1/admin/shards/{shard}/{order}");
        let body = json!({ "to": self.nodes[to].node() });
        let answer = self.client(at).post(&path, &body).await;
        let text = answer.unwrap_or_else(|failure| panic!("{order} {shard}: {failure:?}"));
        serde_json::from_str(&text).expect("JSON")
    }

    /// Has `node` follow all shards that it does not lead.
    ///
    /// # Panics
    /// As [`Self::order`].
    pub async fn follow_all(&self, node: usize) {
        let me = self.nodes[node].node();
        for shard in self.shards(0).await {
            if shard["leader"] != me.as_str() {
                let id = shard["id"].as_str().expect("an id");
                self.order(0, id, "add-follower", node).await;
            }
        }
    }

    /// Compares the rows of all replicas of all shards; waits while they differ.
    ///
    /// # Panics
    /// When they go on to differ.
    pub async fn replicas_agree(&self, at: usize) {
        let client = self.client(at);
        let mut waited = Duration::ZERO;
        loop {
            let answer = client.post("/v1/admin/checksum", &json!({})).await;
            let sums: Value = answer
                .as_ref()
                .ok()
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default();
            let sums = sums.as_array().cloned().unwrap_or_default();
            let differs = sums.iter().any(|sum| {
                sums.iter().any(|other| {
                    other["shard"] == sum["shard"] && other["checksum"] != sum["checksum"]
                })
            });
            if !sums.is_empty() && !differs {
                return;
            }
            assert!(waited < PATIENCE, "the replicas differ: {answer:?}");
            tokio::time::sleep(POLL * 10).await;
            waited += POLL * 10;
        }
    }
}
