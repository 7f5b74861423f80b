//! SQL against a database in a temporary folder.

mod bench;
mod concurrency;
mod limits;
mod literals;
mod pruning;
mod reads;
mod statements;
mod support;
