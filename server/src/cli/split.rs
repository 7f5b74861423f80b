//! `shoal admin shard split`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::CliError;
use super::client::Client;
use super::partition::{PartitionOrder, of_table, run as change};

/// What goes to the new shard.
#[derive(Debug, clap::Args)]
pub struct SplitArgs {
    /// The shard.
    shard: String,
    /// These tables, as far as they are in the shard.
    #[arg(
        long,
        value_name = "TABLE,…",
        value_delimiter = ',',
        conflicts_with = "table"
    )]
    tables: Vec<String>,
    /// The table of --partitions and --at.
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// These partitions of the table.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', requires = "table")]
    partitions: Vec<String>,
    /// Cut the table's partition here first (the one that --partitions names, if it has several), as
    /// `shoal admin partition split` does; the upper part goes.
    #[arg(long, value_name = "VALUES", requires = "table")]
    at: Option<String>,
    /// The tables' schema.
    #[arg(long, default_value = "public")]
    schema: String,
}

impl SplitArgs {
    /// Path and body of the request, after a partition was cut, if one is to be.
    ///
    /// # Errors
    /// It cannot be cut; the server refuses or cannot be reached.
    pub async fn request(&self, client: &Client) -> Result<(String, Value), CliError> {
        let (Some(at), Some(table)) = (&self.at, &self.table) else {
            return Ok(self.as_it_is());
        };
        let ([] | [_]) = &self.partitions[..] else {
            return Err(CliError::usage(
                "--at cuts one partition: name one in --partitions",
            ));
        };
        let names = |rows: Value| -> BTreeSet<String> {
            let rows = rows.as_array().into_iter().flatten();
            let names = rows.filter_map(|row| row["name"].as_str());
            names.map(str::to_owned).collect()
        };
        let before = names(of_table(client, &self.schema, table).await?);
        let cut = PartitionOrder::Split {
            table: table.clone(),
            partition: self.partitions.first().cloned(),
            at: Some(at.clone()),
            name: None,
            schema: self.schema.clone(),
        };
        let after = names(change(client, &cut).await?);
        // A table that was one partition has two new names: the upper part's is the last.
        let upper = after.difference(&before).last();
        Ok(self.with_partitions(upper.into_iter().collect()))
    }

    /// As [`Self::request`], of what is there.
    #[must_use]
    pub fn as_it_is(&self) -> (String, Value) {
        self.with_partitions(self.partitions.iter().collect())
    }

    fn with_partitions(&self, partitions: Vec<&String>) -> (String, Value) {
        let body = match (&self.table, self.tables.is_empty()) {
            (Some(table), _) => {
                json!({ "schema": self.schema, "table": table, "partitions": partitions })
            }
            (None, false) => json!({ "schema": self.schema, "tables": self.tables }),
            (None, true) => json!({}),
        };
        (format!("/v1/admin/shards/{}/split", self.shard), body)
    }
}
