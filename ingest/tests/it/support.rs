//! Reading parsed tables row by row, and lines of the TSBS cpu shape.

use std::collections::BTreeMap;
use std::fmt::Write;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_ingest::{LineParser, ParseOptions, Parsed, PendingTable, Precision};
use shoal_types::ColumnType;

/// The time of lines without one.
pub const NOW_NS: i64 = 1_767_225_600_000_000_000;

pub fn options() -> ParseOptions {
    ParseOptions::new(Precision::Nanoseconds, NOW_NS)
}

pub fn parse(body: impl AsRef<[u8]>) -> Parsed {
    LineParser::new(options()).parse(body.as_ref())
}

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(i64),
    Float(f64),
    Bool(bool),
    Text(String),
}

/// A stored line.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub table: String,
    pub tags: BTreeMap<String, String>,
    pub fields: BTreeMap<String, Value>,
    pub time: i64,
}

fn value(column_type: ColumnType, values: &ArrayRef, row: usize) -> Value {
    match column_type {
        ColumnType::Int64 => Value::Int(values.as_primitive::<Int64Type>().value(row)),
        ColumnType::Float64 => Value::Float(values.as_primitive::<Float64Type>().value(row)),
        ColumnType::Boolean => Value::Bool(values.as_boolean().value(row)),
        ColumnType::Text => Value::Text(values.as_string_view().value(row).to_owned()),
        other => panic!("no field is {other}"),
    }
}

/// The rows of a table with their line numbers.
pub fn rows(table: &PendingTable) -> Vec<(u32, Row)> {
    (0..table.rows())
        .map(|row| {
            let series = table.series_of[row] as usize;
            let tags = table
                .tags
                .iter()
                .zip(&table.tag_values)
                .filter(|(_, values)| values.is_valid(series))
                .map(|(name, values)| {
                    (
                        name.clone(),
                        values.as_string_view().value(series).to_owned(),
                    )
                })
                .collect();
            let fields = table
                .fields
                .iter()
                .filter(|f| {
                    let set = f.set.as_ref().is_none_or(|s| s.value(row));
                    assert_eq!(set, f.values.is_valid(row), "set and NULL agree");
                    set
                })
                .map(|f| (f.name.clone(), value(f.column_type, &f.values, row)))
                .collect();
            let found = Row {
                table: table.name.clone(),
                tags,
                fields,
                time: table.times[row],
            };
            (table.lines[row], found)
        })
        .collect()
}

/// All rows in the order of their lines.
pub fn all_rows(parsed: &Parsed) -> Vec<Row> {
    let mut found: Vec<_> = parsed.tables.iter().flat_map(rows).collect();
    found.sort_by_key(|r| r.0);
    assert_eq!(found.len(), parsed.rows);
    found.into_iter().map(|r| r.1).collect()
}

/// Lines as TSBS cpu-only writes them: every host in turn, every 10 s.
pub fn cpu_lines(hosts: usize, rows: usize) -> String {
    let rng = &mut StdRng::seed_from_u64(3);
    let series: Vec<String> = (0..hosts)
        .map(|host| {
            let region = ["ap-southeast-1", "eu-central-1", "us-west-2"][host % 3];
            format!(
                "cpu,hostname=host_{host},region={region},datacenter={region}b,rack={},os=Ubuntu16.04LTS,arch=x64,team=NYC,service={},service_version={},service_environment=production",
                rng.random_range(0..100),
                rng.random_range(0..20),
                rng.random_range(0..2),
            )
        })
        .collect();
    let names = [
        "user",
        "system",
        "idle",
        "nice",
        "iowait",
        "irq",
        "softirq",
        "steal",
        "guest",
        "guest_nice",
    ];
    let mut out = String::new();
    for row in 0..rows {
        out.push_str(&series[row % hosts]);
        for (n, name) in names.iter().enumerate() {
            let separator = if n == 0 { ' ' } else { ',' };
            let value = rng.random_range(0..=100);
            write!(out, "{separator}usage_{name}={value}i").expect("to memory");
        }
        let time = NOW_NS + (row / hosts) as i64 * 10_000_000_000;
        writeln!(out, " {time}").expect("to memory");
    }
    out
}
