use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringViewArray,
    TimestampMillisecondArray,
};
use arrow_schema::{Field, Schema};
use shoal_rows::{BatchError, block_from_batch, block_to_batch};
use shoal_types::{
    Column, ColumnId, ColumnType, Incarnation, TableId, TableMode, TableOrigin, TableSchema,
    TimePrecision,
};

/// `(ts, host TEXT, region TEXT, v DOUBLE)` with the given key, as ids.
fn schema(key: &[u32], time_column: Option<u32>) -> TableSchema {
    let column = |id, name: &str, column_type, nullable| Column {
        id: ColumnId(id),
        name: name.into(),
        column_type,
        nullable,
        default: None,
    };
    let time = ColumnType::Timestamp {
        precision: TimePrecision::Millisecond,
        utc: false,
    };
    TableSchema {
        table: TableId::from_bytes([1; 16]),
        version: 3,
        incarnation: Incarnation(4),
        columns: vec![
            column(0, "ts", time, false),
            column(1, "host", ColumnType::Text, false),
            column(2, "region", ColumnType::Text, true),
            column(3, "v", ColumnType::Float64, true),
            column(4, "n", ColumnType::Int64, false),
        ],
        key: key.iter().map(|id| ColumnId(*id)).collect(),
        time_column: time_column.map(ColumnId),
        mode: if key.is_empty() {
            TableMode::Append
        } else {
            TableMode::Upsert
        },
        ttl_ms: None,
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(5),
        part_of: None,
    }
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<_> = columns
        .iter()
        .map(|(name, a)| Field::new(*name, a.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|c| c.1).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("a batch")
}

fn rows() -> RecordBatch {
    batch(vec![
        (
            "v",
            Arc::new(Float64Array::from(vec![
                Some(1.0),
                None,
                Some(3.0),
                Some(4.0),
            ])),
        ),
        (
            "host",
            Arc::new(StringViewArray::from(vec!["b", "a", "b", "b"])),
        ),
        (
            "region",
            Arc::new(StringViewArray::from(vec![
                Some("eu"),
                None,
                Some("eu"),
                None,
            ])),
        ),
        (
            "ts",
            Arc::new(TimestampMillisecondArray::from(vec![5, 6, 7, 5])),
        ),
    ])
}

const IDS: [ColumnId; 4] = [ColumnId(3), ColumnId(1), ColumnId(2), ColumnId(0)];

#[test]
fn a_key_that_ends_with_time_is_split_into_distinct_series() {
    let schema = schema(&[1, 2, 0], Some(0));
    let block = block_from_batch(&schema, &rows(), &IDS, false).expect("a block");
    assert_eq!(block.check(), Ok(()));
    assert_eq!(block.series.len, 3);
    assert_eq!(&block.series_of[..], [0, 1, 0, 2]);
    assert_eq!(block.time.as_deref(), Some(&[5, 6, 7, 5][..]));
    assert_eq!(block.columns.len(), 1);
    assert_eq!(
        (block.schema_version, block.incarnation),
        (3, Incarnation(4))
    );

    let back = block_to_batch(&schema, &block).expect("a batch");
    assert_eq!(back.num_columns(), 5);
    assert_eq!(back.column(0), rows().column(3));
    assert_eq!(back.column(1), rows().column(1));
    assert_eq!(back.column(2), rows().column(2));
    assert_eq!(back.column(3), rows().column(0));
    assert_eq!(back.column(4).null_count(), 4);
}

#[test]
fn a_key_without_time_at_its_end_is_its_own_series() {
    for (key, time) in [(&[0, 1][..], Some(0)), (&[1], None), (&[1, 0, 2], Some(0))] {
        let schema = schema(key, time);
        let block = block_from_batch(&schema, &rows(), &IDS, false).expect("a block");
        assert_eq!(block.check(), Ok(()));
        assert_eq!(block.series.len, 4);
        assert!(block.time.is_none());
        let back = block_to_batch(&schema, &block).expect("a batch");
        assert_eq!(back.column(1), rows().column(1));
        assert_eq!(back.column(0), rows().column(3));
    }
}

#[test]
fn tables_without_a_key_or_with_time_alone_have_one_series() {
    let block = block_from_batch(&schema(&[], None), &rows(), &IDS, false).expect("a block");
    assert_eq!(block.check(), Ok(()));
    assert_eq!((block.series.len, block.time.is_none()), (1, true));
    assert_eq!(
        block.columns.iter().map(|c| c.id.0).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    let block = block_from_batch(&schema(&[0], Some(0)), &rows(), &IDS, false).expect("a block");
    assert_eq!(block.check(), Ok(()));
    assert_eq!((block.series.len, block.time.is_some()), (1, true));
}

#[test]
fn deletes_carry_keys_only() {
    let schema = schema(&[1, 2, 0], Some(0));
    let block = block_from_batch(&schema, &rows(), &IDS, true).expect("a block");
    assert!(block.columns.is_empty());
    assert_eq!(block.deletes.map(|d| d.count_set_bits()), Some(4));
}

#[test]
fn what_cannot_be_stored_is_refused_with_row_and_column() {
    let schema = schema(&[1, 2, 0], Some(0));
    let host: ArrayRef = Arc::new(StringViewArray::from(vec!["a", "b"]));
    let ts: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![Some(1), None]));
    let refused = |columns: Vec<(&str, ArrayRef)>, ids: &[u32]| {
        let ids: Vec<_> = ids.iter().map(|id| ColumnId(*id)).collect();
        block_from_batch(&schema, &batch(columns), &ids, false).expect_err("refused")
    };
    assert_eq!(
        refused(
            vec![("host", Arc::clone(&host)), ("ts", Arc::clone(&ts))],
            &[1, 0]
        ),
        BatchError::Null {
            row: 1,
            column: "ts".into()
        }
    );
    assert_eq!(
        refused(vec![("host", Arc::clone(&host))], &[1]),
        BatchError::KeyColumnMissing("ts".into())
    );
    let ts: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![1, 2]));
    assert_eq!(
        refused(vec![("ts", Arc::clone(&ts))], &[0]),
        BatchError::KeyColumnMissing("host".into())
    );
    let int: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    assert!(matches!(
        refused(
            vec![("ts", Arc::clone(&ts)), ("host", Arc::clone(&int))],
            &[0, 1]
        ),
        BatchError::WrongType { .. }
    ));
    let both = || {
        vec![
            ("ts", Arc::clone(&ts)),
            ("host", Arc::clone(&host)),
            ("n", Arc::clone(&int)),
        ]
    };
    assert_eq!(
        refused(both(), &[0, 1, 4]),
        BatchError::Null {
            row: 1,
            column: "n".into()
        }
    );
    for ids in [&[0, 1][..], &[0, 1, 1], &[0, 1, 99]] {
        assert!(matches!(refused(both(), ids), BatchError::Columns(_)));
    }
}
