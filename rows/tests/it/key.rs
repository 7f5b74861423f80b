use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Int16Array, Int64Array,
    StringViewArray,
};
use proptest::prelude::*;
use rand::SeedableRng;
use shoal_rows::{
    KeyValue, RowBlock, Series, decode_key, encode_key, encode_keys_all, encode_series,
    encode_series_all, slot_of,
};
use shoal_types::{ColumnId, ColumnType, Incarnation, TableId, TimePrecision};

use crate::sample::{all_types, random_array, random_block};

fn series(values: Vec<ArrayRef>) -> Series {
    Series {
        columns: (0..values.len() as u32).map(ColumnId).collect(),
        len: values[0].len(),
        values,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn golden_vectors_of_keys_and_slots() {
    let text: ArrayRef = Arc::new(StringViewArray::from(vec![
        Some("host_0"),
        Some(""),
        None,
        Some("a\0b"),
    ]));
    let int: ArrayRef = Arc::new(Int64Array::from(vec![1, -1, i64::MIN, i64::MAX]));
    let block = RowBlock {
        table: TableId::from_bytes([0; 16]),
        incarnation: Incarnation(0),
        schema_version: 1,
        series: series(vec![text, int]),
        series_of: vec![0, 1, 2, 3].into(),
        time: Some(vec![1_767_225_600_000_000_000, 0, -1, 1].into()),
        columns: Vec::new(),
        deletes: None,
    };
    let found: Vec<_> = (0..4)
        .map(|row| {
            let mut key = Vec::new();
            encode_key(&block, row, &mut key);
            (hex(&key), slot_of(&key))
        })
        .collect();
    let expected = [
        (
            "01686f73745f3000010180000000000000010198867251edfa0000",
            22_722_u16,
        ),
        ("010001017fffffffffffffff018000000000000000", 54_414),
        ("00010000000000000000017fffffffffffffff", 49_745),
        ("016100ff62000101ffffffffffffffff018000000000000001", 14_289),
    ];
    let keys: Vec<_> = found.iter().map(|f| f.0.as_str()).collect();
    assert_eq!(keys, expected.map(|e| e.0));
    let slots: Vec<_> = found.iter().map(|f| f.1).collect();
    assert_eq!(slots, expected.map(|e| e.1));
    let all = encode_keys_all(&block);
    assert_eq!(all.len(), 4);
    assert!(all.iter().map(hex).eq(keys.iter().copied()));
}

#[test]
fn golden_vectors_of_the_other_types() {
    let one = |array: ArrayRef| {
        let mut key = Vec::new();
        encode_series(&series(vec![array]), 0, &mut key);
        hex(&key)
    };
    assert_eq!(one(Arc::new(BooleanArray::from(vec![true]))), "0101");
    assert_eq!(one(Arc::new(Int16Array::from(vec![-2]))), "017ffe");
    assert_eq!(one(Arc::new(Date32Array::from(vec![20_000]))), "0180004e20");
    assert_eq!(
        one(Arc::new(
            Decimal128Array::from(vec![-1])
                .with_precision_and_scale(10, 2)
                .expect("valid")
        )),
        "017fffffffffffffffffffffffffffffff"
    );
    assert_eq!(
        one(Arc::new(BinaryViewArray::from_iter_values([[0_u8, 255]]))),
        "0100ffff0001"
    );
}

#[test]
fn a_key_reads_back_as_values() {
    let types = [
        ColumnType::Text,
        ColumnType::Int64,
        ColumnType::Timestamp {
            precision: TimePrecision::Millisecond,
            utc: false,
        },
    ];
    let mut key = Vec::new();
    let text: ArrayRef = Arc::new(StringViewArray::from(vec!["a\0é"]));
    let int: ArrayRef = Arc::new(Int64Array::from(vec![None]));
    encode_series(&series(vec![text, int]), 0, &mut key);
    shoal_rows::encode_time(-5, &mut key);
    assert_eq!(
        decode_key(&key, &types),
        Ok(vec![
            KeyValue::Text("a\0é".into()),
            KeyValue::Null,
            KeyValue::Timestamp(-5, TimePrecision::Millisecond),
        ])
    );
    for cut in 0..key.len() {
        assert!(decode_key(&key[..cut], &types).is_err(), "cut at {cut}");
    }
    key.push(0);
    assert!(decode_key(&key, &types).is_err(), "a byte too many");
}

#[test]
fn values_are_shown_as_sql_literals() {
    use KeyValue::{Binary, Date, Decimal, Null, Text, Timestamp};
    use TimePrecision::{Millisecond, Nanosecond, Second};
    for (value, shown) in [
        (Null, "NULL"),
        (Text("it's \"so\"".into()), "'it''s \"so\"'"),
        (Binary(vec![0, 255]), "'\\x00ff'"),
        (Decimal(-5, 2), "-0.05"),
        (Decimal(12_345, 2), "123.45"),
        (Decimal(12, 0), "12"),
        (Decimal(12, -3), "12000"),
        (Decimal(0, -3), "0"),
        (Date(0), "'1970-01-01'"),
        (Date(-1), "'1969-12-31'"),
        (Date(11_016), "'2000-02-29'"),
        (Date(11_017), "'2000-03-01'"),
        (Date(47_540), "'2100-02-28'"),
        (Date(47_541), "'2100-03-01'"),
        (Timestamp(1_767_225_599, Second), "'2025-12-31 23:59:59'"),
        (Timestamp(-1, Millisecond), "'1969-12-31 23:59:59.999'"),
        (Timestamp(1, Nanosecond), "'1970-01-01 00:00:00.000000001'"),
    ] {
        assert_eq!(value.to_string(), shown);
    }
    for extreme in [i64::MIN, i64::MAX] {
        assert!(!Timestamp(extreme, Second).to_string().is_empty());
    }
}

/// A value as something that Rust orders, NULLs first.
fn sortable(value: &KeyValue) -> (u8, i128, Vec<u8>) {
    match value {
        KeyValue::Null => (0, 0, Vec::new()),
        KeyValue::Boolean(v) => (1, i128::from(*v), Vec::new()),
        KeyValue::Int(v) | KeyValue::Timestamp(v, _) => (1, i128::from(*v), Vec::new()),
        KeyValue::Date(v) => (1, i128::from(*v), Vec::new()),
        KeyValue::Decimal(v, _) => (1, *v, Vec::new()),
        KeyValue::Text(v) => (1, 0, v.clone().into_bytes()),
        KeyValue::Binary(v) => (1, 0, v.clone()),
        KeyValue::Float(_) => panic!("floats are no keys"),
    }
}

/// The values of a row, read from the arrays without the encoding.
fn row_of(arrays: &[ArrayRef], row: usize) -> Vec<KeyValue> {
    use arrow_array::cast::AsArray;
    use arrow_array::types::{Date32Type, Decimal128Type, Int16Type, Int32Type};
    use arrow_schema::DataType;
    arrays
        .iter()
        .map(|a| {
            if a.is_null(row) {
                return KeyValue::Null;
            }
            match a.data_type() {
                DataType::Boolean => KeyValue::Boolean(a.as_boolean().value(row)),
                DataType::Int16 => KeyValue::Int(a.as_primitive::<Int16Type>().value(row).into()),
                DataType::Int32 => KeyValue::Int(a.as_primitive::<Int32Type>().value(row).into()),
                DataType::Date32 => KeyValue::Date(a.as_primitive::<Date32Type>().value(row)),
                DataType::Decimal128(_, scale) => {
                    KeyValue::Decimal(a.as_primitive::<Decimal128Type>().value(row), *scale)
                }
                DataType::Utf8View => KeyValue::Text(a.as_string_view().value(row).into()),
                DataType::BinaryView => KeyValue::Binary(a.as_binary_view().value(row).into()),
                _ => {
                    let data = a.to_data();
                    let values: &[i64] = data.buffer(0);
                    match ColumnType::from_arrow(a.data_type()) {
                        Ok(ColumnType::Timestamp { precision, .. }) => {
                            KeyValue::Timestamp(values[row], precision)
                        }
                        _ => KeyValue::Int(values[row]),
                    }
                }
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn encoded_order_is_the_order_of_the_columns(seed in any::<u64>(), picks in prop::collection::vec(any::<prop::sample::Index>(), 1..4)) {
        let rng = &mut rand::rngs::StdRng::seed_from_u64(seed);
        let types: Vec<_> = all_types().into_iter().filter(|t| t.may_be_key()).collect();
        let types: Vec<_> = picks.iter().map(|p| types[p.index(types.len())]).collect();
        let arrays: Vec<_> = types.iter().map(|t| random_array(rng, *t, 30, 2)).collect();
        let keys = encode_series_all(&series(arrays.clone()));
        for a in 0..30 {
            let row = row_of(&arrays, a);
            prop_assert_eq!(decode_key(keys.get(a), &types), Ok(row.clone()));
            for b in 0..30 {
                let left: Vec<_> = row.iter().map(sortable).collect();
                let right: Vec<_> = row_of(&arrays, b).iter().map(sortable).collect();
                prop_assert_eq!(keys.get(a).cmp(keys.get(b)), left.cmp(&right), "rows {} and {}", a, b);
            }
        }
    }

    #[test]
    fn the_three_ways_to_encode_a_key_agree(seed in any::<u64>()) {
        let block = random_block(seed);
        let all = encode_keys_all(&block);
        let series = encode_series_all(&block.series);
        for row in 0..block.rows().min(50) {
            let mut key = Vec::new();
            encode_key(&block, row, &mut key);
            prop_assert_eq!(&key[..], all.get(row));
            prop_assert!(key.starts_with(series.get(block.series_of[row] as usize)));
        }
    }

    #[test]
    fn random_bytes_are_no_key_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        for column_type in all_types() {
            let _ = decode_key(&bytes, &[column_type, ColumnType::Text]);
        }
    }
}
