//! Filling the disk level ahead of readers.
//!
//! A replica that opens, or takes files that another node wrote, has none of their bytes near. They
//! are fetched in the background, in large pieces, onto the disk level alone: what readers have in
//! memory stays there, and nothing is dropped for it.

use crate::cache::BlockKey;
use crate::stats::ReadCounters;
use crate::store::{FileRef, Keep};
use crate::{SstError, SstFile, SstStore};

/// Bytes asked for in one request.
const PIECE_BYTES: u64 = 1 << 20;

impl SstStore {
    /// Whether there is a disk level.
    #[must_use]
    pub fn has_disk_level(&self) -> bool {
        self.disk.is_some()
    }

    /// Fetches what the disk level does not have of a file. Before each piece `pace` is told its
    /// bytes and may wait. Ends early where the disk level has no room left; `false` says so.
    /// Without a disk level there is nothing to do.
    ///
    /// # Errors
    /// [`SstError`]; what was fetched before stays.
    pub async fn warm<F: Future<Output = ()>>(
        &self,
        file: &SstFile,
        pace: impl Fn(u64) -> F,
    ) -> Result<bool, SstError> {
        let Some(disk) = &self.disk else {
            return Ok(true);
        };
        let file = FileRef::of(file);
        let metadata = self.metadata_of(&file).await?;
        let blocks = u32::try_from(file.bytes.div_ceil(self.block_bytes)).unwrap_or(u32::MAX);
        let piece_blocks = (PIECE_BYTES / self.block_bytes).max(1) as u32;
        let mut block = 0;
        while block < blocks {
            let end = block.saturating_add(piece_blocks).min(blocks);
            let key = |block| BlockKey {
                file: file.id,
                block,
            };
            let missing: Vec<u32> = (block..end).filter(|b| !disk.has(key(*b))).collect();
            block = end;
            if missing.is_empty() {
                continue;
            }
            let bytes = missing.len() as u64 * self.block_bytes;
            if !disk.has_room(bytes) {
                return Ok(false);
            }
            pace(bytes).await;
            // What a reader fetches at this moment it keeps itself.
            let (mine, _) = self.claim(file.id, &missing);
            let (mut fetched, counters) = (Default::default(), ReadCounters::default());
            self.fetch(
                &file,
                &metadata,
                mine,
                &mut fetched,
                &counters,
                Keep::OnDisk,
            )
            .await?;
            self.stats.warmed_bytes.add(counters.bytes_fetched.get());
        }
        Ok(true)
    }
}
