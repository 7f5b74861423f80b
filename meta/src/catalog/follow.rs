//! Follows the changes that others make.

use std::sync::Arc;

use super::Known;
use crate::store::{Watch, WatchEvent};

/// The task that follows; ends when this is dropped.
#[derive(Debug)]
pub(super) struct Following(tokio::task::JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) fn start(known: Arc<Known>, mut changes: Watch) -> Following {
    Following(tokio::spawn(async move {
        while let Some(event) = changes.next().await {
            known.take(event);
        }
    }))
}

impl Known {
    /// What is known may grow old from now on.
    fn interrupt(&self, why: String) {
        let mut interrupted = self.interrupted.write();
        if interrupted.is_none() {
            tracing::warn!(why, "changes of meta are not heard");
            *interrupted = Some((tokio::time::Instant::now(), why));
        }
    }

    fn take(&self, event: WatchEvent) {
        let ddl_revision = {
            let mut state = self.state.write();
            match event {
                WatchEvent::Changes(changes) => state.follow(&self.prefix, &changes),
                WatchEvent::Reset { listing, restored } => {
                    if restored {
                        tracing::warn!(
                            revision = listing.revision,
                            "meta was restored from a backup"
                        );
                    }
                    if let Err(error) = state.reset(&self.prefix, &listing, restored) {
                        tracing::error!(%error, "meta cannot be read; names known before stay");
                        self.interrupt(error.to_string());
                        return;
                    }
                }
                WatchEvent::Interrupted(why) => {
                    self.interrupt(why);
                    return;
                }
            }
            state.ddl_revision
        };
        if self.interrupted.write().take().is_some() {
            tracing::info!("changes of meta are heard again");
        }
        self.followed.send_replace(ddl_revision);
    }
}
