//! A client that writes one row after another and knows when each was acknowledged: how long nobody
//! could write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_tests::Client;
use tokio::task::JoinHandle;
use ulid::Ulid;

/// A try may take this long; then the same write is tried at the next node.
const TRY: Duration = Duration::from_millis(500);
/// A write that nobody takes for so long is a failure of the cluster.
const PATIENCE: Duration = Duration::from_secs(60);
/// Its table.
pub const TABLE: &str = "pulse";

/// When the try that was acknowledged began and ended.
type Beat = (Instant, Instant);

/// The client, which writes until it is ended.
pub struct Pulse {
    nodes: Arc<Mutex<Vec<Client>>>,
    beats: Arc<Mutex<Vec<Beat>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Pulse {
    /// Makes the table and begins.
    pub async fn start(nodes: Vec<Client>) -> Self {
        let create = format!("CREATE TABLE {TABLE} (k BIGINT) WITH (mode = 'append')");
        nodes[0].sql(&create).await.expect("create");
        let nodes = Arc::new(Mutex::new(nodes));
        let (beats, stop) = (Arc::default(), Arc::default());
        let task = tokio::spawn(write(
            Arc::clone(&nodes),
            Arc::clone(&beats),
            Arc::clone(&stop),
        ));
        Self {
            nodes,
            beats,
            stop,
            task,
        }
    }

    /// Writes go to these nodes alone.
    pub fn only(&self, nodes: Vec<Client>) {
        *self.nodes.lock() = nodes;
    }

    /// Waits for the first acknowledgement of a try that began after `moment`; how long after.
    pub async fn after(&self, moment: Instant) -> Duration {
        let since = Instant::now();
        loop {
            {
                let beats = self.beats.lock();
                let at = beats.partition_point(|(begun, _)| *begun < moment);
                if let Some((_, ended)) = beats.get(at) {
                    return *ended - moment;
                }
            }
            assert!(!self.task.is_finished(), "the client has failed");
            assert!(since.elapsed() < PATIENCE, "nobody takes writes");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The longest time without an acknowledgement from `moment` to now.
    pub fn longest_gap(&self, moment: Instant) -> Duration {
        let now = Instant::now();
        let beats = self.beats.lock();
        let from = beats.partition_point(|(_, ended)| *ended < moment);
        let ends = beats[from..].iter().map(|(_, ended)| *ended);
        let mut last = moment;
        ends.chain([now])
            .map(|end| end - std::mem::replace(&mut last, end))
            .max()
            .unwrap_or_default()
    }

    /// Reads strongly at a node until it answers: never less than what was acknowledged before.
    pub async fn read(&self, client: &Client) {
        let since = Instant::now();
        let level = [("Shoal-Consistency", "strong"), ("Shoal-Timeout", "2s")];
        loop {
            let before = self.beats.lock().len() as u64;
            let read = client
                .sql_with(&format!("SELECT count(*) FROM {TABLE}"), &level)
                .await;
            match read {
                Ok(read) => {
                    let count = read.count();
                    assert!(count >= before, "{count} rows, acknowledged {before}");
                    return;
                }
                Err(failure) => assert!(since.elapsed() < PATIENCE, "{failure:?}"),
            }
        }
    }

    /// Ends it: every row that was acknowledged is there, once.
    pub async fn end(self, client: &Client) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the client");
        let wanted = self.beats.lock().len() as u64;
        let rows = client
            .sql(&format!("SELECT count(*), count(DISTINCT k) FROM {TABLE}"))
            .await
            .expect("all rows");
        let counts: Vec<_> = rows[0].iter().map(|v| v.as_u64()).collect();
        assert_eq!(counts, [Some(wanted); 2], "{TABLE}: rows, different ones");
    }
}

async fn write(
    nodes: Arc<Mutex<Vec<Client>>>,
    beats: Arc<Mutex<Vec<Beat>>>,
    stop: Arc<AtomicBool>,
) {
    let mut at = 0;
    for k in 0_u64.. {
        let insert = format!("INSERT INTO {TABLE} (k) VALUES ({k})");
        let id = Ulid::new().to_string();
        let patience = format!("{}ms", TRY.as_millis());
        let headers = [("Shoal-Write-Id", &*id), ("Shoal-Timeout", &*patience)];
        let since = Instant::now();
        loop {
            let client = {
                let nodes = nodes.lock();
                nodes[at % nodes.len()].clone()
            };
            let begun = Instant::now();
            let sent = tokio::time::timeout(TRY, client.sql_with(&insert, &headers)).await;
            match sent {
                Ok(Ok(_)) => {
                    beats.lock().push((begun, Instant::now()));
                    break;
                }
                Ok(Err(failure)) if failure.retry == "never" => panic!("row {k}: {failure:?}"),
                failed => assert!(since.elapsed() < PATIENCE, "row {k}: {failed:?}"),
            }
            at += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
