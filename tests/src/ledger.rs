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

/// The batches of one table, each of `rows` rows numbered from 0 in column `row`, with the batch's
/// name in column `batch`.
#[derive(Debug)]
pub struct Ledger {
    table: &'static str,
    rows: u64,
    batches: BTreeMap<String, Outcome>,
}

impl Ledger {
    /// An empty ledger for a table.
    #[must_use]
    pub fn new(table: &'static str, rows: u64) -> Self {
        Self {
            table,
            rows,
            batches: BTreeMap::new(),
        }
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &'static str {
        self.table
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
        let statement = format!(
            "SELECT batch, count(*) AS n, sum(\"row\") AS s FROM {} GROUP BY batch",
            self.table
        );
        let rows = client
            .sql(&statement)
            .await
            .unwrap_or_else(|e| panic!("{statement}: {e:?}"));
        let mut stored: BTreeMap<String, (u64, u64)> = rows
            .iter()
            .map(|row| {
                let number = |v: &Value| v.as_u64().unwrap_or_else(|| panic!("{row:?}"));
                let batch = row[0]
                    .as_str()
                    .unwrap_or_else(|| panic!("{row:?}"))
                    .to_owned();
                (batch, (number(&row[1]), number(&row[2])))
            })
            .collect();
        let whole = (self.rows, self.rows * (self.rows - 1) / 2);
        for (batch, outcome) in &mut self.batches {
            let found = stored.remove(batch);
            let good = match outcome {
                Outcome::Acknowledged => found == Some(whole),
                Outcome::Refused => found.is_none(),
                Outcome::Unknown => found.is_none() || found == Some(whole),
            };
            assert!(
                good,
                "table {}: batch {batch} was {outcome:?}, but (rows, sum) is {found:?} instead of {whole:?}",
                self.table
            );
            *outcome = if found.is_some() {
                Outcome::Acknowledged
            } else {
                Outcome::Refused
            };
        }
        assert!(
            stored.is_empty(),
            "table {}: batches that nobody sent: {stored:?}",
            self.table
        );
    }
}
