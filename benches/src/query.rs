//! Runs the queries one after the other and reports the median time of each.

use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::figures::Report;
use crate::latency::median;
use crate::stopwatch::Stopwatch;
use crate::{BenchError, QUERY_NAMES, Statement, Workload, statements};

/// Which queries, and what is kept of them.
#[derive(Clone, Debug, clap::Args)]
pub struct QueryOptions {
    /// Measured runs of each query, each with other parameters.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub samples: u32,
    /// Unmeasured runs of each query before them.
    #[arg(long, default_value_t = 5)]
    pub warmups: u32,
    /// Only these queries, by name.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Writes every measured answer to `DIR/query-sample.arrow` (Arrow IPC stream).
    #[arg(long, value_name = "DIR")]
    pub answers: Option<PathBuf>,
    /// Writes every statement, warm-ups too, to a file: one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub statements: Option<PathBuf>,
    /// Only writes the statements; nothing is sent.
    #[arg(long, requires = "statements")]
    pub dry_run: bool,
}

/// Runs the queries; prints a `query.NAME.ms` figure each.
pub(crate) async fn run(
    client: &Client,
    workload: &Workload,
    options: &QueryOptions,
    report: &mut Report,
) -> Result<(), BenchError> {
    let names: Vec<&str> = if options.only.is_empty() {
        QUERY_NAMES.to_vec()
    } else {
        options.only.iter().map(String::as_str).collect()
    };
    let mut all = Vec::new();
    for name in names {
        all.push(statements(
            name,
            workload,
            options.warmups,
            options.samples,
        )?);
    }
    if let Some(path) = &options.statements {
        write_statements(path, &all)?;
    }
    if options.dry_run {
        return Ok(());
    }
    for of_one_query in &all {
        let mut times_ms = Vec::new();
        for statement in of_one_query {
            let stopwatch = Stopwatch::start();
            let answer = client.sql(&statement.sql, "arrow").await?;
            let elapsed = stopwatch.elapsed();
            if statement.sample >= 0 {
                times_ms.push(elapsed.as_secs_f64() * 1000.0);
                if let Some(dir) = &options.answers {
                    let path = dir.join(format!("{}-{}.arrow", statement.query, statement.sample));
                    write(&path, &answer)?;
                }
            }
        }
        let name = format!("query.{}.ms", of_one_query[0].query);
        report.print(&name, median(&mut times_ms), "ms");
    }
    Ok(())
}

fn write_statements(path: &Path, all: &[Vec<Statement>]) -> Result<(), BenchError> {
    let lines: String = all
        .iter()
        .flatten()
        .map(|s| serde_json::to_string(s).expect("a statement has only plain fields") + "\n")
        .collect();
    write(path, lines.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BenchError> {
    std::fs::write(path, bytes).map_err(|e| BenchError::file(path, e))
}
