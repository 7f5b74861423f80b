//! Harness of the whole-system tests: real `shoal` processes on free ports and folders of their
//! own, a client, and a ledger of what was acknowledged. `tests/system/` holds the tests.
//!
//! No test asserts how long something takes: a noisy machine must not break one. Waits have
//! limits only so that a hang ends with the server's log instead of silence.

#![warn(missing_docs)]

mod client;
mod cluster;
mod etcd;
mod ledger;
mod network;
mod process;
mod python;

pub use client::{Answer, Client, Failed, Failure};
pub use cluster::{Cluster, Members, Stack};
pub use etcd::EtcdMember;
pub use ledger::{Ledger, Outcome};
pub use network::{Host, Network, Way};
pub use process::{Server, shoal_bin, shoal_command};
pub use python::python;

use std::path::{Path, PathBuf};

/// The root of the checkout: the one that the tests run for. A cache that several checkouts share
/// may hold a program that was built in another one.
#[must_use]
pub fn root() -> PathBuf {
    let built_in = env!("CARGO_MANIFEST_DIR").into();
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(built_in);
    Path::new(&folder)
        .parent()
        .expect("tests/ is in the checkout")
        .to_path_buf()
}

/// The folder of shared sample data, if this machine has it; says so when it has not.
#[must_use]
pub fn shared_data(test: &str) -> Option<PathBuf> {
    let folder = root().join("../shared/data");
    if folder.is_dir() {
        return folder.canonicalize().ok();
    }
    eprintln!("SKIPPED {test}: there is no ../shared/data on this machine");
    None
}

/// All files below a folder whose path contains `part`, sorted.
#[must_use]
pub fn files_below(folder: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        // A folder may vanish while the server collects garbage.
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains(part) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
