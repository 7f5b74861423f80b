//! As many replicas of each shard as its group wants.

use shoal_types::NodeId;

use super::Action;
use super::board::{Board, ShardIndex};
use super::placement::{choose, closeness, nodes_of};
use crate::view::{Node, Replica, ReplicaState, Shard};

pub(super) fn plan(board: &mut Board<'_>) {
    for shard in board.free_shards() {
        if board.is_full() {
            return;
        }
        let of = board.shard(shard);
        let wanted = board.group(of).replication;
        let count =
            |counts: &dyn Fn(&Replica) -> bool| of.replicas.iter().filter(|r| counts(r)).count();
        let staying = count(&|r| stays(board, r));
        let ready = count(&|r| stays(board, r) && is_ready(board, of, r));
        if staying < wanted {
            add(board, shard, staying, wanted);
        } else if of.replicas.len() > wanted && ready >= wanted {
            remove(board, shard, staying, wanted);
        }
    }
}

/// Whether a replica counts: its node is there or soon back, and is not being drained.
fn stays(board: &Board<'_>, replica: &Replica) -> bool {
    board.may_come_back(replica.node) && board.known(replica.node).is_some_and(|n| !n.draining)
}

fn is_ready(board: &Board<'_>, shard: &Shard, replica: &Replica) -> bool {
    let up = |n: &Node| n.health == crate::Health::Up;
    let serves = replica.state == ReplicaState::Ready || shard.leader == Some(replica.node);
    serves && board.known(replica.node).is_some_and(up)
}

fn add(board: &mut Board<'_>, shard: ShardIndex, staying: usize, wanted: usize) {
    let of = board.shard(shard);
    let stay = |n: &Node| board.may_come_back(n.id) && !n.draining;
    let beside = nodes_of(board, of, stay);
    if let Some(node) = choose(board, of, &beside, false) {
        let to = board.node(node).id;
        let why = format!("it has {staying} of {wanted} replicas that stay");
        board.add(shard, Action::AddFollower { to }, why);
    }
}

/// Takes the follower off that is worth least: one that does not stay, then, if too many do, the
/// one without which the others are farthest apart, then the one whose node is loaded most. A
/// leader on a node that leaves gives up the lead first (`drain`).
fn remove(board: &mut Board<'_>, shard: ShardIndex, staying: usize, wanted: usize) {
    let of = board.shard(shard);
    let followers = of.replicas.iter().filter(|r| of.leader != Some(r.node));
    let removable = followers.filter(|r| staying > wanted || !stays(board, r));
    let worst = removable.min_by(|a, b| {
        let of_replica = |r: &Replica| {
            let others = nodes_of(board, of, |n| n.id != r.node && !n.draining);
            (
                stays(board, r),
                is_ready(board, of, r),
                closeness(board, of, others.iter().copied()),
            )
        };
        let share = |n: NodeId| board.index(n).map_or(f64::MAX, |i| board.share(i));
        of_replica(a)
            .cmp(&of_replica(b))
            .then(share(b.node).total_cmp(&share(a.node)))
    });
    let Some(worst) = worst.map(|r| r.node) else {
        return;
    };
    let why = format!("it has {} replicas, {wanted} are wanted", of.replicas.len());
    board.add(shard, Action::RemoveFollower { node: worst }, why);
}
