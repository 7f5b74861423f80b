//! Tables as DataFusion sees them.

mod views;

use std::sync::Arc;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use shoal_engine::TableHandle;
use shoal_types::TableSchema;

pub(crate) use views::StatementViews;

/// A table as the planner sees it: a name and a schema. What a statement reads of it is decided
/// when the statement runs, so that a plan may be kept and run again.
#[derive(Debug)]
pub(crate) struct ShoalTable {
    /// The table.
    pub handle: TableHandle,
    /// The schema it was planned with.
    pub schema: Arc<TableSchema>,
    arrow: SchemaRef,
}

impl ShoalTable {
    pub(crate) fn new(
        handle: TableHandle,
        schema: Arc<TableSchema>,
    ) -> Result<Self, DataFusionError> {
        Ok(Self {
            arrow: schema.arrow(),
            handle,
            schema,
        })
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

    async fn scan(
        &self,
        _state: &dyn Session,
        _projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        datafusion::common::not_impl_err!("reading tables")
    }
}
