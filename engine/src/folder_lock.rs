//! One process a data folder: the operating system's lock, which ends with the process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::EngineError;

/// The lock on a data folder; released when dropped or when the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] naming the process that holds it, if it can be known.
    pub fn take(data_dir: &Path) -> Result<Self, EngineError> {
        let path = data_dir.join("LOCK");
        let io = |e: std::io::Error| EngineError::Invalid(format!("{}: {e}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Best effort: the message is useful without it.
                let _ = file.read_to_string(&mut holder);
                let pid = holder.trim();
                let who = if pid.is_empty() {
                    "another process".to_owned()
                } else {
                    format!("process {pid}")
                };
                return Err(EngineError::Invalid(format!(
                    "the data folder {} is in use by {who}; stop it, or use another --data-dir",
                    data_dir.display()
                )));
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        // The pid is a hint for the message above. A full disk must not keep the database down.
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "cannot note the process id");
        }
        Ok(Self { _file: file })
    }
}
