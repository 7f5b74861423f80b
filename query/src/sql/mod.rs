//! Statements: parsing, and one module for each family.

mod alter;
mod change;
mod constants;
mod copy;
mod create;
mod definition;
mod insert;
mod lists;
mod named;
mod names;
mod parse;
mod partitioned;
mod partitions;
mod precedence;
mod prepare;
mod repartitioned;
mod repeated;
mod result_names;
mod rowset;
mod run;
mod set;
mod show;
mod types;

pub(crate) use named::NamedStatements;
pub use parse::check_complexity;
pub(crate) use parse::{Statement, parse_one, parse_script, takes_write_id};
pub(crate) use prepare::prepare;
pub use result_names::Names;
pub(crate) use run::{Outcome, Run};
