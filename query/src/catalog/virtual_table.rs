//! Read-only tables whose rows are made when a statement reads them.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;

use crate::QueryError;

/// Equalities `column = 'text'` that a statement asks for; rows may ignore them, but those that
/// would be dear to make should not.
#[derive(Debug, Default)]
pub(crate) struct Wanted(Vec<(String, String)>);

impl Wanted {
    fn from_filters(filters: &[Expr]) -> Self {
        Self(filters.iter().filter_map(equality).collect())
    }

    /// The value that `column` must have, if the statement says so.
    pub(crate) fn value(&self, column: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == column)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a row with `value` in `column` can be in the answer.
    pub(crate) fn may_be(&self, column: &str, value: &str) -> bool {
        self.value(column).is_none_or(|wanted| wanted == value)
    }
}

fn equality(filter: &Expr) -> Option<(String, String)> {
    let Expr::BinaryExpr(binary) = filter else {
        return None;
    };
    if binary.op != Operator::Eq {
        return None;
    }
    let (column, literal) = match (binary.left.as_ref(), binary.right.as_ref()) {
        (Expr::Column(column), Expr::Literal(literal, _))
        | (Expr::Literal(literal, _), Expr::Column(column)) => (column, literal),
        _ => return None,
    };
    match literal {
        ScalarValue::Utf8(Some(text))
        | ScalarValue::Utf8View(Some(text))
        | ScalarValue::LargeUtf8(Some(text)) => Some((column.name.clone(), text.clone())),
        _ => None,
    }
}

/// Makes the rows of a virtual table.
#[async_trait]
pub(crate) trait VirtualRows: Send + Sync + 'static {
    /// The columns.
    fn schema(&self) -> SchemaRef;
    /// The rows now.
    async fn rows(&self, wanted: &Wanted) -> Result<RecordBatch, QueryError>;
}

/// A table over [`VirtualRows`].
pub(crate) struct VirtualTable(Arc<dyn VirtualRows>);

impl std::fmt::Debug for VirtualTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VirtualTable")
    }
}

#[async_trait]
impl TableProvider for VirtualTable {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
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
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let batch = self
            .0
            .rows(&Wanted::from_filters(filters))
            .await
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        let schema = batch.schema();
        Ok(MemorySourceConfig::try_new_exec(
            &[vec![batch]],
            schema,
            projection.cloned(),
        )?)
    }
}

/// A schema of virtual tables.
pub(crate) struct VirtualSchema(pub Vec<(&'static str, Arc<dyn VirtualRows>)>);

impl std::fmt::Debug for VirtualSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VirtualSchema")
    }
}

#[async_trait]
impl SchemaProvider for VirtualSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        Ok(self
            .0
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, rows)| Arc::new(VirtualTable(Arc::clone(rows))) as Arc<dyn TableProvider>))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| *known == name)
    }
}
