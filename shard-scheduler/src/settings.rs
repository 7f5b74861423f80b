//! What operators want; kept in meta, the same for every scheduler.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_types::{ShardId, TimestampMs};

/// Labels that replicas are spread by, at most: 16 bits of 128 are for each.
const SPREAD_MAX: usize = 8;

/// Longest times, in ms.
const TIME_MAX_MS: u64 = 366 * 24 * 3600 * 1000;
/// Largest numbers of changes.
const COUNT_MAX: usize = 1_000_000;
/// Length of names.
const WORD_BYTES_MAX: usize = 128;

fn is_word(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    (1..=WORD_BYTES_MAX).contains(&text.len()) && text.chars().all(fits)
}

/// The group of shards that are named nowhere.
const DEFAULT_GROUP: &str = "default";

/// All settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Counts their changes; a change of settings that were read must name the version that was
    /// read, or 0: whatever they are.
    pub version: u64,
    /// Balance by load.
    pub balance: BalanceSettings,
    /// A follower that is away for this long is replaced by another one, in ms.
    pub replace_after_ms: u64,
    /// Most changes at a time that one node takes part in; failovers are not counted.
    pub changes_per_node_max: usize,
    /// Most steps of one round.
    pub steps_max: usize,
    /// Settings of shards, by group; `default` is that of shards that are named nowhere.
    pub groups: BTreeMap<String, GroupSettings>,
    /// Shards of other groups.
    pub shards: BTreeMap<ShardId, String>,
}

/// When load is moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalanceSettings {
    /// Whether it is.
    pub on: bool,
    /// Nodes whose load is within this share of the mean are left alone.
    pub tolerance: f64,
    /// A shard that was moved stays for this long, in ms.
    pub rest_ms: u64,
}

/// What a group of shards is to have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupSettings {
    /// Replicas of each shard: one leader, the others follow.
    pub replication: usize,
    /// Labels whose values the replicas of a shard are to differ in, the most important first.
    pub spread: Vec<String>,
    /// Where leaders are to be, the most wanted first; anywhere else comes after these.
    pub leaders: Vec<LabelValue>,
}

/// A label and its value, as `zone=a`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LabelValue {
    /// The label.
    pub label: String,
    /// Its value.
    pub value: String,
}

/// What is wrong with settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError(pub String);

impl std::fmt::Display for SettingsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SettingsError {}

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: 0,
            balance: BalanceSettings::default(),
            replace_after_ms: 60_000,
            changes_per_node_max: 4,
            steps_max: 2_000,
            groups: BTreeMap::new(),
            shards: BTreeMap::new(),
        }
    }
}

impl Default for BalanceSettings {
    fn default() -> Self {
        Self {
            on: true,
            tolerance: 0.1,
            rest_ms: 10 * 60 * 1000,
        }
    }
}

impl Default for GroupSettings {
    fn default() -> Self {
        Self {
            replication: 2,
            spread: ["region", "zone", "rack", "host"].map(Into::into).into(),
            leaders: Vec::new(),
        }
    }
}

impl From<LabelValue> for String {
    fn from(LabelValue { label, value }: LabelValue) -> Self {
        format!("{label}={value}")
    }
}

impl TryFrom<String> for LabelValue {
    type Error = SettingsError;

    fn try_from(text: String) -> Result<Self, SettingsError> {
        match text.split_once('=') {
            Some((label, value)) if !label.is_empty() && !value.is_empty() => Ok(Self {
                label: label.into(),
                value: value.into(),
            }),
            _ => Err(SettingsError(format!(
                "{text:?} is no label: write it as zone=a"
            ))),
        }
    }
}

impl Settings {
    /// Whether they can be used.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn check(&self) -> Result<(), SettingsError> {
        let refused = |what: String| Err(SettingsError(what));
        let tolerance = self.balance.tolerance;
        if !(0.01..=1.0).contains(&tolerance) {
            return refused(format!(
                "balance.tolerance is {tolerance}, it must be from 0.01 to 1"
            ));
        }
        for (name, value) in [
            ("replace_after_ms", self.replace_after_ms),
            ("balance.rest_ms", self.balance.rest_ms),
        ] {
            if value > TIME_MAX_MS {
                return refused(format!(
                    "{name} is {value}, it must be from 0 to {TIME_MAX_MS} (a year)"
                ));
            }
        }
        for (name, value) in [
            ("changes_per_node_max", self.changes_per_node_max),
            ("steps_max", self.steps_max),
        ] {
            if !(1..=COUNT_MAX).contains(&value) {
                return refused(format!(
                    "{name} is {value}, it must be from 1 to {COUNT_MAX}"
                ));
            }
        }
        for (name, group) in &self.groups {
            if !is_word(name) {
                return refused(format!(
                    "{name:?} cannot name a group: use 1 to {WORD_BYTES_MAX} of A-Z, a-z, 0-9, '_' and '-'"
                ));
            }
            let mut labels: Vec<&String> = group.spread.iter().collect();
            labels.sort_unstable();
            labels.dedup();
            let wrong = group
                .spread
                .iter()
                .any(|l| l.is_empty() || l.len() > WORD_BYTES_MAX);
            if wrong || labels.len() != group.spread.len() {
                return refused(format!(
                    "groups.{name}.spread has a label that is empty, longer than {WORD_BYTES_MAX} bytes or there twice"
                ));
            }
            if !(1..=16).contains(&group.replication) {
                return refused(format!(
                    "groups.{name}.replication is {}, it must be from 1 to 16",
                    group.replication
                ));
            }
            if group.spread.len() > SPREAD_MAX {
                return refused(format!(
                    "groups.{name}.spread has {} labels, at most {SPREAD_MAX} are compared",
                    group.spread.len()
                ));
            }
        }
        for (shard, group) in &self.shards {
            if group != DEFAULT_GROUP && !self.groups.contains_key(group) {
                return refused(format!(
                    "shards.{shard} is {group:?}, there is no such group"
                ));
            }
        }
        Ok(())
    }

    /// Replicas that shards of a group are to have.
    #[must_use]
    pub fn replication(&self, group: &str) -> usize {
        let default = || GroupSettings::default().replication;
        self.groups
            .get(group)
            .map_or_else(default, |g| g.replication)
    }

    /// The group of a shard.
    #[must_use]
    pub fn group_of(&self, shard: ShardId) -> &str {
        self.shards
            .get(&shard)
            .map_or(DEFAULT_GROUP, String::as_str)
    }

    /// Whether a shard that was last moved then may be moved again.
    pub(crate) fn rested(&self, balanced_ms: Option<TimestampMs>, now_ms: TimestampMs) -> bool {
        balanced_ms.is_none_or(|at| at.saturating_add(self.balance.rest_ms) <= now_ms)
    }
}
