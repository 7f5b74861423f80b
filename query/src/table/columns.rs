//! Columns of files by id: a file keeps the names it was written with.

use std::sync::Arc;

use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
};
use shoal_sst::SstMetadata;
use shoal_types::TableSchema;

/// For each column of a file the name it has in the table now; `None`: dropped.
pub(crate) type Names = Vec<Option<String>>;

/// The names of a file's columns; `None`: they are those of the table, and no column of the table
/// would find one that is not its own.
pub(crate) fn names(schema: &TableSchema, metadata: &SstMetadata) -> Option<Names> {
    let descr = metadata.parquet.file_metadata().schema_descr();
    let ids = &metadata.footer.column_ids;
    let now: Names = ids
        .iter()
        .map(|id| schema.column_by_id(*id).map(|column| column.name.clone()))
        .collect();
    let is_plain = now.iter().enumerate().all(|(i, name)| {
        let stored = descr.column(i);
        match name {
            Some(name) => stored.name() == name,
            None => schema.column(stored.name()).is_none(),
        }
    });
    (!is_plain).then_some(now)
}

/// Rewrites expressions over the table's columns into ones over a file whose columns were renamed
/// or dropped since.
#[derive(Debug)]
pub(crate) struct RenamedColumns(pub Names);

impl PhysicalExprAdapterFactory for RenamedColumns {
    fn create(
        &self,
        logical_file_schema: SchemaRef,
        physical_file_schema: SchemaRef,
    ) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let fields: Vec<Field> = physical_file_schema
            .fields()
            .iter()
            .enumerate()
            .map(|(i, field)| {
                let name = match self.0.get(i) {
                    Some(Some(name)) => name.clone(),
                    // No column of a table begins with two underscores.
                    Some(None) => format!("__dropped_{i}"),
                    None => field.name().clone(),
                };
                field.as_ref().clone().with_name(name)
            })
            .collect();
        let inner = DefaultPhysicalExprAdapterFactory
            .create(logical_file_schema, Arc::new(Schema::new(fields)))?;
        Ok(Arc::new(RenamedAdapter {
            inner,
            physical: physical_file_schema,
        }))
    }
}

#[derive(Debug)]
struct RenamedAdapter {
    inner: Arc<dyn PhysicalExprAdapter>,
    physical: SchemaRef,
}

impl PhysicalExprAdapter for RenamedAdapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        self.inner
            .rewrite(expr)?
            .transform(|expr| {
                let Some(column) = expr.downcast_ref::<Column>() else {
                    return Ok(Transformed::no(expr));
                };
                let name = self.physical.field(column.index()).name();
                Ok(Transformed::yes(
                    Arc::new(Column::new(name, column.index())) as Arc<dyn PhysicalExpr>,
                ))
            })
            .data()
    }
}
