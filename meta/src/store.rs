//! The seam between the catalog and what keeps it: an embedded file here, etcd in a cluster.
//!
//! The contract is the part of etcd v3 that ShoalDB needs, so that an etcd client implements it
//! with one request a call:
//!
//! - Keys are UTF-8 text, ordered by their bytes. Values are bytes.
//! - Every successful [`MetaStore::commit`] has a *revision* above that of all commits before it;
//!   a key's revision is that of the commit that last put it (etcd: `mod_revision`).
//! - A [`Txn`] is `if all compares hold, then all ops, else nothing`, atomic and durable when
//!   `commit` returns (etcd: `Txn` with `mod_revision ==` compares; 0 means absent).
//! - Reads are linearizable: `get` and `list` see every commit that returned before they began.
//! - After an error other than [`MetaError::Conflict`] a commit may or may not have taken effect:
//!   read again.
//!
//! It is not a general database: values are small (a few hundred bytes), and one transaction holds
//! at most [`TXN_OPS_MAX`] operations (callers with more send several).

use async_trait::async_trait;

/// The most operations of one transaction. etcd's default is 128; a cluster raises it with
/// `--max-txn-ops`, or the caller's batches are cut smaller.
pub const TXN_OPS_MAX: usize = 8192;

/// Why meta could not be read or changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MetaError {
    /// A compare failed, nothing was changed: read again and decide anew.
    #[error("meta changed meanwhile")]
    Conflict,
    /// The store failed.
    #[error("{0}")]
    Store(String),
    /// A value that does not decode.
    #[error("meta key {key}: {what}")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong.
        what: String,
    },
}

/// What must hold for a transaction to take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key was last put by the commit with this revision.
    Revision(String, u64),
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put(String, Vec<u8>),
    /// Removes a key; nothing if it is absent.
    Delete(String),
}

/// `if all compares hold, then all ops, else nothing`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// The changes; no key twice.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a change.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }
}

/// A small ordered key-value store with compare-and-swap transactions (see the module).
#[async_trait]
pub trait MetaStore: Send + Sync + std::fmt::Debug + 'static {
    /// The value and the revision that last changed it.
    ///
    /// # Errors
    /// [`MetaError::Store`].
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError>;

    /// All keys that begin with `prefix`, ascending, with values and revisions.
    ///
    /// # Errors
    /// [`MetaError::Store`].
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>, u64)>, MetaError>;

    /// Applies the transaction if its compares hold; its revision.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: a compare failed, nothing changed. [`MetaError::Store`]: it may or
    /// may not have taken effect.
    async fn commit(&self, txn: Txn) -> Result<u64, MetaError>;
}
