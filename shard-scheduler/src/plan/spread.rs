//! Replicas farther apart than they are: nodes were given other labels, or came where none were.

use super::Action;
use super::board::{Board, NodeIndex, ShardIndex};
use super::placement::{Closeness, choose, closeness, farthest_possible, nodes_of};
use crate::view::{Health, ReplicaState};

/// Shards for which a better place is looked for in one round: each looks at all nodes.
const SEARCHES_MAX: usize = 500;

pub(super) fn plan(board: &mut Board<'_>) {
    let shards = board.free_shards();
    if shards.is_empty() {
        return;
    }
    // Every round begins elsewhere, so that shards that are as far apart as they can be take
    // nobody's turn.
    let first = (board.now_ms() / 100) as usize % shards.len();
    let mut searches = 0;
    for shard in shards[first..].iter().chain(&shards[..first]) {
        if board.is_full() || searches >= SEARCHES_MAX {
            return;
        }
        let Some(now) = complete(board, *shard) else {
            continue;
        };
        if now <= farthest_possible(board, board.shard(*shard)) {
            continue;
        }
        searches += 1;
        farther(board, *shard, now);
    }
}

/// How close the replicas of a shard are to which nothing else is to be done.
fn complete(board: &Board<'_>, shard: ShardIndex) -> Option<Closeness> {
    let of = board.shard(shard);
    let able = of.replicas.iter().all(|r| {
        let node = board.known(r.node);
        r.state == ReplicaState::Ready
            && node.is_some_and(|n| n.health == Health::Up && !n.draining)
    });
    let whole = able && of.replicas.len() == board.group(of).replication;
    whole.then(|| closeness(board, of, nodes_of(board, of, |_| true).iter().copied()))
}

/// Moves the replica whose move brings most, a follower rather than the leader.
fn farther(board: &mut Board<'_>, shard: ShardIndex, now: Closeness) {
    let of = board.shard(shard);
    let mut best: Option<(Closeness, bool, NodeIndex, NodeIndex)> = None;
    for replica in &of.replicas {
        let Some(from) = board.index(replica.node).filter(|i| board.has_place(*i)) else {
            continue;
        };
        let beside = nodes_of(board, of, |n| n.id != replica.node);
        let Some(to) = choose(board, of, &beside, false) else {
            continue;
        };
        let leads = of.leader == Some(replica.node);
        let (gives, gets) = (board.node(from), board.node(to));
        if leads
            && (!gets.takes_leads() || board.leader_rank(of, gets) > board.leader_rank(of, gives))
        {
            continue;
        }
        let apart = closeness(board, of, beside.into_iter().chain([to]));
        if apart < now && best.is_none_or(|(least, led, ..)| (apart, leads) < (least, led)) {
            best = Some((apart, leads, from, to));
        }
    }
    let Some((_, _, from, to)) = best else { return };
    let (from, to) = (board.node(from).id, board.node(to).id);
    let why = format!("its replicas are farther apart with the one of {from} on {to}");
    board.add(shard, Action::Move { from, to }, why);
}
