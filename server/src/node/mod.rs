//! The node role: one of several processes over one copy of data (DESIGN §1, §2).
//!
//! Order of the start: check who could reach us → lock the data folder and read this node's id →
//! connect to etcd → try the object store → join the cluster (which names its bucket and log) →
//! claim the bucket → the topology → the database, which serves nothing yet → bind and serve →
//! register, which tells others the addresses → take the roles that the topology assigns, and
//! follow its changes. A shard that nobody was ever assigned to is assigned to the node that finds
//! it so.
//!
//! Order of the stop: the registration ends, so that nobody is sent here → requests under way
//! finish → the database closes. The assignments stay: they are an operator's (or the scheduler's)
//! to change.

pub mod beats;
pub mod cluster;
mod identity;
pub mod links;
pub mod metrics;
pub mod orders;
pub mod peers;
pub mod reach;
pub mod repair;
pub mod roles;
pub mod service;
mod upkeep;
pub mod wire;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use shoal_engine::{Backends, Database, EngineError, FolderLock, RemoteStore};
use shoal_meta::{
    AssignError, Assignment, Configured, EtcdMetaStore, Formats, MetaError, MetaStore, NodeEntry,
    NodeRegistration, Registered, Topology, join_cluster,
};
use shoal_query::SqlPredicate;
use shoal_types::{Clock, NodeId, Retry, SystemClock};
use shoal_wal::kafka::KafkaLogStore;
use shoal_wal::log::LogError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use crate::auth::Auth;
use crate::config::{Config, ConfigError};
use crate::standalone::{Standalone, StartError, bind_needed, check_listeners};
use beats::Pulse;
use cluster::Cluster;
use links::Links;
use orders::Orders;
use peers::Router;
use reach::Reach;
use roles::Roles;
use service::{NodeService, Requests, ServiceSettings};
use wire::{Answer, Ask};

/// Shards that the first node of a cluster makes, unless configured.
const SHARDS_DEFAULT: usize = 4;
/// How long another process of this node's id may take to answer.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// What is read from the object store at a time: a request costs more than these bytes.
const REMOTE_BLOCK_BYTES: usize = 128 << 10;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// As for a standalone process.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Keys are missing or do not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// etcd.
    #[error("etcd ({endpoints}): {source}")]
    Meta {
        /// `meta.endpoints`.
        endpoints: String,
        /// Why.
        source: MetaError,
    },
    /// The object store.
    #[error("object store: {0}")]
    Objects(EngineError),
    /// The log's settings.
    #[error("log: {0}")]
    Log(String),
    /// The log.
    #[error("log: {0}")]
    Brokers(LogError),
    /// The data folder.
    #[error("data folder {path}: {why}")]
    Folder {
        /// The folder.
        path: String,
        /// Why.
        why: String,
    },
    /// The database.
    #[error("cannot open the database: {0}")]
    Database(#[from] EngineError),
    /// Another process is this node, and answers.
    #[error(
        "node {node} is running at {address}: a data folder must not be copied while its node lives; empty this one, so that it becomes a node of its own"
    )]
    Running {
        /// The node.
        node: NodeId,
        /// Where it answers.
        address: String,
    },
    /// Another process is this node.
    #[error("another process has registered as node {0}: two must not share a data folder's id")]
    Overtaken(NodeId),
}

impl NodeError {
    /// Whether another try may succeed without anybody's help: something that the node needs does
    /// not answer.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        let retry = match self {
            Self::Meta { source, .. } => source.retry(),
            Self::Objects(error) | Self::Database(error) => error.retry(),
            Self::Brokers(LogError::Io(_)) => Retry::Safe,
            _ => Retry::Never,
        };
        retry != Retry::Never
    }
}

/// A running node.
pub struct Node {
    serving: Standalone,
    /// Where HTTP is served.
    pub http: Option<SocketAddr>,
    /// Where PostgreSQL is served.
    pub postgres: Option<SocketAddr>,
    /// Where other nodes reach it.
    pub grpc: SocketAddr,
    cluster: Arc<Cluster>,
    registration: NodeRegistration,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _lock: FolderLock,
}

impl Node {
    /// Joins the cluster and begins to serve.
    ///
    /// # Errors
    /// [`NodeError`]; nothing is left running.
    pub async fn start(config: &Config) -> Result<Self, NodeError> {
        let auth = Arc::new(Auth::from_config(config).map_err(StartError::from)?);
        check_listeners(config, &auth, true)?;
        config.check_reachable(&[
            ("grpc.addr", &config.grpc_addr),
            ("http.addr", &config.http_addr),
        ])?;
        let labels = config.labels()?;
        let (etcd, kafka, objects) = (config.etcd()?, config.kafka()?, config.objects()?);
        let folder = |why: String| NodeError::Folder {
            path: config.data_dir.display().to_string(),
            why,
        };
        std::fs::create_dir_all(&config.data_dir).map_err(|e| folder(e.to_string()))?;
        let lock = FolderLock::take(&config.data_dir)?;
        let me = identity::read_or_make(&config.data_dir).map_err(folder)?;

        let of_meta = |source| NodeError::Meta {
            endpoints: config.meta_endpoints.clone(),
            source,
        };
        let meta = EtcdMetaStore::connect(etcd).await.map_err(of_meta)?;
        let meta: Arc<dyn MetaStore> = Arc::new(meta);
        let remote = RemoteStore::open(&objects)
            .await
            .map_err(NodeError::Objects)?;
        let logs = KafkaLogStore::open(kafka).map_err(|e| NodeError::Log(e.to_string()))?;
        let logs = Arc::new(logs);
        let brokers = logs.cluster_id().await.map_err(NodeError::Brokers)?;
        let configured = Configured {
            objects: objects.location(),
            logs: brokers,
        };
        let now_ms = SystemClock.now_ms();
        let identity = join_cluster(&*meta, &config.cluster_name, &configured, now_ms)
            .await
            .map_err(of_meta)?;
        remote
            .claim(&config.cluster_name, &identity.id.to_string())
            .await
            .map_err(NodeError::Objects)?;
        let topology = Topology::open(Arc::clone(&meta), &config.cluster_name);
        let topology = Arc::new(topology.await.map_err(of_meta)?);
        let links = Links::new(
            &identity.id.to_string(),
            auth.token(),
            Duration::from_millis(config.cluster_connect_timeout_ms),
        );
        let links = Arc::new(links.map_err(|why| {
            ConfigError::Together(format!("auth.token cannot be sent to other nodes: {why}"))
        })?);
        refuse_a_second(me, &topology, &links).await?;
        let reach = Reach::new(me, Arc::clone(&links), Arc::clone(&topology));
        let router = Router::new(
            me,
            Arc::clone(&topology),
            Arc::clone(&links),
            Arc::clone(&reach),
            Duration::from_millis(config.wal_write_timeout_ms),
        );
        let backends = Backends {
            logs: Arc::clone(&logs) as _,
            store: Arc::clone(&remote.store),
            meta: Arc::clone(&meta),
            clock: Arc::new(SystemClock),
            predicate: Some(Arc::new(SqlPredicate::default())),
            peers: Some(Arc::new(router)),
        };
        let mut engine = config.engine();
        if engine.shards == 0 {
            engine.shards = SHARDS_DEFAULT;
        }
        engine.cache_block_bytes = REMOTE_BLOCK_BYTES;
        engine.cache_disk = config.cache_disk();
        let db = Database::open_node(engine, backends).await?;
        let roles = Roles::new(me, Arc::clone(&db), Arc::clone(&topology));
        let cluster = Arc::new(Cluster {
            me,
            orders: Orders::new(
                me,
                Arc::clone(&db),
                Arc::clone(&topology),
                Arc::clone(&roles),
                links,
            ),
            identity,
            topology,
            roles,
            objects: Arc::clone(&remote.traffic),
            logs,
            requests: Arc::new(Requests::new(
                usize::try_from(config.grpc_requests_max).unwrap_or(usize::MAX),
            )),
            grpc: OnceLock::new(),
            joined: AtomicBool::new(false),
        });
        let mut starting = Starting {
            config,
            auth,
            db: Arc::clone(&db),
            cluster,
            labels,
            reach,
            lock: Some(lock),
            process: Ulid::new(),
        };
        match starting.serve().await {
            Ok(node) => Ok(node),
            Err(error) => {
                db.shutdown().await;
                Err(error)
            }
        }
    }

    /// What this node knows of its cluster.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Resolves when this process must stop: another one has registered as this node.
    pub async fn overtaken(&self) -> NodeError {
        let mut state = self.registration.state();
        match state.wait_for(|s| *s == Registered::Overtaken).await {
            Ok(_) => NodeError::Overtaken(self.cluster.me),
            // The keeper ended with the registration, which only `stop` does.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops: see the module's head.
    pub async fn stop(self) {
        self.registration.end().await;
        self.stop.cancel();
        self.serving.stop().await;
        for task in self.tasks {
            // One that panicked has said so.
            let _ = task.await;
        }
        self.cluster.logs.close().await;
    }
}

/// A copied data folder has the id of the node that it was copied from. That one is left alone; one
/// that does not answer any more is this node's last start, and is followed.
async fn refuse_a_second(me: NodeId, topology: &Topology, links: &Links) -> Result<(), NodeError> {
    let snapshot = topology.snapshot();
    let Some(entry) = snapshot.nodes.get(&me) else {
        return Ok(());
    };
    let asked = links.ask(&entry.grpc, &Ask::Process);
    match tokio::time::timeout(ALIVE_TIMEOUT, asked).await {
        Ok(Ok(Ok(Answer::Process(process)))) if process == entry.process => {
            Err(NodeError::Running {
                node: me,
                address: entry.grpc.clone(),
            })
        }
        _ => Ok(()),
    }
}

/// What is there before the node serves.
struct Starting<'a> {
    config: &'a Config,
    auth: Arc<Auth>,
    db: Arc<Database>,
    cluster: Arc<Cluster>,
    labels: std::collections::BTreeMap<String, String>,
    reach: Arc<Reach>,
    lock: Option<FolderLock>,
    process: Ulid,
}

impl Starting<'_> {
    async fn serve(&mut self) -> Result<Node, NodeError> {
        let (config, cluster) = (self.config, &self.cluster);
        let why = "other nodes could not reach this one";
        let (listener, grpc) = bind_needed("grpc.addr", &config.grpc_addr, why).await?;
        cluster.grpc.get_or_init(|| grpc);
        let stop = CancellationToken::new();
        let service = NodeService::server(
            Arc::clone(&self.db),
            Arc::clone(&cluster.roles),
            Arc::clone(&self.auth),
            cluster.identity.id.to_string(),
            Arc::clone(&cluster.requests),
            Pulse::start(
                Arc::clone(&self.db),
                Arc::clone(&cluster.roles),
                Arc::clone(&cluster.logs),
                Arc::clone(&self.reach),
                self.process,
                &stop,
            ),
            &ServiceSettings {
                process: self.process,
                view_bytes_max: config.cluster_view_bytes_max.0,
                write_bytes_max: config.http_ingest_bytes_max.usize(),
            },
        );
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).map(|socket| {
            let socket = socket?;
            socket.set_nodelay(true)?;
            Ok::<_, std::io::Error>(socket)
        });
        let mut tasks = Vec::new();
        let stopping = stop.clone();
        tasks.push(tokio::spawn(async move {
            let served = tonic::transport::Server::builder()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(16 << 20)
                .add_service(service)
                .serve_with_incoming_shutdown(incoming, stopping.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "gRPC stopped");
            }
        }));
        let serving = Standalone::serve(
            config,
            Arc::clone(&self.auth),
            Arc::clone(&self.db),
            Some(Arc::clone(cluster)),
        );
        let serving = match serving.await {
            Ok(serving) => serving,
            Err(error) => {
                stop.cancel();
                return Err(error.into());
            }
        };
        let (http, postgres) = (serving.http, serving.postgres);
        let entry = self.entry(http, postgres, grpc);
        let ttl = Duration::from_secs(config.cluster_registration_ttl_s);
        let registered = async {
            self.first_assignments().await?;
            let registration = cluster.topology.register_node(&entry, ttl).await;
            registration.map_err(|source| self.of_meta(source))
        };
        let registration = match registered.await {
            Ok(registration) => registration,
            Err(error) => {
                stop.cancel();
                serving.stop().await;
                return Err(error);
            }
        };
        tasks.push(cluster.roles.follow(&stop));
        cluster.roles.settle().await;
        cluster.joined.store(true, Ordering::Relaxed);
        tracing::info!(
            node = %cluster.me, cluster = self.config.cluster_name, id = %cluster.identity.id,
            "joined"
        );
        Ok(Node {
            serving,
            http,
            postgres,
            grpc,
            cluster: Arc::clone(cluster),
            registration,
            stop,
            tasks,
            _lock: self.lock.take().expect("a node starts once"),
        })
    }

    fn of_meta(&self, source: MetaError) -> NodeError {
        NodeError::Meta {
            endpoints: self.config.meta_endpoints.clone(),
            source,
        }
    }

    fn entry(
        &self,
        http: Option<SocketAddr>,
        postgres: Option<SocketAddr>,
        grpc: SocketAddr,
    ) -> NodeEntry {
        let shown = |address| self.config.advertised(address);
        NodeEntry {
            id: self.cluster.me,
            process: self.process,
            role: "node".into(),
            http: http.map(shown).unwrap_or_default(),
            pg: postgres.map(shown).unwrap_or_default(),
            grpc: shown(grpc),
            labels: self.labels.clone(),
            started_ms: SystemClock.now_ms(),
            release: env!("CARGO_PKG_VERSION").into(),
            reads: Formats {
                record: u16::from(shoal_wal::record::codec::FORMAT_VERSION),
                manifest: shoal_engine::manifest::format::FORMAT_VERSION,
            },
        }
    }

    /// Takes the lead of shards that were never assigned to anybody.
    async fn first_assignments(&self) -> Result<(), NodeError> {
        let topology = &self.cluster.topology;
        for shard in self.db.shard_ids() {
            if topology.snapshot().assignments.contains_key(&shard) {
                continue;
            }
            let mine = Assignment {
                version: 1,
                term: 1,
                leader: Some(self.cluster.me),
                predecessor: None,
                followers: Vec::new(),
                topic: String::new(),
                changed_ms: SystemClock.now_ms(),
            };
            match topology.assign(shard, 0, &mine).await {
                Ok(()) => tracing::info!(%shard, "nobody had it; this node leads it"),
                // Another node was quicker.
                Err(AssignError::Stale { .. }) => {}
                Err(AssignError::Meta(source)) => return Err(self.of_meta(source)),
                Err(AssignError::Invalid(what)) => {
                    return Err(EngineError::Invalid(what).into());
                }
            }
        }
        Ok(())
    }
}
