//! `SET`, `RESET`, `USE`, and the transaction statements that clients send.
//!
//! There are no transactions of several statements: each statement is atomic for each record it
//! writes, `BEGIN` and `COMMIT` are taken and mean nothing but the end of `SET LOCAL`, and
//! `ROLLBACK` undoes nothing.

use datafusion::sql::parser::ResetStatement;
use datafusion::sql::sqlparser::ast::{ContextModifier, Expr, ObjectName, Set, Use};

use super::names::{parts, position_of};
use super::types::literal_text;
use super::{Outcome, Run};
use crate::QueryError;
use crate::error::{Kind, Result};

impl Run<'_> {
    /// `SET`.
    pub(super) fn set(&self, set: &Set) -> Result<Outcome> {
        match set {
            Set::SingleAssignment {
                scope,
                variable,
                values,
                ..
            } => {
                let name = dotted(variable)?;
                if *scope == Some(ContextModifier::Local) {
                    self.session.keep_until_transaction_ends(&name)?;
                }
                self.assign(&name, values)?;
            }
            Set::ParenthesizedAssignments { variables, values } => {
                for (variable, value) in variables.iter().zip(values) {
                    self.assign(&dotted(variable)?, std::slice::from_ref(value))?;
                }
            }
            Set::MultipleAssignments { assignments } => {
                for assignment in assignments {
                    self.assign(
                        &dotted(&assignment.name)?,
                        std::slice::from_ref(&assignment.value),
                    )?;
                }
            }
            Set::SetTimeZone { value, .. } => {
                self.assign("timezone", std::slice::from_ref(value))?;
            }
            Set::SetNames { charset_name, .. } => {
                let name = charset_name.value.trim_matches('\'').to_owned();
                self.session.set_values("client_encoding", &[name])?;
            }
            Set::SetNamesDefault {} => self.session.reset("client_encoding")?,
            Set::SetTransaction { .. } | Set::SetRole { .. } | Set::SetSessionAuthorization(_) => {}
            Set::SetSessionParam(_) => {
                return Err(QueryError::unsupported(format!("{set} is not supported")));
            }
        }
        Ok(Outcome::done("SET"))
    }

    fn assign(&self, name: &str, values: &[Expr]) -> Result<()> {
        let texts = values
            .iter()
            .map(|value| {
                literal_text(value).ok_or_else(|| {
                    QueryError::new(
                        Kind::INVALID_VALUE,
                        format!("SET {name}: {value} is not a literal"),
                    )
                })
            })
            .collect::<Result<Vec<_>>>()?;
        if let [only] = &texts[..]
            && only.eq_ignore_ascii_case("default")
            && !name.eq_ignore_ascii_case("timezone")
        {
            return self.session.reset(name);
        }
        self.session.set_values(name, &texts)
    }

    /// `RESET`.
    pub(super) fn reset(&self, reset: &ResetStatement) -> Result<Outcome> {
        let ResetStatement::Variable(name) = reset;
        self.session.reset(&dotted(name)?)?;
        Ok(Outcome::done("RESET"))
    }

    /// `USE`.
    pub(super) fn use_schema(&self, target: &Use) -> Result<Outcome> {
        let name = match target {
            Use::Schema(name) | Use::Database(name) | Use::Object(name) => name,
            other => {
                return Err(QueryError::unsupported(format!("{other} is not supported")));
            }
        };
        let schema = parts(name)?.pop().unwrap_or_default();
        if !self.session.engine().database().has_schema(&schema) {
            return Err(QueryError::new(
                Kind::UNDEFINED_SCHEMA,
                format!("schema {schema:?} does not exist"),
            )
            .at(position_of(name)));
        }
        self.session.set_values("search_path", &[schema])?;
        Ok(Outcome::done("USE"))
    }
}

fn dotted(name: &ObjectName) -> Result<String> {
    Ok(parts(name)?.join("."))
}
