//! `COPY … FROM STDIN` and `COPY … TO STDOUT`: the statement, and rows out as text or CSV.
//! `copy_in` has the rows in.

use std::ops::Range;

use pgwire::messages::data::DataRow;

use super::copy_options;
pub use super::copy_options::{Copy, Format};
use super::lexer;

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
            refused: None,
            delimiter: b'\t',
            null: "\\N".into(),
            quote: b'"',
            escape: b'"',
            header: false,
            header_match: false,
            force_quote: None,
        };
        copy.refused = copy_options::read(&mut copy, &words[direction + 2..], incoming).err();
        Some((copy, incoming))
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

    /// Which of the columns are always quoted; `None`: none is.
    #[must_use]
    pub fn forced<'a>(&self, names: impl Iterator<Item = &'a str>) -> Option<Vec<bool>> {
        let forced = self.force_quote.as_ref()?;
        let is = |name: &str| forced.is_empty() || forced.iter().any(|f| f == name);
        Some(names.map(is).collect())
    }

    /// One row of text-format fields as a line. `forced`: see [`Self::forced`].
    #[must_use]
    pub fn line(&self, row: &DataRow, forced: Option<&[bool]>) -> Vec<u8> {
        let mut out = Vec::with_capacity(row.data.len() + 8);
        let mut rest = &row.data[..];
        let mut first = true;
        let mut columns = forced.unwrap_or(&[]).iter();
        while let Some((len, tail)) = rest.split_first_chunk::<4>() {
            if !std::mem::take(&mut first) {
                out.push(self.delimiter);
            }
            let forced = columns.next().is_some_and(|forced| *forced);
            let Ok(len) = usize::try_from(i32::from_be_bytes(*len)) else {
                out.extend_from_slice(self.null.as_bytes());
                rest = tail;
                continue;
            };
            let (field, tail) = tail.split_at(len.min(tail.len()));
            self.field(field, forced, &mut out);
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
            self.field(name.as_bytes(), false, &mut out);
        }
        out.push(b'\n');
        Some(out)
    }

    fn field(&self, field: &[u8], forced: bool, out: &mut Vec<u8>) {
        if self.format == Format::Csv {
            let special = [self.delimiter, self.quote, b'\n', b'\r'];
            if forced || field.iter().any(|b| special.contains(b)) || field == self.null.as_bytes()
            {
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
}
