//! The prompt's own commands, those that begin with a backslash.

use std::path::PathBuf;

use super::OutputFormat;
use super::table::Expanded;

/// A command that is no SQL.
#[derive(Clone, Debug, PartialEq)]
pub enum Meta {
    /// `\d`, `\dt`: tables; with `+`, of all schemas.
    Tables(bool),
    /// `\d NAME`
    Describe(String),
    /// `\dn`
    Schemas,
    /// `\c NAME`
    Schema(String),
    /// `\timing`; `None`: the other way round.
    Timing(Option<bool>),
    /// `\format`; `None`: show it.
    Format(Option<OutputFormat>),
    /// `\x`; `None`: the next of on, off.
    Expanded(Option<Expanded>),
    /// `\i FILE`
    Include(PathBuf),
    /// `\q`
    Quit,
    /// `\?`
    Help,
    /// Not understood; what to say.
    Unknown(String),
}

/// What `\?` shows.
pub const HELP: &str = "\
\\d             tables of the current schema (\\d+ of all schemas)
\\d TABLE       columns and key of a table
\\dt            as \\d
\\dn            schemas
\\c SCHEMA      make another schema the current one
\\timing        show or hide times: on, off
\\format F      output as table, csv or json
\\x             one line a value: on, off, auto (when a row is wider than the terminal)
\\i FILE        run a file
\\q             quit (as Ctrl-D)
Statements end with ; and may span lines. Ctrl-C stops a running statement, Tab completes names.";

/// Reads a line; `None`: it is no such command.
#[must_use]
pub fn parse(line: &str) -> Option<Meta> {
    let line = line.trim();
    let rest = line.strip_prefix('\\')?;
    let (command, argument) = match rest.find(char::is_whitespace) {
        Some(at) => (&rest[..at], rest[at..].trim()),
        None => (rest, ""),
    };
    let argument = argument.trim_end_matches(';').trim_end();
    let on_off = |text: &str| match text {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    };
    Some(match (command, argument) {
        ("d" | "dt", "") => Meta::Tables(false),
        ("d+" | "dt+", "") => Meta::Tables(true),
        ("d" | "d+" | "dt", name) => Meta::Describe(name.to_owned()),
        ("dn" | "dn+", _) => Meta::Schemas,
        ("c" | "connect" | "schema", "") => Meta::Unknown("\\c needs the name of a schema".into()),
        ("c" | "connect" | "schema", name) => Meta::Schema(crate::postgres::lexer::value_of(name)),
        ("timing", "") => Meta::Timing(None),
        ("timing", text) => match on_off(text) {
            Some(on) => Meta::Timing(Some(on)),
            None => Meta::Unknown("\\timing takes on or off".into()),
        },
        ("format" | "f", "") => Meta::Format(None),
        ("format" | "f", "table") => Meta::Format(Some(OutputFormat::Table)),
        ("format" | "f", "csv") => Meta::Format(Some(OutputFormat::Csv)),
        ("format" | "f", "json") => Meta::Format(Some(OutputFormat::Json)),
        ("format" | "f", _) => Meta::Unknown("\\format takes table, csv or json".into()),
        ("x", "") => Meta::Expanded(None),
        ("x", "auto") => Meta::Expanded(Some(Expanded::Auto)),
        ("x", text) => match on_off(text) {
            Some(true) => Meta::Expanded(Some(Expanded::On)),
            Some(false) => Meta::Expanded(Some(Expanded::Off)),
            None => Meta::Unknown("\\x takes on, off or auto".into()),
        },
        ("i" | "include", "") => Meta::Unknown("\\i needs a file".into()),
        ("i" | "include", file) => Meta::Include(PathBuf::from(file.trim_matches('\''))),
        ("q" | "quit" | "exit", _) => Meta::Quit,
        ("?" | "h" | "help", _) => Meta::Help,
        (other, _) => Meta::Unknown(format!("\\{other} is not a command; \\? lists them")),
    })
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The query behind `\d`.
#[must_use]
pub fn tables_query(schema: &str, all: bool) -> String {
    let only = if all {
        "table_schema NOT IN ('information_schema', 'pg_catalog')".to_owned()
    } else {
        format!("table_schema = {}", literal(schema))
    };
    format!(
        "SELECT table_schema AS \"schema\", table_name AS \"table\", table_type AS \"type\" FROM information_schema.tables WHERE {only} ORDER BY 1, 2"
    )
}

/// The query behind `\dn`.
pub const SCHEMAS_QUERY: &str =
    "SELECT schema_name AS \"schema\" FROM information_schema.schemata ORDER BY 1";

/// The statement behind `\d NAME`, where the name may be qualified; `None`: it is no name.
#[must_use]
pub fn describe_statement(name: &str) -> Option<String> {
    use crate::postgres::lexer::{self, Kind};
    let is_name = lexer::tokens(name).all(|t| match t.kind {
        Kind::Word | Kind::Quoted => t.closed,
        Kind::Symbol => &name[t.range] == ".",
        _ => false,
    });
    is_name.then(|| format!("DESCRIBE {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_and_slips_are_answered() {
        for (line, expected) in [
            ("\\d", Meta::Tables(false)),
            ("\\d \"My T\";", Meta::Describe("\"My T\"".into())),
            ("\\dn", Meta::Schemas),
            ("\\c telegraf", Meta::Schema("telegraf".into())),
            ("\\timing off", Meta::Timing(Some(false))),
            ("\\format csv", Meta::Format(Some(OutputFormat::Csv))),
            ("\\x", Meta::Expanded(None)),
            (" \\q ", Meta::Quit),
            ("\\?", Meta::Help),
            ("\\i 'a b.sql'", Meta::Include("a b.sql".into())),
        ] {
            assert_eq!(parse(line), Some(expected), "{line}");
        }
        assert!(matches!(parse("\\foo"), Some(Meta::Unknown(_))));
        assert!(matches!(parse("\\format xml"), Some(Meta::Unknown(_))));
        assert_eq!(parse("select 1;"), None);
    }

    #[test]
    fn only_names_are_described() {
        let statement = describe_statement("s.\"My T\"");
        assert_eq!(statement.as_deref(), Some("DESCRIBE s.\"My T\""));
        assert_eq!(describe_statement("t; DROP TABLE t"), None);
        assert!(tables_query("it's", false).contains("'it''s'"));
    }
}
