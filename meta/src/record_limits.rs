//! Where requests are cut that may be sent again.
//!
//! A request with a write id becomes records that are numbered; a retry meets the same numbers only
//! if it is cut at the same places. So the limits for such requests are not this process's
//! configuration: they are those of the cluster's first process, and stay.

use serde::{Deserialize, Serialize};

use crate::catalog::cluster_prefix;
use crate::store::{Compare, MetaError, MetaStore, Op, Txn};

/// Limits of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordLimits {
    /// Bytes of its rows.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
}

/// The limits of a cluster, noting `mine` if nobody has noted any.
///
/// # Errors
/// [`MetaError::Refused`]: this process's log takes no records of that size.
/// [`MetaError::Store`], [`MetaError::Damaged`].
pub async fn settle_record_limits(
    store: &dyn MetaStore,
    cluster: &str,
    mine: RecordLimits,
) -> Result<RecordLimits, MetaError> {
    let key = format!("{}record-limits", cluster_prefix(cluster));
    let damaged = |what: String| MetaError::Damaged {
        key: key.clone(),
        what,
    };
    let settled = loop {
        if let Some((value, _)) = store.get(&key).await? {
            break rmp_serde::from_slice(&value).map_err(|e| damaged(e.to_string()))?;
        }
        let value = rmp_serde::to_vec(&mine).map_err(|e| damaged(e.to_string()))?;
        let txn = Txn::default()
            .when(Compare::Absent(key.clone()))
            .then(Op::Put(key.clone(), value));
        match store.commit(txn).await {
            // Whoever noted them: read.
            Ok(_) | Err(MetaError::Conflict | MetaError::Unknown(_)) => {}
            Err(e) => return Err(e),
        }
    };
    let RecordLimits { bytes, .. } = settled;
    if mine.bytes < bytes {
        return Err(MetaError::Refused(format!(
            "wal.record_bytes_max is {}; requests with a write id are cut at {bytes} bytes since cluster {cluster:?} was made, so that retries are cut alike: set it to at least that",
            mine.bytes
        )));
    }
    Ok(settled)
}
