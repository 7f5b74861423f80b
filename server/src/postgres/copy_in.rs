//! The rows of a `COPY … FROM STDIN`: from bytes to lines, to columns, to the table.
//!
//! Lines are read into columns as they arrive. A full batch is handed to the engine as one write,
//! and the next one is read while that is on its way; writes follow one another, so that of two
//! rows of one key the later one wins. At most two batches are in memory, whatever the size of
//! the copy. A failed copy keeps the batches before the one that failed, and the error says how
//! many rows those are.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_cast::CastOptions;
use arrow_schema::{Field, Schema};
use datafusion::arrow::compute::concat_batches;
use futures::TryStreamExt;
use pgwire::error::{PgWireError, PgWireResult};
use shoal_engine::{Database, TableHandle, WriteError, WriteOptions};
use shoal_query::{Output, QueryError, Session};
use shoal_rows::block_from_batch;
use shoal_types::{Column, ColumnDefault, ColumnId, TableSchema};
use tokio::task::JoinHandle;

use super::column_text::{ColumnText, Wrong};
use super::copy::{Copy, Format};
use super::{errors, lexer};

/// Rows of a batch: the atomic unit.
const BATCH_ROWS_MAX: usize = 65_536;
/// Bytes of text of a batch.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// The longest row.
const ROW_BYTES_MAX: usize = 16 << 20;
/// How often a batch is built again because the table was altered meanwhile.
const REBUILDS_MAX: usize = 8;

/// Where the rows go.
struct Target {
    database: Arc<Database>,
    handle: TableHandle,
    /// The columns that lines hold, then those that take their defaults.
    columns: Vec<Column>,
    /// Expressions of the latter.
    defaults: Vec<String>,
}

impl Target {
    async fn find(copy: &Copy, session: &Session) -> PgWireResult<Self> {
        let names = |text: &str| -> Vec<String> {
            let words = lexer::words(text, usize::MAX);
            let names = words
                .iter()
                .filter(|w| !matches!(w.as_str(), "." | "," | "(" | ")"));
            names.map(|w| lexer::value_of(w)).collect()
        };
        let named = names(&copy.columns);
        let twice = |(at, name): (usize, &String)| named[..at].contains(name);
        if let Some((_, name)) = named.iter().enumerate().find(|one| twice(*one)) {
            let twice = format!("column {name:?} is named twice");
            return Err(errors::error("42701", twice));
        }
        // Planned, never run: it says in the usual words which table or column there is not.
        let shape = session.prepare(&copy.shape_query(), &[]).await;
        shape.map_err(|e| errors::from_query(e, "", 0))?;
        let path = names(&copy.source);
        let schema_name = match path.len() {
            1 => session.schema(),
            n => path[n - 2].clone(),
        };
        let database = Arc::clone(session.engine().database());
        let found = path.last().and_then(|t| database.table(&schema_name, t));
        let handle = found.ok_or_else(|| {
            errors::error("42501", format!("{} cannot be written to", copy.source))
        })?;
        let failed = |e: shoal_engine::EngineError| errors::from_query(e.into(), "", 0);
        let schema = database.table_schema(&handle).map_err(failed)?;
        let mut columns = match named.as_slice() {
            [] => schema.columns.clone(),
            names => columns_named(&schema, names)?,
        };
        let mut defaults = Vec::new();
        for column in &schema.columns {
            if columns.iter().any(|c| c.id == column.id) {
                continue;
            }
            match &column.default {
                Some(ColumnDefault::Sql(sql)) => {
                    columns.push(column.clone());
                    defaults.push(sql.clone());
                }
                None if column.nullable => {}
                None => {
                    let name = &column.name;
                    return Err(errors::error(
                        "23502",
                        format!("column {name:?} is NOT NULL, has no default and is not copied"),
                    ));
                }
            }
        }
        Ok(Self {
            database,
            handle,
            columns,
            defaults,
        })
    }

    /// The number of columns that lines hold.
    fn width(&self) -> usize {
        self.columns.len() - self.defaults.len()
    }
}

fn columns_named(schema: &TableSchema, names: &[String]) -> PgWireResult<Vec<Column>> {
    let column_of = |name: &String| {
        let column = schema.column(name).cloned();
        column.ok_or_else(|| errors::error("42703", format!("there is no column {name:?}")))
    };
    names.iter().map(column_of).collect()
}

/// A `COPY … FROM STDIN` under way.
pub struct CopyIn {
    copy: Copy,
    target: Arc<Target>,
    session: Session,
    /// What came after the last whole line.
    unread: Vec<u8>,
    ends: LineEnds,
    fields: Fields,
    columns: Vec<ColumnText>,
    rows: usize,
    bytes: usize,
    /// The line that the batch begins after, and the last one that was read.
    lines: Range<u64>,
    ended: bool,
    writing: Option<JoinHandle<Result<u64, QueryError>>>,
    /// The lines of the batch that is being written.
    written_lines: Range<u64>,
    stored: u64,
}

impl CopyIn {
    /// Finds the table.
    ///
    /// # Errors
    /// There is no such table or column, or the copy asks for what is not built.
    pub async fn begin(copy: &Copy, session: &Session) -> PgWireResult<Self> {
        if let Some(refused) = &copy.refused {
            return Err(refused.error());
        }
        let target = Target::find(copy, session).await?;
        let zone = session.setting("timezone").ok();
        let width = target.width();
        let columns = target.columns[..width].iter();
        Ok(Self {
            columns: columns
                .map(|c| ColumnText::new(c, zone.as_deref()))
                .collect(),
            target: Arc::new(target),
            session: session.clone(),
            unread: Vec::new(),
            ends: LineEnds::new(copy),
            fields: Fields::default(),
            rows: 0,
            bytes: 0,
            lines: 0..0,
            ended: false,
            writing: None,
            written_lines: 0..0,
            stored: 0,
            copy: copy.clone(),
        })
    }

    /// The number of columns that lines hold.
    pub fn width(&self) -> usize {
        self.target.width()
    }

    /// Takes what the client sent, writing batches as they fill.
    ///
    /// # Errors
    /// A line that is no row of the table, or a failed write. The copy is over.
    pub async fn push(&mut self, data: &[u8]) -> PgWireResult<()> {
        let mut text = std::mem::take(&mut self.unread);
        text.extend_from_slice(data);
        let mut start = 0;
        while let Some(line) = self.ends.next(&text, start) {
            self.line(&text[start..line.end]).await?;
            start = line.next;
            if self.rows >= BATCH_ROWS_MAX || self.bytes >= BATCH_BYTES_MAX {
                self.write().await?;
            }
        }
        text.drain(..start);
        self.unread = text;
        if self.unread.len() > ROW_BYTES_MAX {
            self.lines.end += 1;
            let long = Wrong("54000", "a row is longer than 16 MiB".into());
            return Err(self.refuse(long, None).await);
        }
        Ok(())
    }

    /// Writes what is left; the number of rows in all.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub async fn finish(&mut self) -> PgWireResult<u64> {
        let last = std::mem::take(&mut self.unread);
        if let Some(opened) = self.ends.open_quote().filter(|_| !self.ended) {
            let lines = memchr::memchr_iter(b'\n', &last[..opened]).count() as u64;
            self.lines.end += 1 + lines;
            let open = Wrong("22P04", "unterminated CSV quoted field".into());
            return Err(self.refuse(open, None).await);
        }
        if !last.is_empty() {
            self.line(&last).await?;
        }
        self.write().await?;
        self.settle().await?;
        Ok(self.stored)
    }

    /// Ends the copy because the client says so; how many rows were stored.
    pub async fn abandon(&mut self) -> u64 {
        // A failed write changes nothing for a client that gave up.
        let _ = self.settle().await;
        self.stored
    }

    /// Adds the row of a line.
    async fn line(&mut self, line: &[u8]) -> PgWireResult<()> {
        self.lines.end += 1;
        if self.ended || line == b"\\." {
            self.ended = true;
            return Ok(());
        }
        if self.copy.header && self.lines.end == 1 {
            return match self.header(line) {
                Ok(()) => Ok(()),
                Err(wrong) => Err(self.refuse(wrong, None).await),
            };
        }
        if let Err((wrong, field)) = self.row(line) {
            return Err(self.refuse(wrong, field).await);
        }
        if self.copy.format == Format::Csv {
            // Values may hold line ends.
            self.lines.end += memchr::memchr_iter(b'\n', line).count() as u64;
        }
        self.rows += 1;
        self.bytes += line.len();
        Ok(())
    }

    /// Checks the header line, if the copy asks for that.
    fn header(&mut self, line: &[u8]) -> Result<(), Wrong> {
        if !self.copy.header_match {
            return Ok(());
        }
        self.fields.split(line, &self.copy);
        let names = (0..self.fields.found.len()).map(|at| self.fields.get(at, line));
        let wanted = self.columns.iter().map(|c| Some(c.name.as_bytes()));
        if names.eq(wanted) {
            return Ok(());
        }
        let wanted: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
        let message = format!(
            "the header line does not name the columns {}",
            wanted.join(", ")
        );
        Err(Wrong("22P04", message))
    }

    /// The error says which column it was, if it was one.
    fn row(&mut self, line: &[u8]) -> Result<(), (Wrong, Option<usize>)> {
        self.fields.split(line, &self.copy);
        let (has, wants) = (self.fields.found.len(), self.columns.len());
        if has != wants {
            let message = format!("the row has {has} columns, expected {wants}");
            return Err((Wrong("22P04", message), None));
        }
        for (at, column) in self.columns.iter_mut().enumerate() {
            match self.fields.get(at, line) {
                Some(field) => column.push(field),
                None => column.push_null(),
            }
            .map_err(|wrong| (wrong, Some(at)))?;
        }
        Ok(())
    }

    /// The error of a line, once it is known what was stored before it.
    async fn refuse(&mut self, wrong: Wrong, column: Option<usize>) -> PgWireError {
        let mut place = format!("COPY {}, line {}", self.copy.source, self.lines.end);
        if let Some(column) = column {
            place.push_str(&format!(", column {}", self.columns[column].name));
        }
        if let Err(earlier) = self.settle().await {
            return earlier;
        }
        self.error(wrong.0, &wrong.1, None, place)
    }

    fn error(
        &self,
        sqlstate: &str,
        message: &str,
        hint: Option<String>,
        place: String,
    ) -> PgWireError {
        let kept = match self.stored {
            0 => String::new(),
            rows => format!(" ({rows} rows before it were stored)"),
        };
        let mut info = errors::info("ERROR", sqlstate, format!("{message}{kept}"));
        info.where_context = Some(place);
        info.hint = hint;
        PgWireError::UserError(Box::new(info))
    }

    /// Waits for the batch that is being written.
    async fn settle(&mut self) -> PgWireResult<()> {
        let Some(writing) = self.writing.take() else {
            return Ok(());
        };
        let lines = &self.written_lines;
        let place = format!(
            "COPY {}, lines {} to {}",
            self.copy.source,
            lines.start + 1,
            lines.end
        );
        match writing.await {
            Ok(Ok(rows)) => {
                self.stored += rows;
                Ok(())
            }
            Ok(Err(failed)) => {
                Err(self.error(failed.sqlstate, &failed.message, failed.hint, place))
            }
            Err(died) => {
                let why = format!("the write broke off: {died}");
                Err(self.error("XX000", &why, None, place))
            }
        }
    }

    /// Hands the batch over once the one before is written.
    async fn write(&mut self) -> PgWireResult<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let arrays = self.columns.iter_mut().map(ColumnText::take).collect();
        let rows = std::mem::take(&mut self.rows);
        let lines = self.lines.clone();
        self.lines.start = self.lines.end;
        self.bytes = 0;
        self.settle().await?;
        self.written_lines = lines;
        let batch = Batch {
            target: Arc::clone(&self.target),
            session: self.session.clone(),
            arrays,
            rows,
        };
        self.writing = Some(tokio::spawn(batch.write()));
        Ok(())
    }
}

/// Rows on their way to the table.
struct Batch {
    target: Arc<Target>,
    session: Session,
    /// One for each column that lines hold.
    arrays: Vec<ArrayRef>,
    rows: usize,
}

impl Batch {
    /// Writes the rows; how many.
    async fn write(mut self) -> Result<u64, QueryError> {
        self.add_defaults().await?;
        let Self {
            target,
            arrays,
            rows,
            ..
        } = self;
        let fields = target
            .columns
            .iter()
            .map(|c| Field::new(&c.name, c.column_type.arrow(), true));
        let shape = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(shape, arrays, &options)?;
        let ids: Vec<ColumnId> = target.columns.iter().map(|c| c.id).collect();
        let mut rebuilds = 0;
        loop {
            let schema = target.database.table_schema(&target.handle)?;
            let (batch, ids) = (batch.clone(), ids.clone());
            let built =
                tokio::task::spawn_blocking(move || block_from_batch(&schema, &batch, &ids, false))
                    .await;
            let invalid = |why: String| QueryError::from(WriteError::Invalid(why));
            let block = built
                .map_err(|e| invalid(e.to_string()))?
                .map_err(|e| invalid(e.to_string()))?;
            let options = WriteOptions::default();
            match target.database.write(vec![block], options).await {
                Ok(_) => return Ok(rows as u64),
                Err(WriteError::StaleSchema { .. }) if rebuilds < REBUILDS_MAX => rebuilds += 1,
                Err(failed) => return Err(failed.into()),
            }
        }
    }

    /// Evaluates the defaults of columns that are not copied, once for each row.
    async fn add_defaults(&mut self) -> Result<(), QueryError> {
        if self.target.defaults.is_empty() {
            return Ok(());
        }
        let values: Vec<String> = self
            .target
            .defaults
            .iter()
            .enumerate()
            .map(|(i, sql)| format!("({sql}) AS d{i}"))
            .collect();
        let sql = format!(
            "SELECT {} FROM generate_series(1, {})",
            values.join(", "),
            self.rows
        );
        let Output::Rows { schema, stream, .. } = self.session.execute(&sql, &[]).await? else {
            return Ok(());
        };
        let batches: Vec<RecordBatch> = stream.try_collect().await?;
        let evaluated = concat_batches(&schema, &batches)?;
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let columns = &self.target.columns[self.target.width()..];
        for (array, column) in evaluated.columns().iter().zip(columns) {
            let wanted = column.column_type.arrow();
            self.arrays
                .push(arrow_cast::cast_with_options(array, &wanted, &options)?);
        }
        Ok(())
    }
}

/// Finds where lines end, wherever the messages are cut that they come in.
struct LineEnds {
    csv: bool,
    quote: u8,
    escape: u8,
    /// How much of the open line was searched, and whether that ends inside quotes.
    searched: usize,
    quoted: bool,
    /// Where in the open line the last quote was opened, and where one was closed.
    opened: usize,
    closed: Option<usize>,
}

/// Where a line ends and the next one begins.
#[derive(Debug, PartialEq)]
struct LineEnd {
    end: usize,
    next: usize,
}

impl LineEnds {
    fn new(copy: &Copy) -> Self {
        Self {
            csv: copy.format == Format::Csv,
            quote: copy.quote,
            escape: copy.escape,
            searched: 0,
            quoted: false,
            opened: 0,
            closed: None,
        }
    }

    /// Where, in the line that is not whole yet, a quote was opened that is still open.
    fn open_quote(&self) -> Option<usize> {
        self.quoted.then_some(self.opened)
    }

    /// The end of the line that begins at `start`; `None`: it is not there yet.
    fn next(&mut self, text: &[u8], start: usize) -> Option<LineEnd> {
        let (quote, escape) = if self.csv {
            (self.quote, self.escape)
        } else {
            (b'\\', b'\\')
        };
        let mut at = start + self.searched;
        while let Some(found) = memchr::memchr3(b'\n', quote, escape, &text[at..]) {
            at += found;
            let byte = text[at];
            let escapes = if self.csv {
                self.quoted && byte == escape && escape != quote
            } else {
                byte == b'\\'
            };
            if escapes {
                if at + 1 == text.len() {
                    self.searched = at - start;
                    return None;
                }
                at += 1;
            } else if self.csv && byte == quote {
                // Two in a row within quotes stand for one: it is still the same that is open.
                self.quoted = !self.quoted;
                let place = at - start;
                if !self.quoted {
                    self.closed = Some(place);
                } else if self.escape != quote || self.closed.is_none_or(|c| c + 1 != place) {
                    self.opened = place;
                }
            } else if byte == b'\n' && !self.quoted {
                self.searched = 0;
                self.closed = None;
                let end = if at > start && text[at - 1] == b'\r' {
                    at - 1
                } else {
                    at
                };
                return Some(LineEnd { end, next: at + 1 });
            }
            at += 1;
        }
        self.searched = text.len() - start;
        None
    }
}

/// The fields of a line; kept between lines for its memory.
#[derive(Default)]
struct Fields {
    found: Vec<Place>,
    /// Text of fields whose quotes or escapes were undone.
    undone: Vec<u8>,
}

/// Where a field's text is.
#[derive(Clone, Debug)]
enum Place {
    Null,
    InLine(Range<usize>),
    Undone(Range<usize>),
}

impl Fields {
    /// The text of a field of the line that was split last; `None`: NULL.
    fn get<'a>(&'a self, at: usize, line: &'a [u8]) -> Option<&'a [u8]> {
        match &self.found[at] {
            Place::Null => None,
            Place::InLine(range) => Some(&line[range.clone()]),
            Place::Undone(range) => Some(&self.undone[range.clone()]),
        }
    }

    fn split(&mut self, line: &[u8], copy: &Copy) {
        self.found.clear();
        self.undone.clear();
        match copy.format {
            Format::Csv => self.split_csv(line, copy),
            _ => self.split_text(line, copy),
        }
    }

    fn split_text(&mut self, line: &[u8], copy: &Copy) {
        let (mut start, mut at, mut escaped) = (0, 0, false);
        while at <= line.len() {
            if at == line.len() || line[at] == copy.delimiter {
                let raw = &line[start..at];
                self.found.push(if raw == copy.null.as_bytes() {
                    Place::Null
                } else if escaped {
                    let from = self.undone.len();
                    unescape(raw, &mut self.undone);
                    Place::Undone(from..self.undone.len())
                } else {
                    Place::InLine(start..at)
                });
                start = at + 1;
                escaped = false;
            } else if line[at] == b'\\' && at + 1 < line.len() {
                escaped = true;
                at += 1;
            }
            at += 1;
        }
    }

    fn split_csv(&mut self, line: &[u8], copy: &Copy) {
        let mut start = 0;
        loop {
            let rest = &line[start..];
            let special = memchr::memchr2(copy.delimiter, copy.quote, rest);
            if special.is_some_and(|at| rest[at] == copy.quote) {
                start = self.quoted_csv(line, start, copy);
            } else {
                let end = special.map_or(line.len(), |at| start + at);
                self.found
                    .push(if line[start..end] == *copy.null.as_bytes() {
                        Place::Null
                    } else {
                        Place::InLine(start..end)
                    });
                start = end + 1;
            }
            if start > line.len() {
                return;
            }
        }
    }

    /// Reads a field that has quotes; where the next one begins.
    fn quoted_csv(&mut self, line: &[u8], start: usize, copy: &Copy) -> usize {
        let from = self.undone.len();
        let (mut at, mut quoted) = (start, false);
        while at < line.len() {
            let (byte, next) = (line[at], line.get(at + 1));
            if quoted
                && byte == copy.escape
                && let Some(next) = next.filter(|n| **n == copy.quote || **n == copy.escape)
            {
                self.undone.push(*next);
                at += 1;
            } else if byte == copy.quote {
                quoted = !quoted;
            } else if byte == copy.delimiter && !quoted {
                break;
            } else {
                self.undone.push(byte);
            }
            at += 1;
        }
        self.found.push(Place::Undone(from..self.undone.len()));
        at + 1
    }
}

/// Undoes the backslash escapes of the text format.
fn unescape(raw: &[u8], out: &mut Vec<u8>) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(sql: &str) -> Copy {
        Copy::parse(sql).expect("a COPY").0
    }

    fn fields(line: &str, copy: &Copy) -> Vec<Option<String>> {
        let mut fields = Fields::default();
        fields.split(line.as_bytes(), copy);
        (0..fields.found.len())
            .map(|at| {
                let field = fields.get(at, line.as_bytes())?;
                Some(String::from_utf8(field.to_vec()).expect("text"))
            })
            .collect()
    }

    #[test]
    fn fields_come_through_quotes_and_escapes_and_nulls_stay_apart_from_empty_texts() {
        let some = |s: &str| Some(s.to_owned());
        let csv = copy("COPY t FROM STDIN CSV");
        assert_eq!(
            fields("a,,\"\",\"x,\"\"y\"\"\nz\",b\"c\"d", &csv),
            [some("a"), None, some(""), some("x,\"y\"\nz"), some("bcd")]
        );
        assert_eq!(fields("", &csv), [None]);
        assert_eq!(fields("a,", &csv), [some("a"), None]);
        let escaped = copy("COPY t FROM STDIN WITH (FORMAT csv, ESCAPE '\\', NULL 'nil')");
        assert_eq!(
            fields("\"a\\\"b\",nil,\"nil\",", &escaped),
            [some("a\"b"), None, some("nil"), some("")]
        );
        let text = copy("COPY t FROM STDIN");
        assert_eq!(
            fields("a\t\\N\t\tx\\ty\\\\\\101\\x42\t", &text),
            [some("a"), None, some(""), some("x\ty\\AB"), some("")]
        );
    }

    #[test]
    fn lines_end_outside_quotes_only_whatever_the_messages_they_come_in() {
        let lines = |sql: &str, text: &str| {
            let mut ends = LineEnds::new(&copy(sql));
            let (mut seen, mut start, mut out) = (Vec::new(), 0, Vec::new());
            for byte in text.bytes() {
                seen.push(byte);
                while let Some(line) = ends.next(&seen, start) {
                    out.push(String::from_utf8(seen[start..line.end].to_vec()).expect("text"));
                    start = line.next;
                }
            }
            let mut whole = LineEnds::new(&copy(sql));
            let (mut start, mut at_once) = (0, 0);
            while let Some(line) = whole.next(text.as_bytes(), start) {
                start = line.next;
                at_once += 1;
            }
            assert_eq!(at_once, out.len(), "{text:?}");
            out
        };
        assert_eq!(
            lines("COPY t FROM STDIN CSV", "1,\"a\nb\"\r\n2,c\n3,"),
            ["1,\"a\nb\"", "2,c"]
        );
        assert_eq!(
            lines(
                "COPY t FROM STDIN WITH (FORMAT csv, ESCAPE '\\')",
                "\"a\\\"\nb\"\nc\n"
            ),
            ["\"a\\\"\nb\"", "c"]
        );
        let open = |text: &str| {
            let mut ends = LineEnds::new(&copy("COPY t FROM STDIN CSV"));
            let mut start = 0;
            while let Some(line) = ends.next(text.as_bytes(), start) {
                start = line.next;
            }
            ends.open_quote().map(|at| start + at)
        };
        assert_eq!(open("1,\"a\"\"b\"\n2,\"a\nb\",\"c\"\"d"), Some(17));
        assert_eq!(open("1,\"a\"\"b\"\n2,\"a\nb\""), None);
        assert_eq!(
            lines("COPY t FROM STDIN", "a\\\nb\n\\\\\n\\N\n"),
            ["a\\\nb", "\\\\", "\\N"]
        );
    }
}
