//! Which cluster this is, and which bucket and log belong to it.
//!
//! The first process of a cluster writes `cluster` below the cluster's prefix; all others compare.
//! Two nodes with different buckets in their configuration would each see the other's files as
//! missing, and their garbage collections would not know of each other; two with different brokers
//! would each write a log of its own. So a node that is configured otherwise is refused.

use serde::{Deserialize, Serialize};
use shoal_types::TimestampMs;
use ulid::Ulid;

use crate::catalog::cluster_prefix;
use crate::store::{Compare, MetaError, MetaStore, Op, Txn};

/// Tries while others write the same key.
const TRIES: u32 = 16;

/// A cluster as its first process described it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// Unique for ever; `cluster.name` may be used again.
    pub id: Ulid,
    /// When it was made.
    pub created_ms: TimestampMs,
    /// Where its objects are: bucket and prefix. Empty: not noted yet.
    pub objects: String,
    /// Which brokers have its log: the Kafka cluster's id. Empty: not noted yet.
    pub logs: String,
}

/// What a process is configured with; empty: it does not know (and does not care).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configured {
    /// As [`ClusterIdentity::objects`].
    pub objects: String,
    /// As [`ClusterIdentity::logs`].
    pub logs: String,
}

/// The cluster's identity; `None`: no node has joined it yet.
///
/// # Errors
/// [`MetaError::Store`], [`MetaError::Damaged`].
pub async fn read_cluster(
    store: &dyn MetaStore,
    cluster: &str,
) -> Result<Option<ClusterIdentity>, MetaError> {
    let key = format!("{}cluster", cluster_prefix(cluster));
    let Some((value, _)) = store.get(&key).await? else {
        return Ok(None);
    };
    let identity = rmp_serde::from_slice(&value);
    identity.map(Some).map_err(|e| MetaError::Damaged {
        key,
        what: e.to_string(),
    })
}

/// Joins the cluster, making it if it is not there.
///
/// # Errors
/// [`MetaError::Refused`]: it belongs to another bucket or log than this process is configured
/// with. [`MetaError::Store`], [`MetaError::Damaged`].
pub async fn join_cluster(
    store: &dyn MetaStore,
    cluster: &str,
    configured: &Configured,
    now_ms: TimestampMs,
) -> Result<ClusterIdentity, MetaError> {
    let key = format!("{}cluster", cluster_prefix(cluster));
    let damaged = |what: String| MetaError::Damaged {
        key: key.clone(),
        what,
    };
    for _ in 0..TRIES {
        let found = store.get(&key).await?;
        let (mut identity, compare) = match &found {
            None => {
                let fresh = ClusterIdentity {
                    id: Ulid::new(),
                    created_ms: now_ms,
                    objects: String::new(),
                    logs: String::new(),
                };
                (fresh, Compare::Absent(key.clone()))
            }
            Some((value, revision)) => {
                let identity: ClusterIdentity =
                    rmp_serde::from_slice(value).map_err(|e| damaged(e.to_string()))?;
                (identity, Compare::Revision(key.clone(), *revision))
            }
        };
        let mut noted = found.is_none();
        noted |= note(
            cluster,
            "objects",
            &mut identity.objects,
            &configured.objects,
        )?;
        noted |= note(cluster, "log", &mut identity.logs, &configured.logs)?;
        if !noted {
            return Ok(identity);
        }
        let value = rmp_serde::to_vec(&identity).map_err(|e| damaged(e.to_string()))?;
        let txn = Txn::default()
            .when(compare)
            .then(Op::Put(key.clone(), value));
        match store.commit(txn).await {
            Ok(_) => return Ok(identity),
            // Read what came of it.
            Err(MetaError::Conflict | MetaError::Unknown(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Err(MetaError::Store(format!(
        "the key {key} changes all the time"
    )))
}

/// Compares, or notes what nobody has noted; whether it did.
fn note(cluster: &str, what: &str, known: &mut String, mine: &str) -> Result<bool, MetaError> {
    if mine.is_empty() || known == mine {
        return Ok(false);
    }
    if known.is_empty() {
        mine.clone_into(known);
        return Ok(true);
    }
    Err(MetaError::Refused(format!(
        "cluster {cluster:?} has its {what} in {known}, this process is configured with {mine}; correct the configuration or choose another cluster.name"
    )))
}
