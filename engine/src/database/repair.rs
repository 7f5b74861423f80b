//! What an operator does about a damaged or lost log: `shard skip-record`, `shard adopt-log`. The
//! rules are in `shard/skip.rs` and `shard/adopt.rs`; here the shard is taken out of service for it
//! and opened again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_meta::ShardEntry;
use shoal_types::{Epoch, Offset, ShardId};

use super::maintenance::open_again;
use super::{Database, Role, Served, Slot};
use crate::EngineError;
use crate::manifest::{Loss, ManifestState};
use crate::shard::adopt::{LogFound, adopt, examine};
use crate::shard::skip::GiveUp;
use crate::shard::{Shard, Stopped};

/// What a repair came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Repaired {
    /// The manifest that says so.
    pub manifest: u64,
    /// Where the shard reads on.
    pub replay_offset: Offset,
    /// What was given up; `None`: nothing.
    pub loss: Option<Loss>,
    /// The epoch in which this process leads the shard now; `None`: not yet, it is tried again.
    pub epoch: Option<Epoch>,
}

impl Database {
    pub(super) fn slot(&self, shard: ShardId) -> Result<Arc<Slot>, EngineError> {
        let shared = &self.shared;
        let known = |entry: ShardEntry| entry.is_born() && !shared.slots.contains(shard);
        if shared.env.catalog.shard(shard).is_some_and(known) {
            shared.slots.add(shared.new_slot(shard));
        }
        let slot = shared.slots.get(shard);
        slot.ok_or_else(|| EngineError::NotFound {
            what: "shard",
            name: shard.to_string(),
            nearest: None,
        })
    }

    /// Has this process lead a shard whose replica here halted at damage at position `at`, from
    /// behind the damage if `skip`, else from that very place with everything before it in files.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: it does not stand there (the text says where), or is not damaged.
    /// [`EngineError::ShardUnavailable`]: another node is to lead. The store's; the order may be
    /// given again.
    pub async fn skip_record(
        &self,
        shard: ShardId,
        at: Offset,
        skip: bool,
        by: GiveUp,
    ) -> Result<Repaired, EngineError> {
        let slot = self.slot(shard)?;
        let _turn = slot.turn.lock().await;
        let replica = slot.shard()?;
        match replica.halted.why() {
            None => {
                let read = *replica.applied.borrow();
                return Err(EngineError::Invalid(format!(
                    "shard {shard} is not damaged here: it has read up to position {read}"
                )));
            }
            Some(halt) if halt.at != at => {
                return Err(EngineError::Invalid(format!(
                    "the replica here stands at position {}, not {at}: {halt}",
                    halt.at
                )));
            }
            Some(_) => {}
        }
        *slot.wanted.lock() = Role::Leader;
        if replica.may_go_on().await? {
            return Err(EngineError::Invalid(format!(
                "shard {shard} was repaired meanwhile: a newer manifest leads past position {at}"
            )));
        }
        let newest = replica.skip(by, skip).await?;
        Ok(self.go_on(&slot, Some(replica), &newest).await)
    }

    /// What is the case with a shard's log.
    ///
    /// # Errors
    /// Nobody can tell: meta, the store or the log do not answer.
    pub async fn examine_log(&self, shard: ShardId) -> Result<LogFound, EngineError> {
        self.slot(shard)?;
        let (mut found, _) = examine(&self.shared.env, shard).await?;
        if let Ok(replica) = self.shared.shard(shard)
            && found.lost.is_none()
            && replica.lost_its_log()
        {
            found.lost = replica.halted.why().map(|halt| halt.what);
        }
        Ok(found)
    }

    /// Has this process lead a shard whose log was lost, with a new log. Rows that its replica has and
    /// the files do not are saved. `above`: a position that no replica of any node has passed.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: the log is in order, or only damaged. The store's, meta's, the
    /// log's; the order may be given again.
    pub async fn adopt_log(
        &self,
        shard: ShardId,
        above: Offset,
        by: GiveUp,
    ) -> Result<Repaired, EngineError> {
        let slot = self.slot(shard)?;
        let _turn = slot.turn.lock().await;
        let replica = slot.shard().ok();
        *slot.wanted.lock() = Role::Leader;
        let env = &self.shared.env;
        let newest = adopt(env, shard, replica.clone(), by, above).await?;
        Ok(self.go_on(&slot, replica, &newest).await)
    }

    /// Flushes a shard that this process leads such that a restart replays from behind `offset`.
    ///
    /// # Errors
    /// As [`Database::flush`].
    pub async fn flush_beyond(&self, shard: ShardId, offset: Offset) -> Result<u64, EngineError> {
        let led = self.shared.led_here(shard)?;
        led.flush_beyond(offset).await?;
        let newest = led.publishing.lock().await.newest.clone();
        if newest.replay_offset() <= offset {
            return Err(EngineError::ShardUnavailable {
                shard,
                why: format!(
                    "the newest manifest replays from {}, not beyond {offset} yet; try again",
                    newest.replay_offset()
                ),
            });
        }
        Ok(newest.version().0)
    }

    /// Opens the shard from the newest manifest, as leader. A failure is tried again in the
    /// background: what was decided stands in the manifest.
    async fn go_on(
        &self,
        slot: &Slot,
        old: Option<Arc<Shard>>,
        newest: &ManifestState,
    ) -> Repaired {
        if let Some(old) = old {
            old.stop(Stopped::Reopen("it goes on from a newer manifest".into()));
            old.join().await;
        }
        let served = open_again(&self.shared, slot.id, true).await;
        let epoch = match &served {
            Served::Open(shard) if shard.leads() => Some(shard.epoch()),
            _ => None,
        };
        *slot.served.write() = served;
        let loss = newest.losses.last();
        Repaired {
            manifest: newest.version().0,
            replay_offset: newest.replay_offset(),
            loss: loss.filter(|l| l.term == newest.publisher.term).cloned(),
            epoch,
        }
    }
}
