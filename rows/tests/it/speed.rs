use std::time::Instant;

use shoal_rows::{decode_blocks, encode_blocks, encode_series_all};

use crate::sample::cpu_block;

/// Prints figures; run with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a benchmark"]
fn speed_of_the_codec_on_cpu_blocks() {
    for hosts in [100, 400] {
        let block = cpu_block(5_000, hosts);
        let blocks = std::slice::from_ref(&block);
        let body = bytes::Bytes::from(encode_blocks(blocks));
        let rounds = 300;
        let rate = |what: &str, work: &mut dyn FnMut() -> usize| {
            let start = Instant::now();
            let mut sum = 0;
            for _ in 0..rounds {
                sum += work();
            }
            let rate = f64::from(rounds) * 5_000.0 / start.elapsed().as_secs_f64();
            println!("{hosts} hosts: {what} {:.2}M rows/s ({sum})", rate / 1e6);
        };
        println!(
            "{hosts} hosts: {:.2} bytes a row",
            body.len() as f64 / 5_000.0
        );
        rate("encode", &mut || encode_blocks(blocks).len());
        rate("decode", &mut || {
            decode_blocks(&body).map_or(0, |b| b.len())
        });
        rate("series keys", &mut || {
            encode_series_all(&block.series).bytes.len()
        });
    }
}
