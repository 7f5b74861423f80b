//! Everything at the same time, compared with a model: writers, updates, deletes, flushes,
//! compactions, collection, restarts. The seed is in every message; `SHOAL_SEED` runs one alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use shoal_engine::{Database, EngineConfig, TableHandle, WriteOptions};
use shoal_types::TableMode;

use super::support::*;

/// Values below may be deleted by a predicate at any time; others stay.
const DELETABLE: i64 = 1000;

/// xorshift64*: the same numbers everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below
    }
}

fn busy() -> EngineConfig {
    EngineConfig {
        memtable_bytes_max: 48 << 10,
        record_rows_max: 4,
        compaction_runs_min: 2,
        compaction_tasks_max: 2,
        retention_s: 0,
        ..config()
    }
}

/// What one writer knows: its own keys, and what it appended at which offset.
#[derive(Default)]
struct Known {
    upserted: BTreeMap<(String, i64), i64>,
    /// (value, offset of its record)
    appended: Vec<(i64, u64)>,
    /// (everything below is deleted, offset of the record)
    deleted: Vec<(i64, u64)>,
}

struct Tables {
    db: Arc<Database>,
    up: TableHandle,
    log: TableHandle,
}

async fn act(
    t: &Tables,
    host: &str,
    known: &mut Known,
    dice: &mut Dice,
    next: &mut i64,
    seed: u64,
) {
    match dice.roll(10) {
        0..=4 => {
            let rows: Vec<(&str, i64, i64)> = (0..1 + dice.roll(9))
                .map(|_| {
                    // Two days' windows, few keys: versions meet.
                    let day = dice.roll(2) as i64 * 86_400_000_000_000;
                    (host, day + dice.roll(12) as i64, dice.roll(1 << 20) as i64)
                })
                .collect();
            let deletes = dice.roll(4) == 0;
            let schema = t.db.table_schema(&t.up).expect("schema");
            let block = block(&schema, &rows, deletes);
            let written = t.db.write(vec![block], WriteOptions::default()).await;
            written.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            for (host, time, value) in rows {
                let key = (host.to_owned(), time);
                if deletes {
                    known.upserted.remove(&key);
                } else {
                    known.upserted.insert(key, value);
                }
            }
        }
        5..=7 => {
            *next += 1;
            let low = dice.roll(3) == 0;
            let value = *next * 10_000 + if low { 0 } else { DELETABLE };
            // Small values are what deletes look at: the rest of the number makes it unique.
            let time = value;
            let shown = if low {
                dice.roll(DELETABLE as u64) as i64
            } else {
                value
            };
            let written = put(
                &t.db,
                &t.log,
                &[(host, time, shown)],
                WriteOptions::default(),
            )
            .await;
            let commit = written.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            known.appended.push((shown, commit.tokens[0].offset.0));
        }
        8 => {
            let below = dice.roll(DELETABLE as u64) as i64;
            let predicate = format!("v < {below}");
            let options = WriteOptions::default();
            // Rows in the place of those deleted, which the predicate would match as well.
            let rows: Vec<(&str, i64, i64)> = (0..dice.roll(4))
                .map(|_| {
                    *next += 1;
                    (host, *next * 10_000, dice.roll(DELETABLE as u64) as i64)
                })
                .collect();
            let deleted = if rows.is_empty() {
                t.db.delete_where(&t.log, &predicate, options).await
            } else {
                let schema = t.db.table_schema(&t.log).expect("schema");
                let block = block(&schema, &rows, false);
                t.db.replace_where(&t.log, &predicate, vec![block], options)
                    .await
            };
            let commit = deleted.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            let offset = commit.tokens[0].offset.0;
            known.deleted.push((below, offset));
            known
                .appended
                .extend(rows.iter().map(|row| (row.2, offset)));
        }
        _ => {
            let mut mine = read(&t.db, &t.up).await;
            mine.retain(|(of, _), _| of == host);
            assert_eq!(mine, known.upserted, "seed {seed}: {host} reads its writes");
            let listed = list(&t.db, &t.log).await;
            let mut found: Vec<i64> = listed
                .into_iter()
                .filter(|r| r.0.0 == host)
                .map(|r| r.1)
                .collect();
            found.retain(|v| *v >= DELETABLE);
            found.sort_unstable();
            let mut sure: Vec<i64> = known.appended.iter().map(|a| a.0).collect();
            sure.retain(|v| *v >= DELETABLE);
            sure.sort_unstable();
            assert_eq!(found, sure, "seed {seed}: {host} reads what it appended");
        }
    }
}

/// Flushes, compacts and collects in any order until told to end.
async fn disturb(t: Arc<Tables>, mut dice: Dice, end: Arc<AtomicBool>, seed: u64) {
    while !end.load(Ordering::SeqCst) {
        let outcome = match dice.roll(5) {
            0 | 1 => t.db.flush(None).await.map(|_| ()),
            2 => t.db.compact(Some(&t.up)).await.map(|_| ()),
            3 => t.db.compact(Some(&t.log)).await.map(|_| ()),
            _ => t.db.gc(false).await.map(|_| ()),
        };
        outcome.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        tokio::time::sleep(Duration::from_millis(dice.roll(12))).await;
    }
}

async fn compare(t: &Tables, all: &[Known], when: &str, seed: u64) {
    let mut upserted = Rows::new();
    let mut appended = Vec::new();
    let deletes: Vec<(i64, u64)> = all.iter().flat_map(|k| k.deleted.clone()).collect();
    for known in all {
        upserted.extend(known.upserted.clone());
        let stays = |(v, at): &&(i64, u64)| !deletes.iter().any(|(below, d)| v < below && at < d);
        appended.extend(known.appended.iter().filter(stays).map(|a| a.0));
    }
    appended.sort_unstable();
    assert_eq!(read(&t.db, &t.up).await, upserted, "seed {seed}: {when}");
    let mut found: Vec<i64> = list(&t.db, &t.log).await.into_iter().map(|r| r.1).collect();
    found.sort_unstable();
    assert_eq!(found, appended, "seed {seed}: {when}");
}

/// Opens the database again, as a new process would.
pub type Open = Box<dyn Fn(EngineConfig) -> BoxFuture<'static, Arc<Database>> + Send + Sync>;

pub async fn life(seed: u64, open: Open) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut all: Vec<Known> = (0..3).map(|_| Known::default()).collect();
    for opened in 0..4 {
        let db = open(busy()).await;
        let (up, log) = match (db.table("public", "up"), db.table("public", "log")) {
            (Some(up), Some(log)) => (up, log),
            _ => (
                make(&db, "up", TableMode::Upsert).await,
                make(&db, "log", TableMode::Append).await,
            ),
        };
        let tables = Arc::new(Tables { db, up, log });
        compare(&tables, &all, "after opening", seed).await;
        let end = Arc::new(AtomicBool::new(false));
        let other = Dice(dice.0 ^ 0xABCD);
        let disturbing = tokio::spawn(disturb(Arc::clone(&tables), other, Arc::clone(&end), seed));
        let writers = all.drain(..).enumerate().map(|(n, mut known)| {
            let tables = Arc::clone(&tables);
            let mut dice = Dice(dice.0 ^ (n as u64 + 1) << 20);
            tokio::spawn(async move {
                let host = format!("w{n}");
                let mut next = (opened * 3 + n as i64) * 1000;
                for _ in 0..120 {
                    act(&tables, &host, &mut known, &mut dice, &mut next, seed).await;
                }
                known
            })
        });
        for writer in futures::future::join_all(writers).await {
            all.push(writer.expect("writer"));
        }
        let flushing = dice.roll(2) == 0;
        let closing = dice.roll(2) == 0;
        if flushing {
            // A kill while flushes and compactions run.
            disturbing.abort();
            let _ = disturbing.await;
        } else {
            end.store(true, Ordering::SeqCst);
            disturbing.await.expect("disturber");
            compare(&tables, &all, "before closing", seed).await;
        }
        if closing {
            tables.db.shutdown().await;
        }
    }
    let db = open(busy()).await;
    let up = db.table("public", "up").expect("up");
    let log = db.table("public", "log").expect("log");
    let tables = Tables { db, up, log };
    compare(&tables, &all, "at the end", seed).await;
    tables.db.flush(None).await.expect("flush");
    tables.db.compact(None).await.expect("compact");
    compare(&tables, &all, "in one file", seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_runs_at_the_same_time_every_row_is_there_once() {
    let chosen = std::env::var("SHOAL_SEED")
        .ok()
        .and_then(|s| s.parse().ok());
    let seeds = chosen.map_or(1..=3, |seed: u64| seed..=seed);
    for seed in seeds {
        let dir = Arc::new(tempfile::tempdir().expect("dir"));
        let open: Open = Box::new(move |config| {
            let dir = Arc::clone(&dir);
            Box::pin(async move { embedded(dir.path(), config).await })
        });
        life(seed, open).await;
    }
}
