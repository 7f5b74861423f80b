//! `SHOW` and `DESCRIBE`.

use arrow_schema::SchemaRef;
use datafusion::sql::parser::Statement as DfStatement;

use crate::Session;

/// Columns of what such a statement answers.
pub(crate) fn schema_of(_session: &Session, _body: &DfStatement) -> Option<SchemaRef> {
    None
}
