//! Load, evened out.
//!
//! The node that is farthest from the mean gives (or gets) shards until it is within half of the
//! tolerance, then the next one, until all are within the whole of it. A shard goes only if the farther one of the two nodes comes nearer to the
//! mean by more than half of what goes, and then stays for `balance.rest_ms` unless a node has come
//! since: so measured load may tremble without anything moving to and fro. A lead is given to a follower, which is ready for it,
//! before a replica is opened elsewhere.

use super::Action;
use super::board::{Board, NodeIndex, ShardIndex, cost};
use super::placement::{closeness, nodes_of};
use crate::view::{Health, ReplicaState};

/// Replicas of a node that are tried, the best fitting ones first, for one that may go there.
const TRIED_MAX: usize = 64;

/// A change that would even out a pair of nodes.
struct Candidate {
    shard: ShardIndex,
    action: Action,
    /// What goes from one to the other.
    moved: f64,
}

pub(super) fn plan(board: &mut Board<'_>) {
    let takes: Vec<bool> = board
        .view
        .nodes
        .iter()
        .map(|n| n.takes_replicas())
        .collect();
    let active: Vec<NodeIndex> = (0..takes.len()).filter(|i| takes[*i]).collect();
    let cores: f64 = active.iter().map(|i| board.node(*i).cores).sum();
    let load: f64 = active
        .iter()
        .map(|i| board.share(*i) * board.node(*i).cores)
        .sum();
    if active.len() < 2 || cores <= 0.0 || load <= 0.0 {
        return;
    }
    let mean = load / cores;
    let shards_on = shards_by_node(board);
    let mut given_up = vec![false; board.view.nodes.len()];
    while !board.is_full() {
        let left = active
            .iter()
            .copied()
            .filter(|i| !given_up[*i] && board.has_place(*i));
        let off = |i: NodeIndex| (board.share(i) / mean - 1.0).abs();
        let Some(worst) = left.max_by(|a, b| off(*a).total_cmp(&off(*b))) else {
            return;
        };
        if off(worst) <= board.settings.balance.tolerance {
            return;
        }
        let done = if board.share(worst) > mean {
            give(board, worst, &active, mean, &shards_on)
        } else {
            get(board, worst, &active, mean, &shards_on)
        };
        given_up[worst] = !done;
    }
}

fn shards_by_node(board: &Board<'_>) -> Vec<Vec<ShardIndex>> {
    let mut on = vec![Vec::new(); board.view.nodes.len()];
    for (i, shard) in board.view.shards.iter().enumerate() {
        for replica in &shard.replicas {
            if let Some(node) = board.index(replica.node) {
                on[node].push(i);
            }
        }
    }
    on
}

/// Whether a shard may be moved there for balance at all.
fn is_movable(board: &Board<'_>, shard: ShardIndex, to: NodeIndex) -> bool {
    let of = board.shard(shard);
    let came_after = of
        .balanced_ms
        .is_some_and(|at| at < board.node(to).joined_ms);
    board.is_free(shard) && (came_after || board.settings.rested(of.balanced_ms, board.now_ms()))
}

/// Takes shards off a node that has too much, one to each node that has too little.
fn give(
    board: &mut Board<'_>,
    from: NodeIndex,
    active: &[NodeIndex],
    mean: f64,
    shards_on: &[Vec<ShardIndex>],
) -> bool {
    let least = |a: &NodeIndex, b: &NodeIndex| board.share(*a).total_cmp(&board.share(*b));
    let mut receivers: Vec<_> = active
        .iter()
        .copied()
        .filter(|i| board.share(*i) < mean)
        .collect();
    receivers.sort_by(least);
    let enough = mean * (1.0 + board.settings.balance.tolerance / 2.0);
    let mut given = false;
    for to in receivers {
        if board.share(from) <= enough || !board.has_place(from) || board.is_full() {
            break;
        }
        given |= even_out(board, from, to, mean, &shards_on[from]);
    }
    given
}

/// Brings shards to a node that has too little, one from each node that has more.
fn get(
    board: &mut Board<'_>,
    to: NodeIndex,
    active: &[NodeIndex],
    mean: f64,
    shards_on: &[Vec<ShardIndex>],
) -> bool {
    let most = |a: &NodeIndex, b: &NodeIndex| board.share(*b).total_cmp(&board.share(*a));
    let mut givers: Vec<_> = active.iter().copied().filter(|i| *i != to).collect();
    givers.sort_by(most);
    let enough = mean * (1.0 - board.settings.balance.tolerance / 2.0);
    let mut got = false;
    for from in givers {
        if board.share(to) >= enough || !board.has_place(to) || board.is_full() {
            break;
        }
        got |= even_out(board, from, to, mean, &shards_on[from]);
    }
    got
}

/// Carries out the change that brings two nodes closest together, if there is one.
fn even_out(
    board: &mut Board<'_>,
    from: NodeIndex,
    to: NodeIndex,
    mean: f64,
    shards: &[ShardIndex],
) -> bool {
    if !board.has_place(from) || !board.has_place(to) {
        return false;
    }
    let Some(candidate) = best_between(board, from, to, mean, shards) else {
        return false;
    };
    let percent = |i: NodeIndex, more: f64| board.share_with(i, more) / mean * 100.0;
    let why = format!(
        "load: {} goes from {:.0} to {:.0} % of the mean, {} from {:.0} to {:.0} %",
        board.node(from).id,
        percent(from, 0.0),
        percent(from, -candidate.moved),
        board.node(to).id,
        percent(to, 0.0),
        percent(to, candidate.moved),
    );
    board.add(candidate.shard, candidate.action, why);
    true
}

/// The change that brings two nodes closest together: a lead if there is one to give, else a
/// replica.
fn best_between(
    board: &Board<'_>,
    from: NodeIndex,
    to: NodeIndex,
    mean: f64,
    shards: &[ShardIndex],
) -> Option<Candidate> {
    let apart = |moved: f64| {
        let (from, to) = (board.share_with(from, -moved), board.share_with(to, moved));
        (from - mean).abs().max((to - mean).abs())
    };
    let cores = board.node(from).cores.max(board.node(to).cores);
    let per_core = |moved: f64| moved / cores;
    let now = apart(0.0);
    let better = |c: &Candidate| c.moved > 0.0 && apart(c.moved) + per_core(c.moved) / 2.0 < now;
    let movable = || shards.iter().copied().filter(|s| is_movable(board, *s, to));
    let nearest = |a: &Candidate, b: &Candidate| apart(a.moved).total_cmp(&apart(b.moved));
    let lead = movable()
        .filter_map(|s| lead(board, s, from, to))
        .filter(better);
    lead.min_by(nearest).or_else(|| {
        let replica = movable().filter_map(|s| replica(board, s, from, to));
        let mut replicas: Vec<_> = replica.filter(better).collect();
        replicas.sort_by(nearest);
        let mut tried = replicas.into_iter().take(TRIED_MAX);
        tried.find(|c| keeps_apart(board, c.shard, from, to))
    })
}

/// Gives the lead of a shard to its follower.
fn lead(board: &Board<'_>, shard: ShardIndex, from: NodeIndex, to: NodeIndex) -> Option<Candidate> {
    let of = board.shard(shard);
    let (leader, follower) = (board.node(from), board.node(to));
    if of.leader != Some(leader.id) {
        return None;
    }
    let ready = of
        .replica(follower.id)
        .is_some_and(|r| r.state == ReplicaState::Ready);
    let wanted = board.leader_rank(of, follower) <= board.leader_rank(of, leader);
    (ready && wanted && follower.takes_leads()).then(|| Candidate {
        shard,
        action: Action::Promote { to: follower.id },
        moved: of.load.of_leader() - of.load.of_follower(),
    })
}

/// Moves a replica, with the lead if it has it.
fn replica(
    board: &Board<'_>,
    shard: ShardIndex,
    from: NodeIndex,
    to: NodeIndex,
) -> Option<Candidate> {
    let of = board.shard(shard);
    let (has, gets) = (board.node(from), board.node(to));
    if of.replica(gets.id).is_some() || gets.health != Health::Up {
        return None;
    }
    let leads = of.leader == Some(has.id);
    let wanted =
        !leads || gets.takes_leads() && board.leader_rank(of, gets) <= board.leader_rank(of, has);
    wanted.then(|| Candidate {
        shard,
        action: Action::Move {
            from: has.id,
            to: gets.id,
        },
        moved: cost(of, has.id),
    })
}

/// Whether the replicas are as far apart as they were if one goes there.
fn keeps_apart(board: &Board<'_>, shard: ShardIndex, from: NodeIndex, to: NodeIndex) -> bool {
    let of = board.shard(shard);
    let before = nodes_of(board, of, |_| true);
    let after = before.iter().map(|n| if *n == from { to } else { *n });
    closeness(board, of, after) <= closeness(board, of, before.iter().copied())
}
