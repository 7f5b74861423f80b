use std::time::Instant;

use shoal_rows::encode_blocks;
use shoal_types::TableId;

use crate::support::{cpu_lines, parse};

/// Prints figures; run with `--release -- --ignored --nocapture`.
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
        println!(
            "{hosts} hosts, bodies of {rows} rows ({} bytes each): {ours:.0} rows/s; with resolve and encode {whole:.0}; crate {theirs:.0}; ratio {:.1}",
            body.len() / rows,
            ours / theirs
        );
    }
}
