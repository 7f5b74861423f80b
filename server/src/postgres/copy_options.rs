//! The options of a `COPY` over the connection, in both spellings: `(FORMAT csv, HEADER)` and
//! `WITH CSV HEADER`. One that is not known is refused: it was meant to do something.

use pgwire::error::PgWireError;

use super::{errors, lexer};
use crate::nearest::nearest;

/// Options of the spelling in parentheses, as PostgreSQL 16 has them.
const KNOWN: &[&str] = &[
    "default",
    "delimiter",
    "encoding",
    "escape",
    "force_not_null",
    "force_null",
    "force_quote",
    "format",
    "freeze",
    "header",
    "null",
    "quote",
];

/// Words of the older spelling.
const OLD_WORDS: &[&str] = &[
    "binary",
    "csv",
    "delimiter",
    "delimiters",
    "encoding",
    "escape",
    "force",
    "freeze",
    "header",
    "null",
    "quote",
    "where",
];

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Fields between tabs, backslash escapes, `\N` for NULL.
    Text,
    /// Fields between commas, quotes where needed, nothing for NULL.
    Csv,
}

/// A parsed `COPY` over the connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    /// The table as written, or a query in parentheses.
    pub source: String,
    /// The column list as written, with its parentheses; empty: all columns.
    pub columns: String,
    /// How rows are written.
    pub format: Format,
    /// Why it is not begun.
    pub refused: Option<Refused>,
    pub(super) delimiter: u8,
    pub(super) null: String,
    pub(super) quote: u8,
    pub(super) escape: u8,
    pub(super) header: bool,
    /// Whether the header line must name the columns in their order.
    pub(super) header_match: bool,
    /// Columns whose values are always quoted; an empty list: all.
    pub(super) force_quote: Option<Vec<String>>,
}

/// Why a `COPY` is not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// PostgreSQL has it.
    Unsupported(String),
    /// PostgreSQL has no such thing.
    Invalid {
        sqlstate: &'static str,
        message: String,
        hint: Option<String>,
    },
}

impl Refused {
    fn invalid(sqlstate: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid {
            sqlstate,
            message: message.into(),
            hint: None,
        }
    }

    fn syntax(message: impl Into<String>) -> Self {
        Self::invalid("42601", message)
    }

    fn unknown(name: &str, known: &[&str]) -> Self {
        Self::Invalid {
            sqlstate: "42601",
            message: format!("option {name:?} not recognized"),
            hint: Some(match nearest(&name.to_lowercase(), known.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("COPY knows {}", known.join(", ")),
            }),
        }
    }

    /// As it is told to the client.
    #[must_use]
    pub fn error(&self) -> PgWireError {
        match self {
            Self::Unsupported(what) => errors::unsupported(what),
            Self::Invalid {
                sqlstate,
                message,
                hint,
            } => {
                let mut info = errors::info("ERROR", sqlstate, message.clone());
                info.hint.clone_from(hint);
                PgWireError::UserError(Box::new(info))
            }
        }
    }
}

/// What stands after `FROM STDIN` or `TO STDOUT`; what is not said stays open.
#[derive(Default)]
struct Said {
    csv: bool,
    delimiter: Option<u8>,
    null: Option<String>,
    quote: Option<u8>,
    escape: Option<u8>,
    header: Option<Header>,
    force_quote: Option<Vec<String>>,
    /// Names of the options that were there.
    seen: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Header {
    No,
    Yes,
    Match,
}

/// Reads the words after `FROM STDIN` or `TO STDOUT` into the copy.
///
/// # Errors
/// [`Refused`].
pub fn read(copy: &mut Copy, words: &[String], incoming: bool) -> Result<(), Refused> {
    let mut said = Said::default();
    let words = match words {
        [with, rest @ ..] if with == "with" => rest,
        all => all,
    };
    match words {
        [open, rest @ ..] if open == "(" => {
            let end = listed(&mut said, rest, incoming)?;
            after(&rest[end..])?;
        }
        all => older(&mut said, all)?,
    }
    said.put(copy, incoming)
}

/// Options in parentheses; where the words after them begin.
fn listed(said: &mut Said, words: &[String], incoming: bool) -> Result<usize, Refused> {
    let mut at = 0;
    loop {
        let Some(name) = words.get(at).filter(|w| is_name(w)) else {
            return Err(Refused::syntax("an option of COPY is missing its name"));
        };
        let from = at + 1;
        let mut depth = 0_usize;
        at = from;
        loop {
            match words.get(at).map(String::as_str) {
                None => return Err(Refused::syntax("the options of COPY are not closed")),
                Some("," | ")") if depth == 0 => break,
                Some("(") => depth += 1,
                Some(")") => depth -= 1,
                Some(_) => {}
            }
            at += 1;
        }
        said.option(&lexer::value_of(name), &words[from..at], incoming)?;
        at += 1;
        if words[at - 1] == ")" {
            return Ok(at);
        }
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '"')
}

/// What may follow the list.
fn after(words: &[String]) -> Result<(), Refused> {
    match words.first().map(String::as_str) {
        None => Ok(()),
        Some("where") => Err(Refused::Unsupported("COPY with WHERE".into())),
        Some(word) => Err(Refused::syntax(format!("syntax error at or near {word:?}"))),
    }
}

/// Options without parentheses, one after another, values after an optional `AS`.
fn older(said: &mut Said, words: &[String]) -> Result<(), Refused> {
    let mut rest = words;
    while let [word, more @ ..] = rest {
        rest = more;
        let takes_value = matches!(
            word.as_str(),
            "delimiter" | "delimiters" | "null" | "quote" | "escape" | "encoding"
        );
        if takes_value {
            rest = match rest {
                [word, more @ ..] if word == "as" => more,
                all => all,
            };
            let name = if word == "delimiters" {
                "delimiter"
            } else {
                word
            };
            let Some((value, more)) = rest.split_first() else {
                return Err(Refused::syntax(format!("COPY {name} needs a value")));
            };
            said.option(name, std::slice::from_ref(value), true)?;
            rest = more;
            continue;
        }
        match word.as_str() {
            "csv" | "binary" => said.option("format", std::slice::from_ref(word), true)?,
            "header" | "freeze" => said.option(word, &[], true)?,
            "where" => return Err(Refused::Unsupported("COPY with WHERE".into())),
            "force" if rest.first().is_some_and(|w| w == "quote") => {
                // A list without parentheses ends where a word does not follow a comma.
                let list = &rest[1..];
                let mut end = usize::from(!list.is_empty());
                while list.get(end).is_some_and(|w| w == ",") {
                    end += 2;
                }
                let end = end.min(list.len());
                said.option("force_quote", &list[..end], false)?;
                rest = &list[end..];
            }
            "force" => return Err(Refused::Unsupported("COPY with FORCE".into())),
            other => return Err(Refused::unknown(other, OLD_WORDS)),
        }
    }
    Ok(())
}

impl Said {
    fn option(&mut self, name: &str, values: &[String], incoming: bool) -> Result<(), Refused> {
        if self.seen.iter().any(|seen| seen == name) {
            return Err(Refused::syntax("conflicting or redundant options"));
        }
        self.seen.push(name.to_owned());
        let value = || match values {
            [value] => Ok(text_of(value)),
            _ => Err(Refused::syntax(format!("COPY {name} needs one value"))),
        };
        let byte = || match value()?.as_bytes() {
            [byte] => Ok(*byte),
            _ => Err(Refused::invalid(
                "0A000",
                format!("COPY {name} must be a single one-byte character"),
            )),
        };
        let flag = || match values {
            [] => Ok(true),
            _ => match value()?.to_lowercase().as_str() {
                "true" | "on" | "1" => Ok(true),
                "false" | "off" | "0" => Ok(false),
                _ => Err(Refused::syntax(format!("{name} requires a Boolean value"))),
            },
        };
        match name {
            "format" => match value()?.to_lowercase().as_str() {
                "csv" => self.csv = true,
                "text" => {}
                "binary" => return Err(Refused::Unsupported("COPY in binary format".into())),
                other => {
                    return Err(Refused::Invalid {
                        sqlstate: "22023",
                        message: format!("COPY format {other:?} not recognized"),
                        hint: Some("COPY knows the formats text and csv".into()),
                    });
                }
            },
            "delimiter" => self.delimiter = Some(byte()?),
            "quote" => self.quote = Some(byte()?),
            "escape" => self.escape = Some(byte()?),
            "null" => self.null = Some(value()?),
            "header" => {
                let is_match = !values.is_empty() && value()?.eq_ignore_ascii_case("match");
                self.header = Some(match is_match {
                    true if incoming => Header::Match,
                    true => return Err(Refused::syntax("HEADER match is for COPY FROM only")),
                    false if flag()? => Header::Yes,
                    false => Header::No,
                });
            }
            "encoding" => {
                let encoding = value()?;
                if !matches!(encoding.to_lowercase().as_str(), "utf8" | "utf-8") {
                    return Err(Refused::Unsupported(format!(
                        "COPY in encoding {encoding:?}"
                    )));
                }
            }
            // Rows are as visible and as lasting as others: there is nothing to gain here.
            "freeze" => {
                flag()?;
            }
            "force_quote" => {
                if incoming {
                    return Err(Refused::syntax("COPY force quote is for COPY TO only"));
                }
                let names = values
                    .iter()
                    .filter(|w| !matches!(w.as_str(), "(" | ")" | ","));
                self.force_quote = Some(match values {
                    [all] if all == "*" => Vec::new(),
                    _ => names.map(|w| lexer::value_of(w)).collect(),
                });
            }
            // Each would change what is stored.
            "default" | "force_not_null" | "force_null" | "log_verbosity" | "on_error"
            | "reject_limit" => {
                let what = format!("COPY with {}", name.to_uppercase());
                return Err(Refused::Unsupported(what));
            }
            other => return Err(Refused::unknown(other, KNOWN)),
        }
        Ok(())
    }

    fn put(self, copy: &mut Copy, incoming: bool) -> Result<(), Refused> {
        if self.csv {
            copy.format = Format::Csv;
            copy.delimiter = b',';
            copy.null = String::new();
        } else {
            for (name, is_there) in [
                ("quote", self.quote.is_some()),
                ("escape", self.escape.is_some()),
                ("force quote", self.force_quote.is_some()),
            ] {
                if is_there {
                    let why = format!("COPY {name} available only in CSV mode");
                    return Err(Refused::invalid("0A000", why));
                }
            }
        }
        copy.delimiter = self.delimiter.unwrap_or(copy.delimiter);
        copy.null = self.null.unwrap_or(std::mem::take(&mut copy.null));
        copy.quote = self.quote.unwrap_or(copy.quote);
        copy.escape = self.escape.unwrap_or(copy.quote);
        copy.header = self.header.is_some_and(|header| header != Header::No);
        copy.header_match = incoming && self.header == Some(Header::Match);
        copy.force_quote = self.force_quote;
        if matches!(copy.delimiter, b'\n' | b'\r') {
            return Err(Refused::invalid(
                "22023",
                "COPY delimiter cannot be newline or carriage return",
            ));
        }
        if copy.format == Format::Csv && copy.delimiter == copy.quote {
            let why = "COPY delimiter and quote must be different";
            return Err(Refused::invalid("22023", why));
        }
        Ok(())
    }
}

/// The value of a word: quotes off; of `E'…'` escapes undone.
fn text_of(word: &str) -> String {
    match word.strip_prefix(['e', 'E']) {
        Some(quoted) if quoted.starts_with('\'') => unescaped(quoted),
        _ => lexer::value_of(word),
    }
}

fn unescaped(quoted: &str) -> String {
    lexer::value_of(quoted)
        .replace("\\t", "\t")
        .replace("\\n", "\n")
        .replace("\\r", "\r")
        .replace("\\\\", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(sql: &str) -> Copy {
        Copy::parse(sql).expect("a COPY").0
    }

    fn invalid(sql: &str) -> (String, String) {
        match parsed(sql).refused {
            Some(Refused::Invalid { message, hint, .. }) => (message, hint.unwrap_or_default()),
            other => panic!("{sql}: {other:?}"),
        }
    }

    #[test]
    fn both_spellings_of_options_are_read() {
        for sql in [
            "COPY t TO STDOUT (FORMAT csv, HEADER true, DELIMITER E'\\t', NULL 'x', QUOTE '\"', FORCE_QUOTE (a, \"B\"))",
            "COPY t TO STDOUT WITH CSV HEADER DELIMITER AS E'\\t' NULL 'x' QUOTE AS '\"' FORCE QUOTE a, \"B\"",
        ] {
            let copy = parsed(sql);
            assert_eq!(copy.refused, None, "{sql}");
            assert_eq!(
                (copy.format, copy.header, copy.delimiter, copy.null.as_str()),
                (Format::Csv, true, b'\t', "x"),
                "{sql}"
            );
            let forced = Some(vec!["a".to_owned(), "B".to_owned()]);
            assert_eq!(copy.force_quote, forced, "{sql}");
        }
        let all = parsed("COPY t TO STDOUT CSV FORCE QUOTE * HEADER");
        assert_eq!((all.force_quote, all.header), (Some(Vec::new()), true));
        assert!(!parsed("COPY t FROM STDIN (FORMAT text, HEADER off, FREEZE)").header);
    }

    #[test]
    fn options_that_are_not_known_are_refused_with_the_nearest() {
        for (options, message, hint) in [
            ("(FROMAT csv)", "option \"fromat\"", "\"format\""),
            ("(FORMAT csv, HAEDER)", "option \"haeder\"", "\"header\""),
            (
                "(FORMAT csv, DELIMTER ';')",
                "\"delimter\"",
                "\"delimiter\"",
            ),
            ("(OIDS)", "option \"oids\"", "COPY knows default, delimiter"),
            ("CSV HEDER", "option \"heder\"", "\"header\""),
            ("CVS", "option \"cvs\"", "COPY knows binary, csv"),
            ("(FORMAT xml)", "format \"xml\"", "text and csv"),
            ("(HEADER maybe)", "requires a Boolean", ""),
            ("(DELIMITER ';;')", "single one-byte", ""),
            ("(QUOTE 'x')", "only in CSV mode", ""),
            ("(FORMAT csv, FORMAT csv)", "redundant", ""),
            ("(FORMAT csv, DELIMITER '\"')", "must be different", ""),
            ("(FORMAT csv", "not closed", ""),
            ("(FORMAT csv) HEADER", "near \"header\"", ""),
        ] {
            let said = invalid(&format!("COPY t FROM STDIN {options}"));
            assert!(
                said.0.contains(message) && said.1.contains(hint),
                "{options}: {said:?}"
            );
        }
    }

    #[test]
    fn options_that_would_change_what_is_stored_are_refused_by_name() {
        let unsupported = |sql: &str| match parsed(sql).refused {
            None => None,
            Some(Refused::Unsupported(what)) => Some(what),
            other => panic!("{sql}: {other:?}"),
        };
        assert_eq!(
            unsupported("COPY t FROM STDIN (FORMAT csv, ENCODING 'utf-8', FREEZE)"),
            None
        );
        for (sql, what) in [
            ("COPY t FROM STDIN (FORMAT binary)", "COPY in binary format"),
            (
                "COPY t FROM STDIN (ENCODING 'LATIN1')",
                "COPY in encoding \"LATIN1\"",
            ),
            ("COPY t FROM STDIN (ON_ERROR ignore)", "COPY with ON_ERROR"),
            ("COPY t FROM STDIN CSV FORCE NOT NULL a", "COPY with FORCE"),
            ("COPY t FROM STDIN WHERE a > 1", "COPY with WHERE"),
        ] {
            assert_eq!(unsupported(sql).as_deref(), Some(what), "{sql}");
        }
    }
}
