//! Files that need no merge, read by DataFusion's Parquet source: late materialisation, page and
//! row-group pruning, dynamic filters and limits are its own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_schema::{SchemaRef, SortOptions};
use datafusion::catalog::Session;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetRowSelection;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::parquet::arrow::arrow_reader::RowSelection;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_expr_adapter::PhysicalExprAdapterFactory;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::MetricBuilder;
use shoal_engine::ReadView;
use shoal_sst::{SstFile, SstStore};
use shoal_types::{ColumnType, TableSchema};

use super::bounds::Bounds;
use super::columns::{Names, RenamedColumns, names};
use super::reader::SstReaderFactory;
use super::views::{StatementViews, external};

/// A series selection is worth its bookkeeping only when it leaves out at least half the rows.
const SELECTION_SHARE_MAX: u64 = 2;

/// One file of a scan.
struct Chosen {
    file: SstFile,
    /// Rows to look at; `None`: all.
    rows: Option<Vec<Range<u64>>>,
}

impl Chosen {
    fn row_count(&self) -> u64 {
        match &self.rows {
            None => self.file.rows,
            Some(rows) => rows.iter().map(|r| r.end - r.start).sum(),
        }
    }

    fn bytes(&self) -> u64 {
        self.file.bytes.saturating_mul(self.row_count()) / self.file.rows.max(1)
    }
}

/// What the planner may know of the scans of plain files.
pub(crate) struct PlainScan<'a> {
    pub view: &'a ReadView,
    pub views: &'a StatementViews,
    pub arrow: &'a SchemaRef,
    pub bounds: &'a Bounds,
    pub projection: Option<&'a Vec<usize>>,
    pub limit: Option<usize>,
}

impl PlainScan<'_> {
    /// Scans of `files` (places in the view): one for each set of column names, all of them in
    /// key order within a partition.
    pub(crate) async fn plans(
        &self,
        state: &dyn Session,
        files: &[usize],
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>> {
        let store = self.views.store();
        let mut by_names: BTreeMap<Option<Names>, Vec<Chosen>> = BTreeMap::new();
        for &i in files {
            let file = &self.view.files[i];
            let metadata = store.metadata(file).await.map_err(external)?;
            let rows = selected_rows(store, file, self.bounds).await?;
            if rows.as_ref().is_some_and(Vec::is_empty) {
                continue;
            }
            by_names
                .entry(names(&self.view.schema, &metadata))
                .or_default()
                .push(Chosen {
                    file: file.clone(),
                    rows,
                });
        }
        by_names
            .into_iter()
            .map(|(names, chosen)| self.plan(state, names, chosen))
            .collect()
    }

    fn plan(
        &self,
        state: &dyn Session,
        names: Option<Names>,
        chosen: Vec<Chosen>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = &self.view.schema;
        let store = Arc::clone(self.views.store());
        let options = TableParquetOptions {
            global: state.config_options().execution.parquet.clone(),
            ..Default::default()
        };
        let source = ParquetSource::new(Arc::clone(self.arrow))
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(SstReaderFactory::new(
                store,
                Arc::clone(self.views.stats()),
            )));
        let count = |name: &'static str, n: usize| {
            MetricBuilder::new(source.metrics())
                .global_counter(name)
                .add(n);
        };
        count("files_total", self.view.files.len());
        count("files_pruned", self.view.files.len() - chosen.len());
        count(
            "table_bytes",
            self.view.files.iter().map(|f| f.bytes as usize).sum(),
        );
        let statistics = statistics(schema, self.arrow, chosen.iter());
        let groups = file_groups(
            schema,
            self.arrow,
            chosen,
            state.config().target_partitions(),
        );
        let adapter: Option<Arc<dyn PhysicalExprAdapterFactory>> = names
            .map(|names| Arc::new(RenamedColumns(names)) as Arc<dyn PhysicalExprAdapterFactory>);
        let config =
            FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
                .with_file_groups(groups)
                .with_projection_indices(self.projection.cloned())?
                .with_limit(self.limit)
                .with_statistics(statistics)
                .with_output_ordering(key_order(schema, self.arrow).into_iter().collect())
                .with_expr_adapter(adapter)
                .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

async fn selected_rows(
    store: &Arc<SstStore>,
    file: &SstFile,
    bounds: &Bounds,
) -> Result<Option<Vec<Range<u64>>>> {
    if bounds.prefixes.is_none() && !bounds.last_rows {
        return Ok(None);
    }
    let Some(index) = store.series_index(file).await.map_err(external)? else {
        return Ok(None);
    };
    if bounds.last_rows {
        return Ok(Some(bounds.last_of(&index)));
    }
    Ok(bounds.rows(&index).filter(|rows| {
        let selected: u64 = rows.iter().map(|r| r.end - r.start).sum();
        selected * SELECTION_SHARE_MAX <= file.rows
    }))
}

/// Spreads files over at most `partitions` groups, the largest first onto the least loaded.
fn file_groups(
    schema: &TableSchema,
    arrow: &SchemaRef,
    mut chosen: Vec<Chosen>,
    partitions: usize,
) -> Vec<FileGroup> {
    let count = partitions.clamp(1, chosen.len().max(1));
    chosen.sort_by_key(|c| std::cmp::Reverse(c.bytes()));
    let mut groups: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); count];
    for c in chosen {
        if let Some(group) = groups.iter_mut().min_by_key(|(load, _)| *load) {
            group.0 += c.bytes().max(1);
            group.1.push(partitioned_file(schema, arrow, c));
        }
    }
    groups
        .into_iter()
        .map(|(_, files)| FileGroup::new(files))
        .collect()
}

fn partitioned_file(schema: &TableSchema, arrow: &SchemaRef, chosen: Chosen) -> PartitionedFile {
    let statistics = statistics(schema, arrow, std::iter::once(&chosen));
    let mut file = PartitionedFile::new(chosen.file.path.clone(), chosen.file.bytes)
        .with_statistics(Arc::new(statistics));
    if let Some(rows) = &chosen.rows {
        let total = chosen.file.rows as usize;
        let ranges = rows
            .iter()
            .map(|r| (r.start as usize).min(total)..(r.end as usize).min(total));
        let selection = RowSelection::from_consecutive_ranges(ranges, total);
        file = file.with_extension(ParquetRowSelection::new(selection));
    }
    file.with_extension(chosen.file)
}

/// Exact row count and time bounds where whole files are read.
fn statistics<'a>(
    schema: &TableSchema,
    arrow: &SchemaRef,
    chosen: impl Iterator<Item = &'a Chosen>,
) -> Statistics {
    let (mut rows, mut bytes, mut exact) = (0_usize, 0_usize, true);
    let mut times: Option<(i64, i64)> = None;
    let mut timed = true;
    for c in chosen {
        rows += c.row_count() as usize;
        bytes += c.bytes() as usize;
        exact &= c.rows.is_none();
        match (times, c.file.time_range) {
            (_, None) => timed = false,
            (None, range) => times = range,
            (Some(a), Some(b)) => times = Some((a.0.min(b.0), a.1.max(b.1))),
        }
    }
    let of = |n: usize| {
        if exact {
            Precision::Exact(n)
        } else {
            Precision::Inexact(n)
        }
    };
    let mut columns = vec![ColumnStatistics::new_unknown(); arrow.fields().len()];
    if let (Some(id), Some((low, high)), true) = (schema.time_column, times, timed && exact)
        && let Some(at) = schema.position_of(id)
        && let Some(column) = schema.column_by_id(id)
        && let (Some(low), Some(high)) = (
            time_value(column.column_type, low),
            time_value(column.column_type, high),
        )
        && let Some(slot) = columns.get_mut(at)
    {
        slot.null_count = Precision::Exact(0);
        slot.min_value = Precision::Exact(low);
        slot.max_value = Precision::Exact(high);
    }
    Statistics {
        num_rows: of(rows),
        total_byte_size: Precision::Inexact(bytes),
        column_statistics: columns,
    }
}

fn time_value(column_type: ColumnType, value: i64) -> Option<ScalarValue> {
    let ColumnType::Timestamp { precision, utc } = column_type else {
        return None;
    };
    let zone = utc.then(|| "UTC".into());
    let value = Some(value);
    Some(match precision.digits() {
        0 => ScalarValue::TimestampSecond(value, zone),
        3 => ScalarValue::TimestampMillisecond(value, zone),
        6 => ScalarValue::TimestampMicrosecond(value, zone),
        _ => ScalarValue::TimestampNanosecond(value, zone),
    })
}

/// The order of rows in every source: by key, ascending, NULLs first.
pub(crate) fn key_order(schema: &TableSchema, arrow: &SchemaRef) -> Option<LexOrdering> {
    LexOrdering::new(schema.key.iter().filter_map(|id| {
        let at = schema.position_of(*id)?;
        let name = arrow.fields().get(at)?.name();
        Some(PhysicalSortExpr::new(
            Arc::new(Column::new(name, at)),
            SortOptions {
                descending: false,
                nulls_first: true,
            },
        ))
    }))
}
