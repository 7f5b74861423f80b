//! The command line. Exit codes: 0 done; 1 the command failed or some rows were refused; 2 the
//! command line or configuration is wrong; 3 the server cannot be reached.

mod admin;
mod bench;
pub mod client;
mod completions;
mod config;
pub mod import;
mod inspect;
mod node;
mod partition;
mod scheduler;
mod serve;
mod split;
pub mod sql;
mod standalone;
mod state;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub(crate) use crate::chain::chain;

/// ShoalDB: a shared-storage time-series and SQL database.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole database in this process: HTTP, PostgreSQL, data in one folder.
    Standalone(standalone::StandaloneArgs),
    /// Run one node of a cluster over Kafka, an object store and etcd.
    Node(node::NodeArgs),
    /// Run one scheduler of a cluster: failover, placement, balance.
    Scheduler(scheduler::SchedulerArgs),
    /// Run SQL: one statement with -c, a file, or an interactive prompt.
    Sql(sql::SqlArgs),
    /// Load line protocol, CSV or Parquet; interrupted, it resumes without doubling rows.
    Import(import::ImportArgs),
    /// Look at a running server and tell it to flush, compact or collect garbage.
    Admin(admin::AdminArgs),
    /// Show logs, manifests and files on disk; offline, changes nothing.
    Inspect(inspect::InspectArgs),
    /// Generate load and queries, and print figures.
    Bench(bench::BenchArgs),
    /// Print or check the configuration.
    Config(config::ConfigCommandArgs),
    /// Print a script that completes commands and flags in a shell.
    Completions(completions::CompletionsArgs),
}

/// Exit code when the server cannot be reached.
pub const UNREACHABLE: u8 = 3;

/// A command's failure: what to print and the exit code.
#[derive(Debug)]
pub struct CliError {
    /// For standard error.
    pub message: String,
    /// See the module's list.
    pub code: u8,
}

/// What every command returns.
pub type CliResult = Result<ExitCode, CliError>;

impl CliError {
    /// The command failed (exit code 1).
    pub fn failed(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 1,
        }
    }

    /// The command line or the configuration is wrong (exit code 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 2,
        }
    }

    /// The server cannot be reached (exit code 3).
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: UNREACHABLE,
        }
    }
}

// Any error becomes a failure of the command; `CliError` is no `Error` itself, else this would
// overlap with the identity conversion.
impl<E: std::error::Error> From<E> for CliError {
    fn from(error: E) -> Self {
        Self::failed(chain(&error))
    }
}

/// `1 row`, `2 rows`: a number with its thousands set apart, and what is counted.
pub(crate) fn counted(n: u64, one: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {one}{plural}", grouped(n))
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Runs the process's command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let serves = matches!(
        cli.command,
        Command::Standalone(_) | Command::Node(_) | Command::Scheduler(_)
    );
    if !serves {
        // `shoal … | head` ends quietly. A server's connections break without ending it.
        sigpipe::reset();
    }
    let result = match cli.command {
        Command::Standalone(args) => standalone::run(args),
        Command::Node(args) => node::run(args),
        Command::Scheduler(args) => scheduler::run(args),
        Command::Sql(args) => block_on(sql::run(args)),
        Command::Import(args) => block_on(import::run(args)),
        Command::Admin(args) => block_on(admin::run(args)),
        Command::Inspect(args) => block_on(inspect::run(args)),
        Command::Bench(args) => bench::run(args),
        Command::Config(args) => config::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("shoal: {}", error.message);
        ExitCode::from(error.code)
    })
}

fn block_on(command: impl Future<Output = CliResult>) -> CliResult {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("cannot start a runtime: {e}")))?
        .block_on(command)
}
