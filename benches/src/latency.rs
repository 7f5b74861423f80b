//! Latencies of any number of requests in a fixed space.

use std::time::Duration;

/// Each power of two is cut into this many buckets: an error of at most 1/32.
const BUCKETS_PER_DOUBLING: u64 = 32;
const BUCKETS: usize = 64 * BUCKETS_PER_DOUBLING as usize;

/// A histogram with buckets that grow with the value.
#[derive(Clone)]
pub(crate) struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max_us: u64,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        Self {
            buckets: vec![0; BUCKETS],
            count: 0,
            max_us: 0,
        }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(us)] += 1;
        self.count += 1;
        self.max_us = self.max_us.max(us);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// The latency in milliseconds that `quantile` of the requests did not exceed; 0 for none.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        let wanted = (self.count as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_us(at).min(self.max_us) as f64 / 1000.0;
            }
        }
        0.0
    }
}

fn bucket(us: u64) -> usize {
    if us < BUCKETS_PER_DOUBLING {
        return us as usize;
    }
    let doublings = u64::from(us.ilog2()) - u64::from(BUCKETS_PER_DOUBLING.ilog2());
    (doublings * BUCKETS_PER_DOUBLING + (us >> doublings)) as usize
}

/// The largest value of a bucket.
fn upper_us(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * BUCKETS_PER_DOUBLING {
        return bucket;
    }
    let doublings = bucket / BUCKETS_PER_DOUBLING - 1;
    ((bucket - doublings * BUCKETS_PER_DOUBLING + 1) << doublings) - 1
}

/// The median of measured milliseconds; 0 for none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_thirtysecond_of_the_truth() {
        let mut latencies = Latencies::new();
        for us in 1..=100_000 {
            latencies.record(Duration::from_micros(us));
        }
        for (quantile, truth_ms) in [(0.01, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let got = latencies.quantile_ms(quantile);
            assert!(
                (got / truth_ms - 1.0).abs() <= 1.0 / 32.0,
                "{quantile}: {got}"
            );
        }
        assert_eq!(Latencies::new().quantile_ms(0.5), 0.0);
    }

    #[test]
    fn every_value_lies_within_its_bucket() {
        for us in (0..5000).chain([1 << 20, (1 << 20) + 12345, u64::from(u32::MAX)]) {
            let at = bucket(us);
            assert!(us <= upper_us(at));
            assert!(at == 0 || us > upper_us(at - 1));
        }
    }
}
