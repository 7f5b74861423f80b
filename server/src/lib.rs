//! The `shoal` binary: roles, protocols, command line (DESIGN §7).
//!
//! [`standalone`]: HTTP ([`http`]), PostgreSQL ([`postgres`]) and the whole engine in one process,
//! as [`config`] says. [`node`]: the same as one of several over one copy of data. [`scheduler`]: one
//! of those that say which node leads what. [`cli`] is the command line.

// The layout of a front's future is that of everything below it, down to the log.
#![recursion_limit = "256"]

pub mod auth;
mod chain;
mod civil;
pub mod cli;
pub mod config;
pub mod http;
pub mod logging;
pub mod metrics;
mod nearest;
pub mod node;
pub mod postgres;
pub mod scheduler;
pub mod standalone;
mod starting;
