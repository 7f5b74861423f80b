//! A [`MetaStore`] in memory, for tests and simulations.

use std::collections::BTreeMap;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::store::{Compare, MetaError, MetaStore, Op, Txn};

/// Keeps everything in a map; several databases may share one.
#[derive(Debug, Default)]
pub struct MemoryMetaStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    values: BTreeMap<String, (Vec<u8>, u64)>,
}

impl MemoryMetaStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl MetaStore for MemoryMetaStore {
    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError> {
        Ok(self.state.lock().values.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>, u64)>, MetaError> {
        Ok(self
            .state
            .lock()
            .values
            .range(prefix.to_owned()..)
            .take_while(|(k, _)| k.starts_with(prefix))
            .map(|(k, (v, r))| (k.clone(), v.clone(), *r))
            .collect())
    }

    async fn commit(&self, txn: Txn) -> Result<u64, MetaError> {
        let mut state = self.state.lock();
        let holds = |compare: &Compare| match compare {
            Compare::Absent(key) => !state.values.contains_key(key),
            Compare::Revision(key, revision) => {
                state.values.get(key).is_some_and(|(_, r)| r == revision)
            }
        };
        if !txn.compares.iter().all(holds) {
            return Err(MetaError::Conflict);
        }
        state.revision += 1;
        let revision = state.revision;
        for op in txn.ops {
            match op {
                Op::Put(key, value) => {
                    state.values.insert(key, (value, revision));
                }
                Op::Delete(key) => {
                    state.values.remove(&key);
                }
            }
        }
        Ok(revision)
    }
}
