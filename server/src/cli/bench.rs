//! `shoal bench`: the crate `shoal_bench` on the command line.

use std::process::ExitCode;

use super::{CliError, CliResult, chain};

/// Generate load and queries.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    command: shoal_bench::BenchCommand,
}

/// Runs it; a figure that misses its bar is exit code 1.
pub fn run(args: BenchArgs) -> CliResult {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("cannot start a runtime: {e}")))?;
    match runtime.block_on(shoal_bench::run(args.command)) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => Err(CliError::failed(chain(&error))),
    }
}
