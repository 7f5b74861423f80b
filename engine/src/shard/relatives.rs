//! Which objects of a shard others name, too. A file that is handed to a new shard is named by both
//! until each has written its own rows anew; it goes with the last of them.
//!
//! Files go from parent to child only. Shards are therefore read from the oldest on: one that has
//! stopped naming a file has handed it on before, to one that is read after it.

use std::collections::{BTreeSet, HashMap, HashSet};

use shoal_meta::{Catalog, ShardEntry};
use shoal_types::ShardId;

use super::Shard;
use super::adopt::chain_of;
use crate::EngineError;

/// What a shard's relatives name.
#[derive(Debug, Default)]
pub(super) struct NamedByRelatives {
    live: HashSet<String>,
    /// Not any more, by a shard with a higher id than the one that asks.
    obsolete_above: HashSet<String>,
    /// Likewise, with a lower id.
    obsolete_below: HashSet<String>,
}

/// What may become of an object that a shard does not name any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody names it.
    Delete,
    /// Another shard sees to it.
    Forget,
    /// Another shard has still to forget it.
    Keep,
}

impl NamedByRelatives {
    pub(super) fn fate(&self, path: &str) -> Fate {
        if self.live.contains(path) || self.obsolete_above.contains(path) {
            Fate::Forget
        } else if self.obsolete_below.contains(path) {
            Fate::Keep
        } else {
            Fate::Delete
        }
    }

    pub(super) fn names(&self, path: &str) -> bool {
        self.fate(path) != Fate::Delete
    }
}

/// All shards that have a common ancestor with `shard`, itself among them, parents before children.
/// `None`: some of them is not born yet.
fn family(catalog: &Catalog, shard: ShardId) -> Option<Vec<ShardId>> {
    let mut parents: HashMap<ShardId, ShardId> = HashMap::new();
    let mut children: HashMap<ShardId, Vec<(ShardId, ShardEntry)>> = HashMap::new();
    for (id, entry) in catalog.shards() {
        if let Some(birth) = entry.birth {
            parents.insert(id, birth.parent);
            children.entry(birth.parent).or_default().push((id, entry));
        }
    }
    let mut root = shard;
    // No more steps than there are, should the marks lead in a circle.
    for _ in 0..parents.len() {
        root = parents.get(&root).copied().unwrap_or(root);
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(of) = family.get(next).copied() {
        next += 1;
        for (id, entry) in children.remove(&of).unwrap_or_default() {
            if !entry.is_born() {
                return None;
            }
            family.push(id);
        }
    }
    Some(family)
}

impl Shard {
    /// What other shards name of the files that this one may have written or been given. `None`:
    /// nobody can tell at the moment.
    ///
    /// # Errors
    /// A relative's manifests cannot be read.
    pub(super) async fn named_by_relatives(&self) -> Result<Option<NamedByRelatives>, EngineError> {
        let mut named = NamedByRelatives::default();
        let mut read = BTreeSet::from([self.id]);
        if !self.state.read().departed.is_empty() {
            return Ok(None);
        }
        loop {
            let Some(family) = family(&self.env.catalog, self.id) else {
                return Ok(None);
            };
            let mut fresh = family
                .into_iter()
                .filter(|id| !read.contains(id))
                .peekable();
            if fresh.peek().is_none() {
                return Ok(Some(named));
            }
            let fresh: Vec<ShardId> = fresh.collect();
            for id in fresh {
                read.insert(id);
                let Some(newest) = chain_of(&self.env, id).load_newest().await? else {
                    // Its first manifest was there: it is lost.
                    return Ok(None);
                };
                named.live.extend(newest.paths().map(str::to_owned));
                let obsolete = newest.obsolete.iter().map(|o| o.path.clone());
                if id > self.id {
                    named.obsolete_above.extend(obsolete);
                } else {
                    named.obsolete_below.extend(obsolete);
                }
            }
        }
    }
}
