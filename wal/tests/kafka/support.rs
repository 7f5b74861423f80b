//! Real brokers for the tests: `scripts/stack` in a temporary folder, or the one that
//! `SHOAL_TEST_KAFKA` names (`host:port`, one broker, `auto.create.topics.enable=true`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use shoal_types::{LogId, Offset, ShardId};
use shoal_wal::kafka::{KafkaLogConfig, KafkaLogStore};
use shoal_wal::log::{Log, LogError, LogReader, LogStore, receipt_outcome};

/// Far above what any healthy step takes.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Brokers of one test or of all.
pub struct Stack {
    pub brokers: String,
    /// Where the stack keeps its data; none if it is somebody else's.
    dir: Option<PathBuf>,
    /// Ends the stack when its standard input does, so also when this process is killed.
    guard: Option<Child>,
}

/// This crate's folder, in the checkout that the tests run for.
fn crate_folder() -> PathBuf {
    let built_in = env!("CARGO_MANIFEST_DIR").into();
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(built_in))
}

fn script() -> PathBuf {
    crate_folder().join("../scripts/stack")
}

impl Stack {
    /// Starts brokers of its own, with further settings.
    pub fn up(brokers: usize, settings: &[String]) -> Self {
        let name = format!("shoal-kafka-test-{}", ulid::Ulid::new());
        let dir = std::env::temp_dir().join(name);
        let script = script();
        let guard = Command::new("sh")
            .arg("-c")
            .arg(r#"cat; exec "$0" down --purge --dir "$1""#)
            .args([&script, &dir])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell starts");
        let mut stack = Self {
            brokers: String::new(),
            dir: Some(dir),
            guard: Some(guard),
        };
        let count = brokers.to_string();
        let mut words = vec!["up", "--json", "--brokers", &count];
        for setting in settings {
            words.extend(["--kafka-set", setting]);
        }
        let told: serde_json::Value =
            serde_json::from_slice(&stack.run(&words)).expect("scripts/stack prints JSON");
        stack.brokers = told["kafka"].as_str().expect("addresses").to_owned();
        eprintln!("started {brokers} broker(s) at {}", stack.brokers);
        stack
    }

    /// One broker for all tests that only need one that works.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Stack> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var("SHOAL_TEST_KAFKA") {
            Ok(brokers) => Self {
                brokers,
                dir: None,
                guard: None,
            },
            // Ours must not make a topic even where the broker would.
            Err(_) => Self::up(1, &["auto.create.topics.enable=true".into()]),
        })
    }

    /// Runs `scripts/stack` with these words on this stack.
    pub fn run(&self, words: &[&str]) -> Vec<u8> {
        let dir = self.dir();
        let done = Command::new(script())
            .args(words)
            .arg("--dir")
            .arg(dir)
            .output()
            .expect("scripts/stack runs");
        assert!(
            done.status.success(),
            "scripts/stack {words:?}: {} (`scripts/setup --tests` installs what it needs)",
            String::from_utf8_lossy(&done.stderr)
        );
        done.stdout
    }

    pub fn dir(&self) -> &Path {
        self.dir.as_deref().expect("a stack of ours")
    }

    /// A cluster of its own on this stack.
    pub fn config(&self) -> KafkaLogConfig {
        let cluster = format!("t{}", ulid::Ulid::new());
        let mut config = KafkaLogConfig::new(&self.brokers, cluster);
        if !self.brokers.contains(',') {
            config.replication_factor = 1;
            config.min_insync_replicas = 1;
        }
        config
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("an admin client")
    }

    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers);
        client
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

pub fn open(config: &KafkaLogConfig) -> KafkaLogStore {
    KafkaLogStore::open(config.clone()).expect("the configuration is good")
}

/// A new log, opened.
pub async fn make(store: &KafkaLogStore) -> (ShardId, LogId, Arc<dyn Log>) {
    let shard = ShardId::generate();
    let id = store.create(shard).await.expect("made");
    let log = store.open(shard, id).await.expect("opened");
    (shard, id, log)
}

pub async fn append(log: &dyn Log, bytes: impl Into<Bytes>) -> Result<Offset, LogError> {
    in_time(receipt_outcome(log.append(bytes.into()))).await
}

pub async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("in time")
}

/// Reads until `count` records or an error have come.
pub async fn collect(
    reader: &mut dyn LogReader,
    count: usize,
) -> (Vec<(Offset, Bytes)>, Option<LogError>) {
    let mut found = Vec::new();
    while found.len() < count {
        match in_time(reader.next()).await {
            Ok(records) => found.extend(records),
            Err(error) => return (found, Some(error)),
        }
    }
    (found, None)
}

/// What records say, behind the genesis.
pub fn texts(records: &[(Offset, Bytes)]) -> Vec<String> {
    let said = records.iter().filter(|(offset, _)| offset.0 > 0);
    said.map(|(_, b)| String::from_utf8_lossy(b).into_owned())
        .collect()
}

pub fn refused(error: Option<LogError>) -> String {
    match error {
        Some(LogError::Refused { why, .. } | LogError::Another { why, .. }) => why,
        other => panic!("not refused: {other:?}"),
    }
}
