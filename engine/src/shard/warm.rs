//! Fills a replica's cache in the background, so that a read after a promotion, a move or a switch to
//! files that another node wrote finds them near.
//!
//! The newest files first, one at a time a process, at a bounded rate, never in the place of what is
//! there: it ends where the cache has no room. A failure is left to whoever reads the file.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_sst::SstFile;

use super::Shard;
use crate::manifest::ManifestState;

/// How often a replica looks for files that came.
const LOOK: Duration = Duration::from_secs(1);

/// Ends with the shard; at once where there is no disk to fill.
pub(crate) async fn run(shard: Arc<Shard>) {
    if !shard.env.sst.has_disk_level() || shard.env.config.cache_warm_bytes_per_s == 0 {
        return;
    }
    let mut warm: HashSet<String> = HashSet::new();
    let mut seen: Option<Arc<ManifestState>> = None;
    loop {
        tokio::select! {
            biased;
            () = shard.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let manifest = Arc::clone(&shard.state.read().manifest);
        if seen
            .as_ref()
            .is_some_and(|seen| Arc::ptr_eq(seen, &manifest))
        {
            continue;
        }
        let files = newest_first(&manifest);
        let named: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
        warm.retain(|path| named.contains(path.as_str()));
        let missing = files.iter().filter(|file| !warm.contains(&file.path));
        let missing: Vec<SstFile> = missing.cloned().collect();
        let mut complete = true;
        for file in missing {
            tokio::select! {
                biased;
                () = shard.stop.cancelled() => return,
                room = shard.warm(&file) => {
                    if !room {
                        break;
                    }
                }
            }
            warm.insert(file.path);
            if !Arc::ptr_eq(&shard.state.read().manifest, &manifest) {
                complete = false;
                break;
            }
        }
        if complete {
            seen = Some(manifest);
        }
    }
}

fn newest_first(manifest: &ManifestState) -> Vec<SstFile> {
    let tables = manifest.tables.values();
    let files = tables.flat_map(|table| &table.files);
    let mut files: Vec<SstFile> = files.map(|entry| entry.file.clone()).collect();
    files.sort_by_key(|file| {
        std::cmp::Reverse((file.time_range.map(|range| range.1), file.version_max))
    });
    files
}

impl Shard {
    /// False: there is no room for more.
    async fn warm(&self, file: &SstFile) -> bool {
        let Ok(_turn) = self.env.warming.acquire().await else {
            return false;
        };
        let pace = |bytes| self.env.warm_budget.take(bytes);
        match self.env.sst.warm(file, pace).await {
            Ok(room) => room,
            Err(error) => {
                tracing::debug!(shard = %self.id, path = file.path, %error, "not fetched ahead");
                true
            }
        }
    }
}
