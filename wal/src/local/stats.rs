//! What the local log counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Upper bounds of the fsync duration buckets, in milliseconds; the last bucket has none.
pub const FSYNC_BUCKETS_MS: [f64; 11] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 1000.0,
];

/// Counters (since open) and gauges of the local log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalLogStats {
    /// Records appended and durable.
    pub records: u64,
    /// Bytes of those records.
    pub appended_bytes: u64,
    /// Batches written and durable.
    pub batches: u64,
    /// Calls of fdatasync and fsync on segments, failed ones included.
    pub fsyncs: u64,
    /// Failed ones.
    pub fsync_failures: u64,
    /// Durations: how many took up to `FSYNC_BUCKETS_MS[i]` and more than the bound before; the
    /// last element counts those beyond all bounds.
    pub fsync_buckets: [u64; FSYNC_BUCKETS_MS.len() + 1],
    /// Sum of the durations, in microseconds.
    pub fsync_us_sum: u64,
    /// Appends refused for a full queue or disk.
    pub refused_full: u64,
    /// Gauge: bytes of records that wait for the disk, in flight included.
    pub queue_bytes: u64,
    /// Gauge: segment files.
    pub segments: u64,
    /// Gauge: their bytes.
    pub retained_bytes: u64,
}

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) records: AtomicU64,
    pub(super) appended_bytes: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) refused_full: AtomicU64,
    fsyncs: AtomicU64,
    fsync_failures: AtomicU64,
    fsync_buckets: [AtomicU64; FSYNC_BUCKETS_MS.len() + 1],
    fsync_us_sum: AtomicU64,
}

impl Counters {
    /// Times one sync.
    // The duration only feeds metrics; no verdict and no order depends on it.
    #[allow(clippy::disallowed_methods)]
    pub(super) fn timed_sync<E>(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let began = Instant::now();
        let outcome = sync();
        self.count_sync(began.elapsed(), outcome.is_ok());
        outcome
    }

    fn count_sync(&self, took: Duration, succeeded: bool) {
        let took_ms = took.as_secs_f64() * 1e3;
        let bucket = FSYNC_BUCKETS_MS.partition_point(|bound| *bound < took_ms);
        self.fsyncs.fetch_add(1, Relaxed);
        self.fsync_failures
            .fetch_add(u64::from(!succeeded), Relaxed);
        self.fsync_buckets[bucket].fetch_add(1, Relaxed);
        self.fsync_us_sum
            .fetch_add(took.as_micros() as u64, Relaxed);
    }

    pub(super) fn read(
        &self,
        queue_bytes: u64,
        segments: u64,
        retained_bytes: u64,
    ) -> LocalLogStats {
        LocalLogStats {
            records: self.records.load(Relaxed),
            appended_bytes: self.appended_bytes.load(Relaxed),
            batches: self.batches.load(Relaxed),
            fsyncs: self.fsyncs.load(Relaxed),
            fsync_failures: self.fsync_failures.load(Relaxed),
            fsync_buckets: std::array::from_fn(|i| self.fsync_buckets[i].load(Relaxed)),
            fsync_us_sum: self.fsync_us_sum.load(Relaxed),
            refused_full: self.refused_full.load(Relaxed),
            queue_bytes,
            segments,
            retained_bytes,
        }
    }
}
