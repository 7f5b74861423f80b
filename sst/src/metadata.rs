//! What a reader must know of a file before it reads rows: footer, page indexes, checksums.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use crate::footer::{CHECKSUM_BLOCK_BYTES, FOOTER_KEY, SST_FORMAT, SstFooter};

/// A parsed tail.
#[derive(Debug)]
pub struct SstMetadata {
    /// Parquet's own, with page indexes.
    pub parquet: Arc<ParquetMetaData>,
    /// ShoalDB's.
    pub footer: SstFooter,
    /// For `ParquetRecordBatchStreamBuilder`; text reads as `Utf8View`.
    pub reader: ArrowReaderMetadata,
    checksums: Vec<u32>,
}

/// Why a tail does not parse.
pub(crate) enum TailError {
    /// So many bytes at the end of the object are needed.
    NeedBytes(u64),
    Damaged(String),
}

impl SstMetadata {
    /// Parses the last bytes of an object of `size` bytes. Never panics.
    pub(crate) fn parse(tail: &Bytes, size: u64) -> Result<Self, TailError> {
        // The thrift decoder of the parquet crate is not proven against arbitrary bytes.
        catch_unwind(AssertUnwindSafe(|| Self::parse_inner(tail, size)))
            .unwrap_or_else(|_| Err(TailError::Damaged("the footer cannot be decoded".into())))
    }

    fn parse_inner(tail: &Bytes, size: u64) -> Result<Self, TailError> {
        let damaged = |e: &dyn std::fmt::Display| TailError::Damaged(e.to_string());
        let mut reader =
            ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        match reader.try_parse_sized(tail, size) {
            Ok(()) => {}
            Err(ParquetError::NeedMoreData(bytes)) if (bytes as u64) <= size => {
                return Err(TailError::NeedBytes(bytes as u64));
            }
            Err(error) => return Err(damaged(&error)),
        }
        let parquet = Arc::new(reader.finish().map_err(|e| damaged(&e))?);
        let json = parquet
            .file_metadata()
            .key_value_metadata()
            .and_then(|all| all.iter().find(|kv| kv.key == FOOTER_KEY))
            .and_then(|kv| kv.value.as_deref())
            .ok_or_else(|| damaged(&"it has no `shoal` metadata"))?;
        let footer: SstFooter = serde_json::from_str(json).map_err(|e| damaged(&e))?;
        if footer.format > SST_FORMAT {
            return Err(damaged(&format!(
                "format {} is newer than this program reads ({SST_FORMAT})",
                footer.format
            )));
        }
        let section = footer.checksums;
        let from_end = size
            .checked_sub(section.offset)
            .filter(|rest| *rest >= section.bytes)
            .ok_or_else(|| damaged(&"checksums beyond the object"))?;
        let Some(start) = (tail.len() as u64).checked_sub(from_end) else {
            return Err(TailError::NeedBytes(from_end));
        };
        let bytes = tail.slice(start as usize..(start + section.bytes) as usize);
        let checksums: Vec<u32> = bytes
            .chunks_exact(4)
            .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
            .collect();
        if checksums.len() != (section.offset as usize).div_ceil(CHECKSUM_BLOCK_BYTES) {
            return Err(damaged(&"checksums do not cover the object"));
        }
        let reader = arrow_metadata(&parquet).map_err(|e| damaged(&e))?;
        let columns = footer.column_ids.len()
            + usize::from(footer.has_deletes)
            + usize::from(footer.has_partial);
        if parquet.file_metadata().schema_descr().num_columns() != columns {
            return Err(damaged(&"column ids and columns differ in number"));
        }
        Ok(Self {
            parquet,
            footer,
            reader,
            checksums,
        })
    }

    /// Checks the bytes at `offset`, which must begin at a checksum block.
    pub(crate) fn verify(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let covered = self.footer.checksums.offset;
        let end = covered.min(offset + bytes.len() as u64);
        let mut at = offset;
        while at < end {
            let block = (at / CHECKSUM_BLOCK_BYTES as u64) as usize;
            let block_end = (at + CHECKSUM_BLOCK_BYTES as u64).min(covered);
            if block_end > end {
                break;
            }
            let part = &bytes[(at - offset) as usize..(block_end - offset) as usize];
            if crc32fast::hash(part) != self.checksums[block] {
                return Err(format!("checksum mismatch in bytes {at} to {block_end}"));
            }
            at = block_end;
        }
        Ok(())
    }

    /// Rows in the file.
    #[must_use]
    pub fn rows(&self) -> u64 {
        u64::try_from(self.parquet.file_metadata().num_rows()).unwrap_or(0)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        // The reader's schema is a fraction of the parquet metadata.
        self.parquet.memory_size() * 5 / 4 + self.checksums.len() * 4 + 1024
    }
}

/// Metadata for a reader that yields view types for text and binary.
fn arrow_metadata(parquet: &Arc<ParquetMetaData>) -> Result<ArrowReaderMetadata, ParquetError> {
    let stored = ArrowReaderMetadata::try_new(Arc::clone(parquet), ArrowReaderOptions::new())?;
    let fields: Vec<Field> = stored
        .schema()
        .fields()
        .iter()
        .map(|f| {
            let data_type = match f.data_type() {
                DataType::Utf8 => DataType::Utf8View,
                DataType::Binary if f.name() != crate::HIDDEN_SET => DataType::BinaryView,
                other => other.clone(),
            };
            Field::new(f.name(), data_type, f.is_nullable())
        })
        .collect();
    let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(fields)));
    ArrowReaderMetadata::try_new(Arc::clone(parquet), options)
}
