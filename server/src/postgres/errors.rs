//! Errors on the wire: SQLSTATE, hint and the character position that clients put a caret under.

use pgwire::error::{ErrorInfo, PgWireError};
use shoal_query::QueryError;

/// An error with an SQLSTATE of our own.
pub fn error(sqlstate: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(info("ERROR", sqlstate, message)))
}

/// The end of a connection, with the reason.
pub fn fatal(sqlstate: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(info("FATAL", sqlstate, message)))
}

/// The fields of an error or notice.
pub fn info(severity: &str, sqlstate: &str, message: impl Into<String>) -> ErrorInfo {
    let mut info = ErrorInfo::new(severity.to_owned(), sqlstate.to_owned(), message.into());
    info.severity_nonlocalized = Some(severity.to_owned());
    info
}

/// What a client asked for that is not built.
pub fn unsupported(what: impl std::fmt::Display) -> PgWireError {
    error("0A000", format!("{what} is not supported"))
}

/// A failed statement. `query` is the whole text that the client sent, `start` the byte at which
/// the failed statement begins in it: positions count characters of the whole text.
pub fn from_query(failed: QueryError, query: &str, start: usize) -> PgWireError {
    let mut out = info("ERROR", failed.sqlstate, failed.message);
    out.hint = failed.hint;
    out.position = failed
        .position
        .and_then(|(line, column)| position(query, start, line, column))
        .map(|p| p.to_string());
    PgWireError::UserError(Box::new(out))
}

/// Line and column within the statement at byte `start` as a character position from 1 in `query`.
fn position(query: &str, start: usize, line: u64, column: u64) -> Option<usize> {
    let statement = query.get(start..)?;
    let line_start: usize = statement
        .split_inclusive('\n')
        .take(usize::try_from(line.checked_sub(1)?).ok()?)
        .map(|l| l.chars().count())
        .sum();
    let before = query[..start].chars().count();
    let at = before + line_start + usize::try_from(column).ok()?;
    (column > 0 && at <= query.chars().count() + 1).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_of_the_whole_query() {
        let query = "SELECT 'é';\nSELECT a,\n  bad FROM t";
        let start = query.find("SELECT a").unwrap();
        let at = position(query, start, 2, 3).unwrap();
        assert_eq!(
            query.chars().skip(at - 1).take(3).collect::<String>(),
            "bad"
        );
        assert_eq!(position(query, start, 9, 90), None);
        assert_eq!(position(query, start, 0, 1), None);
    }
}
