//! Primary keys for JDBC's `getPrimaryKeys` and `getIndexInfo`.
//!
//! The driver asks with `information_schema._pg_expandarray`, a function that gives sets of
//! records, which DataFusion cannot. Both questions are known by it, and answered from the
//! catalog in their own columns.

use shoal_query::QueryEngine;

use super::lexer;

/// Tables answered for when the driver names none.
const TABLES_MAX: usize = 10_000;

/// The answer, as a query, to one of the two questions; `None`: it is neither.
#[must_use]
pub fn answer(sql: &str, engine: &QueryEngine) -> Option<String> {
    let words = lexer::words(sql, usize::MAX);
    if !words.iter().any(|w| w == "_pg_expandarray") {
        return None;
    }
    let asks_for_keys = words.iter().any(|w| w == "key_seq");
    let literal_after = |name: &str| {
        words.windows(3).find_map(|w| match w {
            [column, equals, text] if column == name && equals == "=" && text.starts_with('\'') => {
                Some(lexer::value_of(text))
            }
            _ => None,
        })
    };
    let database = engine.database();
    let schemas = literal_after("nspname").map_or_else(|| database.schema_names(), |s| vec![s]);
    let table = literal_after("relname");
    let mut rows = Vec::new();
    for schema in &schemas {
        let handles = match &table {
            Some(name) => database.table(schema, name).into_iter().collect(),
            None => database.tables(schema),
        };
        for handle in handles.iter().take(TABLES_MAX) {
            let Ok(columns) = database.table_schema(handle) else {
                continue;
            };
            let key = columns
                .key
                .iter()
                .filter_map(|id| columns.column_by_id(*id));
            for (i, column) in key.enumerate() {
                rows.push(row(
                    asks_for_keys,
                    schema,
                    &handle.name,
                    &column.name,
                    i + 1,
                ));
            }
        }
    }
    let (names, nothing): (&[&str], usize) = if asks_for_keys {
        (KEY_COLUMNS, KEY_COLUMNS.len())
    } else {
        (INDEX_COLUMNS, INDEX_COLUMNS.len())
    };
    let values = if rows.is_empty() {
        format!("({})", vec!["NULL"; nothing].join(", "))
    } else {
        rows.join(", ")
    };
    let only = if rows.is_empty() { "false" } else { "true" };
    Some(format!(
        "SELECT * FROM (VALUES {values}) AS k ({}) WHERE {only}",
        names.join(", ")
    ))
}

const KEY_COLUMNS: &[&str] = &[
    "table_cat",
    "table_schem",
    "table_name",
    "column_name",
    "key_seq",
    "pk_name",
];

const INDEX_COLUMNS: &[&str] = &[
    "table_cat",
    "table_schem",
    "table_name",
    "non_unique",
    "index_qualifier",
    "index_name",
    "type",
    "ordinal_position",
    "column_name",
    "asc_or_desc",
    "cardinality",
    "pages",
    "filter_condition",
];

/// JDBC's `tableIndexOther`.
const INDEX_OTHER: u8 = 3;

fn row(asks_for_keys: bool, schema: &str, table: &str, column: &str, place: usize) -> String {
    let text = |value: &str| format!("'{}'", value.replace('\'', "''"));
    let (index, schema, table) = (text(&format!("{table}_pkey")), text(schema), text(table));
    let column = text(column);
    if asks_for_keys {
        format!("(NULL, {schema}, {table}, {column}, CAST({place} AS SMALLINT), {index})")
    } else {
        format!(
            "(NULL, {schema}, {table}, false, NULL, {index}, CAST({INDEX_OTHER} AS SMALLINT), CAST({place} AS SMALLINT), {column}, 'A', CAST(0 AS BIGINT), CAST(0 AS BIGINT), NULL)"
        )
    }
}
