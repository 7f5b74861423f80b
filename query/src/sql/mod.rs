//! Statements: parsing, and one module for each family.

mod parse;
mod prepare;
mod rowset;
mod run;
mod show;

pub(crate) use parse::{Statement, parse_one, parse_script};
pub(crate) use prepare::prepare;
pub(crate) use run::{Outcome, Run};
