//! `shoal scheduler`.

use std::process::ExitCode;
use std::time::Duration;

use super::standalone::{runtime, stop_signal};
use super::{CliError, CliResult, chain};
use crate::config::{Config, ConfigArgs};
use crate::node::NodeError;
use crate::scheduler::Scheduler;
use crate::standalone::StartError;

/// Run one scheduler of a cluster; any number may run, one leads.
#[derive(Debug, clap::Args)]
pub struct SchedulerArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves until Ctrl-C or SIGTERM.
pub fn run(args: SchedulerArgs) -> CliResult {
    let (config, warnings) = args
        .config
        .layers()
        .load()
        .map_err(|e| CliError::usage(e.to_string()))?;
    crate::logging::start(&config).map_err(CliError::usage)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    runtime()?.block_on(serve(&config))
}

/// Pause before a start is tried again whose services were away.
const PAUSE: Duration = Duration::from_secs(1);

/// Starts it; for as long as etcd does not answer, again.
async fn start(config: &Config) -> Result<Scheduler, NodeError> {
    loop {
        match Scheduler::start(config).await {
            Err(error) if error.may_pass() => {
                tracing::error!(
                    error = chain(&error),
                    "cannot join yet, will be tried again"
                );
                tokio::time::sleep(PAUSE).await;
            }
            started => return started,
        }
    }
}

async fn serve(config: &Config) -> CliResult {
    let mut stop = std::pin::pin!(stop_signal());
    let running = tokio::select! {
        started = start(config) => started.map_err(|error| match error {
            NodeError::Config(_) | NodeError::Start(StartError::Auth(_)) => {
                CliError::usage(chain(&error))
            }
            _ => CliError::failed(chain(&error)),
        })?,
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
    let signal = stop.await?;
    tracing::info!(signal, "stopping");
    running.stop().await;
    Ok(ExitCode::SUCCESS)
}
