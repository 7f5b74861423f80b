//! What the scheduler keeps in meta, as JSON, under `/shoal/{cluster}/scheduler/`:
//!
//! | key | value |
//! |---|---|
//! | `settings` | [`Settings`] |
//! | `node/{node}` | [`Marks`] of a node |
//! | `procedure/{id}` | [`Procedure`], the newest that have ended, too |
//!
//! Every change demands that the scheduler leads still ([`Fence`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use shoal_meta::{Fence, MetaError, MetaStore, Op, Txn, scheduler_prefix};
use shoal_types::{NodeId, TimestampMs};
use ulid::Ulid;

use crate::procedure::Procedure;
use crate::settings::Settings;

/// What an operator said of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// The order's id.
    pub id: Ulid,
    /// It is to end with no replica.
    pub draining: bool,
    /// Only its leads are to go: it is about to be restarted.
    #[serde(default)]
    pub leads_only: bool,
    /// Who said so.
    pub by: String,
    /// When.
    pub since_ms: TimestampMs,
}

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// What operators want.
    pub settings: Settings,
    /// What they said of nodes.
    pub marks: BTreeMap<NodeId, Marks>,
    /// Running ones, and the newest that have ended.
    pub procedures: BTreeMap<Ulid, Procedure>,
}

/// Keeps it.
#[derive(Clone, Debug)]
pub struct Records {
    store: Arc<dyn MetaStore>,
    prefix: String,
    fence: Fence,
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, MetaError> {
    serde_json::to_vec(value).map_err(|e| MetaError::Damaged {
        key: key.to_owned(),
        what: e.to_string(),
    })
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, MetaError> {
    serde_json::from_slice(value).map_err(|e| MetaError::Damaged {
        key: key.to_owned(),
        what: e.to_string(),
    })
}

impl Records {
    /// Those of a cluster, changed only while `fence` holds.
    #[must_use]
    pub fn new(store: Arc<dyn MetaStore>, cluster: &str, fence: Fence) -> Self {
        Self {
            store,
            prefix: scheduler_prefix(cluster),
            fence,
        }
    }

    /// Reads all.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn read(&self) -> Result<Kept, MetaError> {
        let mut kept = Kept::default();
        for (key, value, _) in self.store.list(&self.prefix).await?.entries {
            let path = key.strip_prefix(&self.prefix).unwrap_or_default();
            match path.split_once('/') {
                None if path == "settings" => kept.settings = decode(&key, &value)?,
                Some(("node", node)) => {
                    if let Ok(node) = node.parse() {
                        kept.marks.insert(node, decode(&key, &value)?);
                    }
                }
                // One of a later release is left to a scheduler that can read it.
                Some(("procedure", _)) => match decode::<Procedure>(&key, &value) {
                    Ok(procedure) => drop(kept.procedures.insert(procedure.id, procedure)),
                    Err(error) => tracing::error!(%error, "a procedure is left alone"),
                },
                _ => tracing::trace!(key, "a key of a later version"),
            }
        }
        Ok(kept)
    }

    /// Writes settings.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: another scheduler leads.
    pub async fn write_settings(&self, settings: &Settings) -> Result<(), MetaError> {
        let key = format!("{}settings", self.prefix);
        let value = encode(&key, settings)?;
        self.commit(vec![Op::Put(key, value)]).await
    }

    /// Writes or removes what was said of a node.
    ///
    /// # Errors
    /// As [`Self::write_settings`].
    pub async fn write_marks(&self, node: NodeId, marks: Option<&Marks>) -> Result<(), MetaError> {
        let key = format!("{}node/{node}", self.prefix);
        let op = match marks {
            Some(marks) => Op::Put(key.clone(), encode(&key, marks)?),
            None => Op::Delete(key),
        };
        self.commit(vec![op]).await
    }

    /// Writes procedures, and forgets others.
    ///
    /// # Errors
    /// As [`Self::write_settings`]; a part of many may be written.
    pub async fn write_procedures(
        &self,
        procedures: &[Procedure],
        forget: &[Ulid],
    ) -> Result<(), MetaError> {
        let key = |id: Ulid| format!("{}procedure/{id}", self.prefix);
        let mut ops = Vec::with_capacity(procedures.len() + forget.len());
        for procedure in procedures {
            let key = key(procedure.id);
            let value = encode(&key, procedure)?;
            ops.push(Op::Put(key, value));
        }
        ops.extend(forget.iter().map(|id| Op::Delete(key(*id))));
        // Room for the fence beside them.
        let most = self.store.limits().txn_ops.saturating_sub(1).max(1);
        while !ops.is_empty() {
            let rest = ops.split_off(ops.len().min(most));
            self.commit(std::mem::replace(&mut ops, rest)).await?;
        }
        Ok(())
    }

    async fn commit(&self, ops: Vec<Op>) -> Result<(), MetaError> {
        let txn = Txn {
            compares: vec![self.fence.compare()],
            ops,
        };
        self.store.commit(txn).await.map(drop)
    }
}
