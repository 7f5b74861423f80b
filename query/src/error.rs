//! Errors as clients see them: a stable code, an SQLSTATE, a place in the statement and what to
//! do next. `planning` says how DataFusion's own errors become these.

mod planning;

pub(crate) use planning::missing_table;

use std::fmt;

use shoal_engine::{EngineError, WriteError};
use shoal_sst::SstError;
use shoal_types::Retry;

/// A statement that failed.
#[derive(Clone, Debug)]
pub struct QueryError {
    /// Stable snake_case name of the kind of failure.
    pub code: &'static str,
    /// What went wrong, in words for the one who wrote the statement.
    pub message: String,
    /// What the caller may do.
    pub retry: Retry,
    /// Line and column of the offending text, both from 1.
    pub position: Option<(u64, u64)>,
    /// The PostgreSQL error code (five characters).
    pub sqlstate: &'static str,
    /// A remedy, such as the nearest existing name.
    pub hint: Option<String>,
}

/// The result of everything that a statement does.
pub type Result<T, E = QueryError> = std::result::Result<T, E>;

/// The kinds of failure: code, SQLSTATE, retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(&'static str, &'static str, Retry);

macro_rules! kinds {
    ($($name:ident = $code:literal, $state:literal, $retry:ident;)*) => {
        impl Kind {
            $(pub(crate) const $name: Kind = Kind($code, $state, Retry::$retry);)*
        }
    };
}

kinds! {
    SYNTAX = "syntax_error", "42601", Never;
    UNDEFINED_TABLE = "undefined_table", "42P01", Never;
    UNDEFINED_COLUMN = "undefined_column", "42703", Never;
    UNDEFINED_FUNCTION = "undefined_function", "42883", Never;
    UNDEFINED_SCHEMA = "undefined_schema", "3F000", Never;
    UNDEFINED_PARAMETER = "undefined_parameter", "42P02", Never;
    UNDEFINED_STATEMENT = "undefined_statement", "26000", Never;
    UNDEFINED_SETTING = "undefined_setting", "42704", Never;
    AMBIGUOUS_COLUMN = "ambiguous_column", "42702", Never;
    DUPLICATE_TABLE = "duplicate_table", "42P07", Never;
    DUPLICATE_COLUMN = "duplicate_column", "42701", Never;
    DUPLICATE_STATEMENT = "duplicate_statement", "42P05", Never;
    UNDEFINED_PARTITION = "undefined_partition", "42704", Never;
    DUPLICATE_PARTITION = "duplicate_partition", "42710", Never;
    DUPLICATE_SCHEMA = "duplicate_schema", "42P06", Never;
    INVALID_DEFINITION = "invalid_table_definition", "42P16", Never;
    // PostgreSQL gives it for rows that belong to no partition.
    NO_PARTITION = "no_partition", "23514", Never;
    INVALID_QUERY = "invalid_query", "42000", Never;
    INVALID_VALUE = "invalid_value", "22023", Never;
    TYPE_MISMATCH = "type_mismatch", "42804", Never;
    DATA_EXCEPTION = "data_exception", "22000", Never;
    INVALID_TEXT = "invalid_text", "22P02", Never;
    OUT_OF_RANGE = "out_of_range", "22003", Never;
    DIVISION_BY_ZERO = "division_by_zero", "22012", Never;
    NOT_NULL = "not_null_violation", "23502", Never;
    UNSUPPORTED = "not_supported", "0A000", Never;
    READ_ONLY = "read_only", "25006", Never;
    NOT_ALLOWED = "not_allowed", "42501", Never;
    CANCELLED = "cancelled", "57014", Safe;
    TIMEOUT = "timeout", "57014", Safe;
    BUSY = "too_many_statements", "53300", Safe;
    OUT_OF_MEMORY = "out_of_memory", "53200", Never;
    TOO_MANY_STATEMENTS = "too_many_prepared_statements", "54000", Never;
    TOO_COMPLEX = "statement_too_complex", "54001", Never;
    CONFLICT = "conflict", "40001", Safe;
    EXPIRED_ID = "expired_id", "22023", Never;
    SCHEMA_CHANGED = "schema_changed", "40001", Safe;
    UNKNOWN_OUTCOME = "outcome_unknown", "08007", Unknown;
    COMMIT_TIMEOUT = "commit_timeout", "08007", Unknown;
    OVERLOADED = "overloaded", "53400", Safe;
    DISK_FULL = "disk_full", "53100", Safe;
    UNAVAILABLE = "unavailable", "57P03", Safe;
    NOT_FRESH = "not_fresh", "57P03", Safe;
    TOO_OLD = "snapshot_too_old", "72000", Safe;
    DAMAGED = "data_damaged", "XX001", Never;
    LOST = "data_lost", "XX001", Never;
    IO = "io_error", "58030", Safe;
    INTERNAL = "internal", "XX000", Never;
}

impl QueryError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            code: kind.0,
            message: message.into(),
            retry: kind.2,
            position: None,
            sqlstate: kind.1,
            hint: None,
        }
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::UNSUPPORTED, message)
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn at(mut self, position: Option<(u64, u64)>) -> Self {
        if self.position.is_none() {
            self.position = position;
        }
        self
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.code == kind.0
    }

    /// Whether a table, or a partition of it, is not there.
    pub(crate) fn is_missing_table(&self) -> bool {
        self.code == "undefined_table"
    }

    /// Whether the table was altered between planning and running, and nothing is done yet: planning
    /// anew is enough.
    pub(crate) fn is_schema_change(&self) -> bool {
        self.is(Kind::SCHEMA_CHANGED) && self.retry == Retry::Safe
    }

    /// A file that the newest manifest names is not there.
    pub(crate) fn lost(self) -> Self {
        let what = format!(
            "{}, and the newest manifest names it: it is lost",
            self.message
        );
        Self::new(Kind::DAMAGED, what)
    }

    /// Whether a file of the statement's view was not there: a newer view may do.
    pub(crate) fn is_too_old(&self) -> bool {
        self.is(Kind::TOO_OLD)
    }
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some((line, column)) = self.position {
            write!(f, " (line {line}, column {column})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for QueryError {}

impl From<EngineError> for QueryError {
    fn from(error: EngineError) -> Self {
        let retry = error.retry();
        let kind = match &error {
            EngineError::NotFound { what, .. } => match *what {
                "schema" => Kind::UNDEFINED_SCHEMA,
                "column" => Kind::UNDEFINED_COLUMN,
                "partition" => Kind::UNDEFINED_PARTITION,
                _ => Kind::UNDEFINED_TABLE,
            },
            EngineError::AlreadyExists { what, .. } => match *what {
                "schema" => Kind::DUPLICATE_SCHEMA,
                "column" => Kind::DUPLICATE_COLUMN,
                "partition" => Kind::DUPLICATE_PARTITION,
                _ => Kind::DUPLICATE_TABLE,
            },
            EngineError::Schema(_) => Kind::INVALID_DEFINITION,
            EngineError::Invalid(_) => Kind::INVALID_VALUE,
            EngineError::Write(write) => return write.clone().into(),
            EngineError::Sst(sst) => return sst.into(),
            EngineError::ShardUnavailable { .. } | EngineError::ShuttingDown => Kind::UNAVAILABLE,
            EngineError::NotFresh { .. } => Kind::NOT_FRESH,
            EngineError::Manifest { .. } => Kind::DAMAGED,
            EngineError::Lost { .. } => Kind::LOST,
            EngineError::LostLog { .. } => Kind::UNAVAILABLE,
            EngineError::Meta(_) if retry == Retry::Safe => Kind::UNAVAILABLE,
            EngineError::Meta(_) if retry == Retry::Unknown => Kind::UNKNOWN_OUTCOME,
            EngineError::Log(_) | EngineError::Meta(_) => Kind::IO,
            #[allow(unreachable_patterns)]
            _ => Kind::INTERNAL,
        };
        let mut out = Self::new(kind, error.to_string());
        out.retry = retry;
        out
    }
}

impl From<&SstError> for QueryError {
    fn from(error: &SstError) -> Self {
        let kind = match error {
            SstError::Damaged { .. } => Kind::DAMAGED,
            SstError::NoSpace { .. } => Kind::DISK_FULL,
            SstError::NotFound { .. } => Kind::TOO_OLD,
            _ => Kind::IO,
        };
        let out = Self::new(kind, error.to_string());
        if out.is_too_old() {
            let hint = "run the statement again; if it fails again, the file is lost";
            return out.with_hint(hint);
        }
        out
    }
}

impl From<WriteError> for QueryError {
    fn from(error: WriteError) -> Self {
        let retry = error.retry();
        let kind = match &error {
            WriteError::Conflict { .. } => Kind::CONFLICT,
            WriteError::StaleSchema { .. } => Kind::SCHEMA_CHANGED,
            WriteError::Overloaded(_) | WriteError::Overlaps { .. } | WriteError::Moved { .. } => {
                Kind::OVERLOADED
            }
            WriteError::NoSpace(_) => Kind::DISK_FULL,
            WriteError::ShardUnavailable { .. }
            | WriteError::ShardHalted { .. }
            | WriteError::NotLeader { .. } => Kind::UNAVAILABLE,
            WriteError::OutcomeUnknown(_) => Kind::UNKNOWN_OUTCOME,
            WriteError::CommitTimeout { .. } => Kind::COMMIT_TIMEOUT,
            WriteError::ExpiredId { .. } => Kind::EXPIRED_ID,
            WriteError::NoPartition(_) => Kind::NO_PARTITION,
            WriteError::Invalid(_) => Kind::INTERNAL,
            _ => Kind::INVALID_VALUE,
        };
        let mut out = Self::new(kind, error.to_string());
        out.retry = retry;
        out
    }
}

impl From<arrow_schema::ArrowError> for QueryError {
    fn from(error: arrow_schema::ArrowError) -> Self {
        planning::from_arrow(&error)
    }
}

/// The name in `names` that is nearest to `name`, if it is near enough to be a slip.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase();
    names
        .into_iter()
        .filter(|candidate| *candidate != name)
        .map(|candidate| {
            (
                strsim::osa_distance(&folded, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= 1 + name.chars().count() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}
