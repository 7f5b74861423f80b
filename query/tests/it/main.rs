//! SQL against a database in a temporary folder.

mod bench;
mod concurrency;
mod decimals;
mod faults;
mod guards;
mod limits;
mod literals;
mod partitions;
mod pruning;
mod reads;
mod renewal;
mod replaced;
mod splits;
mod statements;
mod stored_predicates;
mod support;
