//! The engine as its users see it, on embedded backends and on simulated ones with faults.

mod basics;
mod checksum;
mod damage;
mod faults;
mod files;
mod follow;
mod late;
mod model;
mod partitions;
mod peers;
mod receipts;
mod recuts;
mod remote;
mod repair;
mod shard_splits;
mod support;
mod warm;
