//! `shoal standalone`.

use std::net::SocketAddr;
use std::process::ExitCode;

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

/// What a server runs on.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    // Statements run on threads of their own, and long parsing leaves its thread to others. More
    // threads than cores only wake each other in vain.
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(2))
        // Deep plans recurse.
        .thread_stack_size(8 << 20)
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("cannot start a runtime: {e}")))
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

/// Resolves with the name of the signal that asks the process to stop.
pub(super) async fn stop_signal() -> Result<&'static str, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let take =
        |kind| signal(kind).map_err(|e| CliError::failed(format!("cannot take signals: {e}")));
    let mut interrupt = take(SignalKind::interrupt())?;
    let mut terminate = take(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    })
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
