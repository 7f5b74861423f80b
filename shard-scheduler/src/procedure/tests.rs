//! Tables of what a procedure does next.

use std::collections::BTreeMap;

use shoal_meta::Assignment;
use shoal_types::{NodeId, ShardId};
use ulid::Ulid;

use super::{Act, NodeSight, Procedure, ReplicaSight, Sight, State, Task, next};

const SHARD: ShardId = ShardId(Ulid::nil());

fn node(n: u64) -> NodeId {
    NodeId(Ulid::from_parts(n, 0))
}

fn assignment(term: u64, leader: u64, followers: &[u64]) -> Assignment {
    Assignment {
        version: 7,
        term,
        leader: Some(node(leader)),
        predecessor: None,
        followers: followers.iter().map(|n| node(*n)).collect(),
        topic: String::new(),
        changed_ms: 0,
    }
}

/// `replicas`: node, the term that it leads in, whether it is ready; nodes of `down` are.
fn step(
    task: Task,
    cancelled: bool,
    assignment: &Assignment,
    replicas: &[(u64, Option<u64>, bool)],
    down: &[u64],
) -> Act {
    let known: BTreeMap<NodeId, ReplicaSight> = replicas
        .iter()
        .map(|(n, leads, ready)| {
            let replica = ReplicaSight {
                leads: *leads,
                ready: *ready,
            };
            (node(*n), replica)
        })
        .collect();
    let mut procedure = Procedure::new(task, "test", "", 0);
    procedure.cancelled = cancelled;
    let sight = Sight {
        assignment: Some(assignment),
        node: &|id| NodeSight {
            down: down.iter().any(|n| node(*n) == id),
            replica: known.get(&id).cloned(),
        },
    };
    next(&procedure, &sight)
}

fn assign(leader: u64, followers: &[u64]) -> Act {
    Act::Assign {
        leader: Some(node(leader)),
        followers: followers.iter().map(|n| node(*n)).collect(),
    }
}

fn ended(act: &Act) -> Option<State> {
    match act {
        Act::End(state, _) => Some(*state),
        _ => None,
    }
}

const fn fail_over(to: NodeId) -> Task {
    Task::FailOver {
        shard: SHARD,
        to,
        term: 3,
    }
}

#[test]
fn a_failover_changes_the_assignment_once_and_ends_when_the_node_leads() {
    let task = fail_over(node(2));
    let before = assignment(3, 1, &[2, 3]);
    assert_eq!(step(task, false, &before, &[], &[1]), assign(2, &[3, 1]));
    let after = assignment(4, 2, &[3, 1]);
    assert_eq!(
        step(task, false, &after, &[(2, None, true)], &[1]),
        Act::Tell(node(2))
    );
    // It leads, in the term before: it has not claimed for this one yet.
    assert_eq!(
        step(task, false, &after, &[(2, Some(3), true)], &[1]),
        Act::Tell(node(2))
    );
    let done = step(task, false, &after, &[(2, Some(4), true)], &[1]);
    assert_eq!(ended(&done), Some(State::Done));
}

#[test]
fn a_failover_to_a_node_that_goes_down_fails_and_one_of_another_term_is_overtaken() {
    let task = fail_over(node(2));
    let before = step(task, false, &assignment(3, 1, &[2]), &[], &[1, 2]);
    assert_eq!(ended(&before), Some(State::Failed));
    let after = step(task, false, &assignment(4, 2, &[1]), &[], &[1, 2]);
    assert_eq!(ended(&after), Some(State::Failed));
    for overtaken in [assignment(4, 3, &[1, 2]), assignment(9, 1, &[2])] {
        let act = step(task, false, &overtaken, &[], &[]);
        assert_eq!(ended(&act), Some(State::Overtaken));
    }
}

#[test]
fn only_a_failover_may_open_where_there_is_no_replica() {
    let before = assignment(3, 1, &[3]);
    let opens = step(fail_over(node(2)), false, &before, &[], &[1]);
    assert_eq!(opens, assign(2, &[3, 1]));
    let promote = Task::Promote {
        shard: SHARD,
        to: node(2),
        term: 3,
    };
    let refused = step(promote, false, &before, &[], &[]);
    assert_eq!(ended(&refused), Some(State::Failed));
}

#[test]
fn a_follower_is_waited_for_until_it_is_ready() {
    let task = Task::AddFollower {
        shard: SHARD,
        to: node(2),
        had: false,
    };
    let led = (1, Some(3), true);
    assert_eq!(
        step(task, false, &assignment(3, 1, &[3]), &[led], &[]),
        assign(1, &[3, 2])
    );
    let after = assignment(3, 1, &[3, 2]);
    for replicas in [vec![led], vec![led, (2, None, false)]] {
        assert_eq!(
            step(task, false, &after, &replicas, &[]),
            Act::Tell(node(2))
        );
    }
    let done = step(task, false, &after, &[led, (2, None, true)], &[]);
    assert_eq!(ended(&done), Some(State::Done));
    let lost = step(task, false, &after, &[led], &[2]);
    assert_eq!(ended(&lost), Some(State::Failed));
    // A shard without a leader gets one before anything else.
    let orphaned = step(task, false, &after, &[], &[1]);
    assert_eq!(ended(&orphaned), Some(State::Overtaken));
    // Called off, it is taken off again.
    assert_eq!(step(task, true, &after, &[led], &[]), assign(1, &[3]));
    let undone = step(task, true, &assignment(3, 1, &[3]), &[led], &[]);
    assert_eq!(ended(&undone), Some(State::Cancelled));
}

#[test]
fn a_follower_that_is_taken_off_is_waited_for_unless_it_is_away() {
    let task = Task::RemoveFollower {
        shard: SHARD,
        node: node(2),
    };
    let before = assignment(3, 1, &[2, 3]);
    assert_eq!(step(task, false, &before, &[], &[]), assign(1, &[3]));
    let after = assignment(3, 1, &[3]);
    assert_eq!(
        step(task, false, &after, &[(2, None, true)], &[]),
        Act::Tell(node(2))
    );
    for (replicas, down) in [(vec![], vec![]), (vec![(2, None, true)], vec![2])] {
        let act = step(task, false, &after, &replicas, &down);
        assert_eq!(ended(&act), Some(State::Done));
    }
    let leads = step(task, false, &assignment(3, 2, &[1]), &[], &[]);
    assert_eq!(ended(&leads), Some(State::Failed));
}

#[test]
fn a_move_of_a_lead_follows_promotes_and_lets_go() {
    let task = Task::Move {
        shard: SHARD,
        from: node(1),
        to: node(2),
        had: false,
    };
    let led = (1, Some(3), true);
    let go = |of: &Assignment, replicas: &[_]| step(task, false, of, replicas, &[]);
    assert_eq!(go(&assignment(3, 1, &[3]), &[led]), assign(1, &[3, 2]));
    let following = assignment(3, 1, &[3, 2]);
    assert_eq!(go(&following, &[led, (2, None, false)]), Act::Tell(node(2)));
    assert_eq!(go(&following, &[led, (2, None, true)]), assign(2, &[3, 1]));
    let promoted = assignment(4, 2, &[3, 1]);
    assert_eq!(go(&promoted, &[led, (2, None, true)]), Act::Tell(node(2)));
    // The old leader has not read its successor's claim yet.
    assert_eq!(
        go(&promoted, &[led, (2, Some(4), true)]),
        Act::Tell(node(1))
    );
    assert_eq!(
        go(&promoted, &[(1, None, true), (2, Some(4), true)]),
        assign(2, &[3])
    );
    let left = assignment(4, 2, &[3]);
    assert_eq!(go(&left, &[(1, None, true)]), Act::Tell(node(1)));
    assert_eq!(ended(&go(&left, &[])), Some(State::Done));
}

#[test]
fn a_move_of_a_follower_leaves_the_lead_where_it_is() {
    let task = Task::Move {
        shard: SHARD,
        from: node(3),
        to: node(2),
        had: false,
    };
    let both = assignment(3, 1, &[3, 2]);
    let replicas = [(1, Some(3), true), (2, None, true), (3, None, true)];
    assert_eq!(step(task, false, &both, &replicas, &[]), assign(1, &[2]));
}

#[test]
fn a_move_whose_leader_dies_gives_way_unless_its_target_can_take_over() {
    let task = Task::Move {
        shard: SHARD,
        from: node(1),
        to: node(2),
        had: false,
    };
    let following = assignment(3, 1, &[3, 2]);
    let behind = step(task, false, &following, &[(2, None, false)], &[1]);
    assert_eq!(ended(&behind), Some(State::Overtaken));
    assert_eq!(
        step(task, false, &following, &[(2, None, true)], &[1]),
        assign(2, &[3, 1])
    );
}

#[test]
fn a_move_is_called_off_until_its_target_leads() {
    let task = |had| Task::Move {
        shard: SHARD,
        from: node(1),
        to: node(2),
        had,
    };
    let led = (1, Some(3), true);
    let following = assignment(3, 1, &[3, 2]);
    let replicas = [led, (2, None, true)];
    assert_eq!(
        step(task(false), true, &following, &replicas, &[]),
        assign(1, &[3])
    );
    // What was there before stays.
    let kept = step(task(true), true, &following, &replicas, &[]);
    assert_eq!(ended(&kept), Some(State::Cancelled));
    // Too late: it goes on to its end.
    let promoted = assignment(4, 2, &[3, 1]);
    assert_eq!(
        step(task(false), true, &promoted, &replicas, &[]),
        Act::Tell(node(2))
    );
}

#[test]
fn what_nodes_have_obeyed_is_told_to_a_meta_that_was_restored() {
    let task = Task::Reconcile {
        shard: SHARD,
        to: node(2),
        version: 9,
    };
    // `assignment` has version 7.
    let restored = assignment(3, 1, &[2]);
    assert_eq!(step(task, false, &restored, &[], &[]), assign(2, &[1]));
    let same = assignment(3, 2, &[1]);
    assert_eq!(step(task, false, &same, &[], &[]), assign(2, &[1]));
    let mut after = assignment(6, 2, &[1]);
    after.version = 10;
    assert_eq!(
        step(task, false, &after, &[(2, Some(5), true)], &[]),
        Act::Tell(node(2))
    );
    let done = step(task, false, &after, &[(2, Some(6), true)], &[]);
    assert_eq!(ended(&done), Some(State::Done));
}
