//! The scheduler role: one of several processes that say who leads and follows which shard
//! (DESIGN §3; the decisions are in `shoal_scheduler`).
//!
//! Order of the start: check who could reach us → connect to etcd → wait until a node has made the
//! cluster → the topology → bind and serve → register → stand for election. It holds no data: what it
//! knows is in etcd or told by the nodes.

pub mod desk;
mod http;
mod journal;
pub mod metrics;
mod nodes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use shoal_engine::FolderLock;
use shoal_meta::{
    ClusterIdentity, EtcdMetaStore, MetaStore, NodeRegistration, SchedulerEntry, Topology,
    read_cluster,
};
use shoal_scheduler::{Backends, ConductorLimits, DetectorLimits, Elected, Handle, serve};
use shoal_types::{Clock, SystemClock};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::auth::{Auth, check_listener};
use crate::config::{Config, ConfigError};
use crate::http::Forward;
use crate::node::NodeError;
use crate::node::links::Links;
use crate::standalone::{ADDRESSES_FILE, StartError, bind_needed, publish, remove_quietly};
use desk::Desk;
use nodes::FlightNodes;

/// Procedures that have ended and wait to be written into the journal.
const ENDED_MAX: usize = 100_000;

/// Pause before it is looked again whether a node has made the cluster.
const PAUSE: Duration = Duration::from_millis(200);

/// A running scheduler.
pub struct Scheduler {
    /// Where HTTP is served.
    pub http: SocketAddr,
    /// This start of it.
    pub process: Ulid,
    registration: NodeRegistration,
    stop: CancellationToken,
    leading: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    addresses_file: PathBuf,
    _lock: FolderLock,
}

impl Scheduler {
    /// Joins the cluster and stands for election.
    ///
    /// # Errors
    /// [`NodeError`]; nothing is left running.
    pub async fn start(config: &Config) -> Result<Self, NodeError> {
        let auth = Arc::new(Auth::from_config(config).map_err(StartError::from)?);
        if let Some(address) = config.scheduler_addr.0 {
            let checked = check_listener("scheduler.addr", address, &auth, config.insecure);
            checked.map_err(StartError::from)?;
        }
        config.check_reachable(&[("scheduler.addr", &config.scheduler_addr)])?;
        let of_meta = |source| NodeError::Meta {
            endpoints: config.meta_endpoints.clone(),
            source,
        };
        let meta = EtcdMetaStore::connect(config.etcd()?)
            .await
            .map_err(of_meta)?;
        let meta: Arc<dyn MetaStore> = Arc::new(meta);
        let identity = cluster_made(&*meta, &config.cluster_name)
            .await
            .map_err(of_meta)?;
        let topology = Topology::open(Arc::clone(&meta), &config.cluster_name);
        let topology = Arc::new(topology.await.map_err(of_meta)?);
        let links = Links::new(
            &identity.id.to_string(),
            auth.token(),
            Duration::from_millis(config.cluster_connect_timeout_ms),
        );
        let links = links.map_err(|why| {
            ConfigError::Together(format!("auth.token cannot be sent to nodes: {why}"))
        })?;
        let forward = Forward::new().map_err(StartError::Client)?;
        let why = "nobody could give this scheduler an order";
        let (listener, http) = bind_needed("scheduler.addr", &config.scheduler_addr, why).await?;
        let addresses_file = config.data_dir.join(ADDRESSES_FILE);
        let made = std::fs::create_dir_all(&config.data_dir);
        made.map_err(|error| NodeError::Folder {
            path: config.data_dir.display().to_string(),
            why: error.to_string(),
        })?;
        // A node's folder has addresses of its own.
        let lock = FolderLock::take(&config.data_dir)?;
        let process = Ulid::new();
        let stop = CancellationToken::new();
        let (handle, commands) = Handle::new();
        let (tell_elected, elected) = watch::channel(Elected::No);
        let metrics = metrics::Metrics::new();
        let journal = journal::Journal::new(
            Arc::clone(&topology),
            Arc::clone(&auth),
            Arc::clone(&metrics),
        );
        let journal = journal.map_err(StartError::Client)?;
        let (tell_ended, ended) = mpsc::channel(ENDED_MAX);
        let desk = Arc::new(Desk {
            process,
            handle,
            elected,
            topology: Arc::clone(&topology),
            auth: Arc::clone(&auth),
            forward,
            metrics,
        });
        let router = http::router(Arc::clone(&desk));
        let stopping = stop.clone();
        let served = tokio::spawn(async move {
            let serving =
                axum::serve(listener, router).with_graceful_shutdown(stopping.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "HTTP stopped");
            }
        });
        let entry = SchedulerEntry {
            process,
            http: config.advertised(http),
            started_ms: SystemClock.now_ms(),
            release: env!("CARGO_PKG_VERSION").into(),
        };
        let lease = Duration::from_secs(config.scheduler_lease_s);
        let registration = match topology.register_scheduler(&entry, lease).await {
            Ok(registration) => registration,
            Err(source) => {
                stop.cancel();
                return Err(of_meta(source));
            }
        };
        let addresses = json!({
            "http": http.to_string(),
            "scheduler": process.to_string(),
            "pid": std::process::id(),
        });
        if let Err(source) = publish(&addresses_file, &addresses) {
            stop.cancel();
            registration.end().await;
            return Err(StartError::Addresses {
                path: addresses_file,
                source,
            }
            .into());
        }
        let backends = Backends {
            meta,
            cluster: config.cluster_name.clone(),
            topology: Arc::clone(&topology),
            nodes: Arc::new(FlightNodes::new(Arc::new(links))),
            ended: tell_ended,
        };
        let limits = limits(config);
        let stopping = stop.clone();
        let leading = tokio::spawn(async move {
            let serving = serve(
                backends,
                entry,
                lease,
                limits,
                &SystemClock,
                commands,
                tell_elected,
            );
            tokio::select! {
                () = stopping.cancelled() => {}
                () = serving => {}
            }
        });
        let stopping = stop.clone();
        let noting = tokio::spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = journal.write(ended) => {}
            }
        });
        tracing::info!(%process, cluster = config.cluster_name, id = %identity.id, "joined");
        Ok(Self {
            http,
            process,
            registration,
            stop,
            leading,
            tasks: vec![served, noting],
            addresses_file,
            _lock: lock,
        })
    }

    /// Resolves when this process must end: what decides has broken off. Another scheduler leads
    /// then, and whoever runs this one starts it again.
    pub async fn broken(&mut self) -> String {
        match (&mut self.leading).await {
            Err(error) => format!("what decides has broken off: {error}"),
            Ok(()) => "what decides has ended".to_owned(),
        }
    }

    /// Stops; another one leads at once if this one led.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks.into_iter().chain([self.leading]) {
            // One that panicked has said so.
            let _ = task.await;
        }
        self.registration.end().await;
        remove_quietly(&self.addresses_file);
    }
}

fn limits(config: &Config) -> ConductorLimits {
    ConductorLimits {
        detector: DetectorLimits {
            suspect_after_ms: config.scheduler_suspect_after_ms,
            probe_timeout_ms: config.scheduler_probe_timeout_ms,
            probes: u32::try_from(config.scheduler_probes).unwrap_or(u32::MAX),
            suspect_max_ms: config.scheduler_suspect_max_ms,
        },
        round: Duration::from_millis(config.scheduler_round_ms),
        ended_max: usize::try_from(config.scheduler_procedures_max).unwrap_or(usize::MAX),
        ..ConductorLimits::default()
    }
}

/// Waits until a node has made the cluster.
async fn cluster_made(
    meta: &dyn MetaStore,
    cluster: &str,
) -> Result<ClusterIdentity, shoal_meta::MetaError> {
    let mut waited = false;
    loop {
        if let Some(identity) = read_cluster(meta, cluster).await? {
            return Ok(identity);
        }
        if !std::mem::replace(&mut waited, true) {
            tracing::info!(
                cluster,
                "waiting for the first node, which makes the cluster"
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}
