//! A follower's way to manifests that its leader published.
//!
//! Order: an applied `Manifest` or `Claim` names one → load it (what came after the one in force) →
//! its residue, if another → the footers of its new files → take it in one step under the lock:
//! files in, the rows that are in them out. Reads go on all the while, from the old files and the
//! rows in memory.
//!
//! Only versions named by applied records are taken. Where the named one is gone or is another
//! attempt (it was collected and its number used again), the newest of all is.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use shoal_sst::SstFile;
use shoal_wal::record::ManifestRef;

use super::residue::load_residue;
use super::state::Released;
use super::{Shard, Stopped};
use crate::EngineError;
use crate::manifest::ManifestState;

/// Pause after a manifest could not be loaded.
const PAUSE: Duration = Duration::from_millis(200);
/// Footers loaded at the same time.
const FOOTERS_AT_ONCE: usize = 8;

/// Switches whenever a manifest is named that is not known here. Ends with the shard.
pub(crate) async fn run(shard: Arc<Shard>) {
    loop {
        tokio::select! {
            biased;
            () = shard.stop.cancelled() => return,
            () = shard.named.notified() => {}
        }
        loop {
            let unknown = shard.state.read().unknown_manifest();
            let Some(named) = unknown else { break };
            tokio::select! {
                biased;
                () = shard.stop.cancelled() => return,
                taken = shard.take_named(named) => match taken {
                    Ok(()) => *shard.trouble.lock() = None,
                    Err(error) => {
                        tracing::warn!(shard = %shard.id, version = %named.version, %error, "manifest not loaded, trying again");
                        *shard.trouble.lock() = Some(format!("manifest {}: {error}", named.version));
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }
}

impl Shard {
    async fn take_named(&self, named: ManifestRef) -> Result<(), EngineError> {
        let known = Arc::clone(&self.state.read().manifest);
        let found = self.chain.read(named.version).await?;
        let same = found.is_some_and(|read| read.manifest.reference() == named);
        let next = if same {
            let loaded = self.chain.load_after(Some(&known), named.version).await?;
            Arc::new(loaded)
        } else {
            self.chain.newest_after(&known).await?
        };
        if !known.is_before(next.version()) && self.state.read().unknown_manifest() == Some(named) {
            // Without a pause this would be asked for over and over.
            return Err(EngineError::Manifest {
                path: self.chain.path(named.version).to_string(),
                what: "the log names it and it is missing".to_owned(),
            });
        }
        self.take(next).await
    }

    /// Brings this replica to the newest manifest there is.
    ///
    /// # Errors
    /// The store's; [`EngineError::ShardUnavailable`]: the shard must be opened again.
    pub(crate) async fn reach_newest(&self) -> Result<Arc<ManifestState>, EngineError> {
        let known = Arc::clone(&self.state.read().manifest);
        let newest = self.chain.newest_after(&known).await?;
        if known.is_before(newest.version()) {
            // Its replay offset is in the log, which holds the boundary before it.
            self.wait_applied(newest.replay_offset()).await?;
            self.take(Arc::clone(&newest)).await?;
        }
        Ok(newest)
    }

    async fn take(&self, next: Arc<ManifestState>) -> Result<(), EngineError> {
        let known = Arc::clone(&self.state.read().manifest);
        if !known.is_before(next.version()) {
            return Ok(());
        }
        let residue = if next.residue == known.residue {
            None
        } else {
            Some(load_residue(&self.env, &next).await?)
        };
        self.load_footers(&known, &next).await;
        let mut released = Released::default();
        let (before, after, taken) = {
            let mut state = self.state.write();
            let before = state.memory_bytes;
            let taken = state.take_manifest(next, residue, &mut released);
            (before, state.memory_bytes, taken)
        };
        self.env.memory.change(before, after);
        drop(released);
        taken.map_err(|why| {
            self.stop(Stopped::Reopen(why));
            self.unavailable()
        })
    }

    /// So that the first reads after the switch find them in memory. A failure is met again, and
    /// told, by whoever reads the file.
    async fn load_footers(&self, known: &ManifestState, next: &ManifestState) {
        let mut fresh: Vec<SstFile> = Vec::new();
        for (table, files) in next.tables.iter() {
            let old = known.table(*table);
            if old.is_some_and(|old| Arc::ptr_eq(old, files)) {
                continue;
            }
            let new = files.files.iter().filter(|f| {
                old.is_none_or(|old| old.files.iter().all(|o| o.file.path != f.file.path))
            });
            fresh.extend(new.map(|f| f.file.clone()));
        }
        futures::stream::iter(fresh)
            .for_each_concurrent(FOOTERS_AT_ONCE, |file| async move {
                if let Err(error) = self.env.sst.metadata(&file).await {
                    tracing::debug!(shard = %self.id, path = file.path, %error, "footer not loaded");
                }
            })
            .await;
    }
}
