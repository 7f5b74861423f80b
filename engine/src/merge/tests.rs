//! Memtable, flush, files, compaction and merge against a map from key to row.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMillisecondType};
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringViewArray};
use arrow_buffer::{BooleanBuffer, ScalarBuffer};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_rows::{BlockColumn, RowBlock, Series};
use shoal_sst::{ObjectLayout, ReadCounters, ScanOptions, SstFile, SstStore, SstStoreOptions};
use shoal_types::{
    Column, ColumnId, ColumnType, Incarnation, Offset, PartitionId, ShardId, TableId, TableMode,
    TableOrigin, TableSchema, TimePrecision,
};

use super::{MergeOptions, file_run, memory_run, merge_runs};
use crate::EngineConfig;
use crate::compaction::pick::is_bottom;
use crate::compaction::{ByteBudget, CompactionJob, SstProducer};
use crate::memtable::{MemtableView, TableMemtable};

const TIME: ColumnId = ColumnId(1);

pub(crate) fn column(id: u32, name: &str, column_type: ColumnType) -> Column {
    Column {
        id: ColumnId(id),
        name: name.into(),
        column_type,
        nullable: ColumnId(id) != TIME,
        default: None,
    }
}

/// `host` TEXT, `time` TIMESTAMP(3), `a` BIGINT, `b` TEXT; key (host, time).
pub(crate) fn table(mode: TableMode) -> TableSchema {
    let millisecond = TimePrecision::Millisecond;
    TableSchema {
        table: TableId::generate(),
        version: 1,
        incarnation: Incarnation(0),
        columns: vec![
            column(0, "host", ColumnType::Text),
            column(
                1,
                "time",
                ColumnType::Timestamp {
                    precision: millisecond,
                    utc: false,
                },
            ),
            column(2, "a", ColumnType::Int64),
            column(3, "b", ColumnType::Text),
        ],
        key: vec![ColumnId(0), TIME],
        time_column: Some(TIME),
        mode,
        ttl_ms: None,
        origin: TableOrigin::LineProtocol,
        next_column_id: ColumnId(4),
        part_of: None,
    }
}

/// A cell as text; what a column holds is compared as text only.
fn cell(values: &dyn Array, row: usize) -> Option<String> {
    values.is_valid(row).then(|| match values.data_type() {
        arrow_schema::DataType::Int64 => values.as_primitive::<Int64Type>().value(row).to_string(),
        _ => values.as_string_view().value(row).to_owned(),
    })
}

pub(crate) type Key = (Vec<Option<String>>, i64);
type Row = BTreeMap<ColumnId, String>;

/// What the table should show.
#[derive(Default)]
struct Model {
    rows: BTreeMap<Key, Row>,
}

impl Model {
    fn apply(&mut self, block: &RowBlock) {
        for row in 0..block.rows() {
            let series = block.series_of[row] as usize;
            let mut tags: Vec<Option<String>> = block
                .series
                .values
                .iter()
                .map(|v| cell(v, series))
                .collect();
            while tags.last() == Some(&None) {
                tags.pop();
            }
            let key = (tags, block.time.as_ref().expect("keyed by time")[row]);
            if block.deletes.as_ref().is_some_and(|d| d.value(row)) {
                self.rows.remove(&key);
                continue;
            }
            let stored = self.rows.entry(key).or_default();
            for column in &block.columns {
                if column.set.as_ref().is_some_and(|s| !s.value(row)) {
                    continue;
                }
                match cell(&column.values, row) {
                    Some(value) => stored.insert(column.id, value),
                    None => stored.remove(&column.id),
                };
            }
        }
    }
}

/// Rows as read, in the order read.
pub(crate) fn rows_of(schema: &TableSchema, batches: &[RecordBatch]) -> Vec<(Key, Row)> {
    let mut out = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let mut tags = Vec::new();
            let (mut time, mut values) = (0, Row::new());
            for id in schema.series_columns() {
                let name = &schema.column_by_id(*id).expect("key").name;
                tags.push(cell(batch.column_by_name(name).expect("key"), row));
            }
            while tags.last() == Some(&None) {
                tags.pop();
            }
            for column in &schema.columns {
                let array = batch.column_by_name(&column.name).expect("all columns");
                if column.id == TIME {
                    time = array.as_primitive::<TimestampMillisecondType>().value(row);
                } else if !schema.is_key(column.id)
                    && let Some(value) = cell(array, row)
                {
                    values.insert(column.id, value);
                }
            }
            out.push(((tags, time), values));
        }
    }
    out
}

fn text(values: Vec<Option<String>>) -> ArrayRef {
    Arc::new(StringViewArray::from_iter(values))
}

/// A random block for `schema`: some columns left out, some rows' cells not set or NULL.
fn random_block(
    rng: &mut StdRng,
    schema: &TableSchema,
    stamp: &mut u64,
    times: std::ops::Range<i64>,
) -> RowBlock {
    let rows = rng.random_range(1..20);
    let hosts = rng.random_range(1..5_usize);
    let tags = schema.series_columns().to_vec();
    let mut seen = Vec::<Vec<Option<String>>>::new();
    for _ in 0..hosts {
        let series = tags
            .iter()
            .map(|_| {
                let name = ["x", "y", "longer than twelve bytes"][rng.random_range(0..3)];
                rng.random_bool(0.8).then(|| name.to_owned())
            })
            .collect();
        if !seen.contains(&series) {
            seen.push(series);
        }
    }
    let values = (0..tags.len())
        .map(|at| text(seen.iter().map(|s| s[at].clone()).collect()))
        .collect();
    let deletes: Option<BooleanBuffer> = rng
        .random_bool(0.3)
        .then(|| (0..rows).map(|_| rng.random_bool(0.3)).collect());
    let mut columns = Vec::new();
    for column in schema.value_columns() {
        if rng.random_bool(0.3) {
            continue;
        }
        let partial = rng.random_bool(0.4) || deletes.is_some();
        let set: BooleanBuffer = (0..rows)
            .map(|row| {
                let deleted = deletes.as_ref().is_some_and(|d| d.value(row));
                !(deleted || partial && rng.random_bool(0.5))
            })
            .collect();
        let mut cells = Vec::new();
        for row in 0..rows {
            *stamp += 1;
            let here = set.value(row) && rng.random_bool(0.8);
            cells.push(here.then(|| stamp.to_string()));
        }
        columns.push(BlockColumn {
            id: column.id,
            values: match column.column_type {
                ColumnType::Int64 => {
                    let parsed = cells
                        .iter()
                        .map(|c| c.as_ref().map(|c| c.parse().expect("a number")));
                    Arc::new(Int64Array::from_iter(parsed))
                }
                _ => text(cells),
            },
            set: (set.count_set_bits() < rows).then_some(set),
        });
    }
    columns.sort_by_key(|c| c.id);
    let block = RowBlock {
        table: schema.table,
        incarnation: schema.incarnation,
        schema_version: schema.version,
        series: Series {
            columns: tags,
            len: seen.len(),
            values,
        },
        series_of: (0..rows)
            .map(|_| rng.random_range(0..seen.len()) as u32)
            .collect(),
        time: Some(ScalarBuffer::from(
            (0..rows)
                .map(|_| rng.random_range(times.clone()) * 40_000_000)
                .collect::<Vec<i64>>(),
        )),
        columns,
        deletes,
    };
    block.check().expect("a block as parsers make it");
    block
}

/// Line protocol and ALTER TABLE between writes.
fn random_change(rng: &mut StdRng, schema: &TableSchema) -> TableSchema {
    let mut new = schema.clone();
    new.version += 1;
    let id = schema.next_column_id;
    match rng.random_range(0..4) {
        0 if schema.key.len() < 4 => {
            new.columns
                .insert(1, column(id.0, &format!("tag{id}"), ColumnType::Text));
            new.key.insert(new.key.len() - 1, id);
            new.next_column_id = id.next();
        }
        1 => {
            new.columns
                .push(column(id.0, &format!("new{id}"), ColumnType::Int64));
            new.next_column_id = id.next();
        }
        2 => {
            let last = new.columns.last_mut().expect("columns");
            last.name = format!("renamed{}", new.version);
        }
        _ if schema.value_columns().count() > 1 => {
            let values: Vec<ColumnId> = schema.value_columns().map(|c| c.id).collect();
            let gone = values[rng.random_range(0..values.len())];
            new.columns.retain(|c| c.id != gone);
        }
        _ => {}
    }
    new.check().expect("a schema that may be");
    new
}

pub(crate) fn producer(store: &Arc<SstStore>) -> SstProducer {
    SstProducer::new(
        &EngineConfig::default(),
        Arc::clone(store),
        ObjectLayout::new("", "test"),
        ShardId::generate(),
        1,
        Arc::new(ByteBudget::new(0)),
        None,
    )
}

pub(crate) fn store() -> Arc<SstStore> {
    SstStore::new(Arc::new(InMemory::new()), &SstStoreOptions::default()).expect("no disk level")
}

pub(crate) async fn read(
    store: &Arc<SstStore>,
    schema: &Arc<TableSchema>,
    files: &[SstFile],
    memory: &[MemtableView],
    batch_rows: usize,
) -> Vec<RecordBatch> {
    let mut runs = Vec::new();
    for file in files {
        let counters = Arc::new(ReadCounters::default());
        let scan = ScanOptions {
            batch_rows: batch_rows / 2 - 1,
            ..ScanOptions::default()
        };
        let stream = store
            .scan(file, schema, &scan, counters)
            .await
            .expect("opens");
        runs.push(file_run(stream));
    }
    for view in memory {
        runs.push(memory_run(view.sorted(schema, None).expect("sorts")));
    }
    let options = MergeOptions {
        batch_rows,
        ..MergeOptions::read()
    };
    merge_runs(Arc::clone(schema), runs, options)
        .try_collect()
        .await
        .expect("merges")
}

#[tokio::test]
async fn any_history_of_writes_flushes_compactions_and_schema_changes_reads_as_a_map_would() {
    let whole = |f: &&SstFile| !f.has_deletes && !f.has_partial;
    let (mut above_others, mut split, mut bottoms_above) = (0, 0, 0);
    for seed in 0..80 {
        let mut rng = StdRng::seed_from_u64(seed);
        let store = store();
        let producer = producer(&store);
        let partition = PartitionId::generate();
        let mut schema = Arc::new(table(TableMode::Upsert));
        let mut memtable = TableMemtable::new(Arc::clone(&schema));
        let mut model = Model::default();
        // One entry a run, oldest first; a run is several files, one a window.
        let mut runs: Vec<Vec<SstFile>> = Vec::new();
        let (mut stamp, mut offset) = (0, 0);
        for _ in 0..60 {
            match rng.random_range(0..12) {
                0..=5 => {
                    // A writer may lag behind the schema by a version.
                    // In every other history time goes on as well.
                    let from = if seed % 2 == 0 { -3 } else { offset as i64 };
                    let times = from..from + if seed % 2 == 0 { 15 } else { 3 };
                    let block = random_block(&mut rng, &schema, &mut stamp, times);
                    model.apply(&block);
                    offset += 1;
                    memtable.apply(Arc::new(block), 0, Offset(offset), 0);
                    if rng.random_bool(0.2) {
                        memtable.view().seal_for_tests();
                    }
                }
                6 | 7 => {
                    let view = memtable.view();
                    memtable = TableMemtable::new(Arc::clone(&schema));
                    let files = producer
                        .flush_memtable(&view, &schema, partition, Some(&runs.concat()), None)
                        .await
                        .expect("flushes");
                    if !runs.is_empty() && runs.concat().iter().any(|f| !whole(&f)) {
                        above_others += files.iter().filter(whole).count();
                    }
                    if !files.is_empty() {
                        runs.push(files);
                    }
                }
                8 | 9 if runs.len() > 1 => {
                    let from = rng.random_range(0..runs.len() - 1);
                    let to = rng.random_range(from + 2..=runs.len());
                    let inputs = runs[from..to].concat();
                    let job = CompactionJob {
                        bottom: is_bottom(&schema, &runs[..from].concat(), &inputs),
                        inputs,
                        level: 1,
                    };
                    bottoms_above += usize::from(job.bottom && from > 0);
                    let files = producer
                        .compact(&job, &schema, &runs[..from].concat(), &[], None, None)
                        .await
                        .expect("compacts");
                    if from > 0 && !job.bottom {
                        split += files.iter().filter(whole).count();
                    }
                    runs.splice(from..to, [files]);
                }
                10 => {
                    let before = Arc::clone(&schema);
                    schema = Arc::new(random_change(&mut rng, &schema));
                    for row in model.rows.values_mut() {
                        row.retain(|id, _| schema.column_by_id(*id).is_some());
                    }
                    // A dropped column is gone for good, so rows from before must not carry it
                    // into a column of another id.
                    assert!(before.next_column_id <= schema.next_column_id);
                }
                _ => {
                    let files = runs.concat();
                    let batches = read(&store, &schema, &files, &[memtable.view()], 16).await;
                    let expected: Vec<(Key, Row)> = model.rows.clone().into_iter().collect();
                    assert_eq!(rows_of(&schema, &batches), expected, "seed {seed}");
                }
            }
        }
    }
    assert!(
        split > 50,
        "{split} files of compactions without hidden columns above others"
    );
    assert!(
        above_others > 50,
        "{above_others} files without hidden columns above others"
    );
    assert!(
        bottoms_above > 0,
        "{bottoms_above} merges were bottoms above others"
    );
}

/// Prints rates: `cargo test -p shoal-engine rates -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn rates() {
    let mut schema = table(TableMode::Upsert);
    for id in 4..12 {
        schema
            .columns
            .push(column(id, &format!("f{id}"), ColumnType::Int64));
    }
    schema.next_column_id = ColumnId(12);
    let schema = Arc::new(schema);
    let hosts: Vec<Option<String>> = (0..400).map(|h| Some(format!("host_{h:05}"))).collect();
    // As a loader sends them: every host at one time, then the next time.
    let blocks: Vec<Arc<RowBlock>> = (0..200_i64)
        .map(|record| {
            let rows = 400 * 10;
            let values = |c: i64| -> ArrayRef {
                Arc::new(Int64Array::from_iter_values(
                    (0..rows).map(|r| (r * c + record) % 100),
                ))
            };
            Arc::new(RowBlock {
                table: schema.table,
                incarnation: schema.incarnation,
                schema_version: schema.version,
                series: Series {
                    columns: vec![ColumnId(0)],
                    values: vec![text(hosts.clone())],
                    len: 400,
                },
                series_of: (0..rows).map(|r| (r % 400) as u32).collect(),
                time: Some(
                    (0..rows)
                        .map(|r| (record * 10 + r / 400) * 10_000)
                        .collect(),
                ),
                columns: std::iter::once(2)
                    .chain(4..12)
                    .map(|c: u32| BlockColumn {
                        id: ColumnId(c),
                        values: values(c.into()),
                        set: None,
                    })
                    .collect(),
                deletes: None,
            })
        })
        .collect();
    let clock = tokio::time::Instant::now;
    let rate = |what: &str, rows: usize, from: tokio::time::Instant| {
        let took = from.elapsed();
        let per_s = rows as f64 / took.as_secs_f64();
        println!("{what}: {rows} rows in {took:?}, {per_s:.0} rows/s");
    };
    let store = store();
    let producer = producer(&store);
    let partition = PartitionId::generate();
    let mut runs: Vec<Vec<SstFile>> = Vec::new();
    for half in 0..2 {
        let mut memtable = TableMemtable::new(Arc::clone(&schema));
        let start = clock();
        for (at, block) in blocks.iter().enumerate() {
            memtable.apply(Arc::clone(block), 0, Offset(half * 1000 + at as u64), 0);
        }
        rate("apply", memtable.rows(), start);
        println!("  {} bytes held", memtable.memory_bytes());
        for _ in 0..2 {
            let start = clock();
            let batches = memtable.view().sorted(&schema, None).expect("sorts");
            let rows = batches.iter().map(RecordBatch::num_rows).sum();
            rate("sorted", rows, start);
        }
        let start = clock();
        let view = memtable.view();
        let files = producer
            .flush_memtable(&view, &schema, partition, Some(&runs.concat()), None)
            .await;
        rate("flush", view.rows(), start);
        runs.push(files.expect("flushes"));
    }
    let files = runs.concat();
    let rows: u64 = files.iter().map(|f| f.rows).sum();
    let start = clock();
    let batches = read(&store, &schema, &files, &[], 8192).await;
    rate("read, every key in both files", rows as usize, start);
    drop(batches);
    let job = CompactionJob {
        inputs: files,
        bottom: true,
        level: 1,
    };
    let start = clock();
    producer
        .compact(&job, &schema, &[], &[], None, None)
        .await
        .expect("compacts");
    rate("compact", rows as usize, start);
}
