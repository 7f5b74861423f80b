//! Result columns of one name: `SELECT v, v`, `SELECT 1, 1`, `SELECT *, v`.
//!
//! DataFusion's plans need names that differ. Where planning failed, repeated columns of the
//! outermost query are given marked names and planned again; the marks are taken off the rows. Inner
//! queries keep their names: a reference to one of two equal names is ambiguous.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    Expr, Ident, Select, SelectItem, SetExpr, Statement as SqlStatement,
};
use futures::StreamExt;

use super::names::fold;
use super::result_names::{Names, is_star};
use crate::QueryError;
use crate::error::Kind;

/// Begins and ends what is put before a name; no name of a column has it.
const MARK: char = '\u{1}';

/// The statement with names that differ; `None`: no names are repeated. An alias beside `*` is taken
/// for a name of its own, so that ORDER BY finds it, unless `all` are to be told apart.
pub(super) fn told_apart(body: &DfStatement, all: bool) -> Option<DfStatement> {
    let mut body = body.clone();
    let marked = match &mut body {
        DfStatement::Statement(statement) => mark_statement(statement, all),
        DfStatement::Explain(explain) => match explain.statement.as_mut() {
            DfStatement::Statement(statement) => mark_statement(statement, all),
            _ => false,
        },
        _ => false,
    };
    marked.then_some(body)
}

/// Whether planning failed because of names that are equal, or tells of marked ones.
pub(super) fn is_about_names(error: &QueryError) -> bool {
    error.is(Kind::AMBIGUOUS_COLUMN)
        || error.message.contains(MARK)
        || error.message.contains("unique expression names")
}

fn mark_statement(statement: &mut SqlStatement, all: bool) -> bool {
    match statement {
        SqlStatement::Query(query) => mark(&mut query.body, all),
        SqlStatement::Explain { statement, .. } => mark_statement(statement, all),
        SqlStatement::Insert(insert) => match &mut insert.source {
            Some(query) => mark(&mut query.body, all),
            None => false,
        },
        _ => false,
    }
}

fn mark(body: &mut SetExpr, all: bool) -> bool {
    match body {
        SetExpr::Select(select) => mark_select(select, all),
        SetExpr::Query(query) => mark(&mut query.body, all),
        SetExpr::SetOperation { left, right, .. } => {
            let left = mark(left, all);
            mark(right, all) || left
        }
        _ => false,
    }
}

fn mark_select(select: &mut Select, all: bool) -> bool {
    // Any name may be one of those that `*` stands for.
    let has_wildcard = select.projection.iter().any(is_star);
    let mut seen = HashSet::new();
    let mut marked = false;
    for (i, item) in select.projection.iter_mut().enumerate() {
        let is_alias = matches!(item, SelectItem::ExprWithAlias { .. });
        let (expr, name) = match item {
            SelectItem::UnnamedExpr(expr) => (expr.clone(), name_of(expr)),
            SelectItem::ExprWithAlias { expr, alias } => (expr.clone(), fold(alias)),
            _ => continue,
        };
        // DataFusion names an expression otherwise than its text says: a cast after its operand.
        let has_own_name =
            is_alias || matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
        let may_stay = if has_wildcard {
            is_alias && !all
        } else {
            has_own_name
        };
        if seen.insert(name.clone()) && may_stay {
            continue;
        }
        marked = true;
        let alias = Ident::with_quote('"', format!("{MARK}{i}{MARK}{name}"));
        *item = SelectItem::ExprWithAlias { expr, alias };
    }
    marked
}

fn name_of(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(name) => fold(name),
        Expr::CompoundIdentifier(names) => names.last().map(fold).unwrap_or_default(),
        other => other.to_string(),
    }
}

fn unmarked(name: &str) -> Option<&str> {
    let (_, name) = name.strip_prefix(MARK)?.split_once(MARK)?;
    Some(name)
}

/// The schema without marks; `None`: it has none.
fn without_marks(schema: &Schema) -> Option<SchemaRef> {
    let is_marked = |field: &Arc<Field>| unmarked(field.name()).is_some();
    if !schema.fields().iter().any(is_marked) {
        return None;
    }
    let fields = schema.fields().iter().map(|field| {
        let name = unmarked(field.name()).unwrap_or(field.name());
        Field::clone(field).with_name(name)
    });
    let fields: Vec<Field> = fields.collect();
    Some(Arc::new(Schema::new_with_metadata(
        fields,
        schema.metadata().clone(),
    )))
}

/// A result's schema as the client is told it: without marks, with PostgreSQL's names.
pub(super) fn told(schema: &SchemaRef, names: &Names) -> SchemaRef {
    let schema = without_marks(schema).unwrap_or_else(|| Arc::clone(schema));
    names.put_on(&schema).unwrap_or(schema)
}

/// Rows with the names of columns that the client is told.
pub(super) fn rows_as_told(
    rows: SendableRecordBatchStream,
    names: &Names,
) -> SendableRecordBatchStream {
    let schema = told(&rows.schema(), names);
    if schema == rows.schema() {
        return rows;
    }
    let named = Arc::clone(&schema);
    let rows = rows.map(move |batch| {
        let batch = batch?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let columns = batch.columns().to_vec();
        Ok(RecordBatch::try_new_with_options(
            Arc::clone(&named),
            columns,
            &options,
        )?)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}
