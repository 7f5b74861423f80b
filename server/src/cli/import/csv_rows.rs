//! CSV (RFC 4180) with a header line. An empty field is NULL.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::ArrayRef;
use arrow_array::builder::StringBuilder;
use arrow_array::types::{Date32Type, Float64Type, Int64Type};
use arrow_cast::parse::{Parser, string_to_timestamp_nanos};
use arrow_schema::{DataType, TimeUnit};
use csv::ByteRecord;

use super::chunk::{BAD_SHOWN_MAX, BadLine, Chunk, Chunks};
use super::rows::{Encoded, Mapping, encode};
use super::source::Source;
use super::table::InputColumn;
use crate::cli::CliError;

/// Rows of a chunk, at most.
const ROWS: usize = 50_000;
/// Bytes of field text of a chunk, about.
const BYTES: usize = 8 << 20;
/// Rows that types are inferred from.
const INFER_ROWS: usize = 10_000;
/// A column narrows while its values allow: each kind takes what the ones before it take not.
const KINDS: [DataType; 5] = [
    DataType::Boolean,
    DataType::Int64,
    DataType::Float64,
    DataType::Date32,
    DataType::Timestamp(TimeUnit::Nanosecond, None),
];

/// An open CSV input.
pub struct CsvInput {
    reader: csv::Reader<Box<dyn Read + Send>>,
    consumed: Arc<AtomicU64>,
    /// Names of the header line.
    pub names: Vec<String>,
    /// Inferred columns.
    pub columns: Vec<InputColumn>,
    /// Rows read for inference, not yet handed out.
    ahead: std::collections::VecDeque<ByteRecord>,
    name: String,
    number: u64,
}

impl CsvInput {
    /// Opens the input, reads the header line and looks at the first rows.
    pub fn open(source: &Source) -> Result<Self, CliError> {
        let (input, consumed) = source.open()?;
        let name = source.name();
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
        let header = reader
            .headers()
            .map_err(|e| CliError::failed(format!("{name}: {e}")))?;
        let names: Vec<String> = header
            .iter()
            .map(|n| n.trim_start_matches('\u{feff}').trim().to_owned())
            .collect();
        if names.iter().all(String::is_empty) {
            return Err(CliError::failed(format!("{name}: there is no header line")));
        }
        let mut ahead = std::collections::VecDeque::new();
        let mut bytes = 0;
        let mut record = ByteRecord::new();
        while ahead.len() < INFER_ROWS && bytes < BYTES {
            let more = reader
                .read_byte_record(&mut record)
                .map_err(|e| CliError::failed(format!("{name}: {e}")))?;
            if !more {
                break;
            }
            bytes += record.as_slice().len();
            ahead.push_back(record.clone());
        }
        let columns = names
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let values = || ahead.iter().filter_map(move |r| r.get(i));
                InputColumn {
                    name: name.clone(),
                    data_type: infer(values()),
                    has_nulls: values().any(<[u8]>::is_empty),
                }
            })
            .collect();
        Ok(Self {
            reader,
            consumed,
            names,
            columns,
            ahead,
            name,
            number: 0,
        })
    }

    /// Chunks whose columns go where `mapping` says.
    pub fn chunks(self, mapping: Mapping) -> CsvChunks {
        CsvChunks {
            input: self,
            mapping,
        }
    }

    fn read(&mut self, record: &mut ByteRecord) -> Result<bool, CliError> {
        if let Some(ahead) = self.ahead.pop_front() {
            *record = ahead;
            return Ok(true);
        }
        self.reader
            .read_byte_record(record)
            .map_err(|e| CliError::failed(format!("{}: {e}", self.name)))
    }
}

/// The narrowest type that all values have; TEXT if none does or there are none.
fn infer<'a>(values: impl Iterator<Item = &'a [u8]>) -> DataType {
    let mut possible = vec![true; KINDS.len()];
    let (mut seen, mut digits) = (false, 0);
    for value in values {
        let Ok(text) = std::str::from_utf8(value) else {
            return DataType::Utf8;
        };
        if text.is_empty() {
            continue;
        }
        seen = true;
        for (kind, possible) in KINDS.iter().zip(&mut possible) {
            *possible = *possible
                && match kind {
                    DataType::Boolean => {
                        matches!(text, "true" | "false" | "TRUE" | "FALSE" | "True" | "False")
                    }
                    DataType::Int64 => Int64Type::parse(text).is_some(),
                    DataType::Float64 => Float64Type::parse(text).is_some(),
                    DataType::Date32 => text.len() == 10 && Date32Type::parse(text).is_some(),
                    _ => text.len() > 10 && string_to_timestamp_nanos(text).is_ok(),
                };
        }
        if possible[KINDS.len() - 1] {
            let fraction = text.split_once('.').map_or(0, |(_, tail)| {
                tail.bytes().take_while(u8::is_ascii_digit).count()
            });
            digits = digits.max(fraction);
        }
    }
    let found = KINDS
        .iter()
        .zip(&possible)
        .find(|(_, p)| **p)
        .map(|(k, _)| k);
    match found {
        _ if !seen => DataType::Utf8,
        Some(DataType::Timestamp(_, _)) => {
            let unit = match digits {
                0..=3 => TimeUnit::Millisecond,
                4..=6 => TimeUnit::Microsecond,
                _ => TimeUnit::Nanosecond,
            };
            DataType::Timestamp(unit, None)
        }
        Some(kind) => kind.clone(),
        None => DataType::Utf8,
    }
}

/// Chunks of CSV rows.
pub struct CsvChunks {
    input: CsvInput,
    mapping: Mapping,
}

impl Chunks for CsvChunks {
    fn next(&mut self) -> Result<Option<Chunk>, CliError> {
        let width = self.input.names.len();
        let mut builders: Vec<StringBuilder> = (0..width).map(|_| StringBuilder::new()).collect();
        let mut lines = Vec::new();
        let (mut bad, mut bad_count, mut bytes, mut first_line) = (Vec::new(), 0, 0, None);
        let mut record = ByteRecord::new();
        while lines.len() < ROWS && bytes < BYTES && self.input.read(&mut record)? {
            let line = record.position().map_or(0, csv::Position::line);
            first_line.get_or_insert(line);
            bytes += record.as_slice().len() + width;
            match texts(&record, width) {
                Ok(fields) => {
                    for (builder, field) in builders.iter_mut().zip(fields) {
                        builder.append_option(field);
                    }
                    lines.push(line);
                }
                Err((column, reason)) => {
                    bad_count += 1;
                    if bad.len() < BAD_SHOWN_MAX {
                        bad.push(BadLine {
                            line,
                            column,
                            reason,
                        });
                    }
                }
            }
        }
        let Some(first_line) = first_line else {
            return Ok(None);
        };
        let columns: Vec<ArrayRef> = builders
            .iter_mut()
            .map(|b| Arc::new(b.finish()) as ArrayRef)
            .collect();
        let encoded = if lines.is_empty() {
            Encoded::default()
        } else {
            use arrow_array::cast::AsArray;
            encode(
                &columns,
                lines.len(),
                &self.mapping,
                |row| lines[row],
                |column, row| columns[column].as_string::<i32>().value(row).to_owned(),
            )?
        };
        bad.extend(encoded.bad);
        bad.sort_by_key(|b: &BadLine| b.line);
        bad.truncate(BAD_SHOWN_MAX);
        let number = self.input.number;
        self.input.number += 1;
        Ok(Some(Chunk {
            number,
            body: encoded.body,
            first_line,
            input_bytes: bytes as u64,
            consumed: self.input.consumed.load(Ordering::Relaxed),
            bad,
            bad_count: bad_count + encoded.bad_count,
        }))
    }
}

type Fields<'a> = Vec<Option<&'a str>>;

fn texts(record: &ByteRecord, width: usize) -> Result<Fields<'_>, (u64, String)> {
    if record.len() != width {
        let reason = format!("{} fields, the header has {width}", record.len());
        return Err((0, reason));
    }
    record
        .iter()
        .enumerate()
        .map(|(i, field)| match std::str::from_utf8(field) {
            Ok("") => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(_) => Err((i as u64 + 1, "not valid UTF-8".to_owned())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_types_are_the_narrowest_that_fit_all_values() {
        let of = |values: &[&str]| infer(values.iter().map(|v| v.as_bytes()));
        assert_eq!(of(&["1", "", "-3"]), DataType::Int64);
        assert_eq!(of(&["1", "2.5"]), DataType::Float64);
        assert_eq!(of(&["true", "False"]), DataType::Boolean);
        assert_eq!(of(&["2026-01-01"]), DataType::Date32);
        assert_eq!(
            of(&["2026-01-01T00:00:00Z", "2026-01-01 00:00:00.5"]),
            DataType::Timestamp(TimeUnit::Millisecond, None)
        );
        assert_eq!(
            of(&["2026-01-01T00:00:00.123456789Z"]),
            DataType::Timestamp(TimeUnit::Nanosecond, None)
        );
        assert_eq!(of(&["1", "x"]), DataType::Utf8);
        assert_eq!(of(&["", ""]), DataType::Utf8);
    }

    #[test]
    fn bad_rows_are_left_out_with_their_line_and_reason() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("x.csv");
        std::fs::write(&path, "id,v\n1,2.5\n2,oops\n3\n\"4\n\",1\n5,\n").expect("write");
        let source = Source::new(path.to_str().expect("utf-8"));
        let input = CsvInput::open(&source).expect("open");
        let column = |name: &str, data_type, nullable| super::super::table::TargetColumn {
            name: name.into(),
            data_type,
            nullable,
        };
        let columns = [
            column("id", DataType::Int64, false),
            column("v", DataType::Float64, true),
        ];
        let mapping = Mapping::by_name(&input.names, &columns).expect("mapping");
        let mut chunks = input.chunks(mapping);
        let chunk = chunks.next().expect("chunk").expect("one");
        let bad: Vec<(u64, u64)> = chunk.bad.iter().map(|b| (b.line, b.column)).collect();
        assert_eq!(bad, [(3, 2), (4, 0)], "{:?}", chunk.bad);
        assert!(chunk.bad[0].reason.contains("oops"));
        let reader = arrow_ipc::reader::StreamReader::try_new(&chunk.body[..], None).expect("ipc");
        let rows: usize = reader.map(|b| b.expect("batch").num_rows()).sum();
        assert_eq!(rows, 3);
        assert!(chunks.next().expect("end").is_none());
    }
}
