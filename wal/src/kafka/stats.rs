//! What the Kafka log counts, for metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the produce duration buckets, in milliseconds; the last bucket has none.
pub const PRODUCE_BUCKETS_MS: [f64; 13] = [
    0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0, 5000.0, 30_000.0,
];

/// Counters (since open) and gauges of the Kafka log of this process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KafkaLogStats {
    /// Records confirmed.
    pub records: u64,
    /// Bytes of those records.
    pub appended_bytes: u64,
    /// Records that readers returned.
    pub read_records: u64,
    /// Bytes of those records.
    pub read_bytes: u64,
    /// Appends refused because too much was in flight.
    pub refused_full: u64,
    /// Appends given up because too few replicas confirmed them in time.
    pub commit_timeouts: u64,
    /// Appends that failed otherwise.
    pub append_failures: u64,
    /// Producers replaced after an error that they cannot recover from.
    pub producers_replaced: u64,
    /// Errors that the clients reported (a broker out of reach, a request refused).
    pub client_errors: u64,
    /// Connections to brokers made after the first one to each.
    pub reconnects: u64,
    /// Readers that had to be pointed at their offset again.
    pub reader_resets: u64,
    /// Times from append to confirmation: how many took up to `PRODUCE_BUCKETS_MS[i]` and more
    /// than the bound before; the last element counts those beyond all bounds.
    pub produce_buckets: [u64; PRODUCE_BUCKETS_MS.len() + 1],
    /// Their sum, in microseconds.
    pub produce_us_sum: u64,
    /// Gauge: bytes of records that wait for their confirmation.
    pub in_flight_bytes: u64,
    /// Gauge: their number.
    pub in_flight_records: u64,
    /// Gauge: open readers.
    pub readers: u64,
    /// Gauge: records between what the reader furthest behind has returned and the end of its log
    /// as its last fetch saw it.
    pub fetch_lag_records_max: u64,
}

/// What one reader shows.
#[derive(Debug, Default)]
pub(super) struct ReaderGauge {
    pub(super) lag_records: AtomicU64,
}

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) records: AtomicU64,
    pub(super) appended_bytes: AtomicU64,
    pub(super) read_records: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) refused_full: AtomicU64,
    pub(super) commit_timeouts: AtomicU64,
    pub(super) append_failures: AtomicU64,
    pub(super) producers_replaced: AtomicU64,
    pub(super) client_errors: AtomicU64,
    pub(super) reconnects: AtomicU64,
    pub(super) reader_resets: AtomicU64,
    pub(super) in_flight_bytes: AtomicU64,
    pub(super) in_flight_records: AtomicU64,
    produce_buckets: [AtomicU64; PRODUCE_BUCKETS_MS.len() + 1],
    produce_us_sum: AtomicU64,
}

impl Counters {
    pub(super) fn count_produce(&self, took: Duration, bytes: usize) {
        let took_ms = took.as_secs_f64() * 1e3;
        let bucket = PRODUCE_BUCKETS_MS.partition_point(|bound| *bound < took_ms);
        self.produce_buckets[bucket].fetch_add(1, Relaxed);
        self.produce_us_sum
            .fetch_add(took.as_micros() as u64, Relaxed);
        self.records.fetch_add(1, Relaxed);
        self.appended_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn read(&self, readers: &[Arc<ReaderGauge>]) -> KafkaLogStats {
        let lags = readers.iter().map(|r| r.lag_records.load(Relaxed));
        KafkaLogStats {
            records: self.records.load(Relaxed),
            appended_bytes: self.appended_bytes.load(Relaxed),
            read_records: self.read_records.load(Relaxed),
            read_bytes: self.read_bytes.load(Relaxed),
            refused_full: self.refused_full.load(Relaxed),
            commit_timeouts: self.commit_timeouts.load(Relaxed),
            append_failures: self.append_failures.load(Relaxed),
            producers_replaced: self.producers_replaced.load(Relaxed),
            client_errors: self.client_errors.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            reader_resets: self.reader_resets.load(Relaxed),
            produce_buckets: std::array::from_fn(|i| self.produce_buckets[i].load(Relaxed)),
            produce_us_sum: self.produce_us_sum.load(Relaxed),
            in_flight_bytes: self.in_flight_bytes.load(Relaxed),
            in_flight_records: self.in_flight_records.load(Relaxed),
            readers: readers.len() as u64,
            fetch_lag_records_max: lags.max().unwrap_or(0),
        }
    }
}
