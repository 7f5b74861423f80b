//! Leaders where settings want them, as soon as a follower there can take over.

use super::Action;
use super::board::{Board, NodeIndex, ShardIndex};
use crate::view::{Health, ReplicaState};

/// A node must have been up for so long: one that comes and goes gets no leaders.
const UP_FOR_MS: u64 = 30_000;

pub(super) fn plan(board: &mut Board<'_>) {
    for shard in board.free_shards() {
        if board.is_full() {
            return;
        }
        let of = board.shard(shard);
        if board.group(of).leaders.is_empty() {
            continue;
        }
        let leader = of.leader.and_then(|l| board.known(l));
        let Some(leader) = leader.filter(|n| n.health == Health::Up) else {
            continue;
        };
        let rank = board.leader_rank(of, leader);
        if let Some(better) = better_follower(board, shard, rank) {
            let to = board.node(better).id;
            let wanted = &board.group(of).leaders;
            let wanted: Vec<String> = wanted.iter().cloned().map(Into::into).collect();
            let why = format!("leaders are wanted at {}", wanted.join(", then "));
            board.add(shard, Action::Promote { to }, why);
        }
    }
}

fn better_follower(board: &Board<'_>, shard: ShardIndex, rank: usize) -> Option<NodeIndex> {
    let of = board.shard(shard);
    let ready = of
        .replicas
        .iter()
        .filter(|r| r.state == ReplicaState::Ready);
    let able = ready.filter_map(|r| board.index(r.node)).filter(|i| {
        let node = board.node(*i);
        node.takes_leads()
            && node.since_ms + UP_FOR_MS <= board.now_ms()
            && board.has_place(*i)
            && board.leader_rank(of, node) < rank
    });
    able.min_by(|a, b| {
        let rank = |i: NodeIndex| board.leader_rank(of, board.node(i));
        rank(*a)
            .cmp(&rank(*b))
            .then(board.share(*a).total_cmp(&board.share(*b)))
    })
}
