use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_rows::{
    KeyBound, KeyValue, ValueError, decode_key, encode_bound, encode_key_values, encode_series_all,
};
use shoal_types::{ColumnId, ColumnType, TimePrecision};

use crate::sample::{all_types, random_array};

const DECIMAL: ColumnType = ColumnType::Decimal {
    precision: 5,
    scale: 2,
};

const MILLIS: ColumnType = ColumnType::Timestamp {
    precision: TimePrecision::Millisecond,
    utc: true,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn values_of_a_key_make_that_key_again(seed in any::<u64>()) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let types = all_types();
        let types: Vec<_> = (0..3).map(|_| types[rng.random_range(0..types.len())]).collect();
        let values = types.iter().map(|t| random_array(rng, *t, 20, 2)).collect();
        let keys = encode_series_all(&shoal_rows::Series {
            columns: (0..3).map(ColumnId).collect(),
            values,
            len: 20,
        });
        for key in keys.iter() {
            let values = decode_key(key, &types).expect("a key");
            // Which NaN it is may be lost between the widths.
            if !values.iter().any(|v| matches!(v, KeyValue::Float(v) if v.is_nan())) {
                prop_assert_eq!(&encode_key_values(&types, &values).expect("values of a key"), key);
            }
        }
    }
}

#[test]
fn numbers_and_times_fit_another_width_if_nothing_is_lost() {
    use ColumnType::{Date, Float64, Int16, Int32, Int64, Text};
    use KeyValue::{Decimal, Float, Int, Timestamp};
    let same = |column_type: ColumnType, value: KeyValue, stored: KeyValue| {
        let key = encode_key_values(&[column_type], std::slice::from_ref(&value)).expect("fits");
        assert_eq!(
            decode_key(&key, &[column_type]),
            Ok(vec![stored]),
            "{value}"
        );
    };
    same(Int16, Int(-32_768), Int(-32_768));
    same(Int64, Decimal(700, 2), Int(7));
    same(DECIMAL, Int(-999), Decimal(-99_900, 2));
    same(DECIMAL, Decimal(15, 1), Decimal(150, 2));
    same(DECIMAL, Decimal(0, 38), Decimal(0, 2));
    same(DECIMAL, Decimal(1_500, 3), Decimal(150, 2));
    same(Float64, Int(1 << 53), Float(9_007_199_254_740_992.0));
    let millis = |v| Timestamp(v, TimePrecision::Millisecond);
    same(MILLIS, Timestamp(-7, TimePrecision::Second), millis(-7_000));
    same(
        MILLIS,
        Timestamp(7_000, TimePrecision::Microsecond),
        millis(7),
    );

    let refused = |column_type: ColumnType, value: KeyValue| {
        encode_key_values(&[Int16, column_type], &[KeyValue::Null, value]).expect_err("unfit")
    };
    for (column_type, value, message) in [
        (
            Int16,
            Int(70_000),
            "70000 is out of range for type SMALLINT",
        ),
        (Int32, Int(i64::MIN), "out of range"),
        (Int64, Decimal(i128::MAX, 0), "out of range"),
        (DECIMAL, Int(1_000), "out of range for type DECIMAL(5, 2)"),
        (DECIMAL, Decimal(i128::MAX, -38), "out of range"),
        (DECIMAL, Decimal(1_234, 3), "more digits after the point"),
        (Int16, Decimal(1, 127), "more digits"),
        (Float64, Int(i64::MAX), "more digits"),
        (
            MILLIS,
            Timestamp(1, TimePrecision::Nanosecond),
            "more digits",
        ),
        (
            MILLIS,
            Timestamp(i64::MAX, TimePrecision::Second),
            "out of range",
        ),
        (Text, Int(1), "1 is no value of type TEXT"),
        (Int64, KeyValue::Text("1".into()), "no value of type BIGINT"),
        (Date, Int(1), "no value of type DATE"),
    ] {
        let error = refused(column_type, value).to_string();
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(
        refused(Int16, Int(70_000)),
        ValueError::OutOfRange {
            column: 1,
            column_type: Int16,
            value: Int(70_000)
        }
    );
    assert_eq!(
        encode_key_values(&[Int16], &[]),
        Err(ValueError::Count {
            columns: 1,
            found: 0
        })
    );
}

#[test]
fn bounds_are_above_or_below_all_that_begins_with_them() {
    let types = [ColumnType::Text, ColumnType::Int64];
    let text = |v: &str| KeyBound::Value(KeyValue::Text(v.into()));
    let int = |v| KeyBound::Value(KeyValue::Int(v));
    let bound = |first, second| encode_bound(&types, &[first, second]).expect("a bound");
    let key = |first: &str, second| {
        encode_key_values(&types, &[KeyValue::Text(first.into()), second]).expect("a key")
    };

    assert_eq!(bound(KeyBound::MaxValue, int(1)), None);
    assert_eq!(bound(KeyBound::MinValue, int(1)), Some(Vec::new()));
    assert_eq!(bound(text("b"), int(5)), Some(key("b", KeyValue::Int(5))));
    let end = bound(text("b"), KeyBound::MaxValue).expect("an end");
    assert_eq!(end, b"\x01b\0\x01\xFF");
    assert!(key("b", KeyValue::Int(i64::MAX)) < end);
    assert!(end < key("b\0", KeyValue::Null));
    assert!(end < key("ba", KeyValue::Null));
    let start = bound(text("b"), KeyBound::MinValue).expect("a beginning");
    assert!(start < key("b", KeyValue::Null));
    assert!(key("a\u{ff}", KeyValue::Int(0)) < start);
    assert!(encode_bound(&types, &[int(1), int(1)]).is_err());
}
