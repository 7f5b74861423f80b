//! What the client knows of its batches, and whether the tables agree.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Client, Failed};

/// What a client learnt about a batch it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told that the batch is stored: it must be there, whole and once.
    Acknowledged,
    /// It was told that nothing happened: it must not be there.
    Refused,
    /// It was told nothing, or that nothing is known: all of it or none.
    Unknown,
}

impl Outcome {
    /// Reads the outcome off a request's result.
    #[must_use]
    pub fn of<T>(result: &Failed<T>) -> Self {
        match result {
            Ok(_) => Self::Acknowledged,
            Err(failure) if failure.status.is_some() && failure.retry != "unknown" => Self::Refused,
            Err(_) => Self::Unknown,
        }
    }
}

/// The batches of some tables, each batch in one of them: `rows` rows numbered from 0 in column
/// `row`, with the batch's name in column `batch`.
#[derive(Debug)]
pub struct Ledger {
    tables: Vec<String>,
    rows: u64,
    batches: BTreeMap<String, Outcome>,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new(tables: Vec<String>, rows: u64) -> Self {
        Self {
            tables,
            rows,
            batches: BTreeMap::new(),
        }
    }

    /// The table that batch number `number` goes to.
    #[must_use]
    pub fn table_of(&self, number: u64) -> String {
        let tables = self.tables.len() as u64;
        self.tables[(number % tables) as usize].clone()
    }

    /// The first table, which stands for all in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.tables[0]
    }

    /// Rows of a batch.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Notes what became of a batch.
    pub fn note(&mut self, batch: String, outcome: Outcome) {
        let before = self.batches.insert(batch, outcome);
        assert_eq!(before, None, "batch names are used once");
    }

    /// How many batches had an outcome.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.batches.values().filter(|o| **o == outcome).count()
    }

    /// Compares the table with the ledger. A batch of unknown outcome that was found whole counts
    /// as acknowledged from then on: it must not vanish later; one that was not there must not
    /// appear later.
    ///
    /// # Panics
    /// Naming the first batch that is not as it must be.
    pub async fn check(&mut self, client: &Client) {
        let mut stored: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for table in &self.tables {
            let statement = format!(
                "SELECT batch, count(*) AS n, sum(\"row\") AS s FROM {table} GROUP BY batch"
            );
            let rows = match client.sql(&statement).await {
                Ok(rows) => rows,
                // Line protocol makes tables: without a stored batch there may be none.
                Err(failure) if failure.text.contains("undefined_table") => continue,
                Err(failure) => panic!("{statement}: {failure:?}"),
            };
            for row in rows {
                let number = |v: &Value| v.as_u64().unwrap_or_else(|| panic!("{row:?}"));
                let batch = row[0]
                    .as_str()
                    .unwrap_or_else(|| panic!("{row:?}"))
                    .to_owned();
                let found = (number(&row[1]), number(&row[2]));
                let other = stored.insert(batch, found);
                assert_eq!(other, None, "a batch in two tables: {row:?} of {table}");
            }
        }
        let whole = (self.rows, self.rows * (self.rows - 1) / 2);
        let name = self.name().to_owned();
        for (batch, outcome) in &mut self.batches {
            let found = stored.remove(batch);
            let good = match outcome {
                Outcome::Acknowledged => found == Some(whole),
                Outcome::Refused => found.is_none(),
                Outcome::Unknown => found.is_none() || found == Some(whole),
            };
            assert!(
                good,
                "tables {}…: batch {batch} was {outcome:?}, but (rows, sum) is {found:?} instead of {whole:?}",
                name
            );
            *outcome = if found.is_some() {
                Outcome::Acknowledged
            } else {
                Outcome::Refused
            };
        }
        assert!(
            stored.is_empty(),
            "tables {}…: batches that nobody sent: {stored:?}",
            self.name()
        );
    }
}
