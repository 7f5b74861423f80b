//! A [`MetaStore`] on etcd v3 (3.4 or newer).
//!
//! - `etcd/connection.rs`: endpoints, failover, what an error means.
//! - `etcd/watch.rs`: changes, through lost contact, compaction and restored backups.
//! - `etcd/lease.rs`: keys that go when a process does.
//!
//! Reads are etcd's linearizable ones, so they see every commit that returned before. A read that
//! fails is asked again at the next endpoint until the time limit. A commit is sent a second time
//! only when the first was certainly not received or was refused; else its outcome is unknown and
//! the caller reads what came of it.
//!
//! Large prefixes are listed page by page at one revision, so that no answer passes gRPC's message
//! limit and the whole is still the state of one moment.

mod connection;
mod lease;
mod watch;

use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{CompareOp, DeleteOptions, GetOptions, PutOptions, TxnOp};

use crate::store::{
    Compare, Entry, Limits, Listing, MetaError, MetaStore, Op, Registration, Txn, Watch,
    check_limits,
};
use connection::{Connection, Failure};

/// Keys asked for by one request; halved while an answer is too large.
const PAGE_KEYS: i64 = 2000;
/// Listings begun anew because etcd compacted the revision that the first page was of.
const LIST_TRIES: u32 = 4;

/// How etcd is reached.
#[derive(Clone)]
pub struct EtcdConfig {
    /// `http://host:port` or `https://host:port`, in the order of preference.
    pub endpoints: Vec<String>,
    /// User and password, where etcd asks for them.
    pub user: Option<(String, String)>,
    /// TLS, for `https://` endpoints.
    pub tls: EtcdTls,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a read or commit may take, tries at all endpoints together.
    pub request_timeout: Duration,
    /// etcd's `--max-txn-ops` and `--max-request-bytes`, less what the encoding adds.
    pub limits: Limits,
}

/// Certificates, PEM.
#[derive(Clone, Default)]
pub struct EtcdTls {
    /// Authorities that the servers' certificates are checked against; the system's if absent.
    pub ca_pem: Option<String>,
    /// Our certificate and key, where etcd asks clients for one.
    pub identity_pem: Option<(String, String)>,
    /// The name in the servers' certificates if it is not the endpoint's host.
    pub server_name: Option<String>,
}

impl std::fmt::Debug for EtcdConfig {
    /// Without passwords and keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl EtcdConfig {
    /// These endpoints, without user or certificates, with etcd's own limits.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            user: None,
            tls: EtcdTls::default(),
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            limits: Limits {
                txn_ops: 128,
                txn_bytes: 1 << 20,
            },
        }
    }
}

/// Meta in etcd.
#[derive(Debug)]
pub struct EtcdMetaStore {
    connection: Connection,
    limits: Limits,
}

impl EtcdMetaStore {
    /// Connects and asks once, so that a wrong address, user or certificate is found at once.
    ///
    /// # Errors
    /// [`MetaError::Refused`]: the configuration cannot be right. [`MetaError::Store`]: no endpoint
    /// answers.
    pub async fn connect(config: EtcdConfig) -> Result<Self, MetaError> {
        let store = Self {
            limits: config.limits,
            connection: Connection::new(config)?,
        };
        store.get("/shoal").await?;
        Ok(store)
    }

    fn request(txn: &Txn) -> etcd_client::Txn {
        let ops: Vec<_> = txn
            .ops
            .iter()
            .map(|op| match op {
                Op::Put(key, value) => TxnOp::put(key.as_str(), value.as_slice(), None),
                Op::Delete(key) => TxnOp::delete(key.as_str(), None),
                Op::DeletePrefix(prefix) => {
                    TxnOp::delete(prefix.as_str(), Some(DeleteOptions::new().with_prefix()))
                }
            })
            .collect();
        etcd_client::Txn::new().when(compares(txn)).and_then(ops)
    }
}

fn compares(txn: &Txn) -> Vec<etcd_client::Compare> {
    let compares = txn.compares.iter().map(|compare| match compare {
        Compare::Absent(key) => {
            etcd_client::Compare::mod_revision(key.as_str(), CompareOp::Equal, 0)
        }
        Compare::Revision(key, revision) => {
            etcd_client::Compare::mod_revision(key.as_str(), CompareOp::Equal, signed(*revision))
        }
        Compare::NotPutSince(prefix, revision) => etcd_client::Compare::mod_revision(
            prefix.as_str(),
            CompareOp::Less,
            signed(revision.saturating_add(1)),
        )
        .with_prefix(),
    });
    compares.collect()
}

fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

fn text(key: &[u8]) -> Result<String, MetaError> {
    String::from_utf8(key.to_vec()).map_err(|e| MetaError::Damaged {
        key: String::from_utf8_lossy(key).into_owned(),
        what: e.to_string(),
    })
}

impl Connection {
    /// All keys that begin with `prefix`, page by page at one revision.
    async fn list(&self, prefix: &str) -> Result<Listing, MetaError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.list_once(prefix).await {
                Err(Failure::Compacted) if tries < LIST_TRIES => {}
                other => return other.map_err(Failure::of_read),
            }
        }
    }

    async fn list_once(&self, prefix: &str) -> Result<Listing, Failure> {
        let mut listing = Listing::default();
        let end = prefix_end(prefix);
        let mut from = prefix.as_bytes().to_vec();
        let mut page_keys = PAGE_KEYS;
        loop {
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(page_keys)
                .with_revision(signed(listing.revision));
            let read = self
                .read(|mut client| {
                    let (from, options) = (from.clone(), options.clone());
                    async move { client.get(from, Some(options)).await }
                })
                .await;
            let page = match read {
                Err(Failure::AnswerTooLarge(_)) if page_keys > 1 => {
                    page_keys /= 2;
                    continue;
                }
                other => other?,
            };
            if listing.revision == 0 {
                listing.revision = page.header().map_or(0, |h| unsigned(h.revision()));
            }
            let entries: Result<Vec<Entry>, MetaError> = page
                .kvs()
                .iter()
                .map(|kv| {
                    let revision = unsigned(kv.mod_revision());
                    Ok((text(kv.key())?, kv.value().to_vec(), revision))
                })
                .collect();
            listing.entries.extend(entries.map_err(Failure::Damaged)?);
            match (page.more(), page.kvs().last()) {
                (true, Some(last)) => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok(listing),
            }
        }
    }
}

/// The first key after all that begin with `prefix` (etcd's `range_end`).
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // No such key: to the end of the store.
    vec![0]
}

#[async_trait]
impl MetaStore for EtcdMetaStore {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError> {
        let found = self
            .connection
            .read(|mut client| {
                let key = key.to_owned();
                async move { client.get(key, None).await }
            })
            .await
            .map_err(Failure::of_read)?;
        Ok(found
            .kvs()
            .first()
            .map(|kv| (kv.value().to_vec(), unsigned(kv.mod_revision()))))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, MetaError> {
        self.connection.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<u64, MetaError> {
        check_limits(&txn, self.limits)?;
        let request = Self::request(&txn);
        let done = self
            .connection
            .change(|mut client| {
                let request = request.clone();
                async move { client.txn(request).await }
            })
            .await
            .map_err(Failure::of_commit)?;
        if !done.succeeded() {
            return Err(MetaError::Conflict);
        }
        Ok(done.header().map_or(0, |h| unsigned(h.revision())))
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        watch::start(self.connection.clone(), prefix.to_owned(), after)
    }

    async fn register_when(
        &self,
        condition: Option<Compare>,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Registration, MetaError> {
        let txn = Txn {
            compares: condition.into_iter().collect(),
            ops: vec![Op::Put(key.to_owned(), value.clone())],
        };
        check_limits(&txn, self.limits)?;
        let compares = compares(&txn);
        lease::register(
            self.connection.clone(),
            compares,
            key.to_owned(),
            value,
            ttl,
        )
        .await
    }
}

fn leased(lease: i64) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_beyond_it() {
        assert_eq!(prefix_end("/a/"), b"/a0");
        assert_eq!(prefix_end(""), [0]);
        // U+10FFFF ends in 0xbf: UTF-8 has no 0xff, but the rule holds for all bytes.
        assert_eq!(prefix_end("a\u{10ffff}"), b"a\xf4\x8f\xbf\xc0");
    }
}
