//! TSBS cpu-only: every host reports ten integers every interval, each a random walk with steps
//! of N(0, 1) clamped to 0..=100. Same tags, fields, value range and order of lines (all hosts of
//! one moment, then the next) as the public generator.
//!
//! Two cores are shared with the server under test, so a line costs some 100 ns: tags, the text
//! of every possible field value and a table of walk steps are made beforehand.

use crate::hosts;
use crate::random::Random;
use crate::timestamps::{SECOND_NS, parse, parse_seconds};

/// The ten fields, in the order of the lines.
pub(crate) const METRICS: [&str; 10] = [
    "usage_user",
    "usage_system",
    "usage_idle",
    "usage_nice",
    "usage_iowait",
    "usage_irq",
    "usage_softirq",
    "usage_steal",
    "usage_guest",
    "usage_guest_nice",
];
const VALUE_MAX: f32 = 100.0;
const VALUES: usize = VALUE_MAX as usize + 1;
/// Steps drawn beforehand. The walks pick from them at random, so its size shows nowhere.
const STEPS: usize = 1 << 14;
/// A little above the longest line.
const LINE_BYTES_MAX: usize = 400;

/// Which rows there are. The same values give the same bytes on every machine.
#[derive(Clone, Debug, clap::Args)]
pub struct Workload {
    /// Machines that report.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub hosts: u32,
    /// Time between two rows of a host: 10s, 1m, …
    #[arg(long, default_value = "10s", value_parser = seconds)]
    pub interval: u64,
    /// Time from the first row to the last, exclusive: 1h, 24h, 3d, …
    #[arg(long, default_value = "24h", value_parser = seconds)]
    pub span: u64,
    /// Time of the first row, UTC.
    #[arg(long, default_value = "2026-01-01T00:00:00Z", value_parser = instant)]
    pub start: i64,
    /// Chooses tags, walks and query parameters.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

fn seconds(text: &str) -> Result<u64, String> {
    parse_seconds(text).ok_or_else(|| format!("{text:?} is no duration; write 10s, 5m, 24h or 3d"))
}

fn instant(text: &str) -> Result<i64, String> {
    parse(text).ok_or_else(|| format!("{text:?} is no UTC time; write 2026-01-01T00:00:00Z"))
}

impl Workload {
    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> u64 {
        u64::from(self.hosts) * self.moments()
    }

    /// How many times each host reports.
    pub(crate) fn moments(&self) -> u64 {
        self.span.div_ceil(self.interval)
    }

    /// The end of the time range, exclusive, in nanoseconds.
    pub(crate) fn end_ns(&self) -> i64 {
        self.start
            .saturating_add((self.span as i64).saturating_mul(SECOND_NS))
    }
}

/// Lines for one request.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Line protocol, nanosecond timestamps, a newline after each line.
    pub lines: Vec<u8>,
    /// How many lines.
    pub rows: u64,
}

/// Produces the lines of a [`Workload`] in order.
pub struct Generator {
    workload: Workload,
    heads: Vec<Vec<u8>>,
    walks: Vec<[f32; METRICS.len()]>,
    steps: Vec<f32>,
    fields: Vec<Vec<u8>>,
    random: Random,
    next_host: usize,
    next_moment: u64,
    tail: Vec<u8>,
}

impl Generator {
    /// Renders what does not change.
    #[must_use]
    pub fn new(workload: &Workload) -> Self {
        let mut random = Random::new(workload.seed);
        let heads = (0..u64::from(workload.hosts))
            .map(|i| hosts::line_head(i, &mut random))
            .collect();
        let walks = (0..workload.hosts)
            .map(|_| std::array::from_fn(|_| random.unit() as f32 * VALUE_MAX))
            .collect();
        let steps = (0..STEPS).map(|_| random.normal() as f32).collect();
        let fields = METRICS
            .iter()
            .enumerate()
            .flat_map(|(at, name)| {
                let separator = if at == 0 { ' ' } else { ',' };
                (0..VALUES).map(move |value| format!("{separator}{name}={value}i").into_bytes())
            })
            .collect();
        let mut generator = Self {
            workload: workload.clone(),
            heads,
            walks,
            steps,
            fields,
            random,
            next_host: 0,
            next_moment: 0,
            tail: Vec::new(),
        };
        generator.render_tail();
        generator
    }

    /// The next lines, at most `rows_max`; `None` when all were given.
    pub fn next_batch(&mut self, rows_max: usize) -> Option<Batch> {
        let mut lines = Vec::with_capacity(rows_max.min(1 << 20) * LINE_BYTES_MAX);
        let mut rows = 0;
        while rows < rows_max && self.next_moment < self.workload.moments() {
            self.append_line(&mut lines);
            rows += 1;
        }
        (rows > 0).then_some(Batch {
            lines,
            rows: rows as u64,
        })
    }

    fn append_line(&mut self, lines: &mut Vec<u8>) {
        let host = self.next_host;
        lines.extend_from_slice(&self.heads[host]);
        let walk = &mut self.walks[host];
        for (metric, value) in walk.iter_mut().enumerate() {
            lines.extend_from_slice(&self.fields[metric * VALUES + *value as usize]);
            let step = self.steps[(self.random.next() >> (64 - STEPS.trailing_zeros())) as usize];
            *value = (*value + step).clamp(0.0, VALUE_MAX);
        }
        lines.extend_from_slice(&self.tail);
        self.next_host += 1;
        if self.next_host == self.heads.len() {
            self.next_host = 0;
            self.next_moment += 1;
            self.render_tail();
        }
    }

    /// All hosts of one moment share the end of the line.
    fn render_tail(&mut self) {
        let elapsed_ns = (self.next_moment * self.workload.interval) as i64 * SECOND_NS;
        self.tail = format!(" {}\n", self.workload.start + elapsed_ns).into_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Workload {
        Workload {
            hosts: 20,
            interval: 10,
            span: 600,
            start: 1_767_225_600 * SECOND_NS,
            seed: 7,
        }
    }

    fn all_lines(workload: &Workload, rows_max: usize) -> String {
        let mut generator = Generator::new(workload);
        let mut text = Vec::new();
        while let Some(batch) = generator.next_batch(rows_max) {
            text.extend_from_slice(&batch.lines);
        }
        String::from_utf8(text).expect("ASCII")
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_whatever_the_batch_size() {
        let once = all_lines(&small(), 1_000_000);
        assert_eq!(once, all_lines(&small(), 7));
        let other = Workload { seed: 8, ..small() };
        assert_ne!(once, all_lines(&other, 7));
    }

    #[test]
    fn lines_have_the_tags_fields_and_order_of_the_public_generator() {
        let text = all_lines(&small(), 100);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len() as u64, small().rows());
        let mean_bytes = text.len() / lines.len();
        assert!(
            (320..=360).contains(&mean_bytes),
            "{mean_bytes} bytes a line"
        );
        for (at, line) in lines.iter().enumerate() {
            let mut parts = line.split(' ');
            let tags: Vec<&str> = parts.next().expect("tags").split(',').collect();
            assert_eq!(tags[0], "cpu");
            assert_eq!(tags[1], format!("hostname=host_{}", at % 20));
            assert_eq!(tags.len(), 11);
            let region = tags[2].strip_prefix("region=").expect("region second");
            assert!(tags[3].starts_with(&format!("datacenter={region}")));
            for (field, name) in parts.next().expect("fields").split(',').zip(METRICS) {
                let value = field.strip_prefix(name).and_then(|v| v.strip_prefix('='));
                let value = value
                    .and_then(|v| v.strip_suffix('i'))
                    .expect("an integer field");
                assert!(value.parse::<u32>().expect("a number") <= 100);
            }
            let time: i64 = parts.next().expect("time").parse().expect("a number");
            assert_eq!(time, small().start + (at as i64 / 20) * 10 * SECOND_NS);
        }
    }
}
