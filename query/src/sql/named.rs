//! `PREPARE`, `EXECUTE`, `DEALLOCATE`: statements that a session keeps under a name.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_schema::DataType;
use datafusion::common::ScalarValue;
use datafusion::execution::session_state::SessionState;
use datafusion::sql::parser::Statement as DfStatement;
use datafusion::sql::sqlparser::ast::{
    DataType as SqlType, ExactNumberInfo, Expr, Ident, ObjectName, Statement as SqlStatement,
};

use super::constants::constant;
use super::names::{fold, position, position_of, single};
use super::prepare::prepare;
use super::types::column_type;
use super::{Outcome, Run, Statement};
use crate::error::{Kind, Result, nearest};
use crate::{QueryError, StatementKind, decimals};

/// Statements that a session keeps, at most.
const NAMED_MAX: usize = 1000;

/// The statements of one session.
#[derive(Debug, Default)]
pub(crate) struct NamedStatements(BTreeMap<String, Named>);

#[derive(Clone, Debug)]
struct Named {
    statement: Arc<Statement>,
    parameter_types: Vec<DataType>,
}

impl NamedStatements {
    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// What `EXECUTE` stands for, with its values; `None`: the statement is no `EXECUTE`.
    ///
    /// # Errors
    /// No such name, or values that do not fit.
    pub(crate) fn executed(
        &self,
        statement: &Statement,
        state: &SessionState,
        params: &[ScalarValue],
    ) -> Result<Option<(Arc<Statement>, Vec<ScalarValue>)>> {
        let Some((name, values)) = execute_of(&statement.body) else {
            return Ok(None);
        };
        let named = self.find(name)?;
        let wanted = named.parameter_types.len();
        if values.len() != wanted {
            return Err(QueryError::new(
                Kind::UNDEFINED_PARAMETER,
                format!(
                    "prepared statement {:?} has {wanted} parameters, {} values were given",
                    single(name)?,
                    values.len()
                ),
            )
            .at(position_of(name)));
        }
        let values = values
            .iter()
            .zip(&named.parameter_types)
            .map(|(value, to)| constant(state, value, Some(to), params))
            .collect::<Result<_>>()?;
        Ok(Some((Arc::clone(&named.statement), values)))
    }

    /// The statement that an `EXECUTE` names.
    pub(crate) fn named(&self, statement: &Statement) -> Result<Option<Arc<Statement>>> {
        execute_of(&statement.body)
            .map(|(name, _)| Ok(Arc::clone(&self.find(name)?.statement)))
            .transpose()
    }

    fn find(&self, name: &ObjectName) -> Result<&Named> {
        let key = single(name)?;
        self.0.get(&key).ok_or_else(|| {
            let error = QueryError::new(
                Kind::UNDEFINED_STATEMENT,
                format!("prepared statement {key:?} does not exist"),
            )
            .at(position_of(name));
            match nearest(&key, self.0.keys().map(String::as_str)) {
                Some(near) => error.with_hint(format!("did you mean {near:?}?")),
                None => error,
            }
        })
    }
}

fn execute_of(body: &DfStatement) -> Option<(&ObjectName, &[Expr])> {
    let DfStatement::Statement(statement) = body else {
        return None;
    };
    match statement.as_ref() {
        SqlStatement::Execute {
            name: Some(name),
            parameters,
            immediate: false,
            ..
        } => Some((name, parameters)),
        _ => None,
    }
}

impl Run<'_> {
    /// `PREPARE name (types) AS statement`.
    pub(super) async fn prepare_named(
        &self,
        name: &Ident,
        types: &[SqlType],
        statement: &SqlStatement,
    ) -> Result<Outcome> {
        let kind = match statement {
            SqlStatement::Query(_) => StatementKind::Query,
            SqlStatement::Insert(_) | SqlStatement::Update(_) | SqlStatement::Delete(_) => {
                StatementKind::Write
            }
            _ => {
                return Err(QueryError::unsupported(
                    "PREPARE takes SELECT, VALUES, INSERT, UPDATE and DELETE",
                )
                .at(position(name)));
            }
        };
        let announced = types
            .iter()
            .map(|name| Ok(Some(column_type(name)?.arrow())))
            .collect::<Result<Vec<_>>>()?;
        let is_plain_numeric = |i: usize| {
            use ExactNumberInfo::None as Unsized;
            matches!(
                types.get(i),
                Some(SqlType::Numeric(Unsized) | SqlType::Decimal(Unsized) | SqlType::Dec(Unsized))
            )
        };
        // NUMERIC without a size is any number: the size is the column's that it meets, if one is.
        let left_open: Vec<_> = announced
            .iter()
            .enumerate()
            .map(|(i, to)| to.clone().filter(|_| !is_plain_numeric(i)))
            .collect();
        let statement = Arc::new(Statement {
            sql: decimals::unmark_text(&statement.to_string()).into(),
            body: DfStatement::Statement(Box::new(statement.clone())),
            kind,
            partitions: None,
        });
        let prepared = prepare(
            self.session,
            &self.state,
            Arc::clone(&statement),
            &left_open,
        )
        .await?;
        let parameter_types = prepared.parameter_types.into_iter().enumerate();
        let parameter_types = parameter_types.map(|(i, found)| match announced.get(i) {
            Some(Some(to)) if is_plain_numeric(i) && !found.is_decimal() => to.clone(),
            _ => found,
        });
        let named = Named {
            statement,
            parameter_types: parameter_types.collect(),
        };
        let key = fold(name);
        let mut all = self.session.named().lock();
        if all.0.contains_key(&key) {
            return Err(QueryError::new(
                Kind::DUPLICATE_STATEMENT,
                format!("prepared statement {key:?} already exists"),
            )
            .at(position(name)));
        }
        if all.0.len() >= NAMED_MAX {
            return Err(QueryError::new(
                Kind::TOO_MANY_STATEMENTS,
                format!("a session keeps {NAMED_MAX} prepared statements at most; DEALLOCATE some"),
            ));
        }
        all.0.insert(key, named);
        Ok(Outcome::done("PREPARE"))
    }

    /// `DEALLOCATE name` or `ALL`. Other names are taken too: a client may mean a statement that
    /// it prepared by its protocol.
    pub(super) fn deallocate(&self, name: &Ident) -> Outcome {
        let mut all = self.session.named().lock();
        if name.quote_style.is_none() && name.value.eq_ignore_ascii_case("all") {
            all.clear();
            return Outcome::done("DEALLOCATE ALL");
        }
        all.0.remove(&fold(name));
        Outcome::done("DEALLOCATE")
    }
}
