//! Limits of the query layer and what a session brings with it.

use std::path::PathBuf;

/// Limits of all statements of a process; `Default` is what `shoal config --defaults` prints.
#[derive(Clone, Debug)]
pub struct QueryConfig {
    /// Memory for sorts, joins and aggregates of all statements together, in bytes. Those that can
    /// spill do so beyond half of it (sorts beyond a third), which leaves room for their merges; what cannot spill
    /// fails beyond all of it, with `out_of_memory`.
    pub memory_bytes_max: usize,
    /// Folder for spilled data; made when first used.
    pub spill_dir: PathBuf,
    /// Most bytes spilled to disk by all statements together.
    pub spill_bytes_max: u64,
    /// Threads that one large statement is spread over; 0: one a core.
    pub target_partitions: usize,
    /// Longest time a statement may take, its result's transfer included, in milliseconds; 0: no
    /// limit. A session may set its own.
    pub statement_timeout_ms: u64,
    /// Statements that run at one time; others wait, within their own time limit.
    pub concurrent_statements_max: usize,
    /// Whether `COPY` may read and write files of the server. Off unless the operator trusts
    /// every client with them.
    pub copy_files: bool,
}

impl Default for QueryConfig {
    fn default() -> Self {
        Self {
            memory_bytes_max: 1 << 30,
            spill_dir: std::env::temp_dir().join("shoal-spill"),
            spill_bytes_max: 16 << 30,
            target_partitions: 0,
            statement_timeout_ms: 60_000,
            concurrent_statements_max: 64,
            copy_files: false,
        }
    }
}

/// What a connection or request brings with it.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The schema in which unqualified names are looked up.
    pub schema: String,
    /// Who asks; shown in `system.queries`.
    pub user: String,
    /// Time limit of each statement in milliseconds; `None`: the configured one.
    pub timeout_ms: Option<u64>,
    /// Refuse every statement that changes data or schemas.
    pub read_only: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            schema: "public".into(),
            user: "shoal".into(),
            timeout_ms: None,
            read_only: false,
        }
    }
}
