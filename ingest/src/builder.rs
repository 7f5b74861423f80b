//! Columns of a table while lines are appended to it.

use std::sync::Arc;

use arrow_array::builder::{StringViewBuilder, make_view};
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringViewArray};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, Buffer, NullBuffer, ScalarBuffer};
use hashbrown::{HashMap, HashTable};
use shoal_types::{ColumnType, TableSchema};

use crate::pending::{PendingField, PendingTable};
use crate::scan::{Value, without_backslashes};

/// Strings up to this length stand in their view.
const INLINE_BYTES_MAX: usize = 12;

/// What a column's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Tag(u32),
    Field(u32),
}

/// The values of a field so far; one entry for each row up to the last that has the field.
enum Values {
    Int(Vec<i64>),
    Float(Vec<f64>),
    Bool(Vec<bool>),
    Text { views: Vec<u128>, long: Vec<u8> },
}

pub(crate) struct FieldBuilder {
    pub(crate) name: String,
    /// The name as the lines spell it, with its `=`: what the next line is compared with.
    pub(crate) spelled: Vec<u8>,
    values: Values,
    /// Which rows have the field; made at the first row that has it not.
    set: Option<BooleanBufferBuilder>,
}

impl FieldBuilder {
    fn new(name: String, spelled: &[u8], first: &Value<'_>) -> Self {
        let mut spelled = spelled.to_vec();
        spelled.push(b'=');
        Self {
            name,
            spelled,
            values: match first {
                Value::Int(_) => Values::Int(Vec::new()),
                Value::Float(_) => Values::Float(Vec::new()),
                Value::Bool(_) => Values::Bool(Vec::new()),
                Value::Text(..) => Values::Text {
                    views: Vec::new(),
                    long: Vec::new(),
                },
            },
            set: None,
        }
    }

    pub(crate) fn column_type(&self) -> ColumnType {
        match self.values {
            Values::Int(_) => ColumnType::Int64,
            Values::Float(_) => ColumnType::Float64,
            Values::Bool(_) => ColumnType::Boolean,
            Values::Text { .. } => ColumnType::Text,
        }
    }

    #[inline]
    pub(crate) fn takes(&self, value: &Value<'_>) -> bool {
        matches!(
            (&self.values, value),
            (Values::Int(_), Value::Int(_))
                | (Values::Float(_), Value::Float(_))
                | (Values::Bool(_), Value::Bool(_))
                | (Values::Text { .. }, Value::Text(..))
        )
    }

    fn len(&self) -> usize {
        match &self.values {
            Values::Int(v) => v.len(),
            Values::Float(v) => v.len(),
            Values::Bool(v) => v.len(),
            Values::Text { views, .. } => views.len(),
        }
    }

    /// Makes the column `rows` long; the new rows do not have the field.
    #[cold]
    fn pad(&mut self, rows: usize) {
        let len = self.len();
        let set = self.set.get_or_insert_with(|| {
            let mut set = BooleanBufferBuilder::new(rows.max(1024));
            set.append_n(len, true);
            set
        });
        set.append_n(rows - len, false);
        match &mut self.values {
            Values::Int(v) => v.resize(rows, 0),
            Values::Float(v) => v.resize(rows, 0.0),
            Values::Bool(v) => v.resize(rows, false),
            Values::Text { views, .. } => views.resize(rows, 0),
        }
    }

    /// Sets the field of row `row`, the table's last. A line that names a field twice sets it
    /// twice: the later value stays, as in InfluxDB.
    #[inline]
    fn push(&mut self, row: usize, value: &Value<'_>) {
        let len = self.len();
        if len < row {
            self.pad(row);
        }
        let again = len > row;
        match (&mut self.values, value) {
            (Values::Int(v), Value::Int(value)) => put(v, row, again, *value),
            (Values::Float(v), Value::Float(value)) => put(v, row, again, *value),
            (Values::Bool(v), Value::Bool(value)) => put(v, row, again, *value),
            (Values::Text { views, long }, Value::Text(raw, escaped)) => {
                let unescaped;
                let text = if *escaped {
                    unescaped = without_backslashes(raw, b"\"\\");
                    &unescaped[..]
                } else {
                    raw
                };
                // The body is below 4 GiB (parse refuses others), so is what is kept of it.
                put(views, row, again, make_view(text, 0, long.len() as u32));
                if text.len() > INLINE_BYTES_MAX {
                    long.extend_from_slice(text);
                }
            }
            _ => unreachable!("the line was checked against the column's type"),
        }
        if let Some(set) = &mut self.set
            && !again
        {
            set.append(true);
        }
    }

    fn finish(mut self, rows: usize) -> PendingField {
        if self.len() < rows {
            self.pad(rows);
        }
        let column_type = self.column_type();
        let set: Option<BooleanBuffer> = self.set.map(|mut s| s.finish());
        let nulls = set.clone().map(NullBuffer::new);
        let values: ArrayRef = match self.values {
            Values::Int(v) => Arc::new(Int64Array::new(v.into(), nulls)),
            Values::Float(v) => Arc::new(Float64Array::new(v.into(), nulls)),
            Values::Bool(v) => Arc::new(BooleanArray::new(v.into(), nulls)),
            Values::Text { views, long } => Arc::new(text_array(views, long, nulls)),
        };
        PendingField {
            name: self.name,
            column_type,
            values,
            set,
        }
    }
}

#[inline]
fn put<T>(values: &mut Vec<T>, row: usize, again: bool, value: T) {
    if again {
        values[row] = value;
    } else {
        values.push(value);
    }
}

fn text_array(views: Vec<u128>, long: Vec<u8>, nulls: Option<NullBuffer>) -> StringViewArray {
    let buffers = if long.is_empty() {
        Vec::new()
    } else {
        vec![Buffer::from_vec(long)]
    };
    StringViewArray::try_new(ScalarBuffer::from(views), buffers, nulls)
        .expect("views of lines that were checked to be UTF-8, cut at ASCII bytes")
}

/// A tag of a line: its column and its value without escapes.
pub(crate) type TagValue<'a> = (u32, &'a [u8]);

/// The rows of one measurement so far.
pub(crate) struct TableBuilder {
    name: String,
    /// Of the table in the catalog, if it was there when the body came.
    pub(crate) schema: Option<Arc<TableSchema>>,
    pub(crate) roles: HashMap<Box<[u8]>, Role, ahash::RandomState>,
    tags: Vec<String>,
    pub(crate) fields: Vec<FieldBuilder>,
    /// The fields of the last line in its order: most likely those of the next.
    pub(crate) expected: Vec<u32>,
    /// Every series once, as `(tag u32, length u32, value)…` ascending by tag: equal bytes for
    /// all spellings of a tag set.
    canonical: Vec<u8>,
    /// Where each series begins in `canonical`, then where the last ends.
    starts: Vec<usize>,
    known: HashTable<u32>,
    series_of: Vec<u32>,
    times: Vec<i64>,
    lines: Vec<u32>,
}

impl TableBuilder {
    pub(crate) fn new(name: String, schema: Option<Arc<TableSchema>>) -> Self {
        Self {
            name,
            schema,
            roles: HashMap::default(),
            tags: Vec::new(),
            fields: Vec::new(),
            expected: Vec::new(),
            canonical: Vec::new(),
            starts: vec![0],
            known: HashTable::new(),
            series_of: Vec::new(),
            times: Vec::new(),
            lines: Vec::new(),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.times.len()
    }

    /// Tags and fields.
    pub(crate) fn columns(&self) -> usize {
        self.tags.len() + self.fields.len()
    }

    pub(crate) fn add_tag(&mut self, name: &[u8]) -> u32 {
        let index = self.tags.len() as u32;
        self.tags.push(String::from_utf8_lossy(name).into_owned());
        self.roles.insert(name.into(), Role::Tag(index));
        index
    }

    pub(crate) fn add_field(&mut self, name: &[u8], spelled: &[u8], first: &Value<'_>) -> u32 {
        let index = self.fields.len() as u32;
        let text = String::from_utf8_lossy(name).into_owned();
        self.fields.push(FieldBuilder::new(text, spelled, first));
        self.roles.insert(name.into(), Role::Field(index));
        index
    }

    /// The series with these tags, which are sorted in place.
    pub(crate) fn series(&mut self, tags: &mut [TagValue<'_>]) -> u32 {
        tags.sort_unstable_by_key(|t| t.0);
        let start = self.canonical.len();
        for (tag, value) in tags {
            self.canonical.extend(tag.to_le_bytes());
            self.canonical.extend((value.len() as u32).to_le_bytes());
            self.canonical.extend_from_slice(value);
        }
        let (canonical, starts) = (&self.canonical, &self.starts);
        let of = |s: u32| &canonical[starts[s as usize]..starts[s as usize + 1]];
        let wanted = &canonical[start..];
        let hash = HASHER.hash_one(wanted);
        if let Some(found) = self.known.find(hash, |s| of(*s) == wanted).copied() {
            self.canonical.truncate(start);
            return found;
        }
        let index = (self.starts.len() - 1) as u32;
        self.starts.push(self.canonical.len());
        let (canonical, starts) = (&self.canonical, &self.starts);
        self.known.insert_unique(hash, index, |s| {
            HASHER.hash_one(&canonical[starts[*s as usize]..starts[*s as usize + 1]])
        });
        index
    }

    /// Begins a row; [`Self::set`] gives it fields.
    #[inline]
    pub(crate) fn begin_row(&mut self, series: u32, time: i64, line: u32) {
        self.series_of.push(series);
        self.times.push(time);
        self.lines.push(line);
    }

    /// Sets a field of the row begun last; `place` is its place in the line.
    #[inline]
    pub(crate) fn set(&mut self, place: usize, field: u32, value: &Value<'_>) {
        let row = self.times.len() - 1;
        self.fields[field as usize].push(row, value);
        match self.expected.get_mut(place) {
            Some(expected) => *expected = field,
            None => self.expected.push(field),
        }
    }

    pub(crate) fn finish(self) -> PendingTable {
        let rows = self.times.len();
        let series = self.starts.len() - 1;
        let mut columns: Vec<_> = self
            .tags
            .iter()
            .map(|_| StringViewBuilder::with_capacity(series))
            .collect();
        for bounds in self.starts.windows(2) {
            let mut rest = &self.canonical[bounds[0]..bounds[1]];
            let mut next = read_tag(&mut rest);
            for (index, column) in columns.iter_mut().enumerate() {
                match next {
                    Some((tag, value)) if tag as usize == index => {
                        column.append_value(value);
                        next = read_tag(&mut rest);
                    }
                    _ => column.append_null(),
                }
            }
        }
        PendingTable {
            name: self.name,
            tags: self.tags,
            tag_values: columns
                .into_iter()
                .map(|mut c| Arc::new(c.finish()) as ArrayRef)
                .collect(),
            series,
            series_of: self.series_of.into(),
            times: self.times.into(),
            fields: self.fields.into_iter().map(|f| f.finish(rows)).collect(),
            lines: self.lines,
        }
    }
}

/// Seeded at random once a process, so that nobody can prepare tag sets that collide.
static HASHER: std::sync::LazyLock<ahash::RandomState> =
    std::sync::LazyLock::new(ahash::RandomState::new);

fn read_tag<'a>(rest: &mut &'a [u8]) -> Option<(u32, &'a str)> {
    let (tag, after) = rest.split_first_chunk::<4>()?;
    let (length, after) = after.split_first_chunk::<4>()?;
    let (value, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    // Lines are checked to be UTF-8 and cut at ASCII bytes.
    Some((u32::from_le_bytes(*tag), std::str::from_utf8(value).ok()?))
}
