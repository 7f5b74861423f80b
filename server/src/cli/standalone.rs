//! `shoal standalone`.

use std::net::SocketAddr;
use std::process::ExitCode;

use super::serve::{configured, runtime, stop_signal};
use super::{CliError, CliResult, chain};
use crate::config::{Config, ConfigArgs};
use crate::standalone::{Standalone, StartError};

/// Run a whole database in this process.
#[derive(Debug, clap::Args)]
pub struct StandaloneArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Serves until Ctrl-C or SIGTERM.
pub fn run(args: StandaloneArgs) -> CliResult {
    let config = configured(&args.config)?;
    runtime()?.block_on(serve(&config))
}

async fn serve(config: &Config) -> CliResult {
    // Signals are taken from the start on: a stop during a long recovery is a stop too.
    let mut stop = std::pin::pin!(stop_signal());
    let running = tokio::select! {
        started = Standalone::start(config) => started.map_err(|error| match error {
            StartError::Auth(_) => CliError::usage(chain(&error)),
            _ => CliError::failed(chain(&error)),
        })?,
        name = &mut stop => {
            tracing::info!(signal = name?, "stopped before the data folder was open");
            return Ok(ExitCode::SUCCESS);
        }
    };
    greet(config, running.http, running.postgres);
    let name = stop.await?;
    tracing::info!(signal = name, "stopping");
    running.stop().await;
    tracing::info!("stopped; the data is kept");
    Ok(ExitCode::SUCCESS)
}

fn greet(config: &Config, http: Option<SocketAddr>, postgres: Option<SocketAddr>) {
    println!("ShoalDB {} is ready.", env!("CARGO_PKG_VERSION"));
    println!("  data        {}", config.data_dir.display());
    if let Some(address) = http {
        println!("  HTTP        http://{address}");
    }
    if let Some(address) = postgres {
        println!("  PostgreSQL  postgresql://shoal@{address}/public");
    }
    let Some(address) = http else {
        return;
    };
    let url = if address.port() == 7420 && address.ip().is_loopback() {
        String::new()
    } else {
        format!(" --url http://{address}")
    };
    println!("Try, in another terminal:");
    println!("  curl -i http://{address}/write --data-binary 'cpu,hostname=a usage_user=12.5'");
    println!("  shoal sql{url} -c 'SELECT * FROM cpu'");
    println!("  shoal import{url} FILE.lp.zst");
    println!("Stop with Ctrl-C.");
}
