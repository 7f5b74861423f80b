use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_rows::{
    EncodedKeys, KeyBound, KeyValue, Router, Wanted, block_to_batch, encode_bound,
    encode_key_values,
};
use shoal_types::{
    ColumnId, ColumnType, Extent, KeyRange, PartitionMethod, SlotRange, TableSchema, Within,
};

use crate::extents::{append_block, by, encodings, is_in, random_extents, schema_of};
use crate::sample::{all_types, random_array};

/// What a query may want of a column that holds these values, and more.
fn random_wanted(rng: &mut StdRng, values: &EncodedKeys) -> Wanted {
    let pick = |rng: &mut StdRng| values.get(rng.random_range(0..values.len())).to_vec();
    let bound = |rng: &mut StdRng| match rng.random_range(0..3) {
        0 => Bound::Included(pick(rng)),
        1 => Bound::Excluded(pick(rng)),
        _ => Bound::Unbounded,
    };
    match rng.random_range(0..6) {
        0 => Wanted::Any,
        1 | 2 => {
            let (from, to) = (bound(rng), bound(rng));
            Wanted::Range(from, to)
        }
        _ => {
            let count = [0, 1, 1, 2, 3, 40][rng.random_range(0..6)];
            Wanted::Values((0..count).map(|_| pick(rng)).collect())
        }
    }
}

fn is_wanted(wanted: &Wanted, value: &[u8]) -> bool {
    match wanted {
        Wanted::Any => true,
        Wanted::Values(values) => values.iter().any(|v| v == value),
        Wanted::Range(from, to) => (from.clone(), to.clone()).contains(&value.to_vec()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_partition_with_a_wanted_row_is_left_out(seed in any::<u64>()) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let types: Vec<_> = all_types().into_iter().filter(|t| t.may_be_key()).collect();
        let rows = rng.random_range(1..120);
        let columns = (0..4).map(|_| {
            let column_type = types[rng.random_range(0..types.len())];
            random_array(rng, column_type, rows, 1)
        });
        let block = append_block(columns.collect());
        let schema = schema_of(&block);
        let batch = block_to_batch(&schema, &block).expect("a batch");
        let ids: Vec<_> = (10..14).map(ColumnId).collect();
        let columns = &ids[..rng.random_range(1..=3)];
        let cut_by = &ids[rng.random_range(0..3)..];
        let (keys, cut_keys) = (
            encodings(&schema, &batch, columns),
            encodings(&schema, &batch, cut_by),
        );
        let method = [PartitionMethod::Hash, PartitionMethod::Range, PartitionMethod::List]
            [rng.random_range(0..3)];
        let extents = random_extents(rng, method, &keys, cut_by, &cut_keys);
        let of_column: Vec<_> = ids.iter().map(|id| encodings(&schema, &batch, &[*id])).collect();
        let wanted: BTreeMap<_, _> = ids
            .iter()
            .zip(&of_column)
            .map(|(id, values)| (*id, random_wanted(rng, values)))
            .collect();

        let found = Router::new(&by(method, columns), &extents, &schema)
            .may_hold(|id| wanted[&id].clone());
        prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
        for row in 0..rows {
            let is_row_wanted = wanted
                .values()
                .zip(&of_column)
                .all(|(wanted, values)| is_wanted(wanted, values.get(row)));
            if is_row_wanted {
                let owner = extents
                    .iter()
                    .position(|e| is_in(e, keys.get(row), |_| cut_keys.get(row).to_vec()))
                    .expect("extents cover all rows");
                prop_assert!(found.contains(&owner), "row {} of {} is not in {:?}", row, owner, found);
            }
        }
    }
}

const TYPES: [ColumnType; 2] = [ColumnType::Text, ColumnType::Int64];
const REGION: ColumnId = ColumnId(10);
const NUMBER: ColumnId = ColumnId(11);

fn schema() -> TableSchema {
    let columns = TYPES.map(|t| random_array(&mut StdRng::seed_from_u64(1), t, 1, 0));
    schema_of(&append_block(columns.to_vec()))
}

fn text(value: &str) -> Vec<u8> {
    encode_key_values(&TYPES[..1], &[KeyValue::Text(value.into())]).expect("a text")
}

fn int(value: i64) -> Vec<u8> {
    encode_key_values(&TYPES[1..], &[KeyValue::Int(value)]).expect("a number")
}

fn is(value: Vec<u8>) -> Wanted {
    Wanted::Values(vec![value])
}

fn found(router: &Router, region: Wanted, number: Wanted) -> Vec<usize> {
    router.may_hold(|id| match id {
        REGION => region.clone(),
        NUMBER => number.clone(),
        _ => Wanted::Any,
    })
}

#[test]
fn hash_partitions_are_left_out_by_whole_tuples_alone() {
    let extents: Vec<_> = SlotRange::even(64).map(Extent::Slots).collect();
    let hash = by(PartitionMethod::Hash, &[REGION, NUMBER]);
    let router = Router::new(&hash, &extents, &schema());
    let all: Vec<_> = (0..64).collect();
    assert_eq!(found(&router, is(text("eu")), is(int(1))).len(), 1);
    let two = Wanted::Values(vec![int(3), int(1), int(3)]);
    assert_eq!(found(&router, is(text("eu")), two).len(), 2);
    assert_eq!(found(&router, is(text("eu")), Wanted::Any), all);
    let many = |count| Wanted::Values((0..count).map(int).collect());
    assert!(found(&router, is(text("eu")), many(30)).len() <= 30);
    assert_eq!(found(&router, is(text("eu")), many(1025)), all);
    assert!(found(&router, Wanted::Any, many(0)).is_empty());
}

#[test]
fn range_partitions_are_left_out_by_the_first_columns() {
    let bound = |region: &str, number| {
        let region = KeyBound::Value(KeyValue::Text(region.into()));
        encode_bound(&TYPES, &[region, number]).expect("a bound")
    };
    let number = |n| KeyBound::Value(KeyValue::Int(n));
    // … (eu, 5) … (eu, max) … (us, 5) …
    let bounds = [
        bound("eu", number(5)),
        bound("eu", KeyBound::MaxValue),
        bound("us", number(5)),
        None,
    ];
    let mut from = Vec::new();
    let extents: Vec<_> = bounds
        .into_iter()
        .map(|to| {
            let from = std::mem::replace(&mut from, to.clone().unwrap_or_default());
            Extent::Keys(KeyRange { from, to })
        })
        .collect();
    let range = by(PartitionMethod::Range, &[REGION, NUMBER]);
    let router = Router::new(&range, &extents, &schema());
    let (eu, us) = (|| is(text("eu")), || is(text("us")));
    let below = |n| Wanted::Range(Bound::Unbounded, Bound::Excluded(int(n)));
    let from = |n| Wanted::Range(Bound::Included(int(n)), Bound::Unbounded);
    let after = |n| Wanted::Range(Bound::Excluded(int(n)), Bound::Unbounded);
    assert_eq!(found(&router, Wanted::Any, is(int(1))), [0, 1, 2, 3]);
    assert_eq!(found(&router, eu(), Wanted::Any), [0, 1]);
    assert_eq!(found(&router, eu(), is(int(5))), [1]);
    assert_eq!(found(&router, eu(), below(5)), [0]);
    assert_eq!(found(&router, eu(), from(5)), [1]);
    assert_eq!(found(&router, us(), after(i64::MAX)), [3]);
    assert_eq!(found(&router, us(), below(5)), [2]);
    let both = Wanted::Values(vec![text("us"), text("eu")]);
    assert_eq!(found(&router, both.clone(), below(5)), [0, 2]);
    assert_eq!(found(&router, both, is(int(7))), [1, 3]);
    let later = Wanted::Range(Bound::Excluded(text("eu")), Bound::Unbounded);
    assert_eq!(found(&router, later, Wanted::Any), [2, 3]);
    let nothing = Wanted::Range(Bound::Excluded(int(5)), Bound::Included(int(5)));
    assert!(found(&router, eu(), nothing).is_empty());
    // More tuples than are looked up: all from the first value to the last.
    let many = Wanted::Values((0..1025).map(|n| int(n + 5)).collect());
    assert_eq!(found(&router, eu(), many), [1]);
}

#[test]
fn list_partitions_are_left_out_by_value_and_by_cut() {
    let cut = |range| {
        Some(Within {
            columns: vec![NUMBER],
            range,
        })
    };
    let list = |values: &[&str], within| Extent::Values {
        values: values.iter().map(|v| text(v)).collect(),
        within,
    };
    let extents = [
        list(&["us"], None),
        list(
            &["ca", "eu"],
            cut(KeyRange {
                from: Vec::new(),
                to: Some(int(5)),
            }),
        ),
        list(
            &["ca", "eu"],
            cut(KeyRange {
                from: int(5),
                to: None,
            }),
        ),
    ];
    let by_region = by(PartitionMethod::List, &[REGION]);
    let router = Router::new(&by_region, &extents, &schema());
    assert_eq!(found(&router, Wanted::Any, Wanted::Any), [0, 1, 2]);
    assert_eq!(found(&router, is(text("us")), Wanted::Any), [0]);
    assert_eq!(found(&router, is(text("eu")), Wanted::Any), [1, 2]);
    assert_eq!(found(&router, is(text("eu")), is(int(5))), [2]);
    assert_eq!(found(&router, Wanted::Any, is(int(4))), [0, 1]);
    assert!(found(&router, is(text("mars")), Wanted::Any).is_empty());
    let before = Wanted::Range(Bound::Unbounded, Bound::Excluded(text("eu")));
    assert_eq!(found(&router, before, is(int(9))), [2]);
}
