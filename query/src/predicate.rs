//! Predicates of append-table deletes: the engine keeps their text, DataFusion evaluates it.

use std::fmt;
use std::sync::{Arc, LazyLock};

use ahash::AHashMap;
use arrow_array::cast::AsArray;
use arrow_array::{Array, BooleanArray, RecordBatch};
use datafusion::common::DFSchema;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext};
use parking_lot::Mutex;
use shoal_types::{TableId, TableSchema};

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
        let parsed = physical(&self.context, schema, predicate, |expr| expr)?;
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

fn physical(
    context: &SessionContext,
    schema: &TableSchema,
    predicate: &str,
    wrap: impl FnOnce(Expr) -> Expr,
) -> Result<Arc<dyn PhysicalExpr>, String> {
    let columns =
        DFSchema::try_from(schema.arrow().as_ref().clone()).map_err(|error| error.to_string())?;
    context
        .parse_sql_expr(predicate, &columns)
        .and_then(|expr| context.create_physical_expr(wrap(expr), &columns))
        .map_err(|error| format!("predicate {predicate:?}: {error}"))
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
    physical(&CONTEXT, schema, predicate, |expr| {
        Expr::IsNotTrue(Box::new(expr))
    })
}

impl shoal_engine::RowPredicate for SqlPredicate {
    fn matches(
        &self,
        schema: &TableSchema,
        predicate: &str,
        batch: &RecordBatch,
    ) -> Result<BooleanArray, String> {
        let expr = self.compile(schema, predicate)?;
        let values = expr
            .evaluate(batch)
            .and_then(|value| value.into_array(batch.num_rows()))
            .map_err(|error| error.to_string())?;
        let matched = values.as_boolean_opt().ok_or_else(|| {
            format!(
                "predicate {predicate:?} is {}, not BOOLEAN",
                values.data_type()
            )
        })?;
        // NULL is not true: such rows stay.
        Ok(if matched.null_count() > 0 {
            matched.iter().map(|m| Some(m == Some(true))).collect()
        } else {
            matched.clone()
        })
    }
}
