//! Running one statement.

use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::sql::parser::Statement as DfStatement;
use shoal_engine::Commit;

use super::Statement;
use crate::Session;
use crate::error::Result;
use crate::running::StatementGuard;

/// What a statement came to.
pub(crate) enum Outcome {
    /// Rows to read.
    Rows(SendableRecordBatchStream),
    /// Done.
    Affected {
        /// PostgreSQL's command tag.
        tag: String,
        /// Rows changed.
        rows: u64,
        /// The last commit.
        commit: Option<Commit>,
    },
}

impl Outcome {
    /// A statement that changed no rows.
    pub(crate) fn done(tag: impl Into<String>) -> Self {
        Self::Affected {
            tag: tag.into(),
            rows: 0,
            commit: None,
        }
    }
}

/// One attempt at a statement.
pub(crate) struct Run<'a> {
    pub session: &'a Session,
    pub guard: &'a StatementGuard,
    pub state: SessionState,
    pub params: &'a [ScalarValue],
}

impl Run<'_> {
    /// Runs it.
    pub(crate) async fn statement(&self, statement: &Statement) -> Result<Outcome> {
        self.query(statement.body.clone()).await
    }

    /// Plans a statement with DataFusion and puts the parameters in.
    pub(crate) async fn plan(&self, body: DfStatement) -> Result<LogicalPlan> {
        let plan = self.state.statement_to_plan(body).await?;
        Ok(bind(plan, self.params)?)
    }

    /// A query whose rows go to the client.
    pub(crate) async fn query(&self, body: DfStatement) -> Result<Outcome> {
        let plan = self.plan(body).await?;
        Ok(Outcome::Rows(self.stream(plan).await?))
    }

    /// Runs a logical plan.
    pub(crate) async fn stream(&self, plan: LogicalPlan) -> Result<SendableRecordBatchStream> {
        let physical = self.state.create_physical_plan(&plan).await?;
        Ok(execute_stream(physical, self.state.task_ctx())?)
    }
}

/// Puts values in for `$1`, `$2`, ….
pub(crate) fn bind(
    plan: LogicalPlan,
    params: &[ScalarValue],
) -> datafusion::error::Result<LogicalPlan> {
    if params.is_empty() {
        return Ok(plan);
    }
    plan.with_param_values(ParamValues::from(params.to_vec()))
}
