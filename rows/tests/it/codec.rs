use bytes::Bytes;
use proptest::prelude::*;
use shoal_rows::{RowBlock, decode_blocks, encode_blocks};

use crate::sample::{assert_same, cpu_block, random_block};

fn golden_blocks() -> Vec<RowBlock> {
    // Random blocks of fixed seeds would change with the generator crate; this one is plain.
    vec![cpu_golden(), empty_golden()]
}

fn cpu_golden() -> RowBlock {
    use arrow_array::{
        ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, StringViewArray,
    };
    use arrow_buffer::BooleanBuffer;
    use shoal_rows::{BlockColumn, Series};
    use shoal_types::{ColumnId, Incarnation, TableId};
    use std::sync::Arc;
    let column = |id, values: ArrayRef, set: Option<Vec<bool>>| BlockColumn {
        id: ColumnId(id),
        values,
        set: set.map(BooleanBuffer::from),
    };
    RowBlock {
        table: TableId::from_bytes(*b"table 0123456789"),
        incarnation: Incarnation(2),
        schema_version: 300,
        series: Series {
            columns: vec![ColumnId(0)],
            values: vec![Arc::new(StringViewArray::from(vec![
                Some("host_0"),
                None,
                Some("a host whose name is long"),
            ]))],
            len: 3,
        },
        series_of: vec![0, 1, 2, 1].into(),
        time: Some(vec![0, 10_000_000_000, 10_000_000_000, -30_000_000_000].into()),
        columns: vec![
            column(
                2,
                Arc::new(Int64Array::from(vec![
                    Some(-1),
                    None,
                    Some(70_000),
                    Some(3),
                ])),
                Some(vec![true, false, true, true]),
            ),
            column(
                3,
                Arc::new(Float64Array::from(vec![0.5, -0.0, 1e300, 3.0])),
                None,
            ),
            column(
                4,
                Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0, 4.0])),
                None,
            ),
            column(
                5,
                Arc::new(BooleanArray::from(vec![
                    Some(true),
                    None,
                    Some(false),
                    None,
                ])),
                Some(vec![true, true, true, false]),
            ),
            column(
                9,
                Arc::new(
                    Decimal128Array::from(vec![1, 2, 3, i128::MAX / 2])
                        .with_precision_and_scale(38, 2)
                        .expect("valid"),
                ),
                None,
            ),
        ],
        deletes: Some(BooleanBuffer::from(vec![false, false, false, true])),
    }
}

fn empty_golden() -> RowBlock {
    let mut block = cpu_block(0, 1);
    block.series.columns.clear();
    block.series.values.clear();
    block.series.len = 0;
    block
}

/// The body without compression, whose bytes are free to change with the LZ4 crate.
fn plain(body: &[u8]) -> Vec<u8> {
    if body[1] == 0 {
        return body.to_vec();
    }
    let size = u32::from_le_bytes([body[2], body[3], body[4], body[5]]) as usize;
    let mut plain = vec![1, 0];
    plain.extend(lz4_flex::block::decompress(&body[6..], size).expect("ours"));
    plain
}

#[test]
fn the_bytes_of_format_1_never_change() {
    let hex: String = include_str!("golden/blocks_v1.hex")
        .split_whitespace()
        .collect();
    let golden: Vec<u8> = (0..hex.len() / 2)
        .map(|i| u8::from_str_radix(&hex[i * 2..i * 2 + 2], 16).expect("hex"))
        .collect();
    assert_eq!(golden[..2], [1, 1], "the file is compressed");
    assert_eq!(plain(&encode_blocks(&golden_blocks())), plain(&golden));
    let decoded = decode_blocks(&golden.into()).expect("decodes");
    assert_eq!(decoded.len(), 2);
    for (left, right) in golden_blocks().iter().zip(&decoded) {
        assert_same(left, right);
    }
}

#[test]
fn a_cpu_block_is_small_and_comes_back() {
    let block = cpu_block(5_000, 400);
    let body = encode_blocks(std::slice::from_ref(&block));
    assert!(body.len() < 5_000 * 15, "{} bytes", body.len());
    let decoded = decode_blocks(&body.into()).expect("decodes");
    assert_eq!(decoded.len(), 1);
    assert_same(&block, &decoded[0]);
}

#[test]
fn other_versions_are_refused_by_name() {
    let mut body = encode_blocks(&[]);
    body[0] = 2;
    let error = decode_blocks(&body.into()).expect_err("refused");
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[test]
fn a_record_of_many_unused_columns_is_readable() {
    // Written out, its NULLs would take 4 GiB; they are shared.
    let mut block = cpu_block(65_536, 100);
    let nulls = arrow_array::new_null_array(&arrow_schema::DataType::Utf8View, 65_536);
    block
        .columns
        .extend((100..4_000).map(|id| shoal_rows::BlockColumn {
            id: shoal_types::ColumnId(id),
            values: std::sync::Arc::clone(&nulls),
            set: None,
        }));
    let body = encode_blocks(std::slice::from_ref(&block));
    let decoded = decode_blocks(&body.into()).expect("decodes");
    assert_eq!(decoded[0].columns.len(), 3_910);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn blocks_of_all_types_survive_the_codec(seeds in prop::collection::vec(any::<u64>(), 0..3)) {
        let blocks: Vec<_> = seeds.into_iter().map(random_block).collect();
        for block in &blocks {
            prop_assert_eq!(block.check(), Ok(()));
        }
        let body = Bytes::from(encode_blocks(&blocks));
        let decoded = decode_blocks(&body).expect("decodes");
        prop_assert_eq!(decoded.len(), blocks.len());
        for (left, right) in blocks.iter().zip(&decoded) {
            assert_same(left, right);
        }
        prop_assert_eq!(&encode_blocks(&decoded)[..], &body[..]);
    }

    #[test]
    fn damaged_bytes_are_refused_or_decode_to_whole_blocks(
        seed in any::<u64>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut body = encode_blocks(&[random_block(seed)]);
        for (at, byte) in flips {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Some(cut) = cut {
            body.truncate(cut.index(body.len()));
        }
        if let Ok(blocks) = decode_blocks(&body.into()) {
            for block in blocks {
                prop_assert_eq!(block.check(), Ok(()));
            }
        }
    }

    #[test]
    fn damage_below_the_compression_does_not_panic_either(
        seed in any::<u64>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let body = encode_blocks(&[random_block(seed)]);
        let mut plain = plain(&body);
        for (at, byte) in flips {
            let at = at.index(plain.len());
            plain[at] = byte;
        }
        if let Ok(blocks) = decode_blocks(&plain.into()) {
            for block in blocks {
                prop_assert_eq!(block.check(), Ok(()));
            }
        }
    }

    #[test]
    fn random_bytes_are_never_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_blocks(&bytes.clone().into());
        if bytes.len() > 1 {
            bytes[0] = 1;
            bytes[1] %= 2;
            let _ = decode_blocks(&bytes.into());
        }
    }
}
