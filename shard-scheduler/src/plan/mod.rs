//! What is to be done next: a pure function of what is seen and what is wanted.
//!
//! In this order, and at most one step a shard:
//!
//! 1. a shard without a leader that works gets one ([`failover`]);
//! 2. replicas that are missing are added, ones too many removed ([`replicas`]);
//! 3. nodes that are being drained give up what others have taken over ([`drain`]);
//! 4. leaders go to where settings want them ([`preference`]);
//! 5. replicas go where they are farther apart ([`spread`]);
//! 6. load is evened out ([`balance`]).
//!
//! Steps of 1 are limited in number alone: nobody may write until they are done. The others share
//! the places that each node has for changes.

mod balance;
mod board;
mod drain;
mod failover;
mod placement;
mod preference;
mod replicas;
mod spread;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use shoal_types::{NodeId, ShardId};

use crate::settings::Settings;
use crate::view::View;
use board::Board;

/// One change of who serves a shard.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// The shard.
    pub shard: ShardId,
    /// What is done.
    pub action: Action,
    /// What it is for.
    pub rule: Rule,
    /// Why, for people.
    pub why: String,
}

/// What a step is for, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A shard has no leader that works.
    FailOver,
    /// Replicas are missing, or too many.
    Replicas,
    /// A node is being drained.
    Drain,
    /// Leaders are wanted elsewhere.
    Preference,
    /// Replicas can be farther apart.
    Spread,
    /// Load is uneven.
    Balance,
}

impl Rule {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FailOver => "fail-over",
            Self::Replicas => "replicas",
            Self::Drain => "drain",
            Self::Preference => "preference",
            Self::Spread => "spread",
            Self::Balance => "balance",
        }
    }
}

/// What is done with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A node leads in the place of one that does not work: a follower, or one that has no replica
    /// yet and opens it from its newest manifest and log.
    FailOver {
        /// Who leads next.
        to: NodeId,
    },
    /// A follower leads, the leader follows.
    Promote {
        /// Who leads next.
        to: NodeId,
    },
    /// A node follows, too.
    AddFollower {
        /// Which.
        to: NodeId,
    },
    /// A node follows no more.
    RemoveFollower {
        /// Which.
        node: NodeId,
    },
    /// A replica, and the lead if it has it, goes to another node.
    Move {
        /// Who has it.
        from: NodeId,
        /// Who gets it.
        to: NodeId,
    },
}

/// The next steps. An empty plan means that nothing is to be done, or that what is to be done must
/// wait for changes that are under way.
#[must_use]
pub fn plan(view: &View, settings: &Settings) -> Vec<Step> {
    let mut board = Board::new(view, settings);
    failover::plan(&mut board);
    board.plans(Rule::Replicas);
    replicas::plan(&mut board);
    board.plans(Rule::Drain);
    drain::plan(&mut board);
    board.plans(Rule::Preference);
    preference::plan(&mut board);
    if settings.balance.on {
        board.plans(Rule::Spread);
        spread::plan(&mut board);
        board.plans(Rule::Balance);
        balance::plan(&mut board);
    }
    board.into_steps()
}

/// Only who leads where no leader works: for the shards of a node that has just gone down.
#[must_use]
pub fn plan_failovers(view: &View, settings: &Settings) -> Vec<Step> {
    let mut board = Board::new(view, settings);
    failover::plan(&mut board);
    board.into_steps()
}

/// Shards that are told at most.
const IDLE_MAX: usize = 64;
/// So many cores more than the least are no difference.
const IDLE_WITHIN: f64 = 0.05;

/// The shards where a new table costs others least: those with the least load, on nodes with the
/// least load, at most 64 of them.
#[must_use]
pub fn idle_shards(view: &View) -> Vec<ShardId> {
    let mut shares: HashMap<NodeId, f64> = HashMap::new();
    for shard in &view.shards {
        for replica in &shard.replicas {
            *shares.entry(replica.node).or_default() += board::cost(shard, replica.node);
        }
    }
    let cores: HashMap<NodeId, f64> = view
        .nodes
        .iter()
        .filter(|n| n.takes_leads())
        .map(|n| (n.id, n.cores.max(f64::MIN_POSITIVE)))
        .collect();
    let able = view.shards.iter().filter(|s| !s.is_damaged());
    let costs = able.filter_map(|shard| {
        let leader = shard.leader?;
        let share = shares.get(&leader)? / cores.get(&leader)?;
        Some((shard.load.of_leader() + share, shard.id))
    });
    let mut costs: Vec<(f64, ShardId)> = costs.collect();
    let least = costs.iter().map(|c| c.0).fold(f64::MAX, f64::min);
    costs.retain(|(cost, _)| *cost <= least + IDLE_WITHIN);
    if costs.len() > IDLE_MAX {
        costs.select_nth_unstable_by(IDLE_MAX, |a, b| a.0.total_cmp(&b.0));
        costs.truncate(IDLE_MAX);
    }
    let mut idle: Vec<ShardId> = costs.into_iter().map(|(_, id)| id).collect();
    idle.sort_unstable();
    idle
}
