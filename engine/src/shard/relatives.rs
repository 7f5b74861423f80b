//! Which objects of a shard others name, too. A file that is handed to a new shard is named by both
//! until each has written its own rows anew; it goes with the last of them.
//!
//! A shard's relatives are all that have an ancestor in common with it. Who they are is told by the
//! folds in their manifests (which shard each comes from, which it has split off), beside meta: a
//! node that does not hear of meta's changes must not take a file for nobody's.
//!
//! Files go from parent to child only, and a shard stops naming one only after its child does. Shards
//! are therefore read from the oldest on: one that has stopped naming a file has handed it on before,
//! to one that is read after it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use shoal_types::ShardId;
use shoal_wal::fold::{Decision, FoldState};

use super::Shard;
use super::adopt::chain_of;
use crate::EngineError;
use crate::env::Env;
use crate::manifest::ManifestState;

/// What shards' manifests say, each read once. Good for one round of collections.
#[derive(Debug, Default)]
pub(crate) struct Relatives(HashMap<ShardId, Arc<Told>>);

/// What one manifest says.
#[derive(Debug)]
struct Told {
    live: HashSet<String>,
    obsolete: HashSet<String>,
    parent: Option<ShardId>,
    children: Vec<ShardId>,
}

/// What a shard's relatives name.
#[derive(Debug)]
pub(super) struct NamedByRelatives {
    me: ShardId,
    relatives: Vec<(ShardId, Arc<Told>)>,
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

fn children_of(fold: &FoldState) -> Vec<ShardId> {
    let child = |decision: Decision| match decision {
        Decision::Split { child } => Some(child),
        _ => None,
    };
    fold.decisions().filter_map(|d| child(d.decision)).collect()
}

impl Told {
    fn by(manifest: &ManifestState) -> Self {
        Self {
            live: manifest.paths().map(str::to_owned).collect(),
            obsolete: manifest.obsolete.iter().map(|o| o.path.clone()).collect(),
            parent: manifest.fold.origin().map(|origin| origin.shard),
            children: children_of(&manifest.fold),
        }
    }
}

impl Relatives {
    /// What a shard's newest manifest says; `None`: it has none (yet).
    async fn of(&mut self, env: &Env, shard: ShardId) -> Result<Option<Arc<Told>>, EngineError> {
        if let Some(told) = self.0.get(&shard) {
            return Ok(Some(Arc::clone(told)));
        }
        let Some(newest) = chain_of(env, shard).load_newest().await? else {
            return Ok(None);
        };
        let told = Arc::new(Told::by(&newest));
        self.0.insert(shard, Arc::clone(&told));
        Ok(Some(told))
    }
}

impl NamedByRelatives {
    pub(super) fn fate(&self, path: &str) -> Fate {
        let live = |(_, told): &(ShardId, Arc<Told>)| told.live.contains(path);
        if self.relatives.iter().any(live) {
            return Fate::Forget;
        }
        let obsolete = self.relatives.iter();
        let obsolete = obsolete.filter(|(_, told)| told.obsolete.contains(path));
        match obsolete.map(|(id, _)| *id).max() {
            Some(last) if last > self.me => Fate::Forget,
            Some(_) => Fate::Keep,
            None => Fate::Delete,
        }
    }

    pub(super) fn names(&self, path: &str) -> bool {
        self.fate(path) != Fate::Delete
    }
}

impl Shard {
    /// What other shards name of the files that this one may have written or been given. `None`:
    /// nobody can tell at the moment. What this shard names or does not name must have been looked up
    /// before.
    ///
    /// # Errors
    /// A relative's manifests cannot be read.
    pub(super) async fn named_by_relatives(
        &self,
        known: &mut Relatives,
    ) -> Result<Option<NamedByRelatives>, EngineError> {
        let (env, catalog) = (&self.env, &self.env.catalog);
        let (mut above, children) = {
            let state = self.state.read();
            if !state.departed.is_empty() {
                return Ok(None);
            }
            let parent = state.fold.origin().map(|origin| origin.shard);
            (parent, children_of(&state.fold))
        };
        let (mut root, mut passed) = (self.id, BTreeSet::from([self.id]));
        while let Some(parent) = above.filter(|parent| passed.insert(*parent)) {
            let Some(told) = known.of(env, parent).await? else {
                return Ok(None);
            };
            (root, above) = (parent, told.parent);
        }
        let mut relatives = Vec::new();
        let (mut next, mut found) = (VecDeque::from([root]), BTreeSet::from([root]));
        while let Some(id) = next.pop_front() {
            let mut below = if id == self.id {
                children.clone()
            } else {
                let Some(told) = known.of(env, id).await? else {
                    return Ok(None);
                };
                let below = told.children.clone();
                relatives.push((id, told));
                below
            };
            for (child, entry) in catalog.children_of(id) {
                if !entry.is_born() {
                    return Ok(None);
                }
                below.push(child);
            }
            next.extend(below.into_iter().filter(|child| found.insert(*child)));
        }
        let me = self.id;
        Ok(Some(NamedByRelatives { me, relatives }))
    }
}
