//! Letting go of log records that files have made superfluous (PROTOCOLS §2, "Trim").
//!
//! Order: read the newest manifest again → only if it is still ours, allow the log to delete
//! below its replay offset. Without the second look a leader that was overtaken would trim what
//! the new leader's older manifest still needs. A crash in between leaves more log than needed.

use std::sync::Arc;
use std::time::Duration;

use shoal_types::Offset;

use super::Shard;
use crate::manifest::ManifestState;
use crate::manifest::publish::confirm_newest;

impl Shard {
    /// Trims below the replay offset of `newest`: at once where nobody else reads the log, else
    /// when other replicas had time to read what is in it. Over its budget the log is trimmed
    /// earlier (`flush.rs`).
    pub(crate) async fn trim_in_time(self: &Arc<Self>, newest: Arc<ManifestState>) {
        let delay = Duration::from_millis(self.env.config.trim_delay_ms);
        if self.log.end_is_barrier() || delay.is_zero() {
            return self.trim(&newest).await;
        }
        let shard = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = shard.stop.cancelled() => {}
                () = tokio::time::sleep(delay) => {
                    let now = Arc::clone(&shard.publishing.lock().await.newest);
                    shard.trim_below(&now, newest.replay_offset()).await;
                }
            }
        });
    }

    /// Trims below the replay offset of `newest`.
    pub(crate) async fn trim(&self, newest: &ManifestState) {
        self.trim_below(newest, newest.replay_offset()).await;
    }

    /// A failure is logged and made good by the next trim.
    async fn trim_below(&self, newest: &ManifestState, below: Offset) {
        if let Err(error) = confirm_newest(&self.chain, newest).await {
            let error = crate::EngineError::from(error);
            tracing::warn!(shard = %self.id, %error, "log not trimmed");
            return;
        }
        if let Err(error) = self.log.trim(below).await {
            tracing::warn!(shard = %self.id, %error, "log not trimmed");
        }
    }
}
