use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Int16Array,
    Int32Array, Int64Array, StringViewArray, UInt32Array,
};
use arrow_buffer::BooleanBuffer;
use arrow_schema::DataType;
use arrow_select::take::take_record_batch;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_rows::{KeyValue, MaskError, RouteError, Routed, Router, RowBlock, block_to_batch, mask};
use shoal_types::{
    ColumnId, Extent, KeyRange, PartitionBounds, PartitionMethod, SLOTS, SlotRange, TableSchema,
};

use crate::extents::{ABSENT, append_block, by, encodings, is_in, random_extents, schema_of};
use crate::sample::{cpu_block, random_block};

fn text(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringViewArray::from(values.to_vec()))
}

/// The slots of the rows of an append table partitioned by all its columns, found by routing to a
/// partition for each slot.
fn slots(columns: Vec<ArrayRef>) -> Vec<usize> {
    let ids: Vec<_> = (10..).take(columns.len()).map(ColumnId).collect();
    let block = append_block(columns);
    let extents: Vec<_> = SlotRange::even(SLOTS).map(Extent::Slots).collect();
    let router = Router::new(
        &by(PartitionMethod::Hash, &ids),
        &extents,
        &schema_of(&block),
    );
    let slot_of_row = |row: usize| {
        let mut one = block.clone();
        one.series_of = vec![0].into();
        for column in &mut one.columns {
            column.values = column.values.slice(row, 1);
        }
        match router.route(&one) {
            Ok(Routed::Whole(slot)) => slot,
            other => panic!("one row goes to one slot: {other:?}"),
        }
    };
    (0..block.rows()).map(slot_of_row).collect()
}

/// The numbers are those of another implementation of xxh3 over encodings made by hand.
#[test]
fn golden_vectors_of_slots() {
    let hosts = || text(&[Some("host_0"), Some(""), None, Some("a\0b")]);
    assert_eq!(slots(vec![hosts()]), [13_834, 44_761, 50_251, 48_183]);
    let ints = || Arc::new(Int64Array::from(vec![1, -1, i64::MIN, i64::MAX])) as ArrayRef;
    assert_eq!(slots(vec![ints()]), [33_349, 41_923, 12_604, 21_413]);
    assert_eq!(
        slots(vec![hosts(), ints()]),
        [24_368, 33_071, 59_245, 3_675]
    );
    assert_eq!(
        slots(vec![ints(), hosts()]),
        [53_275, 50_275, 18_322, 44_775]
    );
    let one = |array: ArrayRef| slots(vec![array])[0];
    assert_eq!(one(Arc::new(BooleanArray::from(vec![true]))), 1_805);
    assert_eq!(one(Arc::new(Int16Array::from(vec![-2]))), 20_849);
    assert_eq!(one(Arc::new(Int32Array::from(vec![70_000]))), 12_410);
    assert_eq!(one(Arc::new(Date32Array::from(vec![20_000]))), 40_007);
    let decimal = Decimal128Array::from(vec![-1]).with_precision_and_scale(10, 2);
    assert_eq!(one(Arc::new(decimal.expect("valid"))), 34_799);
    let binary = BinaryViewArray::from_iter_values([[0_u8, 255]]);
    assert_eq!(one(Arc::new(binary)), 49_549);
}

/// Panics unless `part` is these rows of `block`.
fn assert_is_part(schema: &TableSchema, block: &RowBlock, rows: &[u32], part: &RowBlock) {
    assert_eq!(part.check(), Ok(()));
    assert_eq!(
        (part.table, part.incarnation, part.schema_version),
        (block.table, block.incarnation, block.schema_version)
    );
    let mut used = vec![false; part.series.len];
    part.series_of.iter().for_each(|s| used[*s as usize] = true);
    assert!(used.iter().all(|used| *used), "a series without rows");
    let batch = block_to_batch(schema, block).expect("a batch");
    let expected = take_record_batch(&batch, &UInt32Array::from(rows.to_vec())).expect("rows");
    let found = block_to_batch(schema, part).expect("a batch");
    assert_eq!(found.columns(), expected.columns());
    let picked = |bits: &Option<BooleanBuffer>| {
        bits.as_ref().map(|bits| {
            let picked = rows.iter().map(|row| bits.value(*row as usize));
            picked.collect::<BooleanBuffer>()
        })
    };
    assert_eq!(part.deletes, picked(&block.deletes));
    for (whole, part) in block.columns.iter().zip(&part.columns) {
        assert_eq!((part.id, &part.set), (whole.id, &picked(&whole.set)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn each_row_goes_to_the_partition_that_owns_it(seed in any::<u64>()) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let block = random_block(rng.random());
        let schema = schema_of(&block);
        let batch = block_to_batch(&schema, &block).expect("a batch");
        let ids: Vec<_> = schema.columns.iter().map(|c| c.id).collect();
        let mut pick = |most: usize| {
            let count = rng.random_range(1..=most);
            (0..count).map(|_| ids[rng.random_range(0..ids.len())]).collect::<Vec<_>>()
        };
        // The columns that only the schema has are NULL; by the key, series alone decide.
        let columns = match pick(4) {
            columns if columns.len() == 4 && !block.series.columns.is_empty() => {
                block.series.columns.clone()
            }
            columns => columns,
        };
        let cut_by = pick(2);
        let (keys, cut_keys) = (encodings(&schema, &batch, &columns), encodings(&schema, &batch, &cut_by));
        let method = [PartitionMethod::Hash, PartitionMethod::Range, PartitionMethod::List]
            [rng.random_range(0..3)];
        let mut extents = if block.rows() == 0 {
            Vec::new()
        } else {
            random_extents(rng, method, &keys, &cut_by, &cut_keys)
        };
        if extents.len() > 1 && rng.random_bool(0.2) {
            extents.swap_remove(rng.random_range(0..extents.len()));
        }

        let owner = |row: usize| {
            let mut owners = (0..extents.len()).filter(|at| {
                is_in(&extents[*at], keys.get(row), |_| cut_keys.get(row).to_vec())
            });
            let first = owners.next();
            assert_eq!(owners.next(), None, "extents are disjoint");
            first
        };
        let owners: Vec<_> = (0..block.rows()).map(owner).collect();
        for (at, extent) in extents.iter().enumerate() {
            let bounds = PartitionBounds { by: by(method, &columns), extent: extent.clone() };
            // What a batch does not hold is NULL.
            let column = |id| schema
                .position_of(id)
                .filter(|_| id != ABSENT)
                .map(|at| Arc::clone(batch.column(at)));
            let inside = mask(&bounds, &column, block.rows()).expect("the columns fit");
            let owned: BooleanBuffer = owners.iter().map(|owner| *owner == Some(at)).collect();
            prop_assert_eq!(inside, owned, "of {:?}", bounds);
        }
        let found = Router::new(&by(method, &columns), &extents, &schema).route(&block);
        if let Some(row) = owners.iter().position(Option::is_none) {
            let refused = matches!(&found, Err(RouteError::NoPartition { row: at, values, .. })
                if *at == row && values.len() == columns.len());
            prop_assert!(refused, "{:?}", found);
            return Ok(());
        }
        let mut rows_of = vec![Vec::new(); extents.len()];
        for (row, owner) in (0_u32..).zip(&owners) {
            rows_of[owner.expect("checked")].push(row);
        }
        let used: Vec<_> = (0..extents.len()).filter(|at| !rows_of[*at].is_empty()).collect();
        match found.expect("every row has an owner") {
            Routed::Whole(at) => prop_assert_eq!(used, vec![at]),
            Routed::Divided(parts) => {
                prop_assert_ne!(parts.len(), 1, "one part is the block itself");
                prop_assert_eq!(parts.iter().map(|part| part.0).collect::<Vec<_>>(), used);
                for (at, part) in &parts {
                    assert_is_part(&schema, &block, &rows_of[*at], part);
                }
            }
        }
    }
}

#[test]
fn a_table_of_one_partition_looks_at_no_row() {
    let block = cpu_block(10, 3);
    let schema = schema_of(&block);
    let hash = by(PartitionMethod::Hash, &[ColumnId(0)]);
    let range = by(PartitionMethod::Range, &[ColumnId(0)]);
    for router in [
        Router::whole(),
        Router::new(&hash, &[Extent::Slots(SlotRange::WHOLE)], &schema),
        Router::new(&range, &[Extent::Keys(KeyRange::WHOLE)], &schema),
    ] {
        assert!(router.is_whole());
        assert!(matches!(router.route(&block), Ok(Routed::Whole(0))));
    }
}

#[test]
fn what_no_partition_owns_is_named_with_a_remedy() {
    let block = append_block(vec![
        text(&[Some("eu"), Some("us"), None]),
        Arc::new(Int64Array::from(vec![1, 2, 3])),
    ]);
    let ids = [ColumnId(10), ColumnId(11)];
    let one = |text: &str| {
        let mut key = [&[1], text.as_bytes(), &[0, 1, 1]].concat();
        key.extend([0x80, 0, 0, 0, 0, 0, 0, 1]);
        key
    };
    let list = |values| Extent::Values {
        values,
        within: None,
    };
    let schema = schema_of(&block);
    let router = Router::new(
        &by(PartitionMethod::List, &ids),
        &[list(vec![one("eu")]), list(vec![one("us")])],
        &schema,
    );
    let error = router.route(&block).expect_err("a row without a partition");
    assert_eq!(
        error.to_string(),
        "row 2: no partition of the table is for c10 = 'us', c11 = 2; make one with ALTER TABLE … ADD PARTITION (PARTITION … VALUES IN (…))"
    );
    // Of another method: owns nothing.
    let router = Router::new(
        &by(PartitionMethod::Range, &ids[..1]),
        &[list(vec![one("eu")])],
        &schema,
    );
    assert_eq!(
        router.route(&block).expect_err("nothing is owned"),
        RouteError::NoPartition {
            row: 0,
            method: PartitionMethod::Range,
            values: vec![("c10".into(), KeyValue::Text("eu".into()))],
        }
    );
}

#[test]
fn parts_do_not_hold_the_text_of_others() {
    let long: Vec<String> = (0..1000).map(|i| format!("{i:0>200}")).collect();
    let keys = Arc::new(Int64Array::from_iter_values(0..1000)) as ArrayRef;
    let block = append_block(vec![
        keys,
        Arc::new(StringViewArray::from_iter_values(&long)),
    ]);
    let extents: Vec<_> = SlotRange::even(50).map(Extent::Slots).collect();
    let hash = by(PartitionMethod::Hash, &[ColumnId(10)]);
    let parts = Router::new(&hash, &extents, &schema_of(&block))
        .divide(block.clone())
        .expect("routed");
    let bytes: usize = parts.iter().map(|(_, part)| part.memory_bytes()).sum();
    assert!(bytes < 3 * block.memory_bytes(), "{bytes} bytes");
}

#[test]
fn a_mask_wants_columns_of_the_batch_in_their_own_type() {
    let bounds = PartitionBounds {
        by: by(PartitionMethod::Range, &[ColumnId(1), ColumnId(2)]),
        extent: Extent::Keys(KeyRange {
            from: vec![1],
            to: None,
        }),
    };
    let of = |array: ArrayRef| move |id| (id == ColumnId(2)).then(|| Arc::clone(&array));
    let long: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    assert_eq!(
        mask(&bounds, &of(long), 2),
        Err(MaskError::Length {
            column: ColumnId(2),
            found: 3,
            rows: 2
        })
    );
    let unsigned: ArrayRef = Arc::new(UInt32Array::from(vec![1]));
    assert_eq!(
        mask(&bounds, &of(unsigned), 1),
        Err(MaskError::WrongType {
            column: ColumnId(2),
            found: DataType::UInt32
        })
    );
}
