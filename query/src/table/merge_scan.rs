//! Sources that may hold versions of the same key, memory, and files with tombstones: read through
//! the engine's merge, which yields what the table shows, in key order.

use std::fmt;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::StreamExt;
use shoal_engine::memtable::MemtableScan;
use shoal_engine::merge::{MergeOptions, RunStream, file_run, merge_runs};
use shoal_engine::{OwnedRows, ReadView};
use shoal_sst::{HIDDEN_OP, ReadCounters, ScanOptions, SstStore};
use shoal_types::ColumnId;

use super::bounds::Bounds;
use super::parquet_scan::key_order;
use super::reader::{ReadMetrics, Seen};
use super::sources::Source;
use super::views::{StatementViews, external};
use crate::QueryStats;

/// Reads sets of sources, one a partition.
pub(crate) struct MergeScanExec {
    shared: Arc<Shared>,
    sets: Vec<Vec<Source>>,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// What all partitions use.
struct Shared {
    view: Arc<ReadView>,
    store: Arc<SstStore>,
    stats: Arc<QueryStats>,
    bounds: Bounds,
    /// Columns read: the projected ones and the key, in the table's order.
    columns: Vec<ColumnId>,
    /// Leaves out rows that the partition does not own, where a source has some.
    owned: Option<OwnedRows>,
    /// Output columns.
    schema: SchemaRef,
}

impl fmt::Debug for MergeScanExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergeScanExec")
            .field("sets", &self.sets)
            .finish_non_exhaustive()
    }
}

impl MergeScanExec {
    /// A scan of `sets` with the columns of `projection` (places in the table's schema).
    pub(crate) fn new(
        view: &Arc<ReadView>,
        views: &StatementViews,
        arrow: &SchemaRef,
        bounds: &Bounds,
        projection: Option<&Vec<usize>>,
        sets: Vec<Vec<Source>>,
    ) -> Result<Self> {
        let table = &view.schema;
        let all: Vec<usize> = (0..arrow.fields().len()).collect();
        let projection = projection.unwrap_or(&all);
        let shown = sets.iter().flatten().all(|source| match source {
            Source::File(i) => view.shows_all_of_file(*i),
            Source::Memory(i) => view.shows_all_of_memory(*i),
        });
        let owned = if shown { None } else { view.owned_rows() };
        let measured: Vec<ColumnId> = owned.iter().flat_map(OwnedRows::columns).collect();
        let columns = table
            .columns
            .iter()
            .enumerate()
            .filter(|(i, column)| {
                let id = column.id;
                projection.contains(i) || table.is_key(id) || measured.contains(&id)
            })
            .map(|(_, column)| column.id)
            .collect();
        let schema = Arc::new(arrow.project(projection)?);
        let order =
            EquivalenceProperties::new_with_orderings(Arc::clone(arrow), key_order(table, arrow));
        let exprs =
            datafusion::physical_expr::projection::ProjectionExprs::from_indices(projection, arrow);
        let equivalence = order.project(&exprs.projection_mapping(arrow)?, Arc::clone(&schema));
        let properties = PlanProperties::new(
            equivalence,
            Partitioning::UnknownPartitioning(sets.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let metrics = ExecutionPlanMetricsSet::new();
        let files = sets.iter().flatten();
        let read = files.filter(|s| matches!(s, Source::File(_))).count();
        let count = |name: &'static str, n: usize| {
            MetricBuilder::new(&metrics).global_counter(name).add(n);
        };
        count("files_total", view.files.len());
        count("files_pruned", view.files.len() - read);
        Ok(Self {
            shared: Arc::new(Shared {
                view: Arc::clone(view),
                store: Arc::clone(views.store()),
                stats: Arc::clone(views.stats()),
                bounds: bounds.clone(),
                columns,
                owned,
                schema,
            }),
            sets,
            limit: None,
            properties: Arc::new(properties),
            metrics,
        })
    }

    fn rows(&self, sets: &[Vec<Source>]) -> u64 {
        let view = &self.shared.view;
        sets.iter()
            .flatten()
            .map(|source| match source {
                Source::File(i) => view.files[*i].rows,
                Source::Memory(i) => view.memory[*i].rows() as u64,
            })
            .sum()
    }
}

impl DisplayAs for MergeScanExec {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self
            .shared
            .schema
            .fields()
            .iter()
            .map(|field| field.name().as_str())
            .collect();
        write!(f, "MergeScanExec: sets=[")?;
        for (i, set) in self.sets.iter().enumerate() {
            let files = set.iter().filter(|s| matches!(s, Source::File(_))).count();
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{files} files + {} memory", set.len() - files)?;
        }
        write!(f, "], projection=[{}]", names.join(", "))?;
        if let Some(limit) = self.limit {
            write!(f, ", limit={limit}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for MergeScanExec {
    fn name(&self) -> &'static str {
        "MergeScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() {
            Ok(self)
        } else {
            Err(DataFusionError::Internal(
                "MergeScanExec has no children".into(),
            ))
        }
    }

    // `supports_limit_pushdown` stays false: it means "push through me to my children", and the
    // limit of a leaf that says so is lost. `with_fetch` is how a leaf takes it.
    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn ExecutionPlan>> {
        Some(Arc::new(Self {
            shared: Arc::clone(&self.shared),
            sets: self.sets.clone(),
            limit,
            properties: Arc::clone(&self.properties),
            metrics: self.metrics.clone(),
        }))
    }

    fn fetch(&self) -> Option<usize> {
        self.limit
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        let rows = match partition {
            Some(partition) => self.rows(&self.sets[partition..=partition]),
            None => self.rows(&self.sets),
        };
        let mut statistics = Statistics::new_unknown(&self.shared.schema);
        statistics.num_rows = Precision::Inexact(rows as usize);
        Ok(Arc::new(statistics))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let set = self
            .sets
            .get(partition)
            .ok_or_else(|| DataFusionError::Internal(format!("no partition {partition}")))?
            .clone();
        let shared = Arc::clone(&self.shared);
        let schema = Arc::clone(&shared.schema);
        let batch_rows = context.session_config().batch_size();
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let metrics = ReadMetrics::new(&self.metrics, partition, &shared.stats);
        let opened = async move {
            let counters = Arc::new(ReadCounters::default());
            let stream = shared.open(&set, batch_rows, &counters).await?;
            let mut seen = Seen::default();
            Ok::<_, DataFusionError>(stream.map(move |batch| {
                let _timer = baseline.elapsed_compute().timer();
                metrics.record(&counters, &mut seen);
                let mut batch = batch.map_err(external)?;
                if let Some(owned) = &shared.owned {
                    batch = owned.filter(&batch).map_err(external)?;
                }
                baseline.record_output(batch.num_rows());
                shared.project(&batch)
            }))
        };
        let stream = futures::stream::once(opened).flat_map(|opened| match opened {
            Ok(stream) => stream.boxed(),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        });
        Ok(match self.limit {
            None => Box::pin(RecordBatchStreamAdapter::new(schema, stream)),
            Some(limit) => Box::pin(RecordBatchStreamAdapter::new(
                schema,
                limited(stream.boxed(), limit),
            )),
        })
    }
}

/// The first `limit` rows.
fn limited(
    stream: futures::stream::BoxStream<'static, Result<RecordBatch>>,
    limit: usize,
) -> impl futures::Stream<Item = Result<RecordBatch>> {
    futures::stream::unfold((stream, limit), |(mut stream, left)| async move {
        if left == 0 {
            return None;
        }
        match stream.next().await? {
            Ok(batch) => {
                let batch = batch.slice(0, batch.num_rows().min(left));
                let left = left - batch.num_rows();
                Some((Ok(batch), (stream, left)))
            }
            Err(error) => Some((Err(error), (stream, 0))),
        }
    })
}

impl Shared {
    async fn open(
        &self,
        set: &[Source],
        batch_rows: usize,
        counters: &Arc<ReadCounters>,
    ) -> Result<RunStream> {
        if let [Source::Memory(i)] = set {
            return Ok(self.memory(*i, batch_rows, true)?.0);
        }
        // Memory first: a tombstone in it decides how files are read.
        let mut has_deletes = false;
        let mut memory = Vec::new();
        for source in set {
            match source {
                Source::Memory(i) => {
                    let (run, deletes) = self.memory(*i, batch_rows, false)?;
                    has_deletes |= deletes;
                    memory.push(run);
                }
                Source::File(i) => has_deletes |= self.view.files[*i].has_deletes,
            }
        }
        let last_rows = self.bounds.last_rows && !has_deletes;
        let mut runs = Vec::with_capacity(set.len());
        for source in set {
            if let Source::File(i) = source {
                runs.push(self.file(*i, batch_rows, counters, last_rows).await?);
            }
        }
        // A set lists its files before its memory.
        runs.extend(memory);
        let options = MergeOptions {
            batch_rows,
            ..MergeOptions::read()
        };
        Ok(merge_runs(Arc::clone(&self.view.schema), runs, options))
    }

    async fn file(
        &self,
        i: usize,
        batch_rows: usize,
        counters: &Arc<ReadCounters>,
        last_rows: bool,
    ) -> Result<RunStream> {
        let file = &self.view.files[i];
        let rows = if self.bounds.prefixes.is_none() && !last_rows {
            None
        } else {
            let index = self.store.series_index(file).await.map_err(external)?;
            index.and_then(|index| {
                if last_rows {
                    Some(self.bounds.last_of(&index))
                } else {
                    self.bounds.rows(&index)
                }
            })
        };
        let options = ScanOptions {
            columns: Some(self.columns.clone()),
            rows,
            time: self.bounds.time,
            batch_rows,
        };
        let stream = self
            .store
            .scan(file, &self.view.schema, &options, Arc::clone(counters))
            .await
            .map_err(external)?;
        Ok(file_run(stream))
    }

    /// A memory run, and whether it has tombstones.
    fn memory(&self, i: usize, batch_rows: usize, bottom: bool) -> Result<(RunStream, bool)> {
        let schema = &self.view.schema;
        let scan = MemtableScan {
            columns: Some(self.columns.clone()),
            series: self
                .bounds
                .prefixes
                .clone()
                .filter(|_| self.bounds.whole_series),
            time: self.bounds.time.filter(|_| schema.key_ends_with_time()),
            bottom,
            batch_rows,
        };
        let run = self.view.memory[i]
            .scan(schema, self.view.predicate.as_deref(), &scan)
            .map_err(external)?;
        let has_deletes = run.schema().column_with_name(HIDDEN_OP).is_some();
        Ok((futures::stream::iter(run).boxed(), has_deletes))
    }

    fn project(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = self
            .schema
            .fields()
            .iter()
            .map(|field| {
                batch.column_by_name(field.name()).cloned().ok_or_else(|| {
                    DataFusionError::Internal(format!("column {:?} was not read", field.name()))
                })
            })
            .collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }
}
