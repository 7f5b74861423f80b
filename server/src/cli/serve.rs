//! What the commands that run until they are stopped share.

use std::time::Duration;

use super::{CliError, chain};
use crate::config::{Config, ConfigArgs};
use crate::node::NodeError;
use crate::standalone::StartError;

/// The configuration; from here on there is logging.
pub(super) fn configured(args: &ConfigArgs) -> Result<Config, CliError> {
    let (config, warnings) = args
        .layers()
        .load()
        .map_err(|e| CliError::usage(e.to_string()))?;
    crate::logging::start(&config).map_err(CliError::usage)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
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

/// Joins a cluster; for as long as what is needed for it does not answer, again after `pause`.
pub(super) async fn joined<T>(
    pause: Duration,
    start: impl AsyncFn() -> Result<T, NodeError>,
) -> Result<T, CliError> {
    loop {
        match start().await {
            Ok(joined) => return Ok(joined),
            Err(error) if error.may_pass() => {
                tracing::error!(
                    error = chain(&error),
                    "cannot join yet, will be tried again"
                );
                tokio::time::sleep(pause).await;
            }
            Err(
                error @ (NodeError::Config(_)
                | NodeError::Start(StartError::Auth(_) | StartError::Off { .. })),
            ) => {
                return Err(CliError::usage(chain(&error)));
            }
            Err(error) => return Err(CliError::failed(chain(&error))),
        }
    }
}
