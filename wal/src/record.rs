//! Records: `magic, version, crc32, kind, epoch, writer, seq, stamp, payload` (PROTOCOLS §1).
//! The bytes are laid out in [`codec`].

pub mod codec;
mod ownership;
mod text;

pub use codec::{RecordError, RecordId, RecordKind, Remains};
pub use ownership::{Join, Merge, Move, Recut, Split, UnitCut};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_types::{
    ColumnId, Epoch, Incarnation, ManifestVersion, Offset, PartitionBounds, ProcedureId, Seq,
    ShardId, TableId, TableSchema, TimestampMs, WriteId, WriterId,
};
use std::sync::Arc;
use uuid::Uuid;

/// One publish attempt of a manifest; two puts of one number differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptId(pub Uuid);

/// A manifest by number and attempt, as `Manifest` and `Claim` records name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ManifestRef {
    /// The number in the chain.
    pub version: ManifestVersion,
    /// The attempt that won the number.
    pub attempt: AttemptId,
}

/// A record of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Who wrote it: the leader's epoch (zero for `Genesis` and `Barrier`).
    pub epoch: Epoch,
    /// The leader's writer id (nil for `Genesis` and `Barrier`).
    pub writer: WriterId,
    /// Number within the epoch; 0 for unsequenced kinds.
    pub seq: Seq,
    /// The leader's wall clock when it built the record. Enters fold state only as data.
    pub stamp_ms: TimestampMs,
    /// What it says.
    pub payload: Payload,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// Offset 0 of every log.
    Genesis(Genesis),
    /// A leader takes the log; names the manifest it opened from.
    Claim(ManifestRef),
    /// A reader's mark; changes nothing.
    Barrier(Uuid),
    /// Rows.
    Write(Write),
    /// Schemas made, changed or dropped, all or none.
    Schema(Vec<SchemaChange>),
    /// A manifest was published.
    Manifest(ManifestRef),
    /// Units leave for a new shard.
    Split(Split),
    /// This shard is to become part of another: from here on it takes no write.
    Seal {
        /// The procedure that wants it.
        procedure: ProcedureId,
    },
    /// The merge was decided against: the seal is lifted.
    Unseal {
        /// The procedure that holds the seal.
        procedure: ProcedureId,
    },
    /// All units of a sealed shard come in.
    Merge(Merge),
    /// The procedure is decided against, if nothing decided it before.
    Abort {
        /// The procedure.
        procedure: ProcedureId,
    },
    /// Units are cut and joined in place.
    Recut(Recut),
}

/// Names the log, so that a foreign one is recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// `cluster.name`
    pub cluster: String,
    /// The shard.
    pub shard: ShardId,
    /// The topic (or local log) name.
    pub topic: String,
}

/// Rows of one request for this shard: applied all or not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// What the fold judges.
    pub header: WriteHeader,
    /// Row blocks (`shoal_rows::encode_blocks`); opaque here.
    pub body: Bytes,
}

/// What the fold needs to know of a write.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WriteHeader {
    /// Ownership generation of the shard it was routed by.
    pub generation: u64,
    /// Tables it writes.
    pub tables: Vec<TableWrite>,
    /// The client's write id, if one was sent. An UPDATE or DELETE that needs several records
    /// gives all its parts one id (its own, if the client sent none): what the earlier parts of
    /// one id changed is no conflict for the later ones.
    pub write_id: Option<WriteIdPart>,
    /// Progress of a resumable import, if it is part of one.
    pub import: Option<ImportChunk>,
    /// For UPDATE and DELETE: the offset of the last record that the statement's reads had
    /// applied. Any later change of a written table by somebody else is a conflict.
    pub read_at: Option<Offset>,
    /// What earlier records of the same write id and part (or import chunk and part) have brought
    /// of the units named here, and this one leaves out: empty at the first try, then what
    /// [`Verdict::Overlaps`](crate::fold::Verdict::Overlaps) told. With it, the record says that it
    /// brings all other rows of its part that the units named own; the part was cut from the
    /// request alone, before its rows were routed.
    ///
    /// `None`: of a version from before partitions. It is told apart by its id and part alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub besides: Option<Vec<Covered>>,
}

/// Rows of one unit that were applied before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Covered {
    /// The unit, as the write names it.
    pub unit: TableId,
    /// Those within these bounds; `None`: all of the unit's.
    pub bounds: Option<Arc<PartitionBounds>>,
}

/// One table of a write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableWrite {
    /// The table.
    pub table: TableId,
    /// The incarnation the rows were built for.
    pub incarnation: Incarnation,
    /// All columns the rows name.
    pub columns: Vec<ColumnId>,
    /// Number of rows, for metrics and inspection.
    pub rows: u32,
    /// For append tables: a predicate tombstone (SQL text of the predicate over the table's columns,
    /// applied to every row whose version is below this record's, before the rows that the record
    /// brings itself).
    #[serde(default)]
    pub delete_where: Option<String>,
}

/// A write id and which part of the request this record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WriteIdPart {
    /// The client's id.
    pub id: WriteId,
    /// Large requests become parts, in order. They are cut from the request alone, before its rows
    /// are routed, so that a part holds the same rows in every try.
    pub part: u32,
}

/// One chunk of an import, numbered from 0 in the order of the input. A client has at most
/// [`CHUNKS_AHEAD_MAX`] chunks not yet acknowledged by every shard they have rows on, and cuts
/// chunks and parts the same way when it resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImportChunk {
    /// Hash of what is imported where (input identity, chunking, table).
    pub import: u128,
    /// Number of the chunk.
    pub chunk: u64,
    /// A chunk over `wal.record_bytes_max` becomes several records, in order.
    pub part: u32,
    /// Whether this is the last part of its chunk on this shard.
    pub last_part: bool,
}

/// One change of one table's schema.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SchemaChange {
    /// Make the table (version 1) or replace its schema; applies only if the version is the
    /// current one plus 1.
    Put(Arc<TableSchema>),
    /// Drop the table.
    Drop {
        /// The table.
        table: TableId,
    },
    /// What a new unit owns. Stands behind the `Put` that makes the unit, in the same record; a
    /// unit without it owns its whole table.
    Own {
        /// The unit.
        table: TableId,
        /// The table that it is a part of: the same for all its units, whichever shards they are
        /// on. By it the fold knows rows again that were written to another unit.
        of: TableId,
        /// What it owns.
        bounds: Arc<PartitionBounds>,
    },
}

/// The most chunks of one import that a client may have sent without having seen them
/// acknowledged. Half of what the fold's window holds.
pub const CHUNKS_AHEAD_MAX: u64 = 32;

/// The most rows of one record: a row's number in its record has 16 bits (PROTOCOLS §3).
pub const RECORD_ROWS_MAX: u32 = 65_536;

/// `wal.record_bytes_max` unless configured: 8 MiB for the encoded record.
pub const RECORD_BYTES_MAX_DEFAULT: usize = 8 << 20;

impl WriteHeader {
    /// Rows of all tables.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|t| u64::from(t.rows)).sum()
    }
}

impl Record {
    /// The record that names a log; stands at offset 0.
    #[must_use]
    pub fn genesis(genesis: Genesis) -> Self {
        Self::unsequenced(Payload::Genesis(genesis), 0)
    }

    /// A reader's mark.
    #[must_use]
    pub fn barrier(mark: Uuid, stamp_ms: TimestampMs) -> Self {
        Self::unsequenced(Payload::Barrier(mark), stamp_ms)
    }

    /// A leader takes the log in `epoch`, having opened from `manifest`.
    #[must_use]
    pub fn claim(
        epoch: Epoch,
        writer: WriterId,
        manifest: ManifestRef,
        stamp_ms: TimestampMs,
    ) -> Self {
        Self {
            epoch,
            writer,
            seq: Seq(0),
            stamp_ms,
            payload: Payload::Claim(manifest),
        }
    }

    /// A record of the holder of a claim; `payload` is of a sequenced kind.
    #[must_use]
    pub fn sequenced(
        claim: (Epoch, WriterId),
        seq: Seq,
        stamp_ms: TimestampMs,
        payload: Payload,
    ) -> Self {
        Self {
            epoch: claim.0,
            writer: claim.1,
            seq,
            stamp_ms,
            payload,
        }
    }

    fn unsequenced(payload: Payload, stamp_ms: TimestampMs) -> Self {
        Self {
            epoch: Epoch::default(),
            writer: WriterId(Uuid::nil()),
            seq: Seq(0),
            stamp_ms,
            payload,
        }
    }

    /// Which kind of record this is.
    #[must_use]
    pub fn kind(&self) -> RecordKind {
        match &self.payload {
            Payload::Genesis(_) => RecordKind::Genesis,
            Payload::Claim(_) => RecordKind::Claim,
            Payload::Barrier(_) => RecordKind::Barrier,
            Payload::Write(_) => RecordKind::Write,
            Payload::Schema(_) => RecordKind::Schema,
            Payload::Manifest(_) => RecordKind::Manifest,
            Payload::Split(_) => RecordKind::Split,
            Payload::Seal { .. } => RecordKind::Seal,
            Payload::Unseal { .. } => RecordKind::Unseal,
            Payload::Merge(_) => RecordKind::Merge,
            Payload::Abort { .. } => RecordKind::Abort,
            Payload::Recut(_) => RecordKind::Recut,
        }
    }
}

#[cfg(test)]
mod tests;
