//! The places of shards in this process. A shard that was split off gets one when it is born.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use shoal_types::ShardId;

use super::{Role, Served, Work};

/// A shard's place in this process.
pub(crate) struct Slot {
    pub id: ShardId,
    pub wanted: Mutex<Role>,
    pub served: RwLock<Served>,
    /// Held by whoever opens it or changes its role.
    pub turn: tokio::sync::Mutex<()>,
    pub work: Mutex<Work>,
}

impl Slot {
    pub(crate) fn new(id: ShardId, wanted: Role, served: Served) -> Self {
        Self {
            id,
            wanted: Mutex::new(wanted),
            served: RwLock::new(served),
            turn: tokio::sync::Mutex::new(()),
            work: Mutex::default(),
        }
    }
}

/// All places, by shard.
#[derive(Default)]
pub(crate) struct Slots(RwLock<BTreeMap<ShardId, Arc<Slot>>>);

impl Slots {
    pub(crate) fn get(&self, id: ShardId) -> Option<Arc<Slot>> {
        self.0.read().get(&id).cloned()
    }

    /// All there are at this moment, ascending by id.
    pub(crate) fn all(&self) -> Vec<Arc<Slot>> {
        self.0.read().values().cloned().collect()
    }

    /// Their shards.
    pub(crate) fn ids(&self) -> Vec<ShardId> {
        self.0.read().keys().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.read().len()
    }

    pub(crate) fn contains(&self, id: ShardId) -> bool {
        self.0.read().contains_key(&id)
    }

    /// Makes a place, unless there is one.
    pub(crate) fn add(&self, slot: Slot) {
        let mut slots = self.0.write();
        slots.entry(slot.id).or_insert_with(|| Arc::new(slot));
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<T: IntoIterator<Item = Slot>>(slots: T) -> Self {
        let slots = slots.into_iter().map(|slot| (slot.id, Arc::new(slot)));
        Self(RwLock::new(slots.collect()))
    }
}
