use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, BooleanArray, Int64Array, RecordBatch, StringViewArray};
use arrow_buffer::ScalarBuffer;
use shoal_rows::{BlockColumn, RowBlock, Series};
use shoal_types::{ColumnId, Offset, RowVersion, TableMode, TableSchema};

use super::{MemtableScan, MemtableView, TableMemtable};
use crate::RowPredicate;
use crate::merge::tests::table;

impl MemtableView {
    /// Makes a segment of the tail, as a long tail would become.
    pub(crate) fn seal_for_tests(&self) {
        if self.tail_blocks > 0 {
            let segment = self.sorted_tail().expect("sorts");
            self.publish(segment);
        }
    }
}

/// Rows of host `h`, times from `start`, column `a` counting from `a`.
pub(crate) fn block(
    schema: &TableSchema,
    host: &str,
    start: i64,
    a: i64,
    rows: usize,
) -> Arc<RowBlock> {
    Arc::new(RowBlock {
        table: schema.table,
        incarnation: schema.incarnation,
        schema_version: schema.version,
        series: Series {
            columns: vec![ColumnId(0)],
            values: vec![Arc::new(StringViewArray::from_iter([Some(host)]))],
            len: 1,
        },
        series_of: vec![0; rows].into(),
        time: Some(ScalarBuffer::from_iter(start..start + rows as i64)),
        columns: vec![BlockColumn {
            id: ColumnId(2),
            values: Arc::new(Int64Array::from_iter_values(a..a + rows as i64)),
            set: None,
        }],
        deletes: None,
    })
}

pub(crate) fn values_of_a(batches: &[RecordBatch]) -> Vec<i64> {
    batches
        .iter()
        .flat_map(|b| {
            b.column_by_name("a")
                .expect("a")
                .as_primitive::<Int64Type>()
                .values()
                .to_vec()
        })
        .collect()
}

#[test]
fn a_view_shows_what_was_there_when_it_was_taken_even_after_later_rows_were_sealed() {
    let schema = Arc::new(table(TableMode::Upsert));
    let mut memtable = TableMemtable::new(Arc::clone(&schema));
    memtable.apply(block(&schema, "x", 0, 0, 3), 0, Offset(1), 0);
    let early = memtable.view();
    memtable.apply(block(&schema, "x", 1, 100, 3), 0, Offset(2), 0);
    let late = memtable.view();
    late.seal_for_tests();
    memtable.apply(block(&schema, "w", 9, 7, 1), 0, Offset(3), 0);
    let of = |view: &MemtableView| values_of_a(&view.sorted(&schema, None).expect("sorts"));
    assert_eq!(of(&early), [0, 1, 2]);
    assert_eq!(of(&late), [0, 100, 101, 102]);
    assert_eq!(of(&memtable.view()), [7, 0, 100, 101, 102]);
    assert_eq!(memtable.view().time_range(), Some((0, 9)));
    assert_eq!(
        memtable.view().versions(),
        Some((RowVersion(1 << 16), RowVersion(3 << 16)))
    );
}

#[test]
fn a_scan_is_cut_to_series_times_and_columns() {
    let schema = Arc::new(table(TableMode::Upsert));
    let mut memtable = TableMemtable::new(Arc::clone(&schema));
    for (at, host) in ["p", "q", "r"].into_iter().enumerate() {
        let at = at as i64;
        memtable.apply(
            block(&schema, host, 0, at * 100, 50),
            0,
            Offset(at as u64),
            0,
        );
    }
    let encode = |host: &str| {
        let series = block(&schema, host, 0, 0, 1);
        let mut key = Vec::new();
        shoal_sst::SeriesEncoder::new(&series.series).encode(0, &mut key);
        key
    };
    let scan = MemtableScan {
        columns: Some(vec![ColumnId(2)]),
        series: Some(vec![encode("q"), encode("nobody")]),
        time: Some((10, 12)),
        bottom: true,
        batch_rows: 2,
    };
    let run = memtable.view().scan(&schema, None, &scan).expect("scans");
    let batches: Vec<RecordBatch> = run.collect::<Result<_, _>>().expect("reads");
    assert_eq!(values_of_a(&batches), [110, 111, 112]);
    assert!(
        batches
            .iter()
            .all(|b| b.num_columns() == 1 && b.num_rows() <= 2)
    );
}

/// `a < N`.
#[derive(Debug)]
pub(crate) struct Below;

impl RowPredicate for Below {
    fn matches(
        &self,
        _schema: &TableSchema,
        predicate: &str,
        batch: &RecordBatch,
    ) -> Result<BooleanArray, String> {
        let limit: i64 = predicate.parse().map_err(|_| "not a number".to_owned())?;
        let a = batch
            .column_by_name("a")
            .ok_or("no a")?
            .as_primitive::<Int64Type>();
        assert_eq!(
            batch
                .column_by_name("host")
                .expect("all columns")
                .null_count(),
            0
        );
        Ok(a.iter().map(|v| v.map(|v| v < limit)).collect())
    }
}

#[test]
fn a_predicate_delete_hides_earlier_rows_of_an_append_table_and_no_later_ones() {
    let schema = Arc::new(table(TableMode::Append));
    let mut memtable = TableMemtable::new(Arc::clone(&schema));
    memtable.apply(block(&schema, "x", 0, 0, 4), 0, Offset(1), 0);
    memtable.apply(block(&schema, "x", 0, 2, 4), 0, Offset(2), 0);
    let before = memtable.view();
    memtable.delete_where(RowVersion::new(0, Offset(3), 0), "3".into());
    memtable.apply(block(&schema, "x", 0, 0, 2), 0, Offset(4), 0);
    let of = |view: &MemtableView| {
        let mut all = values_of_a(&view.sorted(&schema, Some(&Below)).expect("sorts"));
        all.sort_unstable();
        all
    };
    assert_eq!(of(&before), [0, 1, 2, 2, 3, 3, 4, 5]);
    assert_eq!(of(&memtable.view()), [0, 1, 3, 3, 4, 5]);
    assert!(
        memtable.view().sorted(&schema, None).is_err(),
        "never shows deleted rows"
    );
}
