//! The fifteen queries of TSBS cpu-only, in SQL that ShoalDB, PostgreSQL and DuckDB all read, so
//! that the same text can be run by an independent engine on the same rows.

use crate::random::Random;
use crate::timestamps::{SECOND_NS, sql_text};
use crate::workload::METRICS;
use crate::{BenchError, Workload};

/// Their names, as the suite has them.
pub const QUERY_NAMES: [&str; 15] = [
    "single-groupby-1-1-1",
    "single-groupby-1-1-12",
    "single-groupby-1-8-1",
    "single-groupby-5-1-1",
    "single-groupby-5-1-12",
    "single-groupby-5-8-1",
    "cpu-max-all-1",
    "cpu-max-all-8",
    "double-groupby-1",
    "double-groupby-5",
    "double-groupby-all",
    "high-cpu-1",
    "high-cpu-all",
    "lastpoint",
    "groupby-orderby-limit",
];

const HOUR_NS: i64 = 3600 * SECOND_NS;
/// Windows of the queries that do not have theirs in the name.
const MAX_ALL_HOURS: i64 = 8;
const DOUBLE_GROUPBY_HOURS: i64 = 12;
const HIGH_CPU_HOURS: i64 = 12;

/// One query with its parameters filled in.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Statement {
    /// One of [`QUERY_NAMES`].
    pub query: &'static str,
    /// Which of the samples; those below 0 warm up and are not measured.
    pub sample: i64,
    /// The text.
    pub sql: String,
    /// Whether the text fixes the order of the rows.
    pub ordered: bool,
}

/// `samples` statements of one query, after `warmups` others. Which windows and hosts depends on
/// the workload and its seed alone, so a second engine gets the same ones.
///
/// # Errors
/// [`BenchError::Usage`] for a name that is not in [`QUERY_NAMES`].
pub fn statements(
    query: &str,
    workload: &Workload,
    warmups: u32,
    samples: u32,
) -> Result<Vec<Statement>, BenchError> {
    let Some(at) = QUERY_NAMES.iter().position(|name| *name == query) else {
        let known = QUERY_NAMES.join(", ");
        return Err(BenchError::Usage(format!(
            "no query {query:?}; there are {known}"
        )));
    };
    // A seed a query, so that running some of them alone changes no parameters.
    let mut parameters = Parameters {
        random: Random::new(workload.seed ^ ((at as u64 + 1) << 32)),
        workload,
    };
    Ok((-i64::from(warmups)..i64::from(samples))
        .map(|sample| Statement {
            query: QUERY_NAMES[at],
            sample,
            sql: text(QUERY_NAMES[at], &mut parameters),
            ordered: !query.starts_with("high-cpu"),
        })
        .collect())
}

fn text(query: &str, parameters: &mut Parameters<'_>) -> String {
    match query {
        "single-groupby-1-1-1" => single_groupby(parameters, 1, 1, 1),
        "single-groupby-1-1-12" => single_groupby(parameters, 1, 1, 12),
        "single-groupby-1-8-1" => single_groupby(parameters, 1, 8, 1),
        "single-groupby-5-1-1" => single_groupby(parameters, 5, 1, 1),
        "single-groupby-5-1-12" => single_groupby(parameters, 5, 1, 12),
        "single-groupby-5-8-1" => single_groupby(parameters, 5, 8, 1),
        "cpu-max-all-1" => max_all(parameters, 1),
        "cpu-max-all-8" => max_all(parameters, 8),
        "double-groupby-1" => double_groupby(parameters, 1),
        "double-groupby-5" => double_groupby(parameters, 5),
        "double-groupby-all" => double_groupby(parameters, METRICS.len()),
        "high-cpu-1" => high_cpu(parameters, Some(1)),
        "high-cpu-all" => high_cpu(parameters, None),
        "lastpoint" => {
            "SELECT DISTINCT ON (hostname) * FROM cpu ORDER BY hostname, time DESC".into()
        }
        _ => groupby_orderby_limit(parameters),
    }
}

/// The most of some metrics a minute, for some hosts and hours.
fn single_groupby(
    parameters: &mut Parameters<'_>,
    metrics: usize,
    hosts: u64,
    hours: i64,
) -> String {
    let window = parameters.window(hours);
    let hosts = parameters.hosts(hosts);
    format!(
        "SELECT date_trunc('minute', time) AS minute, {} FROM cpu WHERE {hosts} AND {window} GROUP BY minute ORDER BY minute",
        aggregates("max", metrics),
    )
}

/// The most of every metric an hour, for some hosts.
fn max_all(parameters: &mut Parameters<'_>, hosts: u64) -> String {
    let window = parameters.window(MAX_ALL_HOURS);
    let hosts = parameters.hosts(hosts);
    format!(
        "SELECT date_trunc('hour', time) AS hour, {} FROM cpu WHERE {hosts} AND {window} GROUP BY hour ORDER BY hour",
        aggregates("max", METRICS.len()),
    )
}

/// Means an hour and host.
fn double_groupby(parameters: &mut Parameters<'_>, metrics: usize) -> String {
    let window = parameters.window(DOUBLE_GROUPBY_HOURS);
    format!(
        "SELECT date_trunc('hour', time) AS hour, hostname, {} FROM cpu WHERE {window} GROUP BY hour, hostname ORDER BY hour, hostname",
        aggregates("avg", metrics),
    )
}

/// Whole rows of busy moments.
fn high_cpu(parameters: &mut Parameters<'_>, hosts: Option<u64>) -> String {
    let window = parameters.window(HIGH_CPU_HOURS);
    let hosts = hosts
        .map(|n| format!(" AND {}", parameters.hosts(n)))
        .unwrap_or_default();
    format!("SELECT * FROM cpu WHERE usage_user > 90.0 AND {window}{hosts}")
}

/// The last five minutes before a moment, over all hosts.
fn groupby_orderby_limit(parameters: &mut Parameters<'_>) -> String {
    let (_, end) = parameters.range(1);
    format!(
        "SELECT date_trunc('minute', time) AS minute, max(usage_user) AS max_usage_user FROM cpu WHERE time < TIMESTAMP '{}' GROUP BY minute ORDER BY minute DESC LIMIT 5",
        sql_text(end),
    )
}

fn aggregates(function: &str, metrics: usize) -> String {
    let terms: Vec<String> = METRICS[..metrics]
        .iter()
        .map(|metric| format!("{function}({metric}) AS {function}_{metric}"))
        .collect();
    terms.join(", ")
}

/// Draws windows and hosts.
struct Parameters<'a> {
    random: Random,
    workload: &'a Workload,
}

impl Parameters<'_> {
    /// A range of some hours within the data (all of it, if it is shorter), to the millisecond.
    fn range(&mut self, hours: i64) -> (i64, i64) {
        const MILLISECOND_NS: i64 = 1_000_000;
        let slack = (self.workload.end_ns() - self.workload.start - hours * HOUR_NS).max(0);
        let shift = self.random.below((slack / MILLISECOND_NS) as u64 + 1) as i64 * MILLISECOND_NS;
        let start = self.workload.start + shift;
        (start, (start + hours * HOUR_NS).min(self.workload.end_ns()))
    }

    fn window(&mut self, hours: i64) -> String {
        let (start, end) = self.range(hours);
        format!(
            "time >= TIMESTAMP '{}' AND time < TIMESTAMP '{}'",
            sql_text(start),
            sql_text(end)
        )
    }

    /// A condition that holds for `count` different hosts (all, if there are fewer).
    fn hosts(&mut self, count: u64) -> String {
        let all = u64::from(self.workload.hosts);
        let mut chosen: Vec<u64> = Vec::new();
        while (chosen.len() as u64) < count.min(all) {
            let host = self.random.below(all);
            if !chosen.contains(&host) {
                chosen.push(host);
            }
        }
        let names: Vec<String> = chosen.iter().map(|host| format!("'host_{host}'")).collect();
        format!("hostname IN ({})", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day() -> Workload {
        Workload {
            hosts: 10,
            interval: 10,
            span: 86_400,
            start: 1_767_225_600 * SECOND_NS,
            seed: 1,
        }
    }

    #[test]
    fn every_named_query_has_statements_that_differ_by_sample_and_repeat_by_seed() {
        for name in QUERY_NAMES {
            let first = statements(name, &day(), 2, 5).expect("known");
            assert_eq!(first.len(), 7);
            assert_eq!(first[0].sample, -2);
            assert_eq!(first, statements(name, &day(), 2, 5).expect("known"));
            assert_eq!(
                first[5].sql == first[6].sql,
                name == "lastpoint",
                "{}",
                first[5].sql
            );
        }
        assert!(statements("lastpint", &day(), 0, 1).is_err());
    }

    #[test]
    fn windows_stay_within_the_data_even_when_it_is_shorter() {
        let hour = Workload {
            span: 3600,
            ..day()
        };
        let only = &statements("cpu-max-all-8", &hour, 0, 1).expect("known")[0];
        assert!(
            only.sql
                .contains("time >= TIMESTAMP '2026-01-01 00:00:00.000'"),
            "{}",
            only.sql
        );
        assert!(
            only.sql
                .contains("time < TIMESTAMP '2026-01-01 01:00:00.000'"),
            "{}",
            only.sql
        );
        assert_eq!(only.sql.matches("host_").count(), 8);
    }
}
