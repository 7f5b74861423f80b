//! The `shoal` binary: roles, protocols, command line (DESIGN §7).
//!
//! [`standalone`] is the role that exists so far: HTTP ([`http`]), PostgreSQL ([`postgres`]) and
//! the whole engine in one process, as [`config`] says. [`cli`] is the command line.

pub mod auth;
mod civil;
pub mod cli;
pub mod config;
pub mod http;
pub mod logging;
pub mod metrics;
mod nearest;
pub mod postgres;
pub mod standalone;
mod starting;
