//! Where a replica goes: as far apart from the others as labels allow, then to the least loaded.

use std::cmp::Ordering;

use super::board::{Board, NodeIndex};
use crate::view::{Node, Shard};

/// How many pairs of replicas share the value of each label that they should differ in, 16 bits a
/// label, the most important one highest: lower is farther apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Closeness(u128);

/// Of replicas on these nodes. That neither of two nodes has a label is no difference.
pub(super) fn closeness(
    board: &Board<'_>,
    shard: &Shard,
    nodes: impl Iterator<Item = NodeIndex> + Clone,
) -> Closeness {
    let mut all = 0;
    for label in board.spread(shard) {
        let mut pairs = 0_u128;
        for (i, node) in nodes.clone().enumerate() {
            let value = board.label(node, *label);
            let same = nodes
                .clone()
                .take(i)
                .filter(|n| board.label(*n, *label) == value);
            pairs += same.count() as u128;
        }
        all = all << 16 | pairs;
    }
    Closeness(all)
}

/// What no placement of a shard's replicas is below.
pub(super) fn farthest_possible(board: &Board<'_>, shard: &Shard) -> Closeness {
    let replicas = shard.replicas.len();
    let mut all = 0;
    for label in board.spread(shard) {
        let values = board.distinct(*label).max(1);
        let pairs = |n: usize| n * n.saturating_sub(1) / 2;
        // As even as it can be: some values have one replica more than the others.
        let (each, more) = (replicas / values, replicas % values);
        let least = more * pairs(each + 1) + (values - more) * pairs(each);
        all = all << 16 | least as u128;
    }
    Closeness(all)
}

/// The nodes of a shard's replicas that count.
pub(super) fn nodes_of(
    board: &Board<'_>,
    shard: &Shard,
    counts: impl Fn(&Node) -> bool,
) -> Vec<NodeIndex> {
    let replicas = shard.replicas.iter().filter_map(|r| board.index(r.node));
    replicas.filter(|n| counts(board.node(*n))).collect()
}

/// The best node for one more replica beside those on `beside`; `urgent`: whatever else it does.
pub(super) fn choose(
    board: &Board<'_>,
    shard: &Shard,
    beside: &[NodeIndex],
    urgent: bool,
) -> Option<NodeIndex> {
    let mut best: Option<(Closeness, f64, NodeIndex)> = None;
    for (i, node) in board.view.nodes.iter().enumerate() {
        if !node.takes_replicas()
            || !(urgent || board.has_place(i))
            || shard.replica(node.id).is_some()
        {
            continue;
        }
        let close = closeness(board, shard, beside.iter().copied().chain([i]));
        let share = board.share(i);
        let better = best.as_ref().is_none_or(|(least, least_share, _)| {
            close.cmp(least).then(share.total_cmp(least_share)) == Ordering::Less
        });
        if better {
            best = Some((close, share, i));
        }
    }
    best.map(|(_, _, node)| node)
}
