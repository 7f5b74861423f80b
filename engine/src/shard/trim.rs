//! Letting go of log records that files have made superfluous (PROTOCOLS §2, "Trim").
//!
//! Order: read the newest manifest again → only if it is still ours, allow the log to delete
//! below its replay offset. Without the second look a leader that was overtaken would trim what
//! the new leader's older manifest still needs. A crash in between leaves more log than needed.

use super::Shard;
use crate::manifest::ManifestState;
use crate::manifest::publish::confirm_newest;

impl Shard {
    /// Trims below the replay offset of `newest`. A failure is logged and made good by the next
    /// trim.
    pub(crate) async fn trim(&self, newest: &ManifestState) {
        if let Err(error) = confirm_newest(&self.chain, newest).await {
            let error = crate::EngineError::from(error);
            tracing::warn!(shard = %self.id, %error, "log not trimmed");
            return;
        }
        if let Err(error) = self.log.trim(newest.replay_offset()).await {
            tracing::warn!(shard = %self.id, %error, "log not trimmed");
        }
    }
}
