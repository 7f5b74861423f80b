//! Tables to test partitions with: schemas of blocks, random extents, and who owns a row by the
//! definition.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use rand::Rng;
use rand::rngs::StdRng;
use shoal_rows::{BlockColumn, EncodedKeys, RowBlock, Series, encode_series_all, slot_of};
use shoal_types::{
    Column, ColumnId, ColumnType, Extent, Incarnation, KeyRange, PartitionBy, PartitionMethod,
    SlotRange, TableId, TableMode, TableOrigin, TableSchema, TimePrecision, Within,
};

/// The column of a block's `time` in these tests.
pub const TIME: ColumnId = ColumnId(1);
/// A column that no block holds.
pub const ABSENT: ColumnId = ColumnId(2);

/// A schema that a block may be of, with the two columns above.
pub fn schema_of(block: &RowBlock) -> TableSchema {
    let column = |id: ColumnId, column_type| Column {
        id,
        name: format!("c{id}"),
        column_type,
        nullable: true,
        default: None,
    };
    let of_array = |id: &ColumnId, array: &ArrayRef| {
        let stored = ColumnType::from_arrow(array.data_type()).expect("stored");
        column(*id, stored)
    };
    let time = ColumnType::Timestamp {
        precision: TimePrecision::Nanosecond,
        utc: false,
    };
    let mut key = block.series.columns.clone();
    key.extend(block.time.is_some().then_some(TIME));
    let mut columns = vec![column(TIME, time), column(ABSENT, ColumnType::Text)];
    let series = block.series.columns.iter().zip(&block.series.values);
    columns.extend(series.map(|(id, array)| of_array(id, array)));
    columns.extend(block.columns.iter().map(|c| of_array(&c.id, &c.values)));
    TableSchema {
        table: block.table,
        version: block.schema_version,
        incarnation: block.incarnation,
        columns,
        key,
        time_column: Some(TIME),
        mode: TableMode::Append,
        ttl_ms: None,
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(1000),
        part_of: None,
    }
}

/// A method and its columns.
pub fn by(method: PartitionMethod, columns: &[ColumnId]) -> PartitionBy {
    PartitionBy {
        method,
        columns: columns.to_vec(),
    }
}

/// A block of an append table whose only columns are these, numbered from 10.
pub fn append_block(columns: Vec<ArrayRef>) -> RowBlock {
    let rows = columns[0].len();
    RowBlock {
        table: TableId::from_bytes([3; 16]),
        incarnation: Incarnation(0),
        schema_version: 1,
        series: Series {
            columns: Vec::new(),
            values: Vec::new(),
            len: rows.min(1),
        },
        series_of: vec![0; rows].into(),
        time: None,
        columns: (10..)
            .zip(columns)
            .map(|(id, values)| BlockColumn {
                id: ColumnId(id),
                values,
                set: None,
            })
            .collect(),
        deletes: None,
    }
}

/// The partition columns of every row, encoded without the block's two parts.
pub fn encodings(schema: &TableSchema, batch: &RecordBatch, columns: &[ColumnId]) -> EncodedKeys {
    let values = columns
        .iter()
        .map(|id| Arc::clone(batch.column(schema.position_of(*id).expect("a column"))))
        .collect();
    encode_series_all(&Series {
        columns: columns.to_vec(),
        values,
        len: batch.num_rows(),
    })
}

/// Whether a row is in an extent, by its definition.
pub fn is_in(extent: &Extent, key: &[u8], within: impl Fn(&[ColumnId]) -> Vec<u8>) -> bool {
    match extent {
        Extent::Slots(slots) => slots.contains(slot_of(key).into()),
        Extent::Keys(range) => range.contains(key),
        Extent::Values { values, within: to } => {
            values.iter().any(|v| v == key)
                && to
                    .as_ref()
                    .is_none_or(|to| to.range.contains(&within(&to.columns)))
        }
    }
}

/// Some encodings, and bytes near them, ascending and distinct.
pub fn random_bounds(rng: &mut StdRng, keys: &EncodedKeys, count: usize) -> Vec<Vec<u8>> {
    let mut bounds: Vec<_> = (0..count)
        .map(|_| {
            let mut bound = keys.get(rng.random_range(0..keys.len())).to_vec();
            match rng.random_range(0..3) {
                0 => bound.truncate(rng.random_range(1..=bound.len())),
                1 => bound.push(0xFF),
                _ => {}
            }
            bound
        })
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    bounds
}

/// The ranges between bounds, which cover everything.
pub fn ranges(bounds: &[Vec<u8>]) -> Vec<KeyRange> {
    let mut from = Vec::new();
    let mut ranges = Vec::new();
    for bound in bounds {
        ranges.push(KeyRange {
            from: std::mem::replace(&mut from, bound.clone()),
            to: Some(bound.clone()),
        });
    }
    ranges.push(KeyRange { from, to: None });
    ranges
}

/// Disjoint extents that the rows of a batch go to.
pub fn random_extents(
    rng: &mut StdRng,
    method: PartitionMethod,
    keys: &EncodedKeys,
    cut_by: &[ColumnId],
    cut_keys: &EncodedKeys,
) -> Vec<Extent> {
    let count = rng.random_range(1..6);
    match method {
        PartitionMethod::Hash => SlotRange::even(count).map(Extent::Slots).collect(),
        PartitionMethod::Range => ranges(&random_bounds(rng, keys, count as usize))
            .into_iter()
            .map(Extent::Keys)
            .collect(),
        PartitionMethod::List => {
            let mut all: Vec<_> = keys.iter().map(<[u8]>::to_vec).collect();
            all.sort_unstable();
            all.dedup();
            let mut lists = vec![Vec::new(); count as usize];
            for value in all {
                lists[rng.random_range(0..count as usize)].push(value);
            }
            let mut extents = Vec::new();
            for values in lists {
                if rng.random::<bool>() {
                    let bounds = random_bounds(rng, cut_keys, 2);
                    extents.extend(ranges(&bounds).into_iter().map(|range| Extent::Values {
                        values: values.clone(),
                        within: Some(Within {
                            columns: cut_by.to_vec(),
                            range,
                        }),
                    }));
                } else {
                    extents.push(Extent::Values {
                        values,
                        within: None,
                    });
                }
            }
            extents
        }
    }
}
