//! The seam between the catalog and what keeps it: an embedded file, or etcd in a cluster.
//!
//! The contract is the part of etcd v3 that ShoalDB needs, so that an etcd client implements it
//! with one request a call:
//!
//! - Keys are UTF-8 text, ordered by their bytes. Values are bytes.
//! - Every successful [`MetaStore::commit`] has a *revision* above that of all commits before it;
//!   a key's revision is that of the commit that last put it (etcd: `mod_revision`).
//! - A [`Txn`] is `if all compares hold, then all ops, else nothing`, atomic and durable when
//!   `commit` returns (etcd: `Txn` with `mod_revision` compares; 0 means absent).
//! - Reads are linearizable: `get` and `list` see every commit that returned before they began.
//! - After [`MetaError::Unknown`] a commit may or may not have taken effect, or may take effect
//!   later: read again. After every other error it has not and will not.
//! - [`MetaStore::watch`] tells every change after a revision, in order; where the store cannot
//!   (history was compacted, a backup was restored) it tells everything there is instead.
//! - [`MetaStore::register`] keeps a key for as long as the process is heard of.
//!
//! It is not a general database: values are small (a few hundred bytes), and one transaction holds
//! at most what [`MetaStore::limits`] says (callers with more send several).

use std::time::Duration;

use async_trait::async_trait;
use shoal_types::Retry;
use tokio::sync::{mpsc, watch};

/// Watch events that wait for their taker; beyond it the store's side waits.
const WATCH_QUEUE: usize = 16;

/// What one transaction may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most compares, and most operations. etcd: `--max-txn-ops`, 128 by default.
    pub txn_ops: usize,
    /// Most bytes of keys and values together. etcd: `--max-request-bytes`, 1.5 MiB by default.
    pub txn_bytes: usize,
}

/// Why meta could not be read or changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MetaError {
    /// A compare failed, nothing was changed: read again and decide anew.
    #[error("meta changed meanwhile")]
    Conflict,
    /// The store could not be asked; nothing was changed. It may help to ask again.
    #[error("{0}")]
    Store(String),
    /// A commit of which nobody can say yet whether it took effect: read again.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The store or its rules do not allow it; nothing was changed. Asking again does not help.
    #[error("{0}")]
    Refused(String),
    /// A value that does not decode.
    #[error("meta key {key}: {what}")]
    Damaged {
        /// The key.
        key: String,
        /// What is wrong.
        what: String,
    },
}

impl MetaError {
    /// What the caller may do.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Conflict | Self::Store(_) => Retry::Safe,
            Self::Unknown(_) => Retry::Unknown,
            Self::Refused(_) | Self::Damaged { .. } => Retry::Never,
        }
    }
}

/// What must hold for a transaction to take effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key was last put by the commit with this revision.
    Revision(String, u64),
    /// No key that begins with this was put after the revision (keys may have gone since).
    NotPutSince(String, u64),
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key.
    Put(String, Vec<u8>),
    /// Removes a key; nothing if it is absent.
    Delete(String),
    /// Removes all keys that begin with this.
    DeletePrefix(String),
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

    /// Bytes of its keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let compares = self.compares.iter().map(|c| match c {
            Compare::Absent(key) | Compare::Revision(key, _) | Compare::NotPutSince(key, _) => {
                key.len()
            }
        });
        let ops = self.ops.iter().map(|o| match o {
            Op::Put(key, value) => key.len() + value.len(),
            Op::Delete(key) | Op::DeletePrefix(key) => key.len(),
        });
        compares.chain(ops).sum()
    }
}

/// A key with its value and the revision that last put it.
pub type Entry = (String, Vec<u8>, u64);

/// All keys with a prefix at one revision of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Ascending by key.
    pub entries: Vec<Entry>,
    /// The revision of the store that this is the state of.
    pub revision: u64,
}

/// One changed key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its value; `None`: it was removed.
    pub value: Option<Vec<u8>>,
    /// The commit that did it.
    pub revision: u64,
}

/// What a watcher is told.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// Changes in the order of their revisions; one told before may be told again. Empty: contact
    /// was found again and nothing had changed.
    Changes(Vec<Change>),
    /// Everything there is: changes in between are not known.
    Reset {
        /// The keys.
        listing: Listing,
        /// The store was restored from a backup: revisions seen before mean nothing any more.
        restored: bool,
    },
    /// Contact with the store was lost: what is known grows old until the next event.
    Interrupted(String),
}

/// The changes below a prefix; ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
}

impl Watch {
    /// A watch and the end that feeds it. The feeder ends when a send fails.
    pub(crate) fn channel() -> (mpsc::Sender<WatchEvent>, Self) {
        let (sender, events) = mpsc::channel(WATCH_QUEUE);
        (sender, Self { events })
    }

    /// The next event; `None`: the store was closed.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }
}

/// Why a registration does not hold any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The store did not hear of us within the time to live, or cannot have: register again.
    Expired(String),
    /// Another process registered the same key after us.
    Overtaken,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Expired(why) => write!(f, "the registration has expired: {why}"),
            Self::Overtaken => f.write_str("another process has registered the same name"),
        }
    }
}

/// A key that is there for as long as this process is heard of. Dropping it removes the key soon;
/// [`Registration::end`] removes it now.
#[derive(Debug)]
pub struct Registration {
    revision: u64,
    end: watch::Sender<bool>,
    lost: watch::Receiver<Option<Lost>>,
    keeper: tokio::task::JoinHandle<()>,
}

/// The keeper's side of a [`Registration`].
#[derive(Debug)]
pub(crate) struct Kept {
    end: watch::Receiver<bool>,
    lost: watch::Sender<Option<Lost>>,
}

impl Kept {
    /// Resolves when the registration was dropped or ended.
    pub(crate) async fn ended(&mut self) {
        // An error means that the guard was dropped.
        let _ = self.end.wait_for(|end| *end).await;
    }

    pub(crate) fn tell(&self, lost: Lost) {
        self.lost.send_replace(Some(lost));
    }
}

impl Registration {
    /// Starts the task that keeps a key that was put by the commit `revision`.
    pub(crate) fn keep<F>(revision: u64, keeper: impl FnOnce(Kept) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (end, ending) = watch::channel(false);
        let (losing, lost) = watch::channel(None);
        let kept = Kept {
            end: ending,
            lost: losing,
        };
        Self {
            revision,
            end,
            lost,
            keeper: tokio::spawn(keeper(kept)),
        }
    }

    /// The commit that put the key.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Why it does not hold any more, if so. It may be told before others see the key gone.
    #[must_use]
    pub fn lost(&self) -> Option<Lost> {
        self.lost.borrow().clone()
    }

    /// Waits until it does not hold any more.
    pub async fn wait_lost(&mut self) -> Lost {
        match self.lost.wait_for(Option::is_some).await {
            Ok(lost) => lost
                .clone()
                .unwrap_or_else(|| Lost::Expired("unknown".into())),
            Err(_) => Lost::Expired("its keeper has stopped".into()),
        }
    }

    /// Removes the key and returns when that was tried.
    pub async fn end(self) {
        self.end.send_replace(true);
        // A keeper that panicked has said so.
        let _ = self.keeper.await;
    }
}

/// A small ordered key-value store with compare-and-swap transactions (see the module).
#[async_trait]
pub trait MetaStore: Send + Sync + std::fmt::Debug + 'static {
    /// What one transaction may hold.
    fn limits(&self) -> Limits;

    /// Whether other processes may change it.
    fn is_shared(&self) -> bool;

    /// The value and the revision that last changed it.
    ///
    /// # Errors
    /// [`MetaError::Store`], [`MetaError::Refused`].
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError>;

    /// All keys that begin with `prefix`, at one revision.
    ///
    /// # Errors
    /// As [`Self::get`].
    async fn list(&self, prefix: &str) -> Result<Listing, MetaError>;

    /// Applies the transaction if its compares hold; its revision.
    ///
    /// # Errors
    /// [`MetaError::Unknown`]: it may or may not have taken effect. All others: nothing changed;
    /// [`MetaError::Refused`] when it is larger than [`Self::limits`].
    async fn commit(&self, txn: Txn) -> Result<u64, MetaError>;

    /// Tells all changes of keys that begin with `prefix` and were made after the revision `after`
    /// (that of a [`Listing`]; 0: begins with a [`WatchEvent::Reset`]). Goes on through lost
    /// contact by itself.
    fn watch(&self, prefix: &str, after: u64) -> Watch;

    /// Puts a key that goes when this process is not heard of for `ttl` (or at once when the guard
    /// goes), if the condition holds. A key of that name that another process registered is taken
    /// over; that process is told.
    ///
    /// # Errors
    /// As [`Self::commit`].
    async fn register_when(
        &self,
        condition: Option<Compare>,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Registration, MetaError>;

    /// [`Self::register_when`] without a condition.
    ///
    /// # Errors
    /// As [`Self::commit`].
    async fn register(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Registration, MetaError> {
        self.register_when(None, key, value, ttl).await
    }

    /// An election: registers the key if it is absent. What the winner writes must demand
    /// `Compare::Revision(key, registration.revision())`, so that one that has lost the key and
    /// does not know it yet changes nothing.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: another process has it. As [`Self::commit`].
    async fn campaign(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Registration, MetaError> {
        let absent = Compare::Absent(key.to_owned());
        self.register_when(Some(absent), key, value, ttl).await
    }
}

/// A store that went back to where there is nothing of the cluster was emptied, as a rule by
/// mistake: nobody restores that. What is known stays.
pub(crate) fn emptied() -> MetaError {
    MetaError::Refused(
        "the store has nothing of this cluster any more: what was known stays, and what is placed goes on; restore etcd from a backup".into(),
    )
}

/// Refuses a transaction that is larger than the limits allow.
///
/// # Errors
/// [`MetaError::Refused`] naming the limit and, where one alone is too large, the key.
pub(crate) fn check_limits(txn: &Txn, limits: Limits) -> Result<(), MetaError> {
    let ops = txn.ops.len().max(txn.compares.len());
    if ops > limits.txn_ops {
        return Err(MetaError::Refused(format!(
            "a meta transaction of {ops} operations; this store takes {}",
            limits.txn_ops
        )));
    }
    let bytes = txn.bytes();
    if bytes <= limits.txn_bytes {
        return Ok(());
    }
    let largest = txn.ops.iter().filter_map(|op| match op {
        Op::Put(key, value) => Some((key.len() + value.len(), key)),
        _ => None,
    });
    let what = match largest.max() {
        Some((bytes, key)) if bytes > limits.txn_bytes => {
            format!("the meta key {key} with its value has {bytes} bytes")
        }
        _ => format!("a meta transaction has {bytes} bytes"),
    };
    Err(MetaError::Refused(format!(
        "{what}; this store takes {}",
        limits.txn_bytes
    )))
}
