//! A leader for each shard whose leader does not work.

use shoal_types::NodeId;

use super::Action;
use super::board::{Board, NodeIndex, ShardIndex};
use super::placement;
use crate::view::{Health, ReplicaState};

/// Followers within so many records of the furthest one are held equal: they replay these in
/// milliseconds, and where the leader is matters for longer.
const EQUALLY_FAR: u64 = 10_000;

/// What is wrong with a leader.
enum Trouble {
    None,
    Down,
    NoLog,
    Unreached,
    NotLeading,
    Nobody,
}

impl Trouble {
    fn why(&self, leader: Option<NodeId>) -> String {
        let leader = leader.map(|l| l.to_string()).unwrap_or_default();
        match self {
            Self::None => String::new(),
            Self::Down => format!("its leader {leader} is down"),
            Self::NoLog => format!("its leader {leader} does not reach the log, others do"),
            Self::Unreached => format!("its leader {leader} is not reached by other nodes"),
            Self::NotLeading => format!("its leader {leader} is up and does not lead"),
            Self::Nobody => "it has no leader".into(),
        }
    }
}

pub(super) fn plan(board: &mut Board<'_>) {
    for shard in board.free_shards() {
        if board.is_full() {
            return;
        }
        let of = board.shard(shard);
        let trouble = match of.leader {
            None => Trouble::Nobody,
            Some(leader) => match board.known(leader) {
                None => Trouble::Down,
                Some(node) if node.health == Health::Down => Trouble::Down,
                Some(node) if node.health == Health::Up && !node.reaches_log => Trouble::NoLog,
                Some(node) if node.health == Health::Up && !node.reached => Trouble::Unreached,
                Some(_) if of.unled => Trouble::NotLeading,
                Some(_) => Trouble::None,
            },
        };
        if matches!(trouble, Trouble::None) {
            continue;
        }
        let why = trouble.why(of.leader);
        let follower = best_follower(board, shard).filter(|follower| {
            // Nobody would gain by one that is reached as little.
            !matches!(trouble, Trouble::Unreached) || board.node(*follower).reached
        });
        if let Some(follower) = follower {
            let to = board.node(follower).id;
            board.add(
                shard,
                Action::FailOver { to },
                format!("{why}; {to} follows it"),
            );
            continue;
        }
        // A leader that is there may lead again before another has opened the shard.
        if matches!(
            trouble,
            Trouble::NoLog | Trouble::Unreached | Trouble::NotLeading
        ) {
            continue;
        }
        // A follower that is not heard at this moment is soon, or is known to be gone.
        let suspect = |n: NodeId| board.known(n).is_some_and(|n| n.health == Health::Suspect);
        if of.replicas.iter().any(|r| suspect(r.node)) {
            continue;
        }
        // Followers that are being opened, or come back soon, are nearer than a node without
        // anything; but only those that are there can do it now.
        if let Some(node) = opener(board, shard) {
            let to = board.node(node).id;
            let why = format!("{why} and no follower can take over; {to} opens it");
            board.add(shard, Action::FailOver { to }, why);
        }
    }
}

fn works(board: &Board<'_>, node: NodeId) -> Option<NodeIndex> {
    let index = board.index(node)?;
    let node = board.node(index);
    (node.health == Health::Up && node.reaches_log).then_some(index)
}

/// The follower that takes over best: far enough, staying, where leaders are wanted, least loaded.
fn best_follower(board: &Board<'_>, shard: ShardIndex) -> Option<NodeIndex> {
    let of = board.shard(shard);
    let ready = of
        .replicas
        .iter()
        .filter(|r| r.state == ReplicaState::Ready);
    let able: Vec<_> = ready
        .filter(|r| of.leader != Some(r.node))
        .filter_map(|r| Some((works(board, r.node)?, r.position)))
        .collect();
    let furthest = able.iter().map(|(_, position)| position.0).max()?;
    let far_enough = able.iter().filter(|(_, at)| at.0 + EQUALLY_FAR >= furthest);
    let best = far_enough.min_by(|(a, _), (b, _)| {
        let of_node = |i: NodeIndex| {
            let node = board.node(i);
            (
                !node.reached,
                !node.takes_leads(),
                board.leader_rank(of, node),
            )
        };
        of_node(*a)
            .cmp(&of_node(*b))
            .then(board.share(*a).total_cmp(&board.share(*b)))
    });
    best.map(|(node, _)| *node)
}

/// Who opens a shard that nobody follows: one that has begun to, else the best place for it.
fn opener(board: &Board<'_>, shard: ShardIndex) -> Option<NodeIndex> {
    let of = board.shard(shard);
    let replicas = of.replicas.iter().filter(|r| of.leader != Some(r.node));
    let begun = replicas.filter_map(|r| Some((works(board, r.node)?, r.position)));
    let begun = begun.max_by_key(|(_, position)| *position);
    begun.map(|(node, _)| node).or_else(|| {
        let beside = placement::nodes_of(board, of, |n| n.health == Health::Up);
        placement::choose(board, of, &beside, true)
    })
}
