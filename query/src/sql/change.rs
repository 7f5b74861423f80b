//! `UPDATE` and `DELETE`.
//!
//! Order in upsert tables: take a view → read keys (and new values) at its position → write them
//! with that position. The engine refuses the write if the table changed since, and everything is
//! done again on a new view: no concurrent write is lost, and none is overwritten by a value that
//! was computed from an older one. After some conflicts the table is held: other writes wait a
//! moment.
//!
//! The partitions of a table are changed one after another, each at a view of its own: rows of two
//! are not changed together, and a conflict in one does not undo, or repeat, what was done in
//! another.
//!
//! Rows of append tables have no key. DELETE writes its predicate; UPDATE writes the predicate of
//! the rows that go and the rows that come, in one record and with the position it read at.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::DataFusionError;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{
    DmlStatement, Expr, LogicalPlan, LogicalPlanBuilder, TableScan, lit,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    AssignmentTarget, Delete, Ident, ObjectName, ObjectNamePart, Statement as SqlStatement, Update,
};
use datafusion::sql::unparser::Unparser;
use datafusion::sql::unparser::dialect::PostgreSqlDialect;
use futures::StreamExt;
use shoal_engine::{Commit, ReadAt, TableHandle, WriteError, WriteOptions};
use shoal_rows::RowBlock;
use shoal_types::{ColumnId, Retry, TableSchema};

use super::insert::{TargetTable, block_of, cast_to, is_upsert, target};
use super::names::{fold, position};
use super::{Outcome, Run};
use crate::error::{Kind, Result};
use crate::table::{Reads, ShoalTable};
use crate::{QueryError, decimals, predicate};

/// How often a statement is done again because the table changed meanwhile.
const CONFLICTS_MAX: u32 = 64;
/// So often it is done again before others' writes to the table are held up for it.
const CONFLICTS_BEFORE_HOLD: u32 = 4;
/// How often it is looked where a partition's rows are after it was cut or joined, and the first
/// pause before that.
const RECUTS_MAX: u32 = 32;
const RECUT_PAUSE: Duration = Duration::from_millis(2);
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
        let written = update;
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
        let outcome = self.change(body, Action::Set(set)).await;
        outcome.map_err(|error| self.blame_assignments(written, error))
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
        if let Action::Set(columns) = &action {
            check_assignments(&table, columns)?;
        }
        // Statements of this process take turns on a table; only other writers are conflicts.
        let lock = self.session.engine().change_lock(table.handle.table);
        let _turn = lock.lock().await;
        let mut done = Changed::default();
        let mut untouched = Vec::new();
        let mut waiting: VecDeque<TableHandle> =
            self.partitions_to_change(dml, &table).await?.into();
        let mut recuts = 0;
        while let Some(partition) = waiting.pop_front() {
            let change = self.change_partition(&body, &action, &partition).await;
            let change = match change {
                // It was cut, joined or dropped since: what it had is looked for where it is now. If
                // the statement has changed nothing yet, it may also be planned anew as a whole.
                Err(error)
                    if error.is_missing_table() || error.is_schema_change() && done.rows > 0 =>
                {
                    recuts += 1;
                    let Some(pieces) = self.pieces_now(&partition, recuts).await else {
                        return Err(done.before(error));
                    };
                    for piece in pieces.into_iter().rev() {
                        waiting.push_front(piece);
                    }
                    continue;
                }
                other => other.map_err(|error| done.before(error))?,
            };
            if change.commit.is_none() {
                untouched.push(partition);
            }
            done.add(change);
        }
        if done.commit.is_some()
            && let Some(id) = self.session.write_id()
        {
            // Sent again, the statement changes nothing there either.
            let db = self.session.engine().database();
            for partition in &untouched {
                let noted = db.note_write_id(partition, id, self.write_options());
                let noted = noted.await.map_err(QueryError::from);
                noted.map_err(|error| done.before(error))?;
            }
        }
        let verb = match action {
            Action::Delete => "DELETE",
            Action::Set(_) => "UPDATE",
        };
        Ok(Outcome::Affected {
            tag: format!("{verb} {}", done.rows),
            rows: done.rows,
            commit: done.commit,
        })
    }

    /// The partitions that have by now what one had when the statement was planned; none, if it was
    /// dropped. `None`: the table is not there any more, or the partition goes on to be missed where
    /// it is.
    async fn pieces_now(&self, partition: &TableHandle, tries: u32) -> Option<Vec<TableHandle>> {
        let database = self.session.engine().database();
        tokio::time::sleep(RECUT_PAUSE * tries).await;
        if let Err(error) = database.sync_names().await {
            tracing::debug!(%error, "partitions not brought up to date");
        }
        let now = database.table_by_id(partition.table)?;
        let pieces = now.pieces_of(partition);
        // Meta is told a moment after the shard knows.
        (tries < RECUTS_MAX).then_some(pieces)
    }

    /// The partitions that can hold rows which the statement changes.
    async fn partitions_to_change(
        &self,
        dml: DmlStatement,
        table: &TargetTable,
    ) -> Result<Vec<TableHandle>> {
        if table.handle.layout.is_none() {
            return Ok(vec![table.handle.clone()]);
        }
        let rows = reading(dml, &Reads::Target)?.input;
        // Optimized, the filters stand at the scan, in the columns' types.
        let optimized = self.state.optimize(&rows)?;
        let mut found = None;
        let views = self.views()?;
        optimized.apply(|node| {
            if let LogicalPlan::TableScan(scan) = node
                && let Ok(provider) = source_as_provider(&scan.source)
                && let Some(scanned) = provider.downcast_ref::<ShoalTable>()
                && scanned.is_target()
            {
                found = Some(scanned.partitions(&views, &scan.filters)?);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        // The optimizer has found that there are no such rows.
        Ok(found.unwrap_or_default())
    }

    async fn change_partition(
        &self,
        body: &DfStatement,
        action: &Action,
        partition: &TableHandle,
    ) -> Result<Changed> {
        let mut pause = Duration::from_millis(1);
        let database = self.session.engine().database();
        for conflicts in 0..CONFLICTS_MAX {
            let _hold =
                (conflicts >= CONFLICTS_BEFORE_HOLD).then(|| database.hold_writes(partition.id));
            let again = self.again(partition.layout.is_some())?;
            match again.attempt(body.clone(), action, partition).await {
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
                partition.name
            ),
        ))
    }

    async fn dml(&self, body: DfStatement) -> Result<DmlStatement> {
        match self.plan(body).await? {
            LogicalPlan::Dml(dml) => Ok(dml),
            _ => Err(QueryError::new(Kind::INTERNAL, "a change without a plan")),
        }
    }

    /// Reads and writes a partition once.
    async fn attempt(
        &self,
        body: DfStatement,
        action: &Action,
        partition: &TableHandle,
    ) -> Result<Changed> {
        let dml = self.dml(body).await?;
        let table = target(&dml)?;
        let dml = reading(dml, &Reads::Partition(partition.clone()))?;
        if matches!(action, Action::Delete) && !is_upsert(&table.schema) {
            return self.delete_where(&dml, &table, partition).await;
        }
        let view = self.views()?.view(partition).await?;
        let replaced = match action {
            Action::Set(_) if !is_upsert(&table.schema) => Some(self.replaced(&dml, &table)?),
            _ => None,
        };
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
            self.applied_before(partition).await?
        } else {
            let options = WriteOptions {
                read_at: Some(ReadAt {
                    shard: view.shard,
                    position: view.position,
                }),
                ..self.write_options()
            };
            let db = self.session.engine().database();
            let written = match replaced {
                None => db.write(blocks, options).await,
                Some(predicate) => {
                    blocks
                        .iter_mut()
                        .for_each(|block| block.table = partition.id);
                    db.replace_where(partition, &predicate, blocks, options)
                        .await
                }
            };
            Some(written.map_err(stale_is_conflict)?)
        };
        Ok(Changed::of(rows, commit))
    }

    /// Of a change that finds no row: whether it is one that was applied and is sent again.
    async fn applied_before(&self, partition: &TableHandle) -> Result<Option<Commit>> {
        let Some(id) = self.session.write_id() else {
            return Ok(None);
        };
        let duplicate = self
            .session
            .engine()
            .database()
            .was_applied(partition, id)
            .await?;
        Ok(duplicate.then(|| Commit {
            duplicate,
            ..Commit::default()
        }))
    }

    /// The predicate of the rows of an append table that an UPDATE replaces.
    fn replaced(&self, dml: &DmlStatement, table: &TargetTable) -> Result<String> {
        match dml.input.as_ref() {
            LogicalPlan::Projection(projection) => {
                self.predicate_text(&projection.input, table, "UPDATE")
            }
            _ => Err(QueryError::new(
                Kind::INTERNAL,
                "UPDATE without a projection",
            )),
        }
    }

    /// Deletes rows of an append table: the predicate itself is what is written.
    async fn delete_where(
        &self,
        dml: &DmlStatement,
        table: &TargetTable,
        partition: &TableHandle,
    ) -> Result<Changed> {
        let text = self.predicate_text(&dml.input, table, "DELETE")?;
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
            let commit = self.applied_before(partition).await?;
            return Ok(Changed::of(rows, commit));
        }
        let options = self.write_options();
        let db = self.session.engine().database();
        let commit = db.delete_where(partition, &text, options).await?;
        Ok(Changed::of(rows, Some(commit)))
    }

    /// The condition of a plan's rows as SQL that means the same at any time and in any session:
    /// parameters and the current time are values in it.
    fn predicate_text(
        &self,
        rows: &LogicalPlan,
        table: &TargetTable,
        verb: &str,
    ) -> Result<String> {
        let LogicalPlan::Filter(filter) = rows else {
            return Ok("TRUE".to_owned());
        };
        let (predicate, schema) = (&filter.predicate, filter.input.schema());
        let mut has_query = false;
        predicate.apply(|expr| {
            has_query |= matches!(
                expr,
                Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_)
            );
            Ok(TreeNodeRecursion::Continue)
        })?;
        if has_query || predicate.is_volatile() {
            return Err(QueryError::unsupported(format!(
                "{verb} of a table of mode 'append' takes conditions on its columns only: no queries, no random values",
            )));
        }
        let context = SimplifyContext::builder()
            .with_schema(Arc::clone(schema))
            .with_config_options(Arc::clone(self.state.config_options()))
            .with_query_execution_start_time(
                self.state.execution_props().query_execution_start_time,
            )
            .build();
        let simplifier = ExprSimplifier::new(context);
        let coerced = simplifier.coerce(predicate.clone(), schema)?;
        let zone = self.state.config_options().execution.time_zone.as_deref();
        let read = crate::literals::read_in(coerced, schema, zone)?.data;
        let columns = &table.schema;
        let by_id = simplifier
            .simplify(read)?
            .transform(|expr| match expr {
                Expr::Column(column) => {
                    let column = columns.column(&column.name).ok_or_else(|| {
                        DataFusionError::Plan(format!("no column {:?}", column.name))
                    })?;
                    let name = predicate::column_name(column.id);
                    Ok(Transformed::yes(Expr::Column(Column::new_unqualified(
                        name,
                    ))))
                }
                other => Ok(Transformed::no(other)),
            })
            .data()?;
        let written = by_id
            .clone()
            .transform_up(|expr| Ok(decimals::as_text(expr)))
            .data()?;
        let refused = |what: String| {
            QueryError::unsupported(format!("this {verb} cannot be kept as a predicate: {what}"))
        };
        let dialect = PostgreSqlDialect {};
        let text = Unparser::new(&dialect)
            .expr_to_sql(&written)
            .map_err(|error| refused(QueryError::from(error).message))?
            .to_string();
        predicate::kept(columns, &text).map_err(refused)?;
        // Kept is what reads back as what was meant, and nothing else.
        let meant = predicate::in_normal_form(columns, by_id)?;
        if predicate::read_back(columns, &text)? != meant {
            return Err(
                refused(format!("written as {text}, it would be another one"))
                    .with_hint("write the condition in another way, such as without casts"),
            );
        }
        Ok(text)
    }
}

/// What a statement has changed so far.
#[derive(Default)]
struct Changed {
    rows: u64,
    commit: Option<Commit>,
}

impl Changed {
    /// Rows found and written; of a write that was applied before, none was changed now.
    fn of(rows: u64, commit: Option<Commit>) -> Self {
        let again = commit.as_ref().is_some_and(|commit| commit.duplicate);
        Self {
            rows: if again { 0 } else { rows },
            commit,
        }
    }

    fn add(&mut self, more: Self) {
        self.rows += more.rows;
        match (&mut self.commit, more.commit) {
            (Some(commit), Some(more)) => {
                commit.rows += more.rows;
                commit.duplicate &= more.duplicate;
                for token in more.tokens {
                    token.add_to(&mut commit.tokens);
                }
            }
            (commit @ None, more) => *commit = more,
            (Some(_), None) => {}
        }
    }

    /// A failure after other partitions were changed.
    fn before(&self, error: QueryError) -> QueryError {
        if self.rows == 0 {
            return error;
        }
        QueryError {
            message: format!(
                "{}; {} rows of other partitions are changed",
                error.message, self.rows
            ),
            retry: Retry::Unknown,
            ..error
        }
    }
}

/// The change with another way to read its target. Queries within its expressions read as before.
fn reading(mut dml: DmlStatement, reads: &Reads) -> Result<DmlStatement> {
    let input = LogicalPlan::clone(&dml.input).transform_down(|node| {
        let LogicalPlan::TableScan(scan) = &node else {
            return Ok(Transformed::no(node));
        };
        let provider = source_as_provider(&scan.source)?;
        let Some(table) = provider.downcast_ref::<ShoalTable>() else {
            return Ok(Transformed::no(node));
        };
        let restricted = Arc::new(table.reading(reads.clone()));
        Ok(Transformed::yes(LogicalPlan::TableScan(TableScan {
            source: provider_as_source(restricted),
            ..scan.clone()
        })))
    })?;
    dml.input = Arc::new(input.data);
    Ok(dml)
}

/// A table altered meanwhile is one more reason to do it again.
fn stale_is_conflict(error: WriteError) -> QueryError {
    match error {
        WriteError::StaleSchema { table } => WriteError::Conflict { table }.into(),
        WriteError::TooLargeForAtomic { what } => QueryError::new(
            Kind::INVALID_VALUE,
            format!("rows that must change together: {what}"),
        )
        .with_hint("narrow the WHERE, so that each statement changes fewer rows"),
        other => other.into(),
    }
}

fn check_assignments(table: &TargetTable, set: &[String]) -> Result<()> {
    let schema = &table.schema;
    let layout = table.handle.layout.as_ref();
    let spreads = |id| layout.is_some_and(|layout| layout.by.columns.contains(&id));
    for name in set {
        let Some(column) = schema.column(name) else {
            continue;
        };
        let what = if is_upsert(schema) && schema.is_key(column.id) {
            "part of the primary key"
        } else if spreads(column.id) {
            "a partition column"
        } else {
            continue;
        };
        return Err(QueryError::unsupported(format!(
            "column {name:?} is {what} and cannot be updated; DELETE the row and INSERT it anew"
        )));
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
                // Rows of an append table are written whole: nothing of the old ones stays.
                if !is_upsert(schema) || schema.is_key(column.id) || set.contains(&column.name) {
                    exprs.push(expr.clone());
                    columns.push(column.id);
                }
            }
            let plan = LogicalPlanBuilder::from(projection.input.as_ref().clone());
            Ok((plan.project(exprs)?.build()?, columns))
        }
    }
}
