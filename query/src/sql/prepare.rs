//! Planning without running: parameter types and the columns of the result.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::DataType;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;

use super::Statement;
use super::repeated::told;
use super::result_names::Names;
use super::run::plan_repeated;
use crate::error::{Kind, Result};
use crate::{Prepared, QueryError, Session, StatementKind, decimals};

/// Most parameters of a statement (PostgreSQL's own limit).
const PARAMETERS_MAX: usize = 65_535;

/// Plans a statement for its types.
pub(crate) async fn prepare(
    session: &Session,
    state: &SessionState,
    statement: Arc<Statement>,
    announced: &[Option<DataType>],
) -> Result<Prepared> {
    let plan = if is_planned(&statement.body) {
        Some(plan_repeated(session, state, statement.body.clone()).await?)
    } else {
        None
    };
    let inferred = match &plan {
        Some(plan) => plan.get_parameter_types()?,
        None => HashMap::new(),
    };
    let parameter_types = parameter_types(&inferred, announced)?;
    let plan = plan.map(decimals::exact).transpose()?;
    let schema = match (&plan, statement.kind) {
        (Some(LogicalPlan::Dml(_)), _) => None,
        (Some(plan), _) => {
            let schema = Arc::new(plan.schema().as_arrow().clone());
            Some(told(&schema, &Names::of_statement(&statement.body)))
        }
        (None, StatementKind::Query) => super::show::schema_of(session, &statement.body),
        (None, _) => None,
    };
    Ok(Prepared {
        parameter_types,
        schema,
        kind: statement.kind,
        plan,
        sql: Arc::clone(&statement.sql),
        statement,
    })
}

/// Whether DataFusion's planner takes the statement.
fn is_planned(body: &DfStatement) -> bool {
    match body {
        DfStatement::Explain(_) => true,
        DfStatement::Statement(statement) => matches!(
            statement.as_ref(),
            SqlStatement::Query(_)
                | SqlStatement::Insert(_)
                | SqlStatement::Update(_)
                | SqlStatement::Delete(_)
                | SqlStatement::Explain { .. }
        ),
        _ => false,
    }
}

/// `$n` takes the announced type, else the inferred one, else text.
fn parameter_types(
    inferred: &HashMap<String, Option<DataType>>,
    announced: &[Option<DataType>],
) -> Result<Vec<DataType>> {
    let mut count = announced.len();
    for name in inferred.keys() {
        let number: usize = name
            .strip_prefix('$')
            .and_then(|n| n.parse().ok())
            .filter(|n| (1..=PARAMETERS_MAX).contains(n))
            .ok_or_else(|| {
                QueryError::new(
                    Kind::UNDEFINED_PARAMETER,
                    format!("parameters are named $1, $2, …; {name:?} is not one"),
                )
            })?;
        count = count.max(number);
    }
    Ok((1..=count)
        .map(|n| {
            announced
                .get(n - 1)
                .cloned()
                .flatten()
                .or_else(|| inferred.get(&format!("${n}")).cloned().flatten())
                .unwrap_or(DataType::Utf8)
        })
        .collect())
}
