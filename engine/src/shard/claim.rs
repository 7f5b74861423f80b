//! Claiming the log, at open and after any delivery failure (PROTOCOLS §1).
//!
//! A failed delivery leaves a hole in the epoch's numbers, so the epoch is over: raise the claim
//! number, append a `Claim`, and read until it (or a higher one) comes back. What of the old epoch
//! was not applied below the new claim never will be, so it may be sent again without doubling.
//! The producer's own idea of what was delivered is a hint and decides nothing.
//!
//! A claim whose delivery is unclear is waited for a moment and then followed by a higher one; a
//! lower claim of ours that arrives late changes nothing. A claim for which the log has no space is
//! tried again for as long as the shard is open: when space returns, writes go on by themselves.
//!
//! The claim names the newest published manifest, so that one whose `Manifest` record was lost
//! with the old epoch comes into force here.

use std::sync::Arc;
use std::time::Duration;

use shoal_types::{Epoch, Seq, WriterId};
use shoal_wal::log::{LogError, receipt_outcome};
use shoal_wal::record::{ManifestRef, Payload, Record};
use tokio::sync::mpsc;

use super::entry::LogEntry;
use super::write::Delivery;
use super::{Shard, Stopped, apply};

/// How long an unclear claim is waited for before a higher one is sent.
const UNCLEAR_WAIT: Duration = Duration::from_millis(100);
/// How long a claim is waited for about which the log says nothing: longer than a disk that
/// hesitates.
const SILENT_WAIT: Duration = Duration::from_secs(5);
/// Pause between claims that the log has no space for.
const FULL_PAUSE: Duration = Duration::from_millis(250);
/// How long receipts of a broken epoch are waited for. They are hints; the claim settles them.
const RECEIPT_WAIT: Duration = Duration::from_millis(500);

/// Waits for the receipts of all records, in the order in which they were sent, and claims anew
/// when one failed. Ends with the shard.
pub(crate) async fn run(shard: Arc<Shard>, mut deliveries: mpsc::UnboundedReceiver<Delivery>) {
    loop {
        let one = tokio::select! {
            biased;
            () = shard.stop.cancelled() => return,
            one = deliveries.recv() => one,
        };
        let Some(one) = one else { return };
        let outcome = tokio::select! {
            biased;
            () = shard.stop.cancelled() => return,
            outcome = receipt_outcome(one.receipt) => outcome,
        };
        if !shard.pipeline.delivered(one.epoch, one.seq, &outcome) {
            if let Ok(offset) = outcome {
                apply::confirm(&shard, offset, one.entry, one.crc);
            }
            continue;
        }
        if let Err(LogError::Closed) = &outcome {
            shard.stop(Stopped::Closed);
            return;
        }
        let tenure = shard.pipeline.writer();
        tracing::warn!(
            shard = %shard.id, epoch = %one.epoch, seq = %one.seq,
            error = %outcome.err().map(|e| e.to_string()).unwrap_or_default(),
            "delivery failed, claiming the log again"
        );
        // Nothing new is sent from here on; what was sent gets its receipt. All are waited for at
        // once: a log that never answers costs one wait, not one a record.
        let shard_now = &shard;
        let rest = std::iter::from_fn(|| deliveries.try_recv().ok());
        let receipts = futures::future::join_all(rest.map(|one| async move {
            let outcome = tokio::time::timeout(RECEIPT_WAIT, receipt_outcome(one.receipt))
                .await
                .unwrap_or_else(|_| Err(LogError::Unknown("no receipt".into())));
            let pipeline = &shard_now.pipeline;
            pipeline.delivered(one.epoch, one.seq, &outcome);
        }));
        tokio::select! {
            biased;
            () = shard.stop.cancelled() => return,
            _ = receipts => {}
        }
        if let Some(epoch) = shard.claim(tenure).await {
            shard.serve(epoch);
        }
    }
}

enum Claimed {
    Mine,
    Unclear,
    Full(String),
    Ended,
}

impl Shard {
    /// Claims the log with the next claim number, again and again until one of ours is read back.
    /// `None`: the shard stopped, or this tenure is over.
    pub(crate) async fn claim(&self, tenure: WriterId) -> Option<Epoch> {
        while !self.stop.is_cancelled() {
            let epoch = self.pipeline.next_epoch(tenure)?;
            match self.claim_once(epoch, tenure).await {
                Claimed::Mine => return Some(epoch),
                Claimed::Ended => return None,
                Claimed::Unclear => {}
                Claimed::Full(what) => {
                    self.pipeline.no_space(&what);
                    tokio::select! {
                        () = self.stop.cancelled() => return None,
                        () = tokio::time::sleep(FULL_PAUSE) => {}
                    }
                }
            }
        }
        None
    }

    fn newest_known(&self) -> ManifestRef {
        let state = self.state.read();
        let newest = state.published.back().unwrap_or(&state.manifest);
        newest.reference
    }

    async fn claim_once(&self, epoch: Epoch, tenure: WriterId) -> Claimed {
        let record = Record {
            epoch,
            writer: tenure,
            seq: Seq(0),
            stamp_ms: self.env.clock.now_ms(),
            payload: Payload::Claim(self.newest_known()),
        };
        let entry = LogEntry::without_rows(record);
        let (bytes, crc) = entry.encode();
        let receipt = receipt_outcome(self.log.append(bytes));
        let read_back = self.wait_for_claim(epoch, tenure);
        tokio::pin!(read_back);
        let judge = |mine| if mine { Claimed::Mine } else { Claimed::Ended };
        // Reading it back is the proof; a log that keeps its receipts to itself is not waited for.
        let patience = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Claimed::Ended,
            mine = &mut read_back => return judge(mine),
            outcome = receipt => match outcome {
                Ok(offset) => {
                    apply::confirm(self, offset, entry, crc);
                    return judge(read_back.await);
                }
                Err(LogError::Full(what)) => return Claimed::Full(what),
                Err(LogError::Closed) => {
                    self.stop(Stopped::Closed);
                    return Claimed::Ended;
                }
                Err(_) => UNCLEAR_WAIT,
            },
            () = tokio::time::sleep(SILENT_WAIT) => Duration::ZERO,
        };
        let read_back = tokio::time::timeout(patience, read_back).await;
        read_back.map_or(Claimed::Unclear, judge)
    }

    /// Waits until the fold's claim is this one; false: the shard stopped, or the tenure is over (a
    /// higher claim of another leader was read).
    async fn wait_for_claim(&self, epoch: Epoch, tenure: WriterId) -> bool {
        let mut applied = self.applied.subscribe();
        loop {
            if self.stop.is_cancelled() || !self.pipeline.holds(tenure) {
                return false;
            }
            if self.state.read().fold.claim() == (epoch, tenure) {
                // What was applied below it is told first.
                drop(self.telling.lock());
                return true;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                changed = applied.changed() => if changed.is_err() { return false },
            }
        }
    }
}
