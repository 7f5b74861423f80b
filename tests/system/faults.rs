//! Clients that write and read while things fail, and a record of what they were promised.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_tests::{Client, Cluster, Server};
use tokio::task::JoinHandle;
use ulid::Ulid;

/// Rows of a batch.
const ROWS: u64 = 5;
/// A try may take this long; then the same write is tried at another node.
const TRY: Duration = Duration::from_secs(2);
/// A write that nobody takes for so long is a failure of the cluster.
const PATIENCE: Duration = Duration::from_secs(60);
const TABLES: [&str; 2] = ["one", "two"];

/// Clients that retry until they are told that it is done, and readers that remember what was.
pub struct Clients {
    nodes: Arc<Mutex<Vec<Client>>>,
    begun: Arc<AtomicU64>,
    /// Batches that were acknowledged, of each table.
    acked: Arc<[AtomicU64; 2]>,
    /// Writes that were told to fail, and were tried again.
    retried: Arc<AtomicU64>,
    /// What each writer was told to be done.
    done: Vec<Arc<AtomicU64>>,
    /// The longest time from the first try of a batch until it was acknowledged.
    pause_ms_max: Arc<AtomicU64>,
    /// Reads at the strongest level that were answered.
    strong: Arc<AtomicU64>,
    eventual: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

fn clients_of(nodes: &[Server]) -> Vec<Client> {
    nodes
        .iter()
        .filter(|n| n.runs())
        .map(Server::client)
        .collect()
}

impl Clients {
    /// Makes two tables and begins: `writers` and a strong reader.
    pub async fn start(cluster: &Cluster, writers: usize) -> Self {
        Self::begin(cluster, vec![None; writers]).await
    }

    /// The same with a writer at each node, which tries every write there first.
    pub async fn at_each_node(cluster: &Cluster) -> Self {
        Self::begin(cluster, (0..cluster.nodes.len()).map(Some).collect()).await
    }

    async fn begin(cluster: &Cluster, homes: Vec<Option<usize>>) -> Self {
        for table in TABLES {
            let create = format!(
                "CREATE TABLE {table} (batch BIGINT, \"row\" BIGINT) WITH (mode = 'append')"
            );
            cluster.client(0).sql(&create).await.expect("create");
        }
        let mut all = Self {
            nodes: Arc::new(Mutex::new(clients_of(&cluster.nodes))),
            begun: Arc::default(),
            acked: Arc::default(),
            retried: Arc::default(),
            done: homes.iter().map(|_| Arc::default()).collect(),
            pause_ms_max: Arc::default(),
            strong: Arc::default(),
            eventual: Arc::default(),
            stop: Arc::default(),
            tasks: Vec::new(),
        };
        for (home, done) in homes.into_iter().zip(&all.done) {
            let writer = all.writer(home, Arc::clone(done));
            all.tasks.push(tokio::spawn(writer));
        }
        all.tasks.push(tokio::spawn(all.reader()));
        all
    }

    /// Nodes have other addresses after they were started again.
    pub fn moved(&self, cluster: &Cluster) {
        *self.nodes.lock() = clients_of(&cluster.nodes);
    }

    /// Requests go to these nodes alone.
    pub fn only(&self, clients: Vec<Client>) {
        *self.nodes.lock() = clients;
    }

    /// Tries that had to be repeated.
    pub fn retries(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    /// Rows of table `one` that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acked[0].load(Ordering::SeqCst) * ROWS
    }

    /// The longest time that a batch took since this was asked last.
    pub fn longest_pause(&self) -> Duration {
        Duration::from_millis(self.pause_ms_max.swap(0, Ordering::Relaxed))
    }

    fn writer(
        &self,
        home: Option<usize>,
        done: Arc<AtomicU64>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (nodes, begun) = (Arc::clone(&self.nodes), Arc::clone(&self.begun));
        let (acked, stop) = (Arc::clone(&self.acked), Arc::clone(&self.stop));
        let retried = Arc::clone(&self.retried);
        let pause_ms_max = Arc::clone(&self.pause_ms_max);
        async move {
            let mut at = 0;
            while !stop.load(Ordering::Relaxed) {
                let batch = begun.fetch_add(1, Ordering::Relaxed);
                let table = batch as usize % TABLES.len();
                let rows: Vec<String> = (0..ROWS).map(|r| format!("({batch}, {r})")).collect();
                let insert = format!(
                    "INSERT INTO {} (batch, \"row\") VALUES {}",
                    TABLES[table],
                    rows.join(", ")
                );
                let id = Ulid::new().to_string();
                let headers = [("Shoal-Write-Id", id.as_str())];
                let since = Instant::now();
                at = home.unwrap_or(at);
                loop {
                    let client = {
                        let nodes = nodes.lock();
                        nodes[at % nodes.len()].clone()
                    };
                    let sent = tokio::time::timeout(TRY, client.sql_with(&insert, &headers)).await;
                    match sent {
                        Ok(Ok(_)) => break,
                        Ok(Err(failure)) if failure.retry == "never" => {
                            panic!("batch {batch}: {failure:?}")
                        }
                        failed => {
                            let waited = since.elapsed();
                            assert!(waited < PATIENCE, "batch {batch}: {failed:?}");
                        }
                    }
                    retried.fetch_add(1, Ordering::Relaxed);
                    at += 1;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                pause_ms_max.fetch_max(took_ms, Ordering::Relaxed);
                acked[table].fetch_add(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reads at the strongest level and counts at least what was acknowledged before.
    fn reader(&self) -> impl Future<Output = ()> + Send + use<> {
        let (nodes, acked) = (Arc::clone(&self.nodes), Arc::clone(&self.acked));
        let (begun, stop) = (Arc::clone(&self.begun), Arc::clone(&self.stop));
        let strong = Arc::clone(&self.strong);
        async move {
            let mut turn = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                let client = {
                    let nodes = nodes.lock();
                    nodes[turn % nodes.len()].clone()
                };
                let table = turn / 2 % TABLES.len();
                let before = acked[table].load(Ordering::SeqCst);
                let query = format!("SELECT count(*) FROM {}", TABLES[table]);
                let level = [("Shoal-Consistency", "strong"), ("Shoal-Timeout", "2s")];
                let read = tokio::time::timeout(TRY, client.sql_with(&query, &level)).await;
                // One that cannot be as fresh as it must be fails; it is never older.
                if let Ok(Ok(read)) = read {
                    let count = read.count();
                    let after = begun.load(Ordering::SeqCst);
                    assert!(
                        count >= before * ROWS,
                        "{query}: {count}, acknowledged {before}"
                    );
                    assert!(count <= after * ROWS, "{query}: {count}, begun {after}");
                    assert_eq!(count % ROWS, 0, "{query}: half of a batch");
                    strong.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Has a node read what is there, without asking how new it is, all the time: no such read may
    /// fail.
    pub fn read_eventually(&mut self, client: Client) {
        let (stop, reads) = (Arc::clone(&self.stop), Arc::clone(&self.eventual));
        self.tasks.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let level = [("Shoal-Consistency", "eventual")];
                let read = client.sql_with("SELECT count(*) FROM one", &level).await;
                let read = read.unwrap_or_else(|f| panic!("an eventual read failed: {f:?}"));
                assert_eq!(read.count() % ROWS, 0, "half of a batch");
                reads.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
    }

    /// Waits until so many more batches were acknowledged.
    pub async fn progress(&self, more: u64) {
        let count = || {
            self.acked
                .iter()
                .map(|a| a.load(Ordering::SeqCst))
                .sum::<u64>()
        };
        let goal = count() + more;
        self.until("no progress", || count() >= goal).await;
    }

    /// Waits until every writer was told of `more` batches, and as many strong reads were answered.
    pub async fn all_progress(&self, more: u64) {
        let counts = self.done.iter().chain([&self.strong]);
        let goals: Vec<_> = counts
            .map(|count| (count, count.load(Ordering::Relaxed) + more))
            .collect();
        let reached = || {
            goals
                .iter()
                .all(|(count, goal)| count.load(Ordering::Relaxed) >= *goal)
        };
        self.until("a writer or the reader stands still", reached)
            .await;
    }

    async fn until(&self, why: &str, holds: impl Fn() -> bool) {
        let since = Instant::now();
        while !holds() {
            assert!(since.elapsed() < PATIENCE, "{why}");
            for task in &self.tasks {
                assert!(!task.is_finished(), "a client has failed");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends all clients and compares what they were told with what is there: every batch once, and
    /// whole.
    pub async fn end(self, client: &Client) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("a client");
        }
        let mut total = 0;
        for (table, acked) in TABLES.iter().zip(self.acked.iter()) {
            let acked = acked.load(Ordering::SeqCst);
            let all = format!("SELECT count(*), count(DISTINCT batch) FROM {table}");
            let rows = client.sql(&all).await.expect("all batches");
            let numbers: Vec<u64> = rows[0]
                .iter()
                .filter_map(serde_json::Value::as_u64)
                .collect();
            assert_eq!(numbers, [acked * ROWS, acked], "{table}: rows, batches");
            let wrong = format!(
                "SELECT batch, count(*) FROM {table} GROUP BY batch HAVING count(*) <> {ROWS} OR count(DISTINCT \"row\") <> {ROWS}"
            );
            let wrong = client.sql(&wrong).await.expect("each batch");
            assert!(wrong.is_empty(), "{table}: {wrong:?}");
            total += acked;
        }
        eprintln!(
            "{total} batches acknowledged, {} tries repeated, {} eventual reads",
            self.retried.load(Ordering::Relaxed),
            self.eventual.load(Ordering::Relaxed)
        );
    }
}
