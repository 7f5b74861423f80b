//! Where the bytes come from: files or standard input, compressed or not.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::ValueEnum;
use flate2::read::MultiGzDecoder;
use xxhash_rust::xxh3::Xxh3;

use crate::cli::CliError;

/// Form of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// InfluxDB line protocol.
    Lp,
    /// CSV with a header line.
    Csv,
    /// Apache Parquet.
    Parquet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One input.
#[derive(Clone, Debug)]
pub struct Source {
    /// `None`: standard input.
    path: Option<PathBuf>,
    compression: Compression,
    /// What the name says, without the compression's ending.
    format: Option<InputFormat>,
    stem: String,
}

/// Bytes at each end of a file that are part of its identity.
const FINGERPRINT_BYTES: u64 = 1 << 20;
/// How gzip and zstd begin: with bytes that no text and no Parquet file begins with.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const MAGIC_BYTES: u64 = 4;

impl Source {
    /// The input that an argument names; `-` is standard input.
    pub fn new(argument: &str) -> Self {
        if argument == "-" {
            return Self {
                path: None,
                compression: Compression::None,
                format: None,
                stem: String::new(),
            };
        }
        let path = PathBuf::from(argument);
        let mut name = path
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let mut compression = Compression::None;
        for (ending, kind) in [
            (".gz", Compression::Gzip),
            (".gzip", Compression::Gzip),
            (".zst", Compression::Zstd),
            (".zstd", Compression::Zstd),
        ] {
            if let Some(shorter) = name.strip_suffix(ending) {
                name = shorter.to_owned();
                compression = kind;
                break;
            }
        }
        let (stem, ending) = name.rsplit_once('.').unwrap_or((&name, ""));
        let format = match ending.to_ascii_lowercase().as_str() {
            "lp" | "line" | "influx" | "txt" => Some(InputFormat::Lp),
            "csv" => Some(InputFormat::Csv),
            "parquet" | "pq" => Some(InputFormat::Parquet),
            _ => None,
        };
        Self {
            stem: stem.to_owned(),
            path: Some(path),
            compression,
            format,
        }
    }

    /// The input's name for people.
    pub fn name(&self) -> String {
        self.path
            .as_ref()
            .map_or_else(|| "standard input".into(), |p| p.display().to_string())
    }

    /// The file name without endings: what a table is called if nobody says.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// The form that the name tells.
    pub fn format(&self) -> Option<InputFormat> {
        self.format
    }

    /// Whether it is standard input.
    pub fn is_stdin(&self) -> bool {
        self.path.is_none()
    }

    /// Where it is; `None` for standard input.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Size as stored, in bytes; `None` for standard input.
    pub fn stored_bytes(&self) -> Result<Option<u64>, CliError> {
        self.path
            .as_deref()
            .map(|path| {
                std::fs::metadata(path)
                    .map(|m| m.len())
                    .map_err(|e| failed(path, &e))
            })
            .transpose()
    }

    /// Adds the content's identity: size, first and last MiB. The name is no part of it, so a
    /// file that was moved resumes too.
    pub fn fingerprint(&self, hash: &mut Xxh3) -> Result<(), CliError> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let read = || -> io::Result<(u64, Vec<u8>)> {
            let mut file = File::open(path)?;
            let size = file.metadata()?.len();
            let mut bytes = Vec::new();
            file.by_ref()
                .take(FINGERPRINT_BYTES)
                .read_to_end(&mut bytes)?;
            if size > FINGERPRINT_BYTES {
                file.seek(SeekFrom::Start(size.saturating_sub(FINGERPRINT_BYTES)))?;
                file.take(FINGERPRINT_BYTES).read_to_end(&mut bytes)?;
            }
            Ok((size, bytes))
        };
        let (size, bytes) = read().map_err(|e| failed(path, &e))?;
        hash.update(&size.to_le_bytes());
        hash.update(&bytes);
        Ok(())
    }

    /// The decoded bytes, and a counter of the stored bytes consumed.
    pub fn open(&self) -> Result<(Box<dyn Read + Send>, Arc<AtomicU64>), CliError> {
        let consumed = Arc::new(AtomicU64::new(0));
        let raw: Box<dyn Read + Send> = match &self.path {
            None => Box::new(io::stdin()),
            Some(path) => Box::new(File::open(path).map_err(|e| failed(path, &e))?),
        };
        let mut raw = Counted {
            inner: raw,
            consumed: Arc::clone(&consumed),
        };
        let mut begin = Vec::new();
        (&mut raw)
            .take(MAGIC_BYTES)
            .read_to_end(&mut begin)
            .map_err(|e| CliError::failed(format!("{}: {e}", self.name())))?;
        // Standard input has no name that tells, and names may be wrong.
        let compression = match self.compression {
            Compression::None if begin.starts_with(GZIP_MAGIC) => Compression::Gzip,
            Compression::None if begin.starts_with(ZSTD_MAGIC) => Compression::Zstd,
            named => named,
        };
        let counted = io::BufReader::with_capacity(256 << 10, io::Cursor::new(begin).chain(raw));
        let decoded: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(counted),
            Compression::Gzip => Box::new(MultiGzDecoder::new(counted)),
            Compression::Zstd => Box::new(
                zstd::Decoder::with_buffer(counted)
                    .map_err(|e| CliError::failed(format!("{}: {e}", self.name())))?,
            ),
        };
        Ok((decoded, consumed))
    }

    /// A file that can be read at any place: the file itself, or a decoded copy that goes away
    /// when it is closed.
    pub fn open_seekable(&self) -> Result<File, CliError> {
        if let (Some(path), Compression::None) = (&self.path, self.compression) {
            return File::open(path).map_err(|e| failed(path, &e));
        }
        let (mut decoded, _) = self.open()?;
        let mut copy = tempfile::tempfile()?;
        io::copy(&mut decoded, &mut copy)
            .map_err(|e| CliError::failed(format!("{}: {e}", self.name())))?;
        copy.seek(SeekFrom::Start(0))?;
        Ok(copy)
    }
}

fn failed(path: &Path, error: &io::Error) -> CliError {
    CliError::failed(format!("cannot read {}: {error}", path.display()))
}

struct Counted {
    inner: Box<dyn Read + Send>,
    consumed: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.consumed.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
