//! `shoal node`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use super::serve::{configured, joined, runtime, stop_signal};
use super::{CliError, CliResult, chain};
use crate::config::{Config, ConfigArgs};
use crate::node::Node;

/// Run one node of a cluster.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves until Ctrl-C or SIGTERM.
pub fn run(args: NodeArgs) -> CliResult {
    let config = configured(&args.config)?;
    runtime()?.block_on(serve(&config))
}

/// Pause before a start is tried again whose services were away.
const PAUSE: Duration = Duration::from_secs(2);

async fn serve(config: &Config) -> CliResult {
    let mut stop = std::pin::pin!(stop_signal());
    let running = tokio::select! {
        joined = joined(PAUSE, || Node::start(config)) => joined?,
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
