//! Going on behind damage, by an operator's order (PROTOCOLS §1, verdict 5; `docs/decisions/0013`).
//!
//! Order: a halted replica raises the term in meta and publishes a manifest with it, which changes
//! nothing else (as every opening leader, `promote.rs`) → all its rows go into files → one manifest
//! says: everything up to the damage is in files, replay begins behind it, the fold went over so
//! many records, and who gave them up. → The replica is opened anew from that manifest, and leads.
//! All others find it in the store (`halt.rs`) and do the same as followers.
//!
//! A crash before the last manifest leaves a raised term and objects that nobody names: the order is
//! given again. After it, whoever opens the shard goes on from it. Two at once: the chain takes one;
//! the other finds that its replica may go on already.
//!
//! A halted replica that has passed the place somebody else halted at (it read the record before it
//! was damaged) publishes what it has and gives nothing up. The same way rows are saved whose log is
//! gone (`adopt.rs`).

use std::sync::Arc;

use shoal_types::{LogId, Offset, WriterId};

use super::flush::{Begun, flush_edit};
use super::publish::Publishing;
use super::{Shard, Stopped};
use crate::EngineError;
use crate::background::to_the_end;
use crate::manifest::ManifestState;
use crate::manifest::format::{Edit, LogIdentity, Loss, LossKind};
use crate::manifest::publish::{prepare, publish};

/// Who gave something up, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GiveUp {
    /// Why, in the operator's words.
    pub reason: String,
    /// The least term to do it in.
    pub term_min: u64,
}

/// A log that takes the place of the shard's.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewLog {
    pub id: LogId,
    /// Position of its first record to be read.
    pub begin: Offset,
    pub shift: u64,
    /// The log to be closed.
    pub previous: Option<LogId>,
}

impl NewLog {
    pub(super) fn identity(&self) -> LogIdentity {
        LogIdentity {
            topic: String::new(),
            id: Some(self.id),
            shift: self.shift,
            previous: self.previous,
        }
    }
}

/// What follows the rows that a halted replica has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rest {
    /// The same log, from where it halted.
    Same,
    /// The same log, from this position on.
    Behind(Offset),
    /// Another log.
    Another(NewLog),
}

impl Shard {
    /// Publishes everything that this halted replica has, and that it goes on behind the damage; the
    /// shard is stopped, to be opened anew. `skip` false: nothing is given up.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: it is not halted at damage that can be passed; the store's and
    /// meta's, after which the order can be given again.
    pub(crate) async fn skip(
        self: &Arc<Self>,
        by: GiveUp,
        skip: bool,
    ) -> Result<ManifestState, EngineError> {
        let Some(halt) = self.halted.why() else {
            return Err(EngineError::Invalid(format!(
                "shard {} is not damaged",
                self.id
            )));
        };
        let rest = match (skip, halt.end) {
            (false, _) => Rest::Same,
            (true, Some(end)) => Rest::Behind(end),
            (true, None) => return Err(EngineError::Invalid(halt.to_string())),
        };
        self.publish_rest(by, rest).await
    }

    pub(super) async fn publish_rest(
        self: &Arc<Self>,
        by: GiveUp,
        rest: Rest,
    ) -> Result<ManifestState, EngineError> {
        let shard = Arc::clone(self);
        to_the_end(async move { shard.publish_rest_now(by, rest).await }).await
    }

    async fn publish_rest_now(&self, by: GiveUp, rest: Rest) -> Result<ManifestState, EngineError> {
        let mut publishing = self.publishing.lock().await;
        if self.stopped().is_some() {
            return Err(self.unavailable());
        }
        let writer = WriterId::generate();
        let (term, base) = self.take_term(writer, by.term_min).await?;
        let begun = self.begin_rest(term, &mut publishing)?;
        let gone = begun.frozen.gone.clone();
        let published = self
            .publish_begun(term, writer, base, &by.reason, rest, begun)
            .await;
        match &published {
            Ok(newest) => self.stop(Stopped::Reopen(format!(
                "it goes on from manifest {}",
                newest.version()
            ))),
            // Where the log is gone these rows may be all that there is of them: they stay, and the
            // order can be given again.
            Err(_) => self.state.write().gone.extend(gone),
        }
        published
    }

    /// Freezes everything at the place of the halt.
    fn begin_rest(&self, term: u64, publishing: &mut Publishing) -> Result<Begun, EngineError> {
        let halt = self.halted.why().ok_or_else(|| self.unavailable())?;
        let mut state = self.state.write();
        // Files of tables that were dropped: known only to a flush that did not come to its end.
        let begun = publishing.flush.take();
        let begun = begun.map(|begun| begun.frozen.gone.clone());
        let ready = state.flush_ready.take().map(|frozen| frozen.gone);
        let mut frozen = state.freeze(0);
        drop(state);
        frozen.gone.extend(begun.into_iter().chain(ready).flatten());
        if let Some(before) = halt.at.0.checked_sub(1) {
            frozen.fold.pass(Offset(before));
        }
        Ok(self.begun_in(term, frozen))
    }

    async fn publish_begun(
        &self,
        term: u64,
        writer: WriterId,
        base: ManifestState,
        reason: &str,
        rest: Rest,
        mut begun: Begun,
    ) -> Result<ManifestState, EngineError> {
        let halt = self.halted.why().ok_or_else(|| self.unavailable())?;
        let frozen = &mut begun.frozen;
        let from = frozen.fold.next_offset();
        let mut edit = Edit::default();
        let kind = match rest {
            Rest::Same => None,
            Rest::Behind(end) => {
                frozen.fold.skip(end, term);
                Some(LossKind::RecordSkipped)
            }
            Rest::Another(log) => {
                frozen.fold.begin_log(log.begin);
                // The old log's name is not the new one's.
                frozen.topic = None;
                edit.log = Some(log.identity());
                Some(LossKind::LogAdopted)
            }
        };
        let to = frozen.fold.next_offset();
        self.write_files(&mut begun, &base).await?;
        let now_ms = self.env.clock.now_ms();
        let losses = kind.map(|kind| Loss {
            kind,
            from,
            to,
            at_ms: now_ms,
            term,
            node: self.env.name(),
            what: match &halt.remains {
                Some(remains) => format!("{}: {} ({remains})", halt.place, halt.what),
                None => format!("{}: {}", halt.place, halt.what),
            },
            reason: reason.to_owned(),
        });
        let edit = Edit {
            log: edit.log,
            losses: losses.into_iter().collect(),
            ..flush_edit(&base, &begun)
        };
        let prepared = prepare(&self.chain, &base, edit, term, writer, now_ms)?;
        publish(&self.chain, &prepared).await?;
        trace(&prepared.state);
        Ok(prepared.state)
    }
}

/// Says in the log of events what the newest manifest says of a loss.
pub(super) fn trace(newest: &ManifestState) {
    for loss in newest
        .losses
        .iter()
        .filter(|l| l.term == newest.publisher.term)
    {
        tracing::warn!(
            event = loss.kind.as_str(), shard = %newest.shard, from = %loss.from, to = %loss.to,
            term = loss.term, manifest = %newest.version(), what = loss.what, reason = loss.reason,
            "given up by an operator"
        );
    }
}
