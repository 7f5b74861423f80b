//! Blocks to test with: random ones of every type, and one of the TSBS cpu shape.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int16Array, Int32Array, Int64Array, StringViewArray, TimestampMicrosecondArray,
    TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow_buffer::BooleanBuffer;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_rows::{BlockColumn, RowBlock, Series};
use shoal_types::{ColumnId, ColumnType, Incarnation, TableId, TimePrecision};

/// Every type a column can have.
pub fn all_types() -> Vec<ColumnType> {
    let mut types = vec![
        ColumnType::Boolean,
        ColumnType::Int16,
        ColumnType::Int32,
        ColumnType::Int64,
        ColumnType::Float32,
        ColumnType::Float64,
        ColumnType::Decimal {
            precision: 38,
            scale: 4,
        },
        ColumnType::Text,
        ColumnType::Binary,
        ColumnType::Date,
    ];
    for precision in [
        TimePrecision::Second,
        TimePrecision::Millisecond,
        TimePrecision::Microsecond,
        TimePrecision::Nanosecond,
    ] {
        for utc in [false, true] {
            types.push(ColumnType::Timestamp { precision, utc });
        }
    }
    types
}

/// Values of a column; `nulls` out of 10 are NULL.
pub fn random_array(rng: &mut StdRng, column_type: ColumnType, len: usize, nulls: u32) -> ArrayRef {
    // Narrow ranges, wide ranges, constants and steps: each takes another path of the codec.
    let shape = rng.random_range(0..5);
    let base: i64 = rng.random();
    let int = |rng: &mut StdRng| match shape {
        0 => base,
        1 => base.wrapping_add(rng.random_range(0..200)),
        2 => (base / 4).wrapping_add(rng.random_range(0..1_000) * 10_000_000_000),
        3 => rng.random_range(-70_000..70_000),
        _ => rng.random(),
    };
    let valid: Vec<bool> = (0..len).map(|_| rng.random_range(0..10) >= nulls).collect();
    let rng = std::cell::RefCell::new(rng);
    macro_rules! collect {
        ($array:ty, $value:expr) => {
            valid
                .iter()
                .map(|v| v.then(|| $value(&mut **rng.borrow_mut())))
                .collect::<$array>()
        };
    }
    let text = |rng: &mut StdRng| {
        let len = rng.random_range(0..if shape == 0 { 60 } else { 12 });
        (0..len)
            .map(|_| char::from_u32(rng.random_range(0..0x250)).expect("a char"))
            .collect::<String>()
    };
    match column_type {
        ColumnType::Boolean => {
            Arc::new(collect!(BooleanArray, |r: &mut StdRng| r.random::<bool>()))
        }
        ColumnType::Int16 => Arc::new(collect!(Int16Array, |r: &mut StdRng| int(r) as i16)),
        ColumnType::Int32 => Arc::new(collect!(Int32Array, |r: &mut StdRng| int(r) as i32)),
        ColumnType::Int64 => Arc::new(collect!(Int64Array, |r: &mut StdRng| int(r))),
        ColumnType::Float32 => Arc::new(collect!(Float32Array, |r: &mut StdRng| f32::from_bits(
            r.random()
        ))),
        ColumnType::Float64 => Arc::new(collect!(Float64Array, |r: &mut StdRng| match shape {
            0 => f64::from_bits(r.random()),
            1 => r.random_range(0..100) as f64,
            2 => -0.0,
            _ => r.random::<f64>(),
        })),
        ColumnType::Decimal { precision, scale } => Arc::new(
            collect!(Decimal128Array, |r: &mut StdRng| match shape {
                0 => r.random::<i128>() / 10,
                _ => i128::from(int(r)),
            })
            .with_precision_and_scale(precision, scale)
            .expect("valid"),
        ),
        ColumnType::Text => Arc::new(collect!(StringViewArray, text)),
        ColumnType::Binary => {
            Arc::new(collect!(BinaryViewArray, |r: &mut StdRng| text(r).into_bytes()))
        }
        ColumnType::Date => Arc::new(collect!(Date32Array, |r: &mut StdRng| int(r) as i32)),
        ColumnType::Timestamp { precision, utc } => {
            let zone = utc.then(|| Arc::<str>::from("UTC"));
            match precision {
                TimePrecision::Second => {
                    Arc::new(collect!(TimestampSecondArray, int).with_timezone_opt(zone))
                }
                TimePrecision::Millisecond => {
                    Arc::new(collect!(TimestampMillisecondArray, int).with_timezone_opt(zone))
                }
                TimePrecision::Microsecond => {
                    Arc::new(collect!(TimestampMicrosecondArray, int).with_timezone_opt(zone))
                }
                TimePrecision::Nanosecond => {
                    Arc::new(collect!(TimestampNanosecondArray, int).with_timezone_opt(zone))
                }
            }
        }
    }
}

/// A block with columns of all types, some of them with NULLs and unset values.
pub fn random_block(seed: u64) -> RowBlock {
    let rng = &mut StdRng::seed_from_u64(seed);
    let rows = match rng.random_range(0..4) {
        0 => rng.random_range(0..3),
        1 => rng.random_range(0..2_000),
        _ => rng.random_range(0..100),
    };
    let types = all_types();
    let key_columns = rng.random_range(0..4);
    let identity = key_columns > 0 && rng.random::<bool>();
    let series_len = match (key_columns, identity) {
        (0, _) => rows.min(1),
        (_, true) => rows,
        _ => rng.random_range(1..600).min(rows),
    };
    let mut next_id = 0;
    let mut id = || {
        next_id += 1;
        ColumnId(next_id * 3)
    };
    let pick = |rng: &mut StdRng| types[rng.random_range(0..types.len())];
    let mut series = Series {
        columns: Vec::new(),
        values: Vec::new(),
        len: series_len,
    };
    for _ in 0..key_columns {
        series.columns.push(id());
        let column_type = pick(rng);
        series
            .values
            .push(random_array(rng, column_type, series_len, 1));
    }
    let series_of = if identity {
        (0..rows as u32).collect()
    } else {
        (0..rows)
            .map(|_| rng.random_range(0..series_len as u32))
            .collect::<Vec<_>>()
    };
    let mut columns = Vec::new();
    for _ in 0..rng.random_range(0..8) {
        let column_type = pick(rng);
        let nulls = [0, 3, 10][rng.random_range(0..3)];
        let values = random_array(rng, column_type, rows, nulls);
        let set = match rng.random_range(0..3) {
            0 => None,
            1 => values.nulls().map(|n| n.inner().clone()),
            _ => {
                let nulls = values.logical_nulls();
                Some(BooleanBuffer::collect_bool(rows, |row| {
                    nulls.as_ref().is_none_or(|n| n.is_valid(row)) || rng.random()
                }))
            }
        };
        columns.push(BlockColumn {
            id: id(),
            values,
            set,
        });
    }
    let time = rng.random::<bool>().then(|| {
        (0..rows)
            .map(|row| 1_767_225_600_000_000_000 + row as i64 / 7 * 10_000_000_000)
            .collect::<Vec<_>>()
            .into()
    });
    let deletes = rng
        .random_bool(0.2)
        .then(|| BooleanBuffer::collect_bool(rows, |_| rng.random()));
    RowBlock {
        table: TableId::from_bytes(rng.random()),
        incarnation: Incarnation(rng.random()),
        schema_version: rng.random(),
        series,
        series_of: series_of.into(),
        time,
        columns,
        deletes,
    }
}

/// The TSBS cpu shape: ten tags and ten integers that walk between 0 and 100, every host in turn
/// every 10 s.
pub fn cpu_block(rows: usize, hosts: usize) -> RowBlock {
    let rng = &mut StdRng::seed_from_u64(7);
    let tags: [(&str, usize); 10] = [
        ("host_", hosts),
        ("eu-central-", 9),
        ("eu-central-1", 27),
        ("", 100),
        ("Ubuntu16.", 3),
        ("x", 2),
        ("TEAM", 4),
        ("", 20),
        ("", 2),
        ("staging", 3),
    ];
    let values = tags
        .iter()
        .map(|(prefix, count)| {
            let values = (0..hosts).map(|host| {
                let n = if *count == hosts {
                    host
                } else {
                    rng.random_range(0..*count)
                };
                format!("{prefix}{n}")
            });
            Arc::new(StringViewArray::from_iter_values(values)) as ArrayRef
        })
        .collect();
    let columns = (11..21)
        .map(|id| {
            let mut walks: Vec<i64> = (0..hosts).map(|_| rng.random_range(0..100)).collect();
            let values = (0..rows).map(|row| {
                let walk = &mut walks[row % hosts];
                *walk = (*walk + rng.random_range(-1..=1)).clamp(0, 100);
                *walk
            });
            BlockColumn {
                id: ColumnId(id),
                values: Arc::new(Int64Array::from_iter_values(values)),
                set: None,
            }
        })
        .collect();
    RowBlock {
        table: TableId::from_bytes([7; 16]),
        incarnation: Incarnation(0),
        schema_version: 1,
        series: Series {
            columns: (0..10).map(ColumnId).collect(),
            values,
            len: hosts,
        },
        series_of: (0..rows)
            .map(|row| (row % hosts) as u32)
            .collect::<Vec<_>>()
            .into(),
        time: Some(
            (0..rows)
                .map(|row| 1_767_225_600_000_000_000 + (row / hosts) as i64 * 10_000_000_000)
                .collect::<Vec<_>>()
                .into(),
        ),
        columns,
        deletes: None,
    }
}

/// Panics unless both blocks say the same.
pub fn assert_same(left: &RowBlock, right: &RowBlock) {
    assert_eq!(left.table, right.table);
    assert_eq!(left.incarnation, right.incarnation);
    assert_eq!(left.schema_version, right.schema_version);
    assert_eq!(left.series.columns, right.series.columns);
    assert_eq!(left.series.len, right.series.len);
    assert_eq!(left.series.values, right.series.values);
    assert_eq!(left.series_of, right.series_of);
    assert_eq!(left.time, right.time);
    assert_eq!(left.deletes, right.deletes);
    assert_eq!(left.columns.len(), right.columns.len());
    for (left, right) in left.columns.iter().zip(&right.columns) {
        assert_eq!(left.id, right.id);
        assert_eq!(left.set, right.set, "set of column {}", left.id);
        assert_eq!(left.values.data_type(), right.values.data_type());
        assert_eq!(&left.values, &right.values, "column {}", left.id);
    }
}
