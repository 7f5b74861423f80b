//! Who answered a read.

use serde::{Deserialize, Serialize};
use shoal_types::NodeId;

/// Which replica answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServedBy {
    /// The node; `None`: this process, which is alone.
    pub node: Option<NodeId>,
    /// Whether it led the shard.
    pub leader: bool,
}

impl std::fmt::Display for ServedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = if self.leader { "leader" } else { "follower" };
        match self.node {
            Some(node) => write!(f, "{node}/{role}"),
            None => write!(f, "standalone/{role}"),
        }
    }
}
