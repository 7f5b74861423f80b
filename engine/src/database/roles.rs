//! Which shards this process leads or follows.

use std::sync::Arc;

use shoal_types::ShardId;

use super::open::drop_nameless;
use super::open_shard::open_as;
use super::{Database, Role, Served};
use crate::EngineError;
use crate::shard::promote::Promoted;
use crate::shard::{Shard, Stopped};

impl Database {
    /// Makes this process leader or follower of a shard, or takes it off the shard; waits until it
    /// is. A leader that is to follow stays leader until it reads the claim of the next one: then
    /// nothing is in between. No data is copied.
    ///
    /// # Errors
    /// Why it cannot be; a shard that is to be led is still tried again in the background.
    pub async fn set_role(
        &self,
        shard: ShardId,
        role: Role,
        term_min: u64,
    ) -> Result<Option<Promoted>, EngineError> {
        let catalog = &self.shared.env.catalog;
        if !self.shared.slots.contains(shard) && catalog.shard(shard).is_none() {
            // Whoever gives the order may have heard of it earlier.
            catalog.reload_shard(shard).await?;
        }
        let slot = self.slot(shard)?;
        let _turn = slot.turn.lock().await;
        *slot.wanted.lock() = role;
        let mut open = slot.shard().ok();
        if let Some(shard) = &open
            && shard.halted.is()
            && role != Role::None
        {
            // An operator may have led it past the place; that is told in the store, and by a new
            // assignment.
            if shard.may_go_on().await? {
                shard.stop_to_go_on();
                open = None;
            }
        }
        match (role, open) {
            (Role::None, _) => {
                let old = std::mem::replace(&mut *slot.served.write(), Served::NotPlaced);
                if let Served::Open(shard) = old {
                    shard.stop(Stopped::Closed);
                    shard.join().await;
                }
                Ok(None)
            }
            (Role::Leader, Some(shard)) => lead(&shard, term_min).await.map(Some),
            (Role::Follower, Some(_)) => Ok(None),
            (Role::Leader | Role::Follower, None) => {
                let ended = match &*slot.served.read() {
                    Served::Open(shard) => Some(Arc::clone(shard)),
                    Served::NotPlaced | Served::Unavailable { .. } => None,
                };
                if let Some(ended) = ended {
                    ended.join().await;
                }
                let opened = open_as(Arc::clone(&self.shared.env), shard, None, Role::Follower);
                let opened = opened.await;
                let follower = opened.as_ref().ok().cloned();
                let failed = opened.as_ref().err().map(ToString::to_string);
                *slot.served.write() = Served::of(shard, opened);
                match follower {
                    Some(shard) if role == Role::Leader => lead(&shard, term_min).await.map(Some),
                    Some(_) => Ok(None),
                    None => Err(EngineError::ShardUnavailable {
                        shard,
                        why: failed.unwrap_or_default(),
                    }),
                }
            }
        }
    }
}

/// Promotes a replica; what no name leads to is dropped once it leads, as when a process that is
/// alone opens (`open.rs`).
async fn lead(shard: &Arc<Shard>, term_min: u64) -> Result<Promoted, EngineError> {
    let before = shard.epoch();
    let promoted = shard.promote(term_min).await?;
    if promoted.epoch != before {
        let shard = Arc::clone(shard);
        tokio::spawn(async move { drop_nameless(&shard).await });
    }
    Ok(promoted)
}
