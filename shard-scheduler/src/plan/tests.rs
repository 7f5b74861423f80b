//! Small clusters, one decision each.

use shoal_types::{NodeId, Offset, ShardId};
use ulid::Ulid;

use super::{Action, Rule, idle_shards, plan};
use crate::settings::{GroupSettings, Settings};
use crate::view::{Health, Load, Node, Replica, ReplicaState, Shard, View};

const NOW_MS: u64 = 1_000_000;

fn id(n: u64) -> NodeId {
    NodeId(Ulid::from_parts(n, 0))
}

fn node(n: u64, zone: &str) -> Node {
    Node {
        id: id(n),
        labels: [("zone".to_owned(), zone.to_owned())].into(),
        cores: 1.0,
        health: Health::Up,
        since_ms: 0,
        joined_ms: 0,
        draining: false,
        leaves: false,
        reaches_log: true,
        reached: true,
        changes: 0,
    }
}

fn ready(n: u64, position: u64) -> Replica {
    Replica {
        node: id(n),
        state: ReplicaState::Ready,
        position: Offset(position),
    }
}

fn shard(n: u64, leader: Option<u64>, replicas: &[Replica]) -> Shard {
    Shard {
        id: ShardId(Ulid::from_parts(n, 1)),
        group: "default".into(),
        leader: leader.map(id),
        replicas: replicas.to_vec(),
        load: Load::default(),
        changing: false,
        unled: false,
        balanced_ms: None,
    }
}

fn view(nodes: &[Node], shards: &[Shard]) -> View {
    View {
        now_ms: NOW_MS,
        nodes: nodes.to_vec(),
        shards: shards.to_vec(),
    }
}

fn settings(replication: usize, leaders: &[&str]) -> Settings {
    let leaders = leaders
        .iter()
        .map(|l| (*l).to_owned().try_into().expect("label"));
    let group = GroupSettings {
        replication,
        leaders: leaders.collect(),
        ..GroupSettings::default()
    };
    Settings {
        groups: [("default".to_owned(), group)].into(),
        ..Settings::default()
    }
}

fn actions(view: &View, settings: &Settings) -> Vec<Action> {
    plan(view, settings).into_iter().map(|s| s.action).collect()
}

fn with<T: Clone>(of: &T, change: impl Fn(&mut T)) -> T {
    let mut changed = of.clone();
    change(&mut changed);
    changed
}

fn down(n: &Node) -> Node {
    with(n, |n| {
        n.health = Health::Down;
        n.since_ms = NOW_MS;
    })
}

#[test]
fn the_furthest_follower_leads_when_the_leader_is_down() {
    let nodes = [down(&node(1, "a")), node(2, "a"), node(3, "a")];
    let of = |second, third| {
        let replicas = [ready(1, 0), ready(2, second), ready(3, third)];
        actions(
            &view(&nodes, &[shard(1, Some(1), &replicas)]),
            &settings(3, &[]),
        )
    };
    assert_eq!(of(50_000, 10), [Action::FailOver { to: id(2) }]);
    assert_eq!(of(10, 50_000), [Action::FailOver { to: id(3) }]);
}

#[test]
fn of_equally_far_followers_the_one_in_the_wanted_zone_leads() {
    let nodes = [down(&node(1, "a")), node(2, "b"), node(3, "a")];
    let replicas = [ready(1, 0), ready(2, 70), ready(3, 69)];
    let view = view(&nodes, &[shard(1, Some(1), &replicas)]);
    assert_eq!(
        actions(&view, &settings(3, &["zone=a"])),
        [Action::FailOver { to: id(3) }]
    );
    assert_eq!(
        actions(&view, &settings(3, &["zone=b"])),
        [Action::FailOver { to: id(2) }]
    );
}

#[test]
fn a_suspect_leader_keeps_its_shard() {
    let suspect = with(&node(1, "a"), |n| n.health = Health::Suspect);
    let nodes = [suspect, node(2, "a")];
    let view = view(&nodes, &[shard(1, Some(1), &[ready(1, 0), ready(2, 0)])]);
    assert_eq!(actions(&view, &settings(2, &[])), []);
}

#[test]
fn a_shard_without_a_follower_is_opened_elsewhere_and_one_of_a_lost_cluster_nowhere() {
    let alone = [shard(1, Some(1), &[ready(1, 0)])];
    let nodes = [down(&node(1, "a")), node(2, "a")];
    let wanted = settings(1, &[]);
    assert_eq!(
        actions(&view(&nodes, &alone), &wanted),
        [Action::FailOver { to: id(2) }]
    );
    let nodes = [down(&node(1, "a")), down(&node(2, "a"))];
    assert_eq!(actions(&view(&nodes, &alone), &wanted), []);
}

#[test]
fn a_leader_cut_off_from_the_log_is_replaced_only_by_one_that_reaches_it() {
    let cut = with(&node(1, "a"), |n| n.reaches_log = false);
    let also_cut = with(&node(2, "a"), |n| n.reaches_log = false);
    let shards = [shard(1, Some(1), &[ready(1, 0), ready(2, 0)])];
    let wanted = settings(2, &[]);
    let steps = actions(&view(&[cut.clone(), node(2, "a")], &shards), &wanted);
    assert_eq!(steps, [Action::FailOver { to: id(2) }]);
    assert_eq!(actions(&view(&[cut, also_cut], &shards), &wanted), []);
}

#[test]
fn a_damaged_shard_is_not_bounced_from_node_to_node() {
    let damaged = |n| Replica {
        state: ReplicaState::Damaged,
        ..ready(n, 5)
    };
    let nodes = [node(1, "a"), node(2, "a"), node(3, "a")];
    let shards = [shard(1, Some(1), &[damaged(1), ready(2, 5)])];
    assert_eq!(actions(&view(&nodes, &shards), &settings(3, &[])), []);
    let nodes = [down(&node(1, "a")), node(2, "a"), node(3, "a")];
    assert_eq!(actions(&view(&nodes, &shards), &settings(3, &[])), []);
}

#[test]
fn a_follower_goes_to_another_zone() {
    let nodes = [node(1, "a"), node(2, "a"), node(3, "b")];
    let loaded = with(&shard(2, Some(3), &[ready(3, 0)]), |s| {
        s.load.read_ms_per_s = 500.0;
        s.changing = true;
    });
    let view = view(&nodes, &[shard(1, Some(1), &[ready(1, 0)]), loaded]);
    assert_eq!(
        actions(&view, &settings(2, &[])),
        [Action::AddFollower { to: id(3) }]
    );
}

#[test]
fn a_standby_city_follows_and_leads_only_without_the_main_one() {
    let city = |n: Node, region: &str| {
        with(&n, |n| {
            drop(n.labels.insert("region".into(), region.into()))
        })
    };
    let nodes = [
        city(node(1, "a"), "main"),
        city(node(2, "b"), "main"),
        city(node(3, "c"), "standby"),
    ];
    let wanted = settings(3, &["zone=a", "zone=b"]);
    let fresh = view(&nodes, &[shard(1, Some(1), &[ready(1, 0)])]);
    assert_eq!(
        actions(&fresh, &wanted),
        [Action::AddFollower { to: id(3) }]
    );
    let replicas = [ready(1, 0), ready(2, 0), ready(3, 0)];
    let at = |nodes: &[Node]| actions(&view(nodes, &[shard(1, Some(1), &replicas)]), &wanted);
    let first_down = [down(&nodes[0]), nodes[1].clone(), nodes[2].clone()];
    assert_eq!(at(&first_down), [Action::FailOver { to: id(2) }]);
    let main_down = [down(&nodes[0]), down(&nodes[1]), nodes[2].clone()];
    assert_eq!(at(&main_down), [Action::FailOver { to: id(3) }]);
    // Back in the main city once it is up again.
    let back = view(&nodes, &[shard(1, Some(3), &replicas)]);
    assert_eq!(actions(&back, &wanted), [Action::Promote { to: id(1) }]);
}

#[test]
fn a_drained_node_gives_its_lead_up_and_then_its_replica() {
    let leaving = with(&node(1, "a"), |n| n.draining = true);
    let nodes = [leaving, node(2, "a"), node(3, "a")];
    let wanted = settings(2, &[]);
    let at = |leader, replicas: &[Replica]| {
        actions(&view(&nodes, &[shard(1, Some(leader), replicas)]), &wanted)
    };
    assert_eq!(
        at(1, &[ready(1, 0), ready(2, 0)]),
        [Action::AddFollower { to: id(3) }]
    );
    let three = [ready(1, 0), ready(2, 0), ready(3, 0)];
    assert!(matches!(at(1, &three)[..], [Action::Promote { .. }]));
    assert_eq!(at(2, &three), [Action::RemoveFollower { node: id(1) }]);
    assert_eq!(at(2, &three[1..]), []);
}

#[test]
fn a_dead_follower_is_replaced_after_a_while_and_then_taken_off() {
    let dead = down(&node(3, "a"));
    let long_dead = with(&dead, |n| n.since_ms = 0);
    let two = [ready(1, 0), ready(3, 0)];
    let wanted = Settings {
        replace_after_ms: 60_000,
        ..settings(2, &[])
    };
    let at = |third: &Node, replicas: &[Replica]| {
        let nodes = [node(1, "a"), node(2, "a"), third.clone()];
        actions(&view(&nodes, &[shard(1, Some(1), replicas)]), &wanted)
    };
    assert_eq!(at(&dead, &two), []);
    assert_eq!(at(&long_dead, &two), [Action::AddFollower { to: id(2) }]);
    let three = [ready(1, 0), ready(3, 0), ready(2, 0)];
    assert_eq!(
        at(&long_dead, &three),
        [Action::RemoveFollower { node: id(3) }]
    );
    let opening = Replica {
        state: ReplicaState::CatchingUp,
        ..ready(2, 0)
    };
    assert_eq!(at(&long_dead, &[ready(1, 0), ready(3, 0), opening]), []);
}

#[test]
fn leads_go_to_followers_before_replicas_are_opened_elsewhere() {
    let nodes = [node(1, "a"), node(2, "a"), node(3, "a")];
    let busy = |s: Shard| with(&s, |s| s.load.read_ms_per_s = 100.0);
    let shards: Vec<_> = (0..8)
        .map(|n| busy(shard(n, Some(1), &[ready(1, 0), ready(2, 0)])))
        .collect();
    let steps = actions(&view(&nodes[..2], &shards), &settings(2, &[]));
    assert_eq!(steps, [Action::Promote { to: id(2) }; 4]);
}

#[test]
fn what_moved_lately_and_what_is_changing_stays() {
    let nodes = [node(1, "a"), node(2, "a")];
    let shards: Vec<_> = (0..8).map(|n| shard(n, Some(1), &[ready(1, 0)])).collect();
    let wanted = settings(1, &[]);
    assert_eq!(actions(&view(&nodes, &shards), &wanted).len(), 4);
    let lately = shards
        .iter()
        .map(|s| with(s, |s| s.balanced_ms = Some(NOW_MS - 1)));
    assert_eq!(
        actions(&view(&nodes, &lately.collect::<Vec<_>>()), &wanted),
        []
    );
    let changing = shards.iter().map(|s| with(s, |s| s.changing = true));
    assert_eq!(
        actions(&view(&nodes, &changing.collect::<Vec<_>>()), &wanted),
        []
    );
    let off = with(&wanted, |w| w.balance.on = false);
    assert_eq!(actions(&view(&nodes, &shards), &off), []);
}

#[test]
fn a_node_takes_part_in_so_many_changes_at_a_time() {
    let nodes = [with(&node(1, "a"), |n| n.changes = 30), node(2, "a")];
    let shards: Vec<_> = (0..40).map(|n| shard(n, Some(1), &[ready(1, 0)])).collect();
    let wanted = with(&settings(1, &[]), |w| w.changes_per_node_max = 32);
    assert_eq!(actions(&view(&nodes, &shards), &wanted).len(), 2);
}

#[test]
fn a_node_that_came_since_gets_what_moved_lately() {
    let joined = |at| with(&node(2, "a"), |n| n.joined_ms = at);
    let shards: Vec<_> = (0..8)
        .map(|n| {
            with(&shard(n, Some(1), &[ready(1, 0)]), |s| {
                s.balanced_ms = Some(NOW_MS - 10);
            })
        })
        .collect();
    for (at, moved) in [(NOW_MS - 11, 0), (NOW_MS - 9, 4)] {
        let nodes = [node(1, "a"), joined(at)];
        let planned = actions(&view(&nodes, &shards), &settings(1, &[]));
        assert_eq!(planned.len(), moved);
    }
}

#[test]
fn replicas_that_came_to_share_a_zone_are_moved_apart_a_follower_first() {
    let nodes = |zones: [&str; 3]| {
        let numbered = zones.into_iter().enumerate();
        numbered
            .map(|(i, zone)| node(i as u64 + 1, zone))
            .collect::<Vec<_>>()
    };
    let replicas = [ready(1, 0), ready(2, 0)];
    let of = |zones, replicas: &[Replica]| {
        let view = view(&nodes(zones), &[shard(1, Some(1), replicas)]);
        let steps = plan(&view, &settings(2, &[]));
        let spread = steps.into_iter().filter(|s| s.rule == Rule::Spread);
        spread.map(|s| s.action).collect::<Vec<_>>()
    };
    let moved = Action::Move {
        from: id(2),
        to: id(3),
    };
    assert_eq!(of(["a", "a", "b"], &replicas), [moved]);
    // There is nowhere better, or nothing to be made better.
    assert_eq!(of(["a", "a", "a"], &replicas), []);
    assert_eq!(of(["a", "b", "c"], &replicas), []);
    // One that is not complete is completed first.
    assert_eq!(of(["a", "a", "b"], &replicas[..1]), []);
    let view = view(&nodes(["a", "a", "b"]), &[shard(1, Some(1), &replicas)]);
    let off = with(&settings(2, &[]), |s| s.balance.on = false);
    assert_eq!(plan(&view, &off), []);
}

#[test]
fn new_tables_go_where_there_is_least_load() {
    let nodes = [node(1, "a"), node(2, "b")];
    let shards = [
        shard(1, Some(1), &[ready(1, 0), ready(2, 0)]),
        shard(2, Some(2), &[ready(1, 0), ready(2, 0)]),
        shard(3, Some(2), &[ready(1, 0), ready(2, 0)]),
    ];
    let ids = |shards: &[Shard]| shards.iter().map(|s| s.id).collect::<Vec<_>>();
    let all = idle_shards(&view(&nodes, &shards));
    assert_eq!(all, ids(&shards), "without load all are the same");
    let mut loaded = shards.clone();
    loaded[1].load.write_bytes_per_s = 5e7;
    // The one that is written, and the one whose node is busy with it.
    assert_eq!(idle_shards(&view(&nodes, &loaded)), ids(&shards[..1]));
    let one_down = [down(&nodes[0]), nodes[1].clone()];
    assert_eq!(idle_shards(&view(&one_down, &loaded)), ids(&shards[2..]));
}

#[test]
fn a_leader_that_other_nodes_do_not_reach_is_replaced_by_one_that_they_do() {
    let cut = |n: &Node| with(n, |n| n.reached = false);
    let replicas = [ready(1, 50), ready(2, 50)];
    let of = |nodes: &[Node]| {
        let view = view(nodes, &[shard(1, Some(1), &replicas)]);
        actions(&view, &settings(2, &[]))
    };
    let (first, second) = (node(1, "a"), node(2, "b"));
    let promoted = Action::FailOver { to: id(2) };
    assert_eq!(of(&[cut(&first), second.clone()]), [promoted]);
    assert_eq!(of(&[cut(&first), cut(&second)]), []);
    assert_eq!(of(&[first.clone(), cut(&second)]), []);
    // One that is not reached is better than none.
    assert_eq!(of(&[down(&first), cut(&second)]), [promoted]);
}
