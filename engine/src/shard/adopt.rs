//! Going on with a new log, by an operator's order, where the old one was lost
//! (`docs/decisions/0013`).
//!
//! Order: look whether the log was lost indeed → make another one → publish a manifest in a new term
//! that names it, with all rows that a replica still has, and replay from its beginning → tell meta
//! its name → open from that manifest as leader: close the old log, where it can still be written,
//! with a claim that no record follows → claim the new one → serve.
//!
//! The manifest is the moment at which it is decided, and the only one: it is put under a number of
//! its own or not at all, and whoever opens the shard from then on opens the log that it names,
//! whatever meta says (`open.rs` tells meta). A crash before it leaves a log that nobody uses; after
//! it, the next opener does the rest. Of two operators at once the chain takes one; the other is
//! told that the log is in order.
//!
//! **Nothing is acknowledged in two logs.** A write of the new log is acknowledged behind the claim
//! there, which follows the closing claim in the old one. Whoever reads on in the old log reads the
//! closing claim before every barrier appended behind it, and answers no strong read after it
//! (`apply.rs`). Where the old log cannot be written nobody gets a barrier back from it either.
//!
//! **Positions go on rising** (`shoal_wal::shifted`): the new log's records stand at positions far
//! above all of the old one. So row versions, changes of tables, write ids, imports, what is flushed
//! and commit tokens need no translation; a token of what was lost lies within the loss that the
//! manifest tells, and is refused (`barrier.rs`); an UPDATE that read before conflicts
//! (`FoldState::begin_log`).

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_types::{Epoch, LogId, Offset, ShardId, WriterId};
use shoal_wal::log::{LogError, receipt_outcome};
use shoal_wal::record::Record;
use shoal_wal::shifted::shifted;

use super::Shard;
use super::halt::HaltKind;
use super::open::newest_of;
use super::promote::{TERMS_MAX, raise_term};
use super::skip::{GiveUp, NewLog, Rest, trace};
use crate::EngineError;
use crate::env::Env;
use crate::manifest::format::{Edit, Loss, LossKind};
use crate::manifest::publish::{PublishError, prepare, publish};
use crate::manifest::{Chain, ManifestState};

/// Positions of a new log begin at a multiple of this, half of it at least above all known ones: a
/// log between two flushes has far fewer records (`wal.shard_bytes_max`), and 2^48 positions leave
/// room for 65,536 logs.
const STRIDE: u64 = 1 << 32;
/// Versions of rows have so many bits for positions (PROTOCOLS §3).
const POSITIONS_MAX: u64 = 1 << 48;
/// How long the closing of an old log is waited for.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// How often a log must be found missing before that is believed, and the time between.
const LOOKS: u32 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What was found of a shard's log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogFound {
    /// The shard.
    pub shard: ShardId,
    /// Whether it was lost, and how; `None`: it is in order, as far as the manifests tell.
    pub lost: Option<String>,
    /// The newest manifest.
    pub manifest: u64,
    /// Everything below is in files.
    pub replay_offset: Offset,
    /// Where the log ends, if there is one.
    pub log_end: Option<Offset>,
    /// Id of the log, where meta or the manifest has one.
    pub log: Option<LogId>,
}

pub(crate) fn chain_of(env: &Env, shard: ShardId) -> Chain {
    Chain {
        store: Arc::clone(&env.store),
        layout: env.layout.clone(),
        cluster: env.config.cluster_name.clone(),
        shard,
    }
}

/// Looks at a shard's log and newest manifest.
///
/// # Errors
/// Nobody can tell: meta, the store or the log do not answer, or the log is refused for another
/// reason, which the text names.
pub(crate) async fn examine(
    env: &Env,
    shard: ShardId,
) -> Result<(LogFound, ManifestState), EngineError> {
    let newest = newest_of(&chain_of(env, shard)).await?;
    let entry = env.catalog.reload_shard(shard).await?;
    let log = newest.log.id.or(entry.and_then(|entry| entry.log));
    let mut found = LogFound {
        shard,
        lost: None,
        manifest: newest.version().0,
        replay_offset: newest.replay_offset(),
        log_end: None,
        log,
    };
    let Some(id) = log else {
        return Ok((found, newest));
    };
    let mut looks = 0;
    let opened = loop {
        looks += 1;
        match env.logs.open(shard, id).await {
            Ok(log) => break shifted(log, newest.log.shift),
            // A broker that has just started may not know all that it has.
            Err(LogError::NotFound { .. } | LogError::Another { .. }) if looks < LOOKS => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(error @ (LogError::NotFound { .. } | LogError::Another { .. })) => {
                found.lost = Some(error.to_string());
                return Ok((found, newest));
            }
            Err(other) => return Err(other.into()),
        }
    };
    found.log_end = Some(opened.bounds().await?.1);
    match opened.read(newest.replay_offset()).await {
        Ok(_) => {}
        Err(LogError::LostTail { end, .. }) => {
            found.lost = Some(format!(
                "the log ends at {end}, the newest manifest replays from {}",
                newest.replay_offset()
            ));
        }
        Err(other) => return Err(other.into()),
    }
    Ok((found, newest))
}

/// Where positions of a new log begin.
fn begin_above(newest: &ManifestState, above: Offset) -> Result<Offset, EngineError> {
    let above = above.max(newest.replay_offset());
    let begin = ((above.0.saturating_add(STRIDE / 2)) / STRIDE + 1).saturating_mul(STRIDE);
    if begin.saturating_add(newest.fold.version_base()) > POSITIONS_MAX - STRIDE {
        return Err(EngineError::Invalid(format!(
            "shard {} has no positions left for another log; copy its tables into another cluster",
            newest.shard
        )));
    }
    Ok(Offset(begin))
}

/// Makes the log that takes the place of `old`.
async fn make_log(
    env: &Env,
    shard: ShardId,
    newest: &ManifestState,
    old: Option<LogId>,
    above: Offset,
) -> Result<NewLog, EngineError> {
    let id = env.logs.create(shard).await?;
    let begin = begin_above(newest, above)?;
    if Some(id) != old {
        return Ok(NewLog {
            id,
            begin,
            shift: begin.0,
            previous: old,
        });
    }
    // A backend that keeps one log a shard, whose only user is this process: nobody else stands in
    // it, so that it goes on at its end.
    let log = env.logs.open(shard, id).await?;
    if !log.end_is_barrier() {
        return Err(EngineError::Invalid(format!(
            "this log keeps one log a shard; it cannot make another one for shard {shard}"
        )));
    }
    let (_, end) = log.bounds().await?;
    Ok(NewLog {
        id,
        begin,
        shift: begin.0 - end.0,
        previous: None,
    })
}

/// Publishes that a shard goes on with a new log, with the rows of `replica` (which is stopped by it),
/// if there is one. `above`: a position that no replica has passed.
///
/// # Errors
/// [`EngineError::Invalid`]: the log is in order. As [`examine`]. After others nothing was decided.
pub(crate) async fn adopt(
    env: &Arc<Env>,
    shard: ShardId,
    replica: Option<Arc<Shard>>,
    by: GiveUp,
    above: Offset,
) -> Result<ManifestState, EngineError> {
    let (found, newest) = examine(env, shard).await?;
    // The replica's log may have lost what it read though not what the manifest needs.
    let cut = replica
        .as_ref()
        .is_some_and(|replica| replica.lost_its_log());
    let what = match &found.lost {
        Some(what) => what.clone(),
        None if cut => "the log ends before what this replica has read".to_owned(),
        None => {
            let halt = replica.and_then(|replica| replica.halted.why());
            return Err(halt.map_or_else(
                || in_order(shard),
                |halt| EngineError::Invalid(format!("the log is not lost: {halt}")),
            ));
        }
    };
    let passed = replica
        .as_ref()
        .map_or(Offset(0), |replica| *replica.applied.borrow());
    // One that lags behind the files has nothing that is not in them.
    let replica = replica.filter(|_| passed >= newest.replay_offset());
    let above = above.max(passed).max(found.log_end.unwrap_or(Offset(0)));
    let log = make_log(env, shard, &newest, found.log, above).await?;
    if let Some(replica) = replica {
        replica.halt(replica.halt_here(HaltKind::Gone, replica.place(), what));
        return replica.publish_rest(by, Rest::Another(log)).await;
    }
    publish_without_replica(env, shard, by, &newest, log, &what).await
}

fn in_order(shard: ShardId) -> EngineError {
    EngineError::Invalid(format!(
        "the log of shard {shard} is in order: nothing was changed"
    ))
}

async fn publish_without_replica(
    env: &Arc<Env>,
    shard: ShardId,
    by: GiveUp,
    examined: &ManifestState,
    log: NewLog,
    what: &str,
) -> Result<ManifestState, EngineError> {
    let chain = chain_of(env, shard);
    let writer = WriterId::generate();
    for _ in 0..TERMS_MAX {
        let base = newest_of(&chain).await?;
        if !base.log.is_same(&examined.log) {
            return Err(in_order(shard));
        }
        let raised = raise_term(env, shard, base.publisher.term, by.term_min).await?;
        let Some(term) = raised else { continue };
        let now_ms = env.clock.now_ms();
        let mut fold = base.fold.clone();
        fold.begin_log(log.begin);
        let edit = Edit {
            log: Some(log.identity()),
            fold: Some(fold.edit_since(&base.fold)),
            losses: vec![Loss {
                kind: LossKind::LogAdopted,
                from: base.replay_offset(),
                to: log.begin,
                at_ms: now_ms,
                term,
                node: env.name(),
                what: what.to_owned(),
                reason: by.reason.clone(),
            }],
            ..Edit::default()
        };
        let prepared = prepare(&chain, &base, edit, term, writer, now_ms)?;
        match publish(&chain, &prepared).await {
            Ok(()) => {
                trace(&prepared.state);
                return Ok(prepared.state);
            }
            Err(PublishError::Undecided(error) | PublishError::Refused(error)) => {
                return Err(error);
            }
            // Somebody else published: what they published decides.
            Err(_) => {}
        }
    }
    Err(EngineError::ShardUnavailable {
        shard,
        why: format!("{TERMS_MAX} terms in a row were overtaken by others"),
    })
}

impl Shard {
    /// Before the first claim in a log that took another one's place: closes that one. Whoever still
    /// reads it answers no strong read from then on.
    ///
    /// # Errors
    /// It is there and did not take the claim in time: somebody might go on reading it. Try again.
    pub(super) async fn close_previous_log(
        &self,
        term: u64,
        newest: &ManifestState,
    ) -> Result<(), EngineError> {
        let Some(previous) = newest.log.previous else {
            return Ok(());
        };
        let adopted = newest.losses.iter().rev();
        let adopted = adopted
            .filter(|loss| loss.kind == LossKind::LogAdopted)
            .map(|loss| loss.term)
            .next();
        let claimed = self.state.read().fold.claim().0.term;
        if adopted.is_none_or(|adopted| claimed > adopted) {
            // A leader of this log has done it.
            return Ok(());
        }
        let log = match self.env.logs.open(self.id, previous).await {
            Ok(log) => log,
            Err(LogError::NotFound { .. } | LogError::Another { .. }) => {
                tracing::info!(shard = %self.id, log = %previous, "the log before is gone: there is nothing to close");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let epoch = Epoch {
            term,
            claim: Epoch::CLOSING_CLAIM,
        };
        let now_ms = self.env.clock.now_ms();
        let claim = Record::claim(epoch, WriterId::generate(), newest.reference, now_ms);
        let closed = tokio::time::timeout(CLOSE_WAIT, receipt_outcome(log.append(claim.encode())));
        match closed.await {
            Ok(Ok(at)) => {
                tracing::info!(shard = %self.id, log = %previous, %at, "the log before is closed");
                Ok(())
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(LogError::CommitTimeout {
                timeout_ms: CLOSE_WAIT.as_millis() as u64,
            }
            .into()),
        }
    }
}
