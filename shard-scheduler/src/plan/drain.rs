//! Leaders leave nodes that are being drained. Their replicas do not count any more, so others
//! were added, and then one too many is taken off (`replicas`).

use super::Action;
use super::board::{Board, NodeIndex, ShardIndex};
use crate::view::{Health, ReplicaState};

pub(super) fn plan(board: &mut Board<'_>) {
    for shard in board.free_shards() {
        if board.is_full() {
            return;
        }
        let leader = board.shard(shard).leader.and_then(|l| board.known(l));
        let Some(leader) = leader.filter(|n| n.draining || n.leaves) else {
            continue;
        };
        if let Some(follower) = best_follower(board, shard) {
            let to = board.node(follower).id;
            let why = format!("its leader {} is to give its leads away", leader.id);
            board.add(shard, Action::Promote { to }, why);
        }
    }
}

/// The follower that may lead: ready, staying; where leaders are wanted, least loaded.
fn best_follower(board: &Board<'_>, shard: ShardIndex) -> Option<NodeIndex> {
    let of = board.shard(shard);
    let ready = of
        .replicas
        .iter()
        .filter(|r| r.state == ReplicaState::Ready);
    let able = ready
        .filter(|r| of.leader != Some(r.node))
        .filter_map(|r| board.index(r.node))
        .filter(|i| {
            let node = board.node(*i);
            node.health == Health::Up && node.takes_leads()
        });
    able.min_by(|a, b| {
        let rank = |i: NodeIndex| board.leader_rank(of, board.node(i));
        rank(*a)
            .cmp(&rank(*b))
            .then(board.share(*a).total_cmp(&board.share(*b)))
    })
}
