//! What a manifest says of a file.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_types::{Incarnation, PartitionBounds, PartitionId, RowVersion, TableId};

/// Hidden column, present only in files that hold tombstones: `BOOLEAN`, true where the row
/// deletes its key.
pub const HIDDEN_OP: &str = "__op";
/// Hidden column, present only in files that hold partial upserts: `BINARY` bitmap, bit `i` of
/// byte `i / 8` (least significant first) tells whether the `i`-th column of the file (hidden
/// ones not counted) was set by the row. NULL: all were.
pub const HIDDEN_SET: &str = "__set";

/// An immutable sorted Parquet file as a manifest names it.
///
/// A file is one *run*: it holds at most one version of each key (upsert tables), sorted by the
/// table's key, and its versions lie in `[version_min, version_max]`. The ranges of two files of
/// a partition never interleave where their keys meet, so files are ordered by `version_max`
/// alone and rows need no version column (docs/decisions/0002).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SstFile {
    /// Object path below the store's prefix.
    pub path: String,
    /// The table.
    pub table: TableId,
    /// The partition.
    pub partition: PartitionId,
    /// Rows of an older incarnation are invisible.
    pub incarnation: Incarnation,
    /// Schema version it was written with: columns are found by `column_ids`, not by name.
    pub schema_version: u32,
    /// Column id of each Parquet column, in file order (hidden columns not counted).
    pub column_ids: Vec<shoal_types::ColumnId>,
    /// Size of the object.
    pub bytes: u64,
    /// Number of rows, tombstones included.
    pub rows: u64,
    /// Lowest version of any row.
    pub version_min: RowVersion,
    /// Highest version of any row.
    pub version_max: RowVersion,
    /// Smallest series: the key without a closing time column, as [`crate::SeriesEncoder`]
    /// writes it (so that files from before and after a key column was added compare right).
    /// Times are bounded by `time_range`.
    #[serde(with = "serde_bytes_vec")]
    pub key_min: Vec<u8>,
    /// Largest series, in the same form.
    #[serde(with = "serde_bytes_vec")]
    pub key_max: Vec<u8>,
    /// Smallest and largest value of the time column in its unit, where the table has one and
    /// no row's time is NULL.
    pub time_range: Option<(i64, i64)>,
    /// How many flushes' worth of merging it has seen: 0 straight from a memtable.
    pub level: u8,
    /// Has a [`HIDDEN_OP`] column.
    pub has_deletes: bool,
    /// Has a [`HIDDEN_SET`] column.
    pub has_partial: bool,
    /// Number of distinct series (key without closing time).
    pub series: u64,
    /// Bytes at the end of the object that a reader needs before any row: block checksums, page
    /// indexes and the Parquet footer. One read loads them; 0: not known.
    #[serde(default)]
    pub tail_bytes: u64,
    /// CRC-32 of those bytes, checked before they are parsed.
    #[serde(default)]
    pub tail_crc: u32,
    /// What the unit owned of its table when the file was written: no row lies outside. `None`:
    /// all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<Arc<PartitionBounds>>,
}

mod serde_bytes_vec {
    use serde::{Deserializer, Serializer};
    pub fn serialize<S: Serializer>(v: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(v)
    }
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                Ok(v.to_vec())
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<Vec<u8>, A::Error> {
                let mut out = Vec::new();
                while let Some(b) = seq.next_element()? {
                    out.push(b);
                }
                Ok(out)
            }
        }
        d.deserialize_bytes(Visitor)
    }
}

impl SstFile {
    /// Whether some key could be in both files: their key ranges meet and their time ranges meet.
    #[must_use]
    pub fn may_share_keys(&self, other: &Self) -> bool {
        let times_meet = match (self.time_range, other.time_range) {
            (Some(a), Some(b)) => a.0 <= b.1 && b.0 <= a.1,
            _ => true,
        };
        times_meet && self.key_min <= other.key_max && other.key_min <= self.key_max
    }
}
