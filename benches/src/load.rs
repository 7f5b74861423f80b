//! Sends a workload over HTTP and reports how fast it was acknowledged.
//!
//! Every connection takes the next batch, sends it and waits for the answer, so at most one batch
//! a connection is in memory (unless `--pregenerate`). A batch is sent again when the server
//! pushes back or the connection breaks: rows have a key, so a second copy changes nothing.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::client::Client;
use crate::figures::Report;
use crate::latency::Latencies;
use crate::stopwatch::Stopwatch;
use crate::{Batch, BenchError, Generator, Workload};

/// How the rows are sent.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadOptions {
    /// Rows in a request.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub batch_rows: u32,
    /// Requests under way at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Compress request bodies (also on the loader's processor time).
    #[arg(long)]
    pub gzip: bool,
    /// Make all requests before the clock starts, so that only the server is measured; takes
    /// 350 bytes of memory a row.
    #[arg(long)]
    pub pregenerate: bool,
    /// Send no faster than this; 0: as fast as is acknowledged.
    #[arg(long, default_value_t = 0, value_name = "ROWS")]
    pub rows_per_s: u64,
    /// So many writes without a row go ahead, one after the other: what HTTP alone costs.
    #[arg(long, default_value_t = 0)]
    pub empty_writes: u32,
    /// How often a refused or broken request is sent again before the run fails.
    #[arg(long, default_value_t = 20)]
    pub retries: u32,
}

/// The first pause before a request is sent again; each further one is longer by as much.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// A request body and what it stands for.
struct Request {
    body: Bytes,
    rows: u64,
    line_bytes: u64,
}

enum Source {
    Live(Generator),
    Ready(std::vec::IntoIter<Request>),
}

struct Shared {
    source: Mutex<Source>,
    options: LoadOptions,
    stopwatch: Stopwatch,
    /// Rows given out.
    taken: AtomicU64,
}

#[derive(Clone)]
struct Totals {
    rows: u64,
    line_bytes: u64,
    retries: u64,
    latencies: Latencies,
}

impl Shared {
    /// Waits until the next rows are due at the rate that was asked for.
    async fn pace(&self, rows: u64) {
        let before = self.taken.fetch_add(rows, Ordering::Relaxed);
        if self.options.rows_per_s > 0 {
            let due = Duration::from_secs_f64(before as f64 / self.options.rows_per_s as f64);
            tokio::time::sleep(due.saturating_sub(self.stopwatch.elapsed())).await;
        }
    }

    fn next_request(&self) -> Result<Option<Request>, BenchError> {
        // A poisoned lock means that another connection panicked; its own join reports that.
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *source {
            Source::Ready(requests) => Ok(requests.next()),
            Source::Live(generator) => {
                let batch = generator.next_batch(self.options.batch_rows as usize);
                // Compressed outside the lock: it is the slowest part by far.
                drop(source);
                batch
                    .map(|batch| request(batch, self.options.gzip))
                    .transpose()
            }
        }
    }
}

fn request(batch: Batch, gzip: bool) -> Result<Request, BenchError> {
    let line_bytes = batch.lines.len() as u64;
    let body = if gzip {
        compress(&batch.lines)?
    } else {
        batch.lines
    };
    Ok(Request {
        body: body.into(),
        rows: batch.rows,
        line_bytes,
    })
}

fn compress(lines: &[u8]) -> Result<Vec<u8>, BenchError> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(lines)
        .and_then(|()| encoder.finish())
        .map_err(|e| BenchError::Usage(format!("gzip: {e}")))
}

/// Sends writes without a row; prints `ingest.empty_*` figures.
async fn send_empty(client: &Client, writes: u32, report: &mut Report) -> Result<(), BenchError> {
    let mut latencies = Latencies::new();
    for _ in 0..writes {
        let sent = Stopwatch::start();
        let answer = client.write(Bytes::new(), false).await?;
        if answer.status >= 300 {
            let url = client.write_url();
            return Err(BenchError::refused(&url, answer.status, &answer.body));
        }
        latencies.record(sent.elapsed());
    }
    report.print("ingest.empty_p50_ms", latencies.quantile_ms(0.5), "ms");
    report.print("ingest.empty_p99_ms", latencies.quantile_ms(0.99), "ms");
    Ok(())
}

/// Loads the workload; prints `ingest.*` figures.
pub(crate) async fn run(
    client: &Client,
    workload: &Workload,
    options: &LoadOptions,
    report: &mut Report,
) -> Result<(), BenchError> {
    if options.empty_writes > 0 {
        send_empty(client, options.empty_writes, report).await?;
    }
    let mut generator = Generator::new(workload);
    let source = if options.pregenerate {
        let mut requests = Vec::new();
        while let Some(batch) = generator.next_batch(options.batch_rows as usize) {
            requests.push(request(batch, options.gzip)?);
        }
        Source::Ready(requests.into_iter())
    } else {
        Source::Live(generator)
    };
    let stopwatch = Stopwatch::start();
    let shared = Arc::new(Shared {
        source: Mutex::new(source),
        options: options.clone(),
        stopwatch,
        taken: AtomicU64::new(0),
    });
    let progress = Arc::new(Mutex::new((0_u64, Duration::ZERO)));
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..options.connections {
        let (client, shared, progress) = (client.clone(), shared.clone(), progress.clone());
        let rows_all = workload.rows();
        connections.spawn(async move {
            send_all(&client, &shared, |rows| {
                tell_progress(&progress, stopwatch, rows, rows_all);
            })
            .await
        });
    }
    let mut totals = Totals {
        rows: 0,
        line_bytes: 0,
        retries: 0,
        latencies: Latencies::new(),
    };
    while let Some(done) = connections.join_next().await {
        let part = done.map_err(|e| BenchError::Usage(format!("a connection panicked: {e}")))??;
        totals.rows += part.rows;
        totals.line_bytes += part.line_bytes;
        totals.retries += part.retries;
        totals.latencies.add(&part.latencies);
    }
    let seconds = stopwatch.elapsed().as_secs_f64();
    report.print("ingest.rows", totals.rows as f64, "rows");
    report.print("ingest.seconds", seconds, "s");
    report.print("ingest.rows_per_s", totals.rows as f64 / seconds, "rows/s");
    report.print(
        "ingest.mb_per_s",
        totals.line_bytes as f64 / seconds / 1e6,
        "MB/s",
    );
    report.print(
        "ingest.batch_p50_ms",
        totals.latencies.quantile_ms(0.5),
        "ms",
    );
    report.print(
        "ingest.batch_p99_ms",
        totals.latencies.quantile_ms(0.99),
        "ms",
    );
    report.print(
        "ingest.batch_max_ms",
        totals.latencies.quantile_ms(1.0),
        "ms",
    );
    report.print("ingest.retries", totals.retries as f64, "requests");
    Ok(())
}

async fn send_all(
    client: &Client,
    shared: &Shared,
    mut progress: impl FnMut(u64),
) -> Result<Totals, BenchError> {
    let mut totals = Totals {
        rows: 0,
        line_bytes: 0,
        retries: 0,
        latencies: Latencies::new(),
    };
    while let Some(request) = shared.next_request()? {
        shared.pace(request.rows).await;
        let stopwatch = Stopwatch::start();
        totals.retries += send_one(client, &request, &shared.options).await?;
        totals.latencies.record(stopwatch.elapsed());
        totals.rows += request.rows;
        totals.line_bytes += request.line_bytes;
        progress(request.rows);
    }
    Ok(totals)
}

/// Sends one request until it is acknowledged; gives the number of tries that failed.
async fn send_one(
    client: &Client,
    request: &Request,
    options: &LoadOptions,
) -> Result<u64, BenchError> {
    let mut failed = 0;
    loop {
        let failure = match client.write(request.body.clone(), options.gzip).await {
            Ok(answer) if answer.status == 204 => return Ok(failed),
            Ok(answer) => {
                let refusal = BenchError::refused(&client.write_url(), answer.status, &answer.body);
                if !matches!(answer.status, 429 | 500..=599) {
                    return Err(refusal);
                }
                refusal
            }
            Err(broken) => broken,
        };
        failed += 1;
        if failed > u64::from(options.retries) {
            return Err(failure);
        }
        tokio::time::sleep(RETRY_PAUSE * failed.min(20) as u32).await;
    }
}

fn tell_progress(
    progress: &Mutex<(u64, Duration)>,
    stopwatch: Stopwatch,
    rows: u64,
    rows_all: u64,
) {
    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    progress.0 += rows;
    let now = stopwatch.elapsed();
    if now.saturating_sub(progress.1) >= PROGRESS_EVERY {
        progress.1 = now;
        let rate = progress.0 as f64 / now.as_secs_f64();
        eprintln!("{} of {rows_all} rows, {rate:.0} rows/s", progress.0);
    }
}
