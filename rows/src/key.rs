//! Order-preserving ("memcomparable") encoding of keys: comparing encoded bytes compares keys
//! column by column, ascending, NULLs first. Golden vectors are in the tests.
use crate::{RowBlock, Series};

/// Number of hash slots of a table.
pub const SLOTS: u32 = 65_536;

/// A hash slot: the top 16 bits of xxh3-64 (seed 0) of the encoded key.
pub type Slot = u16;

/// Appends the encoding of series `index` to `out`.
pub fn encode_series(_series: &Series, _index: usize, _out: &mut Vec<u8>) {
    todo!()
}

/// Appends the encoding of row `row`'s whole key (series, then time) to `out`.
pub fn encode_key(_block: &RowBlock, _row: usize, _out: &mut Vec<u8>) {
    todo!()
}

/// The slot of an encoded key.
#[must_use]
pub fn slot_of(_encoded: &[u8]) -> Slot {
    todo!()
}
