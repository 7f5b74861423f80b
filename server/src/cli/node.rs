//! `shoal node`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use super::standalone::{runtime, stop_signal};
use super::{CliError, CliResult, chain};
use crate::config::{Config, ConfigArgs};
use crate::node::{Node, NodeError};
use crate::standalone::StartError;

/// Run one node of a cluster.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves until Ctrl-C or SIGTERM.
pub fn run(args: NodeArgs) -> CliResult {
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
const PAUSE: Duration = Duration::from_secs(2);

/// Starts the node; for as long as what it needs does not answer, again.
async fn start(config: &Config) -> Result<Node, NodeError> {
    loop {
        match Node::start(config).await {
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
            tracing::info!(signal = name?, "stopped before the node had joined");
            return Ok(ExitCode::SUCCESS);
        }
    };
    greet(config, &running);
    let ended = tokio::select! {
        name = &mut stop => Ok(name?),
        error = running.overtaken() => Err(CliError::failed(chain(&error))),
    };
    if let Ok(signal) = ended {
        tracing::info!(signal, "stopping");
    }
    running.stop().await;
    tracing::info!("stopped; the data is in the log and the object store");
    ended.map(|_| ExitCode::SUCCESS)
}

fn greet(config: &Config, running: &Node) {
    let shown = |address: Option<SocketAddr>| match address {
        Some(address) => address.to_string(),
        None => "off".to_owned(),
    };
    println!(
        "ShoalDB {} is ready: node {} of cluster {}.",
        env!("CARGO_PKG_VERSION"),
        running.cluster().me,
        config.cluster_name
    );
    println!("  data        {}", config.objects_bucket);
    println!("  HTTP        {}", shown(running.http));
    println!("  PostgreSQL  {}", shown(running.postgres));
    println!("  gRPC        {}", running.grpc);
    println!("Stop with Ctrl-C.");
}
