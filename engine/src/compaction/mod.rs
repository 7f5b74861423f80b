//! Turning memtables into files and files into fewer files. Nothing here publishes: results are
//! unreferenced objects until the shard names them in a manifest (PROTOCOLS §2).

mod budget;
mod fresh;
pub(crate) mod pick;
mod write;

pub use budget::ByteBudget;
pub use pick::{CompactionJob, PickConfig, TtlCut, expired, pick, pick_full, pick_stale};
pub use write::SstProducer;

#[cfg(test)]
mod tests;
