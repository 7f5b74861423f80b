use std::time::Instant;

use shoal_rows::encode_blocks;
use shoal_types::TableId;

use crate::support::{cpu_lines, parse};

/// Whether our own parser is worth its keep: rows a second on one core, of parsing alone, of
/// parsing up to the bytes of the log, and of the `influxdb-line-protocol` crate on the same
/// lines. `make bench ARGS="--only parser"` runs it in the release profile.
#[test]
#[ignore = "a benchmark"]
fn speed_on_cpu_lines_against_the_crate() {
    for (hosts, rows) in [(100, 5_000), (400, 5_000), (400, 50_000)] {
        let body = cpu_lines(hosts, rows);
        let rate = |work: &mut dyn FnMut() -> usize| {
            let rounds = 500_000 / rows;
            let start = Instant::now();
            for _ in 0..rounds {
                assert_eq!(work(), rows);
            }
            (rounds * rows) as f64 / start.elapsed().as_secs_f64()
        };
        let ours = rate(&mut || parse(&body).rows);
        let whole = rate(&mut || {
            let parsed = parse(&body);
            let schema = parsed.tables[0]
                .new_schema(TableId::from_bytes([0; 16]))
                .expect("a schema");
            let block = parsed.tables[0].resolve(&schema).block;
            let rows = block.rows();
            assert!(!encode_blocks(&[block]).is_empty());
            rows
        });
        let theirs = rate(&mut || {
            influxdb_line_protocol::parse_lines(&body)
                .filter(|line| line.is_ok())
                .count()
        });
        // One line a figure, for `make bench`.
        let shape = format!("{hosts}-hosts-{rows}-rows");
        for (what, value, unit) in [
            ("rows_per_s", ours, "rows/s"),
            ("to_log_rows_per_s", whole, "rows/s"),
            ("crate_rows_per_s", theirs, "rows/s"),
            ("ratio_to_crate", ours / theirs, "ratio"),
        ] {
            println!(r#"{{"name":"parser.{shape}.{what}","value":{value},"unit":"{unit}"}}"#);
        }
    }
}
