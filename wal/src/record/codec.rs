//! The bytes of a record, format version 1. All numbers are little-endian.
//!
//! ```text
//!  byte  size  field
//!     0     4  magic  AB 53 48 4C
//!     4     1  format version (1)
//!     5     4  crc32 (IEEE, as in gzip) of every byte from 9 on
//!     9     1  kind
//!    10    16  epoch: term, claim
//!    26    16  writer (UUID, in its own byte order)
//!    42     8  seq
//!    50     8  stamp, milliseconds since the Unix epoch
//!    58     …  payload
//! ```
//!
//! Payloads: `Barrier` is 16 bytes of UUID; `Write` is the length of its header (u32), the header,
//! then the row blocks as they are; `Merge` is the length of what it says (u32), that, then the
//! source's fold as zstd of one MessagePack value; the others are one MessagePack value. MessagePack structs are
//! maps with field names, so that a field with a default can be added within one format version.
//!
//! | number | kind | | number | kind |
//! |---|---|---|---|---|
//! | 1 | `Genesis` | | 19 | `Split` |
//! | 2 | `Claim` | | 20 | `Seal` |
//! | 3 | `Barrier` | | 21 | `Unseal` |
//! | 16 | `Write` | | 22 | `Merge` |
//! | 17 | `Schema` | | 23 | `Abort` |
//! | 18 | `Manifest` | | 24 | `Recut` |
//!
//! An unknown kind is not skipped: this version could not tell what it changes, so a
//! replica that meets one stops there, as at damage.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::Read;

use shoal_types::{Epoch, Offset, ProcedureId, Seq, ShardId, WriterId};
use uuid::Uuid;

use super::{ManifestRef, Merge, Payload, RECORD_ROWS_MAX, Record, Write, WriteHeader};
use crate::fold::FoldSnapshot;
use crate::little_endian::{u32_at, u64_at};

/// The first four bytes of every record of ours.
pub const MAGIC: [u8; 4] = [0xAB, b'S', b'H', b'L'];
/// The format that this version writes, and the newest that it reads.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 58;

/// A source's fold in a `Merge` that is larger than this uncompressed is not read: it would be of
/// some hundred thousand tables.
const MERGE_FOLD_BYTES_MAX: u64 = 256 << 20;
const ZSTD_LEVEL: i32 = 1;

const CRC_AT: usize = 5;
const KIND_AT: usize = 9;

/// Kinds of records and their numbers in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// Names the log.
    Genesis = 1,
    /// A leader takes the log.
    Claim = 2,
    /// A reader's mark.
    Barrier = 3,
    /// Rows.
    Write = 16,
    /// Schema changes.
    Schema = 17,
    /// A manifest was published.
    Manifest = 18,
    /// Units leave for a new shard.
    Split = 19,
    /// The shard takes no more writes.
    Seal = 20,
    /// It takes them again.
    Unseal = 21,
    /// Another shard's units come in.
    Merge = 22,
    /// A procedure is decided against.
    Abort = 23,
    /// Units are cut and joined in place.
    Recut = 24,
}

impl RecordKind {
    fn from_number(number: u8) -> Result<Self, RecordError> {
        Ok(match number {
            1 => Self::Genesis,
            2 => Self::Claim,
            3 => Self::Barrier,
            16 => Self::Write,
            17 => Self::Schema,
            18 => Self::Manifest,
            19 => Self::Split,
            20 => Self::Seal,
            21 => Self::Unseal,
            22 => Self::Merge,
            23 => Self::Abort,
            24 => Self::Recut,
            _ => return Err(RecordError::UnknownKind { kind: number }),
        })
    }

    /// Whether only the holder of the claim may write it, numbered without gaps.
    #[must_use]
    pub fn is_sequenced(self) -> bool {
        self as u8 >= 16
    }
}

/// Why bytes of the log are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not written by ShoalDB: skipped and counted.
    #[error("not a ShoalDB record (no magic)")]
    Foreign,
    /// Ours, but not as it was written: the replica stops here.
    #[error("damaged record: {what}")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// Of a newer format: the replica stops here; a newer ShoalDB reads it.
    #[error("record format {version} is newer than {FORMAT_VERSION}, the newest known here")]
    UnknownVersion {
        /// The format named in the record.
        version: u8,
    },
    /// Of a kind that this version does not know: the replica stops here.
    #[error("record kind {kind} is not known to this version")]
    UnknownKind {
        /// Its number.
        kind: u8,
    },
    /// On the way in: larger than a record may be. Nothing was written.
    #[error(
        "a record of {bytes} bytes and {rows} rows exceeds {bytes_max} bytes or {RECORD_ROWS_MAX} rows; send smaller parts"
    )]
    OverLimit {
        /// Encoded size.
        bytes: usize,
        /// Rows of all its tables.
        rows: u64,
        /// `wal.record_bytes_max`
        bytes_max: usize,
    },
}

/// Who a record is, without its payload: enough to match what the leader has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordId {
    /// Its kind.
    pub kind: RecordKind,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// Who wrote it.
    pub writer: WriterId,
    /// Number within the epoch.
    pub seq: Seq,
    /// crc32 of all that follows the crc field.
    pub crc: u32,
}

impl Record {
    /// The bytes of this record.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body_bytes = match &self.payload {
            Payload::Write(write) => write.body.len() + 64 * write.header.tables.len() + 128,
            _ => 256,
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + body_bytes);
        out.extend_from_slice(&MAGIC);
        out.push(FORMAT_VERSION);
        out.extend_from_slice(&[0; 4]);
        out.push(self.kind() as u8);
        out.extend_from_slice(&self.epoch.term.to_le_bytes());
        out.extend_from_slice(&self.epoch.claim.to_le_bytes());
        out.extend_from_slice(self.writer.0.as_bytes());
        out.extend_from_slice(&self.seq.0.to_le_bytes());
        out.extend_from_slice(&self.stamp_ms.to_le_bytes());
        match &self.payload {
            Payload::Genesis(genesis) => pack(&mut out, genesis),
            Payload::Claim(manifest) | Payload::Manifest(manifest) => pack(&mut out, manifest),
            Payload::Barrier(mark) => out.extend_from_slice(mark.as_bytes()),
            Payload::Schema(changes) => pack(&mut out, changes),
            Payload::Split(split) => pack(&mut out, split),
            Payload::Recut(recut) => pack(&mut out, recut),
            Payload::Seal { procedure }
            | Payload::Unseal { procedure }
            | Payload::Abort { procedure } => {
                let procedure = *procedure;
                pack(&mut out, &Named { procedure });
            }
            Payload::Merge(merge) => {
                pack_with_length(&mut out, &MergeHead::of(merge));
                out.extend_from_slice(&compress(&merge.fold));
            }
            Payload::Write(write) => {
                pack_with_length(&mut out, &write.header);
                out.extend_from_slice(&write.body);
            }
        }
        let crc = crc32fast::hash(&out[KIND_AT..]);
        out[CRC_AT..KIND_AT].copy_from_slice(&crc.to_le_bytes());
        Bytes::from(out)
    }

    /// The bytes of this record, if they keep the limits of a record.
    ///
    /// # Errors
    /// [`RecordError::OverLimit`]; the caller cuts the request into smaller parts.
    pub fn encode_within(&self, bytes_max: usize) -> Result<Bytes, RecordError> {
        let rows = match &self.payload {
            Payload::Write(write) => write.header.rows(),
            _ => 0,
        };
        let bytes = self.encode();
        // What was written must be read again: a fold that shrinks well may be too large to unpack.
        let readable = match &self.payload {
            Payload::Merge(_) => Self::decode(&bytes).is_ok(),
            _ => true,
        };
        if !readable || bytes.len() > bytes_max || rows > u64::from(RECORD_ROWS_MAX) {
            return Err(RecordError::OverLimit {
                bytes: bytes.len(),
                rows,
                bytes_max,
            });
        }
        Ok(bytes)
    }

    /// Reads a record. The body of a `Write` is a slice of `bytes`, not a copy.
    ///
    /// # Errors
    /// Every [`RecordError`] but `OverLimit`.
    pub fn decode(bytes: &Bytes) -> Result<Self, RecordError> {
        let id = Self::peek(bytes)?;
        let payload = bytes.slice(HEADER_BYTES..);
        let payload = match id.kind {
            RecordKind::Genesis => Payload::Genesis(unpack(&payload)?),
            RecordKind::Claim => Payload::Claim(unpack(&payload)?),
            RecordKind::Manifest => Payload::Manifest(unpack(&payload)?),
            RecordKind::Schema => Payload::Schema(unpack(&payload)?),
            RecordKind::Barrier => {
                let mark: [u8; 16] = payload[..].try_into().map_err(|_| {
                    damaged(format!("a barrier has 16 bytes, not {}", payload.len()))
                })?;
                Payload::Barrier(Uuid::from_bytes(mark))
            }
            RecordKind::Write => Payload::Write(decode_write(&payload)?),
            RecordKind::Split => Payload::Split(unpack(&payload)?),
            RecordKind::Recut => Payload::Recut(unpack(&payload)?),
            RecordKind::Merge => Payload::Merge(decode_merge(&payload)?),
            RecordKind::Seal => {
                let Named { procedure } = unpack(&payload)?;
                Payload::Seal { procedure }
            }
            RecordKind::Unseal => {
                let Named { procedure } = unpack(&payload)?;
                Payload::Unseal { procedure }
            }
            RecordKind::Abort => {
                let Named { procedure } = unpack(&payload)?;
                Payload::Abort { procedure }
            }
        };
        Ok(Self {
            epoch: id.epoch,
            writer: id.writer,
            seq: id.seq,
            stamp_ms: u64_at(bytes, 50),
            payload,
        })
    }

    /// Checks magic, version and crc and says who the record is, without decoding the payload.
    ///
    /// # Errors
    /// Every [`RecordError`] but `OverLimit`.
    pub fn peek(bytes: &Bytes) -> Result<RecordId, RecordError> {
        if bytes.len() < MAGIC.len() || bytes[..MAGIC.len()] != MAGIC {
            return Err(RecordError::Foreign);
        }
        match bytes.get(MAGIC.len()) {
            Some(&FORMAT_VERSION) => {}
            Some(&version) if version > FORMAT_VERSION => {
                return Err(RecordError::UnknownVersion { version });
            }
            Some(version) => return Err(damaged(format!("there is no format {version}"))),
            None => return Err(damaged("it ends after the magic".into())),
        }
        if bytes.len() < HEADER_BYTES {
            return Err(damaged(format!(
                "{} bytes are less than a record's header",
                bytes.len()
            )));
        }
        let crc = u32_at(bytes, CRC_AT);
        let found = crc32fast::hash(&bytes[KIND_AT..]);
        if crc != found {
            return Err(damaged(format!(
                "crc is {found:08x}, written was {crc:08x}"
            )));
        }
        let mut writer = [0; 16];
        writer.copy_from_slice(&bytes[26..42]);
        Ok(RecordId {
            kind: RecordKind::from_number(bytes[KIND_AT])?,
            epoch: Epoch {
                term: u64_at(bytes, 10),
                claim: u64_at(bytes, 18),
            },
            writer: WriterId(Uuid::from_bytes(writer)),
            seq: Seq(u64_at(bytes, 42)),
            crc,
        })
    }
}

/// What a damaged record says of itself, as far as it can be read; none of it can be relied on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remains {
    /// Its kind, if that is a known one.
    pub kind: Option<String>,
    /// Its epoch.
    pub epoch: Option<Epoch>,
    /// Its number within the epoch.
    pub seq: Option<Seq>,
    /// When it was built, by its writer's clock.
    pub stamp_ms: Option<u64>,
    /// Its size.
    pub bytes: u64,
}

impl Remains {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut remains = Self {
            bytes: bytes.len() as u64,
            ..Self::default()
        };
        if bytes.len() >= HEADER_BYTES {
            let kind = RecordKind::from_number(bytes[KIND_AT]).ok();
            remains.kind = kind.map(|kind| format!("{kind:?}"));
            remains.epoch = Some(Epoch {
                term: u64_at(bytes, 10),
                claim: u64_at(bytes, 18),
            });
            remains.seq = Some(Seq(u64_at(bytes, 42)));
            remains.stamp_ms = Some(u64_at(bytes, 50));
        }
        remains
    }
}

impl std::fmt::Display for Remains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes)?;
        if let Some(kind) = &self.kind {
            write!(f, ", kind {kind}")?;
        }
        if let (Some(epoch), Some(seq)) = (self.epoch, self.seq) {
            write!(f, ", epoch {epoch}, number {seq}")?;
        }
        Ok(())
    }
}

/// What of a `Seal`, `Unseal` or `Abort` is written.
#[derive(Serialize, Deserialize)]
struct Named {
    procedure: ProcedureId,
}

/// A [`Merge`] but for the source's fold.
#[derive(Serialize, Deserialize)]
struct MergeHead {
    procedure: ProcedureId,
    source: ShardId,
    seal: Offset,
    manifest: ManifestRef,
}

impl MergeHead {
    fn of(merge: &Merge) -> Self {
        Self {
            procedure: merge.procedure,
            source: merge.source,
            seal: merge.seal,
            manifest: merge.manifest,
        }
    }
}

/// The source's fold of a `Merge` as it is written.
fn compress(fold: &FoldSnapshot) -> Vec<u8> {
    let mut raw = Vec::new();
    pack(&mut raw, fold);
    zstd::bulk::compress(&raw, ZSTD_LEVEL).expect("zstd fails only for want of memory")
}

fn decode_merge(payload: &Bytes) -> Result<Merge, RecordError> {
    let (head, fold) = cut_at_length(payload, "a merge")?;
    let head: MergeHead = unpack(&payload[head])?;
    let mut raw = Vec::new();
    zstd::Decoder::new(&payload[fold])
        .and_then(|packed| packed.take(MERGE_FOLD_BYTES_MAX + 1).read_to_end(&mut raw))
        .map_err(|e| damaged(format!("the source's fold: {e}")))?;
    if raw.len() as u64 > MERGE_FOLD_BYTES_MAX {
        return Err(damaged(format!(
            "the source's fold has more than {MERGE_FOLD_BYTES_MAX} bytes"
        )));
    }
    Ok(Merge {
        procedure: head.procedure,
        source: head.source,
        seal: head.seal,
        manifest: head.manifest,
        fold: Box::new(unpack(&raw)?),
    })
}

/// Where the part that has its length before it is in a payload, and where the rest.
fn cut_at_length(
    payload: &Bytes,
    what: &str,
) -> Result<(std::ops::Range<usize>, std::ops::RangeFrom<usize>), RecordError> {
    let Some(length) = payload.first_chunk::<4>() else {
        return Err(damaged(format!("{what} without the length of its header")));
    };
    let end = 4 + u32::from_le_bytes(*length) as usize;
    if end > payload.len() {
        return Err(damaged(format!(
            "{what} with a header of {} bytes in a payload of {}",
            end - 4,
            payload.len()
        )));
    }
    Ok((4..end, end..))
}

fn decode_write(payload: &Bytes) -> Result<Write, RecordError> {
    let (header, body) = cut_at_length(payload, "a write")?;
    let header: WriteHeader = unpack(&payload[header])?;
    // Rows are numbered with 16 bits; more would give two rows one version.
    if header.rows() > u64::from(RECORD_ROWS_MAX) {
        return Err(damaged(format!(
            "{} rows, a record has at most {RECORD_ROWS_MAX}",
            header.rows()
        )));
    }
    Ok(Write {
        header,
        body: payload.slice(body),
    })
}

fn pack<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    rmp_serde::encode::write_named(out, value)
        .expect("plain structs always encode, and a Vec takes every byte");
}

/// The same behind its length in bytes.
fn pack_with_length<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    pack(out, value);
    let bytes = u32::try_from(out.len() - length_at - 4)
        .expect("a header is bounded by its tables and columns, far below 4 GiB");
    out[length_at..length_at + 4].copy_from_slice(&bytes.to_le_bytes());
}

fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    rmp_serde::from_slice(bytes).map_err(|e| damaged(format!("payload: {e}")))
}

fn damaged(what: String) -> RecordError {
    RecordError::Damaged { what }
}
