//! What this user imported last from which path into what, so that a file that has changed since
//! is told before its rows are loaded a second time. Only a hint: the server knows an import by
//! its content, and is asked whether it has the one noted here. So the notes may be lost, or be of
//! another server, without harm.
//!
//! A text file of lines `PLACE IMPORT PATH`; of a place the last line counts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use xxhash_rust::xxh3::Xxh3;

use crate::cli::state::state_file;

/// Lines kept; at twice as many the older half goes.
const LINES_MAX: usize = 10_000;

/// The notes of this user.
pub struct Notes {
    file: Option<PathBuf>,
}

/// A path and what it is loaded into.
pub struct Place {
    path: String,
    hash: String,
}

impl Place {
    /// Of a file; `target` names all that tells one table from another.
    ///
    /// # Errors
    /// The file is not there.
    pub fn new(path: &std::path::Path, target: &[&str]) -> io::Result<Self> {
        let path = fs::canonicalize(path)?.to_string_lossy().into_owned();
        let mut hash = Xxh3::new();
        for part in [path.as_str()].iter().chain(target) {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        Ok(Self {
            hash: format!("{:032x}", hash.digest128()),
            path: path.replace('\n', " "),
        })
    }
}

impl Notes {
    /// In the user's state folder.
    pub fn of_user() -> Self {
        Self {
            file: state_file("imports"),
        }
    }

    /// The import noted last for a place.
    pub fn last(&self, place: &Place) -> Option<String> {
        let text = fs::read_to_string(self.file.as_ref()?).ok()?;
        let line = text.lines().rev().find(|l| l.starts_with(&place.hash))?;
        line.split(' ').nth(1).map(str::to_owned)
    }

    /// Notes an import. That it cannot be noted is no reason not to load it.
    pub fn note(&self, place: &Place, import: &str) {
        if let Some(file) = &self.file
            && let Err(error) = append(file, &format!("{} {import} {}\n", place.hash, place.path))
        {
            tracing::debug!(%error, path = %file.display(), "cannot note the import");
        }
    }
}

fn append(file: &PathBuf, line: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = fs::read_to_string(file).unwrap_or_default();
    let lines = text.lines().count();
    if lines < 2 * LINES_MAX {
        let mut file = File::options().create(true).append(true).open(file)?;
        return file.write_all(line.as_bytes());
    }
    let aside = file.with_extension("new");
    let mut kept: String = text
        .lines()
        .skip(lines - LINES_MAX)
        .flat_map(|l| [l, "\n"])
        .collect();
    kept.push_str(line);
    fs::write(&aside, kept)?;
    fs::rename(aside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_import_of_a_place_is_found_and_the_file_stays_small() {
        let dir = tempfile::tempdir().expect("tempdir");
        let notes = Notes {
            file: Some(dir.path().join("state/imports")),
        };
        let data = dir.path().join("x.csv");
        fs::write(&data, "a").expect("write");
        let place = Place::new(&data, &["public", "t"]).expect("place");
        let other = Place::new(&data, &["public", "u"]).expect("place");
        assert_eq!(notes.last(&place), None);
        notes.note(&place, "one");
        notes.note(&other, "other");
        notes.note(&place, "two");
        assert_eq!(notes.last(&place).as_deref(), Some("two"));
        assert_eq!(notes.last(&other).as_deref(), Some("other"));
        let file = notes.file.as_ref().expect("file");
        let many = format!("{} n p\n", place.hash).repeat(2 * LINES_MAX);
        fs::write(file, many).expect("write");
        notes.note(&other, "kept");
        let lines = fs::read_to_string(file).expect("read").lines().count();
        assert_eq!(lines, LINES_MAX + 1);
        assert_eq!(notes.last(&other).as_deref(), Some("kept"));
    }
}
