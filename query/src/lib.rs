//! SQL over the engine: DataFusion plans and runs, tables are read views (DESIGN §4, §5).
//!
//! [`QueryEngine`] is one a process, [`Session`] one a connection or request; a session runs
//! statements and gives [`Output`]s. Errors are [`QueryError`]s with a stable code, an SQLSTATE
//! and, where known, line and column.

mod arithmetic;
mod catalog;
mod config;
mod decimals;
mod engine;
mod error;
mod expressions;
mod freshness;
mod guards;
mod literals;
mod memory;
mod number;
mod output;
mod physical_rules;
mod predicate;
mod running;
mod session;
mod settings;
mod sql;
mod sums;
mod table;
mod text;
mod threads;
mod ticks;

pub use catalog::{CATALOG, OWN_SCHEMAS, ShoalCatalog, partition_owns};
pub use config::{QueryConfig, SessionOptions};
pub use engine::QueryEngine;
pub use error::QueryError;
pub use freshness::{Seen, commit_tokens};
pub use literals::{fit, read_timestamp};
pub use output::{Output, Prepared, QueryStats, StatementKind};
pub use predicate::SqlPredicate;
pub use running::{QueryId, RunningStatement};
pub use session::Session;
pub use settings::parse_timeout;
pub use sql::{Names, check_complexity};
pub use text::{bytea, read_text};

/// The DataFusion that this crate was built with.
pub use datafusion;
