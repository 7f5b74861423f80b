//! A replica that cannot read its log any further (PROTOCOLS §1, verdict 5).
//!
//! It stays open and shows what it has: `eventual` reads go on, `session` reads of what it passed,
//! `bounded` ones while its last barrier is young enough. Strong reads and writes fail at once, with
//! the place and the remedy. It leads nothing any more, and what it had in flight is answered as
//! unknown unless it was read back. Other shards are not concerned.
//!
//! It ends by itself: the newest manifest in the store is looked at now and then, and at every new
//! assignment. Where that one leads past the place, or to another log, the shard is opened anew from
//! it. A replica never passes the place on its own: two that did it differently would differ for
//! ever.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_types::{Offset, ShardId};
use shoal_wal::record::Remains;
use tokio_util::sync::CancellationToken;

use super::{Shard, Stopped};
use crate::EngineError;
use crate::manifest::ManifestState;

/// Why a replica reads no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HaltKind {
    /// A record of ours is not as it was written.
    Damaged,
    /// A record that only a newer release can read.
    Newer,
    /// The log ends before what was read.
    LostTail,
    /// The log is gone, or another one stands in its place.
    Gone,
    /// Another log has taken the place of this one.
    Closed,
}

/// Where a replica stands that reads no further, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Halt {
    /// The shard.
    pub shard: ShardId,
    /// What happened.
    pub kind: HaltKind,
    /// Everything below is applied (or was never a record).
    pub at: Offset,
    /// Of damage: one past the last damaged position; `None`: the log cannot be read beyond it.
    pub end: Option<Offset>,
    /// Where in the medium.
    pub place: String,
    /// What was found.
    pub what: String,
    /// What the damaged record says of itself, which cannot be relied on.
    #[serde(default)]
    pub remains: Option<Remains>,
}

impl Halt {
    /// What an operator can do.
    #[must_use]
    pub fn remedy(&self) -> String {
        let (shard, at) = (self.shard, self.at);
        match (self.kind, self.end) {
            (HaltKind::Damaged, Some(_)) => format!(
                "`shoal admin shard skip-record {shard} {at}` says what is lost by going on behind it, and does so with --accept-loss"
            ),
            (HaltKind::Damaged, None) => "this log cannot be read behind the damage: restore its files from a copy and start again".into(),
            (HaltKind::Newer, _) => "start this node with the newer release of ShoalDB that wrote it".into(),
            (HaltKind::LostTail | HaltKind::Gone, _) => format!(
                "`shoal admin shard adopt-log {shard}` says what is lost by going on with a new log, and does so with --accept-loss"
            ),
            (HaltKind::Closed, _) => "nothing is to be done: the replica goes on with the new log".into(),
        }
    }
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.kind {
            HaltKind::Damaged => "its log is damaged",
            HaltKind::Newer => "its log cannot be read",
            HaltKind::LostTail => "the tail of its log was lost",
            HaltKind::Gone => "its log is gone",
            HaltKind::Closed => "its log was replaced",
        };
        write!(
            f,
            "{what} at position {} ({}): {}; only eventual reads are answered, as of that position; {}",
            self.at,
            self.place,
            self.what,
            self.remedy()
        )
    }
}

/// Whether a replica reads no further.
#[derive(Debug, Default)]
pub(crate) struct Halted {
    why: Mutex<Option<Halt>>,
    token: CancellationToken,
}

impl Halted {
    pub(crate) fn why(&self) -> Option<Halt> {
        self.why.lock().clone()
    }

    pub(crate) fn is(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves once it does.
    pub(crate) async fn happened(&self) {
        self.token.cancelled().await;
    }
}

impl Shard {
    /// Reads no further; the first reason counts.
    pub(crate) fn halt(&self, halt: Halt) {
        {
            let mut why = self.halted.why.lock();
            if why.is_some() || self.stopped().is_some() {
                return;
            }
            tracing::error!(
                shard = %self.id, at = %halt.at, place = halt.place, what = halt.what, kind = ?halt.kind,
                remedy = halt.remedy(), "the log is read no further"
            );
            *why = Some(halt.clone());
        }
        self.pipeline.stop(&Stopped::Failed(halt.to_string()));
        self.halted.token.cancel();
    }

    /// A reason to read no further, at the position reached.
    pub(crate) fn halt_here(&self, kind: HaltKind, place: String, what: String) -> Halt {
        Halt {
            shard: self.id,
            kind,
            at: *self.applied.borrow(),
            end: None,
            place,
            what,
            remains: None,
        }
    }

    /// Whether the newest manifest leads past the place at which this replica halted; then it has
    /// to be opened from that manifest.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn may_go_on(self: &Arc<Self>) -> Result<bool, EngineError> {
        let Some(halt) = self.halted.why() else {
            return Ok(false);
        };
        let (newest, other_log) = self.newest_manifest().await?;
        Ok(other_log || halt.kind == HaltKind::Damaged && newest.replay_offset() > halt.at)
    }

    /// The newest manifest, and whether it names another log than this replica reads.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn newest_manifest(&self) -> Result<(Arc<ManifestState>, bool), EngineError> {
        let known = Arc::clone(&self.state.read().manifest);
        let newest = self.chain.newest_after(&known).await?;
        let other_log = !newest.log.is_same(&known.log);
        Ok((newest, other_log))
    }

    /// Ends this replica, so that another one goes on from the newest manifest.
    pub(crate) fn stop_to_go_on(&self) {
        let why = "a newer manifest leads past the place at which it halted";
        self.stop(Stopped::Reopen(why.into()));
    }

    /// Whatever is wrong with a log: whether an operator can go on with another one.
    pub(crate) fn lost_its_log(&self) -> bool {
        let lost = [HaltKind::LostTail, HaltKind::Gone];
        self.halted
            .why()
            .is_some_and(|halt| lost.contains(&halt.kind))
    }
}
