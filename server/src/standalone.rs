//! The standalone role: one process that is the whole database.
//!
//! Order of the start: check who could reach us → open the data folder (its lock refuses a second
//! process) → bind → publish the addresses → serve. Order of the stop: stop accepting and say so
//! on `/health/ready` → let requests under way finish, for a bounded time → close the database.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use shoal_engine::{Database, EngineError};
use shoal_query::{QueryEngine, QueryError, SqlPredicate};
use shoal_types::SystemClock;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::auth::{Auth, AuthError, check_listener};
use crate::config::{Config, ListenAddr};
use crate::http::{self, AppState, Forward, Intake};
use crate::metrics::{EngineCollector, Metrics};
use crate::node::cluster::Cluster;
use crate::node::metrics::ClusterCollector;
use crate::postgres::{self, PostgresConfig};

/// File in the data folder that names the addresses of the process that serves it.
pub const ADDRESSES_FILE: &str = "addresses.json";

/// Why the process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Open to the network, or the token cannot be read.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The data folder.
    #[error("cannot open the data folder {path}: {source}")]
    Open {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: Box<EngineError>,
    },
    /// The query layer.
    #[error("cannot start the query layer: {0}")]
    Query(#[from] QueryError),
    /// The client that hands requests on.
    #[error("cannot make an HTTP client: {0}")]
    Client(String),
    /// An address.
    #[error("cannot listen on {key} = {address}: {source}")]
    Bind {
        /// The key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// An address that is needed.
    #[error("{key} is off: {why}")]
    Off {
        /// The key.
        key: &'static str,
        /// What would not work.
        why: &'static str,
    },
    /// The addresses file.
    #[error("cannot write {path}: {source}")]
    Addresses {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A running standalone process.
pub struct Standalone {
    state: Arc<AppState>,
    /// Where HTTP is served.
    pub http: Option<SocketAddr>,
    /// Where PostgreSQL is served.
    pub postgres: Option<SocketAddr>,
    shutdown: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    addresses_file: PathBuf,
    stop_timeout: Duration,
}

impl Standalone {
    /// Opens the data folder and begins to serve.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let auth = Arc::new(Auth::from_config(config)?);
        check_listeners(config, &auth, false)?;
        let db = Database::open_embedded(
            &config.data_dir,
            config.engine(),
            Arc::new(SystemClock),
            Some(Arc::new(SqlPredicate::default())),
        )
        .await
        .map_err(|source| StartError::Open {
            path: config.data_dir.clone(),
            source: Box::new(source),
        })?;
        match Self::serve(config, auth, Arc::clone(&db), None).await {
            Ok(running) => Ok(running),
            Err(error) => {
                db.shutdown().await;
                Err(error)
            }
        }
    }

    /// Serves an open database; `cluster` where the process is one node of several.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running, and the database is open still.
    pub(crate) async fn serve(
        config: &Config,
        auth: Arc<Auth>,
        db: Arc<Database>,
        cluster: Option<Arc<Cluster>>,
    ) -> Result<Self, StartError> {
        let query = QueryEngine::new(Arc::clone(&db), config.query())?;
        let http_listener = bind("http.addr", &config.http_addr).await?;
        let postgres_listener = bind("postgres.addr", &config.postgres_addr).await?;
        let mut metrics = Metrics::new();
        let intake = Arc::new(Intake::new(config));
        metrics.register_collector(Box::new(EngineCollector::new(
            Arc::clone(&db),
            Arc::clone(&query),
            Arc::clone(&intake),
            config,
        )));
        if let Some(cluster) = &cluster {
            let collector = ClusterCollector::new(Arc::clone(cluster), config);
            metrics.register_collector(Box::new(collector));
        }
        let state = Arc::new(AppState {
            db,
            cluster,
            forward: Forward::new().map_err(StartError::Client)?,
            query: Arc::clone(&query),
            auth: Arc::clone(&auth),
            intake,
            metrics,
            stopping: AtomicBool::new(false),
            connections_max: usize::try_from(config.http_connections_max).unwrap_or(usize::MAX),
            record_rows_max: usize::try_from(config.wal_record_rows_max).unwrap_or(usize::MAX),
            record_bytes_max: config.wal_record_bytes_max.usize(),
            line_protocol: config.line_protocol(),
        });
        let shutdown = CancellationToken::new();
        let mut running = Self {
            http: local(http_listener.as_ref()),
            postgres: local(postgres_listener.as_ref()),
            state: Arc::clone(&state),
            shutdown: shutdown.clone(),
            servers: Vec::new(),
            addresses_file: config.data_dir.join(ADDRESSES_FILE),
            stop_timeout: Duration::from_millis(config.http_stop_timeout_ms),
        };
        if let Some(listener) = http_listener {
            let (state, shutdown) = (Arc::clone(&state), shutdown.clone());
            running.servers.push(tokio::spawn(async move {
                if let Err(error) = http::serve(listener, state, shutdown).await {
                    tracing::error!(%error, "HTTP stopped");
                }
            }));
        }
        if let Some(listener) = postgres_listener {
            let limits = PostgresConfig {
                connections_max: usize::try_from(config.postgres_connections_max)
                    .unwrap_or(usize::MAX),
                startup_connections_max: usize::try_from(config.postgres_startup_connections_max)
                    .unwrap_or(usize::MAX),
            };
            let serving = postgres::serve(listener, query, auth, limits, shutdown.clone());
            running.servers.push(tokio::spawn(async move {
                serving.await;
            }));
        }
        // Last: whoever finds the file finds a process that answers.
        if let Err(source) = running.publish_addresses() {
            let path = running.addresses_file.clone();
            shutdown.cancel();
            return Err(StartError::Addresses { path, source });
        }
        Ok(running)
    }

    fn publish_addresses(&self) -> std::io::Result<()> {
        let text = |address: Option<SocketAddr>| address.map(|a| a.to_string());
        let mut body = json!({
            "http": text(self.http),
            "postgres": text(self.postgres),
            "pid": std::process::id(),
        });
        if let Some(cluster) = &self.state.cluster {
            body["grpc"] = text(cluster.grpc()).into();
            body["node"] = cluster.me.to_string().into();
        }
        publish(&self.addresses_file, &body)
    }

    /// Stops: see the module's head.
    pub async fn stop(mut self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        self.shutdown.cancel();
        let finished = async {
            for server in &mut self.servers {
                if let Err(error) = server.await {
                    tracing::error!(%error, "a server task failed");
                }
            }
        };
        if tokio::time::timeout(self.stop_timeout, finished)
            .await
            .is_err()
        {
            tracing::warn!(
                "requests are still under way after http.stop_timeout_ms; they are cut off"
            );
            for server in &self.servers {
                server.abort();
            }
        }
        self.state.db.shutdown().await;
        remove_quietly(&self.addresses_file);
    }
}

/// Writes an addresses file; a reader never sees half of it.
pub(crate) fn publish(file: &Path, body: &serde_json::Value) -> std::io::Result<()> {
    let aside = file.with_extension("json.new");
    std::fs::write(&aside, format!("{body}\n"))?;
    std::fs::rename(&aside, file)
}

pub(crate) fn remove_quietly(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, path = %path.display(), "cannot remove the addresses file");
    }
}

/// Refuses addresses that the network reaches, unless a token is set or `--insecure` was given.
///
/// # Errors
/// [`AuthError::OpenToNetwork`].
pub(crate) fn check_listeners(
    config: &Config,
    auth: &Auth,
    is_node: bool,
) -> Result<(), StartError> {
    let grpc = ("grpc.addr", &config.grpc_addr);
    let both = [
        ("http.addr", &config.http_addr),
        ("postgres.addr", &config.postgres_addr),
    ];
    for (key, address) in both.into_iter().chain(is_node.then_some(grpc)) {
        if let Some(address) = address.0 {
            check_listener(key, address, auth, config.insecure)?;
        }
    }
    if config.insecure && !auth.required() {
        tracing::warn!("--insecure: whoever reaches this process may read and write everything");
    }
    Ok(())
}

pub(crate) async fn bind(
    key: &'static str,
    address: &ListenAddr,
) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = address.0 else {
        return Ok(None);
    };
    TcpListener::bind(address)
        .await
        .map(Some)
        .map_err(|source| StartError::Bind {
            key,
            address,
            source,
        })
}

/// As [`bind`], and the address; an address that is switched off is an error that says `why` not.
pub(crate) async fn bind_needed(
    key: &'static str,
    address: &ListenAddr,
    why: &'static str,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let Some(listener) = bind(key, address).await? else {
        return Err(StartError::Off { key, why });
    };
    let bound = listener.local_addr();
    let bound = bound.map_err(|source| StartError::Bind {
        key,
        address: address.0.unwrap_or_else(|| ([127, 0, 0, 1], 0).into()),
        source,
    })?;
    Ok((listener, bound))
}

fn local(listener: Option<&TcpListener>) -> Option<SocketAddr> {
    listener.and_then(|l| l.local_addr().ok())
}
