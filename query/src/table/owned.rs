//! Rows that a partition owns, as a filter on files that hold others, too: from before it was cut.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::{DataType, Schema};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use shoal_rows::mask;
use shoal_types::{ColumnId, PartitionBounds, TableSchema};

/// True of the rows inside a partition's bounds.
#[derive(Debug)]
pub(super) struct OwnedExpr {
    bounds: Arc<PartitionBounds>,
    /// The columns that the bounds are measured by; one that the table has not (any more) is NULL.
    ids: Vec<ColumnId>,
    columns: Vec<Arc<dyn PhysicalExpr>>,
}

impl OwnedExpr {
    /// For batches with all columns of the table.
    pub(super) fn new(
        bounds: Arc<PartitionBounds>,
        ids: impl Iterator<Item = ColumnId>,
        schema: &TableSchema,
    ) -> Self {
        let known = ids.filter_map(|id| {
            let at = schema.position_of(id)?;
            let column = Column::new(&schema.columns[at].name, at);
            Some((id, Arc::new(column) as Arc<dyn PhysicalExpr>))
        });
        let (ids, columns) = known.unzip();
        Self {
            bounds,
            ids,
            columns,
        }
    }
}

impl PartialEq for OwnedExpr {
    fn eq(&self, other: &Self) -> bool {
        self.bounds == other.bounds && self.ids == other.ids && self.columns == other.columns
    }
}

impl Eq for OwnedExpr {}

impl Hash for OwnedExpr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bounds.hash(state);
        self.ids.hash(state);
        self.columns.hash(state);
    }
}

impl fmt::Display for OwnedExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("owned(")?;
        for (at, column) in self.columns.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{column}")?;
        }
        f.write_str(")")
    }
}

impl PhysicalExpr for OwnedExpr {
    fn data_type(&self, _: &Schema) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _: &Schema) -> Result<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let rows = batch.num_rows();
        let arrays: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|column| column.evaluate(batch)?.into_array(rows))
            .collect::<Result<_>>()?;
        let column = |id: ColumnId| {
            let at = self.ids.iter().position(|known| *known == id)?;
            Some(Arc::clone(&arrays[at]))
        };
        let inside = mask(&self.bounds, &column, rows)
            .map_err(|e| DataFusionError::Internal(format!("owned rows: {e}")))?;
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::new(
            inside, None,
        ))))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        self.columns.iter().collect()
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self {
            bounds: Arc::clone(&self.bounds),
            ids: self.ids.clone(),
            columns: children,
        }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
