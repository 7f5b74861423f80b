//! Row blocks from outside: their bytes, their keys, their batches, their partitions.

mod batch;
mod codec;
mod extents;
mod key;
mod literal;
mod route;
mod sample;
mod speed;
mod wanted;
