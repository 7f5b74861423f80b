//! `shoal admin partition`: cuts and joins partitions, as `ALTER TABLE` does.

use serde_json::{Value, json};

use super::CliError;
use super::client::Client;

/// Cut partitions in two, or make one of two neighbours. No row is moved or copied.
#[derive(Debug, clap::Subcommand)]
pub enum PartitionOrder {
    /// Cut a partition in two; the lower part keeps its name.
    Split {
        /// The table.
        table: String,
        /// The partition; may be left out if it is the only one.
        partition: Option<String>,
        /// Where, as SQL values: a slot of a HASH partition (`40000`), else values of the columns
        /// that it is measured by, from the first on (`'2026-02-01', 7`). In the middle otherwise.
        #[arg(long, value_name = "VALUES")]
        at: Option<String>,
        /// Name of the upper part; a free one otherwise.
        #[arg(long)]
        name: Option<String>,
        /// The table's schema.
        #[arg(long, default_value = "public")]
        schema: String,
    },
    /// Make one partition of two neighbours of one shard.
    Merge {
        /// The table.
        table: String,
        /// One of them.
        partition: String,
        /// The other.
        other: String,
        /// The table's schema.
        #[arg(long, default_value = "public")]
        schema: String,
    },
}

impl PartitionOrder {
    fn statement(&self) -> String {
        match self {
            Self::Split {
                table,
                partition,
                at,
                name,
                schema,
            } => {
                let mut sql = format!("ALTER TABLE {}.{} SPLIT", quoted(schema), quoted(table));
                if let Some(partition) = partition {
                    sql.push_str(&format!(" PARTITION {}", quoted(partition)));
                }
                if let Some(at) = at {
                    sql.push_str(&format!(" AT ({at})"));
                }
                if let Some(name) = name {
                    sql.push_str(&format!(" AS {}", quoted(name)));
                }
                sql
            }
            Self::Merge {
                table,
                partition,
                other,
                schema,
            } => format!(
                "ALTER TABLE {}.{} MERGE PARTITIONS {}, {}",
                quoted(schema),
                quoted(table),
                quoted(partition),
                quoted(other)
            ),
        }
    }

    fn table(&self) -> (&str, &str) {
        let (Self::Split { table, schema, .. } | Self::Merge { table, schema, .. }) = self;
        (schema, table)
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Carries the order out; the table's partitions after it.
///
/// # Errors
/// The server refuses or cannot be reached.
pub async fn run(client: &Client, order: &PartitionOrder) -> Result<Value, CliError> {
    let body = json!({ "sql": order.statement() });
    client.post_json("/v1/sql", &body).await?;
    let (schema, table) = order.table();
    of_table(client, schema, table).await
}

/// The partitions of a table, as objects.
///
/// # Errors
/// The server refuses or cannot be reached.
pub async fn of_table(client: &Client, schema: &str, table: &str) -> Result<Value, CliError> {
    let text = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let query = format!(
        "SELECT * FROM system.partitions WHERE table_schema = {} AND table_name = {}",
        text(schema),
        text(table)
    );
    let answer = client
        .post_json("/v1/sql", &json!({ "sql": query }))
        .await?;
    Ok(rows_of(&answer))
}

/// The rows of an answer as objects.
fn rows_of(answer: &Value) -> Value {
    let names: Vec<&str> = answer["columns"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|column| column["name"].as_str().or(column.as_str()))
        .collect();
    let rows = answer["rows"].as_array().into_iter().flatten();
    rows.map(|row| {
        let cells = row.as_array().into_iter().flatten().cloned();
        let members = names.iter().map(|name| (*name).to_owned()).zip(cells);
        Value::Object(members.collect())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_values_stand_as_they_are() {
        let split = PartitionOrder::Split {
            table: "my \"t\"".into(),
            partition: Some("P".into()),
            at: Some("'m', 7".into()),
            name: None,
            schema: "public".into(),
        };
        assert_eq!(
            split.statement(),
            "ALTER TABLE \"public\".\"my \"\"t\"\"\" SPLIT PARTITION \"P\" AT ('m', 7)"
        );
    }
}
