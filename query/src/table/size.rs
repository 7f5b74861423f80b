//! How many rows a plan looks at, roughly, so that small statements run in one thread.

use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, LogicalPlan};
use shoal_engine::ReadView;

use super::bounds::Bounds;
use super::views::{StatementViews, external};
use super::{ShoalTable, sources};
use crate::table::sources::Source;

/// Rows up to which handing them between threads costs more than it gains.
pub(crate) const SMALL_ROWS: u64 = 200_000;

/// Whether all tables that an optimized plan reads give it at most [`SMALL_ROWS`] rows.
pub(crate) async fn is_small(plan: &LogicalPlan, views: &Arc<StatementViews>) -> Result<bool> {
    let mut scans: Vec<(Arc<dyn datafusion::catalog::TableProvider>, Vec<Expr>)> = Vec::new();
    let mut is_known = true;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            match source_as_provider(&scan.source) {
                Ok(provider) if provider.is::<ShoalTable>() => {
                    scans.push((provider, scan.filters.clone()));
                }
                _ => is_known = false,
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if !is_known || scans.is_empty() {
        return Ok(false);
    }
    let mut rows = 0_u64;
    for (provider, filters) in scans {
        if let Some(table) = provider.downcast_ref::<ShoalTable>() {
            rows = rows.saturating_add(table_rows(table, &filters, views).await?);
        }
        if rows > SMALL_ROWS {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn table_rows(
    table: &ShoalTable,
    filters: &[Expr],
    views: &Arc<StatementViews>,
) -> Result<u64> {
    let mut rows = 0_u64;
    for view in table.views(views, filters).await? {
        rows = rows.saturating_add(view_rows(table, &view, filters, views).await?);
    }
    Ok(rows)
}

async fn view_rows(
    table: &ShoalTable,
    view: &ReadView,
    filters: &[Expr],
    views: &Arc<StatementViews>,
) -> Result<u64> {
    let bounds = Bounds::of(&view.schema, filters);
    let sets = sources::sets(view, &bounds);
    let merged = sets.merged.iter().flatten().copied();
    let mut rows = 0_u64;
    for source in sets.plain.iter().map(|i| Source::File(*i)).chain(merged) {
        rows = rows.saturating_add(match source {
            Source::Memory(i) => view.memory[i].rows() as u64,
            Source::File(i) if table.last_rows => view.files[i].series,
            Source::File(i) if bounds.prefixes.is_some() => {
                let file = &view.files[i];
                let index = views.store().series_index(file).await.map_err(external)?;
                match index.and_then(|index| bounds.rows(&index)) {
                    Some(ranges) => ranges.iter().map(|r| r.end - r.start).sum(),
                    None => file.rows,
                }
            }
            Source::File(i) => view.files[i].rows,
        });
    }
    Ok(rows)
}
