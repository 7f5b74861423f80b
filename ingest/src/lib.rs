//! InfluxDB line protocol, parsed straight into columns.
//!
//! The way of a request: [`LineParser::parse`] gives one [`PendingTable`] a measurement;
//! [`PendingTable::new_schema`], or [`PendingTable::missing`] and [`extend_schema`], say what the
//! catalog needs; [`PendingTable::resolve`] gives the block for the log and the lines that the
//! table cannot take.

mod builder;
mod error;
mod names;
mod parse;
mod pending;
mod precision;
mod resolve;
mod scan;
mod schema;

pub use error::{LINE_ERRORS_KEPT, LineError, LineErrors};
pub use names::TIME_COLUMN;
pub use parse::{CELLS_MAX, LINE_BYTES_MAX, LineParser, ParseOptions, Parsed, SchemaOf};
pub use pending::{PendingField, PendingTable};
pub use precision::{Precision, PrecisionError};
pub use resolve::Resolved;
pub use schema::{NewColumn, extend_schema};
