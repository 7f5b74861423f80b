//! What a file says of itself: JSON under the key `shoal` of the Parquet key-value metadata, so
//! that any Parquet tool shows it. Everything a manifest's entry says can be read back from here.

use serde::{Deserialize, Serialize};
use shoal_types::{ColumnId, Incarnation, PartitionId, RowVersion, TableId};

/// Format of files written now. A reader refuses higher ones.
pub const SST_FORMAT: u32 = 1;
/// Key of the JSON in the Parquet key-value metadata.
pub const FOOTER_KEY: &str = "shoal";
/// Bytes covered by one checksum.
pub const CHECKSUM_BLOCK_BYTES: usize = 16 << 10;

/// A run of bytes in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// The `shoal` metadata of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SstFooter {
    /// [`SST_FORMAT`] of the writer.
    pub format: u32,
    /// The table.
    pub table: TableId,
    /// The partition.
    pub partition: PartitionId,
    /// The table's incarnation.
    pub incarnation: Incarnation,
    /// Schema version it was written with.
    pub schema_version: u32,
    /// Column id of each column, hidden ones not counted.
    pub column_ids: Vec<ColumnId>,
    /// Key columns in sort order.
    pub key: Vec<ColumnId>,
    /// The table's time column.
    pub time_column: Option<ColumnId>,
    /// Lowest row version.
    pub version_min: RowVersion,
    /// Highest row version.
    pub version_max: RowVersion,
    /// Rounds of merging behind it.
    pub level: u8,
    /// Has a `__op` column.
    pub has_deletes: bool,
    /// Has a `__set` column.
    pub has_partial: bool,
    /// Distinct series.
    pub series: u64,
    /// Smallest series, hex.
    pub key_min: String,
    /// Largest series, hex.
    pub key_max: String,
    /// Smallest and largest time.
    pub time_range: Option<(i64, i64)>,
    /// Row ranges of series; `None`: left out because it would not pay.
    pub series_index: Option<Section>,
    /// CRC-32 (little-endian) of every [`CHECKSUM_BLOCK_BYTES`] of the object before this
    /// section, the last one shorter. What comes after is covered by the manifest's `tail_crc`.
    pub checksums: Section,
}

/// Lower-case hex.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer as files of format 1 have it: what is written may gain fields, what is read must
    /// go on to read this.
    const GOLDEN: &str = r#"{"format":1,"table":"01HF7YAT00YB6BTT2PM2X0R0WH","partition":"01HF7YAT00YB6BTT2PM2X0R0WJ","incarnation":2,"schema_version":3,"column_ids":[0,1,4],"key":[0,1],"time_column":1,"version_min":65536,"version_max":131079,"level":1,"has_deletes":false,"has_partial":true,"series":7,"key_min":"0161","key_max":"01ff","time_range":[-5,10],"series_index":{"offset":1000,"bytes":20},"checksums":{"offset":1020,"bytes":4}}"#;

    #[test]
    fn json_is_that_of_format_1() {
        let footer: SstFooter = serde_json::from_str(GOLDEN).expect("format 1");
        assert_eq!(footer.version_max, RowVersion(131_079));
        assert_eq!(footer.time_range, Some((-5, 10)));
        assert_eq!(serde_json::to_string(&footer).expect("writes"), GOLDEN);
        assert_eq!(
            SST_FORMAT, 1,
            "a new format needs a golden footer of its own"
        );
    }
}
