//! Where a file's bytes go while it is written: parts that can be uploaded before the end, and
//! the checksums of all that went through.

use bytes::Bytes;

use crate::footer::CHECKSUM_BLOCK_BYTES;

/// Bytes at which a multipart upload begins and that each part has at least (S3 asks for 5 MiB).
pub(crate) const PART_BYTES: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Sink {
    buffer: Vec<u8>,
    /// Bytes that were taken away for upload.
    taken: u64,
    checksums: Vec<u32>,
    hasher: crc32fast::Hasher,
    in_block: usize,
    /// CRC of everything since [`Sink::begin_tail`].
    tail: Option<(u64, crc32fast::Hasher)>,
}

impl Sink {
    pub(crate) fn new() -> Self {
        Self {
            buffer: Vec::new(),
            taken: 0,
            checksums: Vec::new(),
            hasher: crc32fast::Hasher::new(),
            in_block: 0,
            tail: None,
        }
    }

    /// Bytes that went through.
    pub(crate) fn written(&self) -> u64 {
        self.taken + self.buffer.len() as u64
    }

    /// A part that is large enough to upload.
    pub(crate) fn take_part(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= PART_BYTES).then(|| self.take_rest())
    }

    /// All that is left.
    pub(crate) fn take_rest(&mut self) -> Bytes {
        let part = std::mem::take(&mut self.buffer);
        self.taken += part.len() as u64;
        Bytes::from(part)
    }

    /// Ends the part covered by block checksums and returns them.
    pub(crate) fn begin_tail(&mut self) -> Vec<u32> {
        if self.in_block > 0 {
            self.close_block();
        }
        self.tail = Some((self.written(), crc32fast::Hasher::new()));
        std::mem::take(&mut self.checksums)
    }

    /// Length and CRC of the tail.
    pub(crate) fn tail(&self) -> (u64, u32) {
        match &self.tail {
            Some((start, hasher)) => (self.written() - start, hasher.clone().finalize()),
            None => (0, 0),
        }
    }

    fn close_block(&mut self) {
        let hasher = std::mem::take(&mut self.hasher);
        self.checksums.push(hasher.finalize());
        self.in_block = 0;
    }
}

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some((_, hasher)) = &mut self.tail {
            hasher.update(bytes);
        } else {
            let mut rest = bytes;
            while !rest.is_empty() {
                let take = rest.len().min(CHECKSUM_BLOCK_BYTES - self.in_block);
                self.hasher.update(&rest[..take]);
                self.in_block += take;
                rest = &rest[take..];
                if self.in_block == CHECKSUM_BLOCK_BYTES {
                    self.close_block();
                }
            }
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
