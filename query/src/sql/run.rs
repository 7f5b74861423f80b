//! Running one statement.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{Query, Statement as SqlStatement};
use shoal_engine::{Commit, EngineError, Read, WriteOptions};

use super::Statement;
use super::definition::schema_name;
use super::parse::PartitionWords;
use super::repeated;
use super::result_names::Names;
use crate::error::{Kind, Result, missing_table};
use crate::running::StatementGuard;
use crate::table::{StatementViews, is_small};
use crate::{QueryError, Session, decimals, literals};

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
        let clause = match statement.partitions.as_deref() {
            Some(PartitionWords::Change(change)) => return self.alter_partitions(change).await,
            Some(PartitionWords::Clause(clause)) => Some(clause),
            None => None,
        };
        match &statement.body {
            DfStatement::Statement(inner) => match inner.as_ref() {
                SqlStatement::CreateTable(create) => self.create_table(create, clause).await,
                SqlStatement::Query(_) | SqlStatement::Explain { .. } => {
                    self.query(statement.body.clone()).await
                }
                inner => self.command(inner).await,
            },
            DfStatement::Explain(_) => self.query(statement.body.clone()).await,
            DfStatement::Reset(reset) => self.reset(reset),
            DfStatement::CreateExternalTable(_) => Err(QueryError::unsupported(
                "CREATE EXTERNAL TABLE is not supported; import the file with `shoal import` or COPY",
            )),
            DfStatement::CopyTo(_) => Err(QueryError::unsupported("this form of COPY")),
        }
    }

    async fn command(&self, statement: &SqlStatement) -> Result<Outcome> {
        match statement {
            SqlStatement::Insert(insert) => self.insert(insert).await,
            SqlStatement::Update(update) => self.update(update).await,
            SqlStatement::Delete(delete) => self.delete(delete).await,
            SqlStatement::CreateTable(create) => self.create_table(create, None).await,
            SqlStatement::AlterTable(alter) => self.alter_table(alter).await,
            SqlStatement::Prepare {
                name,
                data_types,
                statement,
            } => self.prepare_named(name, data_types, statement).await,
            SqlStatement::Truncate(truncate) => self.truncate(truncate).await,
            SqlStatement::CreateSchema {
                schema_name: name,
                if_not_exists,
                ..
            } => {
                self.create_schema(schema_name(name)?, *if_not_exists, "CREATE SCHEMA")
                    .await
            }
            SqlStatement::CreateDatabase {
                db_name,
                if_not_exists,
                ..
            } => {
                self.create_schema(db_name, *if_not_exists, "CREATE DATABASE")
                    .await
            }
            SqlStatement::Drop {
                object_type,
                if_exists,
                names,
                cascade,
                ..
            } => {
                self.drop_objects(*object_type, names, *if_exists, *cascade)
                    .await
            }
            SqlStatement::Copy {
                source,
                to,
                target,
                options,
                legacy_options,
                ..
            } => {
                self.copy(source, *to, target, options, legacy_options)
                    .await
            }
            other => self.session_command(other),
        }
    }

    /// Statements that touch only the session, or only look at the catalog.
    fn session_command(&self, statement: &SqlStatement) -> Result<Outcome> {
        match statement {
            SqlStatement::Set(set) => self.set(set),
            SqlStatement::Use(target) => self.use_schema(target),
            SqlStatement::ShowVariable { variable } => self.show_variable(variable),
            SqlStatement::ShowTables { show_options, .. } => self.show_tables(show_options),
            SqlStatement::ShowSchemas { show_options, .. } => {
                self.show_schemas(show_options, "schema_name")
            }
            SqlStatement::ShowDatabases { show_options, .. } => {
                self.show_schemas(show_options, "database_name")
            }
            SqlStatement::ShowColumns { show_options, .. } => self.show_columns(show_options),
            SqlStatement::ShowCreate { obj_type, obj_name } => self.show_create(obj_type, obj_name),
            SqlStatement::ExplainTable { table_name, .. } => self.describe_table(table_name),
            SqlStatement::StartTransaction { .. } => Ok(Outcome::done("BEGIN")),
            SqlStatement::Commit { .. } => Ok(Outcome::done("COMMIT")),
            SqlStatement::Rollback { .. } => Ok(Outcome::done("ROLLBACK")),
            SqlStatement::Savepoint { .. } => Ok(Outcome::done("SAVEPOINT")),
            SqlStatement::ReleaseSavepoint { .. } => Ok(Outcome::done("RELEASE")),
            SqlStatement::Discard { .. } => {
                self.session.reset("all")?;
                self.session.named().lock().clear();
                Ok(Outcome::done("DISCARD ALL"))
            }
            SqlStatement::Deallocate { name, .. } => Ok(self.deallocate(name)),
            SqlStatement::LISTEN { .. } => Ok(Outcome::done("LISTEN")),
            SqlStatement::UNLISTEN { .. } => Ok(Outcome::done("UNLISTEN")),
            other => {
                let text = other.to_string();
                let words: Vec<&str> = text.split_whitespace().take(2).collect();
                Err(QueryError::unsupported(format!(
                    "{} is not supported",
                    words.join(" ")
                )))
            }
        }
    }

    /// The same statement on new views. `one_of_several`: what it changes is, and its queries see
    /// what they saw before any of it was changed.
    pub(super) fn again(&self, one_of_several: bool) -> Result<Run<'_>> {
        let database = Arc::clone(self.session.engine().database());
        let stats = Arc::clone(&self.guard.stats);
        let mut views = StatementViews::new(database, stats, Read::default());
        if one_of_several {
            views = views.step_of(self.views()?);
        }
        Ok(Run {
            session: self.session,
            guard: self.guard,
            state: self.session.state_with(views),
            params: self.params,
        })
    }

    /// How the statement's rows are written.
    pub(super) fn write_options(&self) -> WriteOptions {
        let write_id = self.session.write_id();
        WriteOptions {
            write_id,
            record_a_shard: write_id.is_some(),
            timeout: Some(self.session.patience(self.guard)),
            ..WriteOptions::default()
        }
    }

    /// The views of this attempt.
    pub(crate) fn views(&self) -> Result<Arc<StatementViews>> {
        self.state
            .config()
            .get_extension::<StatementViews>()
            .ok_or_else(|| QueryError::new(Kind::INTERNAL, "a statement without views"))
    }

    /// Plans a query that is part of another statement, where its columns need names that differ.
    pub(super) async fn plan_query(&self, query: Query) -> Result<LogicalPlan> {
        let body = DfStatement::Statement(Box::new(SqlStatement::Query(Box::new(query))));
        let plan = plan_statement(self.session, &self.state, body).await?;
        Ok(decimals::exact(bind(plan, self.params, &self.state)?)?)
    }

    /// Plans a statement with DataFusion and puts the parameters in. Names of result columns may
    /// come marked (see [`repeated`]).
    pub(crate) async fn plan(&self, body: DfStatement) -> Result<LogicalPlan> {
        let plan = plan_repeated(self.session, &self.state, body).await?;
        Ok(decimals::exact(bind(plan, self.params, &self.state)?)?)
    }

    /// A query whose rows go to the client.
    pub(crate) async fn query(&self, body: DfStatement) -> Result<Outcome> {
        let started = tokio::time::Instant::now();
        let names = Names::of_statement(&body);
        let plan = self.plan(body).await?;
        if let LogicalPlan::Explain(explain) = &plan
            && matches!(
                explain.plan.as_ref(),
                LogicalPlan::Dml(_) | LogicalPlan::Ddl(_)
            )
        {
            return Err(QueryError::unsupported("EXPLAIN is for queries only"));
        }
        if let LogicalPlan::Analyze(analyze) = &plan
            && matches!(
                analyze.input.as_ref(),
                LogicalPlan::Dml(_) | LogicalPlan::Ddl(_)
            )
        {
            return Err(QueryError::unsupported(
                "EXPLAIN ANALYZE is for queries only",
            ));
        }
        let stream = repeated::rows_as_told(self.stream(plan).await?, &names);
        let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.guard.stats.planning_us.store(took, Ordering::Relaxed);
        Ok(Outcome::Rows(stream))
    }

    /// Runs a logical plan.
    pub(crate) async fn stream(&self, plan: LogicalPlan) -> Result<SendableRecordBatchStream> {
        let optimized = self.state.optimize(&plan)?;
        let mut state = self.state.clone();
        if is_small(&optimized, &self.views()?).await? {
            state.config_mut().options_mut().execution.target_partitions = 1;
        }
        let planner = Arc::clone(state.query_planner());
        let physical = planner.create_physical_plan(&optimized, &state).await?;
        Ok(execute_stream(physical, state.task_ctx())?)
    }
}

/// Plans a statement whose result may have several columns of one name.
pub(super) async fn plan_repeated(
    session: &Session,
    state: &SessionState,
    body: DfStatement,
) -> Result<LogicalPlan> {
    let mut error = match plan_statement(session, state, body.clone()).await {
        Ok(plan) => return Ok(plan),
        Err(error) => error,
    };
    for all in [false, true] {
        let Some(apart) = repeated::told_apart(&body, all) else {
            break;
        };
        match plan_statement(session, state, apart).await {
            Ok(plan) => return Ok(plan),
            // What else is wrong with it is worth more than that names are repeated.
            Err(other) if !repeated::is_about_names(&other) => {
                error = other;
                break;
            }
            Err(_) => {}
        }
    }
    Err(error)
}

/// Plans a statement; names the nearest table where one is missing.
pub(super) async fn plan_statement(
    session: &Session,
    state: &SessionState,
    body: DfStatement,
) -> Result<LogicalPlan> {
    state.statement_to_plan(body).await.map_err(|error| {
        let missing = missing_table(&error);
        let error = QueryError::from(error);
        let Some((schema, table)) = missing.filter(|_| error.hint.is_none()) else {
            return error;
        };
        match session.engine().database().table_not_found(&schema, &table) {
            EngineError::NotFound {
                nearest: Some(near),
                ..
            } => error.with_hint(format!("did you mean {near:?}?")),
            _ => error,
        }
    })
}

/// Puts values in for `$1`, `$2`, ….
///
/// Text for a parameter of another type is read here, as a literal would be: in VALUES there is no
/// cast to do it later.
fn bind(plan: LogicalPlan, params: &[ScalarValue], state: &SessionState) -> Result<LogicalPlan> {
    if params.is_empty() {
        return Ok(plan);
    }
    let wanted = plan.get_parameter_types()?;
    let zone = state.config_options().execution.time_zone.as_deref();
    let values = params
        .iter()
        .enumerate()
        .map(|(i, value)| match wanted.get(&format!("${}", i + 1)) {
            Some(Some(wanted)) => literals::read_parameter(i + 1, value, wanted, zone),
            _ => Ok(value.clone()),
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(plan.with_param_values(ParamValues::from(values))?)
}
