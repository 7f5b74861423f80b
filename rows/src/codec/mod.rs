//! Bytes of row blocks, as they stand in the body of a `Write` record.
//!
//! Format 1, all numbers little endian; `varint` is LEB128, `zigzag` a zigzag varint:
//!
//! ```text
//! body    version u8 = 1 | compression u8 (0 none, 1 LZ4) | [LZ4: raw bytes u32] | blocks
//! blocks  count varint | block…
//! block   table 16 bytes | incarnation varint | schema version varint | rows varint
//!         | parts u8 (bit 0: time, bit 1: deletes)
//!         | series columns varint | series varint | (column id varint | array)…
//!         | series_of | [time: ints] | columns varint | (column id varint | set | array)…
//!         | [deletes: bitmap]
//! series_of  0 (all the first) | 1 (row n has series n) | 2, 4, 8 (bytes of each: 1, 2, 4)
//! set     0 (every row writes it) | 1 bitmap | 2 (the rows whose value is not NULL)
//! bitmap  one bit a row, lowest first, unused bits zero
//! ```
//! Arrays are described in [`arrays`], integers in [`ints`].
//!
//! Everything is columnar and byte-aligned, so that both directions are plain loops over slices;
//! LZ4 over the whole finds what repeats between series, which a per-column scheme would miss.
//! A reader refuses versions it does not know; the record around it carries the checksum.

mod arrays;
mod ints;
mod reader;

use arrow_array::Array;
use arrow_buffer::{BooleanBuffer, ScalarBuffer};
use bytes::Bytes;
use shoal_types::{ColumnId, ColumnType, Incarnation, TableId};

use crate::{BlockColumn, RowBlock, Series};
use arrays::{decode_array, encode_array};
use ints::{decode_ints, encode_ints};
use reader::{Reader, write_bitmap, write_varint};

const VERSION: u8 = 1;
const PLAIN: u8 = 0;
const LZ4: u8 = 1;
/// LZ4 is not tried below this.
const COMPRESS_BYTES_MIN: usize = 256;
/// The largest body after decompression.
pub const RAW_BYTES_MAX: usize = 64 << 20;
/// The most rows (and series) that a block may have; a log record holds at most 65,536.
pub const BLOCK_ROWS_MAX: usize = 1 << 20;
/// The most memory that the arrays of one body may take, since constant columns cost no bytes of
/// it. A full record (65,536 rows of 4,096 columns, 16 bytes a value, bitmaps) stays below: what
/// was written within the record limits must never be refused when it is read back.
const DECODED_BYTES_MAX: usize = 5 << 30;

const HAS_TIME: u8 = 1;
const HAS_DELETES: u8 = 2;
const SERIES_FIRST: u8 = 0;
const SERIES_IDENTITY: u8 = 1;
const SERIES_U8: u8 = 2;
const SERIES_U16: u8 = 4;
const SERIES_U32: u8 = 8;
const SET_ALL: u8 = 0;
const SET_BITMAP: u8 = 1;
const SET_NOT_NULL: u8 = 2;

/// Bytes that are not row blocks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row block at byte {at}: {what}")]
pub struct CodecError {
    /// Place in the body (after decompression).
    pub at: usize,
    /// What is wrong.
    pub what: String,
}

/// Encodes blocks one after another; compresses the whole when that pays.
///
/// The blocks must pass [`RowBlock::check`], have at most [`BLOCK_ROWS_MAX`] rows each and stay
/// within the record size, which is far below what [`decode_blocks`] accepts.
#[must_use]
pub fn encode_blocks(blocks: &[RowBlock]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.iter().map(|b| 256 + b.rows() * 32).sum());
    out.extend([VERSION, PLAIN]);
    write_varint(blocks.len() as u64, &mut out);
    for block in blocks {
        encode_block(block, &mut out);
    }
    compress(&out).unwrap_or(out)
}

/// The LZ4 form of a plain body, or `None` where it would save less than a sixteenth.
fn compress(plain: &[u8]) -> Option<Vec<u8>> {
    let raw = &plain[2..];
    if raw.len() < COMPRESS_BYTES_MIN || raw.len() > RAW_BYTES_MAX {
        return None;
    }
    let header = 6;
    let mut out = vec![0; header + lz4_flex::block::get_maximum_output_size(raw.len())];
    out[0] = VERSION;
    out[1] = LZ4;
    out[2..header].copy_from_slice(&u32::try_from(raw.len()).ok()?.to_le_bytes());
    let written = lz4_flex::block::compress_into(raw, &mut out[header..]).ok()?;
    out.truncate(header + written);
    (out.len() < plain.len() - plain.len() / 16).then_some(out)
}

/// Decodes what [`encode_blocks`] wrote.
///
/// # Errors
/// [`CodecError`] for bytes without the format's structure (values are protected by the record's
/// checksum only). Never panics, and bounds the memory it takes.
pub fn decode_blocks(body: &Bytes) -> Result<Vec<RowBlock>, CodecError> {
    let fail = |what: &str| {
        Err(CodecError {
            at: 0,
            what: what.to_owned(),
        })
    };
    let [version, compression, rest @ ..] = &body[..] else {
        return fail("shorter than its header");
    };
    if *version != VERSION {
        return fail(&format!(
            "format version {version}; this program reads {VERSION}"
        ));
    }
    match *compression {
        PLAIN => decode_plain(rest, DECODED_BYTES_MAX),
        LZ4 => {
            let Some((length, packed)) = rest.split_first_chunk::<4>() else {
                return fail("shorter than its header");
            };
            let length = u32::from_le_bytes(*length) as usize;
            // An LZ4 byte stands for at most 255 bytes.
            if length > RAW_BYTES_MAX || length / 255 > packed.len() {
                return fail("a size after decompression that cannot be");
            }
            let mut raw = vec![0; length];
            match lz4_flex::block::decompress_into(packed, &mut raw) {
                Ok(written) if written == length => decode_plain(&raw, DECODED_BYTES_MAX),
                Ok(_) => fail("decompresses to another size than it says"),
                Err(e) => fail(&format!("does not decompress: {e}")),
            }
        }
        other => fail(&format!("unknown compression {other}")),
    }
}

fn decode_plain(bytes: &[u8], memory_bytes_max: usize) -> Result<Vec<RowBlock>, CodecError> {
    let mut reader = Reader::new(bytes, memory_bytes_max);
    let count = reader.varint()?;
    let mut blocks = Vec::new();
    for _ in 0..count {
        blocks.push(decode_block(&mut reader)?);
    }
    if reader.remaining() > 0 {
        return Err(reader.fail("bytes after the last block"));
    }
    Ok(blocks)
}

fn encode_block(block: &RowBlock, out: &mut Vec<u8>) {
    debug_assert_eq!(block.check(), Ok(()));
    out.extend(block.table.to_bytes());
    write_varint(block.incarnation.0, out);
    write_varint(u64::from(block.schema_version), out);
    write_varint(block.rows() as u64, out);
    let time = if block.time.is_some() { HAS_TIME } else { 0 };
    let deletes = if block.deletes.is_some() {
        HAS_DELETES
    } else {
        0
    };
    out.push(time | deletes);

    write_varint(block.series.columns.len() as u64, out);
    write_varint(block.series.len as u64, out);
    for (id, array) in block.series.columns.iter().zip(&block.series.values) {
        write_varint(u64::from(id.0), out);
        encode_array(array, out);
    }
    encode_series_of(&block.series_of, out);
    if let Some(time) = &block.time {
        encode_ints(time, out);
    }
    write_varint(block.columns.len() as u64, out);
    for column in &block.columns {
        write_varint(u64::from(column.id.0), out);
        match (&column.set, column.values.nulls()) {
            (None, _) => out.push(SET_ALL),
            (Some(set), Some(nulls)) if set == nulls.inner() => out.push(SET_NOT_NULL),
            (Some(set), _) => {
                out.push(SET_BITMAP);
                write_bitmap(set, out);
            }
        }
        encode_array(&column.values, out);
    }
    if let Some(deletes) = &block.deletes {
        write_bitmap(deletes, out);
    }
}

fn encode_series_of(series_of: &[u32], out: &mut Vec<u8>) {
    let largest = series_of.iter().copied().max().unwrap_or(0);
    if largest == 0 {
        out.push(SERIES_FIRST);
    } else if largest as usize + 1 == series_of.len()
        && (0..).zip(series_of).all(|(row, &s): (u32, _)| row == s)
    {
        out.push(SERIES_IDENTITY);
    } else if let Ok(_fits) = u8::try_from(largest) {
        out.push(SERIES_U8);
        out.extend(series_of.iter().map(|&s| s as u8));
    } else if let Ok(_fits) = u16::try_from(largest) {
        out.push(SERIES_U16);
        out.extend(series_of.iter().flat_map(|&s| (s as u16).to_le_bytes()));
    } else {
        out.push(SERIES_U32);
        out.extend(series_of.iter().flat_map(|s| s.to_le_bytes()));
    }
}

fn decode_series_of(reader: &mut Reader<'_>, rows: usize) -> Result<ScalarBuffer<u32>, CodecError> {
    reader.charge(rows * 4)?;
    let values: Vec<u32> = match reader.u8()? {
        SERIES_FIRST => vec![0; rows],
        // The cast is exact: `rows` is at most BLOCK_ROWS_MAX.
        SERIES_IDENTITY => (0..rows as u32).collect(),
        SERIES_U8 => reader.take(rows)?.iter().map(|&b| u32::from(b)).collect(),
        SERIES_U16 => {
            let (chunks, _) = reader.take(rows * 2)?.as_chunks::<2>();
            chunks
                .iter()
                .map(|c| u32::from(u16::from_le_bytes(*c)))
                .collect()
        }
        SERIES_U32 => {
            let (chunks, _) = reader.take(rows * 4)?.as_chunks::<4>();
            chunks.iter().map(|c| u32::from_le_bytes(*c)).collect()
        }
        _ => return Err(reader.fail("unknown form of series_of")),
    };
    Ok(values.into())
}

fn decode_block(reader: &mut Reader<'_>) -> Result<RowBlock, CodecError> {
    let table = TableId::from_bytes(reader.array()?);
    let incarnation = Incarnation(reader.varint()?);
    let schema_version = reader.varint_u32()?;
    let rows = reader.count(BLOCK_ROWS_MAX)?;
    let parts = reader.u8()?;
    if parts & !(HAS_TIME | HAS_DELETES) != 0 {
        return Err(reader.fail("unknown parts of a block"));
    }

    let series_columns = reader.varint()?;
    let series_len = reader.count(BLOCK_ROWS_MAX)?;
    let mut series = Series {
        columns: Vec::new(),
        values: Vec::new(),
        len: series_len,
    };
    for _ in 0..series_columns {
        series.columns.push(ColumnId(reader.varint_u32()?));
        series.values.push(decode_array(reader, series_len)?);
    }
    let series_of = decode_series_of(reader, rows)?;
    let time = if parts & HAS_TIME == 0 {
        None
    } else {
        Some(decode_ints::<i64>(reader, rows)?)
    };
    let count = reader.varint()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        columns.push(decode_column(reader, rows)?);
    }
    let deletes = if parts & HAS_DELETES == 0 {
        None
    } else {
        Some(reader.bitmap(rows)?)
    };
    let block = RowBlock {
        table,
        incarnation,
        schema_version,
        series,
        series_of,
        time,
        columns,
        deletes,
    };
    block.check().map_err(|e| reader.fail(e.what))?;
    Ok(block)
}

fn decode_column(reader: &mut Reader<'_>, rows: usize) -> Result<BlockColumn, CodecError> {
    let id = ColumnId(reader.varint_u32()?);
    let form = reader.u8()?;
    let bitmap = match form {
        SET_ALL | SET_NOT_NULL => None,
        SET_BITMAP => Some(reader.bitmap(rows)?),
        _ => return Err(reader.fail("unknown form of a set bitmap")),
    };
    let values = decode_array(reader, rows)?;
    let set = if form == SET_NOT_NULL {
        let all = || BooleanBuffer::new_set(rows);
        Some(values.nulls().map_or_else(all, |n| n.inner().clone()))
    } else {
        bitmap
    };
    Ok(BlockColumn { id, values, set })
}

/// The type code of an array and its parameters.
fn write_type(column_type: ColumnType, out: &mut Vec<u8>) {
    match column_type {
        ColumnType::Boolean => out.push(0),
        ColumnType::Int16 => out.push(1),
        ColumnType::Int32 => out.push(2),
        ColumnType::Int64 => out.push(3),
        ColumnType::Float32 => out.push(4),
        ColumnType::Float64 => out.push(5),
        ColumnType::Decimal { precision, scale } => out.extend([6, precision, scale as u8]),
        ColumnType::Text => out.push(7),
        ColumnType::Binary => out.push(8),
        ColumnType::Date => out.push(9),
        ColumnType::Timestamp { precision, utc } => {
            out.extend([10, precision.digits() | if utc { 0x80 } else { 0 }]);
        }
    }
}

fn read_type(reader: &mut Reader<'_>) -> Result<ColumnType, CodecError> {
    use shoal_types::TimePrecision::{Microsecond, Millisecond, Nanosecond, Second};
    Ok(match reader.u8()? {
        0 => ColumnType::Boolean,
        1 => ColumnType::Int16,
        2 => ColumnType::Int32,
        3 => ColumnType::Int64,
        4 => ColumnType::Float32,
        5 => ColumnType::Float64,
        6 => {
            let [precision, scale] = reader.array()?;
            let scale = scale as i8;
            if !(1..=38).contains(&precision) || i16::from(scale) > i16::from(precision) {
                return Err(reader.fail("a DECIMAL that cannot be"));
            }
            ColumnType::Decimal { precision, scale }
        }
        7 => ColumnType::Text,
        8 => ColumnType::Binary,
        9 => ColumnType::Date,
        10 => {
            let code = reader.u8()?;
            let precision = match code & 0x7F {
                0 => Second,
                3 => Millisecond,
                6 => Microsecond,
                9 => Nanosecond,
                _ => return Err(reader.fail("unknown precision of a timestamp")),
            };
            ColumnType::Timestamp {
                precision,
                utc: code & 0x80 != 0,
            }
        }
        _ => return Err(reader.fail("unknown type of an array")),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::Int64Array;

    use super::*;

    #[test]
    fn a_small_body_cannot_take_much_memory() {
        let values: arrow_array::ArrayRef = Arc::new(Int64Array::from(vec![5; 10_000]));
        let column = |id| BlockColumn {
            id: ColumnId(id),
            values: Arc::clone(&values),
            set: None,
        };
        let block = RowBlock {
            table: TableId::from_bytes([0; 16]),
            incarnation: Incarnation(0),
            schema_version: 1,
            series: Series {
                columns: Vec::new(),
                values: Vec::new(),
                len: 1,
            },
            series_of: vec![0; 10_000].into(),
            time: None,
            columns: (0..100).map(column).collect(),
            deletes: None,
        };
        let mut plain = Vec::new();
        write_varint(1, &mut plain);
        encode_block(&block, &mut plain);
        assert!(plain.len() < 1_000, "{} bytes", plain.len());
        assert!(decode_plain(&plain, 9_000_000).is_ok());
        let error = decode_plain(&plain, 7_000_000).expect_err("refused");
        assert!(error.what.contains("memory"), "{error}");
    }
}
