//! The memory level of the byte cache: blocks of objects, least recently used go first.

use std::hash::Hash;

use bytes::Bytes;
use lru::LruCache;
use object_store::path::Path;
use parking_lot::Mutex;

use crate::ObjectLayout;
use crate::stats::LevelStats;

/// Locks are held for a map operation only; a few shards keep readers out of each other's way.
const SHARDS: usize = 16;

/// An object in the cache: its ULID, which is unique for ever, or a hash of another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId(pub(crate) u128);

impl FileId {
    pub(crate) fn of(path: &Path) -> Self {
        match ObjectLayout::sst_name(path) {
            Some(name) => Self(name.ulid.0),
            None => {
                let half = |seed: u64| {
                    ahash::RandomState::with_seeds(seed, 0x5bd1, 0xe995, 7).hash_one(path.as_ref())
                };
                Self(u128::from(half(11)) << 64 | u128::from(half(13)))
            }
        }
    }
}

/// A block of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockKey {
    pub(crate) file: FileId,
    pub(crate) block: u32,
}

/// A cache bounded by the weight of its entries.
pub(crate) struct WeightedLru<K: Hash + Eq, V> {
    entries: LruCache<K, (V, usize), ahash::RandomState>,
    weight: usize,
    weight_max: usize,
}

impl<K: Hash + Eq, V: Clone> WeightedLru<K, V> {
    pub(crate) fn new(weight_max: usize) -> Self {
        Self {
            entries: LruCache::unbounded_with_hasher(ahash::RandomState::new()),
            weight: 0,
            weight_max,
        }
    }

    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    pub(crate) fn weight_max(&self) -> usize {
        self.weight_max
    }

    /// Whether there is an entry; does not count as its use.
    pub(crate) fn has(&self, key: &K) -> bool {
        self.entries.contains(key)
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        self.entries.get(key).map(|(value, _)| value.clone())
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<(V, usize)> {
        let removed = self.entries.pop(key)?;
        self.weight -= removed.1;
        Some(removed)
    }

    /// Puts an entry and returns what had to go for it.
    pub(crate) fn put(&mut self, key: K, value: V, weight: usize) -> Vec<(K, V, usize)> {
        let mut gone = Vec::new();
        if weight > self.weight_max {
            return vec![(key, value, weight)];
        }
        self.weight += weight;
        if let Some((key, (value, weight))) = self.entries.push(key, (value, weight)) {
            self.weight -= weight;
            gone.push((key, value, weight));
        }
        while self.weight > self.weight_max {
            let Some((key, (value, weight))) = self.entries.pop_lru() else {
                break;
            };
            self.weight -= weight;
            gone.push((key, value, weight));
        }
        gone
    }
}

/// Blocks in memory.
pub(crate) struct BlockCache {
    shards: Vec<Mutex<WeightedLru<BlockKey, Bytes>>>,
}

impl BlockCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            shards: (0..SHARDS)
                .map(|_| Mutex::new(WeightedLru::new(bytes_max / SHARDS)))
                .collect(),
        }
    }

    fn shard(&self, key: BlockKey) -> &Mutex<WeightedLru<BlockKey, Bytes>> {
        let mixed = (key.file.0 as u64 ^ (key.file.0 >> 64) as u64)
            .wrapping_add(u64::from(key.block))
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.shards[(mixed >> 60) as usize % SHARDS]
    }

    pub(crate) fn get(&self, key: BlockKey) -> Option<Bytes> {
        self.shard(key).lock().get(&key)
    }

    pub(crate) fn put(&self, key: BlockKey, block: Bytes, stats: &LevelStats) {
        // Without the overhead per entry a cache of tiny blocks would pass its bound.
        let weight = block.len() + 96;
        let gone = self.shard(key).lock().put(key, block, weight);
        let removed: usize = gone.iter().map(|g| g.2).sum();
        stats.held(weight as u64, removed as u64);
        stats.evictions.add(gone.len() as u64);
    }
}
