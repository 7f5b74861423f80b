//! Real services for tests: each started in a temporary folder on free ports of the loopback
//! interface and ended by its process id, and a proxy that loses answers.
//!
//! Only ever a dev-dependency. The programs come from `scripts/stack install` (or from the
//! variables `SHOAL_ETCD` and `SHOAL_MINIO`).

mod etcd;
mod minio;
mod process;
mod proxy;

pub use etcd::{Etcd, EtcdTlsFiles};
pub use minio::Minio;
pub use proxy::{Cut, Proxy};
