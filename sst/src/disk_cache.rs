//! The disk level of the byte cache: one file a block in a folder of its own.
//!
//! A file is `magic, length, crc32` and the bytes; it is written under a temporary name and
//! renamed, and what does not check is dropped, so a crash or a bad disk costs a miss, never
//! wrong bytes. Nothing is fsynced: losing a cache is harmless.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cache::{BlockKey, FileId, WeightedLru};
use crate::stats::SstStats;

const MAGIC: [u8; 4] = *b"SHB1";
const HEADER_BYTES: usize = 12;
/// Writes under way; more are skipped, so a slow disk never holds a reader back.
const WRITES_MAX: usize = 8;

/// Where the disk level is and how large it may get.
#[derive(Clone, Debug)]
pub struct DiskCacheOptions {
    /// A folder used for nothing else; made if missing.
    pub directory: PathBuf,
    /// Most bytes of blocks.
    pub bytes_max: usize,
}

pub(crate) struct DiskCache {
    directory: PathBuf,
    index: Mutex<WeightedLru<BlockKey, ()>>,
    writes: Arc<Semaphore>,
}

impl DiskCache {
    /// Opens the folder and takes over what an earlier process left.
    pub(crate) fn open(options: &DiskCacheOptions, stats: &SstStats) -> std::io::Result<Self> {
        std::fs::create_dir_all(&options.directory)?;
        let mut index = WeightedLru::new(options.bytes_max);
        for entry in std::fs::read_dir(&options.directory)? {
            let entry = entry?;
            let Some(key) = entry.file_name().to_str().and_then(parse_name) else {
                // Left over from a write that a crash cut short.
                let _ = std::fs::remove_file(entry.path());
                continue;
            };
            let bytes = entry.metadata()?.len() as usize;
            stats.disk.held(bytes as u64, 0);
            for (key, (), bytes) in index.put(key, (), bytes) {
                stats.disk.held(0, bytes as u64);
                let _ = std::fs::remove_file(options.directory.join(name(key)));
            }
        }
        Ok(Self {
            directory: options.directory.clone(),
            index: Mutex::new(index),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
        })
    }

    /// A block, if it is here and whole.
    pub(crate) async fn get(self: &Arc<Self>, key: BlockKey, stats: &SstStats) -> Option<Bytes> {
        self.index.lock().get(&key)?;
        let path = self.directory.join(name(key));
        let read = tokio::task::spawn_blocking(move || read_block(&path)).await;
        if let Ok(Some(block)) = read {
            return Some(block);
        }
        if let Some(((), bytes)) = self.index.lock().remove(&key) {
            stats.disk.held(0, bytes as u64);
        }
        None
    }

    /// Whether there is a block; does not count as its use.
    pub(crate) fn has(&self, key: BlockKey) -> bool {
        self.index.lock().has(&key)
    }

    /// Whether `bytes` more fit into nine tenths: the rest is for what readers bring.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let index = self.index.lock();
        index.weight() as u64 + bytes <= index.weight_max() as u64 / 10 * 9
    }

    /// Keeps a block, unless too many writes are under way.
    pub(crate) fn put(self: &Arc<Self>, key: BlockKey, block: Bytes, stats: &Arc<SstStats>) {
        if let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() {
            self.put_with(permit, key, block, stats);
        }
    }

    /// Keeps a block, after those that are being written.
    pub(crate) async fn put_in_turn(
        self: &Arc<Self>,
        key: BlockKey,
        block: Bytes,
        stats: &Arc<SstStats>,
    ) {
        if let Ok(permit) = Arc::clone(&self.writes).acquire_owned().await {
            self.put_with(permit, key, block, stats);
        }
    }

    fn put_with(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        key: BlockKey,
        block: Bytes,
        stats: &Arc<SstStats>,
    ) {
        let (cache, stats) = (Arc::clone(self), Arc::clone(stats));
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let bytes = block.len() + HEADER_BYTES;
            if write_block(&cache.directory, key, &block).is_err() {
                return;
            }
            let gone = cache.index.lock().put(key, (), bytes);
            stats.disk.held(bytes as u64, 0);
            for (old, (), bytes) in gone {
                stats.disk.held(0, bytes as u64);
                // The same key again: its file has just been replaced.
                if old != key {
                    stats.disk.evictions.add(1);
                    let _ = std::fs::remove_file(cache.directory.join(name(old)));
                }
            }
        });
    }
}

fn name(key: BlockKey) -> String {
    format!("{:032x}-{:08x}", key.file.0, key.block)
}

fn parse_name(name: &str) -> Option<BlockKey> {
    let (file, block) = name.split_once('-')?;
    (file.len() == 32 && block.len() == 8).then_some(())?;
    Some(BlockKey {
        file: FileId(u128::from_str_radix(file, 16).ok()?),
        block: u32::from_str_radix(block, 16).ok()?,
    })
}

fn read_block(path: &Path) -> Option<Bytes> {
    let bytes = Bytes::from(std::fs::read(path).ok()?);
    let (header, block) = (bytes.get(..HEADER_BYTES)?, bytes.slice(HEADER_BYTES..));
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?);
    let crc = u32::from_le_bytes(header[8..12].try_into().ok()?);
    (header[..4] == MAGIC && length as usize == block.len() && crc == crc32fast::hash(&block))
        .then_some(block)
}

fn write_block(directory: &Path, key: BlockKey, block: &[u8]) -> std::io::Result<()> {
    let name = name(key);
    let temporary = directory.join(format!("{name}.{}.tmp", ulid::Ulid::new()));
    let written = (|| {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(&MAGIC)?;
        file.write_all(&(block.len() as u32).to_le_bytes())?;
        file.write_all(&crc32fast::hash(block).to_le_bytes())?;
        file.write_all(block)?;
        std::fs::rename(&temporary, directory.join(&name))
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
