//! What the steps planned so far make of the cluster.

use std::collections::{HashMap, HashSet};

use shoal_types::{NodeId, TimestampMs};

use super::{Action, Rule, Step};
use crate::settings::{GroupSettings, Settings};
use crate::view::{Health, Node, Shard, View};

/// Index of a node in the view.
pub(super) type NodeIndex = usize;
/// Index of a shard in the view.
pub(super) type ShardIndex = usize;

pub(super) struct Board<'a> {
    pub(super) view: &'a View,
    pub(super) settings: &'a Settings,
    by_id: HashMap<NodeId, NodeIndex>,
    /// Load of each node, in cores.
    load: Vec<f64>,
    /// Places for changes that each node has left.
    places: Vec<usize>,
    /// Shards that are left alone: a change of them is under way or planned.
    taken: Vec<bool>,
    labels: Labels<'a>,
    defaults: GroupSettings,
    rule: Rule,
    steps: Vec<Step>,
}

/// Values of labels as numbers, for the labels that replicas are spread by.
struct Labels<'a> {
    /// Of each node, by column; 0: it has none.
    values: Vec<Vec<u32>>,
    /// Values of each column on nodes that take replicas.
    distinct: Vec<usize>,
    /// Columns of a group's labels.
    groups: HashMap<&'a str, Vec<usize>>,
    defaults: Vec<usize>,
}

impl<'a> Labels<'a> {
    fn new(view: &'a View, settings: &'a Settings) -> Self {
        let defaults = GroupSettings::default();
        let spreads = settings.groups.values().map(|g| &g.spread);
        let mut columns: Vec<&String> = spreads.chain([&defaults.spread]).flatten().collect();
        columns.sort_unstable();
        columns.dedup();
        let of_group = |group: &GroupSettings| {
            let column = |label| columns.binary_search(&label).expect("all labels are there");
            group.spread.iter().map(column).collect::<Vec<_>>()
        };
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut number = |value: &'a str| {
            let next = numbers.len() as u32 + 1;
            *numbers.entry(value).or_insert(next)
        };
        let values = view.nodes.iter().map(|node| {
            let value = |label: &&String| node.labels.get(*label).map_or(0, |v| number(v));
            columns.iter().map(value).collect()
        });
        let values: Vec<Vec<u32>> = values.collect();
        let taking = |column: usize| {
            let nodes = view.nodes.iter().zip(&values);
            let nodes = nodes.filter(|(node, _)| node.takes_replicas());
            let found: HashSet<u32> = nodes.map(|(_, of)| of[column]).collect();
            found.len()
        };
        Self {
            distinct: (0..columns.len()).map(taking).collect(),
            values,
            groups: settings
                .groups
                .iter()
                .map(|(name, g)| (name.as_str(), of_group(g)))
                .collect(),
            defaults: of_group(&defaults),
        }
    }
}

impl<'a> Board<'a> {
    pub(super) fn new(view: &'a View, settings: &'a Settings) -> Self {
        let by_id: HashMap<_, _> = view
            .nodes
            .iter()
            .enumerate()
            .map(|(i, n)| (n.id, i))
            .collect();
        let mut load = vec![0.0; view.nodes.len()];
        for shard in &view.shards {
            for replica in &shard.replicas {
                if let Some(node) = by_id.get(&replica.node) {
                    load[*node] += cost(shard, replica.node);
                }
            }
        }
        let most = settings.changes_per_node_max;
        Self {
            places: view
                .nodes
                .iter()
                .map(|n| most.saturating_sub(n.changes))
                .collect(),
            taken: view
                .shards
                .iter()
                .map(|s| s.changing || s.is_damaged())
                .collect(),
            labels: Labels::new(view, settings),
            view,
            settings,
            by_id,
            load,
            defaults: GroupSettings::default(),
            rule: Rule::FailOver,
            steps: Vec::new(),
        }
    }

    /// The steps that follow are for this.
    pub(super) fn plans(&mut self, rule: Rule) {
        self.rule = rule;
    }

    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    pub(super) fn now_ms(&self) -> TimestampMs {
        self.view.now_ms
    }

    pub(super) fn is_full(&self) -> bool {
        self.steps.len() >= self.settings.steps_max
    }

    /// Shards of which nothing is planned yet.
    pub(super) fn free_shards(&self) -> Vec<ShardIndex> {
        (0..self.view.shards.len())
            .filter(|s| !self.taken[*s])
            .collect()
    }

    pub(super) fn is_free(&self, shard: ShardIndex) -> bool {
        !self.taken[shard]
    }

    pub(super) fn shard(&self, shard: ShardIndex) -> &'a Shard {
        &self.view.shards[shard]
    }

    pub(super) fn node(&self, node: NodeIndex) -> &'a Node {
        &self.view.nodes[node]
    }

    /// A node by its id; one that is not in the view is not there.
    pub(super) fn index(&self, node: NodeId) -> Option<NodeIndex> {
        self.by_id.get(&node).copied()
    }

    pub(super) fn known(&self, node: NodeId) -> Option<&'a Node> {
        self.index(node).map(|i| self.node(i))
    }

    pub(super) fn group(&self, shard: &Shard) -> &GroupSettings {
        self.settings
            .groups
            .get(&shard.group)
            .unwrap_or(&self.defaults)
    }

    /// Columns of the labels that replicas of a shard are spread by.
    pub(super) fn spread(&self, shard: &Shard) -> &[usize] {
        self.labels
            .groups
            .get(shard.group.as_str())
            .unwrap_or(&self.labels.defaults)
    }

    /// A node's value in a column.
    pub(super) fn label(&self, node: NodeIndex, column: usize) -> u32 {
        self.labels.values[node][column]
    }

    /// Values of a column that there are to choose from.
    pub(super) fn distinct(&self, column: usize) -> usize {
        self.labels.distinct[column]
    }

    /// Load of a node relative to what it can take.
    pub(super) fn share(&self, node: NodeIndex) -> f64 {
        self.share_with(node, 0.0)
    }

    /// The same if so much came to it.
    pub(super) fn share_with(&self, node: NodeIndex, more: f64) -> f64 {
        (self.load[node] + more) / self.node(node).cores.max(f64::MIN_POSITIVE)
    }

    pub(super) fn has_place(&self, node: NodeIndex) -> bool {
        self.places[node] > 0
    }

    /// Where leaders of a shard are wanted: the lower, the more.
    pub(super) fn leader_rank(&self, shard: &Shard, node: &Node) -> usize {
        let wanted = &self.group(shard).leaders;
        let is = |w: &crate::LabelValue| node.labels.get(&w.label) == Some(&w.value);
        wanted.iter().position(is).unwrap_or(wanted.len())
    }

    /// Whether a follower's loss is not made up for yet: it is up, or may come back soon.
    pub(super) fn may_come_back(&self, node: NodeId) -> bool {
        self.known(node).is_some_and(|n| match n.health {
            Health::Up | Health::Suspect => true,
            Health::Down => {
                n.since_ms.saturating_add(self.settings.replace_after_ms) > self.now_ms()
            }
        })
    }

    /// Plans a step.
    pub(super) fn add(&mut self, shard: ShardIndex, action: Action, why: String) {
        let of = self.shard(shard);
        self.taken[shard] = true;
        for (node, more) in changed_costs(of, action) {
            if let Some(i) = self.index(node) {
                self.load[i] += more;
                self.places[i] = self.places[i].saturating_sub(1);
            }
        }
        self.steps.push(Step {
            shard: of.id,
            action,
            rule: self.rule,
            why,
        });
    }
}

/// What a node's replica of a shard costs it; 0 if it has none.
pub(super) fn cost(shard: &Shard, node: NodeId) -> f64 {
    if shard.leader == Some(node) {
        shard.load.of_leader()
    } else if shard.replica(node).is_some() {
        shard.load.of_follower()
    } else {
        0.0
    }
}

/// What an action adds to the load of nodes.
fn changed_costs(shard: &Shard, action: Action) -> Vec<(NodeId, f64)> {
    let (lead, follow) = (shard.load.of_leader(), shard.load.of_follower());
    match action {
        Action::FailOver { to } | Action::Promote { to } => {
            let old = shard.leader.map(|old| (old, follow - lead));
            let new = (to, lead - cost(shard, to));
            old.into_iter().chain([new]).collect()
        }
        Action::AddFollower { to } => vec![(to, follow)],
        Action::RemoveFollower { node } => vec![(node, -cost(shard, node))],
        Action::Move { from, to } => {
            let moved = cost(shard, from);
            vec![(from, -moved), (to, moved)]
        }
    }
}
