//! `system.partitions`, and what a partition owns in SQL's words.

use shoal_engine::{Read, ReadLevel, TableHandle};
use shoal_rows::{KeyValue, decode_key};
use shoal_types::{ColumnId, ColumnType, Extent, KeyRange, PartitionMethod, TableSchema};

/// What a partition owns, as `CREATE TABLE` writes it; both ends of a range. `None`: it is the only
/// one and owns everything.
#[must_use]
pub fn partition_owns(partition: &TableHandle, schema: &TableSchema) -> Option<String> {
    let layout = partition.layout.as_ref()?;
    let part = partition.part()?;
    let columns = &layout.by.columns;
    Some(match &part.extent {
        Extent::Slots(slots) => format!("SLOTS {} TO {}", slots.from, slots.to - 1),
        Extent::Keys(range) => range_text(range, columns, schema),
        Extent::Values { values, within } => {
            let types = types(columns, schema);
            let shown: Vec<String> = values.iter().map(|v| tuple(v, &types)).collect();
            let values = format!("VALUES IN ({})", shown.join(", "));
            match within {
                None => values,
                Some(within) => {
                    let range = range_text(&within.range, &within.columns, schema);
                    let names = column_names(&within.columns, schema).join(", ");
                    format!("{values}, ({names}) {range}")
                }
            }
        }
    })
}

/// The clause that makes such partitions, as far as the grammar can say it: a range begins where the
/// one before it ends, and the parts of a list that were cut are not told apart.
pub(crate) fn partition_clause(
    table: &TableHandle,
    schema: &TableSchema,
    quoted: impl Fn(&str) -> String,
) -> Option<String> {
    let layout = table.layout.as_ref()?;
    let names = column_names(&layout.by.columns, schema);
    let columns: Vec<String> = names.iter().map(|name| quoted(name)).collect();
    let columns = columns.join(", ");
    let types = types(&layout.by.columns, schema);
    let mut parts = Vec::new();
    for part in &layout.parts {
        let name = quoted(&part.name);
        parts.push(match &part.extent {
            Extent::Slots(_) => continue,
            Extent::Keys(range) => {
                let to = upper(range, &types);
                format!("  PARTITION {name} VALUES LESS THAN {to}")
            }
            Extent::Values { values, .. } => {
                let shown: Vec<String> = values.iter().map(|v| tuple(v, &types)).collect();
                format!("  PARTITION {name} VALUES IN ({})", shown.join(", "))
            }
        });
    }
    let parts = parts.join(",\n");
    Some(match layout.by.method {
        PartitionMethod::Hash => {
            format!(
                "PARTITION BY HASH ({columns}) PARTITIONS {}",
                layout.parts.len()
            )
        }
        PartitionMethod::Range => format!("PARTITION BY RANGE ({columns}) (\n{parts}\n)"),
        PartitionMethod::List => format!("PARTITION BY LIST ({columns}) (\n{parts}\n)"),
    })
}

/// Names of columns, for people.
pub(super) fn column_names(columns: &[ColumnId], schema: &TableSchema) -> Vec<String> {
    let name = |id: &ColumnId| match schema.column_by_id(*id) {
        Some(column) => column.name.clone(),
        None => format!("column {id}"),
    };
    columns.iter().map(name).collect()
}

pub(super) fn method_text(method: PartitionMethod) -> &'static str {
    match method {
        PartitionMethod::Hash => "hash",
        PartitionMethod::Range => "range",
        PartitionMethod::List => "list",
    }
}

fn types(columns: &[ColumnId], schema: &TableSchema) -> Vec<ColumnType> {
    let column = |id: &ColumnId| schema.column_by_id(*id).map(|c| c.column_type);
    columns.iter().map_while(column).collect()
}

fn range_text(range: &KeyRange, columns: &[ColumnId], schema: &TableSchema) -> String {
    let types = types(columns, schema);
    let from = match range.from.as_slice() {
        [] => filled(&[], &types, "MINVALUE", types.len()),
        from => bound(from, &types),
    };
    format!("FROM {from} TO {}", upper(range, &types))
}

fn upper(range: &KeyRange, types: &[ColumnType]) -> String {
    match &range.to {
        None => filled(&[], types, "MAXVALUE", types.len()),
        Some(to) => bound(to, types),
    }
}

/// A bound: an encoding of the first columns, and perhaps the mark that is above all values of the
/// next.
fn bound(bytes: &[u8], types: &[ColumnType]) -> String {
    let prefixes = (0..=types.len()).rev();
    for known in prefixes.clone() {
        if let Ok(values) = decode_key(bytes, &types[..known]) {
            return filled(&values, types, "MINVALUE", values.len());
        }
    }
    if let Some((_, first)) = bytes.split_last() {
        for known in prefixes {
            if let Ok(values) = decode_key(first, &types[..known]) {
                return filled(&values, types, "MAXVALUE", types.len());
            }
        }
    }
    filled(&[KeyValue::Binary(bytes.to_vec())], &[], "", 1)
}

/// A value as SQL reads it back; one of a column with a time zone in UTC.
fn literal(value: &KeyValue, column_type: Option<&ColumnType>) -> String {
    let text = value.to_string();
    let in_utc = matches!(column_type, Some(ColumnType::Timestamp { utc: true, .. }));
    match text.strip_suffix('\'') {
        Some(time) if in_utc => format!("{time}Z'"),
        _ => text,
    }
}

/// Values, and a word in the place of each that is missing.
fn filled(values: &[KeyValue], types: &[ColumnType], word: &str, count: usize) -> String {
    let typed = values.iter().enumerate();
    let mut shown: Vec<String> = typed.map(|(i, v)| literal(v, types.get(i))).collect();
    shown.resize(count.max(values.len()), word.to_owned());
    format!("({})", shown.join(", "))
}

/// A value of a list; of several columns a tuple.
fn tuple(bytes: &[u8], types: &[ColumnType]) -> String {
    match decode_key(bytes, types).as_deref() {
        Ok([value]) => literal(value, types.first()),
        Ok(values) => filled(values, types, "", values.len()),
        Err(_) => KeyValue::Binary(bytes.to_vec()).to_string(),
    }
}

/// A read that waits for nothing.
pub(super) fn at_once() -> Read {
    Read {
        level: ReadLevel::Eventual,
        ..Read::default()
    }
}
