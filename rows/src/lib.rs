//! Rows in flight: the columnar block that parsers and SQL build, that the log carries and that
//! memtables keep, and the order-preserving encoding of keys.

mod block;
mod codec;
mod key;

pub use block::{BlockColumn, BlockError, RowBlock, Series};
pub use codec::{CodecError, decode_blocks, encode_blocks};
pub use key::{SLOTS, Slot, encode_key, encode_series, slot_of};
