//! How fresh a statement's rows must be and who may give them (DESIGN §2), from the session's
//! settings; and what a node of several must learn before it plans a statement.
//!
//! Another node may have made a table or a column a moment ago. So the names of a statement are
//! looked up before it is planned, and columns are asked for again before a name is said not to
//! exist.

use std::sync::Arc;
use std::time::Duration;

use datafusion::common::TableReference;
use datafusion::execution::session_state::SessionState;
use parking_lot::Mutex;
use shoal_engine::{CommitToken, Database, Read, ReadLevel, ReadPlace, TableHandle};

use crate::catalog::OWN_SCHEMAS;
use crate::error::{Kind, Result};
use crate::settings::{Settings, parse_timeout};
use crate::sql::Statement;
use crate::{QueryError, StatementKind};

/// What a session has seen: one token a shard, so it is bounded by the number of shards.
#[derive(Clone, Debug, Default)]
pub struct Seen(Arc<Mutex<Vec<CommitToken>>>);

impl Seen {
    /// From now on reads of level `session` see these commits.
    pub fn add(&self, tokens: &[CommitToken]) {
        let mut seen = self.0.lock();
        for token in tokens {
            token.add_to(&mut seen);
        }
    }

    /// Forgets them.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    pub(crate) fn tokens(&self) -> Vec<CommitToken> {
        self.0.lock().clone()
    }

    /// As `Shoal-Commit-Token` has them.
    #[must_use]
    pub fn text(&self) -> String {
        let tokens = self.tokens();
        let texts: Vec<String> = tokens.iter().map(ToString::to_string).collect();
        texts.join(",")
    }
}

/// Reads a comma-joined list of commit tokens.
///
/// # Errors
/// Which is none.
pub fn commit_tokens(text: &str) -> Result<Vec<CommitToken>> {
    let tokens = text.split(',').map(str::trim).filter(|t| !t.is_empty());
    tokens
        .map(|token| {
            token.parse().map_err(|()| {
                QueryError::new(
                    Kind::INVALID_VALUE,
                    format!("{token:?} is no commit token of ours"),
                )
            })
        })
        .collect()
}

/// How a statement reads.
pub(crate) fn read_of(
    settings: &Settings,
    seen: &Seen,
    kind: StatementKind,
    patience: Option<Duration>,
) -> Result<Read> {
    // What a statement changes, it must have seen as it is.
    if kind == StatementKind::Write {
        return Ok(Read {
            patience,
            ..Read::default()
        });
    }
    let level = match settings.consistency.as_str() {
        "strong" => ReadLevel::Strong,
        "session" => ReadLevel::Session(seen.tokens()),
        "eventual" => ReadLevel::Eventual,
        other => {
            let bound = other.strip_prefix("bounded=").unwrap_or_default();
            ReadLevel::Bounded(Duration::from_millis(parse_timeout(bound)?))
        }
    };
    let place = match settings.read_from.as_str() {
        "leader" => ReadPlace::Leader,
        "follower" => ReadPlace::Follower,
        "any" => ReadPlace::Any,
        _ => ReadPlace::Nearest,
    };
    Ok(Read {
        level,
        place,
        patience,
    })
}

/// The tables that a statement names, as far as they exist.
async fn tables_of(
    db: &Database,
    state: &SessionState,
    schema: &str,
    statement: &Statement,
) -> Result<Vec<TableHandle>> {
    // A statement that DataFusion cannot look through has its names found by the catalog.
    let Ok(names) = state.resolve_table_references(&statement.body) else {
        return Ok(Vec::new());
    };
    let mut tables = Vec::new();
    let mut synced = false;
    for name in names {
        let (schema, table) = match &name {
            TableReference::Bare { table } => (schema, &**table),
            TableReference::Partial { schema, table }
            | TableReference::Full { schema, table, .. } => (&**schema, &**table),
        };
        // Lists of names, and schemas made elsewhere.
        if (OWN_SCHEMAS.contains(&schema) || !db.has_schema(schema)) && !synced {
            db.sync_names().await?;
            synced = true;
        }
        tables.extend(db.find_table(schema, table).await?);
    }
    Ok(tables)
}

/// Sees to it that what the statement names is known here. Gives the tables that it names; none
/// where this process is alone.
///
/// # Errors
/// Meta's: names known here may be old.
pub(crate) async fn learn_names(
    db: &Database,
    state: &SessionState,
    schema: &str,
    statement: &Statement,
) -> Result<Vec<TableHandle>> {
    if !db.is_clustered() {
        return Ok(Vec::new());
    }
    let lists_names = matches!(
        statement.kind,
        StatementKind::Definition | StatementKind::Session
    ) && !is_setting(&statement.sql);
    if lists_names {
        db.sync_names().await?;
    }
    tables_of(db, state, schema, statement).await
}

/// Statements that every client sends and that name nothing.
fn is_setting(sql: &str) -> bool {
    let first = sql.split_whitespace().next().unwrap_or_default();
    [
        "set",
        "begin",
        "commit",
        "rollback",
        "reset",
        "discard",
        "deallocate",
    ]
    .iter()
    .any(|word| first.eq_ignore_ascii_case(word))
}

/// Whether a statement may have failed because this node's columns are old; if so, they are not any
/// more.
pub(crate) async fn learned_after(
    error: &QueryError,
    db: &Database,
    state: &SessionState,
    schema: &str,
    statement: &Statement,
) -> bool {
    let may_be_old = db.is_clustered()
        && matches!(
            error.code,
            "undefined_column"
                | "undefined_table"
                | "undefined_schema"
                | "duplicate_column"
                | "not_fresh"
        );
    if !may_be_old {
        return false;
    }
    let refreshed = async {
        db.sync_names().await?;
        for table in tables_of(db, state, schema, statement).await? {
            db.refresh_schema(&table).await?;
        }
        Ok::<(), QueryError>(())
    };
    match refreshed.await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "names and columns not brought up to date");
            false
        }
    }
}
