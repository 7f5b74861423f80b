//! What a node's requests need of its cluster.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use shoal_engine::ObjectTraffic;
use shoal_meta::{ClusterIdentity, Topology};
use shoal_types::NodeId;
use shoal_wal::kafka::KafkaLogStore;

use super::orders::Orders;
use super::roles::Roles;
use super::service::Requests;

/// What a node's requests need of its cluster.
pub struct Cluster {
    /// This node.
    pub me: NodeId,
    /// The cluster's name and id.
    pub identity: ClusterIdentity,
    /// Nodes and assignments.
    pub topology: Arc<Topology>,
    /// Roles of this node.
    pub roles: Arc<Roles>,
    /// What operators order.
    pub orders: Orders,
    /// Requests to the object store.
    pub objects: Arc<ObjectTraffic>,
    /// The log.
    pub logs: Arc<KafkaLogStore>,
    /// Requests of other nodes.
    pub requests: Arc<Requests>,
    pub(super) grpc: OnceLock<SocketAddr>,
    pub(super) joined: AtomicBool,
}

impl Cluster {
    /// Whether others know of this node and its replicas were opened.
    #[must_use]
    pub fn has_joined(&self) -> bool {
        self.joined.load(Ordering::Relaxed)
    }

    /// Where other nodes reach this one, once it listens.
    #[must_use]
    pub fn grpc(&self) -> Option<SocketAddr> {
        self.grpc.get().copied()
    }
}
