//! Rows in flight: the columnar block that parsers and SQL build, that the log carries and that
//! memtables keep, the order-preserving encoding of keys, and the partitions that rows belong to.

mod batch;
mod block;
mod codec;
mod key;
mod literal;
mod route;
mod values;

pub use batch::{BatchError, block_from_batch, block_to_batch};
pub use block::{BlockColumn, BlockError, RowBlock, Series};
pub use codec::{BLOCK_ROWS_MAX, CodecError, RAW_BYTES_MAX, decode_blocks, encode_blocks};
pub use key::{
    EncodedKeys, KeyError, KeyValue, Slot, decode_key, encode_key, encode_keys_all, encode_series,
    encode_series_all, encode_time, slot_of,
};
pub use literal::{KeyBound, ValueError, encode_bound, encode_key_values};
pub use route::{MaskError, RouteError, Routed, Router, Wanted, encodings, mask, outside};
pub use shoal_types::SLOTS;
pub use values::i64_array;
