//! Every store against one suite, and what stands on them.

mod catalog;
mod conformance;
mod etcd;
mod shared;
mod topology;
