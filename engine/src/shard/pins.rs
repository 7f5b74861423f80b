//! Which manifest versions running statements still read from. An object un-named by version `v`
//! may be deleted only when no view of a version below `v` lives; and how long views lived, which is
//! the time that reads took. Likewise: since when objects are being written that no manifest names
//! yet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use shoal_types::ManifestVersion;

/// Views alive, by the manifest version they were taken at.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    alive: Mutex<BTreeMap<ManifestVersion, usize>>,
    read_us: AtomicU64,
}

/// Keeps a version's files while it lives.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Arc<Pins>,
    version: ManifestVersion,
    since: Instant,
}

impl Pins {
    pub(crate) fn pin(self: &Arc<Self>, version: ManifestVersion) -> Pin {
        *self.alive.lock().entry(version).or_default() += 1;
        Pin {
            pins: Arc::clone(self),
            version,
            since: Instant::now(),
        }
    }

    /// How long views that have ended lived, together, in microseconds.
    pub(crate) fn read_us(&self) -> u64 {
        self.read_us.load(Ordering::Relaxed)
    }

    /// The oldest version that a living view was taken at.
    pub(crate) fn oldest(&self) -> Option<ManifestVersion> {
        self.alive.lock().keys().next().copied()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let lived_us = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.pins.read_us.fetch_add(lived_us, Ordering::Relaxed);
        let mut alive = self.pins.alive.lock();
        if let Some(count) = alive.get_mut(&self.version) {
            *count -= 1;
            if *count == 0 {
                alive.remove(&self.version);
            }
        }
    }
}

/// Flushes and compactions under way, by the moment they began (milliseconds in the ids of the
/// objects they write).
#[derive(Debug, Default)]
pub(crate) struct Production {
    next: AtomicU64,
    begun_ms: Mutex<BTreeMap<u64, u64>>,
}

/// One flush or compaction; ends when dropped.
#[derive(Debug)]
pub(crate) struct Producing {
    all: Arc<Production>,
    number: u64,
}

impl Production {
    pub(crate) fn begin(self: &Arc<Self>) -> Producing {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let now_ms = ulid::Ulid::new().timestamp_ms();
        self.begun_ms.lock().insert(number, now_ms);
        Producing {
            all: Arc::clone(self),
            number,
        }
    }

    /// Objects whose ids are from before this moment are not being written any more.
    pub(crate) fn settled_before_ms(&self) -> u64 {
        let now_ms = ulid::Ulid::new().timestamp_ms();
        let begun = self.begun_ms.lock();
        begun.values().copied().min().unwrap_or(now_ms).min(now_ms)
    }
}

impl Drop for Producing {
    fn drop(&mut self) {
        self.all.begun_ms.lock().remove(&self.number);
    }
}
