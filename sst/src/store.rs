//! Files through the caches: footers once, blocks from memory, from the cache disk, or from the
//! object store, where neighbours are fetched together and each block by one reader only.

use std::ops::Range;
use std::sync::Arc;

use ahash::AHashMap;
use bytes::{Bytes, BytesMut};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cache::{BlockCache, BlockKey, FileId, WeightedLru};
use crate::disk_cache::{DiskCache, DiskCacheOptions};
use crate::footer::CHECKSUM_BLOCK_BYTES;
use crate::metadata::{SstMetadata, TailError};
use crate::stats::{ReadCounters, SstStats};
use crate::{SeriesIndex, SstError, SstFile};

/// First read of a footer whose length is not known.
const FOOTER_GUESS_BYTES: u64 = 64 << 10;

/// Bounds of the caches.
#[derive(Clone, Debug)]
pub struct SstStoreOptions {
    /// Blocks in memory, in bytes.
    pub memory_bytes: usize,
    /// Footers, page indexes and series indexes, in bytes.
    pub metadata_bytes: usize,
    /// Bytes of a block; rounded up to whole checksum blocks (16 KiB). Small blocks read little
    /// from a local disk; a remote store wants 128 KiB or more.
    pub block_bytes: usize,
    /// Second level on a local disk; useless where the object store is one.
    pub disk: Option<DiskCacheOptions>,
}

impl Default for SstStoreOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            metadata_bytes: 64 << 20,
            block_bytes: CHECKSUM_BLOCK_BYTES,
            disk: None,
        }
    }
}

/// An object to read.
#[derive(Clone, Debug)]
pub(crate) struct FileRef {
    pub(crate) path: Path,
    pub(crate) id: FileId,
    pub(crate) bytes: u64,
    /// Length and CRC of the tail where the manifest told them.
    pub(crate) tail: Option<(u64, u32)>,
}

impl FileRef {
    pub(crate) fn of(file: &SstFile) -> Self {
        let path = Path::from(file.path.as_str());
        Self {
            id: FileId::of(&path),
            path,
            bytes: file.bytes,
            tail: (file.tail_bytes > 0).then_some((file.tail_bytes, file.tail_crc)),
        }
    }

    pub(crate) fn damaged(&self, what: impl Into<String>) -> SstError {
        SstError::Damaged {
            path: self.path.to_string(),
            what: what.into(),
        }
    }
}

#[derive(Clone)]
enum Cached {
    Metadata(Arc<SstMetadata>),
    Series(Option<Arc<SeriesIndex>>),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum CachedKey {
    Metadata(FileId),
    Series(FileId),
}

type InFlight = AHashMap<BlockKey, watch::Receiver<Option<Bytes>>>;

/// All SSTs of a process, read through shared caches.
pub struct SstStore {
    store: Arc<dyn ObjectStore>,
    pub(crate) block_bytes: u64,
    memory: BlockCache,
    pub(crate) disk: Option<Arc<DiskCache>>,
    metadata: Mutex<WeightedLru<CachedKey, Cached>>,
    in_flight: Mutex<InFlight>,
    pub(crate) stats: Arc<SstStats>,
}

impl std::fmt::Debug for SstStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SstStore")
            .field("store", &self.store.to_string())
            .finish_non_exhaustive()
    }
}

impl SstStore {
    /// Caches in front of `store`.
    ///
    /// # Errors
    /// The folder of the disk level cannot be used.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        options: &SstStoreOptions,
    ) -> std::io::Result<Arc<Self>> {
        let stats = Arc::new(SstStats::default());
        let disk = match &options.disk {
            Some(disk) => Some(Arc::new(DiskCache::open(disk, &stats)?)),
            None => None,
        };
        let blocks = options.block_bytes.max(1).div_ceil(CHECKSUM_BLOCK_BYTES);
        Ok(Arc::new(Self {
            store,
            block_bytes: (blocks * CHECKSUM_BLOCK_BYTES) as u64,
            memory: BlockCache::new(options.memory_bytes),
            disk,
            metadata: Mutex::new(WeightedLru::new(options.metadata_bytes)),
            in_flight: Mutex::new(AHashMap::new()),
            stats,
        }))
    }

    /// The object store behind the caches.
    #[must_use]
    pub fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Counters for metrics.
    #[must_use]
    pub fn stats(&self) -> &SstStats {
        &self.stats
    }

    /// Footer and page indexes of a file, from the cache or the store.
    ///
    /// # Errors
    /// [`SstError`].
    pub async fn metadata(&self, file: &SstFile) -> Result<Arc<SstMetadata>, SstError> {
        self.metadata_of(&FileRef::of(file)).await
    }

    /// Which rows belong to which series; `None`: the file has no such index.
    ///
    /// # Errors
    /// [`SstError`].
    pub async fn series_index(&self, file: &SstFile) -> Result<Option<Arc<SeriesIndex>>, SstError> {
        let file = FileRef::of(file);
        let key = CachedKey::Series(file.id);
        if let Some(Cached::Series(index)) = self.metadata.lock().get(&key) {
            self.stats.metadata.hits.add(1);
            return Ok(index);
        }
        self.stats.metadata.misses.add(1);
        let metadata = self.metadata_of(&file).await?;
        let index = match metadata.footer.series_index {
            None => None,
            Some(section) => {
                let range = section.offset..section.offset + section.bytes;
                let bytes = self
                    .read(
                        &file,
                        &metadata,
                        vec![range],
                        &ReadCounters::default(),
                        Keep::Everywhere,
                    )
                    .await?
                    .pop()
                    .unwrap_or_default();
                let index = SeriesIndex::decode(&bytes, metadata.rows())
                    .map_err(|what| self.damage(&file, what))?;
                Some(Arc::new(index))
            }
        };
        let weight = index.as_ref().map_or(64, |i| i.memory_bytes());
        self.keep(key, Cached::Series(index.clone()), weight);
        Ok(index)
    }

    pub(crate) async fn metadata_of(&self, file: &FileRef) -> Result<Arc<SstMetadata>, SstError> {
        let key = CachedKey::Metadata(file.id);
        if let Some(Cached::Metadata(metadata)) = self.metadata.lock().get(&key) {
            self.stats.metadata.hits.add(1);
            return Ok(metadata);
        }
        self.stats.metadata.misses.add(1);
        let mut length = file
            .tail
            .map_or(FOOTER_GUESS_BYTES, |tail| tail.0)
            .min(file.bytes);
        let metadata = loop {
            let range = file.bytes - length..file.bytes;
            self.stats.store_requests.add(1);
            let tail = match self.store.get_range(&file.path, range).await {
                Ok(tail) => tail,
                Err(error) => return Err(self.explain(file, error).await),
            };
            self.stats.store_bytes.add(tail.len() as u64);
            if let Some((bytes, crc)) = file.tail
                && bytes == length
                && (tail.len() as u64 != length || crc32fast::hash(&tail) != crc)
            {
                return Err(self.damage(file, "the footer's checksum does not match"));
            }
            match SstMetadata::parse(&tail, file.bytes) {
                Ok(metadata) => break Arc::new(metadata),
                Err(TailError::NeedBytes(bytes)) if bytes > length && bytes <= file.bytes => {
                    length = bytes;
                }
                Err(TailError::NeedBytes(bytes)) => {
                    return Err(self.damage(file, format!("its footer asks for {bytes} bytes")));
                }
                Err(TailError::Damaged(what)) => return Err(self.damage(file, what)),
            }
        };
        let weight = metadata.memory_bytes();
        self.keep(key, Cached::Metadata(Arc::clone(&metadata)), weight);
        Ok(metadata)
    }

    fn keep(&self, key: CachedKey, value: Cached, weight: usize) {
        let gone = self.metadata.lock().put(key, value, weight);
        let removed: usize = gone.iter().map(|g| g.2).sum();
        self.stats.metadata.held(weight as u64, removed as u64);
        self.stats.metadata.evictions.add(gone.len() as u64);
    }

    /// A failed read of an object that is shorter or longer than the manifest says is damage;
    /// trying again would not help.
    async fn explain(&self, file: &FileRef, error: object_store::Error) -> SstError {
        match self.store.head(&file.path).await {
            Ok(meta) if meta.size != file.bytes => self.damage(
                file,
                format!("it has {} bytes, not {}", meta.size, file.bytes),
            ),
            _ => SstError::from_store(&file.path, error),
        }
    }

    pub(crate) fn damage(&self, file: &FileRef, what: impl Into<String>) -> SstError {
        self.stats.damaged.add(1);
        file.damaged(what)
    }

    /// The bytes of `ranges`, each in one piece.
    pub(crate) async fn read(
        &self,
        file: &FileRef,
        metadata: &SstMetadata,
        ranges: Vec<Range<u64>>,
        counters: &ReadCounters,
        keep: Keep,
    ) -> Result<Vec<Bytes>, SstError> {
        let mut wanted: Vec<u32> = Vec::new();
        for range in &ranges {
            if range.start > range.end || range.end > file.bytes {
                return Err(self.damage(
                    file,
                    format!("bytes {range:?} asked for, it has {}", file.bytes),
                ));
            }
            counters.bytes_read.add(range.end - range.start);
            if range.start < range.end {
                let last = (range.end - 1) / self.block_bytes;
                wanted.extend((range.start / self.block_bytes..=last).map(|b| b as u32));
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut blocks: AHashMap<u32, Bytes> = AHashMap::with_capacity(wanted.len());
        while !wanted.is_empty() {
            self.take_cached(file, &mut wanted, &mut blocks, counters)
                .await;
            if wanted.is_empty() {
                break;
            }
            counters.cache_misses.add(wanted.len() as u64);
            let (mine, others) = self.claim(file.id, &wanted);
            self.fetch(file, metadata, mine, &mut blocks, counters, keep)
                .await?;
            for (block, mut receiver) in others {
                // An error there means the other reader gave up or failed: the next round of the
                // loop fetches the block here and reports its own error.
                if let Ok(bytes) = receiver.wait_for(Option::is_some).await
                    && let Some(bytes) = bytes.clone()
                {
                    blocks.insert(block, bytes);
                }
            }
            wanted.retain(|block| !blocks.contains_key(block));
        }
        Ok(ranges
            .iter()
            .map(|range| assemble(range, self.block_bytes, &blocks))
            .collect())
    }

    async fn take_cached(
        &self,
        file: &FileRef,
        wanted: &mut Vec<u32>,
        blocks: &mut AHashMap<u32, Bytes>,
        counters: &ReadCounters,
    ) {
        let before = wanted.len();
        wanted.retain(|&block| {
            let key = BlockKey {
                file: file.id,
                block,
            };
            match self.memory.get(key) {
                Some(bytes) => {
                    blocks.insert(block, bytes);
                    false
                }
                None => true,
            }
        });
        self.stats.memory.hits.add((before - wanted.len()) as u64);
        self.stats.memory.misses.add(wanted.len() as u64);
        if let Some(disk) = &self.disk {
            let mut missing = Vec::with_capacity(wanted.len());
            for block in wanted.drain(..) {
                let key = BlockKey {
                    file: file.id,
                    block,
                };
                match disk.get(key, &self.stats).await {
                    Some(bytes) => {
                        self.stats.disk.hits.add(1);
                        self.memory.put(key, bytes.clone(), &self.stats.memory);
                        blocks.insert(block, bytes);
                    }
                    None => {
                        self.stats.disk.misses.add(1);
                        missing.push(block);
                    }
                }
            }
            *wanted = missing;
        }
        counters.cache_hits.add((before - wanted.len()) as u64);
    }

    /// Splits `wanted` into blocks that this reader fetches and ones that another is fetching.
    pub(crate) fn claim(
        &self,
        file: FileId,
        wanted: &[u32],
    ) -> (Claims<'_>, Vec<(u32, watch::Receiver<Option<Bytes>>)>) {
        let mut in_flight = self.in_flight.lock();
        let mut mine = Vec::new();
        let mut others = Vec::new();
        for &block in wanted {
            let key = BlockKey { file, block };
            match in_flight.get(&key) {
                Some(receiver) => others.push((block, receiver.clone())),
                None => {
                    let (sender, receiver) = watch::channel(None);
                    in_flight.insert(key, receiver);
                    mine.push((key, sender));
                }
            }
        }
        (
            Claims {
                in_flight: &self.in_flight,
                claims: mine,
            },
            others,
        )
    }

    pub(crate) async fn fetch(
        &self,
        file: &FileRef,
        metadata: &SstMetadata,
        claims: Claims<'_>,
        blocks: &mut AHashMap<u32, Bytes>,
        counters: &ReadCounters,
        keep: Keep,
    ) -> Result<(), SstError> {
        if claims.claims.is_empty() {
            return Ok(());
        }
        // Neighbouring blocks are one range.
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (key, _) in &claims.claims {
            let start = u64::from(key.block) * self.block_bytes;
            let end = (start + self.block_bytes).min(file.bytes);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        self.stats.store_requests.add(ranges.len() as u64);
        let parts = match self.store.get_ranges(&file.path, &ranges).await {
            Ok(parts) => parts,
            Err(error) => return Err(self.explain(file, error).await),
        };
        let mut claimed = claims.claims.iter();
        for (range, part) in ranges.iter().zip(&parts) {
            if part.len() as u64 != range.end - range.start {
                return Err(self.damage(file, format!("bytes {range:?} are cut short")));
            }
            self.stats.store_bytes.add(part.len() as u64);
            counters.bytes_fetched.add(part.len() as u64);
            metadata
                .verify(range.start, part)
                .map_err(|what| self.damage(file, what))?;
            for chunk in part.chunks(self.block_bytes as usize) {
                let Some((key, sender)) = claimed.next() else {
                    break;
                };
                // Copied: a slice would keep its neighbours in memory after they were evicted.
                let bytes = Bytes::copy_from_slice(chunk);
                if keep == Keep::Everywhere {
                    self.memory.put(*key, bytes.clone(), &self.stats.memory);
                }
                match (&self.disk, keep) {
                    (Some(disk), Keep::Everywhere) => {
                        disk.put(*key, bytes.clone(), &self.stats);
                    }
                    (Some(disk), Keep::OnDisk) => {
                        disk.put_in_turn(*key, bytes.clone(), &self.stats).await;
                    }
                    _ => {}
                }
                let _ = sender.send(Some(bytes.clone()));
                blocks.insert(key.block, bytes);
            }
        }
        Ok(())
    }
}

/// Where what is fetched is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Nowhere,
    /// Not in memory.
    OnDisk,
    Everywhere,
}

/// Blocks that one reader fetches. Dropped early (an error, a cancelled query), those who wait
/// see the sender gone and fetch for themselves.
pub(crate) struct Claims<'a> {
    in_flight: &'a Mutex<InFlight>,
    claims: Vec<(BlockKey, watch::Sender<Option<Bytes>>)>,
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.in_flight.lock();
        for (key, _) in &self.claims {
            in_flight.remove(key);
        }
    }
}

fn assemble(range: &Range<u64>, block_bytes: u64, blocks: &AHashMap<u32, Bytes>) -> Bytes {
    if range.start == range.end {
        return Bytes::new();
    }
    let part = |block: u64| {
        let start = block * block_bytes;
        let bytes = blocks.get(&(block as u32)).cloned().unwrap_or_default();
        let from = range.start.max(start) - start;
        let to = (range.end.min(start + block_bytes) - start).min(bytes.len() as u64);
        bytes.slice(from.min(to) as usize..to as usize)
    };
    let (first, last) = (range.start / block_bytes, (range.end - 1) / block_bytes);
    if first == last {
        return part(first);
    }
    let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
    for block in first..=last {
        out.extend_from_slice(&part(block));
    }
    out.freeze()
}
