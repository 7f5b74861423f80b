//! What a statement is, as far as the protocol has to know before it is run.
//!
//! Most statements go to the query layer as they are. The ones below are the protocol's own:
//! transaction words (statements commit one by one; `BEGIN` and `COMMIT` only keep the books that
//! drivers read), cursors, prepared statements and `COPY` over the connection. Statements that
//! look into `pg_catalog` are rewritten first, see `catalog`.

use super::copy::Copy;
use super::{catalog, lexer};

/// The most tokens that tell a statement's kind.
const WORDS_MAX: usize = 32;

/// What to do with a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// `BEGIN`, `START TRANSACTION`; with the command tag and whether it is READ ONLY.
    Begin(&'static str, bool),
    /// `COMMIT`, `END`
    Commit,
    /// `ROLLBACK`, `ABORT`
    Rollback,
    /// `SAVEPOINT`, `RELEASE`, `ROLLBACK TO`: nothing to do, with the command tag.
    Savepoint(&'static str),
    /// `SET SESSION CHARACTERISTICS AS TRANSACTION`; whether READ ONLY, if it says.
    Characteristics(Option<bool>),
    /// `SET TRANSACTION`; whether READ ONLY, if it says.
    Transaction(Option<bool>),
    /// `DISCARD ALL` and its parts, with the command tag.
    Discard(&'static str),
    /// `DEALLOCATE name`, `None`: `ALL`.
    Deallocate(Option<String>),
    /// `DECLARE name CURSOR FOR …`; the query begins at this byte.
    Declare(String, usize),
    /// `FETCH n FROM name`; `None`: all that are left.
    Fetch(String, Option<usize>),
    /// `CLOSE name`, `None`: `ALL`.
    Close(Option<String>),
    /// Taken and without effect, with the command tag.
    Nothing(&'static str),
    /// `COPY … FROM STDIN`
    CopyIn(Copy),
    /// `COPY … TO STDOUT`
    CopyOut(Copy),
    /// Looks into `pg_catalog`.
    Catalog,
    /// Goes to the query layer as it is.
    Engine,
}

/// Tells the kind of one statement.
#[must_use]
pub fn kind(sql: &str) -> Kind {
    let words = lexer::words(sql, WORDS_MAX);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["begin", rest @ ..] => Kind::Begin("BEGIN", read_only(rest) == Some(true)),
        ["start", "transaction", rest @ ..] => {
            Kind::Begin("START TRANSACTION", read_only(rest) == Some(true))
        }
        ["commit" | "end", ..] => Kind::Commit,
        ["rollback", "to", ..] | ["rollback", "work" | "transaction", "to", ..] => {
            Kind::Savepoint("ROLLBACK")
        }
        ["rollback" | "abort", ..] => Kind::Rollback,
        ["savepoint", ..] => Kind::Savepoint("SAVEPOINT"),
        ["release", ..] => Kind::Savepoint("RELEASE"),
        ["set", "session", "characteristics", rest @ ..] => Kind::Characteristics(read_only(rest)),
        ["set", "transaction", rest @ ..] | ["set", "local", "transaction", rest @ ..] => {
            Kind::Transaction(read_only(rest))
        }
        // There are no roles to change to; poolers and dumps reset them all the same.
        ["set", "session", "authorization", ..] | ["set", "role", ..] => Kind::Nothing("SET"),
        ["reset", "role"] | ["reset", "session", "authorization"] => Kind::Nothing("RESET"),
        ["discard", "all"] => Kind::Discard("DISCARD ALL"),
        ["discard", "plans"] => Kind::Nothing("DISCARD PLANS"),
        ["discard", "sequences"] => Kind::Nothing("DISCARD SEQUENCES"),
        ["discard", "temp" | "temporary"] => Kind::Nothing("DISCARD TEMP"),
        ["deallocate", "all"] | ["deallocate", "prepare", "all"] => Kind::Deallocate(None),
        ["deallocate", "prepare", name] | ["deallocate", name] => {
            Kind::Deallocate(Some(lexer::value_of(name)))
        }
        ["declare", name, rest @ ..] => match declared_query(sql, rest) {
            Some(start) => Kind::Declare(lexer::value_of(name), start),
            None => Kind::Engine,
        },
        ["fetch", rest @ ..] => fetch(rest),
        ["close", "all"] => Kind::Close(None),
        ["close", name] => Kind::Close(Some(lexer::value_of(name))),
        ["listen", ..] => Kind::Nothing("LISTEN"),
        ["unlisten", ..] => Kind::Nothing("UNLISTEN"),
        ["copy", ..] => match Copy::parse(sql) {
            Some((copy, true)) => Kind::CopyIn(copy),
            Some((copy, false)) => Kind::CopyOut(copy),
            None => Kind::Engine,
        },
        _ if catalog::concerns(sql) => Kind::Catalog,
        _ => Kind::Engine,
    }
}

fn read_only(words: &[&str]) -> Option<bool> {
    words.windows(2).find_map(|pair| match pair {
        ["read", "only"] => Some(true),
        ["read", "write"] => Some(false),
        _ => None,
    })
}

/// Where the query of `DECLARE name … CURSOR … FOR query` begins.
fn declared_query(sql: &str, rest: &[&str]) -> Option<usize> {
    let cursor = rest.iter().position(|w| *w == "cursor")?;
    let after = rest[cursor..].iter().position(|w| *w == "for")? + cursor;
    // Two words before `rest`, then `after`, then FOR itself.
    lexer::tokens(sql)
        .filter(lexer::Token::is_significant)
        .nth(2 + after + 1)
        .map(|t| t.range.start)
}

fn fetch(rest: &[&str]) -> Kind {
    let rest = match rest {
        ["forward", more @ ..] => more,
        other => other,
    };
    let (count, rest) = match rest {
        ["next", more @ ..] => (Some(1), more),
        ["all", more @ ..] => (None, more),
        [first, more @ ..] if first.starts_with(|c: char| c.is_ascii_digit()) => {
            match first.parse() {
                Ok(count) => (Some(count), more),
                Err(_) => return Kind::Engine,
            }
        }
        more => (Some(1), more),
    };
    match rest {
        ["from" | "in", name] | [name] => Kind::Fetch(lexer::value_of(name), count),
        _ => Kind::Engine,
    }
}

/// Whether a statement for the query layer changes data or schemas.
#[must_use]
pub fn writes(sql: &str) -> bool {
    matches!(
        lexer::words(sql, 1).first().map(String::as_str),
        Some(
            "insert"
                | "update"
                | "delete"
                | "create"
                | "alter"
                | "drop"
                | "truncate"
                | "copy"
                | "merge"
                | "replace"
        )
    )
}

/// The tag word of a statement that gives rows, and whether the number of rows follows it.
#[must_use]
pub fn row_tag(sql: &str) -> (String, bool) {
    match lexer::words(sql, 1).first().map(String::as_str) {
        Some("show") => ("SHOW".into(), false),
        Some("explain" | "describe" | "desc") => ("EXPLAIN".into(), false),
        _ => ("SELECT".into(), true),
    }
}

/// Settings whose changes PostgreSQL reports to the client unasked, under their official names.
const REPORTED: &[&str] = &[
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "IntervalStyle",
    "search_path",
    "standard_conforming_strings",
    "TimeZone",
];

/// A setting as a client would write it, and the reported setting that it changes.
#[must_use]
pub fn reported(sql: &str) -> Option<&'static str> {
    let words = lexer::words(sql, 4);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let name = match words.as_slice() {
        ["set", "session" | "local", name, ..] | ["set" | "reset", name, ..] => *name,
        _ => return None,
    };
    let name = match name {
        "time" => "timezone",
        "names" => "client_encoding",
        "schema" => "search_path",
        other => other,
    };
    REPORTED
        .iter()
        .copied()
        .find(|known| known.eq_ignore_ascii_case(name.trim_matches('"')))
}

/// The official name of a setting that is reported at startup, if it is one.
#[must_use]
pub fn reported_settings() -> &'static [&'static str] {
    REPORTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocols_own_statements_are_told_apart() {
        let cases = [
            ("begin read only", Kind::Begin("BEGIN", true)),
            (
                "/* x */ START TRANSACTION READ WRITE",
                Kind::Begin("START TRANSACTION", false),
            ),
            ("end", Kind::Commit),
            ("ROLLBACK TO SAVEPOINT a", Kind::Savepoint("ROLLBACK")),
            ("rollback work", Kind::Rollback),
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                Kind::Characteristics(Some(true)),
            ),
            ("discard all", Kind::Discard("DISCARD ALL")),
            ("DEALLOCATE \"S_1\"", Kind::Deallocate(Some("S_1".into()))),
            (
                "FETCH FORWARD 100 FROM \"c\"",
                Kind::Fetch("c".into(), Some(100)),
            ),
            ("fetch all in c", Kind::Fetch("c".into(), None)),
            ("fetch c", Kind::Fetch("c".into(), Some(1))),
            ("close all", Kind::Close(None)),
            ("select * from cpu where usage > 1", Kind::Engine),
            ("select relname from pg_class", Kind::Catalog),
            ("select 'pg_class'", Kind::Engine),
        ];
        for (sql, expected) in cases {
            assert_eq!(kind(sql), expected, "{sql}");
        }
        let declare = "DECLARE \"my c\" NO SCROLL CURSOR WITHOUT HOLD FOR SELECT 1";
        assert_eq!(
            kind(declare),
            Kind::Declare("my c".into(), declare.find("SELECT").unwrap())
        );
    }

    #[test]
    fn changes_of_reported_settings_are_noticed_however_they_are_spelled() {
        assert_eq!(
            reported("SET application_name = 'x'"),
            Some("application_name")
        );
        assert_eq!(reported("set session timezone to 'UTC'"), Some("TimeZone"));
        assert_eq!(reported("SET TIME ZONE 'UTC'"), Some("TimeZone"));
        assert_eq!(reported("set extra_float_digits = 3"), None);
        assert_eq!(reported("select 1"), None);
    }
}
