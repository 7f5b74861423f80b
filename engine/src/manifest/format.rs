//! A manifest object, format version 1. All numbers are little-endian.
//!
//! ```text
//!  byte  size  field
//!     0     8  magic  "SHOALMAN"
//!     8     2  format version (1)
//!    10     4  crc32 (IEEE) of every byte from 14 on
//!    14     4  size of the body before compression
//!    18     …  body: zstd of one MessagePack map with field names ([`Manifest`])
//! ```
//!
//! A body is a [`Snapshot`] of everything or an [`Edit`] of the manifest before it, so that a flush
//! writes what changed and not what is. The chain of a manifest is itself and all before it down
//! to the nearest snapshot; each edit names the hash of its predecessor's bytes.
//!
//! A field may be added with a serde default within one format version.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_sst::SstFile;
use shoal_types::{
    Incarnation, LogId, ManifestVersion, Offset, RowVersion, ShardId, TableId, TimestampMs,
    WriterId,
};
use shoal_wal::fold::{FoldEdit, FoldSnapshot};
use shoal_wal::record::{AttemptId, ManifestRef};

use crate::PredicateDelete;

/// First bytes of every manifest.
pub const MAGIC: [u8; 8] = *b"SHOALMAN";
/// The version written, and the newest that is read.
pub const FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: usize = 18;
const ZSTD_LEVEL: i32 = 1;
/// A body larger than this is refused before memory is taken for it.
const BODY_BYTES_MAX: u32 = 1 << 30;

/// Who published a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publisher {
    /// The publisher's term.
    pub term: u64,
    /// The publisher: fresh for every open.
    pub writer: WriterId,
    /// Tells two puts of one number apart.
    pub attempt: AttemptId,
}

/// The manifest before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Predecessor {
    /// Its number.
    pub version: ManifestVersion,
    /// xxh3-64 of its bytes.
    pub hash: u64,
}

/// Which log the shard's `replay_offset` counts in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    /// Topic, or name of the local log; empty until the first leader read its `Genesis`.
    pub topic: String,
    /// Its id, where it took the place of one that was lost; then it counts more than what meta
    /// says. `None`: the one that meta names.
    #[serde(default)]
    pub id: Option<LogId>,
    /// Positions of the shard are the log's offsets plus this, so that they are above all of the
    /// log before.
    #[serde(default)]
    pub shift: u64,
    /// The log whose place it took; closed by the first leader.
    #[serde(default)]
    pub previous: Option<LogId>,
}

impl LogIdentity {
    /// Whether positions of the two mean the same records.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.id, self.shift) == (other.id, other.shift)
    }
}

/// What an operator did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// `shard skip-record`: damaged records were given up.
    RecordSkipped,
    /// `shard adopt-log`: another log took the place of a lost one.
    LogAdopted,
}

impl LossKind {
    /// As it is shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RecordSkipped => "record_skipped",
            Self::LogAdopted => "log_adopted",
        }
    }
}

/// Positions that an operator gave up: what stood there is lost, or never was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// By which command.
    pub kind: LossKind,
    /// The first position given up.
    pub from: Offset,
    /// Where the shard went on.
    pub to: Offset,
    /// When, by the clock of the node that did it.
    pub at_ms: TimestampMs,
    /// In which term.
    pub term: u64,
    /// The node that did it.
    pub node: String,
    /// What was found damaged or missing.
    pub what: String,
    /// Why it was given up, in the operator's words.
    pub reason: String,
}

impl Loss {
    /// Whether what was written at a position was given up.
    #[must_use]
    pub fn covers(&self, offset: Offset) -> bool {
        (self.from..self.to).contains(&offset)
    }
}

/// Losses that a shard remembers one by one; of more the two oldest become one.
pub const LOSSES_MAX: usize = 64;

/// One manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its number.
    pub version: ManifestVersion,
    /// Who published it.
    pub publisher: Publisher,
    /// When, by the publisher's clock.
    pub published_ms: TimestampMs,
    /// The manifest before; `None` for number 0.
    pub predecessor: Option<Predecessor>,
    /// `cluster.name`
    pub cluster: String,
    /// The shard.
    pub shard: ShardId,
    /// What it says.
    pub body: Body,
}

/// Everything, or what changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Body {
    /// Everything.
    Snapshot(Box<Snapshot>),
    /// What changed since the predecessor.
    Edit(Box<Edit>),
}

/// Everything a shard is, but its log from `replay_offset` on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The log.
    pub log: LogIdentity,
    /// Rows below are in files or in the residue; replay begins here.
    pub replay_offset: Offset,
    /// The fold just before `replay_offset`.
    pub fold: FoldSnapshot,
    /// Files of tables that have any, ascending by table.
    pub tables: Vec<(TableId, TableFiles)>,
    /// Rows of small tables.
    pub residue: Option<Residue>,
    /// Objects no longer named above and not yet deleted.
    pub obsolete: Vec<Obsolete>,
    /// What operators gave up, ascending.
    #[serde(default)]
    pub losses: Vec<Loss>,
}

/// What became of the residue. Not an `Option<Option<_>>`: MessagePack writes "none any more" and
/// "unchanged" alike, and rows that are in files by now would come back after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ResidueEdit {
    /// There is none any more.
    Removed,
    /// This one, and no other.
    Replaced(Residue),
}

impl ResidueEdit {
    /// The residue after the edit.
    #[must_use]
    pub fn residue(&self) -> Option<&Residue> {
        match self {
            Self::Removed => None,
            Self::Replaced(residue) => Some(residue),
        }
    }
}

/// What changed since the predecessor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Edit {
    /// The log, where it became known.
    pub log: Option<LogIdentity>,
    /// New replay offset and the fold there; `None`: both as before.
    pub fold: Option<FoldEdit>,
    /// Tables whose files changed, ascending.
    pub tables: Vec<(TableId, TableEdit)>,
    /// The residue, where it changed.
    pub residue: Option<ResidueEdit>,
    /// Objects that were deleted.
    pub forgotten: Vec<String>,
    /// What an operator gave up with this manifest.
    #[serde(default)]
    pub losses: Vec<Loss>,
}

/// A file as a shard keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// The file.
    pub file: SstFile,
    /// Predicate deletes up to this version have been applied to its rows.
    #[serde(default)]
    pub deletes_through: RowVersion,
}

/// Files and deletes of one table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TableFiles {
    /// Ascending by `version_max`.
    pub files: Vec<FileEntry>,
    /// Predicate deletes that some file still needs, ascending by version.
    #[serde(default)]
    pub deletes: Vec<PredicateDelete>,
    /// Rows at or below are in files; replay skips them.
    #[serde(default)]
    pub flushed_through: Option<Offset>,
}

impl TableFiles {
    /// The files with rows of an incarnation: those of older ones are only waiting to go.
    pub fn of_incarnation(&self, incarnation: Incarnation) -> impl Iterator<Item = &FileEntry> {
        let files = self.files.iter();
        files.filter(move |entry| entry.file.incarnation == incarnation)
    }
}

/// How one table changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TableEdit {
    /// The table is gone, with all its files.
    #[serde(default)]
    pub dropped: bool,
    /// Paths of files that are named no more.
    #[serde(default)]
    pub remove: Vec<String>,
    /// New files.
    #[serde(default)]
    pub add: Vec<FileEntry>,
    /// All active predicate deletes, where they changed.
    #[serde(default)]
    pub deletes: Option<Vec<PredicateDelete>>,
    /// Where it changed.
    #[serde(default)]
    pub flushed_through: Option<Offset>,
}

/// An object with the rows of tables too small for a file of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residue {
    /// Object path.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// crc32 of its bytes.
    pub crc: u32,
    /// Rows in it.
    pub rows: u64,
}

/// An object that no manifest from this one on names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Obsolete {
    /// Object path.
    pub path: String,
    /// When it was un-referenced, by the publisher's clock.
    pub since_ms: TimestampMs,
    /// The first manifest that does not name it.
    pub version: ManifestVersion,
}

impl Manifest {
    /// Number and attempt.
    #[must_use]
    pub fn reference(&self) -> ManifestRef {
        ManifestRef {
            version: self.version,
            attempt: self.publisher.attempt,
        }
    }

    /// The bytes of the object.
    ///
    /// # Errors
    /// Text; a defect of ours or a body beyond 1 GiB.
    pub fn encode(&self) -> Result<Bytes, String> {
        let body = rmp_serde::to_vec_named(self).map_err(|e| e.to_string())?;
        let size = u32::try_from(body.len())
            .ok()
            .filter(|size| *size <= BODY_BYTES_MAX)
            .ok_or_else(|| format!("a body of {} bytes is too large", body.len()))?;
        let packed = zstd::bulk::compress(&body, ZSTD_LEVEL).map_err(|e| e.to_string())?;
        let mut out = Vec::with_capacity(HEADER_BYTES + packed.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(&packed);
        let crc = crc32fast::hash(&out[14..]);
        out[10..14].copy_from_slice(&crc.to_le_bytes());
        Ok(Bytes::from(out))
    }

    /// Reads the bytes of an object.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEADER_BYTES {
            return Err(format!("{} bytes are too few for a manifest", bytes.len()));
        }
        if bytes[..8] != MAGIC {
            return Err("it does not begin with SHOALMAN".into());
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION {
            return Err(format!(
                "format {version} is not known to this version, which reads {FORMAT_VERSION}"
            ));
        }
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (crc, size) = (number(10), number(14));
        let found = crc32fast::hash(&bytes[14..]);
        if found != crc {
            return Err(format!(
                "its checksum is {found:08x}, it was written with {crc:08x}"
            ));
        }
        if size > BODY_BYTES_MAX {
            return Err(format!("a body of {size} bytes is too large"));
        }
        let body = zstd::bulk::decompress(&bytes[HEADER_BYTES..], size as usize)
            .map_err(|e| format!("its body does not decompress: {e}"))?;
        rmp_serde::from_slice(&body).map_err(|e| format!("its body does not decode: {e}"))
    }
}

/// The hash by which a successor names these bytes.
#[must_use]
pub fn hash_of(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
