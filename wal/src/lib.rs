//! The log of a shard and its fold (PROTOCOLS §1).
//!
//! - [`record`]: what stands in the log, byte by byte.
//! - [`fold`]: the one pure function that judges every record, on every replica.
//! - [`log`]: the contract of a log; [`kafka`] keeps it there, [`local`] on disk, [`simulated`] in
//!   memory with faults on demand; `conformance` is the suite that all backends pass.

#[doc(hidden)]
pub mod conformance;
pub mod fold;
pub mod kafka;
mod little_endian;
pub mod local;
pub mod log;
pub mod record;
pub mod simulated;
