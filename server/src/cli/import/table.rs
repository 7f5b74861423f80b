//! The table that CSV and Parquet rows go to: an existing one, or one made from the input's
//! columns.

use arrow_schema::DataType;
use reqwest::Method;
use serde_json::{Value, json};
use shoal_types::ColumnType;

use crate::cli::CliError;
use crate::cli::client::Client;
use crate::http::type_named;

/// A column of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetColumn {
    /// Its name.
    pub name: String,
    /// Its Arrow type, in the plain form (no views).
    pub data_type: DataType,
    /// Whether NULL may be stored.
    pub nullable: bool,
}

/// A column of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputColumn {
    /// Its name.
    pub name: String,
    /// Its type, inferred or as the file says.
    pub data_type: DataType,
    /// Whether some value seen is NULL.
    pub has_nulls: bool,
}

/// Where rows go.
#[derive(Clone, Debug)]
pub struct Target {
    /// Table.
    pub table: String,
    /// The table's id: an import of a table that was dropped and made anew is another import.
    pub id: String,
    /// Raised by TRUNCATE.
    pub incarnation: u64,
    /// Whether it keeps every row, so that a row loaded twice is there twice.
    pub appends: bool,
    /// All columns.
    pub columns: Vec<TargetColumn>,
}

/// How a table is made.
#[derive(Clone, Debug, Default)]
pub struct NewTable {
    /// Primary key; empty: an append table.
    pub key: Vec<String>,
    /// `WITH (time_column = …)`.
    pub time_column: Option<String>,
}

/// Quotes a name for SQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Target {
    /// The table as the server has it; `None`: it does not exist.
    pub async fn find(
        client: &Client,
        schema: &str,
        table: &str,
    ) -> Result<Option<Self>, CliError> {
        let request = client
            .request(Method::GET, &format!("/v1/route/{}", path_part(table)))
            .query(&[("schema", schema)]);
        let body: Value = match client.text(request).await? {
            Ok(text) => serde_json::from_str(&text)?,
            Err(refusal) if refusal.status == 404 => return Ok(None),
            Err(refusal) => return Err(refusal.into()),
        };
        let unreadable = || CliError::failed("the server's description of the table is unreadable");
        let columns = body["columns"]
            .as_array()
            .ok_or_else(unreadable)?
            .iter()
            .map(|column| {
                Some(TargetColumn {
                    name: column["name"].as_str()?.to_owned(),
                    data_type: type_named(column["type"].as_str()?)?,
                    nullable: column["nullable"].as_bool()?,
                })
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(unreadable)?;
        Ok(Some(Self {
            table: table.to_owned(),
            id: body["id"].as_str().ok_or_else(unreadable)?.to_owned(),
            incarnation: body["incarnation"].as_u64().ok_or_else(unreadable)?,
            appends: body["mode"] == "append",
            columns,
        }))
    }

    /// The table, made from `columns` if it does not exist.
    pub async fn find_or_create(
        client: &Client,
        schema: &str,
        table: &str,
        columns: &[InputColumn],
        new: &NewTable,
    ) -> Result<Self, CliError> {
        if let Some(found) = Self::find(client, schema, table).await? {
            return Ok(found);
        }
        for statement in [
            format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(schema)),
            create_statement(schema, table, columns, new)?,
        ] {
            client
                .post_json("/v1/sql", &json!({ "sql": statement }))
                .await?;
        }
        Self::find(client, schema, table)
            .await?
            .ok_or_else(|| CliError::failed(format!("table {table:?} was dropped meanwhile")))
    }
}

/// Percent-encodes a path segment.
pub fn path_part(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn create_statement(
    schema: &str,
    table: &str,
    columns: &[InputColumn],
    new: &NewTable,
) -> Result<String, CliError> {
    let named = |wanted: &str| columns.iter().any(|c| c.name == wanted);
    if let Some(missing) = new.key.iter().chain(&new.time_column).find(|n| !named(n)) {
        let have: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        return Err(CliError::usage(format!(
            "the input has no column {missing:?}; it has {}",
            have.join(", ")
        )));
    }
    let mut parts = Vec::new();
    for InputColumn {
        name, data_type, ..
    } in columns
    {
        let sql = ColumnType::from_arrow(data_type)
            .map_err(|e| CliError::failed(format!("column {name:?}: {e}")))?;
        let not_null = if new.key.contains(name) {
            " NOT NULL"
        } else {
            ""
        };
        parts.push(format!("{} {sql}{not_null}", quoted(name)));
    }
    if !new.key.is_empty() {
        let key: Vec<String> = new.key.iter().map(|k| quoted(k)).collect();
        parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    let mut options = Vec::new();
    if new.key.is_empty() {
        options.push("mode = 'append'".to_owned());
    }
    // A lone timestamp column is the time column: TTL and time windows go by it. A time column
    // takes no NULL, so one with NULLs must be asked for.
    let mut times = columns
        .iter()
        .filter(|c| matches!(c.data_type, DataType::Timestamp(_, _)) && !c.has_nulls)
        .map(|c| &c.name);
    let time = new
        .time_column
        .as_ref()
        .or_else(|| match (times.next(), times.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        });
    if let Some(time) = time {
        options.push(format!("time_column = '{}'", time.replace('\'', "''")));
    }
    let with = if options.is_empty() {
        String::new()
    } else {
        format!(" WITH ({})", options.join(", "))
    };
    Ok(format!(
        "CREATE TABLE IF NOT EXISTS {}.{} ({}){with}",
        quoted(schema),
        quoted(table),
        parts.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_a_key_appends_and_goes_by_its_only_timestamp() {
        let column = |name: &str, data_type| InputColumn {
            name: name.into(),
            data_type,
            has_nulls: false,
        };
        let time = DataType::Timestamp(arrow_schema::TimeUnit::Millisecond, None);
        let columns = vec![column("ts", time), column("a\"b", DataType::Int64)];
        let sql = create_statement("public", "t", &columns, &NewTable::default()).expect("sql");
        assert_eq!(
            sql,
            "CREATE TABLE IF NOT EXISTS \"public\".\"t\" (\"ts\" TIMESTAMP(3), \"a\"\"b\" BIGINT) WITH (mode = 'append', time_column = 'ts')"
        );
        let keyed = NewTable {
            key: vec!["nope".into()],
            time_column: None,
        };
        let error = create_statement("public", "t", &columns, &keyed).expect_err("no such column");
        assert!(error.message.contains("ts, a\"b"), "{}", error.message);
    }
}
