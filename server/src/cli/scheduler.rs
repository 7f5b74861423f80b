//! `shoal scheduler`.

use std::process::ExitCode;
use std::time::Duration;

use super::serve::{configured, joined, runtime, stop_signal};
use super::{CliError, CliResult};
use crate::config::{Config, ConfigArgs};
use crate::scheduler::Scheduler;

/// Run one scheduler of a cluster; any number may run, one leads.
#[derive(Debug, clap::Args)]
pub struct SchedulerArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves until Ctrl-C or SIGTERM.
pub fn run(args: SchedulerArgs) -> CliResult {
    let config = configured(&args.config)?;
    runtime()?.block_on(serve(&config))
}

/// Pause before a start is tried again whose services were away.
const PAUSE: Duration = Duration::from_secs(1);

async fn serve(config: &Config) -> CliResult {
    let mut stop = std::pin::pin!(stop_signal());
    let mut running = tokio::select! {
        joined = joined(PAUSE, || Scheduler::start(config)) => joined?,
        name = &mut stop => {
            tracing::info!(signal = name?, "stopped before the scheduler had joined");
            return Ok(ExitCode::SUCCESS);
        }
    };
    println!(
        "ShoalDB {} is ready: scheduler {} of cluster {}.",
        env!("CARGO_PKG_VERSION"),
        running.process,
        config.cluster_name
    );
    println!("  HTTP        {}", running.http);
    println!("Stop with Ctrl-C.");
    let why = tokio::select! {
        signal = &mut stop => {
            tracing::info!(signal = signal?, "stopping");
            running.stop().await;
            return Ok(ExitCode::SUCCESS);
        }
        why = running.broken() => why,
    };
    // Nothing is undone in order: its lease ends, and the next one takes up what it had begun.
    Err(CliError::failed(why))
}
