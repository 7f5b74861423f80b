//! `COPY … FROM STDIN` and `COPY … TO STDOUT`: rows as text or CSV over the connection.
//!
//! Incoming rows are inserted a batch at a time while they arrive, so memory stays bounded and a
//! failed copy keeps the batches before the bad line; the error says how many rows those are.

use std::ops::Range;

use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::data::DataRow;
use shoal_query::{Output, Session};

use super::{errors, lexer};

/// Rows inserted at a time.
const BATCH_ROWS_MAX: usize = 1_000;
/// Bytes of literals inserted at a time.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// The longest row.
const ROW_BYTES_MAX: usize = 16 << 20;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Fields between tabs, backslash escapes, `\N` for NULL.
    Text,
    /// Fields between commas, quotes where needed, nothing for NULL.
    Csv,
    /// PostgreSQL's binary form; refused.
    Binary,
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
    delimiter: u8,
    null: String,
    quote: u8,
    escape: u8,
    header: bool,
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
            delimiter: b'\t',
            null: "\\N".into(),
            quote: b'"',
            escape: b'"',
            header: false,
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
            self.format = Format::Binary;
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
                    self.header = !matches!(lexer::value_of(value).as_str(), "false" | "off" | "0");
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

/// A `COPY … FROM STDIN` under way.
pub struct CopyIn {
    copy: Copy,
    width: usize,
    unread: Vec<u8>,
    /// How much of `unread` was searched for a line's end, and whether inside quotes.
    searched: (usize, bool),
    literals: String,
    batched: usize,
    inserted: u64,
    line: u64,
    ended: bool,
}

impl CopyIn {
    /// `width`: the number of columns.
    pub fn new(copy: Copy, width: usize) -> Self {
        Self {
            copy,
            width,
            unread: Vec::new(),
            searched: (0, false),
            literals: String::new(),
            batched: 0,
            inserted: 0,
            line: 0,
            ended: false,
        }
    }

    /// Takes what the client sent, inserting batches as they fill.
    ///
    /// # Errors
    /// A line that is no row of the table, or a failed insert.
    pub async fn push(&mut self, data: &[u8], session: &Session) -> PgWireResult<()> {
        self.unread.extend_from_slice(data);
        while let Some(line) = self.next_line() {
            self.row(&line)?;
            if self.batched >= BATCH_ROWS_MAX || self.literals.len() >= BATCH_BYTES_MAX {
                self.insert(session).await?;
            }
        }
        if self.unread.len() > ROW_BYTES_MAX {
            return Err(self.wrong("54000", "a row is longer than 16 MiB"));
        }
        Ok(())
    }

    /// Inserts what is left; the number of rows in all.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn finish(&mut self, session: &Session) -> PgWireResult<u64> {
        let last = std::mem::take(&mut self.unread);
        if !last.is_empty() {
            self.row(&last)?;
        }
        self.insert(session).await?;
        Ok(self.inserted)
    }

    fn wrong(&self, sqlstate: &str, message: impl std::fmt::Display) -> PgWireError {
        let kept = match self.inserted {
            0 => String::new(),
            rows => format!(" ({rows} rows before it were stored)"),
        };
        let mut info = errors::info("ERROR", sqlstate, format!("{message}{kept}"));
        info.where_context = Some(format!("COPY {}, line {}", self.copy.source, self.line));
        PgWireError::UserError(Box::new(info))
    }

    /// The next whole line, without its end.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        let (mut at, mut quoted) = self.searched;
        let csv = self.copy.format == Format::Csv;
        while at < self.unread.len() {
            match self.unread[at] {
                b if csv && b == self.copy.quote => quoted = !quoted,
                b'\\' if !csv => {
                    if at + 1 == self.unread.len() {
                        break;
                    }
                    at += 1;
                }
                b'\n' if !quoted => {
                    let mut line: Vec<u8> = self.unread.drain(..=at).collect();
                    line.pop();
                    if line.last() == Some(&b'\r') {
                        line.pop();
                    }
                    self.searched = (0, false);
                    return Some(line);
                }
                _ => {}
            }
            at += 1;
        }
        self.searched = (at, quoted);
        None
    }

    /// Adds one line's row to the batch.
    fn row(&mut self, line: &[u8]) -> PgWireResult<()> {
        self.line += 1;
        if self.ended || line == b"\\." {
            self.ended = true;
            return Ok(());
        }
        if self.copy.header && self.line == 1 {
            return Ok(());
        }
        let fields = match self.copy.format {
            Format::Csv => csv_fields(line, &self.copy),
            _ => text_fields(line, &self.copy),
        };
        if fields.len() != self.width {
            let (has, wants) = (fields.len(), self.width);
            return Err(self.wrong(
                "22P04",
                format!("the row has {has} columns, expected {wants}"),
            ));
        }
        self.literals
            .push_str(if self.batched == 0 { "(" } else { ",(" });
        for (i, field) in fields.into_iter().enumerate() {
            if i > 0 {
                self.literals.push(',');
            }
            let Some(field) = field else {
                self.literals.push_str("NULL");
                continue;
            };
            let Ok(field) = String::from_utf8(field) else {
                return Err(self.wrong("22021", "invalid byte sequence for encoding \"UTF8\""));
            };
            self.literals.push('\'');
            self.literals.push_str(&field.replace('\'', "''"));
            self.literals.push('\'');
        }
        self.literals.push(')');
        self.batched += 1;
        Ok(())
    }

    async fn insert(&mut self, session: &Session) -> PgWireResult<()> {
        if self.batched == 0 {
            return Ok(());
        }
        let sql = format!(
            "INSERT INTO {} {} VALUES {}",
            self.copy.source, self.copy.columns, self.literals
        );
        self.literals.clear();
        self.batched = 0;
        match session.execute(&sql, &[]).await {
            Ok(Output::Affected { rows, .. }) => self.inserted += rows,
            Ok(Output::Rows { .. }) => {}
            Err(failed) => return Err(self.wrong(failed.sqlstate, failed.message)),
        }
        Ok(())
    }
}

type Fields = Vec<Option<Vec<u8>>>;

fn csv_fields(line: &[u8], copy: &Copy) -> Fields {
    let mut fields = Fields::new();
    let (mut field, mut quoted, mut was_quoted) = (Vec::new(), false, false);
    let mut finish = |field: &mut Vec<u8>, was_quoted: &mut bool| {
        let value = std::mem::take(field);
        let null = !std::mem::take(was_quoted) && value == copy.null.as_bytes();
        fields.push((!null).then_some(value));
    };
    let mut at = 0;
    while at < line.len() {
        let (byte, next) = (line[at], line.get(at + 1));
        if quoted
            && byte == copy.escape
            && next.is_some_and(|n| *n == copy.quote || *n == copy.escape)
        {
            field.push(line[at + 1]);
            at += 1;
        } else if byte == copy.quote {
            quoted = !quoted;
            was_quoted = true;
        } else if byte == copy.delimiter && !quoted {
            finish(&mut field, &mut was_quoted);
        } else {
            field.push(byte);
        }
        at += 1;
    }
    finish(&mut field, &mut was_quoted);
    fields
}

fn text_fields(line: &[u8], copy: &Copy) -> Fields {
    let mut fields = Fields::new();
    let (mut start, mut at) = (0, 0);
    while at <= line.len() {
        if at == line.len() || line[at] == copy.delimiter {
            let raw = &line[start..at];
            fields.push((raw != copy.null.as_bytes()).then(|| unescape(raw)));
            start = at + 1;
        } else if line[at] == b'\\' && at + 1 < line.len() {
            at += 1;
        }
        at += 1;
    }
    fields
}

/// Undoes the backslash escapes of the text format.
fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    let run = |bytes: &[u8], radix: u32, most: usize| {
        let digits = bytes
            .iter()
            .take(most)
            .take_while(|b| (**b as char).is_digit(radix))
            .count();
        let value = bytes[..digits].iter().fold(0_u32, |n, b| {
            n * radix + (*b as char).to_digit(radix).unwrap_or(0)
        });
        (value as u8, digits)
    };
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        let (b'\\', Some((escaped, after))) = (*byte, tail.split_first()) else {
            out.push(*byte);
            continue;
        };
        rest = after;
        match escaped {
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'x' if after.first().is_some_and(u8::is_ascii_hexdigit) => {
                let (value, digits) = run(after, 16, 2);
                out.push(value);
                rest = &after[digits..];
            }
            b'0'..=b'7' => {
                let (value, digits) = run(tail, 8, 3);
                out.push(value);
                rest = &tail[digits..];
            }
            other => out.push(*other),
        }
    }
    out
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
    fn fields_come_through_quotes_and_escapes_and_nulls_stay_apart_from_empty_texts() {
        let some = |s: &str| Some(s.as_bytes().to_vec());
        let (csv, _) = Copy::parse("COPY t FROM STDIN CSV").unwrap();
        assert_eq!(
            csv_fields(b"a,,\"\",\"x,\"\"y\"\"\nz\"", &csv),
            [some("a"), None, some(""), some("x,\"y\"\nz")]
        );
        let (text, _) = Copy::parse("COPY t FROM STDIN").unwrap();
        assert_eq!(
            text_fields(b"a\t\\N\t\tx\\ty\\\\\\101\\x42", &text),
            [some("a"), None, some(""), some("x\ty\\AB")]
        );
    }

    #[test]
    fn lines_end_outside_quotes_only_whatever_the_messages_they_come_in() {
        let (csv, _) = Copy::parse("COPY t FROM STDIN CSV").unwrap();
        let mut copy = CopyIn::new(csv, 2);
        let mut lines = Vec::new();
        for byte in b"1,\"a\nb\"\r\n2,c\n3," {
            copy.unread.push(*byte);
            lines.extend(copy.next_line());
        }
        assert_eq!(lines, [b"1,\"a\nb\"".to_vec(), b"2,c".to_vec()]);
        assert_eq!(copy.unread, b"3,");
    }
}
