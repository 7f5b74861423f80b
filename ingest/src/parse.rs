//! Line protocol to columns, one pass, without a tree of lines in between.
//!
//! A line is parsed into scratch space first and enters the columns only when all of it is good,
//! so a bad line leaves no trace: no row, no column, no table.
//!
//! What makes it fast: the bytes of `measurement,tagset` are looked up as they stand (most often
//! not even that: the series that followed this one last time is compared first), and each
//! field's name is compared with the one in the same place of the line before.
//!
//! Choices where writers differ:
//! - A tag named twice in a line is an error (as in InfluxDB); of a field named twice the later
//!   value stays (as in InfluxDB).
//! - A comma in a tag key or field key must be escaped; `=` in a tag value need not be.
//! - `.5` and `5.` are numbers; `inf`, `nan` and what a double cannot hold are not.
//! - Spaces may stand before a line and at its end, and it may end with `\r\n`.
//! - A newline ends a line also after a backslash, but not within a string.

use std::borrow::Cow;
use std::sync::Arc;

use hashbrown::{HashMap, HashTable};
use shoal_types::{COLUMNS_MAX, SchemaError, TableSchema};

use crate::builder::{Role, TableBuilder, TagValue};
use crate::error::{Bad, LineErrors};
use crate::names::{
    check_column_name, column_type, lossy, refuse_tab, skip_spaces, too_many_columns,
};
use crate::pending::PendingTable;
use crate::precision::Precision;
use crate::resolve::{field_conflict, tag_conflict};
use crate::scan::{self, Value, line_end, name_end, series_length, unescape};

/// The longest line unless options say otherwise.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// Rows times columns of one table in a request, unless options say otherwise: bounds what
/// sparse lines (every line with columns of its own) take as dense columns.
pub const CELLS_MAX: usize = 32 << 20;

/// How a body is to be read.
#[derive(Clone, Debug)]
pub struct ParseOptions {
    /// The unit of timestamps.
    pub precision: Precision,
    /// The time of lines without one, in nanoseconds since the Unix epoch.
    pub default_time_ns: i64,
    /// The most tags and fields, with the time, that one table may have.
    pub columns_max: usize,
    /// The longest line, in bytes.
    pub line_bytes_max: usize,
    /// The most rows times columns of one table.
    pub cells_max: usize,
}

impl ParseOptions {
    /// The usual limits.
    #[must_use]
    pub fn new(precision: Precision, default_time_ns: i64) -> Self {
        Self {
            precision,
            default_time_ns,
            columns_max: COLUMNS_MAX,
            line_bytes_max: LINE_BYTES_MAX,
            cells_max: CELLS_MAX,
        }
    }
}

/// What a body holds.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The good lines, by measurement in first-seen order. None is empty.
    pub tables: Vec<PendingTable>,
    /// The bad lines.
    pub errors: LineErrors,
    /// Number of good lines.
    pub rows: usize,
}

/// The schema of the table that a measurement's lines go to, if there is one. Asked once for
/// each measurement of a body.
pub type SchemaOf<'a> = &'a dyn Fn(&str) -> Option<Arc<TableSchema>>;

/// Parses bodies of line protocol.
#[derive(Clone, Debug)]
pub struct LineParser {
    options: ParseOptions,
}

impl LineParser {
    /// A parser with these options.
    #[must_use]
    pub fn new(options: ParseOptions) -> Self {
        Self { options }
    }

    /// Parses a body. Bad lines are reported in the result, good ones kept.
    #[must_use]
    pub fn parse(&self, body: &[u8]) -> Parsed {
        self.parse_for(body, &|_| None)
    }

    /// As [`Self::parse`], with the schemas of the tables that exist: a line that contradicts its
    /// table is refused where it does. Otherwise the first line to name a field would decide its
    /// type in this body, and a wrong first line would have all right ones refused.
    #[must_use]
    pub fn parse_for(&self, body: &[u8], schema_of: SchemaOf<'_>) -> Parsed {
        let mut errors = LineErrors::default();
        if u32::try_from(body.len()).is_err() {
            errors.push(1, 1, "the body is larger than 4 GiB");
            return Parsed {
                errors,
                ..Parsed::default()
            };
        }
        let utf8 = std::str::from_utf8(body).is_ok();
        let mut state = State::new(body, &self.options, schema_of);
        let (mut at, mut number) = (0, 0_u32);
        while at < body.len() {
            let end = line_end(body, at, self.options.line_bytes_max);
            number += 1;
            let begin = at + leading_blanks(&body[at..end]);
            let line = &body[begin..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() && line[0] != b'#' {
                let result = if utf8 {
                    state.line(begin, line, number)
                } else {
                    check_utf8(line).and_then(|()| state.line(begin, line, number))
                };
                if let Err(bad) = result {
                    errors.push(number, begin - at + bad.at + 1, bad.reason);
                }
            }
            if memchr::memchr(b'\n', line).is_some() {
                number += memchr::memchr_iter(b'\n', line).count() as u32;
            }
            at = end + 1;
        }
        let tables: Vec<_> = state.tables.into_iter().map(TableBuilder::finish).collect();
        Parsed {
            rows: tables.iter().map(PendingTable::rows).sum(),
            tables,
            errors,
        }
    }
}

fn leading_blanks(line: &[u8]) -> usize {
    line.iter()
        .position(|b| !matches!(b, b' ' | b'\t'))
        .unwrap_or(line.len())
}

fn check_utf8(line: &[u8]) -> Result<(), Bad> {
    std::str::from_utf8(line)
        .map(|_| ())
        .map_err(|e| Bad::new(e.valid_up_to(), "not UTF-8"))
}

/// The bytes of a `measurement,tagset` that were seen, and what they mean.
struct RawSeries {
    begin: usize,
    length: usize,
    table: u32,
    series: u32,
    /// The raw series of the line that followed when this one came last.
    next: u32,
}

const NO_SERIES: u32 = u32::MAX;

/// A field of the line at hand.
struct ParsedField<'a> {
    /// The table's column, or `None` for a new one.
    column: Option<u32>,
    /// The name as spelled.
    spelled: &'a [u8],
    value: Value<'a>,
}

/// A tag of a line whose series was not seen before.
struct ParsedTag<'a> {
    name: Cow<'a, [u8]>,
    value: Cow<'a, [u8]>,
    /// The table's tag, or `None` for a new one.
    tag: Option<u32>,
}

struct State<'a> {
    body: &'a [u8],
    options: &'a ParseOptions,
    schema_of: SchemaOf<'a>,
    /// What `schema_of` said.
    schemas: HashMap<Box<[u8]>, Option<Arc<TableSchema>>, ahash::RandomState>,
    hasher: ahash::RandomState,
    tables: Vec<TableBuilder>,
    by_name: HashMap<Box<[u8]>, u32, ahash::RandomState>,
    raw: Vec<RawSeries>,
    raw_index: HashTable<u32>,
    last: u32,
    /// Scratch of the line at hand.
    fields: Vec<ParsedField<'a>>,
    tags: Vec<ParsedTag<'a>>,
    /// Of the table in the catalog, where none of its lines was good so far.
    schema: Option<Arc<TableSchema>>,
    new_fields: HashMap<Cow<'a, [u8]>, usize, ahash::RandomState>,
}

impl<'a> State<'a> {
    fn new(body: &'a [u8], options: &'a ParseOptions, schema_of: SchemaOf<'a>) -> Self {
        Self {
            body,
            options,
            schema_of,
            schemas: HashMap::default(),
            hasher: ahash::RandomState::new(),
            tables: Vec::new(),
            by_name: HashMap::default(),
            raw: Vec::new(),
            raw_index: HashTable::new(),
            last: NO_SERIES,
            fields: Vec::new(),
            tags: Vec::new(),
            schema: None,
            new_fields: HashMap::default(),
        }
    }

    /// Takes the line that begins at `begin` of the body.
    fn line(&mut self, begin: usize, line: &'a [u8], number: u32) -> Result<(), Bad> {
        if line.len() > self.options.line_bytes_max {
            return Err(Bad::new(
                self.options.line_bytes_max,
                format!(
                    "the line is longer than {} bytes",
                    self.options.line_bytes_max
                ),
            ));
        }
        if let Some(index) = self.expected_series(line) {
            return self.known_line(index, line, number);
        }
        let length = series_length(line).ok_or_else(|| {
            let end = name_end(line, 0, b"");
            Bad::new(end, "the line has no fields")
        })?;
        let hash = self.hasher.hash_one(&line[..length]);
        let body = self.body;
        let found = self.raw_index.find(hash, |i| {
            let raw = &self.raw[*i as usize];
            body[raw.begin..raw.begin + raw.length] == line[..length]
        });
        if let Some(index) = found.copied() {
            return self.known_line(index, line, number);
        }
        self.new_line(begin, length, hash, line, number)
    }

    /// The series that followed last time, if the line begins with its bytes.
    #[inline]
    fn expected_series(&self, line: &[u8]) -> Option<u32> {
        let next = self.raw.get(self.last as usize)?.next;
        let raw = self.raw.get(next as usize)?;
        // A series that ends at a space here ended at one before: none of it was an escape.
        let same = line.get(raw.length) == Some(&b' ')
            && line[..raw.length] == self.body[raw.begin..raw.begin + raw.length];
        same.then_some(next)
    }

    fn known_line(&mut self, index: u32, line: &'a [u8], number: u32) -> Result<(), Bad> {
        let raw = &self.raw[index as usize];
        let (table, series, length) = (raw.table, raw.series, raw.length);
        let time = self.parse_fields(line, length, Some(table))?;
        self.check_size(Some(table), 0)?;
        self.store(table, series, time, number);
        self.follow(index);
        Ok(())
    }

    fn follow(&mut self, index: u32) {
        if let Some(last) = self.raw.get_mut(self.last as usize) {
            last.next = index;
        }
        self.last = index;
    }

    /// A line whose series has not been seen in this spelling.
    fn new_line(
        &mut self,
        begin: usize,
        length: usize,
        hash: u64,
        line: &'a [u8],
        number: u32,
    ) -> Result<(), Bad> {
        let (name, table) = self.parse_series(&line[..length])?;
        let time = self.parse_fields(line, length, table)?;
        if let Some(both) = self
            .tags
            .iter()
            .find(|t| self.new_fields.contains_key(&t.name))
        {
            return Err(Bad::new(
                length,
                format!("{:?} is a tag and a field", lossy(&both.name)),
            ));
        }
        let new_tags = self.tags.iter().filter(|t| t.tag.is_none()).count();
        self.check_size(table, new_tags)?;

        let table = table.unwrap_or_else(|| {
            let index = self.tables.len() as u32;
            self.tables
                .push(TableBuilder::new(lossy(&name), self.schema.clone()));
            self.by_name.insert(name.into(), index);
            index
        });
        let builder = &mut self.tables[table as usize];
        let mut tags: Vec<TagValue<'_>> = Vec::with_capacity(self.tags.len());
        for tag in &self.tags {
            let index = tag.tag.unwrap_or_else(|| builder.add_tag(&tag.name));
            tags.push((index, &tag.value));
        }
        let series = builder.series(&mut tags);
        let index = self.raw.len() as u32;
        self.raw.push(RawSeries {
            begin,
            length,
            table,
            series,
            next: NO_SERIES,
        });
        let (raw, body, hasher) = (&self.raw, self.body, &self.hasher);
        self.raw_index.insert_unique(hash, index, |i| {
            let raw = &raw[*i as usize];
            hasher.hash_one(&body[raw.begin..raw.begin + raw.length])
        });
        self.store(table, series, time, number);
        self.follow(index);
        Ok(())
    }

    /// Parses `measurement,tagset` into `self.tags`; returns the measurement and its table, if
    /// there is one.
    fn parse_series(&mut self, raw: &'a [u8]) -> Result<(Cow<'a, [u8]>, Option<u32>), Bad> {
        self.tags.clear();
        let mut at = name_end(raw, 0, b",");
        refuse_tab(raw, at)?;
        let name = unescape(&raw[..at], 0, b", \\", "the measurement")?;
        let table = self.by_name.get(&name[..]).copied();
        if table.is_none() {
            SchemaError::check_name("table", &lossy(&name))
                .map_err(|e| Bad::new(0, e.to_string()))?;
            self.schema = match self.schemas.get(&name[..]) {
                Some(schema) => schema.clone(),
                None => {
                    let schema = (self.schema_of)(&lossy(&name));
                    self.schemas.insert(name[..].into(), schema.clone());
                    schema
                }
            };
        }
        let table_so_far = table.map(|t| &self.tables[t as usize]);
        let roles = table_so_far.map(|t| &t.roles);
        let schema = table_so_far.map_or(self.schema.as_deref(), |t| t.schema.as_deref());
        while at < raw.len() {
            let key_at = at + 1;
            let key_end = name_end(raw, key_at, b"=,");
            refuse_tab(raw, key_end)?;
            let name = unescape(&raw[key_at..key_end], key_at, b", =\\", "a tag's name")?;
            if raw.get(key_end) != Some(&b'=') {
                return Err(Bad::new(
                    key_at,
                    format!("tag {:?} has no value (escape commas as \\,)", lossy(&name)),
                ));
            }
            let value_at = key_end + 1;
            at = name_end(raw, value_at, b",");
            refuse_tab(raw, at)?;
            let value = unescape(&raw[value_at..at], value_at, b", =\\", "a tag's value")?;
            let tag = match roles.and_then(|r| r.get(&name[..])) {
                Some(Role::Tag(tag)) => Some(*tag),
                Some(Role::Field(_)) => {
                    return Err(Bad::new(
                        key_at,
                        format!(
                            "{:?} is a field on an earlier line, here a tag",
                            lossy(&name)
                        ),
                    ));
                }
                None => {
                    check_column_name(&name, "tag", key_at)?;
                    refuse_conflict(schema, &name, key_at, tag_conflict)?;
                    None
                }
            };
            if self.tags.len() >= self.options.columns_max {
                return Err(too_many_columns(self.options.columns_max, key_at));
            }
            self.tags.push(ParsedTag { name, value, tag });
        }
        self.refuse_repeated_tags(raw.len())?;
        Ok((name, table))
    }

    fn refuse_repeated_tags(&self, at: usize) -> Result<(), Bad> {
        let mut names: Vec<_> = self.tags.iter().map(|t| &t.name[..]).collect();
        names.sort_unstable();
        match names.windows(2).find(|w| w[0] == w[1]) {
            Some(w) => Err(Bad::new(
                at,
                format!("tag {:?} is given twice", lossy(w[0])),
            )),
            None => Ok(()),
        }
    }

    /// Parses fields and timestamp into `self.fields`, the line's series being `length` long;
    /// returns the time.
    fn parse_fields(
        &mut self,
        line: &'a [u8],
        length: usize,
        table: Option<u32>,
    ) -> Result<i64, Bad> {
        self.fields.clear();
        self.new_fields.clear();
        let table = table.map(|t| &self.tables[t as usize]);
        let schema = table.map_or(self.schema.as_deref(), |t| t.schema.as_deref());
        let mut at = skip_spaces(line, length);
        if at == line.len() {
            return Err(Bad::new(at, "the line has no fields"));
        }
        loop {
            let place = self.fields.len();
            let expected = table.and_then(|t| {
                let column = *t.expected.get(place)?;
                let field = &t.fields[column as usize];
                line[at..]
                    .starts_with(&field.spelled)
                    .then_some((column, field))
            });
            let name_at = at;
            let (column, spelled, value) = if let Some((column, field)) = expected {
                let value_at = at + field.spelled.len();
                let (value, end) = scan::value(line, value_at)?;
                at = end;
                (Some((column, field)), &line[name_at..value_at - 1], value)
            } else {
                let name_end = name_end(line, at, b"=, ");
                refuse_tab(line, name_end)?;
                let name = unescape(&line[at..name_end], at, b", =\\", "a field's name")?;
                if line.get(name_end) != Some(&b'=') {
                    return Err(Bad::new(
                        at,
                        format!("field {:?} has no value", lossy(&name)),
                    ));
                }
                let (value, end) = scan::value(line, name_end + 1)?;
                at = end;
                let column = match table.and_then(|t| t.roles.get(&name[..]).map(|r| (t, *r))) {
                    Some((t, Role::Field(column))) => Some((column, &t.fields[column as usize])),
                    Some((_, Role::Tag(_))) => {
                        return Err(Bad::new(
                            name_at,
                            format!("{:?} is a tag, here a field", lossy(&name)),
                        ));
                    }
                    None => {
                        check_column_name(&name, "field", name_at)?;
                        refuse_conflict(schema, &name, name_at, |schema, name| {
                            field_conflict(schema, name, column_type(&value))
                        })?;
                        new_field(
                            &mut self.new_fields,
                            &self.fields,
                            name,
                            place,
                            &value,
                            name_at,
                        )?;
                        None
                    }
                };
                (column, &line[name_at..name_end], value)
            };
            if let Some((_, field)) = column
                && !field.takes(&value)
            {
                return Err(Bad::new(
                    name_at,
                    format!(
                        "field {:?} is of type {} here and {} on an earlier line",
                        field.name,
                        column_type(&value),
                        field.column_type(),
                    ),
                ));
            }
            if place >= self.options.columns_max {
                return Err(too_many_columns(self.options.columns_max, name_at));
            }
            self.fields.push(ParsedField {
                column: column.map(|c| c.0),
                spelled,
                value,
            });
            match line.get(at) {
                Some(b',') => at += 1,
                Some(b' ') => break,
                None => return Ok(self.options.default_time_ns),
                Some(_) => {
                    return Err(Bad::new(
                        at,
                        "unexpected text after the value: expected a comma, a space or the line's end",
                    ));
                }
            }
        }
        let at = skip_spaces(line, at);
        if at == line.len() {
            return Ok(self.options.default_time_ns);
        }
        scan::timestamp(line, at, self.options.precision.nanoseconds())
    }

    /// Refuses a line that would make its table too wide or, as dense columns, too large.
    fn check_size(&self, table: Option<u32>, new_tags: usize) -> Result<(), Bad> {
        let (rows, columns) = table.map_or((0, 0), |t| {
            let table = &self.tables[t as usize];
            (table.rows(), table.columns())
        });
        let columns = columns + self.new_fields.len() + new_tags;
        if columns + 1 > self.options.columns_max {
            return Err(too_many_columns(self.options.columns_max, 0));
        }
        if (rows + 1).saturating_mul(columns) > self.options.cells_max {
            return Err(Bad::new(
                0,
                format!(
                    "the request has too many rows and columns for one measurement ({} values); send it in parts",
                    self.options.cells_max
                ),
            ));
        }
        Ok(())
    }

    /// Appends the line in scratch to a table.
    #[inline]
    fn store(&mut self, table: u32, series: u32, time: i64, number: u32) {
        let builder = &mut self.tables[table as usize];
        builder.begin_row(series, time, number);
        for (place, field) in self.fields.iter().enumerate() {
            let column = field.column.unwrap_or_else(|| new_column(builder, field));
            builder.set(place, column, &field.value);
        }
    }
}

/// Refuses a tag or field that the table has as something else. One that it lacks is no conflict:
/// it may get it.
fn refuse_conflict(
    schema: Option<&TableSchema>,
    name: &[u8],
    at: usize,
    conflict: impl Fn(&TableSchema, &str) -> Option<String>,
) -> Result<(), Bad> {
    let Some(schema) = schema else {
        return Ok(());
    };
    let name = lossy(name);
    match schema.column(&name).and_then(|_| conflict(schema, &name)) {
        Some(reason) => Err(Bad::new(at, reason)),
        None => Ok(()),
    }
}

/// The column of a field that the table lacked when the line was parsed.
#[cold]
fn new_column(builder: &mut TableBuilder, field: &ParsedField<'_>) -> u32 {
    let name = scan::without_backslashes(field.spelled, b", =\\");
    match builder.roles.get(&name[..]) {
        // The line names it twice.
        Some(Role::Field(column)) => *column,
        _ => builder.add_field(&name, field.spelled, &field.value),
    }
}

/// Notes a field that the table lacks; one named twice in the line must be of one type.
#[cold]
fn new_field<'a>(
    new_fields: &mut HashMap<Cow<'a, [u8]>, usize, ahash::RandomState>,
    fields: &[ParsedField<'_>],
    name: Cow<'a, [u8]>,
    place: usize,
    value: &Value<'_>,
    at: usize,
) -> Result<(), Bad> {
    let earlier = *new_fields.entry(name).or_insert(place);
    match fields.get(earlier) {
        Some(first) if column_type(&first.value) != column_type(value) => Err(Bad::new(
            at,
            format!(
                "the field is given twice, as {} and {}",
                column_type(&first.value),
                column_type(value)
            ),
        )),
        _ => Ok(()),
    }
}
