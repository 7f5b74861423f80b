//! Winning a manifest number (PROTOCOLS §2, "Success").
//!
//! A publish succeeded when *the put took effect and the LIST maximum is mine*. Both are needed: a
//! put can take effect on a number that garbage collection emptied, far below the newest.
//!
//! After a put that failed or whose answer was lost, the number is read back and decides:
//!
//! | found at the number | then |
//! |---|---|
//! | mine, this attempt | done, if it is the maximum |
//! | mine, another attempt | adopt it: rebuild on it |
//! | higher term | step down |
//! | my term, another writer | step down and ask for a higher term |
//! | lower term | rebuild on the LIST maximum, next number, new attempt (keeping the old base would lose that publisher's flush) |
//! | nothing, maximum below | undecided: the put may still arrive; try the same attempt again |
//! | nothing, maximum at or above | rebuild on the maximum |
//!
//! While an attempt is undecided its objects must be kept and no other number may be tried. A crash
//! after the put and before its read-back leaves a manifest that the next opener finds as the
//! newest and goes on from; a crash before it leaves nothing.

use std::time::Duration;

use bytes::Bytes;
use object_store::{ObjectStore, PutMode, PutOptions, PutPayload};
use shoal_sst::SstError;
use shoal_types::TimestampMs;
use shoal_wal::record::{AttemptId, ManifestRef};
use uuid::Uuid;

use super::chain::Chain;
use super::format::{Body, Edit, Manifest, Publisher, hash_of};
use super::invariants;
use super::state::ManifestState;
use crate::EngineError;

/// Puts of one attempt before it is reported undecided.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(50);

/// A manifest ready to be put: the same bytes for every try.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The object.
    pub bytes: Bytes,
    /// The state once it is published.
    pub state: ManifestState,
}

/// Why a manifest was not published.
#[derive(Debug)]
pub enum PublishError {
    /// A higher term has published: step down.
    HigherTerm {
        /// That term.
        term: u64,
    },
    /// Another writer publishes in my term: step down and ask for a higher one.
    SameTerm,
    /// The base is not the newest any more: rebuild on the LIST maximum.
    Rebuild,
    /// Nobody can tell yet: the same attempt must be tried again.
    Undecided(EngineError),
    /// It must not be published.
    Refused(EngineError),
}

impl From<PublishError> for EngineError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::HigherTerm { term } => Self::Invalid(format!(
                "a leader with the higher term {term} has taken over"
            )),
            PublishError::SameTerm => {
                Self::Invalid("another writer publishes in the same term".into())
            }
            PublishError::Rebuild => {
                Self::Invalid("another manifest was published meanwhile".into())
            }
            PublishError::Undecided(e) | PublishError::Refused(e) => e,
        }
    }
}

/// Builds the successor of `base`, checks it, encodes it. `first`: `base` is the state before the
/// first manifest.
///
/// # Errors
/// [`EngineError::Manifest`] naming the broken invariant.
pub fn prepare(
    chain: &Chain,
    base: &ManifestState,
    edit: Edit,
    term: u64,
    writer: shoal_types::WriterId,
    now_ms: TimestampMs,
) -> Result<Prepared, EngineError> {
    let first = base.hash == 0;
    let version = if first {
        base.version()
    } else {
        base.version().next()
    };
    let publisher = Publisher {
        term,
        writer,
        attempt: AttemptId(Uuid::new_v4()),
    };
    let reference = ManifestRef {
        version,
        attempt: publisher.attempt,
    };
    let fail = |what: String| EngineError::Manifest {
        path: chain.path(version).to_string(),
        what,
    };
    let state = base
        .apply(&edit, reference, publisher, now_ms)
        .map_err(fail)?;
    invariants::check(base, &state, &edit)
        .map_err(|rule| fail(format!("not published: {rule}")))?;
    let is_snapshot = first || base.snapshot_due();
    let body = if is_snapshot {
        Body::Snapshot(Box::new(state.to_snapshot()))
    } else {
        Body::Edit(Box::new(edit))
    };
    let manifest = Manifest {
        version,
        publisher,
        published_ms: now_ms,
        predecessor: (!first).then(|| base.as_predecessor()),
        cluster: chain.cluster.clone(),
        shard: chain.shard,
        body,
    };
    let bytes = manifest.encode().map_err(fail)?;
    let state = state.placed(hash_of(&bytes), bytes.len() as u64, is_snapshot);
    Ok(Prepared { bytes, state })
}

/// Puts a prepared manifest and finds out what became of it.
///
/// # Errors
/// [`PublishError`]; after `Undecided` the same `prepared` must be given again.
pub async fn publish(chain: &Chain, prepared: &Prepared) -> Result<(), PublishError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match publish_once(chain, prepared).await {
            Err(PublishError::Undecided(_)) if tries < TRIES => {
                tokio::time::sleep(PAUSE * tries).await;
            }
            other => return other,
        }
    }
}

async fn publish_once(chain: &Chain, prepared: &Prepared) -> Result<(), PublishError> {
    let version = prepared.state.version();
    let path = chain.path(version);
    let options = PutOptions::from(PutMode::Create);
    let payload = PutPayload::from_bytes(prepared.bytes.clone());
    let put_error = match chain.store.put_opts(&path, payload, options).await {
        Ok(_) => return confirm_maximum(chain, prepared).await,
        Err(e) => EngineError::from(SstError::from_store(&path, e)),
    };
    let me = prepared.state.publisher;
    match chain.read(version).await {
        Err(e) => Err(PublishError::Undecided(e)),
        Ok(Some(found)) => {
            let other = found.manifest.publisher;
            if other.attempt == me.attempt {
                confirm_maximum(chain, prepared).await
            } else {
                Err(judge_other(me, other))
            }
        }
        Ok(None) => match chain.newest().await {
            Ok(Some(newest)) if newest >= version => Err(judge_newest(chain, me, newest).await),
            _ => Err(PublishError::Undecided(put_error)),
        },
    }
}

async fn confirm_maximum(chain: &Chain, prepared: &Prepared) -> Result<(), PublishError> {
    let me = prepared.state.publisher;
    match chain.newest().await {
        Ok(Some(newest)) if newest == prepared.state.version() => Ok(()),
        Ok(Some(newest)) if newest > prepared.state.version() => {
            Err(judge_newest(chain, me, newest).await)
        }
        // It was put and is not listed: collected by a newer leader, or the store lags.
        Ok(_) => Err(PublishError::Undecided(EngineError::Manifest {
            path: chain.path(prepared.state.version()).to_string(),
            what: "it was written but is not listed".into(),
        })),
        Err(e) => Err(PublishError::Undecided(e)),
    }
}

async fn judge_newest(
    chain: &Chain,
    me: Publisher,
    newest: shoal_types::ManifestVersion,
) -> PublishError {
    match chain.read(newest).await {
        Ok(Some(found)) => judge_other(me, found.manifest.publisher),
        Ok(None) => PublishError::Rebuild,
        Err(e) => PublishError::Undecided(e),
    }
}

fn judge_other(me: Publisher, other: Publisher) -> PublishError {
    if other.term > me.term {
        PublishError::HigherTerm { term: other.term }
    } else if other.term == me.term && other.writer != me.writer {
        PublishError::SameTerm
    } else {
        PublishError::Rebuild
    }
}

/// Whether the newest manifest is still this one (read again before serving and before trimming).
///
/// # Errors
/// As [`publish`].
pub async fn confirm_newest(chain: &Chain, state: &ManifestState) -> Result<(), PublishError> {
    match chain.newest().await {
        Ok(Some(newest)) => match chain.read(newest).await {
            Ok(Some(found)) if found.manifest.reference() == state.reference => Ok(()),
            Ok(Some(found)) => Err(judge_other(state.publisher, found.manifest.publisher)),
            Ok(None) => Err(PublishError::Rebuild),
            Err(e) => Err(PublishError::Undecided(e)),
        },
        Ok(None) => Err(PublishError::Undecided(EngineError::Manifest {
            path: chain.path(state.version()).to_string(),
            what: "no manifest is listed any more".into(),
        })),
        Err(e) => Err(PublishError::Undecided(e)),
    }
}
