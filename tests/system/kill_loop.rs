//! `kill -9` at random moments under load, again and again, against a ledger kept by the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_tests::{Client, Ledger, Outcome, Server};
use tokio::sync::Mutex;

const ROUNDS: u64 = 12;
/// No new round begins after this; what matters is that several rounds happened.
const ENOUGH: Duration = Duration::from_secs(30);
const ROUNDS_MIN: u64 = 3;
const WRITERS_EACH: u64 = 2;
const MANY_TABLES: u64 = 200;
const BATCH_ROWS: u64 = 40;

/// Limits so small that flushes, compactions, log trims and garbage collection all happen between
/// two kills.
const TIGHT: &[(&str, &str)] = &[
    ("SHOAL_ENGINE_MEMTABLE_BYTES_MAX", "4MiB"),
    ("SHOAL_WAL_SHARD_BYTES_MAX", "1MiB"),
    ("SHOAL_COMPACTION_RUNS_MIN", "2"),
    ("SHOAL_QUERY_STATEMENT_TIMEOUT_MS", "20000"),
    ("SHOAL_GC_RETENTION_S", "21"),
    ("SHOAL_GC_INTERVAL_S", "1"),
];

type Shared = Arc<Mutex<Ledger>>;

/// How a writer writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// SQL `INSERT` into an append table, where a doubled row would show.
    Insert,
    /// Line protocol into one upsert table.
    Lines,
    /// Line protocol into so many tables that a flush leaves their rows together in one object.
    LinesToMany,
}

/// Sends batches until the connection breaks; a kill ends it.
async fn write_until_broken(client: Client, ledger: Shared, next: Arc<AtomicU64>, by: By) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let batch = format!("b{number}");
        let table = ledger.lock().await.table_of(number);
        let result = match by {
            By::Insert => client.sql(&insert(&table, &batch)).await.map(drop),
            By::Lines | By::LinesToMany => client.write(lines(&table, &batch, number)).await,
        };
        let outcome = Outcome::of(&result);
        ledger.lock().await.note(batch, outcome);
        match result {
            Err(failure) if failure.status.is_none() => return,
            // Pushed back: let it breathe.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            Ok(()) => {}
        }
    }
}

fn insert(table: &str, batch: &str) -> String {
    let rows: Vec<String> = (0..BATCH_ROWS)
        .map(|row| format!("(TIMESTAMP '2026-01-01 00:00:00', '{batch}', {row})"))
        .collect();
    format!(
        "INSERT INTO {table} (ts, batch, \"row\") VALUES {}",
        rows.join(", ")
    )
}

fn lines(table: &str, batch: &str, number: u64) -> String {
    (0..BATCH_ROWS)
        .map(|row| {
            let time = 1_767_225_600_000_000_000 + number * 1_000_000 + row;
            format!(
                "{table},batch={batch} row={row}i,half={}.5 {time}\n",
                row / 2
            )
        })
        .collect()
}

/// Flushes and compacts all the time, so that kills hit those too.
async fn disturb(client: Client) {
    while client.flush().await.map_err(|e| e.status) != Err(None) {
        let _ = client.compact().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Splits and merges partitions of a table all the time; a kill ends it.
async fn recut(client: Client, table: &'static str, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let listed = format!(
            "SELECT name, shard FROM system.partitions WHERE table_name = '{table}' ORDER BY owns"
        );
        let parts = match client.sql(&listed).await {
            Ok(parts) => parts,
            Err(failure) if failure.status.is_none() => return,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let at = random.random_range(0..parts.len());
        let name = parts[at][0].as_str().unwrap_or_default();
        let order = match parts.get(at + 1) {
            _ if parts[at][0].is_null() => format!("ALTER TABLE {table} SPLIT"),
            Some(next) if parts.len() > 3 => {
                let next = next[0].as_str().unwrap_or_default();
                format!("ALTER TABLE {table} MERGE PARTITIONS {name}, {next}")
            }
            _ => format!("ALTER TABLE {table} SPLIT PARTITION {name}"),
        };
        match client.sql(&order).await {
            Err(failure) if failure.status.is_none() => return,
            // No neighbours, of two shards, or too few rows to find the middle of.
            Err(_) | Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_batch_survives_kill_9_once_and_no_batch_is_there_in_part() {
    let seed = std::env::var("SHOAL_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::rng().random());
    println!("repeat with SHOAL_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(&folder.path().join("data"), TIGHT).await;
    for made in [
        "CREATE TABLE appended (ts TIMESTAMP(3) NOT NULL, batch TEXT, \"row\" BIGINT, PRIMARY KEY (batch, ts)) PARTITION BY HASH (batch) PARTITIONS 2 WITH (time_column = 'ts', mode = 'append')",
        "CREATE TABLE upserted (batch TEXT, time TIMESTAMP(9) NOT NULL, \"row\" BIGINT, half DOUBLE PRECISION, PRIMARY KEY (batch, time))",
    ] {
        server.client().sql(made).await.expect("a table");
    }
    let ledger = |tables| Arc::new(Mutex::new(Ledger::new(tables, BATCH_ROWS)));
    let ledgers = [
        (By::Insert, ledger(vec!["appended".to_owned()])),
        (By::Lines, ledger(vec!["upserted".to_owned()])),
        (
            By::LinesToMany,
            ledger((0..MANY_TABLES).map(|n| format!("many{n}")).collect()),
        ),
    ];
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut rounds = 0;
    while rounds < ROUNDS && (rounds < ROUNDS_MIN || began.elapsed() < ENOUGH) {
        rounds += 1;
        let mut writers = tokio::task::JoinSet::new();
        for (by, ledger) in &ledgers {
            for _ in 0..WRITERS_EACH {
                writers.spawn(write_until_broken(
                    server.client(),
                    ledger.clone(),
                    next.clone(),
                    *by,
                ));
            }
        }
        writers.spawn(disturb(server.client()));
        for table in ["appended", "upserted"] {
            writers.spawn(recut(server.client(), table, random.random()));
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(100..1500))).await;
        // Every third time the process stands still first, as on a stalled machine.
        if rounds % 3 == 0 {
            server.pause();
            tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
            if random.random_bool(0.5) {
                server.resume();
                tokio::time::sleep(Duration::from_millis(random.random_range(1..300))).await;
            }
        }
        server.kill();
        while let Some(done) = writers.join_next().await {
            done.expect("a writer panicked");
        }
        server.restart().await;
        for (_, ledger) in &ledgers {
            ledger.lock().await.check(&server.client()).await;
        }
    }
    // A clean stop and start, and all of it once more after flush and compaction.
    server.client().flush().await.expect("flush");
    server.client().compact().await.expect("compact");
    server.stop().await;
    server.restart().await;
    for (_, ledger) in &ledgers {
        let mut ledger = ledger.lock().await;
        ledger.check(&server.client()).await;
        let (stored, absent) = (
            ledger.count(Outcome::Acknowledged),
            ledger.count(Outcome::Refused),
        );
        println!(
            "{}: {rounds} kills, {stored} batches stored, {absent} not",
            ledger.name()
        );
        assert!(
            stored >= 20,
            "too little load to mean anything: {stored} batches"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_keeps_rows_that_were_never_flushed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(&folder.path().join("data"), &[]).await;
    server
        .client()
        .write("kept,host=a v=1i 1\nkept,host=b v=2i 2\n".into())
        .await
        .expect("write");
    let status = server.stop().await;
    assert!(
        status.success(),
        "Ctrl-C ends it with {status}:\n{}",
        server.log_tail()
    );
    server.restart().await;
    assert_eq!(server.client().count("SELECT sum(v) FROM kept").await, 3);
}
