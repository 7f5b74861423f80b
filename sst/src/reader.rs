//! One file as the parquet crate reads it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;

use crate::cache::FileId;
use crate::metadata::SstMetadata;
use crate::stats::ReadCounters;
use crate::store::{FileRef, Keep, SstStore};
use crate::{SstError, SstFile};

/// Reads one file through the caches of an [`SstStore`]. Its errors are `ParquetError::External`
/// around an [`SstError`].
#[derive(Debug)]
pub struct SstReader {
    store: Arc<SstStore>,
    file: FileRef,
    counters: Arc<ReadCounters>,
    keep: Keep,
}

impl SstStore {
    /// A reader of one file; `counters` may be shared by all readers of a statement.
    #[must_use]
    pub fn reader(self: &Arc<Self>, file: &SstFile, counters: Arc<ReadCounters>) -> SstReader {
        SstReader::new(Arc::clone(self), FileRef::of(file), counters)
    }

    /// A reader of an object known by its path and size only: its footer is not checked against
    /// a manifest's checksum.
    #[must_use]
    pub fn reader_of(
        self: &Arc<Self>,
        path: Path,
        bytes: u64,
        counters: Arc<ReadCounters>,
    ) -> SstReader {
        let file = FileRef {
            id: FileId::of(&path),
            path,
            bytes,
            tail: None,
        };
        SstReader::new(Arc::clone(self), file, counters)
    }
}

impl SstReader {
    pub(crate) fn new(store: Arc<SstStore>, file: FileRef, counters: Arc<ReadCounters>) -> Self {
        Self {
            store,
            file,
            counters,
            keep: Keep::Everywhere,
        }
    }

    /// Blocks it fetches are not put into the caches.
    #[must_use]
    pub(crate) fn keeping_nothing(mut self) -> Self {
        self.keep = Keep::Nowhere;
        self
    }

    /// What was read through this handle and those that share its counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<ReadCounters> {
        &self.counters
    }

    /// Footer, page indexes and ShoalDB's own metadata.
    ///
    /// # Errors
    /// [`SstError`].
    pub async fn metadata(&self) -> Result<Arc<SstMetadata>, SstError> {
        self.store.metadata_of(&self.file).await
    }

    async fn read(&self, ranges: Vec<Range<u64>>) -> Result<Vec<Bytes>, SstError> {
        let metadata = self.store.metadata_of(&self.file).await?;
        self.store
            .read(&self.file, &metadata, ranges, &self.counters, self.keep)
            .await
    }
}

fn external(error: SstError) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for SstReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        async move {
            let mut parts = self.read(vec![range]).await.map_err(external)?;
            Ok(parts.pop().unwrap_or_default())
        }
        .boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move { self.read(ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move {
            let metadata = self.store.metadata_of(&self.file).await.map_err(external)?;
            Ok(Arc::clone(&metadata.parquet))
        }
        .boxed()
    }
}
