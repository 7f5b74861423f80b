//! Names in statements: folded to lower case unless quoted, looked up in the session's schema
//! unless qualified.

use datafusion::sql::sqlparser::ast::{Ident, ObjectName};
use shoal_engine::TableHandle;

use super::Run;
use crate::error::{Kind, Result};
use crate::{CATALOG, QueryError};

/// The stored form of an identifier.
pub(crate) fn fold(ident: &Ident) -> String {
    if ident.quote_style.is_some() {
        ident.value.clone()
    } else {
        ident.value.to_lowercase()
    }
}

/// Where an identifier stands in the statement.
pub(crate) fn position(ident: &Ident) -> Option<(u64, u64)> {
    let start = ident.span.start;
    (start.line > 0).then_some((start.line, start.column))
}

/// Where a name stands.
pub(crate) fn position_of(name: &ObjectName) -> Option<(u64, u64)> {
    name.0
        .first()
        .and_then(|part| part.as_ident())
        .and_then(position)
}

/// The parts of a name, folded.
pub(crate) fn parts(name: &ObjectName) -> Result<Vec<String>> {
    name.0
        .iter()
        .map(|part| {
            part.as_ident().map(fold).ok_or_else(|| {
                QueryError::unsupported(format!("{name} is not a plain name")).at(position_of(name))
            })
        })
        .collect()
}

/// A name of one part.
pub(crate) fn single(name: &ObjectName) -> Result<String> {
    let mut parts = parts(name)?;
    match (parts.pop(), parts.first().map(String::as_str)) {
        (Some(last), None | Some(CATALOG)) if parts.len() < 2 => Ok(last),
        _ => Err(
            QueryError::new(Kind::SYNTAX, format!("{name} has too many parts"))
                .at(position_of(name)),
        ),
    }
}

impl Run<'_> {
    /// Schema and table of a name.
    pub(super) fn qualified(&self, name: &ObjectName) -> Result<(String, String)> {
        let mut parts = parts(name)?;
        if parts.len() == 3 && parts[0] == CATALOG {
            parts.remove(0);
        }
        match <[String; 2]>::try_from(parts) {
            Ok([schema, table]) => Ok((schema, table)),
            Err(mut parts) => match (parts.pop(), parts.is_empty()) {
                (Some(table), true) => Ok((self.session.schema(), table)),
                _ => Err(QueryError::new(
                    Kind::UNDEFINED_TABLE,
                    format!("{name} is not the name of a table; write schema.table"),
                )
                .at(position_of(name))),
            },
        }
    }

    /// The table of a name.
    pub(super) fn table(&self, name: &ObjectName) -> Result<TableHandle> {
        let (schema, table) = self.qualified(name)?;
        let db = self.session.engine().database();
        db.table(&schema, &table).ok_or_else(|| {
            QueryError::from(db.table_not_found(&schema, &table)).at(position_of(name))
        })
    }
}
