//! What `shoal inspect sst` shows of a file: read offline, without a manifest.

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use serde::Serialize;

use crate::footer::SstFooter;
use crate::metadata::{SstMetadata, TailError};
use crate::{SeriesIndex, SstError};

/// One column of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ColumnDescription {
    /// Name in the file.
    pub name: String,
    /// Parquet type.
    pub physical_type: String,
    /// Encodings of its pages.
    pub encodings: Vec<String>,
    /// Compression.
    pub compression: String,
    /// Bytes as stored.
    pub bytes: u64,
    /// Bytes before compression.
    pub bytes_uncompressed: u64,
    /// Stored bytes a row.
    pub bytes_per_row: f64,
    /// Data pages.
    pub pages: u64,
    /// Has a bloom filter.
    pub bloom_filter: bool,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SstDescription {
    /// Object path.
    pub path: String,
    /// Size of the object.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Stored bytes a row, everything counted.
    pub bytes_per_row: f64,
    /// Row groups.
    pub row_groups: u64,
    /// Series in the series index; `None`: the file has none.
    pub indexed_series: Option<u64>,
    /// What the file says of itself.
    pub footer: SstFooter,
    /// Columns in file order.
    pub columns: Vec<ColumnDescription>,
}

/// Reads a whole file, checks every checksum and says what is in it.
///
/// # Errors
/// [`SstError::Damaged`] names the place.
pub async fn describe(store: &dyn ObjectStore, path: &Path) -> Result<SstDescription, SstError> {
    let bytes: Bytes = store
        .get(path)
        .await
        .map_err(|e| SstError::from_store(path, e))?
        .bytes()
        .await
        .map_err(|e| SstError::from_store(path, e))?;
    let damaged = |what: String| SstError::Damaged {
        path: path.to_string(),
        what,
    };
    let metadata = SstMetadata::parse(&bytes, bytes.len() as u64).map_err(|e| match e {
        TailError::NeedBytes(n) => damaged(format!("its footer asks for {n} bytes")),
        TailError::Damaged(what) => damaged(what),
    })?;
    metadata.verify(0, &bytes).map_err(damaged)?;
    let indexed_series = match metadata.footer.series_index {
        None => None,
        Some(section) => {
            let end = section.offset.saturating_add(section.bytes) as usize;
            let part = bytes
                .get(section.offset as usize..end)
                .ok_or_else(|| damaged("the series index lies beyond the object".into()))?;
            let index = SeriesIndex::decode(part, metadata.rows()).map_err(damaged)?;
            Some(index.len() as u64)
        }
    };
    let rows = metadata.rows();
    let per_row = |bytes: u64| bytes as f64 / rows.max(1) as f64;
    let parquet = &metadata.parquet;
    let columns = parquet
        .file_metadata()
        .schema_descr()
        .columns()
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let chunks: Vec<_> = parquet.row_groups().iter().map(|g| g.column(at)).collect();
            let stored: u64 = chunks
                .iter()
                .map(|c| c.compressed_size().max(0) as u64)
                .sum();
            let mut encodings: Vec<String> = chunks
                .iter()
                .flat_map(|c| c.encodings().map(|e| format!("{e:?}")))
                .collect();
            encodings.sort();
            encodings.dedup();
            let pages = parquet.offset_index().map_or(0, |groups| {
                groups
                    .iter()
                    .filter_map(|g| g.get(at))
                    .map(|o| o.page_locations().len() as u64)
                    .sum()
            });
            ColumnDescription {
                name: column.name().to_owned(),
                physical_type: format!("{:?}", column.physical_type()),
                encodings,
                compression: chunks
                    .first()
                    .map_or_else(String::new, |c| format!("{:?}", c.compression())),
                bytes: stored,
                bytes_uncompressed: chunks
                    .iter()
                    .map(|c| c.uncompressed_size().max(0) as u64)
                    .sum(),
                bytes_per_row: per_row(stored),
                pages,
                bloom_filter: chunks.iter().any(|c| c.bloom_filter_offset().is_some()),
            }
        })
        .collect();
    Ok(SstDescription {
        path: path.to_string(),
        bytes: bytes.len() as u64,
        rows,
        bytes_per_row: per_row(bytes.len() as u64),
        row_groups: parquet.num_row_groups() as u64,
        indexed_series,
        columns,
        footer: metadata.footer,
    })
}
