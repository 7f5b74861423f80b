//! Builds the result of a merge: slices of input batches where rows stand as they are, rows put
//! together column by column where versions meet.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, BooleanBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::{concat::concat, interleave::interleave};
use shoal_sst::{HIDDEN_OP, HIDDEN_SET};
use shoal_types::TableSchema;

use super::MergeOptions;
use super::cursor::Cursor;
use crate::EngineError;

/// Pieces shorter than this on average are gathered row by row, longer ones copied as slices.
const SLICE_ROWS_MIN: usize = 8;

#[derive(Debug)]
enum Piece {
    /// Rows of a held batch.
    Slice {
        held: usize,
        start: usize,
        len: usize,
    },
    /// One row whose columns come from several; an index into `mixed`.
    Mixed(usize),
}

#[derive(Debug)]
struct Mixed {
    /// (held batch, row), newest first.
    sources: Vec<(usize, usize)>,
    /// For each column the source it comes from; `None`: NULL.
    columns: Vec<Option<u32>>,
    /// Columns set where something older may remain below; `None`: all.
    set: Option<Vec<u8>>,
}

/// Rows on their way out.
#[derive(Debug)]
pub(super) struct Output {
    options: MergeOptions,
    schema: SchemaRef,
    /// Columns that are not hidden.
    columns: usize,
    /// For each of them its bit in `__set`.
    bits: Vec<usize>,
    is_key: Vec<bool>,
    bits_total: usize,
    held: Vec<RecordBatch>,
    pieces: Vec<Piece>,
    mixed: Vec<Mixed>,
    rows: usize,
}

fn is_hidden(name: &str) -> bool {
    name == HIDDEN_OP || name == HIDDEN_SET
}

fn defect(error: impl std::fmt::Display) -> EngineError {
    EngineError::Invalid(format!("merge: {error}"))
}

impl Output {
    pub(super) fn new(
        table: &TableSchema,
        options: MergeOptions,
        batch: &RecordBatch,
    ) -> Result<Self, EngineError> {
        let keeps_hidden = !options.bottom && (options.has_deletes || options.has_partial);
        let (mut fields, mut bits, mut is_key) = (Vec::new(), Vec::new(), Vec::new());
        for field in batch.schema().fields() {
            if is_hidden(field.name()) {
                continue;
            }
            if field.name() == super::SID {
                fields.push(field.as_ref().clone());
                bits.push(usize::MAX);
                is_key.push(true);
                continue;
            }
            let at = table
                .columns
                .iter()
                .position(|c| c.name == *field.name())
                .ok_or_else(|| defect(format!("column {:?} is not in the table", field.name())))?;
            let column = &table.columns[at];
            let key = table.is_key(column.id);
            let nullable = column.nullable || (keeps_hidden && !key);
            fields.push(Field::new(
                &column.name,
                field.data_type().clone(),
                nullable,
            ));
            bits.push(at);
            is_key.push(key);
        }
        let columns = fields.len();
        if !options.bottom && options.has_deletes {
            fields.push(Field::new(HIDDEN_OP, DataType::Boolean, false));
        }
        if !options.bottom && options.has_partial {
            fields.push(Field::new(HIDDEN_SET, DataType::Binary, true));
        }
        Ok(Self {
            options,
            schema: Arc::new(Schema::new(fields)),
            columns,
            bits,
            is_key,
            bits_total: table.columns.len(),
            held: Vec::new(),
            pieces: Vec::new(),
            mixed: Vec::new(),
            rows: 0,
        })
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Checks that a batch has the columns of the result.
    pub(super) fn check(&self, batch: &RecordBatch) -> Result<(), EngineError> {
        let schema = batch.schema();
        let fits = schema.fields().len() >= self.columns
            && schema.fields()[self.columns..]
                .iter()
                .all(|f| is_hidden(f.name()))
            && schema
                .fields()
                .iter()
                .zip(self.schema.fields())
                .take(self.columns)
                .all(|(a, b)| a.name() == b.name() && a.data_type() == b.data_type());
        if !fits {
            return Err(defect(format!(
                "runs differ in columns: {schema:?} and {:?}",
                self.schema
            )));
        }
        for field in &schema.fields()[self.columns..] {
            let wanted = match field.name().as_str() {
                HIDDEN_OP => (
                    self.options.bottom || self.options.has_deletes,
                    DataType::Boolean,
                ),
                _ => (
                    self.options.bottom || self.options.has_partial,
                    DataType::Binary,
                ),
            };
            if wanted != (true, field.data_type().clone()) {
                return Err(defect(format!("unexpected column {field:?}")));
            }
        }
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows >= self.options.batch_rows
    }

    fn hold(&mut self, cursor: &mut Cursor) -> usize {
        if let Some(held) = *cursor.held() {
            return held;
        }
        self.held.push(cursor.batch().clone());
        let held = self.held.len() - 1;
        *cursor.held() = Some(held);
        held
    }

    /// Takes the cursor's rows up to `end` as they are, and moves it there. At most one batch's
    /// worth at a time, so that results stay bounded.
    pub(super) fn copy(&mut self, cursor: &mut Cursor, end: usize) {
        let held = self.hold(cursor);
        let start = cursor.row();
        let room = self.options.batch_rows.saturating_sub(self.rows).max(1);
        let end = end.min(start + room);
        match cursor.op().filter(|_| self.options.bottom) {
            None => self.push_slice(held, start, end),
            Some(op) => {
                let mut from = start;
                for row in start..end {
                    if op.value(row) {
                        self.push_slice(held, from, row);
                        from = row + 1;
                    }
                }
                self.push_slice(held, from, end);
            }
        }
        cursor.move_to(end);
    }

    /// Takes the cursor's row as it is; the cursor stays.
    pub(super) fn copy_row(&mut self, cursor: &mut Cursor) {
        let held = self.hold(cursor);
        self.push_slice(held, cursor.row(), cursor.row() + 1);
    }

    fn push_slice(&mut self, held: usize, start: usize, end: usize) {
        if start >= end {
            return;
        }
        self.rows += end - start;
        if let Some(Piece::Slice {
            held: h,
            start: s,
            len,
        }) = self.pieces.last_mut()
            && *h == held
            && *s + *len == start
        {
            *len += end - start;
            return;
        }
        self.pieces.push(Piece::Slice {
            held,
            start,
            len: end - start,
        });
    }

    /// Puts a row together from the current rows of `runs`, newest first. `closed`: what lies
    /// below them is known (a whole row among them, or a tombstone), so the result is whole.
    pub(super) fn mix(&mut self, cursors: &mut [Cursor], runs: &[usize], closed: bool) {
        let sources: Vec<(usize, usize)> = runs
            .iter()
            .map(|&run| (self.hold(&mut cursors[run]), cursors[run].row()))
            .collect();
        let is_set = |run: usize, bit: usize| {
            cursors[run]
                .set()
                .is_none_or(|set| set.get(bit / 8).is_some_and(|b| b >> (bit % 8) & 1 == 1))
        };
        let columns = self
            .bits
            .iter()
            .zip(&self.is_key)
            .map(|(&bit, &key)| {
                if key {
                    return Some(0);
                }
                runs.iter()
                    .position(|&run| is_set(run, bit))
                    .map(|s| s as u32)
            })
            .collect();
        let set = (!closed && !self.options.bottom).then(|| {
            let mut set = vec![0_u8; self.bits_total.div_ceil(8)];
            for bit in 0..self.bits_total {
                let any = runs.iter().any(|&run| is_set(run, bit));
                set[bit / 8] |= u8::from(any) << (bit % 8);
            }
            set
        });
        let whole = |set: &Vec<u8>| (0..self.bits_total).all(|b| set[b / 8] >> (b % 8) & 1 == 1);
        let set = set.filter(|set| !whole(set));
        self.pieces.push(Piece::Mixed(self.mixed.len()));
        self.mixed.push(Mixed {
            sources,
            columns,
            set,
        });
        self.rows += 1;
    }

    /// The rows collected so far as a batch.
    pub(super) fn take(&mut self) -> Result<Option<RecordBatch>, EngineError> {
        if self.rows == 0 {
            self.held.clear();
            self.pieces.clear();
            return Ok(None);
        }
        let mut columns = (0..self.columns)
            .map(|at| self.column(at))
            .collect::<Result<Vec<_>, _>>()?;
        if !self.options.bottom && self.options.has_deletes {
            columns.push(self.op());
        }
        if !self.options.bottom && self.options.has_partial {
            columns.push(self.set());
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        let batch = batch_of(&self.schema, columns, &options)?;
        self.held.clear();
        self.pieces.clear();
        self.mixed.clear();
        self.rows = 0;
        Ok(Some(batch))
    }

    fn column(&self, at: usize) -> Result<ArrayRef, EngineError> {
        if let [Piece::Slice { held, start, len }] = self.pieces[..] {
            return Ok(self.held[held].column(at).slice(start, len));
        }
        // Joining slices of a view array repeats its buffers once a slice; gathering does not.
        let views = matches!(
            self.schema.field(at).data_type(),
            DataType::Utf8View | DataType::BinaryView
        );
        let slices_pay = if views {
            self.pieces.len() <= self.held.len() * 2
        } else {
            self.rows >= self.pieces.len() * SLICE_ROWS_MIN
        };
        if self.mixed.is_empty() && slices_pay {
            let slices: Vec<ArrayRef> = self
                .pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Slice { held, start, len } => {
                        Some(self.held[*held].column(at).slice(*start, *len))
                    }
                    Piece::Mixed(_) => None,
                })
                .collect();
            let slices: Vec<&dyn Array> = slices.iter().map(AsRef::as_ref).collect();
            return concat(&slices).map_err(defect);
        }
        let null = new_null_array(self.schema.field(at).data_type(), 1);
        let mut arrays: Vec<&dyn Array> = self.held.iter().map(|b| b.column(at).as_ref()).collect();
        arrays.push(null.as_ref());
        let null_at = (arrays.len() - 1, 0);
        let mut indices = Vec::with_capacity(self.rows);
        for piece in &self.pieces {
            match piece {
                Piece::Slice { held, start, len } => {
                    indices.extend((*start..start + len).map(|row| (*held, row)));
                }
                Piece::Mixed(mixed) => {
                    let mixed = &self.mixed[*mixed];
                    indices.push(mixed.columns[at].map_or(null_at, |s| mixed.sources[s as usize]));
                }
            }
        }
        interleave(&arrays, &indices).map_err(defect)
    }

    fn op(&self) -> ArrayRef {
        let mut builder = BooleanBuilder::with_capacity(self.rows);
        for piece in &self.pieces {
            match piece {
                Piece::Mixed(_) => builder.append_value(false),
                Piece::Slice { held, start, len } => {
                    match self.held[*held].column_by_name(HIDDEN_OP) {
                        None => builder.append_n(*len, false),
                        Some(op) => {
                            let op = op.as_boolean();
                            for row in *start..start + len {
                                builder.append_value(op.value(row));
                            }
                        }
                    }
                }
            }
        }
        Arc::new(builder.finish())
    }

    fn set(&self) -> ArrayRef {
        let mut builder = BinaryBuilder::new();
        for piece in &self.pieces {
            match piece {
                Piece::Mixed(mixed) => builder.append_option(self.mixed[*mixed].set.as_deref()),
                Piece::Slice { held, start, len } => {
                    let set = self.held[*held]
                        .column_by_name(HIDDEN_SET)
                        .map(|set| set.as_binary::<i32>());
                    for row in *start..start + len {
                        match set {
                            Some(set) if set.is_valid(row) => builder.append_value(set.value(row)),
                            _ => builder.append_null(),
                        }
                    }
                }
            }
        }
        Arc::new(builder.finish())
    }
}

/// A batch; a NULL in a column declared NOT NULL (left by a write that did not name it) widens
/// the batch's schema rather than failing a read.
pub(crate) fn batch_of(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    options: &RecordBatchOptions,
) -> Result<RecordBatch, EngineError> {
    let fits = schema
        .fields()
        .iter()
        .zip(&columns)
        .all(|(f, c)| f.is_nullable() || c.null_count() == 0);
    let schema = if fits {
        Arc::clone(schema)
    } else {
        let fields: Vec<Field> = schema
            .fields()
            .iter()
            .zip(&columns)
            .map(|(f, c)| {
                Field::new(
                    f.name(),
                    f.data_type().clone(),
                    f.is_nullable() || c.null_count() > 0,
                )
            })
            .collect();
        Arc::new(Schema::new(fields))
    };
    RecordBatch::try_new_with_options(schema, columns, options).map_err(defect)
}
