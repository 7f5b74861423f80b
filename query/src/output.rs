//! What a statement gives back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_schema::{DataType, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use parking_lot::Mutex;
use shoal_engine::{Commit, ServedBy};
use shoal_types::{Offset, ShardId};

use crate::sql::Statement;

/// The outcome of one statement.
pub enum Output {
    /// Rows that are made while they are read. Dropping the stream cancels the statement.
    Rows {
        /// Columns.
        schema: SchemaRef,
        /// The rows. Its errors turn into [`crate::QueryError`] with `From`.
        stream: SendableRecordBatchStream,
        /// Counts while the stream is read.
        stats: Arc<QueryStats>,
    },
    /// A statement without rows.
    Affected {
        /// PostgreSQL's command tag, such as `INSERT 0 5`.
        tag: String,
        /// Rows written, changed or deleted.
        rows: u64,
        /// The last write's commit: what a reader must have passed to see it.
        commit: Option<Commit>,
    },
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows { schema, .. } => f.debug_struct("Rows").field("schema", schema).finish(),
            Self::Affected { tag, rows, .. } => f
                .debug_struct("Affected")
                .field("tag", tag)
                .field("rows", rows)
                .finish(),
        }
    }
}

/// Counters of one statement.
#[derive(Debug, Default)]
pub struct QueryStats {
    /// Bytes of files that the statement asked for.
    pub bytes_read: AtomicU64,
    /// Of those, bytes that were in the memory cache.
    pub bytes_cached: AtomicU64,
    /// Files of the tables read.
    pub files_total: AtomicU64,
    /// Of those, files that were opened.
    pub files_read: AtomicU64,
    /// Bytes of all files of the tables read.
    pub bytes_total: AtomicU64,
    /// Rows handed to the client so far.
    pub rows: AtomicU64,
    /// Microseconds until the plan was ready.
    pub planning_us: AtomicU64,
    /// The position at which each shard was read.
    pub positions: Mutex<Vec<(ShardId, Offset)>>,
    /// The replicas that were read, each once.
    pub served_by: Mutex<Vec<ServedBy>>,
}

impl QueryStats {
    /// The statement begins again: its views will be others.
    pub(crate) fn restart(&self) {
        self.positions.lock().clear();
        self.served_by.lock().clear();
        let files = [&self.files_total, &self.files_read, &self.bytes_total];
        for counter in files {
            counter.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// What kind of statement it is, as far as a protocol needs to know before running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementKind {
    /// Gives rows.
    Query,
    /// INSERT, UPDATE, DELETE, COPY.
    Write,
    /// Changes the catalog.
    Definition,
    /// Changes the session, or nothing.
    Session,
}

/// A statement that was parsed and planned once.
#[derive(Clone)]
pub struct Prepared {
    /// Type of `$1`, `$2`, …; `Utf8` where nothing tells.
    pub parameter_types: Vec<DataType>,
    /// Columns of the result; `None`: the statement gives no rows.
    pub schema: Option<SchemaRef>,
    /// What it is.
    pub kind: StatementKind,
    /// The plan with its parameters open; `None` for statements that DataFusion does not plan.
    pub plan: Option<LogicalPlan>,
    /// The text.
    pub sql: Arc<str>,
    pub(crate) statement: Arc<Statement>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("sql", &self.sql)
            .field("parameter_types", &self.parameter_types)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
