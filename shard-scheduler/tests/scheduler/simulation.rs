//! Clusters of any size, with nodes that come and go and loads that tremble.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_scheduler::{GroupSettings, Health, Settings, plan};

use crate::world::World;

/// What a join or a leave may need at most.
const ROUNDS_MAX: usize = 20;
const ZONES: [&str; 3] = ["a", "b", "c"];

fn settings(replication: usize) -> Settings {
    let group = GroupSettings {
        replication,
        ..GroupSettings::default()
    };
    Settings {
        groups: [("default".to_owned(), group)].into(),
        ..Settings::default()
    }
}

fn world(seed: u64, nodes: usize, shards: usize, replication: usize) -> World {
    let mut world = World::new(seed, settings(replication));
    for i in 0..nodes {
        world.join("r", ZONES[i % ZONES.len()]);
    }
    for _ in 0..shards {
        world.shard("default");
    }
    world
}

/// Rounds until every shard is complete and the load is even; at most so many.
fn rounds_until_even(world: &mut World, rounds_max: usize) -> usize {
    for round in 0..=rounds_max {
        let (max, min) = world.imbalance();
        if world.incomplete() == 0 && max <= 1.2 && min >= 0.8 {
            return round;
        }
        world.round();
    }
    panic!(
        "after {rounds_max} rounds {} shards are incomplete, imbalance {:?}",
        world.incomplete(),
        world.imbalance()
    );
}

#[test]
fn a_cluster_is_filled_and_stays_even_through_joins_and_leaves() {
    for seed in 0..4 {
        let mut world = world(seed, 60, 3_000, 3);
        rounds_until_even(&mut world, 100);
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..10 {
            // The time after which a shard may be moved again: what is tested is one change at a
            // time, from an even state.
            world.settle(ROUNDS_MAX);
            world.view.now_ms += world.settings.balance.rest_ms;
            if rng.random_bool(0.5) {
                world.join("r", ZONES[rng.random_range(0..ZONES.len())]);
            } else {
                let at = rng.random_range(0..world.view.nodes.len());
                let (id, now_ms) = (world.view.nodes[at].id, world.view.now_ms);
                if rng.random_bool(0.5) {
                    world.node(id).draining = true;
                } else {
                    world.node(id).health = Health::Down;
                    world.node(id).since_ms =
                        now_ms.saturating_sub(world.settings.replace_after_ms);
                }
            }
            rounds_until_even(&mut world, ROUNDS_MAX);
        }
    }
}

#[test]
fn under_a_steady_load_nothing_moves_twice_in_ten_minutes_and_hardly_once() {
    let mut world = world(9, 30, 1_500, 2);
    rounds_until_even(&mut world, 100);
    world.settle(ROUNDS_MAX);
    world.balanced.clear();
    let from_ms = world.view.now_ms;
    let steady = world.view.shards.clone();
    // Ten minutes of trembling beyond what a smoothed measurement shows.
    while world.view.now_ms < from_ms + 600_000 {
        for (shard, was) in world.view.shards.iter_mut().zip(&steady) {
            shard.load = was.load;
        }
        world.tremble(0.1);
        world.round();
    }
    for (shard, moved) in &world.balanced {
        for pair in moved.windows(2) {
            assert!(pair[1] - pair[0] >= 600_000, "{shard} moved at {moved:?}");
        }
    }
    let moved = world.balanced.len();
    assert!(
        moved <= 15,
        "{moved} of 1500 shards moved under a steady load"
    );
}

/// Prints what a round costs; `benches/` has the figures of a release build.
#[test]
fn a_thousand_nodes_and_a_hundred_thousand_shards() {
    let mut world = world(1, 1_000, 100_000, 3);
    let mut longest_ms = 0.0_f64;
    let mut round = |world: &mut World| {
        let began = Instant::now();
        drop(plan(&world.view, &world.settings));
        longest_ms = longest_ms.max(began.elapsed().as_secs_f64() * 1e3);
        world.round();
    };
    // The cluster as it would be after its first minutes.
    world.place_all(3);
    for _ in 0..ROUNDS_MAX {
        round(&mut world);
    }
    assert!(world.imbalance().0 <= 1.2, "{:?}", world.imbalance());
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..3 {
        world.view.now_ms += world.settings.balance.rest_ms;
        world.join("r", ZONES[rng.random_range(0..ZONES.len())]);
        let leaves = world.view.nodes[rng.random_range(0..1_000)].id;
        world.node(leaves).draining = true;
        for _ in 0..ROUNDS_MAX {
            round(&mut world);
        }
        let (max, min) = world.imbalance();
        assert!(max <= 1.2 && min >= 0.8, "{max}, {min}");
        assert_eq!(world.incomplete(), 0);
    }
    println!("1,000 nodes, 100,000 shards: longest round {longest_ms:.0} ms");
}
