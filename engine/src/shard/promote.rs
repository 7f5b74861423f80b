//! Becoming leader (PROTOCOLS §2, "Open as leader"), and ceasing to be it.
//!
//! Order: read the log to its end; the manifest that it names must be there → raise the term in
//! meta → read the newest manifest and bring this replica to it → publish a manifest with that
//! term → append `Claim`, naming that manifest → apply through it → read the newest manifest
//! again; still ours → serve. The first leader of a log that took another one's place closes that one
//! before it claims its own (`adopt.rs`).
//!
//! Why: the term in the manifest keeps an older leader from publishing; the claim keeps its late
//! records from applying. Between the two it may still append, and what it appends before the claim
//! is applied here as by everybody. The last look catches a leader with a higher term that came in
//! between.
//!
//! A crash after any step leaves a raised term, a manifest that changes nothing, or a claim that
//! nobody uses; the next leader does it all again.
//!
//! A leader is deposed by the claim of another one that it reads (`apply.rs`): its records in flight
//! that were not applied below that claim never will be. One that finds the other's manifest first
//! sends nothing more and waits for the claim. Either way it stays open and follows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shoal_meta::{MetaError, ShardEntry};
use shoal_types::{Epoch, Offset, ShardId, WriterId};

use super::publish::Publishing;
use super::{Shard, Stopped};
use crate::EngineError;
use crate::env::Env;
use crate::manifest::ManifestState;
use crate::manifest::format::Edit;
use crate::manifest::publish::{PublishError, confirm_newest, prepare, publish};

/// Terms tried before giving up: each miss means that somebody else leads meanwhile.
pub(super) const TERMS_MAX: u32 = 16;

/// What a promotion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Promoted {
    /// The epoch it leads in.
    pub epoch: Epoch,
    /// Offsets that were passed since the promotion began.
    pub records_replayed: u64,
    /// From the claim of the log until the shard was served: who led before takes no writes then
    /// either. `None`: this replica led already.
    pub pause: Option<Duration>,
}

impl Shard {
    /// Makes this replica the leader. Nothing changes if it leads already, its term is at least
    /// `term_min`, and no other leader has published since.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`]: another replica took over meanwhile, or the shard
    /// stopped; the store's and meta's. This replica follows on.
    pub(crate) async fn promote(self: &Arc<Self>, term_min: u64) -> Result<Promoted, EngineError> {
        let shard = Arc::clone(self);
        crate::background::to_the_end(async move { shard.promote_now(term_min).await }).await
    }

    async fn promote_now(self: &Arc<Self>, term_min: u64) -> Result<Promoted, EngineError> {
        let mut publishing = self.publishing.lock().await;
        if self.stopped().is_some() || self.halted.is() {
            return Err(self.unavailable());
        }
        let before = *self.applied.borrow();
        let epoch = self.epoch();
        if self.leads() && epoch.term >= term_min {
            // One that has not yet read the claim that ends its tenure finds it out here. Where the
            // store does not answer nothing speaks against it.
            let newest = self.chain.newest_after(&publishing.newest).await;
            if newest.is_ok_and(|newest| newest.publisher.term > epoch.term) {
                tracing::info!(shard = %self.id, %epoch, "overtaken, leading again");
            } else {
                return Ok(self.promoted(epoch, before, None));
            }
        }
        self.refuse_lost_manifest().await?;
        let writer = WriterId::generate();
        let (term, newest) = self.take_term(writer, term_min).await?;
        let newest = Arc::new(newest);
        {
            let mut state = self.state.write();
            state.published.clear();
            // Following may have put it in force already; then no record will do so again.
            if state.manifest.is_before(newest.version()) {
                state.published.push_back(Arc::clone(&newest));
            }
            state.me = Some(writer);
        }
        *publishing = Publishing {
            newest: Arc::clone(&newest),
            undecided: None,
            flush: None,
        };
        self.close_previous_log(term, &newest).await?;
        self.deposed.store(false, Ordering::Relaxed);
        self.pipeline.begin(Epoch { term, claim: 0 }, writer);
        let claimed = Instant::now();
        let Some(epoch) = self.claim(writer).await else {
            return Err(self.overtaken("another leader took over meanwhile"));
        };
        if let Err(error) = confirm_newest(&self.chain, &newest).await {
            let error = EngineError::from(error);
            return Err(self.overtaken(&error.to_string()));
        }
        self.look_for_compactions();
        self.serve(epoch);
        if !self.state.read().untold.is_empty() {
            // Who led before may not have told meta what it changed; a new shard tells what it has.
            self.env.wake.notify_one();
        }
        tracing::info!(shard = %self.id, %epoch, manifest = %newest.version(), "leading");
        Ok(self.promoted(epoch, before, Some(claimed.elapsed())))
    }

    /// A manifest that the log names and the store does not have was lost: rows may be in files
    /// that only it names. Leading would give its number away and take those files for garbage.
    async fn refuse_lost_manifest(&self) -> Result<(), EngineError> {
        let (_, end) = self.log.bounds().await?;
        self.wait_applied(end).await?;
        let Some(named) = self.state.read().fold.manifest() else {
            return Ok(());
        };
        let newest = self.chain.newest().await?;
        if newest.is_some_and(|newest| newest >= named.version) {
            return Ok(());
        }
        let lost = EngineError::Manifest {
            path: self.chain.path(named.version).to_string(),
            what: "the log names it and it is missing; restore it, nothing was changed".to_owned(),
        };
        self.stop(Stopped::Failed(lost.to_string()));
        Err(lost)
    }

    fn promoted(&self, epoch: Epoch, before: Offset, pause: Option<Duration>) -> Promoted {
        let now = *self.applied.borrow();
        Promoted {
            epoch,
            records_replayed: now.0.saturating_sub(before.0),
            pause,
        }
    }

    /// Ends this replica's tenure because another leader has published.
    pub(crate) fn overtaken(&self, why: &str) -> EngineError {
        if self.stopped().is_some() {
            return self.unavailable();
        }
        tracing::warn!(shard = %self.id, why, "following");
        self.pipeline.overtaken();
        EngineError::ShardUnavailable {
            shard: self.id,
            why: why.to_owned(),
        }
    }

    /// Takes a term above all before and publishes a manifest with it, which changes nothing else.
    pub(super) async fn take_term(
        &self,
        writer: WriterId,
        term_min: u64,
    ) -> Result<(u64, ManifestState), EngineError> {
        let chain = &self.chain;
        for _ in 0..TERMS_MAX {
            let base = self.reach_newest().await?;
            let Some(term) = raise_term(&self.env, self.id, base.publisher.term, term_min).await?
            else {
                continue;
            };
            let now_ms = self.env.clock.now_ms();
            let prepared = prepare(chain, &base, Edit::default(), term, writer, now_ms)?;
            match publish(chain, &prepared).await {
                Ok(()) => return Ok((term, prepared.state)),
                Err(PublishError::Undecided(e) | PublishError::Refused(e)) => return Err(e),
                Err(other) => {
                    let why = EngineError::from(other);
                    tracing::info!(shard = %self.id, term, %why, "trying a higher term");
                }
            }
        }
        Err(EngineError::ShardUnavailable {
            shard: self.id,
            why: format!("{TERMS_MAX} terms in a row were overtaken by another leader"),
        })
    }
}

/// Raises a shard's term in meta above `above`, the newest manifest's, to `term_min` at least.
/// `None`: somebody else did at the same time; look at the newest manifest again.
///
/// # Errors
/// Meta's; [`EngineError::ShardUnavailable`]: another node is to lead.
pub(super) async fn raise_term(
    env: &Env,
    shard: ShardId,
    above: u64,
    term_min: u64,
) -> Result<Option<u64>, EngineError> {
    if let Some(peers) = &env.peers {
        // The term is part of the assignment, so that a node that is not to lead any more gets none.
        let above = above.max(term_min.saturating_sub(1));
        return peers.raise_term(shard, above).await.map(Some);
    }
    let Some(entry) = env.catalog.reload_shard(shard).await? else {
        return Err(EngineError::Invalid("the shard is not in meta".into()));
    };
    let term = (entry.term.max(above) + 1).max(term_min);
    let raised = ShardEntry { term, ..entry };
    match env.catalog.put_shard(shard, Some(entry), raised).await {
        Ok(()) => Ok(Some(term)),
        Err(MetaError::Conflict) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
