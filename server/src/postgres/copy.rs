//! `COPY … FROM STDIN` and `COPY … TO STDOUT`: the statement, and rows out as text or CSV.
//! `copy_in` has the rows in.

use std::ops::Range;

use pgwire::messages::data::DataRow;

use super::lexer;

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
    /// What it asks for that is not built.
    pub unsupported: Option<String>,
    pub(super) delimiter: u8,
    pub(super) null: String,
    pub(super) quote: u8,
    pub(super) escape: u8,
    pub(super) header: bool,
    /// Whether the header line must name the columns in their order.
    pub(super) header_match: bool,
}

impl Copy {
    /// Reads a `COPY` statement; `None`: it is not one over the connection. `true`: FROM STDIN.
    #[must_use]
    pub fn parse(sql: &str) -> Option<(Self, bool)> {
        let tokens: Vec<_> = lexer::tokens(sql)
            .filter(lexer::Token::is_significant)
            .collect();
        let words = lexer::words(sql, usize::MAX);
        let mut depth = 0;
        let direction = words.iter().enumerate().skip(1).position(|(_, w)| {
            match w.as_str() {
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            depth == 0 && (w == "from" || w == "to")
        })? + 1;
        let incoming = words[direction] == "from";
        let end = words.get(direction + 1)?.as_str();
        if end != if incoming { "stdin" } else { "stdout" } {
            return None;
        }
        let text = |range: Range<usize>| match (tokens.get(range.start), tokens.get(range.end - 1))
        {
            (Some(a), Some(b)) if !range.is_empty() => sql[a.range.start..b.range.end].to_owned(),
            _ => String::new(),
        };
        let columns_at = if words[1] == "(" {
            direction
        } else {
            (2..direction)
                .find(|i| words[*i] == "(")
                .unwrap_or(direction)
        };
        let mut copy = Self {
            source: text(1..columns_at),
            columns: if columns_at < direction {
                text(columns_at..direction)
            } else {
                String::new()
            },
            format: Format::Text,
            unsupported: None,
            delimiter: b'\t',
            null: "\\N".into(),
            quote: b'"',
            escape: b'"',
            header: false,
            header_match: false,
        };
        copy.options(&words[direction + 2..]);
        Some((copy, incoming))
    }

    /// Both spellings of options: `(FORMAT csv, HEADER true)` and `WITH CSV HEADER`.
    fn options(&mut self, words: &[String]) {
        let has = |w: &str| {
            words
                .iter()
                .any(|x| x.eq_ignore_ascii_case(w) || lexer::value_of(x) == w)
        };
        if has("csv") {
            self.format = Format::Csv;
            self.delimiter = b',';
            self.null = String::new();
        } else if has("binary") {
            self.unsupported = Some("COPY in binary format".into());
        }
        let byte = |text: &str| {
            lexer::value_of(text.trim_start_matches(['e', 'E']))
                .replace("\\t", "\t")
                .bytes()
                .next()
        };
        let mut escape = None;
        for (i, word) in words.iter().enumerate() {
            let value = words[i + 1..]
                .iter()
                .find(|w| !matches!(w.as_str(), "as" | "="));
            let value = value.map_or("", String::as_str);
            match word.as_str() {
                "delimiter" => self.delimiter = byte(value).unwrap_or(self.delimiter),
                "quote" => self.quote = byte(value).unwrap_or(self.quote),
                "escape" => escape = byte(value),
                "null" => self.null = lexer::value_of(value),
                "header" => {
                    let value = lexer::value_of(value);
                    self.header = !matches!(value.as_str(), "false" | "off" | "0");
                    self.header_match = value == "match";
                }
                "encoding" if !is_utf8(&lexer::value_of(value)) => {
                    self.unsupported = Some(format!("COPY in encoding {value}"));
                }
                // Each would change what is stored.
                "force" if value == "quote" => {}
                "on_error" | "force_null" | "force_not_null" | "force" | "default" | "where" => {
                    self.unsupported = Some(format!("COPY with {}", word.to_uppercase()));
                }
                _ => {}
            }
        }
        self.escape = escape.unwrap_or(self.quote);
    }

    /// The query whose rows `COPY … TO STDOUT` sends.
    #[must_use]
    pub fn query(&self) -> String {
        if self.source.starts_with('(') {
            return self.source[1..self.source.len() - 1].to_owned();
        }
        let columns = match self.columns.as_str() {
            "" => "*",
            list => &list[1..list.len() - 1],
        };
        format!("SELECT {columns} FROM {}", self.source)
    }

    /// A query that gives the columns of `COPY … FROM STDIN` and no rows.
    #[must_use]
    pub fn shape_query(&self) -> String {
        format!("{} LIMIT 0", self.query())
    }

    /// One row of text-format fields as a line.
    #[must_use]
    pub fn line(&self, row: &DataRow) -> Vec<u8> {
        let mut out = Vec::with_capacity(row.data.len() + 8);
        let mut rest = &row.data[..];
        let mut first = true;
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            if !std::mem::take(&mut first) {
                out.push(self.delimiter);
            }
            let Ok(len) = usize::try_from(i32::from_be_bytes(*len)) else {
                out.extend_from_slice(self.null.as_bytes());
                rest = tail;
                continue;
            };
            let (field, tail) = tail.split_at(len.min(tail.len()));
            self.field(field, &mut out);
            rest = tail;
        }
        out.push(b'\n');
        out
    }

    /// The header line of a CSV, if one is asked for.
    #[must_use]
    pub fn header_line<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<Vec<u8>> {
        if !self.header {
            return None;
        }
        let mut out = Vec::new();
        for (i, name) in names.enumerate() {
            if i > 0 {
                out.push(self.delimiter);
            }
            self.field(name.as_bytes(), &mut out);
        }
        out.push(b'\n');
        Some(out)
    }

    fn field(&self, field: &[u8], out: &mut Vec<u8>) {
        if self.format == Format::Csv {
            let special = [self.delimiter, self.quote, b'\n', b'\r'];
            if field.iter().any(|b| special.contains(b)) || field == self.null.as_bytes() {
                out.push(self.quote);
                for byte in field {
                    if *byte == self.quote || *byte == self.escape {
                        out.push(self.escape);
                    }
                    out.push(*byte);
                }
                out.push(self.quote);
            } else {
                out.extend_from_slice(field);
            }
            return;
        }
        for byte in field {
            match byte {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                other if *other == self.delimiter => out.extend_from_slice(&[b'\\', *other]),
                other => out.push(*other),
            }
        }
    }
}

fn is_utf8(encoding: &str) -> bool {
    matches!(encoding.to_lowercase().as_str(), "utf8" | "utf-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_over_the_connection_is_told_from_copy_of_files() {
        let (copy, incoming) = Copy::parse(
            "COPY s.\"T x\" (a, \"b\") FROM STDIN WITH (FORMAT csv, HEADER, DELIMITER ';')",
        )
        .unwrap();
        assert!(incoming);
        assert_eq!(
            (copy.source.as_str(), copy.columns.as_str()),
            ("s.\"T x\"", "(a, \"b\")")
        );
        assert_eq!(
            (copy.format, copy.header, copy.delimiter),
            (Format::Csv, true, b';')
        );
        assert_eq!(copy.query(), "SELECT a, \"b\" FROM s.\"T x\"");
        let (copy, incoming) = Copy::parse("copy (select a from t) to stdout csv").unwrap();
        assert!(!incoming);
        assert_eq!(copy.query(), "select a from t");
        assert!(Copy::parse("COPY t FROM 'file.csv'").is_none());
        assert!(Copy::parse("COPY").is_none());
    }

    #[test]
    fn options_that_would_change_what_is_stored_are_refused_by_name() {
        let refused = |sql: &str| Copy::parse(sql).expect("a COPY").0.unsupported;
        assert_eq!(
            refused("COPY t FROM STDIN (FORMAT csv, ENCODING 'utf-8', FREEZE)"),
            None
        );
        for (sql, what) in [
            ("COPY t FROM STDIN (FORMAT binary)", "COPY in binary format"),
            (
                "COPY t FROM STDIN (ENCODING 'LATIN1')",
                "COPY in encoding 'LATIN1'",
            ),
            ("COPY t FROM STDIN (ON_ERROR ignore)", "COPY with ON_ERROR"),
            ("COPY t FROM STDIN CSV FORCE NOT NULL a", "COPY with FORCE"),
            ("COPY t FROM STDIN WHERE a > 1", "COPY with WHERE"),
        ] {
            assert_eq!(refused(sql).as_deref(), Some(what), "{sql}");
        }
    }
}
