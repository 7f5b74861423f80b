//! Which partitions of a table a statement reads, and their views as one table.
//!
//! Partitions of a table are disjoint, so their rows are put side by side. A partition whose shard
//! has not heard yet of a change of columns is read with the columns of the home, as an older file
//! is; one of an older incarnation has nothing that is still there.

use std::sync::Arc;

use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use shoal_engine::{ReadView, TableHandle, owns_all};
use shoal_types::TableSchema;

use super::views::{StatementViews, external};
use super::wanted::wanted;
use super::{Reads, ShoalTable};
use crate::QueryError;
use crate::error::Kind;

impl ShoalTable {
    /// The partitions that can hold rows for which `filters` are all true.
    pub(crate) fn partitions(
        &self,
        views: &StatementViews,
        filters: &[Expr],
    ) -> Result<Vec<TableHandle>, DataFusionError> {
        if let Reads::Partition(partition) = &self.reads {
            return Ok(vec![partition.clone()]);
        }
        let all = self.handle.partitions();
        let router = views.router(&self.handle).map_err(external)?;
        let Some(router) = router else {
            return Ok(all);
        };
        let may_hold = router.may_hold(|column| wanted(&self.schema, column, filters));
        Ok(may_hold.into_iter().map(|at| all[at].clone()).collect())
    }

    /// The views of those partitions.
    pub(crate) async fn views(
        &self,
        views: &StatementViews,
        filters: &[Expr],
    ) -> Result<Vec<Arc<ReadView>>, DataFusionError> {
        let partitions = self.partitions(views, filters)?;
        let source = match &self.reads {
            Reads::Partition(_) => views,
            Reads::Table | Reads::Target => views.whole(),
        };
        let taken = match source.views(&partitions).await {
            Ok(taken) => taken,
            // A partition was dropped since the table was planned.
            Err(error) if error.is_missing_table() && self.handle.layout.is_some() => {
                return Err(self.altered());
            }
            Err(error) => return Err(DataFusionError::External(Box::new(error))),
        };
        let mut fitting = Vec::with_capacity(taken.len());
        for (partition, view) in partitions.iter().zip(taken) {
            match self.fit(partition, view) {
                Some(view) => fitting.push(view),
                None => {
                    // Planned anew with what is known here by then.
                    views.refresh(&self.handle).await;
                    return Err(self.altered());
                }
            }
        }
        Ok(fitting)
    }

    fn altered(&self) -> DataFusionError {
        let error = QueryError::new(
            Kind::SCHEMA_CHANGED,
            format!(
                "table {:?} was altered while the statement ran",
                self.handle.name
            ),
        );
        DataFusionError::External(Box::new(error))
    }

    /// A partition's view with the columns that the statement was planned with, of what it was
    /// planned to own; `None`: it knows newer ones, or was cut since.
    fn fit(&self, partition: &TableHandle, view: Arc<ReadView>) -> Option<Arc<ReadView>> {
        let view = within(partition, view)?;
        let planned = &self.schema;
        if view.schema.version == planned.version {
            return Some(view);
        }
        let is_home = view.schema.table == planned.table;
        if is_home || view.schema.version > planned.version {
            return None;
        }
        let mut fitted = ReadView::clone(&view);
        if view.schema.incarnation < planned.incarnation {
            fitted.memory.clear();
            fitted.files.clear();
            fitted.deletes.clear();
        }
        fitted.schema = Arc::new(TableSchema {
            table: view.schema.table,
            part_of: view.schema.part_of,
            ..TableSchema::clone(planned)
        });
        Some(Arc::new(fitted))
    }
}

/// The view of what the layout says that a partition owns. At its position the unit may have owned
/// more, and another partition's view shows that; it must not have owned less.
fn within(partition: &TableHandle, view: Arc<ReadView>) -> Option<Arc<ReadView>> {
    let Some(planned) = partition.bounds() else {
        return view.bounds.is_none().then_some(view);
    };
    if !owns_all(view.bounds.as_deref(), Some(&planned)) {
        return None;
    }
    if view.bounds.as_deref() == Some(&planned) {
        return Some(view);
    }
    let mut view = ReadView::clone(&view);
    view.bounds = Some(Arc::new(planned));
    Some(Arc::new(view))
}
