//! Bytes of row blocks, as they stand in the body of a `Write` record.
use bytes::Bytes;

use crate::RowBlock;

/// Bytes that are not row blocks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row block at byte {at}: {what}")]
pub struct CodecError {
    /// Place in the body.
    pub at: usize,
    /// What is wrong.
    pub what: String,
}

/// Encodes blocks one after another; compresses the whole when that pays.
#[must_use]
pub fn encode_blocks(_blocks: &[RowBlock]) -> Vec<u8> {
    todo!()
}

/// Decodes what [`encode_blocks`] wrote.
///
/// # Errors
/// [`CodecError`] for any bytes that [`encode_blocks`] cannot have written; never panics.
pub fn decode_blocks(_body: &Bytes) -> Result<Vec<RowBlock>, CodecError> {
    todo!()
}
