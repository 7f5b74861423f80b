//! Manifests: the numbered, immutable descriptions of a shard (PROTOCOLS §2).
//!
//! - [`format`]: what a manifest object holds, byte by byte.
//! - [`state`]: a shard's description in memory, and the one function that moves it by an edit.
//! - [`invariants`]: what must hold between two descriptions, checked before each publish.
//! - [`chain`]: listing and loading.
//! - [`publish`]: how a number is won, and what an unclear put means.

pub mod chain;
pub mod format;
pub mod invariants;
pub mod publish;
pub mod state;
#[cfg(test)]
mod tests;

pub use chain::Chain;
pub use format::{
    Body, Edit, FileEntry, LogIdentity, Loss, LossKind, Manifest, Obsolete, Predecessor, Publisher,
    Residue, ResidueEdit, Snapshot, TableEdit, TableFiles,
};
pub use publish::{Prepared, PublishError};
pub use state::ManifestState;
