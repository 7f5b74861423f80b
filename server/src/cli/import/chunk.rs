//! Chunks: the unit in which an import is sent, acknowledged and resumed. Cutting is
//! deterministic, so that a second run cuts the same input at the same places.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::source::Source;
use crate::cli::CliError;

/// Part of every import's id: raise it when cutting changes, else a half-done import of an older
/// version would resume with chunks cut at other places.
pub const CUTTING_VERSION: u32 = 1;
/// Decoded bytes of a line-protocol chunk.
const LINES_BYTES: usize = 4 << 20;
/// A longer line cannot be sent.
const LINE_BYTES_MAX: usize = 32 << 20;

/// A line or row that cannot be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Line (or row) of the input, from 1.
    pub line: u64,
    /// Column, from 1; 0: the whole line.
    pub column: u64,
    /// What is wrong.
    pub reason: String,
}

/// A piece of the input.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Its place, from 0.
    pub number: u64,
    /// What is sent; empty: every row of it was bad.
    pub body: Bytes,
    /// Line of the input at which it begins, from 1.
    pub first_line: u64,
    /// Decoded bytes of input.
    pub input_bytes: u64,
    /// Stored bytes of the input consumed when it was cut.
    pub consumed: u64,
    /// Bad rows found before sending, at most [`BAD_SHOWN_MAX`].
    pub bad: Vec<BadLine>,
    /// Number of bad rows found before sending.
    pub bad_count: u64,
}

/// Bad lines shown in all.
pub const BAD_SHOWN_MAX: usize = 100;

/// Cuts an input into chunks.
pub trait Chunks: Send {
    /// The next chunk; `None` at the end.
    ///
    /// # Errors
    /// The input cannot be read.
    fn next(&mut self) -> Result<Option<Chunk>, CliError>;
}

/// Chunks of line protocol: whole lines, about 4 MiB.
pub struct LineChunks {
    name: String,
    input: Box<dyn Read + Send>,
    consumed: Arc<AtomicU64>,
    /// The beginning of a line whose end was not read yet.
    rest: Vec<u8>,
    number: u64,
    line: u64,
    ended: bool,
}

impl LineChunks {
    /// Opens the input.
    pub fn open(source: &Source) -> Result<Self, CliError> {
        let (input, consumed) = source.open()?;
        Ok(Self {
            name: source.name(),
            input,
            consumed,
            rest: Vec::new(),
            number: 0,
            line: 1,
            ended: false,
        })
    }
}

impl Chunks for LineChunks {
    fn next(&mut self) -> Result<Option<Chunk>, CliError> {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut wanted = LINES_BYTES;
        loop {
            if !self.ended {
                self.ended = fill(&mut self.input, &mut bytes, wanted)
                    .map_err(|e| CliError::failed(format!("cannot read {}: {e}", self.name)))?;
            }
            if self.ended {
                break;
            }
            if let Some(end) = memchr::memrchr(b'\n', &bytes) {
                self.rest = bytes.split_off(end + 1);
                break;
            }
            wanted *= 2;
            if wanted > LINE_BYTES_MAX {
                return Err(CliError::failed(format!(
                    "{}: line {} is longer than {LINE_BYTES_MAX} bytes; is this line protocol?",
                    self.name, self.line
                )));
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let chunk = Chunk {
            number: self.number,
            first_line: self.line,
            input_bytes: bytes.len() as u64,
            consumed: self.consumed.load(Ordering::Relaxed),
            bad: Vec::new(),
            bad_count: 0,
            body: Bytes::new(),
        };
        self.number += 1;
        self.line += memchr::memchr_iter(b'\n', &bytes).count() as u64;
        Ok(Some(Chunk {
            body: bytes.into(),
            ..chunk
        }))
    }
}

/// Reads until `bytes` holds `wanted` bytes; `true`: the input ended.
fn fill(input: &mut dyn Read, bytes: &mut Vec<u8>, wanted: usize) -> io::Result<bool> {
    let mut filled = bytes.len();
    bytes.resize(wanted.max(filled), 0);
    while filled < wanted {
        match input.read(&mut bytes[filled..]) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok(true);
            }
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_whole_lines_know_their_line_numbers_and_lose_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("x.lp");
        let mut text = String::new();
        for i in 0..200_000 {
            text.push_str(&format!("cpu,host=h{i} usage={i}i {i}\n"));
        }
        text.push_str("cpu last=1");
        std::fs::write(&path, &text).expect("write");
        let source = Source::new(path.to_str().expect("utf-8"));
        let mut chunks = LineChunks::open(&source).expect("open");
        let (mut all, mut line, mut numbers) = (Vec::new(), 1, Vec::new());
        while let Some(chunk) = chunks.next().expect("chunk") {
            assert_eq!(chunk.first_line, line);
            line += memchr::memchr_iter(b'\n', &chunk.body).count() as u64;
            numbers.push(chunk.number);
            all.extend_from_slice(&chunk.body);
        }
        assert_eq!(all, text.as_bytes());
        assert!(numbers.len() > 1);
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64));
    }
}
