//! Lines that could not be stored, as the client is told of them.

use std::borrow::Cow;

use serde::Serialize;

/// How many errors of a request are kept; all are counted.
pub const LINE_ERRORS_KEPT: usize = 100;

/// A line that was not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LineError {
    /// Number of the line in the body, from 1. A line that holds a quoted newline has the number
    /// of its beginning.
    pub line: u32,
    /// Byte within the line, from 1.
    pub column: u32,
    /// What is wrong, and what would be right.
    pub reason: String,
}

/// The errors of a request: the first [`LINE_ERRORS_KEPT`] and the number of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LineErrors {
    /// The first errors, by line.
    pub first: Vec<LineError>,
    /// Number of lines that were not stored.
    pub total: u64,
}

impl LineErrors {
    /// Whether every line was stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Counts an error and keeps it while there is room. Lines must come in order.
    pub(crate) fn push(&mut self, line: u32, column: usize, reason: impl Into<String>) {
        self.total += 1;
        if self.first.len() < LINE_ERRORS_KEPT {
            self.first.push(LineError {
                line,
                column: u32::try_from(column).unwrap_or(u32::MAX),
                reason: reason.into(),
            });
        }
    }

    /// Adds the errors of another step or table of the same request.
    pub fn merge(&mut self, other: Self) {
        self.total += other.total;
        self.first.extend(other.first);
        self.first.sort_by_key(|e| (e.line, e.column));
        self.first.truncate(LINE_ERRORS_KEPT);
    }
}

/// Why a line is bad, and at which byte of it (from 0).
#[derive(Debug)]
pub(crate) struct Bad {
    pub at: usize,
    pub reason: Cow<'static, str>,
}

impl Bad {
    pub(crate) fn new(at: usize, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            at,
            reason: reason.into(),
        }
    }
}
