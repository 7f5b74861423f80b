//! Disk faults on demand, per log folder, for the tests in this crate.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// What goes wrong in a folder.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    /// This many bytes find room, then writes fail with ENOSPC.
    pub(crate) bytes_left: Option<usize>,
    /// This many syncs of batches fail.
    pub(crate) failing_syncs: u32,
    /// Stop without marking a clean end, as a killed process does.
    pub(crate) no_clean_end: bool,
}

static FAULTS: Mutex<Option<HashMap<PathBuf, Faults>>> = Mutex::new(None);

pub(crate) fn set(dir: &Path, faults: Faults) {
    let mut all = FAULTS.lock();
    all.get_or_insert_default().insert(dir.to_owned(), faults);
}

fn with<T: Default>(dir: &Path, ask: impl FnOnce(&mut Faults) -> T) -> T {
    let mut all = FAULTS.lock();
    let faults = all.as_mut().and_then(|all| all.get_mut(dir));
    faults.map_or_else(T::default, ask)
}

/// How many of `wanted` bytes the disk takes now.
pub(crate) fn room(dir: &Path, wanted: usize) -> usize {
    let mut room = wanted;
    with(dir, |faults| {
        if let Some(left) = &mut faults.bytes_left {
            room = wanted.min(*left);
            *left -= room;
        }
    });
    room
}

pub(crate) fn before_sync(dir: &Path) -> io::Result<()> {
    let fails = with(dir, |faults| {
        let fails = faults.failing_syncs > 0;
        faults.failing_syncs = faults.failing_syncs.saturating_sub(1);
        fails
    });
    if fails {
        return Err(io::Error::other("simulated"));
    }
    Ok(())
}

pub(crate) fn no_clean_end(dir: &Path) -> bool {
    with(dir, |faults| faults.no_clean_end)
}
