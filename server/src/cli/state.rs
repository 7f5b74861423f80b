//! Files that the commands keep between runs.

use std::path::PathBuf;

/// `shoal/NAME` where the user's programs keep their state; `None`: nobody says where that is.
pub fn state_file(name: &str) -> Option<PathBuf> {
    let folder =
        variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))?;
    Some(folder.join("shoal").join(name))
}

/// A path from the environment; an empty variable counts as none.
pub fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}
