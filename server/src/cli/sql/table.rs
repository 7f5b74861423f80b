//! Results as aligned text: one line a row, or one line a value for wide rows.
//!
//! Column widths come from the first rows ([`ROWS_MEASURED`]); later rows are written as they
//! come, so that a large result streams. A later, wider value pushes its line out of alignment
//! rather than being cut.

use std::io::{self, Write};

use arrow_array::{Array, RecordBatch};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use unicode_width::UnicodeWidthStr;

/// Rows that decide the widths.
const ROWS_MEASURED: usize = 1_000;
/// What NULL looks like.
const NULL: &str = "NULL";

static OPTIONS: FormatOptions<'static> = FormatOptions::new()
    .with_display_error(true)
    .with_null(NULL)
    .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
    .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.f%:z"));

/// Whether rows are turned on their side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expanded {
    /// One line a row.
    Off,
    /// One line a value.
    On,
    /// One line a value where a row is wider than the terminal.
    Auto,
}

/// Writes one result.
pub struct Table {
    names: Vec<String>,
    right: Vec<bool>,
    expanded: Expanded,
    /// Columns of the terminal; `None`: not one, lines have no end.
    terminal: Option<usize>,
    held: Vec<Vec<String>>,
    layout: Option<Layout>,
    rows: u64,
}

enum Layout {
    Lines(Vec<usize>),
    Values(usize),
}

impl Table {
    /// A table of these columns.
    #[must_use]
    pub fn new(schema: &SchemaRef, expanded: Expanded, terminal: Option<usize>) -> Self {
        Self {
            names: schema
                .fields()
                .iter()
                .map(|f| clean(f.name(), false))
                .collect(),
            right: schema
                .fields()
                .iter()
                .map(|f| {
                    f.data_type().is_numeric() || matches!(f.data_type(), DataType::Duration(_))
                })
                .collect(),
            expanded,
            terminal,
            held: Vec::new(),
            layout: None,
            rows: 0,
        }
    }

    /// Rows so far.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes a batch.
    ///
    /// # Errors
    /// The output, or a column that cannot be shown.
    pub fn push(&mut self, batch: &RecordBatch, out: &mut impl Write) -> io::Result<()> {
        let shown = |e: ArrowError| io::Error::other(e);
        let cells = batch
            .columns()
            .iter()
            .map(|c| ArrayFormatter::try_new(c.as_ref(), &OPTIONS))
            .collect::<Result<Vec<_>, _>>()
            .map_err(shown)?;
        for row in 0..batch.num_rows() {
            let line = cells
                .iter()
                .zip(batch.columns())
                .map(|(cell, column)| {
                    if column.is_null(row) {
                        NULL.to_owned()
                    } else {
                        clean(&cell.value(row).to_string(), true)
                    }
                })
                .collect::<Vec<_>>();
            self.rows += 1;
            if self.layout.is_some() {
                self.line(&line, self.rows, out)?;
            } else {
                self.held.push(line);
                if self.held.len() >= ROWS_MEASURED {
                    self.begin(out)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is held back, if anything is.
    ///
    /// # Errors
    /// The output.
    pub fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.layout.is_none() {
            self.begin(out)?;
        }
        Ok(())
    }

    /// Measures, then writes the head and the rows held back.
    fn begin(&mut self, out: &mut impl Write) -> io::Result<()> {
        let mut widths: Vec<usize> = self.names.iter().map(|n| n.width()).collect();
        for row in &self.held {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell
                    .lines()
                    .map(UnicodeWidthStr::width)
                    .fold(*width, usize::max);
            }
        }
        let total = widths
            .iter()
            .map(|w| w + 3)
            .sum::<usize>()
            .saturating_sub(1);
        let on_side = match self.expanded {
            Expanded::Off => false,
            Expanded::On => true,
            Expanded::Auto => self.terminal.is_some_and(|t| total > t),
        };
        if on_side && !self.names.is_empty() {
            let width = self.names.iter().map(|n| n.width()).max().unwrap_or(0);
            self.layout = Some(Layout::Values(width));
        } else {
            self.head(&widths, out)?;
            self.layout = Some(Layout::Lines(widths));
        }
        let held = std::mem::take(&mut self.held);
        let before = self.rows - held.len() as u64;
        for (i, row) in held.iter().enumerate() {
            self.line(row, before + i as u64 + 1, out)?;
        }
        Ok(())
    }

    fn head(&self, widths: &[usize], out: &mut impl Write) -> io::Result<()> {
        let last = widths.len().saturating_sub(1);
        for (i, (name, width)) in self.names.iter().zip(widths).enumerate() {
            // Names are centred, as psql does.
            let space = width - name.width();
            let left = space / 2;
            write!(out, " {:left$}{name}", "")?;
            if i < last {
                write!(out, "{:1$} |", "", space - left)?;
            }
        }
        writeln!(out)?;
        for (i, width) in widths.iter().enumerate() {
            let joint = if i == 0 { "" } else { "+" };
            write!(out, "{joint}{}", "-".repeat(width + 2))?;
        }
        writeln!(out)
    }

    fn line(&self, row: &[String], number: u64, out: &mut impl Write) -> io::Result<()> {
        match &self.layout {
            Some(Layout::Values(width)) => {
                writeln!(
                    out,
                    "-[ row {number} ]{}",
                    "-".repeat(width.saturating_sub(4))
                )?;
                for (name, cell) in self.names.iter().zip(row) {
                    let mut lines = cell.split('\n');
                    let first = lines.next().unwrap_or_default();
                    writeln!(out, "{name}{:1$} | {first}", "", width - name.width())?;
                    for line in lines {
                        writeln!(out, "{:width$} | {line}", "")?;
                    }
                }
                Ok(())
            }
            Some(Layout::Lines(widths)) => {
                let mut cells: Vec<_> =
                    row.iter().map(|cell| cell.split('\n').peekable()).collect();
                loop {
                    let mut more = false;
                    let last = widths.len().saturating_sub(1);
                    for (i, (cell, width)) in cells.iter_mut().zip(widths).enumerate() {
                        let line = cell.next().unwrap_or_default();
                        // A value that goes on in the next line is marked, as psql does.
                        let goes_on = cell.peek().is_some();
                        more |= goes_on;
                        let mark = if goes_on { '+' } else { ' ' };
                        let space = width.saturating_sub(line.width());
                        let text = if self.right[i] {
                            format!(" {:space$}{line}{mark}", "")
                        } else {
                            format!(" {line}{:space$}{mark}", "")
                        };
                        if i < last {
                            write!(out, "{text}|")?;
                        } else if goes_on {
                            write!(out, "{text}")?;
                        } else if self.right[i] {
                            write!(out, " {:space$}{line}", "")?;
                        } else {
                            write!(out, " {line}")?;
                        }
                    }
                    writeln!(out)?;
                    if !more {
                        return Ok(());
                    }
                }
            }
            None => Ok(()),
        }
    }
}

/// Control characters made visible, so that a value cannot steer the terminal; line breaks stay
/// where `lines` allows them.
fn clean(text: &str, lines: bool) -> String {
    let plain = |c: char| !c.is_control() || (lines && c == '\n');
    if text.chars().all(plain) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if plain(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use arrow_array::{ArrayRef, Float64Array, StringArray};

    fn shown(expanded: Expanded, terminal: Option<usize>) -> String {
        let host: ArrayRef = Arc::new(StringArray::from(vec![
            Some("host_0"),
            None,
            Some("größe\n日本"),
        ]));
        let usage: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.5), Some(-100.25), None]));
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("hostname", host, true),
            ("u", usage, true),
        ])
        .unwrap();
        let mut out = Vec::new();
        let mut table = Table::new(&batch.schema(), expanded, terminal);
        table.push(&batch, &mut out).unwrap();
        table.finish(&mut out).unwrap();
        assert_eq!(table.rows(), 3);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_line_up_whatever_is_in_them() {
        assert_eq!(
            shown(Expanded::Off, Some(10)),
            concat!(
                " hostname |    u\n",
                "----------+---------\n",
                " host_0   |     1.5\n",
                " NULL     | -100.25\n",
                " größe   +|    NULL\n",
                " 日本     |        \n",
            )
        );
    }

    #[test]
    fn rows_wider_than_the_terminal_turn_on_their_side() {
        let on_side = shown(Expanded::Auto, Some(12));
        assert!(
            on_side.starts_with("-[ row 1 ]----\nhostname | host_0\nu        | 1.5\n"),
            "{on_side}"
        );
        assert!(shown(Expanded::Auto, Some(80)).starts_with(" hostname"));
        assert!(shown(Expanded::Auto, None).starts_with(" hostname"));
    }
}
