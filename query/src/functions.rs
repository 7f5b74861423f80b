//! Functions that PostgreSQL users expect and DataFusion does not have.

use datafusion::prelude::SessionContext;

/// Registers them.
pub(crate) fn register(_context: &SessionContext) {}
