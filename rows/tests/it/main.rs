//! Row blocks from outside: their bytes, their keys, their batches.

mod batch;
mod codec;
mod key;
mod sample;
mod speed;
