//! How nodes are reached: over the network by the server, in memory by the simulation.

use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use shoal_meta::{Assignment, NodeEntry};
use shoal_types::{Epoch, ShardId};

use crate::beat::Beat;
use crate::detector::Probe;

/// What a node that was told to lead says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Led {
    /// The epoch it leads in.
    pub epoch: Epoch,
    /// Offsets that it passed since it was told.
    pub records_replayed: u64,
    /// From its claim of the log until it served: then neither it nor its predecessor took writes.
    /// `None`: it led already.
    pub pause: Option<Duration>,
}

/// Why a node's beats are not heard.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHeard {
    /// It does not answer, or not any more.
    #[error("{0}")]
    Silent(String),
    /// It is there, and does not let this scheduler in.
    #[error("{0}")]
    NotLetIn(String),
}

/// The nodes of a cluster.
#[async_trait]
pub trait Nodes: Send + Sync + 'static {
    /// A node's beats; the stream ends, or gives an error and ends, when it breaks. The first beat
    /// tells everything.
    ///
    /// # Errors
    /// Why the node cannot be asked.
    async fn beats(
        &self,
        node: &NodeEntry,
    ) -> Result<BoxStream<'static, Result<Beat, String>>, NotHeard>;

    /// Whether the node is there.
    async fn probe(&self, node: &NodeEntry, within: Duration) -> Probe;

    /// Has a node take the role that an assignment gives it; returns when it has it. `None`: it
    /// does not lead.
    ///
    /// # Errors
    /// Why it has not, or that it did not answer.
    async fn obey(
        &self,
        node: &NodeEntry,
        shard: ShardId,
        assignment: &Assignment,
    ) -> Result<Option<Led>, String>;
}
