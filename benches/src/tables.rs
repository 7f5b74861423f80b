//! Makes very many small tables and compares what making one costs at the start and at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::BenchError;
use crate::client::Client;
use crate::figures::Report;
use crate::latency::median;
use crate::stopwatch::Stopwatch;

/// How many tables, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct TablesOptions {
    /// Tables to make.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..=10_000_000))]
    pub count: u32,
    /// Statements under way at a time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Tables at the start, and again at the end, that are made one at a time and timed.
    #[arg(long, default_value_t = 500)]
    pub timed: u32,
    /// Rows written to each table when all are there.
    #[arg(long, default_value_t = 1)]
    pub rows: u32,
}

/// Lines of one request when rows are written.
const LINES_PER_REQUEST: u32 = 2000;

/// Makes the tables and writes to them; prints `tables.*` figures.
pub(crate) async fn run(
    client: &Client,
    options: &TablesOptions,
    report: &mut Report,
) -> Result<(), BenchError> {
    let timed = options.timed.clamp(1, options.count / 2);
    let stopwatch = Stopwatch::start();
    let start_ms = create_timed(client, 0..timed).await?;
    create_many(client, timed..options.count - timed, options.connections).await?;
    let end_ms = create_timed(client, options.count - timed..options.count).await?;
    report.print("tables.count", f64::from(options.count), "tables");
    report.print(
        "tables.create_seconds",
        stopwatch.elapsed().as_secs_f64(),
        "s",
    );
    report.print("tables.create_start_ms", start_ms, "ms");
    report.print("tables.create_end_ms", end_ms, "ms");
    report.print("tables.create_end_over_start", end_ms / start_ms, "ratio");
    let stopwatch = Stopwatch::start();
    for row in 0..options.rows {
        write_rows(client, options.count, row).await?;
    }
    report.print(
        "tables.write_seconds",
        stopwatch.elapsed().as_secs_f64(),
        "s",
    );
    Ok(())
}

fn create_statement(table: u32) -> String {
    format!(
        "CREATE TABLE small_{table:07} (time TIMESTAMP(9) NOT NULL, device TEXT, value DOUBLE PRECISION, PRIMARY KEY (device, time)) WITH (time_column = 'time')"
    )
}

/// One at a time; the median in milliseconds.
async fn create_timed(client: &Client, tables: std::ops::Range<u32>) -> Result<f64, BenchError> {
    let mut times_ms = Vec::with_capacity(tables.len());
    for table in tables {
        let stopwatch = Stopwatch::start();
        client.sql(&create_statement(table), "json").await?;
        times_ms.push(stopwatch.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(median(&mut times_ms))
}

async fn create_many(
    client: &Client,
    tables: std::ops::Range<u32>,
    connections: u16,
) -> Result<(), BenchError> {
    let next = Arc::new(AtomicU32::new(tables.start));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (client, next, end) = (client.clone(), next.clone(), tables.end);
        tasks.spawn(async move {
            loop {
                let table = next.fetch_add(1, Ordering::Relaxed);
                if table >= end {
                    return Ok::<(), BenchError>(());
                }
                if table % 10_000 == 0 {
                    eprintln!("table {table} of {end}");
                }
                client.sql(&create_statement(table), "json").await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|e| BenchError::Usage(format!("a connection panicked: {e}")))??;
    }
    Ok(())
}

async fn write_rows(client: &Client, tables: u32, row: u32) -> Result<(), BenchError> {
    for first in (0..tables).step_by(LINES_PER_REQUEST as usize) {
        let last = first.saturating_add(LINES_PER_REQUEST).min(tables);
        let lines: String = (first..last)
            .map(|table| {
                let ns = 1_767_225_600_000_000_000 + i64::from(row) * 1_000_000_000;
                format!("small_{table:07},device=d{table} value={table}.5 {ns}\n")
            })
            .collect();
        let answer = client.write(lines.into(), false).await?;
        if answer.status != 204 {
            return Err(BenchError::refused(
                &client.write_url(),
                answer.status,
                &answer.body,
            ));
        }
    }
    Ok(())
}
