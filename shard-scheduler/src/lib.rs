//! Who leads and follows which shard: what is seen of the nodes, and what is to be done about it.
//!
//! Decisions are pure functions of what is seen ([`View`]) and what operators want ([`Settings`]);
//! they ask no clock and nobody else:
//!
//! - [`Detector`]: which nodes are up.
//! - [`plan()`]: the next steps, each with its reason.
//! - [`next`]: what a [`Procedure`] does next.
//!
//! [`Conductor`] hears the nodes, asks those, and does what they say; [`serve`] has one of several
//! processes do so at a time.

mod beat;
mod conductor;
mod detector;
mod election;
mod nodes;
mod plan;
mod procedure;
mod records;
mod settings;
mod view;

pub use beat::{Beat, Replica as ReplicaReport, ReplicaBeat, Report, Reports, Serving};
pub use conductor::{
    Backends, Command, Conductor, ConductorLimits, Drained, Ended, Handle, NodeCounts,
    NodeOverview, Order, Ordered, Overview, Refused, ShardCounts,
};
pub use detector::{Detector, DetectorLimits, Probe, Seen};
pub use election::{Elected, serve};
pub use nodes::{Led, Nodes, NotHeard};
pub use plan::{Action, Rule, Step, idle_shards, plan, plan_failovers};
pub use procedure::{Act, NodeSight, Outcome, Procedure, ReplicaSight, Sight, State, Task, next};
pub use records::Marks;
pub use settings::{BalanceSettings, GroupSettings, LabelValue, Settings, SettingsError};
pub use view::{Health, Load, Node, Replica, ReplicaState, Shard, View};
