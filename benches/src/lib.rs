//! `shoal bench`: data and queries of the Time Series Benchmark Suite's cpu-only case, a loader
//! that sends them over HTTP, and a runner that measures the queries. It depends on nothing of
//! the database: it is a client, and what it measures is what a client sees.

#![warn(missing_docs)]

mod client;
mod command;
mod error;
mod figures;
mod hosts;
mod latency;
mod load;
mod query;
mod random;
mod statements;
mod stopwatch;
mod tables;
mod timestamps;
mod workload;

pub use command::{BenchCommand, run};
pub use error::BenchError;
pub use figures::{Bars, Figure};
pub use statements::{QUERY_NAMES, Statement, statements};
pub use workload::{Batch, Generator, Workload};
