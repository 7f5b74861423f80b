//! Rules for names of columns, and the words of errors about them.

use shoal_types::{ColumnType, SchemaError};

use crate::error::Bad;
use crate::scan::Value;

/// The column that holds a line's timestamp in tables that line protocol makes.
pub const TIME_COLUMN: &str = "time";

/// The type that a value is stored as.
pub(crate) fn column_type(value: &Value<'_>) -> ColumnType {
    match value {
        Value::Int(_) => ColumnType::Int64,
        Value::Float(_) => ColumnType::Float64,
        Value::Bool(_) => ColumnType::Boolean,
        Value::Text(..) => ColumnType::Text,
    }
}

pub(crate) fn skip_spaces(line: &[u8], mut at: usize) -> usize {
    while line.get(at) == Some(&b' ') {
        at += 1;
    }
    at
}

pub(crate) fn refuse_tab(line: &[u8], at: usize) -> Result<(), Bad> {
    if line.get(at) == Some(&b'\t') {
        return Err(Bad::new(
            at,
            "a tab; parts of a line are separated by spaces",
        ));
    }
    Ok(())
}

/// Checks the name of a tag or field that would become a column.
pub(crate) fn check_column_name(name: &[u8], what: &str, at: usize) -> Result<(), Bad> {
    let name = lossy(name);
    if name == TIME_COLUMN {
        return Err(Bad::new(
            at,
            format!("a {what} cannot be named \"time\": that is the timestamp's column"),
        ));
    }
    if name.starts_with("__") {
        return Err(Bad::new(
            at,
            format!(
                "{what} name {name:?} is reserved: names that begin with two underscores are ShoalDB's own"
            ),
        ));
    }
    SchemaError::check_name("column", &name).map_err(|e| Bad::new(at, e.to_string()))
}

pub(crate) fn too_many_columns(max: usize, at: usize) -> Bad {
    Bad::new(
        at,
        format!("a table has at most {max} columns; the line would make it more"),
    )
}

pub(crate) fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
