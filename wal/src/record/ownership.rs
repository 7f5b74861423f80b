//! What the records that change ownership say (PROTOCOLS §5, `docs/decisions/0018`).
//!
//! All of them name their [`ProcedureId`]. The log that decides a procedure (the parent's of a
//! split, the target's of a merge, the shard's own of a recut) takes one of its records and refuses
//! all others, an `Abort` among them.

use serde::{Deserialize, Serialize};
use shoal_types::{Offset, PartitionBounds, ProcedureId, ShardId, TableId};

use super::ManifestRef;
use crate::fold::FoldSnapshot;

/// Units leave for a new shard; stands in the parent's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The procedure.
    pub procedure: ProcedureId,
    /// The parent's manifest that lends the files; applies only if it is the last one named.
    pub manifest: ManifestRef,
    /// The new shard.
    pub child: ShardId,
    /// What goes; each unit once.
    pub moves: Vec<Move>,
}

/// One unit of a [`Split`] or [`Recut`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The unit.
    pub unit: TableId,
    /// Where it is cut; `None`: all of it goes.
    pub cut: Option<UnitCut>,
}

/// A unit becomes two. Both bounds are measured alike and join to what the unit had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitCut {
    /// What the unit keeps.
    pub left: PartitionBounds,
    /// The new unit, which goes.
    pub right_unit: TableId,
    /// What it has.
    pub right: PartitionBounds,
}

/// All units of a sealed shard come in; stands in the target's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Merge {
    /// The procedure, which holds the source's seal.
    pub procedure: ProcedureId,
    /// The shard that ends.
    pub source: ShardId,
    /// Offset of the `Seal` in its log.
    pub seal: Offset,
    /// The source's last manifest named at the seal.
    pub manifest: ManifestRef,
    /// The source's fold just behind the seal. It is carried and not named: the fold reads no
    /// store, so that a verdict never depends on what a read of the store finds, and when.
    /// [`FoldSnapshot::keep_newest_write_ids`] makes one smaller that does not fit into a record.
    pub fold: Box<FoldSnapshot>,
}

/// Units of one shard are cut and joined; they stay where they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recut {
    /// The procedure.
    pub procedure: ProcedureId,
    /// The shard's manifest that it was planned by; applies only if it is the last one named.
    pub manifest: ManifestRef,
    /// Units to cut; every one has a cut.
    pub cuts: Vec<Move>,
    /// Units to join. A unit stands in one cut or one join at most.
    pub joins: Vec<Join>,
}

/// Two neighbours become one under the left one's id. They must be parts of one table with the
/// same columns and incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The unit that stays.
    pub left: TableId,
    /// The unit that is gone.
    pub right: TableId,
    /// What the left one has then.
    pub bounds: PartitionBounds,
}
