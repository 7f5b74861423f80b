//! Tables and columns made on the fly (DESIGN §4).

use shoal_types::{
    Column, ColumnId, ColumnType, Incarnation, SchemaError, TableId, TableMode, TableOrigin,
    TableSchema, TimePrecision,
};

use crate::names::TIME_COLUMN;
use crate::pending::PendingTable;

/// A column that a table lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewColumn {
    /// The name.
    pub name: String,
    /// A tag (part of the key) or a field.
    pub tag: bool,
    /// The type; TEXT for tags.
    pub column_type: ColumnType,
}

impl PendingTable {
    /// The columns that a table lacks for these rows: tags, then fields, in first-seen order.
    /// Empty in the usual case. A name that the table has in another role or type is not
    /// missing; [`Self::resolve`] refuses its rows.
    #[must_use]
    pub fn missing(&self, schema: &TableSchema) -> Vec<NewColumn> {
        self.new_columns()
            .filter(|(name, ..)| schema.column(name).is_none())
            .map(|(name, tag, column_type)| NewColumn {
                name: name.to_owned(),
                tag,
                column_type,
            })
            .collect()
    }

    fn new_columns(&self) -> impl Iterator<Item = (&str, bool, ColumnType)> {
        let tags = self
            .tags
            .iter()
            .map(|t| (t.as_str(), true, ColumnType::Text));
        let fields = self
            .fields
            .iter()
            .map(|f| (f.name.as_str(), false, f.column_type));
        tags.chain(fields)
    }

    /// The schema of a table made for these rows: tags and `time` are the key.
    ///
    /// # Errors
    /// [`SchemaError`] if it would break a rule of schemas; the parser refuses such lines.
    pub fn new_schema(&self, table: TableId) -> Result<TableSchema, SchemaError> {
        let time = Column {
            id: ColumnId(0),
            name: TIME_COLUMN.to_owned(),
            column_type: ColumnType::Timestamp {
                precision: TimePrecision::Nanosecond,
                utc: false,
            },
            nullable: false,
            default: None,
        };
        let mut columns: Vec<_> = self
            .new_columns()
            .map(|(name, _, column_type)| Column {
                id: ColumnId(0),
                name: name.to_owned(),
                column_type,
                nullable: true,
                default: None,
            })
            .collect();
        columns.insert(self.tags.len(), time);
        for (id, column) in (0..).zip(&mut columns) {
            column.id = ColumnId(id);
        }
        let time_column = columns[self.tags.len()].id;
        let schema = TableSchema {
            table,
            version: 1,
            incarnation: Incarnation(0),
            key: columns[..=self.tags.len()].iter().map(|c| c.id).collect(),
            time_column: Some(time_column),
            mode: TableMode::Upsert,
            ttl_ms: None,
            origin: TableOrigin::LineProtocol,
            next_column_id: ColumnId(columns.len() as u32),
            part_of: None,
            columns,
        };
        schema.check()?;
        Ok(schema)
    }
}

/// The next version of a schema, with more columns. A new tag goes after the other tags and
/// before the time, in key and display order, so that older files stay sorted; a new field goes
/// last.
///
/// # Errors
/// [`SchemaError::Invalid`] for a table that line protocol did not make: its columns are changed
/// by `ALTER TABLE` only. Otherwise as [`TableSchema::check`], for instance if a column exists.
pub fn extend_schema(
    schema: &TableSchema,
    columns: &[NewColumn],
) -> Result<TableSchema, SchemaError> {
    if schema.origin != TableOrigin::LineProtocol {
        let names: Vec<_> = columns.iter().map(|c| c.name.as_str()).collect();
        return Err(SchemaError::Invalid(format!(
            "the table was made by SQL and has no column {names:?}; add it with ALTER TABLE … ADD COLUMN"
        )));
    }
    let mut next = schema.clone();
    next.version += 1;
    for new in columns {
        let column = Column {
            id: next.next_column_id,
            name: new.name.clone(),
            column_type: new.column_type,
            nullable: true,
            default: None,
        };
        next.next_column_id = next.next_column_id.next();
        if new.tag {
            let in_key = next.series_columns().len();
            let after = in_key
                .checked_sub(1)
                .and_then(|last| next.position_of(next.key[last]))
                .map_or(0, |position| position + 1);
            next.key.insert(in_key, column.id);
            next.columns.insert(after, column);
        } else {
            next.columns.push(column);
        }
    }
    next.check()?;
    Ok(next)
}
