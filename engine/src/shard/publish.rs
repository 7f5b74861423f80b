//! One manifest at a time, announced through the log (PROTOCOLS §2, "Flush").
//!
//! Order: settle what an earlier publish left undecided → build the edit on the newest manifest →
//! check its invariants → put it, read back what is unclear (`manifest/publish.rs`) → queue it for
//! the switch → append `Manifest(version, attempt)`; when `apply.rs` reads that record, the
//! manifest comes into force.
//!
//! A crash after the put: the next opener goes on from this manifest, which holds everything below
//! its replay offset; the record is not needed for that. A failure between put and record (a full
//! log) leaves the manifest queued; the next `Manifest` or `Claim` record names it or a newer one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Shard, Stopped};
use crate::EngineError;
use crate::manifest::ManifestState;
use crate::manifest::format::Edit;
use crate::manifest::publish::{Prepared, PublishError, prepare, publish};
use shoal_wal::record::Payload;

/// What the publisher knows; behind a lock that is held for a whole publish.
#[derive(Debug)]
pub(crate) struct Publishing {
    /// The newest manifest published.
    pub newest: Arc<ManifestState>,
    /// A put whose outcome is not known: nothing else may be tried before it is settled.
    pub undecided: Option<Prepared>,
    /// A flush that was begun: its rows are frozen until it is published.
    pub flush: Option<super::flush::Begun>,
}

impl Shard {
    /// Publishes what `edit` makes of the newest manifest and announces it.
    ///
    /// # Errors
    /// An `Undecided` store error is settled by the next call; where the chain was taken over the
    /// shard stops.
    pub(crate) async fn publish(
        &self,
        publishing: &mut Publishing,
        edit: Edit,
    ) -> Result<Arc<ManifestState>, EngineError> {
        self.settle(publishing).await?;
        let now_ms = self.env.clock.now_ms();
        let prepared = prepare(
            &self.chain,
            &publishing.newest,
            edit,
            self.epoch().term,
            self.pipeline.writer(),
            now_ms,
        )?;
        self.put(publishing, prepared).await?;
        Ok(Arc::clone(&publishing.newest))
    }

    /// Finds out what became of an undecided put.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub(crate) async fn settle(&self, publishing: &mut Publishing) -> Result<(), EngineError> {
        if self.stopped().is_some() {
            return Err(self.unavailable());
        }
        if !self.leads() {
            return Err(crate::WriteError::NotLeader { shard: self.id }.into());
        }
        match publishing.undecided.take() {
            None => Ok(()),
            Some(prepared) => self.put(publishing, prepared).await,
        }
    }

    async fn put(
        &self,
        publishing: &mut Publishing,
        prepared: Prepared,
    ) -> Result<(), EngineError> {
        match publish(&self.chain, &prepared).await {
            Ok(()) => {
                let state = Arc::new(prepared.state);
                publishing.newest = Arc::clone(&state);
                self.state.write().published.push_back(state);
                self.announce().await;
                Ok(())
            }
            Err(PublishError::Undecided(error)) => {
                publishing.undecided = Some(prepared);
                Err(error)
            }
            Err(PublishError::Refused(error)) => Err(error),
            Err(taken @ (PublishError::HigherTerm { .. } | PublishError::SameTerm)) => {
                let higher = matches!(taken, PublishError::HigherTerm { .. });
                self.deposed.store(higher, Ordering::Relaxed);
                let error = EngineError::from(taken);
                Err(self.overtaken(&error.to_string()))
            }
            // A late put of an older leader stands where ours should: its rows are in files that
            // our memory knows nothing of. Opening again replays from it.
            Err(PublishError::Rebuild) => {
                let error = EngineError::from(PublishError::Rebuild);
                self.stop(Stopped::Reopen(error.to_string()));
                Err(error)
            }
        }
    }

    /// Appends the record that puts the newest published manifest in force. A failure is only
    /// logged: the next announcement or claim names it or a newer one.
    pub(crate) async fn announce(&self) {
        let named = {
            let state = self.state.read();
            state.published.back().map(|m| m.reference)
        };
        let Some(named) = named else { return };
        let patience = self.patience();
        if let Err(error) = self
            .submit(Payload::Manifest(named), Vec::new(), patience)
            .await
        {
            tracing::warn!(shard = %self.id, version = %named.version, %error, "manifest not announced yet");
        }
    }
}
