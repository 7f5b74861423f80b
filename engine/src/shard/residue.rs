//! Residue objects: rows of tables too small for a file of their own, as they stood in the log.
//!
//! With many small tables a flush would write a tiny Parquet file for each. Instead one object
//! carries their row blocks with offset and first row number, and the rows stay in memory. At open
//! they are put back as if they had just been applied; the fold state in the manifest has judged
//! them already. Each flush replaces the object as a whole.
//!
//! ```text
//!  8 bytes  magic "SHOALRES"
//!  2 bytes  format version (1), little-endian
//!  then per applied block: offset u64, first row u16, length u32, `encode_blocks` of one block
//! ```
//! The manifest holds size, row count and crc32 of the object.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use object_store::{ObjectStoreExt, path::Path};
use shoal_rows::{RowBlock, decode_blocks, encode_blocks};
use shoal_sst::SstError;
use shoal_types::Offset;

use crate::EngineError;
use crate::env::Env;
use crate::manifest::ManifestState;

const MAGIC: &[u8; 8] = b"SHOALRES";
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = 14;

/// Rows of one applied record, kept to be carried over by a residue object.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub offset: Offset,
    pub first_row: u16,
    pub block: Arc<RowBlock>,
}

/// Rows of one small table.
#[derive(Debug)]
pub(crate) struct ResidueTable {
    pub applied: Vec<Applied>,
}

/// The object's bytes, and its number of rows.
pub(crate) fn encode(tables: &[ResidueTable]) -> (Bytes, u64) {
    let mut out = Vec::new();
    out.put_slice(MAGIC);
    out.put_u16_le(VERSION);
    let mut rows = 0;
    let mut all: Vec<&Applied> = tables.iter().flat_map(|t| &t.applied).collect();
    all.sort_by_key(|a| (a.offset, a.first_row));
    for applied in all {
        let body = encode_blocks(std::slice::from_ref(&*applied.block));
        out.put_u64_le(applied.offset.0);
        out.put_u16_le(applied.first_row);
        out.put_u32_le(body.len() as u32);
        out.put_slice(&body);
        rows += applied.block.rows() as u64;
    }
    (Bytes::from(out), rows)
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// What is wrong with the bytes; never panics.
pub(crate) fn decode(bytes: &Bytes) -> Result<Vec<Applied>, String> {
    if bytes.len() < 10 || &bytes[..8] != MAGIC {
        return Err("it does not begin with SHOALRES".into());
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != VERSION {
        return Err(format!("residue format {version} is not known here"));
    }
    let mut all = Vec::new();
    let mut at = 10;
    while at < bytes.len() {
        let Some(head) = bytes.get(at..at + ENTRY_BYTES) else {
            return Err(format!("cut short at byte {at}"));
        };
        let number = |from: usize, to: usize| {
            head[from..to]
                .iter()
                .rev()
                .fold(0_u64, |n, b| n << 8 | u64::from(*b))
        };
        let length = number(10, 14) as usize;
        let begin = at + ENTRY_BYTES;
        if bytes.len() - begin < length {
            return Err(format!("cut short at byte {begin}"));
        }
        let body = bytes.slice(begin..begin + length);
        for block in decode_blocks(&body).map_err(|e| format!("at byte {at}: {e}"))? {
            block.check().map_err(|e| format!("at byte {at}: {e}"))?;
            all.push(Applied {
                offset: Offset(number(0, 8)),
                first_row: number(8, 10) as u16,
                block: Arc::new(block),
            });
        }
        at = begin + length;
    }
    Ok(all)
}

/// The rows of a manifest's residue object; none, if it names none.
///
/// # Errors
/// The store's, or [`SstError::Damaged`].
pub(crate) async fn load_residue(
    env: &Env,
    manifest: &ManifestState,
) -> Result<Vec<Applied>, EngineError> {
    let Some(named) = &manifest.residue else {
        return Ok(Vec::new());
    };
    let path = Path::from(named.path.as_str());
    let read = async { env.store.get(&path).await?.bytes().await };
    let bytes = read.await.map_err(|e| SstError::from_store(&path, e))?;
    let damaged = |what| SstError::Damaged {
        path: named.path.clone(),
        what,
    };
    if crc32fast::hash(&bytes) != named.crc {
        return Err(damaged("its checksum differs from the manifest's".to_owned()).into());
    }
    Ok(decode(&bytes).map_err(damaged)?)
}
