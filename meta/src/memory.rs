//! A [`MetaStore`] in memory, for tests and simulations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::feed::Feed;
use crate::store::{
    Change, Compare, Limits, Listing, MetaError, MetaStore, Op, Registration, Txn, Watch,
    check_limits,
};

/// Keeps everything in a map; several databases may share one.
#[derive(Clone, Debug)]
pub struct MemoryMetaStore {
    shared: Arc<Shared>,
    limits: Limits,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    feed: Arc<Feed>,
}

/// What a store held at one time.
#[derive(Clone, Debug, Default)]
pub struct MemoryBackup(State);

#[derive(Clone, Debug, Default)]
struct State {
    revision: u64,
    values: BTreeMap<String, (Vec<u8>, u64)>,
}

impl Default for MemoryMetaStore {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    fn below(&self, prefix: &str) -> impl Iterator<Item = (&String, &(Vec<u8>, u64))> {
        let owned = prefix.to_owned();
        self.values
            .range(prefix.to_owned()..)
            .take_while(move |(key, _)| key.starts_with(&owned))
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent(key) => !self.values.contains_key(key),
            Compare::Revision(key, revision) => {
                self.values.get(key).is_some_and(|(_, r)| r == revision)
            }
            Compare::NotPutSince(prefix, revision) => {
                self.below(prefix).all(|(_, (_, r))| r <= revision)
            }
        }
    }

    fn listing(&self, prefix: &str) -> Listing {
        Listing {
            entries: self
                .below(prefix)
                .map(|(k, (v, r))| (k.clone(), v.clone(), *r))
                .collect(),
            revision: self.revision,
        }
    }

    fn apply(&mut self, ops: Vec<Op>) -> Vec<Change> {
        self.revision += 1;
        let revision = self.revision;
        let mut changes = Vec::with_capacity(ops.len());
        let mut changed = |key, value| {
            changes.push(Change {
                key,
                value,
                revision,
            });
        };
        for op in ops {
            match op {
                Op::Put(key, value) => {
                    self.values.insert(key.clone(), (value.clone(), revision));
                    changed(key, Some(value));
                }
                Op::Delete(key) => {
                    if self.values.remove(&key).is_some() {
                        changed(key, None);
                    }
                }
                Op::DeletePrefix(prefix) => {
                    let keys: Vec<String> = self.below(&prefix).map(|(k, _)| k.clone()).collect();
                    for key in keys {
                        self.values.remove(&key);
                        changed(key, None);
                    }
                }
            }
        }
        changes
    }
}

impl MemoryMetaStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limits(Limits {
            txn_ops: 8192,
            txn_bytes: 64 << 20,
        })
    }

    /// An empty store that takes only small transactions.
    #[must_use]
    pub fn with_limits(limits: Limits) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            feed: Feed::new(0),
        });
        Self { shared, limits }
    }

    /// Forgets the history of changes: watchers that are behind get everything there is.
    pub fn compact(&self) {
        self.shared.feed.compact();
    }

    /// What it holds now.
    #[must_use]
    pub fn backup(&self) -> MemoryBackup {
        MemoryBackup(self.shared.state.lock().clone())
    }

    /// Puts it back to what it held then; revisions go back with it.
    pub fn restore(&self, backup: &MemoryBackup) {
        let mut state = self.shared.state.lock();
        *state = backup.0.clone();
        self.shared.feed.restored(state.revision);
    }
}

#[async_trait]
impl MetaStore for MemoryMetaStore {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError> {
        Ok(self.shared.state.lock().values.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Listing, MetaError> {
        Ok(self.shared.state.lock().listing(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<u64, MetaError> {
        check_limits(&txn, self.limits)?;
        let mut state = self.shared.state.lock();
        if !txn.compares.iter().all(|c| state.holds(c)) {
            return Err(MetaError::Conflict);
        }
        let changes = state.apply(txn.ops);
        // Under the lock, so that watchers see commits in their order.
        self.shared.feed.push(state.revision, changes);
        Ok(state.revision)
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        let shared = Arc::downgrade(&self.shared);
        let wanted = prefix.to_owned();
        self.shared.feed.watch(prefix, after, move || {
            let listed = shared
                .upgrade()
                .map(|s| s.state.lock().listing(&wanted))
                .ok_or_else(|| MetaError::Store("the store is gone".into()));
            std::future::ready(listed)
        })
    }

    async fn register_when(
        &self,
        condition: Option<Compare>,
        key: &str,
        value: Vec<u8>,
        _ttl: Duration,
    ) -> Result<Registration, MetaError> {
        let key = key.to_owned();
        let txn = Txn {
            compares: condition.into_iter().collect(),
            ops: vec![Op::Put(key.clone(), value)],
        };
        let revision = self.commit(txn).await?;
        let store = self.clone();
        Ok(Registration::keep(revision, move |kept| async move {
            let feed = Arc::clone(&store.shared.feed);
            let current = || {
                let values = &store.shared.state.lock().values;
                std::future::ready(values.get(&key).map(|(_, r)| *r))
            };
            if feed.keep(kept, revision, current).await {
                let removal = Txn::default()
                    .when(Compare::Revision(key.clone(), revision))
                    .then(Op::Delete(key));
                // A conflict means that the key is not ours any more.
                let _ = store.commit(removal).await;
            }
        }))
    }
}
