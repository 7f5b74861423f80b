//! `UPDATE` and `DELETE`.
//!
//! Order in upsert tables: take a view → read keys (and new values) at its position → write them
//! with that position. The engine refuses the write if the table changed since, and everything is
//! done again on a new view: no concurrent write is lost, and none is overwritten by a value that
//! was computed from an older one.

use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{DmlStatement, Expr, LogicalPlan, LogicalPlanBuilder, lit};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    AssignmentTarget, Delete, Ident, ObjectName, ObjectNamePart, Statement as SqlStatement, Update,
};
use datafusion::sql::unparser::Unparser;
use datafusion::sql::unparser::dialect::PostgreSqlDialect;
use futures::StreamExt;
use shoal_engine::{Commit, ReadAt, WriteError, WriteOptions};
use shoal_rows::RowBlock;
use shoal_types::{ColumnId, TableSchema};

use super::insert::{TargetTable, block_of, cast_to, is_upsert, target};
use super::names::{fold, position};
use super::{Outcome, Run};
use crate::error::{Kind, Result};
use crate::{QueryError, predicate};

/// How often a statement is done again because the table changed meanwhile.
const CONFLICTS_MAX: u32 = 64;
/// Longest pause before doing it again.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Bytes of changed rows held at one time: they enter the log together.
const CHANGED_BYTES_MAX: usize = 512 << 20;

/// What is done to each row found.
enum Action {
    /// New values for these columns.
    Set(Vec<String>),
    /// The row goes.
    Delete,
}

impl Run<'_> {
    /// `UPDATE`.
    pub(super) async fn update(&self, update: &Update) -> Result<Outcome> {
        let refused = [
            (update.returning.is_some(), "RETURNING"),
            (update.from.is_some(), "FROM"),
            (update.limit.is_some(), "LIMIT"),
            (!update.order_by.is_empty(), "ORDER BY"),
            (!update.table.joins.is_empty(), "JOIN"),
        ];
        if let Some((_, clause)) = refused.iter().find(|(is_there, _)| *is_there) {
            return Err(QueryError::unsupported(format!(
                "UPDATE … {clause} is not supported"
            )));
        }
        let mut update = update.clone();
        let mut set = Vec::new();
        for assignment in &mut update.assignments {
            let AssignmentTarget::ColumnName(name) = &mut assignment.target else {
                return Err(QueryError::unsupported(
                    "SET (a, b) = … is not supported; set columns one by one",
                ));
            };
            let Some(ident) = name.0.last().and_then(ObjectNamePart::as_ident).cloned() else {
                return Err(QueryError::new(Kind::SYNTAX, "SET needs a column"));
            };
            let folded = fold(&ident);
            if set.contains(&folded) {
                return Err(QueryError::new(
                    Kind::DUPLICATE_COLUMN,
                    format!("column {folded:?} is set twice"),
                )
                .at(position(&ident)));
            }
            // The planner compares the name as it stands.
            let mut folded_ident = Ident::new(folded.clone());
            folded_ident.span = ident.span;
            *name = ObjectName(vec![ObjectNamePart::Identifier(folded_ident)]);
            set.push(folded);
        }
        let body = DfStatement::Statement(Box::new(SqlStatement::Update(update)));
        self.change(body, Action::Set(set)).await
    }

    /// `DELETE`.
    pub(super) async fn delete(&self, delete: &Delete) -> Result<Outcome> {
        let refused = [
            (delete.returning.is_some(), "RETURNING"),
            (delete.using.is_some(), "USING"),
            (delete.limit.is_some(), "LIMIT"),
            (!delete.order_by.is_empty(), "ORDER BY"),
        ];
        if let Some((_, clause)) = refused.iter().find(|(is_there, _)| *is_there) {
            return Err(QueryError::unsupported(format!(
                "DELETE … {clause} is not supported"
            )));
        }
        let body = DfStatement::Statement(Box::new(SqlStatement::Delete(delete.clone())));
        self.change(body, Action::Delete).await
    }

    async fn change(&self, body: DfStatement, action: Action) -> Result<Outcome> {
        let dml = self.dml(body.clone()).await?;
        let table = target(&dml)?;
        if !is_upsert(&table.schema) {
            return match action {
                Action::Delete => self.delete_where(&dml, &table).await,
                Action::Set(_) => Err(QueryError::unsupported(format!(
                    "table {:?} keeps every row (mode 'append') and its rows have no key to update them by; DELETE and INSERT instead, or use a table of mode 'upsert'",
                    table.handle.name
                ))),
            };
        }
        if let Action::Set(columns) = &action {
            check_assignments(&table.schema, columns)?;
        }
        // Statements of this process take turns on a table; only other writers are conflicts.
        let lock = self.session.engine().change_lock(table.handle.id);
        let _turn = lock.lock().await;
        let mut pause = Duration::from_millis(1);
        for _ in 0..CONFLICTS_MAX {
            match self.again().attempt(body.clone(), &action).await {
                Err(error) if error.code == "conflict" => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                other => return other,
            }
        }
        Err(QueryError::new(
            Kind::CONFLICT,
            format!(
                "table {:?} changed each of {CONFLICTS_MAX} times that the statement ran; nothing was changed by it",
                table.handle.name
            ),
        ))
    }

    async fn dml(&self, body: DfStatement) -> Result<DmlStatement> {
        match self.plan(body).await? {
            LogicalPlan::Dml(dml) => Ok(dml),
            _ => Err(QueryError::new(Kind::INTERNAL, "a change without a plan")),
        }
    }

    /// Reads and writes once.
    async fn attempt(&self, body: DfStatement, action: &Action) -> Result<Outcome> {
        let dml = self.dml(body).await?;
        let table = target(&dml)?;
        let view = self.views()?.view(&table.handle).await?;
        let (plan, columns) = rows_to_change(&dml, &table.schema, action)?;
        let deletes = matches!(action, Action::Delete);
        let mut stream = self.stream(plan).await?;
        let all = table.schema.arrow();
        let arrow = Arc::new(arrow_schema::Schema::new(
            columns
                .iter()
                .filter_map(|id| table.schema.position_of(*id))
                .map(|i| all.field(i).clone().with_nullable(true))
                .collect::<Vec<_>>(),
        ));
        let mut blocks: Vec<RowBlock> = Vec::new();
        let (mut rows, mut bytes) = (0_u64, 0_usize);
        while let Some(batch) = stream.next().await {
            let batch = cast_to(&batch?, &arrow)?;
            if batch.num_rows() == 0 {
                continue;
            }
            let block = block_of(&table.schema, &batch, &columns, deletes)?;
            rows += block.rows() as u64;
            bytes += block.memory_bytes();
            if bytes > CHANGED_BYTES_MAX {
                return Err(QueryError::new(
                    Kind::OUT_OF_MEMORY,
                    format!(
                        "the statement changes more than {} MiB of rows at once; narrow its WHERE",
                        CHANGED_BYTES_MAX >> 20
                    ),
                ));
            }
            blocks.push(block);
        }
        let commit = if rows == 0 {
            None
        } else {
            let options = WriteOptions {
                read_at: Some(ReadAt {
                    shard: view.shard,
                    position: view.position,
                }),
                ..self.write_options()
            };
            let db = self.session.engine().database();
            Some(db.write(blocks, options).await.map_err(stale_is_conflict)?)
        };
        Ok(affected(
            if deletes { "DELETE" } else { "UPDATE" },
            rows,
            commit,
        ))
    }

    /// Deletes rows of an append table: the predicate itself is what is written.
    async fn delete_where(&self, dml: &DmlStatement, table: &TargetTable) -> Result<Outcome> {
        let text = match dml.input.as_ref() {
            LogicalPlan::Filter(filter) => self.predicate_text(&filter.predicate, dml)?,
            _ => "TRUE".to_owned(),
        };
        predicate::kept(&table.schema, &text).map_err(|what| {
            QueryError::unsupported(format!("this DELETE cannot be kept as a predicate: {what}"))
        })?;
        let counted = LogicalPlanBuilder::from(dml.input.as_ref().clone())
            .aggregate(Vec::<Expr>::new(), vec![count(lit(1))])?
            .build()?;
        let mut stream = self.stream(counted).await?;
        let mut rows = 0;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            if let Some(counts) = batch
                .columns()
                .first()
                .and_then(|c| c.as_any().downcast_ref::<arrow_array::Int64Array>())
            {
                rows += counts.iter().flatten().sum::<i64>().unsigned_abs();
            }
        }
        if rows == 0 {
            return Ok(affected("DELETE", 0, None));
        }
        let options = self.write_options();
        let db = self.session.engine().database();
        let commit = db.delete_where(&table.handle, &text, options).await?;
        Ok(affected("DELETE", rows, Some(commit)))
    }

    /// The predicate as SQL that means the same at any time and in any session: parameters and
    /// the current time are values in it.
    fn predicate_text(&self, predicate: &Expr, dml: &DmlStatement) -> Result<String> {
        let mut has_query = false;
        predicate.apply(|expr| {
            has_query |= matches!(
                expr,
                Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_)
            );
            Ok(TreeNodeRecursion::Continue)
        })?;
        if has_query || predicate.is_volatile() {
            return Err(QueryError::unsupported(
                "a DELETE on a table of mode 'append' takes conditions on its columns only: no queries, no random values",
            ));
        }
        let context = SimplifyContext::builder()
            .with_schema(Arc::clone(dml.input.schema()))
            .with_config_options(Arc::clone(self.state.config_options()))
            .with_query_execution_start_time(
                self.state.execution_props().query_execution_start_time,
            )
            .build();
        let simplifier = ExprSimplifier::new(context);
        let coerced = simplifier.coerce(predicate.clone(), dml.input.schema())?;
        let zone = self.state.config_options().execution.time_zone.as_deref();
        let read = crate::literals::read_in(coerced, zone)?.data;
        let simple = simplifier
            .simplify(read)?
            .transform(|expr| {
                Ok(match expr {
                    Expr::Column(column) => {
                        Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))
                    }
                    other => Transformed::no(other),
                })
            })
            .data()?;
        let dialect = PostgreSqlDialect {};
        Ok(Unparser::new(&dialect).expr_to_sql(&simple)?.to_string())
    }
}

fn affected(verb: &str, rows: u64, commit: Option<Commit>) -> Outcome {
    Outcome::Affected {
        tag: format!("{verb} {rows}"),
        rows,
        commit,
    }
}

/// A table altered meanwhile is one more reason to do it again.
fn stale_is_conflict(error: WriteError) -> QueryError {
    match error {
        WriteError::StaleSchema { table } => WriteError::Conflict { table }.into(),
        other => other.into(),
    }
}

fn check_assignments(schema: &TableSchema, set: &[String]) -> Result<()> {
    for name in set {
        if let Some(column) = schema.column(name)
            && schema.is_key(column.id)
        {
            return Err(QueryError::unsupported(format!(
                "column {name:?} is part of the primary key and cannot be updated; DELETE the row and INSERT it anew"
            )));
        }
    }
    Ok(())
}

/// The plan of the rows to write and their columns: the key, then what is set.
fn rows_to_change(
    dml: &DmlStatement,
    schema: &TableSchema,
    action: &Action,
) -> Result<(LogicalPlan, Vec<ColumnId>)> {
    let mut exprs = Vec::new();
    let mut columns = Vec::new();
    match action {
        Action::Delete => {
            for id in &schema.key {
                if let Some(i) = schema.position_of(*id) {
                    exprs.push(Expr::from(dml.input.schema().qualified_field(i)));
                    columns.push(*id);
                }
            }
            let plan = LogicalPlanBuilder::from(dml.input.as_ref().clone());
            Ok((plan.project(exprs)?.build()?, columns))
        }
        Action::Set(set) => {
            let LogicalPlan::Projection(projection) = dml.input.as_ref() else {
                return Err(QueryError::new(
                    Kind::INTERNAL,
                    "UPDATE without a projection",
                ));
            };
            for (expr, column) in projection.expr.iter().zip(&schema.columns) {
                if schema.is_key(column.id) || set.contains(&column.name) {
                    exprs.push(expr.clone());
                    columns.push(column.id);
                }
            }
            let plan = LogicalPlanBuilder::from(projection.input.as_ref().clone());
            Ok((plan.project(exprs)?.build()?, columns))
        }
    }
}
