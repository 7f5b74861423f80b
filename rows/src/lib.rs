//! Rows in flight: the columnar block that parsers and SQL build, that the log carries and that
//! memtables keep, and the order-preserving encoding of keys.

mod batch;
mod block;
mod codec;
mod key;
mod values;

pub use batch::{BatchError, block_from_batch, block_to_batch};
pub use block::{BlockColumn, BlockError, RowBlock, Series};
pub use codec::{BLOCK_ROWS_MAX, CodecError, RAW_BYTES_MAX, decode_blocks, encode_blocks};
pub use key::{
    EncodedKeys, KeyError, KeyValue, SLOTS, Slot, decode_key, encode_key, encode_keys_all,
    encode_series, encode_series_all, encode_time, slot_of,
};
pub use values::i64_array;
