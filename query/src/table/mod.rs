//! Tables as DataFusion sees them.

mod bounds;
mod columns;
mod deletes;
mod last_rows;
mod merge_scan;
mod owned;
mod parquet_scan;
mod partitions;
mod reader;
mod size;
mod sources;
mod views;
mod wanted;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;
use shoal_engine::{PredicateDelete, ReadView, TableHandle};
use shoal_types::{ColumnDefault, TableSchema};

use crate::{QueryStats, predicate};
use bounds::Bounds;
use merge_scan::MergeScanExec;
use owned::OwnedExpr;
use parquet_scan::PlainScan;
use sources::Source;

pub(crate) use last_rows::LastRows;
pub(crate) use size::is_small;
pub(crate) use views::StatementViews;
pub(crate) use wanted::encode_values;

/// A table as the planner sees it: a name and a schema. What a statement reads of it is decided
/// when the statement runs, so that a plan may be kept and run again.
#[derive(Debug)]
pub(crate) struct ShoalTable {
    /// The table.
    pub handle: TableHandle,
    /// The schema it was planned with.
    pub schema: Arc<TableSchema>,
    arrow: SchemaRef,
    /// Defaults of columns, by place.
    defaults: Vec<Option<Expr>>,
    /// Only the last row of each series decides the answer.
    last_rows: bool,
    /// What is read of it.
    reads: Reads,
}

/// What is read of a table.
#[derive(Clone, Debug)]
pub(crate) enum Reads {
    /// All that the filters leave.
    Table,
    /// The same, by a statement that changes the table: this is what it changes.
    Target,
    /// One partition.
    Partition(TableHandle),
}

impl ShoalTable {
    pub(crate) fn new(
        handle: TableHandle,
        schema: Arc<TableSchema>,
    ) -> Result<Self, DataFusionError> {
        let defaults = schema
            .columns
            .iter()
            .map(|column| {
                let sql = column.default.as_ref().map(|ColumnDefault::Sql(sql)| sql);
                sql.map(|sql| predicate::constant(sql)).transpose()
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            arrow: schema.arrow(),
            defaults,
            last_rows: false,
            reads: Reads::Table,
            handle,
            schema,
        })
    }
}

impl ShoalTable {
    /// The same table, for a query that needs only the last row of each series.
    fn last(&self) -> Self {
        Self {
            last_rows: true,
            ..self.reading(self.reads.clone())
        }
    }

    /// The same table, of which this is read.
    pub(crate) fn reading(&self, reads: Reads) -> Self {
        Self {
            handle: self.handle.clone(),
            schema: Arc::clone(&self.schema),
            arrow: Arc::clone(&self.arrow),
            defaults: self.defaults.clone(),
            last_rows: self.last_rows,
            reads,
        }
    }

    /// Whether it is what a statement changes.
    pub(crate) fn is_target(&self) -> bool {
        matches!(self.reads, Reads::Target)
    }
}

#[async_trait]
impl TableProvider for ShoalTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.arrow)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        let at = self.schema.columns.iter().position(|c| c.name == column)?;
        self.defaults.get(at)?.as_ref()
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let views = statement_views(state)?;
        let read = self.views(&views, filters).await?;
        let mut plans = Vec::new();
        for view in &read {
            let more = self
                .view_plans(state, view, &views, projection, filters, limit)
                .await?;
            plans.extend(more);
        }
        match plans.len() {
            0 => {
                let schema = match projection {
                    Some(columns) => Arc::new(self.arrow.project(columns)?),
                    None => Arc::clone(&self.arrow),
                };
                Ok(Arc::new(EmptyExec::new(schema)))
            }
            1 => Ok(plans.remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }
}

impl ShoalTable {
    /// Scans of what one view shows.
    async fn view_plans(
        &self,
        state: &dyn Session,
        view: &Arc<ReadView>,
        views: &StatementViews,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>, DataFusionError> {
        let mut bounds = Bounds::of(&view.schema, filters);
        let shows_all = (0..view.files.len()).all(|i| view.shows_all_of_file(i))
            && (0..view.memory.len()).all(|i| view.shows_all_of_memory(i));
        // The last row of a series may be another partition's.
        bounds.last_rows = self.last_rows && view.deletes.is_empty() && shows_all;
        let sets = sources::sets(view, &bounds);
        let stats = views.stats();
        QueryStats::add(&stats.files_total, view.files.len() as u64);
        QueryStats::add(&stats.bytes_total, view.files.iter().map(|f| f.bytes).sum());
        let read = sets.merged.iter().flatten();
        let merged_files = read.filter(|s| matches!(s, Source::File(_))).count();
        QueryStats::add(&stats.files_read, (sets.plain.len() + merged_files) as u64);

        let mut plans = self
            .plain_plans(state, view, views, &bounds, projection, limit, &sets.plain)
            .await?;
        if !sets.merged.is_empty() {
            let scan =
                MergeScanExec::new(view, views, &self.arrow, &bounds, projection, sets.merged)?;
            plans.push(Arc::new(scan));
        }
        Ok(plans)
    }

    /// Scans of files that need no merge. Files to which deletes still apply, or that hold rows of
    /// other partitions, are scanned apart, below a filter.
    #[allow(clippy::too_many_arguments)]
    async fn plain_plans(
        &self,
        state: &dyn Session,
        view: &Arc<ReadView>,
        views: &StatementViews,
        bounds: &Bounds,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
        files: &[usize],
    ) -> Result<Vec<Arc<dyn ExecutionPlan>>, DataFusionError> {
        // Deletes are few, and a file written after one has it applied already: a file needs a
        // suffix of the list (which is in version order).
        let mut by_deletes: BTreeMap<(usize, bool), Vec<usize>> = BTreeMap::new();
        for &i in files {
            let version = view.files[i].version_max;
            let applied = view.deletes.iter().filter(|d| d.version <= version).count();
            let shown = view.shows_all_of_file(i);
            by_deletes.entry((applied, shown)).or_default().push(i);
        }
        let mut plans = Vec::new();
        for ((applied, shown), files) in by_deletes {
            let deletes: Vec<&PredicateDelete> = view
                .deletes
                .iter()
                .filter(|d| {
                    files
                        .first()
                        .is_some_and(|i| d.version > view.files[*i].version_max)
                })
                .collect();
            debug_assert_eq!(deletes.len() + applied, view.deletes.len());
            let as_is = deletes.is_empty() && shown;
            let scan = PlainScan {
                view,
                views,
                arrow: &self.arrow,
                bounds,
                projection: if as_is { projection } else { None },
                limit: if as_is { limit } else { None },
            };
            for plan in scan.plans(state, &files).await? {
                plans.push(if as_is {
                    plan
                } else {
                    let owned = if shown { None } else { owned_expr(view) };
                    deletes::without(plan, &view.schema, &deletes, owned, projection)?
                });
            }
        }
        Ok(plans)
    }
}

fn owned_expr(view: &ReadView) -> Option<OwnedExpr> {
    let (bounds, owned) = (view.bounds.clone()?, view.owned_rows()?);
    Some(OwnedExpr::new(bounds, owned.columns(), &view.schema))
}

/// The views of the statement that `state` belongs to.
fn statement_views(state: &dyn Session) -> Result<Arc<StatementViews>, DataFusionError> {
    state
        .config()
        .get_extension::<StatementViews>()
        .ok_or_else(|| {
            DataFusionError::Plan(
                "tables can be read only by statements that a ShoalDB session runs".into(),
            )
        })
}
