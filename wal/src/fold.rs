//! The fold (PROTOCOLS §1): `fold(state, offset, record) -> verdict`, pure.

use std::sync::Arc;

use shoal_types::{Epoch, ManifestVersion, Offset, Seq, TableId, TableSchema, WriterId};

use crate::record::{ManifestRef, Record};

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect.
    Apply,
    /// A sequenced record of an epoch or writer that is not the current claim.
    NotCurrent,
    /// A `seq` that was seen already (a producer's duplicate).
    Duplicate,
    /// A `seq` above the next one, or a record after such: the epoch is poisoned.
    Gap,
    /// A `Write` routed by an older ownership generation.
    WrongGeneration,
    /// A `Write` for a dropped table, another incarnation or an unknown column; or a `Schema`
    /// whose version is not the next.
    StaleSchema {
        /// The table.
        table: TableId,
    },
    /// An UPDATE or DELETE whose table changed after the position it read at.
    Conflict {
        /// The table.
        table: TableId,
    },
    /// A write id or import chunk that is applied already: success for the client.
    DuplicateId,
    /// A write id older than the window reaches.
    ExpiredId,
    /// A barrier or genesis: changes no state.
    Noted,
}

/// Everything a verdict depends on; the whole of it is in every manifest (PROTOCOLS M1).
/// Cloning is cheap: large maps are persistent.
#[derive(Clone, Debug)]
pub struct FoldState {
    // The fields are the fold's own; read them through the methods.
    pub(crate) claim: (Epoch, WriterId),
    pub(crate) next_seq: Seq,
    pub(crate) poisoned: bool,
}

impl FoldState {
    /// The current claim: epoch and writer.
    #[must_use]
    pub fn claim(&self) -> (Epoch, WriterId) {
        self.claim
    }
    /// The `seq` that the current claim's next sequenced record must have.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        self.next_seq
    }
    /// Whether a gap ended the current claim's right to write.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.poisoned
    }
    /// Version base of `__seq` (PROTOCOLS §3).
    #[must_use]
    pub fn version_base(&self) -> u64 {
        todo!()
    }
    /// Ownership generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        todo!()
    }
    /// The last manifest named by an applied `Manifest` or `Claim`.
    #[must_use]
    pub fn manifest(&self) -> Option<ManifestRef> {
        todo!()
    }
    /// A table's schema.
    #[must_use]
    pub fn schema(&self, _table: TableId) -> Option<&Arc<TableSchema>> {
        todo!()
    }
    /// All schemas.
    pub fn schemas(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        std::iter::empty()
    }
    /// For a resumable import: one past the highest chunk below which all are applied here.
    #[must_use]
    pub fn import_progress(&self, _import: u128) -> Option<u64> {
        todo!()
    }
}

/// Judges a record and moves the state. The only way in which rows, schemas and claims change.
pub fn fold(_state: &mut FoldState, _offset: Offset, _record: &Record) -> Verdict {
    let _ = ManifestVersion(0);
    todo!()
}
