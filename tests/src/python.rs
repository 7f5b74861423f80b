//! Runs the Python halves of tests: independent readers and other people's clients.

use std::path::PathBuf;
use std::process::Command;

use crate::root;

/// Runs `tests/python/SCRIPT` with the packages of `scripts/setup --tests`; its standard output.
///
/// # Panics
/// When the packages are missing or the script fails; the message has its output.
pub fn python(script: &str, arguments: &[&str]) -> String {
    let interpreter = std::env::var_os("SHOAL_PYTHON")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let cache = std::env::var_os("SHOAL_CACHE")
                .map(PathBuf::from)
                .unwrap_or_else(|| {
                    let home = std::env::var_os("HOME").expect("HOME is set");
                    PathBuf::from(home).join(".cache/shoal")
                });
            cache.join("venv/bin/python")
        });
    assert!(
        interpreter.is_file(),
        "{} is missing: run `scripts/setup --tests`",
        interpreter.display()
    );
    let path = root().join("tests/python").join(script);
    let output = Command::new(interpreter)
        .arg(&path)
        .args(arguments)
        .env("NO_PROXY", "127.0.0.1,localhost")
        .output()
        .expect("start Python");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{script} failed with {}:\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}
