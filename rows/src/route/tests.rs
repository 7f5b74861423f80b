use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use arrow_array::{ArrayRef, Int64Array, StringViewArray, UInt32Array};
use arrow_select::take::take;
use shoal_types::{
    Column, Incarnation, KeyRange, PartitionBounds, SlotRange, TableId, TableMode, TableOrigin,
    TimePrecision,
};

use super::*;
use crate::{BlockColumn, Series, encode_time, i64_array};

const ROWS: usize = 65_536;
const HOSTS: usize = 4_000;
const HOST: ColumnId = ColumnId(0);
const REGION: ColumnId = ColumnId(1);
const TIME: ColumnId = ColumnId(2);
const ID: ColumnId = ColumnId(3);
const START: i64 = 1_767_225_600_000_000_000;

fn time_type() -> ColumnType {
    ColumnType::Timestamp {
        precision: TimePrecision::Nanosecond,
        utc: false,
    }
}

/// Hosts in turn, all of them every 10 s, with ten measurements.
fn cpu() -> RowBlock {
    let hosts = (0..HOSTS).map(|i| format!("host_{i}"));
    let regions = (0..HOSTS).map(region);
    let measurement = |id| BlockColumn {
        id: ColumnId(id),
        values: Arc::new(Int64Array::from_iter_values(
            (0..ROWS as i64).map(|row| row * i64::from(id) % 101),
        )),
        set: None,
    };
    RowBlock {
        table: TableId::from_bytes([1; 16]),
        incarnation: Incarnation(0),
        schema_version: 1,
        series: Series {
            columns: vec![HOST, REGION],
            values: vec![
                Arc::new(StringViewArray::from_iter_values(hosts)),
                Arc::new(StringViewArray::from_iter_values(regions)),
            ],
            len: HOSTS,
        },
        series_of: (0..ROWS).map(|row| (row % HOSTS) as u32).collect(),
        time: Some((0..ROWS).map(time_of).collect()),
        columns: (10..20).map(measurement).collect(),
        deletes: None,
    }
}

fn region(i: usize) -> String {
    format!("eu-central-1{}", i % 27)
}

fn time_of(row: usize) -> i64 {
    START + (row / HOSTS) as i64 * 10_000_000_000
}

/// The same rows in a table whose key is a number.
fn keyed() -> RowBlock {
    let ids = (0..ROWS as i64).map(|row| row * 7_919 % 1_000_003);
    RowBlock {
        series: Series {
            columns: vec![ID],
            values: vec![Arc::new(Int64Array::from_iter_values(ids))],
            len: ROWS,
        },
        series_of: (0..ROWS as u32).collect(),
        time: None,
        ..cpu()
    }
}

/// The same rows with the region as a value of each row.
fn regions_by_row() -> RowBlock {
    let mut block = cpu();
    block.series.columns.pop();
    let of_series = block.series.values.pop().expect("regions");
    let series_of = UInt32Array::new(block.series_of.clone(), None);
    let values = take(&of_series, &series_of, None).expect("regions");
    block.columns.insert(
        0,
        BlockColumn {
            id: REGION,
            values,
            set: None,
        },
    );
    block
}

fn schema(block: &RowBlock) -> TableSchema {
    let column = |(id, column_type)| Column {
        id,
        name: format!("c{id}"),
        column_type,
        nullable: true,
        default: None,
    };
    let columns = [
        (HOST, ColumnType::Text),
        (REGION, ColumnType::Text),
        (TIME, time_type()),
        (ID, ColumnType::Int64),
    ];
    let mut key = block.series.columns.clone();
    key.extend(block.time.as_ref().map(|_| TIME));
    TableSchema {
        table: block.table,
        version: 1,
        incarnation: block.incarnation,
        columns: columns.map(column).to_vec(),
        key,
        time_column: Some(TIME),
        mode: TableMode::Upsert,
        ttl_ms: None,
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(20),
        part_of: None,
    }
}

/// Mean of some rounds, in nanoseconds a row.
fn cost(mut work: impl FnMut()) -> f64 {
    const ROUNDS: u32 = 30;
    work();
    let began = Instant::now();
    (0..ROUNDS).for_each(|_| work());
    began.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS) / ROWS as f64
}

/// Prints what it costs to find the rows' partitions, to make their blocks too, and to mask what
/// the first partition owns.
fn report(what: &str, block: &RowBlock, columns: &[ColumnId], extents: &[Extent]) {
    let by = PartitionBy {
        method: match extents[0] {
            Extent::Slots(_) => PartitionMethod::Hash,
            Extent::Keys(_) => PartitionMethod::Range,
            Extent::Values { .. } => PartitionMethod::List,
        },
        columns: columns.to_vec(),
    };
    let schema = schema(block);
    let router = Router::new(&by, extents, &schema);
    let find = cost(|| {
        black_box(Search::new(&router, block).of_rows(block));
    });
    let divide = cost(|| {
        black_box(router.route(block).expect("every row has a partition"));
    });
    let array = |id: ColumnId| -> ArrayRef {
        if let Some(time) = block.time.as_ref().filter(|_| id == TIME) {
            return i64_array(time_type(), time.clone(), None);
        }
        match block.series.columns.iter().position(|c| *c == id) {
            Some(at) => {
                let series_of = UInt32Array::new(block.series_of.clone(), None);
                take(&block.series.values[at], &series_of, None).expect("series")
            }
            None => Arc::clone(&block.columns[0].values),
        }
    };
    let arrays: Vec<_> = columns.iter().map(|id| (*id, array(*id))).collect();
    let column = |id| {
        let found = arrays.iter().find(|(of, _)| *of == id);
        found.map(|(_, array)| Arc::clone(array))
    };
    let extent = extents[0].clone();
    let bounds = PartitionBounds { by, extent };
    let masked = cost(|| {
        black_box(mask(&bounds, &column, ROWS).expect("its own columns"));
    });
    println!(
        "{find:5.1} ns a row to find, {divide:5.1} with the blocks, {masked:5.1} to mask: {what}"
    );
}

/// Prints; run with `--ignored --nocapture`, best under `--release`.
#[test]
#[ignore = "a measurement"]
fn what_routing_a_row_costs() {
    let slots = |count| {
        SlotRange::even(count)
            .map(Extent::Slots)
            .collect::<Vec<_>>()
    };
    let by_host = cpu();
    for count in [4, 64, 1024] {
        let what = format!("hash of {HOSTS} hosts, {count} partitions");
        report(&what, &by_host, &[HOST], &slots(count));
    }
    report(
        "hash of host and time, 64 partitions",
        &by_host,
        &[HOST, TIME],
        &slots(64),
    );
    report(
        "hash of a BIGINT key, 64 partitions",
        &keyed(),
        &[ID],
        &slots(64),
    );

    let mut from = Vec::new();
    let mut times: Vec<_> = (1..12)
        .map(|i| {
            let mut to = Vec::new();
            encode_time(START + i * 13_000_000_000, &mut to);
            let from = std::mem::replace(&mut from, to.clone());
            Extent::Keys(KeyRange { from, to: Some(to) })
        })
        .collect();
    times.push(Extent::Keys(KeyRange { from, to: None }));
    report(
        "range on time, in order, 12 partitions",
        &by_host,
        &[TIME],
        &times,
    );
    let mut mixed = cpu();
    mixed.time = Some((0..ROWS).map(|row| time_of(row * 7_919 % ROWS)).collect());
    report(
        "range on time, at random, 12 partitions",
        &mixed,
        &[TIME],
        &times,
    );

    let lists: Vec<_> = (0..9)
        .map(|i| {
            let value = |i| [b"\x01", region(i).as_bytes(), b"\0\x01"].concat();
            let mut values = vec![value(i), value(i + 9), value(i + 18)];
            values.sort_unstable();
            Extent::Values {
                values,
                within: None,
            }
        })
        .collect();
    report(
        "list of 27 regions by series, 9 partitions",
        &by_host,
        &[REGION],
        &lists,
    );
    report(
        "list of 27 regions by row, 9 partitions",
        &regions_by_row(),
        &[REGION],
        &lists,
    );
}
