//! A cluster that does at once what is planned for it.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_scheduler::{
    Action, Health, Load, Node, Replica, ReplicaState, Settings, Shard, Step, View, plan,
};
use shoal_types::{NodeId, Offset, ShardId};
use ulid::Ulid;

/// Time between two rounds.
const ROUND_MS: u64 = 1_000;

pub struct World {
    pub view: View,
    pub settings: Settings,
    rng: StdRng,
    made: u64,
    /// Moves for balance of each shard: when.
    pub balanced: BTreeMap<ShardId, Vec<u64>>,
}

impl World {
    pub fn new(seed: u64, settings: Settings) -> Self {
        Self {
            view: View {
                now_ms: 1_000_000_000,
                ..View::default()
            },
            settings,
            rng: StdRng::seed_from_u64(seed),
            made: 0,
            balanced: BTreeMap::new(),
        }
    }

    fn id(&mut self) -> Ulid {
        self.made += 1;
        Ulid::from_parts(self.made, self.rng.random())
    }

    /// Adds a node in a zone of its region.
    pub fn join(&mut self, region: &str, zone: &str) -> NodeId {
        let id = NodeId(self.id());
        let labels = [("region", region), ("zone", zone)];
        self.view.nodes.push(Node {
            id,
            labels: labels.map(|(l, v)| (l.into(), v.into())).into(),
            cores: 8.0,
            health: Health::Up,
            since_ms: 0,
            joined_ms: 0,
            draining: false,
            leaves: false,
            reaches_log: true,
            reached: true,
            changes: 0,
        });
        id
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        let found = self.view.nodes.iter_mut().find(|n| n.id == id);
        found.expect("a node of this world")
    }

    /// Adds a shard that nobody serves yet, with a load drawn from a long tail.
    pub fn shard(&mut self, group: &str) {
        let id = ShardId(self.id());
        let draw: f64 = self.rng.random_range(0.001..1.0);
        // Pareto with shape 1.5, cut at 30 times the median.
        let tail = draw.powf(-1.0 / 1.5).min(30.0);
        self.view.shards.push(Shard {
            id,
            group: group.into(),
            leader: None,
            replicas: Vec::new(),
            load: Load {
                write_bytes_per_s: 4e5 * tail,
                read_ms_per_s: 2.0 * tail,
                memory_bytes: 1e6 * tail,
            },
            changing: false,
            unled: false,
            balanced_ms: None,
        });
    }

    /// Gives every shard its replicas, in turn.
    pub fn place_all(&mut self, replicas: usize) {
        let nodes: Vec<NodeId> = self.view.nodes.iter().map(|n| n.id).collect();
        for (i, shard) in self.view.shards.iter_mut().enumerate() {
            // Neighbours are in different zones.
            let of = (0..replicas).map(|r| Replica {
                node: nodes[(i + r) % nodes.len()],
                state: ReplicaState::Ready,
                position: Offset(0),
            });
            shard.replicas = of.collect();
            shard.leader = Some(shard.replicas[0].node);
        }
    }

    /// Every load trembles by up to this share.
    pub fn tremble(&mut self, by: f64) {
        for shard in &mut self.view.shards {
            let factor = self.rng.random_range(1.0 - by..1.0 + by);
            shard.load.write_bytes_per_s *= factor;
            shard.load.read_ms_per_s *= factor;
        }
    }

    /// Plans and does a round; the steps.
    pub fn round(&mut self) -> Vec<Step> {
        let steps = plan(&self.view, &self.settings);
        let at: BTreeMap<ShardId, usize> = self
            .view
            .shards
            .iter()
            .enumerate()
            .map(|(i, s)| (s.id, i))
            .collect();
        let mut seen = std::collections::BTreeSet::new();
        for step in &steps {
            assert!(seen.insert(step.shard), "two steps of one shard: {step:?}");
            let down = |node: NodeId| {
                self.view
                    .nodes
                    .iter()
                    .all(|n| n.id != node || n.health != Health::Up)
            };
            let gone = self.view.shards[at[&step.shard]].leader.is_some_and(down);
            carry_out(&mut self.view.shards[at[&step.shard]], step, gone);
            if step.why.starts_with("load") {
                self.view.shards[at[&step.shard]].balanced_ms = Some(self.view.now_ms);
                self.balanced
                    .entry(step.shard)
                    .or_default()
                    .push(self.view.now_ms);
            }
        }
        self.view.now_ms += ROUND_MS;
        for shard in &mut self.view.shards {
            for replica in &mut shard.replicas {
                replica.state = ReplicaState::Ready;
            }
        }
        steps
    }

    /// Rounds until nothing is planned, at most so many; how many it took.
    pub fn settle(&mut self, rounds_max: usize) -> usize {
        for round in 0..rounds_max {
            if self.round().is_empty() {
                return round;
            }
        }
        panic!(
            "not settled after {rounds_max} rounds: {:?}",
            self.round().first()
        );
    }

    /// Load of each node that takes replicas, in cores.
    pub fn loads(&self) -> Vec<f64> {
        let mut loads: BTreeMap<NodeId, f64> = BTreeMap::new();
        for node in self.view.nodes.iter().filter(|n| n.takes_replicas()) {
            loads.insert(node.id, 0.0);
        }
        for shard in &self.view.shards {
            for replica in &shard.replicas {
                let leads = shard.leader == Some(replica.node);
                let cost = if leads {
                    shard.load.of_leader()
                } else {
                    shard.load.of_follower()
                };
                if let Some(load) = loads.get_mut(&replica.node) {
                    *load += cost;
                }
            }
        }
        loads.into_values().collect()
    }

    /// The largest load over the mean, the smallest over the mean.
    pub fn imbalance(&self) -> (f64, f64) {
        let loads = self.loads();
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        let max = loads.iter().copied().fold(0.0, f64::max);
        let min = loads.iter().copied().fold(f64::MAX, f64::min);
        (max / mean, min / mean)
    }

    /// Shards that have not what their group wants, on nodes that stay.
    pub fn incomplete(&self) -> usize {
        let here = |node: NodeId| {
            self.view
                .nodes
                .iter()
                .any(|n| n.id == node && n.takes_replicas())
        };
        let here: BTreeMap<NodeId, bool> =
            self.view.nodes.iter().map(|n| (n.id, here(n.id))).collect();
        let ok = |s: &Shard| {
            let wanted = self
                .settings
                .groups
                .get(&s.group)
                .map_or(2, |g| g.replication);
            let all = s.replicas.iter().all(|r| here.get(&r.node) == Some(&true));
            all && s.replicas.len() == wanted && s.leader.is_some_and(|l| s.replica(l).is_some())
        };
        self.view.shards.iter().filter(|s| !ok(s)).count()
    }
}

fn carry_out(shard: &mut Shard, step: &Step, leader_is_gone: bool) {
    let opened = |node| Replica {
        node,
        state: ReplicaState::CatchingUp,
        position: Offset(0),
    };
    match step.action {
        Action::FailOver { to } => {
            assert!(shard.leader.is_none() || leader_is_gone, "{step:?}");
            if shard.replica(to).is_none() {
                shard.replicas.push(opened(to));
            }
            shard.leader = Some(to);
        }
        Action::Promote { to } => {
            assert!(shard.replica(to).is_some(), "{step:?}");
            shard.leader = Some(to);
        }
        Action::AddFollower { to } => {
            assert!(shard.replica(to).is_none(), "{step:?}");
            shard.replicas.push(opened(to));
        }
        Action::RemoveFollower { node } => {
            assert_ne!(shard.leader, Some(node), "{step:?}");
            shard.replicas.retain(|r| r.node != node);
        }
        Action::Move { from, to } => {
            assert!(
                shard.replica(to).is_none() && shard.replica(from).is_some(),
                "{step:?}"
            );
            shard.replicas.retain(|r| r.node != from);
            shard.replicas.push(opened(to));
            if shard.leader == Some(from) {
                shard.leader = Some(to);
            }
        }
    }
}
