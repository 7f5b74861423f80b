//! Predicates of append-table deletes: the engine keeps their text, DataFusion evaluates it.
//!
//! The text outlives names: columns stand in it by id (`"c7"`), so that renaming one changes
//! nothing. It is kept only if it reads back as the very expression that the statement meant
//! ([`read_back`]).
//!
//! A predicate is evaluated for rows that the statement never saw (a row stored while it counted,
//! rows of which another condition was looked at first), and must never stop a read: a row for which
//! it fails does not match ([`Kept`]).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use ahash::AHashMap;
use arrow_array::builder::BooleanBufferBuilder;
use arrow_array::cast::AsArray;
use arrow_array::{Array, BooleanArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{ColumnarValue, Expr};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::prelude::{SessionConfig, SessionContext};
use parking_lot::Mutex;
use shoal_types::{ColumnId, TableId, TableSchema};

use crate::decimals;

/// Compiled predicates kept; the oldest go when there are more.
const COMPILED_MAX: usize = 256;

type Compiled = AHashMap<(TableId, u32, String), Arc<dyn PhysicalExpr>>;

/// Evaluates SQL predicates over a table's columns, the same way on every replica: no session
/// setting enters, and time-dependent functions were replaced by their value when the delete
/// was written.
pub struct SqlPredicate {
    context: SessionContext,
    compiled: Mutex<Compiled>,
}

impl fmt::Debug for SqlPredicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqlPredicate")
    }
}

impl Default for SqlPredicate {
    fn default() -> Self {
        Self::new()
    }
}

impl SqlPredicate {
    /// An evaluator, to be handed to [`shoal_engine::Backends`] when the database is opened.
    #[must_use]
    pub fn new() -> Self {
        Self {
            context: context(),
            compiled: Mutex::new(Compiled::default()),
        }
    }

    fn compile(
        &self,
        schema: &TableSchema,
        predicate: &str,
    ) -> Result<Arc<dyn PhysicalExpr>, String> {
        let key = (schema.table, schema.version, predicate.to_owned());
        if let Some(known) = self.compiled.lock().get(&key) {
            return Ok(Arc::clone(known));
        }
        let parsed = physical(&self.context, schema, predicate)?;
        let mut compiled = self.compiled.lock();
        if compiled.len() >= COMPILED_MAX {
            compiled.clear();
        }
        compiled.insert(key, Arc::clone(&parsed));
        Ok(parsed)
    }
}

/// A context that depends on nothing but this program's version.
fn context() -> SessionContext {
    let mut config = SessionConfig::new();
    let options = config.options_mut();
    options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
    options.execution.time_zone = Some("UTC".into());
    SessionContext::new_with_config(config)
}

/// A column's name in a predicate.
pub(crate) fn column_name(id: ColumnId) -> String {
    format!("c{}", id.0)
}

/// Whether a predicate looks at a column.
pub(crate) fn names_column(predicate: &str, id: ColumnId) -> bool {
    let name = column_name(id);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    predicate
        .split(|c: char| !is_word(c))
        .any(|word| word == name)
}

/// The table's columns by id, in the order of its rows.
fn by_id(schema: &TableSchema) -> Result<DFSchema, DataFusionError> {
    let arrow = schema.arrow();
    let fields = schema.columns.iter().zip(arrow.fields());
    let fields = fields.map(|(column, field)| {
        Field::clone(field)
            .with_name(column_name(column.id))
            .with_nullable(true)
    });
    DFSchema::try_from(Schema::new(fields.collect::<Vec<_>>()))
}

fn physical(
    context: &SessionContext,
    schema: &TableSchema,
    predicate: &str,
) -> Result<Arc<dyn PhysicalExpr>, String> {
    let compile = || {
        let columns = by_id(schema)?;
        let expr = context.parse_sql_expr(predicate, &columns)?;
        let expr = context.create_physical_expr(expr, &columns)?;
        // The rows have the columns' own names.
        let named = expr.transform_up(|expr| {
            let Some(column) = expr.downcast_ref::<Column>() else {
                return Ok(Transformed::no(expr));
            };
            let name = &schema.columns[column.index()].name;
            let named: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, column.index()));
            Ok(Transformed::yes(named))
        });
        named.data()
    };
    compile().map_err(|error: DataFusionError| format!("predicate {predicate:?}: {error}"))
}

/// The expression that a predicate's text stands for, simplified.
///
/// # Errors
/// It is no expression over the table's columns.
pub(crate) fn read_back(schema: &TableSchema, predicate: &str) -> Result<Expr, DataFusionError> {
    let columns = by_id(schema)?;
    let expr = CONTEXT.parse_sql_expr(predicate, &columns)?;
    simplified(expr, columns)
}

/// An expression over columns by id as [`read_back`] would give it.
pub(crate) fn in_normal_form(schema: &TableSchema, expr: Expr) -> Result<Expr, DataFusionError> {
    simplified(expr, by_id(schema)?)
}

fn simplified(expr: Expr, columns: DFSchema) -> Result<Expr, DataFusionError> {
    let columns = Arc::new(columns);
    let context = SimplifyContext::builder()
        .with_schema(Arc::clone(&columns))
        .with_config_options(Arc::clone(CONTEXT.state().config_options()))
        .build();
    let simplifier = ExprSimplifier::new(context);
    let coerced = simplifier.coerce(expr, &columns)?;
    simplifier.simplify(coerced)
}

static CONTEXT: LazyLock<SessionContext> = LazyLock::new(|| {
    let context = context();
    context.register_udf(decimals::function());
    context
});

/// An expression without columns, such as a column's default. For plans that
/// [`decimals::exact`] goes over.
pub(crate) fn constant(sql: &str) -> Result<Expr, DataFusionError> {
    CONTEXT.parse_sql_expr(&decimals::mark_text(sql)?, &DFSchema::empty())
}

/// The expression that is true for rows that `predicate` leaves in the table.
pub(crate) fn kept(schema: &TableSchema, predicate: &str) -> Result<Arc<dyn PhysicalExpr>, String> {
    let predicate = physical(&CONTEXT, schema, predicate)?;
    Ok(Arc::new(Kept { predicate }))
}

/// Which rows match; neither one of which it is not known nor one for which it fails.
fn matching(predicate: &dyn PhysicalExpr, batch: &RecordBatch) -> Result<BooleanArray, String> {
    let rows = batch.num_rows();
    let evaluated = predicate
        .evaluate(batch)
        .and_then(|value| value.into_array(rows));
    let values = match evaluated {
        Ok(values) => values,
        Err(_) if rows <= 1 => return Ok(BooleanArray::from(vec![false; rows])),
        // The rows at fault are found by halves: there are few of them or none as a rule.
        Err(_) => {
            let half = rows / 2;
            let mut all = BooleanBufferBuilder::new(rows);
            for (from, length) in [(0, half), (half, rows - half)] {
                let part = matching(predicate, &batch.slice(from, length))?;
                all.append_buffer(part.values());
            }
            return Ok(BooleanArray::new(all.finish(), None));
        }
    };
    let matched = values
        .as_boolean_opt()
        .ok_or_else(|| format!("the predicate is {}, not BOOLEAN", values.data_type()))?;
    let known = match matched.nulls() {
        Some(nulls) => matched.values() & nulls.inner(),
        None => matched.values().clone(),
    };
    Ok(BooleanArray::new(known, None))
}

/// True for rows that a predicate does not match.
#[derive(Debug)]
struct Kept {
    predicate: Arc<dyn PhysicalExpr>,
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.predicate.eq(&other.predicate)
    }
}

impl Eq for Kept {}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.predicate.hash(state);
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not deleted by {}", self.predicate)
    }
}

impl PhysicalExpr for Kept {
    fn data_type(&self, _: &Schema) -> DataFusionResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn nullable(&self, _: &Schema) -> DataFusionResult<bool> {
        Ok(false)
    }

    fn evaluate(&self, batch: &RecordBatch) -> DataFusionResult<ColumnarValue> {
        let matched = matching(&*self.predicate, batch).map_err(DataFusionError::Execution)?;
        let kept = BooleanArray::new(!matched.values(), None);
        Ok(ColumnarValue::Array(Arc::new(kept)))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.predicate]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
        let predicate = children
            .pop()
            .unwrap_or_else(|| Arc::clone(&self.predicate));
        Ok(Arc::new(Self { predicate }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(")?;
        self.predicate.fmt_sql(f)?;
        write!(f, ") IS NOT TRUE")
    }
}

impl shoal_engine::RowPredicate for SqlPredicate {
    fn matches(
        &self,
        schema: &TableSchema,
        predicate: &str,
        batch: &RecordBatch,
    ) -> Result<BooleanArray, String> {
        let expr = self.compile(schema, predicate)?;
        matching(&*expr, batch)
    }
}
