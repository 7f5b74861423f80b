//! Counters of the caches, for metrics and for `EXPLAIN ANALYZE`.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One level of a cache.
#[derive(Debug, Default)]
pub struct LevelStats {
    /// Blocks (or footers) found.
    pub hits: Counter,
    /// Blocks (or footers) not found.
    pub misses: Counter,
    /// Entries dropped to keep the bound.
    pub evictions: Counter,
    /// Bytes held now.
    pub(crate) bytes: AtomicU64,
}

impl LevelStats {
    /// Bytes held now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn held(&self, added: u64, removed: u64) {
        self.bytes.fetch_add(added, Ordering::Relaxed);
        self.bytes.fetch_sub(removed, Ordering::Relaxed);
    }
}

/// All counters of an [`crate::SstStore`].
#[derive(Debug, Default)]
pub struct SstStats {
    /// Blocks in memory.
    pub memory: LevelStats,
    /// Blocks on the cache disk.
    pub disk: LevelStats,
    /// Footers, page indexes and series indexes.
    pub metadata: LevelStats,
    /// Requests sent to the object store.
    pub store_requests: Counter,
    /// Bytes read from the object store.
    pub store_bytes: Counter,
    /// Of them, bytes fetched ahead of readers.
    pub warmed_bytes: Counter,
    /// Objects found damaged.
    pub damaged: Counter,
}

/// What one reader (or all readers of one statement) did.
#[derive(Debug, Default)]
pub struct ReadCounters {
    /// Bytes that the decoder asked for, from wherever they came; footers not counted.
    pub bytes_read: Counter,
    /// Bytes that had to be read from the object store.
    pub bytes_fetched: Counter,
    /// Blocks found in a cache.
    pub cache_hits: Counter,
    /// Blocks not found in a cache.
    pub cache_misses: Counter,
}
