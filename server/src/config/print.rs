//! Prints the configuration as commented TOML.

use std::fmt::Write as _;

use super::{Config, KEYS};

/// Every key with its default, unit and meaning; the text parses back to the defaults.
#[must_use]
pub fn defaults_toml() -> String {
    let defaults = Config::default();
    let mut out = String::from(
        "# ShoalDB configuration. A flag (--http-addr) goes before a variable (SHOAL_HTTP_ADDR),\n\
         # which goes before this file (--config FILE), which goes before the default.\n",
    );
    let mut section = "";
    for key in KEYS {
        let (here, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if here != section {
            section = here;
            let _ = writeln!(out, "\n[{section}]");
        }
        for line in wrapped(key.meaning, 96) {
            let _ = writeln!(out, "# {line}");
        }
        let _ = writeln!(out, "# Unit: {}. Variable: {}.", key.unit, key.variable());
        let _ = writeln!(out, "{name} = {}", (key.get)(&defaults));
    }
    out
}

/// Breaks a text at spaces into lines of at most `width` bytes (a longer word stays whole).
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("begins with one line");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
