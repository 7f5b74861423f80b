//! Table schemas. A schema is changed only by an applied `Schema` record of the table's home
//! shard, which assigns versions and column ids (PROTOCOLS §6).

use std::sync::Arc;

use arrow_schema::{Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::{ColumnId, ColumnType, Incarnation, TableId};

/// The most columns a table may have.
pub const COLUMNS_MAX: usize = 4096;
/// The longest name of a schema, table or column, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// How names of tables and schemas may not begin: ours, and those that the query planner gives to
/// queries within queries, which a table of that name would be taken for. Columns may not begin
/// with two underscores at all: files and memtables have hidden ones.
const RESERVED_PREFIXES: [&str; 3] = ["__shoal", "__scalar_sq", "__correlated_sq"];

/// A literal that stands in for a column an `INSERT` does not name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ColumnDefault {
    /// A SQL expression, evaluated when the row is inserted.
    Sql(String),
}

/// One column of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Never reused within the table.
    pub id: ColumnId,
    /// As written by the user (line protocol) or folded (SQL).
    pub name: String,
    /// The type; it never changes.
    pub column_type: ColumnType,
    /// Whether NULL may be stored.
    pub nullable: bool,
    /// What an `INSERT` that leaves the column out stores; `None`: NULL.
    #[serde(default)]
    pub default: Option<ColumnDefault>,
}

/// How rows of one key meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableMode {
    /// The last write of a key wins, column by column.
    Upsert,
    /// Every row is kept; the key only sorts.
    Append,
}

/// Who made the table; line protocol may add columns only to tables it may add tags to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableOrigin {
    /// `CREATE TABLE`
    Sql,
    /// Made on the fly by a line-protocol write: tags in first-seen order, then `time`.
    LineProtocol,
}

/// The schema of one table.
///
/// Files and blocks are sorted by `key`, ascending, NULLs first. If the last key column is
/// `time_column`, the columns before it name a *series*.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The table; of a partition in its shard, the partition's unit.
    pub table: TableId,
    /// Raised by every change.
    pub version: u32,
    /// Raised by `TRUNCATE`.
    pub incarnation: Incarnation,
    /// In display order (line protocol: tags, `time`, fields in first-seen order).
    pub columns: Vec<Column>,
    /// Primary key in sort order; empty only for append tables without one.
    pub key: Vec<ColumnId>,
    /// The column that TTL and time windows go by.
    pub time_column: Option<ColumnId>,
    /// How rows of one key meet.
    pub mode: TableMode,
    /// Rows older than this may be dropped, in milliseconds of `time_column`; `None`: kept.
    pub ttl_ms: Option<u64>,
    /// Who made the table.
    pub origin: TableOrigin,
    /// The id that the next added column gets.
    pub next_column_id: ColumnId,
    /// The table that it is a partition of, where that has another id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<TableId>,
}

/// Why a schema cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Two columns with one name.
    #[error("column {0:?} is named twice")]
    DuplicateColumn(String),
    /// A name that cannot be stored.
    #[error("{what} name {name:?} is {why}")]
    BadName {
        /// `column`, `table` or `schema`.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// More than [`COLUMNS_MAX`] columns.
    #[error("a table has at most {COLUMNS_MAX} columns, this one would have {0}")]
    TooManyColumns(usize),
    /// Anything else, in words that name the remedy.
    #[error("{0}")]
    Invalid(String),
}

impl TableSchema {
    /// The table, whichever of its partitions this is.
    #[must_use]
    pub fn owner(&self) -> TableId {
        self.part_of.unwrap_or(self.table)
    }

    /// The column with a name, compared exactly.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// The column with an id.
    #[must_use]
    pub fn column_by_id(&self, id: ColumnId) -> Option<&Column> {
        self.columns.iter().find(|c| c.id == id)
    }

    /// The place of a column in [`Self::columns`].
    #[must_use]
    pub fn position_of(&self, id: ColumnId) -> Option<usize> {
        self.columns.iter().position(|c| c.id == id)
    }

    /// Whether a column is part of the primary key.
    #[must_use]
    pub fn is_key(&self, id: ColumnId) -> bool {
        self.key.contains(&id)
    }

    /// Whether the key ends with the time column, so that the columns before it name a series.
    #[must_use]
    pub fn key_ends_with_time(&self) -> bool {
        self.time_column.is_some() && self.key.last().copied() == self.time_column
    }

    /// The key columns that name a series: the key without a closing time column.
    #[must_use]
    pub fn series_columns(&self) -> &[ColumnId] {
        if self.key_ends_with_time() {
            &self.key[..self.key.len() - 1]
        } else {
            &self.key
        }
    }

    /// Ids of the columns that are not in the key, in display order.
    pub fn value_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|c| !self.is_key(c.id))
    }

    /// The Arrow schema that readers see: the columns in display order.
    #[must_use]
    pub fn arrow(&self) -> SchemaRef {
        Arc::new(Schema::new(
            self.columns
                .iter()
                .map(|c| Field::new(&c.name, c.column_type.arrow(), c.nullable))
                .collect::<Vec<_>>(),
        ))
    }

    /// Checks every rule a schema must keep; called before a schema enters the log.
    ///
    /// # Errors
    /// [`SchemaError`] naming the column and the remedy.
    pub fn check(&self) -> Result<(), SchemaError> {
        if self.columns.is_empty() {
            return Err(SchemaError::Invalid(
                "a table needs at least one column".into(),
            ));
        }
        if self.columns.len() > COLUMNS_MAX {
            return Err(SchemaError::TooManyColumns(self.columns.len()));
        }
        let mut names = std::collections::HashSet::with_capacity(self.columns.len());
        for column in &self.columns {
            check_name("column", &column.name)?;
            if column.name.starts_with("__") {
                return Err(SchemaError::BadName {
                    what: "column",
                    name: column.name.clone(),
                    why: "reserved: names that begin with two underscores are ShoalDB's own".into(),
                });
            }
            if !names.insert(column.name.as_str()) {
                return Err(SchemaError::DuplicateColumn(column.name.clone()));
            }
            if column.id >= self.next_column_id {
                return Err(SchemaError::Invalid(format!(
                    "column id {} of {:?} is not below next_column_id {}",
                    column.id, column.name, self.next_column_id
                )));
            }
        }
        for id in &self.key {
            let Some(column) = self.column_by_id(*id) else {
                return Err(SchemaError::Invalid(format!(
                    "key column {id} does not exist"
                )));
            };
            if !column.column_type.may_be_key() {
                return Err(SchemaError::Invalid(format!(
                    "column {:?} of type {} cannot be in the primary key; use DECIMAL or BIGINT",
                    column.name, column.column_type
                )));
            }
        }
        if self.mode == TableMode::Upsert && self.key.is_empty() {
            return Err(SchemaError::Invalid(
                "an upsert table needs a PRIMARY KEY; add one, or create it WITH (mode = 'append')"
                    .into(),
            ));
        }
        if let Some(id) = self.time_column {
            match self.column_by_id(id).map(|c| c.column_type) {
                Some(ColumnType::Timestamp { .. }) => {}
                _ => {
                    return Err(SchemaError::Invalid(
                        "time_column must name a column of type TIMESTAMP or TIMESTAMPTZ".into(),
                    ));
                }
            }
        }
        if self.ttl_ms.is_some() {
            match self.time_column {
                None => {
                    return Err(SchemaError::Invalid(
                        "ttl needs a time_column: WITH (time_column = '…', ttl = '…')".into(),
                    ));
                }
                Some(id) if self.mode == TableMode::Upsert && !self.is_key(id) => {
                    return Err(SchemaError::Invalid(
                        "ttl on an upsert table needs the time column in the PRIMARY KEY: dropped files would bring older versions of a row back".into(),
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// Checks a schema, table or column name.
///
/// # Errors
/// [`SchemaError::BadName`] for an empty, overlong or reserved name or one with a control character.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), SchemaError> {
    let why = if name.is_empty() {
        "empty".to_owned()
    } else if name.len() > NAME_BYTES_MAX {
        format!(
            "{} bytes long; at most {NAME_BYTES_MAX} are allowed",
            name.len()
        )
    } else if name.chars().any(char::is_control) {
        "not printable: it holds a control character".to_owned()
    } else if let Some(prefix) = RESERVED_PREFIXES
        .iter()
        .find(|prefix| what != "column" && name.starts_with(**prefix))
    {
        format!("reserved: names that begin with {prefix:?} are ShoalDB's own")
    } else {
        return Ok(());
    };
    Err(SchemaError::BadName {
        what,
        name: name.chars().take(64).collect(),
        why,
    })
}

impl SchemaError {
    /// Checks the name of a schema, table or column (`what`).
    ///
    /// # Errors
    /// [`SchemaError::BadName`].
    pub fn check_name(what: &'static str, name: &str) -> Result<(), SchemaError> {
        check_name(what, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TimePrecision;

    fn column(id: u32, name: &str, column_type: ColumnType) -> Column {
        Column {
            id: ColumnId(id),
            name: name.into(),
            column_type,
            nullable: true,
            default: None,
        }
    }

    fn cpu() -> TableSchema {
        TableSchema {
            table: TableId::generate(),
            version: 1,
            incarnation: Incarnation(0),
            columns: vec![
                column(0, "hostname", ColumnType::Text),
                column(
                    1,
                    "time",
                    ColumnType::Timestamp {
                        precision: TimePrecision::Nanosecond,
                        utc: false,
                    },
                ),
                column(2, "usage_user", ColumnType::Float64),
            ],
            key: vec![ColumnId(0), ColumnId(1)],
            time_column: Some(ColumnId(1)),
            mode: TableMode::Upsert,
            ttl_ms: None,
            origin: TableOrigin::Sql,
            next_column_id: ColumnId(3),
            part_of: None,
        }
    }

    #[test]
    fn a_time_series_key_splits_into_series_and_time() {
        let schema = cpu();
        schema.check().expect("valid");
        assert!(schema.key_ends_with_time());
        assert_eq!(schema.series_columns(), [ColumnId(0)]);
        assert_eq!(
            schema.value_columns().map(|c| c.id).collect::<Vec<_>>(),
            [ColumnId(2)]
        );
    }

    #[test]
    fn schemas_that_would_lose_or_revive_rows_are_refused() {
        let refused = |change: &dyn Fn(&mut TableSchema), word: &str| {
            let mut schema = cpu();
            change(&mut schema);
            let message = schema.check().expect_err(word).to_string();
            assert!(message.contains(word), "{message}");
        };
        refused(&|s| s.key.clear(), "PRIMARY KEY");
        refused(&|s| s.columns[2].name = "hostname".into(), "twice");
        refused(&|s| s.columns[2].name = String::new(), "empty");
        refused(&|s| s.columns[2].name = "__op".into(), "reserved");
        refused(&|s| s.columns[2].name = "x".repeat(256), "256 bytes");
        refused(
            &|s| s.key = vec![ColumnId(2)],
            "cannot be in the primary key",
        );
        refused(&|s| s.time_column = Some(ColumnId(0)), "TIMESTAMP");
        refused(
            &|s| {
                s.ttl_ms = Some(1);
                s.key = vec![ColumnId(0)];
            },
            "ttl on an upsert table",
        );
        refused(&|s| s.next_column_id = ColumnId(2), "next_column_id");
    }

    #[test]
    fn every_column_type_survives_its_arrow_type() {
        for column_type in [
            ColumnType::Boolean,
            ColumnType::Int16,
            ColumnType::Int32,
            ColumnType::Int64,
            ColumnType::Float32,
            ColumnType::Float64,
            ColumnType::Decimal {
                precision: 38,
                scale: 2,
            },
            ColumnType::Text,
            ColumnType::Binary,
            ColumnType::Date,
            ColumnType::Timestamp {
                precision: TimePrecision::Millisecond,
                utc: true,
            },
        ] {
            assert_eq!(
                ColumnType::from_arrow(&column_type.arrow()),
                Ok(column_type)
            );
        }
    }
}
