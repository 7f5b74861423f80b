//! What Tab offers: SQL words, and the names of schemas, tables and columns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::client::Client;
use crate::postgres::lexer::{self, Kind, Token};

/// Columns fetched at most; a larger catalog is completed in part.
const COLUMNS_MAX: usize = 20_000;
/// Suggestions at most.
const SUGGESTIONS_MAX: usize = 100;
/// How long fetched names are good for.
const FRESH: Duration = Duration::from_secs(30);
/// How long Tab waits for the server.
const PATIENCE: Duration = Duration::from_secs(2);

/// Words of SQL, in the order of use rather than of the alphabet.
pub const WORDS: &[&str] = &[
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP BY",
    "ORDER BY",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "DISTINCT",
    "AS",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS",
    "NULL",
    "LIKE",
    "ILIKE",
    "BETWEEN",
    "EXISTS",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "CAST",
    "JOIN",
    "LEFT JOIN",
    "RIGHT JOIN",
    "FULL JOIN",
    "CROSS JOIN",
    "ON",
    "USING",
    "UNION",
    "UNION ALL",
    "EXCEPT",
    "INTERSECT",
    "WITH",
    "VALUES",
    "ASC",
    "DESC",
    "NULLS FIRST",
    "NULLS LAST",
    "OVER",
    "PARTITION BY",
    "INTERVAL",
    "TIMESTAMP",
    "INSERT INTO",
    "UPDATE",
    "SET",
    "DELETE FROM",
    "CREATE TABLE",
    "CREATE SCHEMA",
    "IF NOT EXISTS",
    "IF EXISTS",
    "PRIMARY KEY",
    "ALTER TABLE",
    "ADD COLUMN",
    "DROP COLUMN",
    "RENAME COLUMN",
    "RENAME TO",
    "DROP TABLE",
    "DROP SCHEMA",
    "TRUNCATE",
    "COPY",
    "EXPLAIN",
    "EXPLAIN ANALYZE",
    "SHOW TABLES",
    "SHOW",
    "DESCRIBE",
    "BIGINT",
    "INTEGER",
    "SMALLINT",
    "TEXT",
    "BOOLEAN",
    "DOUBLE PRECISION",
    "REAL",
    "DECIMAL",
    "DATE",
    "TIMESTAMPTZ",
    "BYTEA",
    "TRUE",
    "FALSE",
    "count(",
    "sum(",
    "avg(",
    "min(",
    "max(",
    "date_bin(",
    "date_trunc(",
    "extract(",
    "now()",
    "first_value(",
    "last_value(",
    "approx_percentile_cont(",
    "coalesce(",
];

/// Names known to the server.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Schema → table → columns.
    schemas: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

/// Names, fetched when first asked for and again when they grow old.
pub struct NameCache {
    client: Client,
    held: Mutex<Option<(Instant, Arc<Names>)>>,
}

impl NameCache {
    /// Empty.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self {
            client,
            held: Mutex::new(None),
        }
    }

    /// Forgets them: a statement may have changed them.
    pub fn forget(&self) {
        *self.held.lock() = None;
    }

    /// The names; old or none if the server does not answer in time.
    pub async fn names(&self) -> Arc<Names> {
        let old = self.held.lock().clone();
        if let Some((at, names)) = &old
            && at.elapsed() < FRESH
        {
            return Arc::clone(names);
        }
        let names = match tokio::time::timeout(PATIENCE, self.fetch()).await {
            Ok(Some(names)) => Arc::new(names),
            // Not asked again at every key press.
            _ => old.map(|(_, names)| names).unwrap_or_default(),
        };
        *self.held.lock() = Some((Instant::now(), Arc::clone(&names)));
        names
    }

    async fn fetch(&self) -> Option<Names> {
        let sql = format!(
            "SELECT table_schema, table_name, column_name FROM information_schema.columns LIMIT {COLUMNS_MAX}"
        );
        let request = self
            .client
            .request(Method::POST, "/v1/sql")
            .json(&json!({ "sql": sql }));
        let text = self.client.text(request).await.ok()?.ok()?;
        let answer: Value = serde_json::from_str(&text).ok()?;
        let mut names = Names::default();
        for row in answer["rows"].as_array()? {
            let name = |i: usize| row[i].as_str().unwrap_or_default().to_owned();
            names.add(name(0), name(1), name(2));
        }
        Some(names)
    }
}

impl Names {
    /// Adds a column.
    pub fn add(&mut self, schema: String, table: String, column: String) {
        let tables = self.schemas.entry(schema).or_default();
        tables.entry(table).or_default().push(column);
    }

    /// What may stand at byte `at` of a text: where the word begins that is completed, and the
    /// candidates.
    #[must_use]
    pub fn complete(&self, text: &str, at: usize, schema: &str) -> (usize, Vec<String>) {
        let before = text.get(..at).unwrap_or(text);
        let tokens: Vec<Token> = lexer::tokens(before).collect();
        let word = tokens
            .last()
            .filter(|t| t.kind == Kind::Word || (t.kind == Kind::Quoted && !t.closed));
        let start = word.map_or(before.len(), |t| t.range.start);
        let typed = &before[start..];
        if tokens
            .last()
            .is_some_and(|t| matches!(t.kind, Kind::Comment | Kind::Text | Kind::Number))
            && word.is_none()
        {
            return (start, Vec::new());
        }
        let significant: Vec<&Token> = tokens
            .iter()
            .filter(|t| t.is_significant() && t.range.start < start)
            .collect();
        let text_of = |t: &Token| before[t.range.clone()].to_owned();
        let qualifier = match significant.as_slice() {
            [.., owner, dot] if &before[dot.range.clone()] == "." => {
                Some(lexer::value_of(&text_of(owner)))
            }
            _ => None,
        };
        let previous = significant.last().map(|t| text_of(t).to_lowercase());
        let mut found = BTreeSet::new();
        if let Some(qualifier) = qualifier {
            if let Some(tables) = self.schemas.get(&qualifier) {
                found.extend(tables.keys().map(|t| quoted(t)));
            }
            let table = self.aliased(text, &qualifier).unwrap_or(qualifier);
            found.extend(self.columns_of(&table).map(quoted));
            return (start, matching(found, typed, &[]));
        }
        let wants_table = matches!(
            previous.as_deref(),
            Some("from" | "join" | "into" | "update" | "table" | "describe" | "truncate")
        );
        let mentioned: Vec<String> = lexer::words(text, usize::MAX)
            .iter()
            .map(|w| lexer::value_of(w))
            .collect();
        let any_mentioned = self
            .schemas
            .values()
            .any(|tables| tables.keys().any(|t| mentioned.contains(t)));
        for (name, tables) in &self.schemas {
            found.insert(quoted(name));
            if name == schema {
                found.extend(tables.keys().map(|t| quoted(t)));
            }
            if !wants_table {
                for (table, columns) in tables {
                    // Before its FROM is written a query may be about any table at hand.
                    let at_hand = !any_mentioned && name == schema && !typed.is_empty();
                    if at_hand || mentioned.contains(table) {
                        found.extend(columns.iter().map(|c| quoted(c)));
                    }
                }
            }
        }
        (
            start,
            matching(found, typed, if wants_table { &[] } else { WORDS }),
        )
    }

    fn columns_of<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a str> {
        self.schemas
            .values()
            .filter_map(move |tables| tables.get(table))
            .flatten()
            .map(String::as_str)
    }

    /// The table that an alias stands for: the name before it in the text.
    fn aliased(&self, text: &str, alias: &str) -> Option<String> {
        let words = lexer::words(text, usize::MAX);
        let words: Vec<String> = words
            .iter()
            .filter(|w| *w != "as")
            .map(|w| lexer::value_of(w))
            .collect();
        words
            .windows(2)
            .find(|pair| pair[1] == alias && self.columns_of(&pair[0]).next().is_some())
            .map(|pair| pair[0].clone())
    }
}

/// A name as SQL must spell it.
fn quoted(name: &str) -> String {
    let mut chars = name.chars();
    let plain = chars
        .next()
        .is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// Names, then words, that begin with what was typed, whatever its case.
fn matching(names: BTreeSet<String>, typed: &str, words: &[&str]) -> Vec<String> {
    let wanted = typed.trim_start_matches('"').to_lowercase();
    let begins = |name: &str| {
        name.trim_start_matches('"')
            .to_lowercase()
            .starts_with(&wanted)
    };
    // Words in the case that the user writes them in.
    let lower = typed.starts_with(|c: char| c.is_lowercase());
    let words = words
        .iter()
        .filter(|w| !wanted.is_empty() && begins(w))
        .map(|w| {
            if lower {
                w.to_lowercase()
            } else {
                (*w).to_owned()
            }
        });
    names
        .into_iter()
        .filter(|n| begins(n))
        .chain(words)
        .take(SUGGESTIONS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        for (schema, table, column) in [
            ("public", "cpu", "hostname"),
            ("public", "cpu", "usage_user"),
            ("public", "Odd Name", "x"),
            ("telegraf", "disk", "used"),
        ] {
            names.add(schema.into(), table.into(), column.into());
        }
        names
    }

    fn offered(text: &str) -> Vec<String> {
        let at = text.find('|').unwrap();
        names().complete(&text.replace('|', ""), at, "public").1
    }

    #[test]
    fn tables_come_after_from_and_columns_of_mentioned_tables_elsewhere() {
        assert_eq!(offered("select * from c|"), ["cpu"]);
        assert_eq!(offered("select usa| from cpu"), ["usage_user"]);
        assert_eq!(offered("select usa|"), ["usage_user"]);
        assert_eq!(
            offered("select usa| from telegraf.disk"),
            Vec::<String>::new()
        );
        assert_eq!(offered("select * from telegraf.|"), ["disk"]);
        assert_eq!(offered("select c.u| from cpu as c"), ["usage_user"]);
        assert_eq!(offered("select * from o|"), ["\"Odd Name\""]);
        assert_eq!(offered("select * from t|"), ["telegraf"]);
    }

    #[test]
    fn words_follow_the_users_case_and_nothing_is_offered_inside_literals() {
        assert_eq!(offered("sel|"), ["select"]);
        assert_eq!(offered("SEL|"), ["SELECT"]);
        assert_eq!(offered("select 'sel|"), Vec::<String>::new());
        assert_eq!(offered("-- sel|"), Vec::<String>::new());
    }
}
