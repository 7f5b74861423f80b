//! Files for DataFusion's Parquet source, read through the engine's caches and counted.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::error::DataFusionError;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::errors::Result as ParquetResult;
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder};
use futures::future::BoxFuture;
use shoal_sst::{ReadCounters, SstFile, SstReader, SstStore};

use crate::QueryStats;

/// What a scan shows in `EXPLAIN ANALYZE` besides DataFusion's own counters.
#[derive(Clone, Debug)]
pub(crate) struct ReadMetrics {
    bytes_read: Count,
    bytes_fetched: Count,
    cache_hits: Count,
    cache_misses: Count,
    stats: Arc<QueryStats>,
}

impl ReadMetrics {
    pub(crate) fn new(
        metrics: &ExecutionPlanMetricsSet,
        partition: usize,
        stats: &Arc<QueryStats>,
    ) -> Self {
        let counter = |name| MetricBuilder::new(metrics).counter(name, partition);
        Self {
            bytes_read: counter("bytes_read"),
            bytes_fetched: counter("bytes_fetched"),
            cache_hits: counter("cache_hits"),
            cache_misses: counter("cache_misses"),
            stats: Arc::clone(stats),
        }
    }

    /// Adds what `counters` counted since `seen`.
    pub(crate) fn record(&self, counters: &ReadCounters, seen: &mut Seen) {
        let now = Seen::of(counters);
        self.bytes_read.add((now.read - seen.read) as usize);
        self.bytes_fetched
            .add((now.fetched - seen.fetched) as usize);
        self.cache_hits.add((now.hits - seen.hits) as usize);
        self.cache_misses.add((now.misses - seen.misses) as usize);
        QueryStats::add(&self.stats.bytes_read, now.read - seen.read);
        QueryStats::add(
            &self.stats.bytes_cached,
            (now.read - seen.read).saturating_sub(now.fetched - seen.fetched),
        );
        *seen = now;
    }
}

/// Counts already recorded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    read: u64,
    fetched: u64,
    hits: u64,
    misses: u64,
}

impl Seen {
    fn of(counters: &ReadCounters) -> Self {
        Self {
            read: counters.bytes_read.get(),
            fetched: counters.bytes_fetched.get(),
            hits: counters.cache_hits.get(),
            misses: counters.cache_misses.get(),
        }
    }
}

/// Opens files of a scan; each [`PartitionedFile`] carries its [`SstFile`].
#[derive(Debug)]
pub(crate) struct SstReaderFactory {
    store: Arc<SstStore>,
    stats: Arc<QueryStats>,
}

impl SstReaderFactory {
    pub(crate) fn new(store: Arc<SstStore>, stats: Arc<QueryStats>) -> Self {
        Self { store, stats }
    }
}

impl ParquetFileReaderFactory for SstReaderFactory {
    fn create_reader(
        &self,
        partition_index: usize,
        partitioned_file: PartitionedFile,
        _metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>, DataFusionError> {
        let file = partitioned_file
            .extension::<SstFile>()
            .ok_or_else(|| DataFusionError::Internal("a file of the scan is unknown".into()))?;
        let counters = Arc::new(ReadCounters::default());
        Ok(Box::new(CountingReader {
            inner: self.store.reader(file, Arc::clone(&counters)),
            counters,
            seen: Seen::default(),
            metrics: ReadMetrics::new(metrics, partition_index, &self.stats),
        }))
    }
}

struct CountingReader {
    inner: SstReader,
    counters: Arc<ReadCounters>,
    seen: Seen,
    metrics: ReadMetrics,
}

impl AsyncFileReader for CountingReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        Box::pin(async move {
            let bytes = self.inner.get_bytes(range).await;
            self.metrics.record(&self.counters, &mut self.seen);
            bytes
        })
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        Box::pin(async move {
            let bytes = self.inner.get_byte_ranges(ranges).await;
            self.metrics.record(&self.counters, &mut self.seen);
            bytes
        })
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        self.inner.get_metadata(options)
    }
}
