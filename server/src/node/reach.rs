//! Which other nodes this one wants to reach and does not: it says so in its beats, and sends reads
//! there last. A network may cut nodes from each other alone, which no scheduler sees from where it
//! is.
//!
//! Nodes that were called lately are pinged, and those that did not answer until they do or are gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use shoal_meta::{NodeEntry, Topology};
use shoal_types::NodeId;
use tokio::time::Instant;

use super::links::Links;
use super::wire::Ask;

/// Pause between two pings of a node, and how long its answer may take.
const EVERY: Duration = Duration::from_millis(400);
const WITHIN: Duration = Duration::from_millis(600);
/// A node without an answer for so long, which is two pings, is not reached.
const SILENT: Duration = Duration::from_millis(1_000);
/// Nodes that were called within this time are pinged.
const LATELY: Duration = Duration::from_secs(2);
/// Pings at a time.
const PINGS_MAX: usize = 64;

/// What pings have told.
#[derive(Debug)]
pub struct Reach {
    me: NodeId,
    links: Arc<Links>,
    topology: Arc<Topology>,
    /// Nodes that did not answer, and since when.
    silent: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Reach {
    /// Nothing is known.
    #[must_use]
    pub fn new(me: NodeId, links: Arc<Links>, topology: Arc<Topology>) -> Arc<Self> {
        Arc::new(Self {
            me,
            links,
            topology,
            silent: Mutex::default(),
        })
    }

    /// Nodes that are not reached.
    #[must_use]
    pub fn unreached(&self) -> Vec<NodeId> {
        let silent = self.silent.lock();
        let silent = silent.iter().filter(|(_, since)| since.elapsed() >= SILENT);
        silent.map(|(node, _)| *node).collect()
    }

    /// Whether a node did not answer the last ping.
    #[must_use]
    pub fn is_silent(&self, node: NodeId) -> bool {
        self.silent.lock().contains_key(&node)
    }

    /// Pings, again and again.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let snapshot = self.topology.snapshot();
            let others = snapshot.nodes.values().filter(|n| n.id != self.me);
            let wanted: Vec<&NodeEntry> = others
                .filter(|n| {
                    let used = self.links.was_used(&n.grpc, LATELY);
                    !n.grpc.is_empty() && (used || self.is_silent(n.id))
                })
                .collect();
            for some in wanted.chunks(PINGS_MAX) {
                join_all(some.iter().map(|node| self.ping(node))).await;
            }
            self.silent
                .lock()
                .retain(|node, _| snapshot.nodes.contains_key(node));
        }
    }

    async fn ping(&self, node: &NodeEntry) {
        let sent = Instant::now();
        let asked = self.links.ping(&node.grpc, &Ask::Process);
        match tokio::time::timeout(WITHIN, asked).await {
            Ok(Ok(_)) => {
                if let Some(since) = self.silent.lock().remove(&node.id)
                    && since.elapsed() >= SILENT
                {
                    tracing::info!(node = %node.id, "reached again");
                }
            }
            unanswered => {
                if unanswered.is_err() {
                    // What was lost on the way is repeated late: a new connection is quicker.
                    self.links.forget(&node.grpc);
                }
                let since = *self.silent.lock().entry(node.id).or_insert(sent);
                if since.elapsed() >= SILENT && since.elapsed() < SILENT + EVERY + WITHIN {
                    tracing::warn!(node = %node.id, "not reached");
                }
            }
        }
    }
}
