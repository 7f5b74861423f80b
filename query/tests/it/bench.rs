//! Timings on the TSBS shape, 400 hosts × 24 h; run in release with `--ignored --nocapture`.

use std::time::{Duration, Instant};

use crate::support::Fixture;

const FIELDS: [&str; 10] = [
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
const TAGS: [&str; 10] = [
    "hostname",
    "region",
    "datacenter",
    "rack",
    "os",
    "arch",
    "team",
    "service",
    "service_version",
    "service_environment",
];

fn queries() -> Vec<(String, String)> {
    let range = |hours: u32| {
        format!(
            "time >= '2016-01-01T{:02}:00:00' AND time < '2016-01-01T{:02}:00:00'",
            8,
            8 + hours
        )
    };
    let hosts = |n: u32| {
        let names: Vec<String> = (0..n).map(|i| format!("'host_{}'", 17 + i * 31)).collect();
        if n == 1 {
            format!("hostname = {}", names[0])
        } else {
            format!("hostname IN ({})", names.join(", "))
        }
    };
    let maxes = |n: usize, f: &str| {
        let all: Vec<String> = FIELDS[..n].iter().map(|c| format!("{f}({c})")).collect();
        all.join(", ")
    };
    let mut out = Vec::new();
    for (metrics, host_count, hours) in [
        (1, 1, 1),
        (1, 1, 12),
        (1, 8, 1),
        (5, 1, 1),
        (5, 1, 12),
        (5, 8, 1),
    ] {
        out.push((
            format!("single-groupby-{metrics}-{host_count}-{hours}"),
            format!(
                "SELECT date_trunc('minute', time) AS minute, {} FROM cpu WHERE {} AND {} GROUP BY minute ORDER BY minute",
                maxes(metrics, "max"), hosts(host_count), range(hours)
            ),
        ));
    }
    for n in [1, 8] {
        out.push((
            format!("cpu-max-all-{n}"),
            format!(
                "SELECT date_trunc('hour', time) AS hour, {} FROM cpu WHERE {} AND {} GROUP BY hour ORDER BY hour",
                maxes(10, "max"), hosts(n), range(8)
            ),
        ));
    }
    for n in [1, 5, 10] {
        if n != 10 {
            out.push((
                format!("double-groupby-{n}"),
                format!("SELECT date_trunc('hour', time) AS hour, hostname, {} FROM cpu WHERE {} GROUP BY hour, hostname ORDER BY hour, hostname", maxes(n, "avg"), range(12)),
            ));
        } else {
            out.push((
                "double-groupby-all".into(),
                format!("SELECT date_trunc('hour', time) AS hour, hostname, {} FROM cpu WHERE {} GROUP BY hour, hostname ORDER BY hour, hostname", maxes(10, "avg"), range(12)),
            ));
        }
    }
    out.push((
        "high-cpu-all".into(),
        format!(
            "SELECT * FROM cpu WHERE usage_user > 90.0 AND {}",
            range(12)
        ),
    ));
    out.push((
        "high-cpu-1".into(),
        format!(
            "SELECT * FROM cpu WHERE usage_user > 90.0 AND {} AND {}",
            range(12),
            hosts(1)
        ),
    ));
    out.push((
        "lastpoint".into(),
        "SELECT DISTINCT ON (hostname) * FROM cpu ORDER BY hostname, time DESC".into(),
    ));
    out.push((
        "groupby-orderby-limit".into(),
        "SELECT date_trunc('minute', time) AS minute, max(usage_user) FROM cpu WHERE time < '2016-01-01T20:00:00' GROUP BY minute ORDER BY minute DESC LIMIT 5".into(),
    ));
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn tsbs() {
    let steps: u64 = std::env::var("STEPS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(8640);
    let db = Fixture::with(|c| c.statement_timeout_ms = 0).await;
    let tags: Vec<String> = TAGS.iter().map(|t| format!("{t} TEXT")).collect();
    let fields: Vec<String> = FIELDS.iter().map(|f| format!("{f} BIGINT")).collect();
    db.ok(&format!(
        "CREATE TABLE cpu (time TIMESTAMP(9), {}, {}, PRIMARY KEY ({}, time))",
        tags.join(", "),
        fields.join(", "),
        TAGS.join(", ")
    ))
    .await;
    let tag_values: Vec<String> = TAGS
        .iter()
        .enumerate()
        .map(|(i, t)| {
            if i == 0 {
                "'host_' || (v % 400)".into()
            } else {
                format!("'{t}_' || ((v % 400) * {} % {})", 7 + i, 3 + i * 2)
            }
        })
        .collect();
    let field_values: Vec<String> = (0..10)
        .map(|i| {
            format!(
                "(abs(sin(v * {}.0) * 50 + sin((v / 400) / {}.0) * 50))::BIGINT",
                i + 1,
                50 + i
            )
        })
        .collect();
    let began = Instant::now();
    for part in 0..8_u64 {
        let (from, to) = (steps * 400 * part / 8, steps * 400 * (part + 1) / 8);
        db.ok(&format!(
            "INSERT INTO cpu SELECT to_timestamp_nanos(1451606400000000000 + (v / 400) * 10000000000), {}, {} FROM generate_series({from}, {to} - 1) AS g(v)",
            tag_values.join(", "),
            field_values.join(", ")
        ))
        .await;
    }
    println!("load {:?}", began.elapsed());
    let memory = std::env::var("MEMORY").is_ok();
    if !memory {
        db.flush().await;
        db.engine.database().compact(None).await.expect("compact");
    }
    println!(
        "{:?}",
        db.ok("SELECT count(*), sum(bytes), sum(rows) FROM system.ssts")
            .await
    );
    let only = std::env::var("ONLY").ok();
    for (name, sql) in queries() {
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        let mut times: Vec<Duration> = Vec::new();
        let mut rows = 0;
        for _ in 0..11 {
            let began = Instant::now();
            rows = count(&db, &sql).await;
            times.push(began.elapsed());
        }
        times.sort();
        println!(
            "{name:25} {:>9.2} ms  {rows} rows",
            times[5].as_secs_f64() * 1000.0
        );
        if std::env::var("EXPLAIN").is_ok() {
            for line in db.ok(&format!("EXPLAIN ANALYZE {sql}")).await {
                println!("{line}");
            }
        }
    }
}

async fn count(db: &Fixture, sql: &str) -> usize {
    use futures::TryStreamExt;
    match db.session.execute(sql, &[]).await.expect(sql) {
        shoal_query::Output::Rows { stream, .. } => {
            let batches: Vec<_> = stream.try_collect().await.expect(sql);
            batches.iter().map(|b| b.num_rows()).sum()
        }
        shoal_query::Output::Affected { .. } => 0,
    }
}
