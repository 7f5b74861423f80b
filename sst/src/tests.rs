use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampNanosecondType};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringViewArray, TimestampNanosecondArray};
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_types::{
    Column, ColumnId, ColumnType, Incarnation, PartitionId, RowVersion, TableId, TableMode,
    TableOrigin, TableSchema, TimePrecision,
};

use crate::{
    DiskCacheOptions, ReadCounters, ScanOptions, SeriesEncoder, SstError, SstFile, SstStore,
    SstStoreOptions, SstWriteOptions, SstWriter, describe,
};

/// The shape of TSBS cpu: ten tags, `time` in nanoseconds, ten integer fields.
fn cpu_schema() -> Arc<TableSchema> {
    let column = |id: u32, name: String, column_type, nullable| Column {
        id: ColumnId(id),
        name,
        column_type,
        nullable,
        default: None,
    };
    let time = ColumnType::Timestamp {
        precision: TimePrecision::Nanosecond,
        utc: false,
    };
    let mut columns: Vec<Column> = (0..10)
        .map(|i| column(i, format!("tag{i}"), ColumnType::Text, true))
        .collect();
    columns.push(column(10, "time".into(), time, false));
    columns.extend((11..21).map(|i| column(i, format!("usage{i}"), ColumnType::Int64, true)));
    Arc::new(TableSchema {
        table: TableId::generate(),
        version: 1,
        incarnation: Incarnation(0),
        key: (0..11).map(ColumnId).collect(),
        columns,
        time_column: Some(ColumnId(10)),
        mode: TableMode::Upsert,
        ttl_ms: None,
        origin: TableOrigin::LineProtocol,
        next_column_id: ColumnId(21),
        part_of: None,
    })
}

/// `points` rows of one host every 10 s, fields random walks in 0..=100 as TSBS makes them.
fn cpu_batch(schema: &TableSchema, rng: &mut StdRng, host: usize, points: usize) -> RecordBatch {
    let mut columns: Vec<ArrayRef> = Vec::new();
    for tag in 0..10_usize {
        let value = match tag {
            0 => format!("host_{host:04}"),
            _ => format!("value-{tag}-{}", host * tag % (tag * 3 + 2)),
        };
        let values = std::iter::repeat_n(Some(value), points);
        columns.push(Arc::new(StringViewArray::from_iter(values)));
    }
    let start = 1_767_225_600_000_000_000_i64;
    let times = (0..points as i64).map(|i| start + i * 10_000_000_000);
    columns.push(Arc::new(TimestampNanosecondArray::from_iter_values(times)));
    for _ in 0..10 {
        let mut value: f64 = rng.random_range(0.0..100.0);
        let walk = (0..points).map(|_| {
            // A step of about one standard deviation, as the sum of uniform variables.
            let step: f64 = (0..12).map(|_| rng.random_range(0.0..1.0)).sum::<f64>() - 6.0;
            value = (value + step).clamp(0.0, 100.0);
            value as i64
        });
        columns.push(Arc::new(Int64Array::from_iter_values(walk)));
    }
    RecordBatch::try_new(schema.arrow(), columns).expect("the schema's columns")
}

async fn write(
    store: &dyn ObjectStore,
    schema: &Arc<TableSchema>,
    hosts: usize,
    points: usize,
    options: SstWriteOptions,
) -> SstFile {
    let partition = PartitionId::generate();
    let shard = shoal_types::ShardId::generate();
    let path = crate::ObjectLayout::new("", "c").new_sst(schema.table, partition, shard, 1);
    let mut writer = SstWriter::create(path, Arc::clone(schema), partition, false, false, options)
        .expect("begins");
    let mut rng = StdRng::seed_from_u64(7);
    for host in 0..hosts {
        writer
            .write(&cpu_batch(schema, &mut rng, host, points))
            .expect("in order");
        writer.upload_ready(store).await.expect("uploads");
    }
    let versions = (RowVersion(1), RowVersion(9));
    writer.finish(store, versions, 0).await.expect("puts")
}

fn open(store: Arc<dyn ObjectStore>) -> Arc<SstStore> {
    SstStore::new(store, &SstStoreOptions::default()).expect("no disk level")
}

async fn read(
    store: &Arc<SstStore>,
    schema: &Arc<TableSchema>,
    file: &SstFile,
    options: &ScanOptions,
) -> Result<Vec<RecordBatch>, SstError> {
    let counters = Arc::new(ReadCounters::default());
    store
        .scan(file, schema, options, counters)
        .await?
        .try_collect()
        .await
}

#[tokio::test]
async fn a_series_index_and_page_times_lead_to_the_rows_of_one_host_and_hour() {
    let objects = Arc::new(InMemory::new());
    let schema = cpu_schema();
    let file = write(
        objects.as_ref(),
        &schema,
        50,
        8640,
        SstWriteOptions::default(),
    )
    .await;
    assert_eq!((file.rows, file.series), (50 * 8640, 50));
    let store = open(objects);
    let index = store
        .series_index(&file)
        .await
        .expect("reads")
        .expect("pays");
    let mut rng = StdRng::seed_from_u64(0);
    let one = cpu_batch(&schema, &mut rng, 31, 1);
    let series = shoal_rows::Series {
        columns: schema.series_columns().to_vec(),
        values: one.columns()[..10].to_vec(),
        len: 1,
    };
    let mut key = Vec::new();
    SeriesEncoder::new(&series).encode(0, &mut key);
    let range = index.range_of(&key).expect("has the host");
    assert_eq!(range, 31 * 8640..32 * 8640);
    let hour = 3_600_000_000_000_i64;
    let start = file.time_range.expect("no NULL").0 + 5 * hour;
    let options = ScanOptions {
        columns: Some(vec![ColumnId(0), ColumnId(10), ColumnId(11)]),
        rows: Some(vec![range]),
        time: Some((start, start + hour - 1)),
        ..ScanOptions::default()
    };
    let counters = Arc::new(ReadCounters::default());
    let stream = store
        .scan(&file, &schema, &options, Arc::clone(&counters))
        .await;
    let batches: Vec<RecordBatch> = stream.expect("opens").try_collect().await.expect("reads");
    let mut hits = 0;
    for batch in &batches {
        assert_eq!(batch.num_columns(), 3);
        let hosts = batch.column(0).as_string_view();
        assert!(hosts.iter().all(|h| h == Some("host_0031")));
        let times = batch.column(1).as_primitive::<TimestampNanosecondType>();
        hits += times
            .values()
            .iter()
            .filter(|t| (start..start + hour).contains(*t))
            .count();
    }
    assert_eq!(hits, 360);
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert!(rows <= 2 * 4096, "{rows} rows read for 360");
    let read = counters.bytes_read.get();
    assert!(
        read * 100 <= file.bytes,
        "{read} of {} bytes read",
        file.bytes
    );
}

#[tokio::test]
async fn a_flipped_byte_anywhere_is_reported_as_damage_and_never_read_as_rows() {
    let objects = Arc::new(InMemory::new());
    let schema = cpu_schema();
    let file = write(
        objects.as_ref(),
        &schema,
        6,
        300,
        SstWriteOptions::default(),
    )
    .await;
    let path = Path::from(file.path.as_str());
    let good = objects
        .get(&path)
        .await
        .expect("put")
        .bytes()
        .await
        .expect("bytes")
        .to_vec();
    assert!(
        read(
            &open(objects.clone()),
            &schema,
            &file,
            &ScanOptions::default()
        )
        .await
        .is_ok()
    );
    // Every byte of the tail, and every 37th of the data: a prime, so all kinds of bytes are met.
    let tail = good.len() - file.tail_bytes as usize;
    let places = (0..tail).step_by(37).chain((tail..good.len()).step_by(3));
    for place in places {
        let mut bad = good.clone();
        bad[place] ^= 0x41;
        objects
            .put(&path, PutPayload::from(bad))
            .await
            .expect("put");
        let store = open(objects.clone());
        let result = read(&store, &schema, &file, &ScanOptions::default()).await;
        let index = store.series_index(&file).await;
        match (result, index) {
            (Err(SstError::Damaged { path, .. }), _) => assert_eq!(path, file.path),
            // The scan does not read the series index.
            (Ok(_), Err(SstError::Damaged { .. })) => {}
            // The magic number in front is read by nobody, but `describe` checks it.
            (other, _) => {
                assert!(place < 4, "byte {place}: {other:?}");
            }
        }
        // Without the manifest's checksum of the tail it may go unnoticed, but never panics.
        let _ = describe(objects.as_ref(), &path).await;
    }
    for cut in [0, 1, 8, good.len() / 2, good.len() - 1] {
        objects
            .put(&path, PutPayload::from(good[..cut].to_vec()))
            .await
            .expect("put");
        let result = read(
            &open(objects.clone()),
            &schema,
            &file,
            &ScanOptions::default(),
        )
        .await;
        assert!(
            matches!(result, Err(SstError::Damaged { .. })),
            "cut at {cut}: {result:?}"
        );
        assert!(describe(objects.as_ref(), &path).await.is_err());
    }
}

#[tokio::test]
async fn rows_out_of_order_are_refused() {
    let schema = cpu_schema();
    let mut rng = StdRng::seed_from_u64(1);
    let (a, b) = (
        cpu_batch(&schema, &mut rng, 1, 10),
        cpu_batch(&schema, &mut rng, 2, 10),
    );
    let begin = || {
        SstWriter::create(
            "x".into(),
            Arc::clone(&schema),
            PartitionId::generate(),
            false,
            false,
            SstWriteOptions::default(),
        )
        .expect("begins")
    };
    let mut writer = begin();
    writer.write(&b).expect("first");
    assert!(writer.write(&a).is_err(), "series descend");
    let mut writer = begin();
    writer.write(&a.slice(0, 5)).expect("first");
    assert!(writer.write(&a.slice(4, 2)).is_err(), "a key twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_at_once_fetch_each_block_once_and_later_ones_not_at_all() {
    let objects = Arc::new(InMemory::new());
    let schema = cpu_schema();
    let file = write(
        objects.as_ref(),
        &schema,
        4,
        5000,
        SstWriteOptions::default(),
    )
    .await;
    let store = open(objects);
    store.metadata(&file).await.expect("footer");
    let before = store.stats().store_bytes.get();
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (store, schema, file) = (Arc::clone(&store), Arc::clone(&schema), file.clone());
            tokio::spawn(async move { read(&store, &schema, &file, &ScanOptions::default()).await })
        })
        .collect();
    for reader in readers {
        let rows: usize = reader
            .await
            .expect("runs")
            .expect("reads")
            .iter()
            .map(RecordBatch::num_rows)
            .sum();
        assert_eq!(rows, 20_000);
    }
    let fetched = store.stats().store_bytes.get() - before;
    assert!(
        fetched <= file.bytes,
        "{fetched} bytes fetched of {}",
        file.bytes
    );
    read(&store, &schema, &file, &ScanOptions::default())
        .await
        .expect("reads");
    assert_eq!(store.stats().store_bytes.get() - before, fetched);
}

#[tokio::test]
async fn the_disk_level_outlives_the_process_and_a_damaged_block_in_it_is_fetched_again() {
    let objects = Arc::new(InMemory::new());
    let schema = cpu_schema();
    let file = write(
        objects.as_ref(),
        &schema,
        4,
        5000,
        SstWriteOptions::default(),
    )
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let options = SstStoreOptions {
        disk: Some(DiskCacheOptions {
            directory: folder.path().to_owned(),
            bytes_max: 64 << 20,
        }),
        ..SstStoreOptions::default()
    };
    let fetched_by = |store: &Arc<SstStore>| store.stats().store_bytes.get();
    let mut fetched = Vec::new();
    for round in 0..3 {
        let store = SstStore::new(objects.clone(), &options).expect("opens");
        store.metadata(&file).await.expect("footer");
        let before = fetched_by(&store);
        let batches = read(&store, &schema, &file, &ScanOptions::default())
            .await
            .expect("reads");
        let sum: i64 = batches
            .iter()
            .flat_map(|b| b.column(11).as_primitive::<Int64Type>().values().to_vec())
            .sum();
        assert!(sum > 0);
        fetched.push(fetched_by(&store) - before);
        // Writes to the cache disk run behind the reads.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        if round == 1 {
            for entry in std::fs::read_dir(folder.path()).expect("lists") {
                let path = entry.expect("an entry").path();
                let mut bytes = std::fs::read(&path).expect("reads");
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&path, bytes).expect("writes");
            }
        }
    }
    assert!(fetched[0] > 0);
    assert!(fetched[1] < fetched[0], "{fetched:?}");
    assert!(fetched[2] > fetched[1], "{fetched:?}");
}

/// Prints bytes a row by column: `cargo test -p shoal-sst sizes -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn sizes() {
    let schema = cpu_schema();
    for zstd_level in [None, Some(1), Some(3), Some(9)] {
        let objects = Arc::new(InMemory::new());
        let options = SstWriteOptions {
            zstd_level,
            ..SstWriteOptions::default()
        };
        let started = tokio::time::Instant::now();
        let file = write(objects.as_ref(), &schema, 400, 2160, options).await;
        let wrote = started.elapsed();
        let store = open(objects.clone());
        let started = tokio::time::Instant::now();
        read(&store, &schema, &file, &ScanOptions::default())
            .await
            .expect("reads");
        let took = started.elapsed();
        let shown = describe(objects.as_ref(), &Path::from(file.path.as_str()))
            .await
            .expect("ours");
        println!(
            "zstd {zstd_level:?}: {:.2} bytes/row, tail {} bytes, wrote {:.0} rows/s (generator included), read {:.0} rows/s",
            shown.bytes_per_row,
            file.tail_bytes,
            file.rows as f64 / wrote.as_secs_f64(),
            file.rows as f64 / took.as_secs_f64(),
        );
        for column in &shown.columns {
            println!(
                "  {:10} {:.3} {:?}",
                column.name, column.bytes_per_row, column.encodings
            );
        }
    }
}

/// One column of each type as key or value, by the order that keys sort in.
fn every_type() -> (Arc<TableSchema>, Vec<ArrayRef>) {
    use arrow_array as a;
    let precision = |p| ColumnType::Timestamp {
        precision: p,
        utc: p == TimePrecision::Microsecond,
    };
    let decimal = ColumnType::Decimal {
        precision: 20,
        scale: 3,
    };
    let columns: Vec<(&str, ColumnType, ArrayRef)> = vec![
        (
            "flag",
            ColumnType::Boolean,
            Arc::new(a::BooleanArray::from(vec![None, Some(false), Some(true)])),
        ),
        (
            "small",
            ColumnType::Int16,
            Arc::new(a::Int16Array::from(vec![Some(-3), None, Some(7)])),
        ),
        (
            "amount",
            decimal,
            Arc::new(
                a::Decimal128Array::from(vec![Some(-1), Some(5), None])
                    .with_precision_and_scale(20, 3)
                    .expect("fits"),
            ),
        ),
        (
            "day",
            ColumnType::Date,
            Arc::new(a::Date32Array::from(vec![Some(1), Some(2), None])),
        ),
        (
            "raw",
            ColumnType::Binary,
            Arc::new(a::BinaryViewArray::from_iter([
                Some(b"a\0b"),
                None,
                Some(b"\xff\xfe\xfd"),
            ])),
        ),
        (
            "at",
            precision(TimePrecision::Second),
            Arc::new(a::TimestampSecondArray::from(vec![5, 6, 7])),
        ),
        (
            "int",
            ColumnType::Int32,
            Arc::new(a::Int32Array::from(vec![None, Some(i32::MIN), Some(1)])),
        ),
        (
            "real",
            ColumnType::Float32,
            Arc::new(a::Float32Array::from(vec![Some(1.5), None, Some(f32::NAN)])),
        ),
        (
            "double",
            ColumnType::Float64,
            Arc::new(a::Float64Array::from(vec![
                Some(-0.0),
                None,
                Some(f64::INFINITY),
            ])),
        ),
        (
            "text",
            ColumnType::Text,
            Arc::new(StringViewArray::from_iter([
                Some("ä"),
                None,
                Some("a text of more than twelve bytes"),
            ])),
        ),
        (
            "seen",
            precision(TimePrecision::Microsecond),
            Arc::new(
                a::TimestampMicrosecondArray::from(vec![None, Some(1), Some(2)])
                    .with_timezone("UTC"),
            ),
        ),
    ];
    let schema = TableSchema {
        table: TableId::generate(),
        version: 1,
        incarnation: Incarnation(0),
        columns: columns
            .iter()
            .enumerate()
            .map(|(id, (name, column_type, _))| Column {
                id: ColumnId(id as u32),
                name: (*name).into(),
                column_type: *column_type,
                nullable: *name != "at",
                default: None,
            })
            .collect(),
        key: (0..6).map(ColumnId).collect(),
        time_column: Some(ColumnId(5)),
        mode: TableMode::Upsert,
        ttl_ms: None,
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(20),
        part_of: None,
    };
    (Arc::new(schema), columns.into_iter().map(|c| c.2).collect())
}

#[tokio::test]
async fn every_column_type_with_tombstones_and_partial_rows_reads_back_as_written() {
    let (schema, mut columns) = every_type();
    let objects = Arc::new(InMemory::new());
    let sets: [Option<&[u8]>; 3] = [Some(&[0b0111_1111, 0b0000_0101]), None, None];
    columns.push(Arc::new(arrow_array::BooleanArray::from(vec![
        false, true, false,
    ])));
    columns.push(Arc::new(arrow_array::BinaryArray::from_iter(sets)));
    let run = crate::run_schema(&schema, true, true);
    let batch = RecordBatch::try_new(run, columns).expect("a run");
    let mut writer = SstWriter::create(
        "t.parquet".into(),
        Arc::clone(&schema),
        PartitionId::generate(),
        true,
        true,
        SstWriteOptions::default(),
    )
    .expect("begins");
    writer.write(&batch).expect("in order");
    let versions = (RowVersion(1), RowVersion(3));
    let file = writer
        .finish(objects.as_ref(), versions, 0)
        .await
        .expect("puts");
    assert_eq!(file.time_range, Some((5, 7)));
    let store = open(objects);
    let all = ScanOptions::default();
    let batches = read(&store, &schema, &file, &all).await.expect("reads");
    assert_eq!(batches, vec![batch]);
    // A column added in front moves the bits; an added one counts as set.
    let mut newer = (*schema).clone();
    newer.columns.insert(
        0,
        Column {
            id: ColumnId(19),
            name: "new".into(),
            column_type: ColumnType::Int64,
            nullable: true,
            default: None,
        },
    );
    let batches = read(&store, &Arc::new(newer), &file, &all)
        .await
        .expect("reads");
    let set = batches[0]
        .column_by_name(crate::HIDDEN_SET)
        .expect("partial")
        .as_binary::<i32>();
    assert_eq!(
        set.iter().next().flatten(),
        Some(&[0b1111_1111, 0b0000_1010][..])
    );
}

#[tokio::test]
async fn a_large_file_goes_up_in_parts_and_reads_back_whole() {
    let objects = Arc::new(InMemory::new());
    let schema = cpu_schema();
    let options = SstWriteOptions {
        row_group_rows: 64 << 10,
        ..SstWriteOptions::default()
    };
    let path = Path::from("large.parquet");
    let partition = PartitionId::generate();
    let mut writer = SstWriter::create(path, Arc::clone(&schema), partition, false, false, options)
        .expect("begins");
    let mut rng = StdRng::seed_from_u64(3);
    let mut sum = 0_i64;
    for host in 0..40 {
        let batch = cpu_batch(&schema, &mut rng, host, 8640);
        let mut columns = batch.columns().to_vec();
        for column in columns.iter_mut().skip(11) {
            let values: Int64Array = (0..8640).map(|_| Some(rng.random::<i64>())).collect();
            sum = values.values().iter().fold(sum, |s, v| s.wrapping_add(*v));
            *column = Arc::new(values);
        }
        let batch = RecordBatch::try_new(batch.schema(), columns).expect("same shape");
        writer.write(&batch).expect("in order");
        writer
            .upload_ready(objects.as_ref())
            .await
            .expect("uploads");
    }
    let versions = (RowVersion(1), RowVersion(1));
    let file = writer
        .finish(objects.as_ref(), versions, 0)
        .await
        .expect("completes");
    assert!(file.bytes > 24 << 20, "{} bytes", file.bytes);
    let store = open(objects);
    let batches = read(&store, &schema, &file, &ScanOptions::default())
        .await
        .expect("reads");
    let got = batches
        .iter()
        .flat_map(|b| b.columns()[11..].to_vec())
        .flat_map(|c| c.as_primitive::<Int64Type>().values().to_vec())
        .fold(0_i64, i64::wrapping_add);
    assert_eq!(got, sum);
}
