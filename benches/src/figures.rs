//! Figures and the bars they are held against: one JSON line a figure (DESIGN §7).

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::BenchError;

/// One measured number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// `part.what`, also the key in `bars.toml`.
    pub name: String,
    /// The number, in `unit`.
    pub value: f64,
    /// `rows/s`, `ms`, `MiB`, …
    pub unit: &'static str,
    /// The number it must reach; `None`: it is only shown.
    pub bar: Option<f64>,
    /// Whether it does; true without a bar.
    pub pass: bool,
}

/// The bars, by figure name.
#[derive(Clone, Debug, Deserialize)]
pub struct Bars {
    bars: BTreeMap<String, Bar>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bar {
    min: Option<f64>,
    max: Option<f64>,
}

impl Bars {
    /// The bars that this program was built with.
    ///
    /// # Errors
    /// [`BenchError::Bars`] when they are malformed.
    pub fn built_in() -> Result<Self, BenchError> {
        Self::parse(include_str!("../bars.toml"))
    }

    /// Bars from a file.
    ///
    /// # Errors
    /// [`BenchError::File`] or [`BenchError::Bars`].
    pub fn read(path: &Path) -> Result<Self, BenchError> {
        Self::parse(&std::fs::read_to_string(path).map_err(|e| BenchError::file(path, e))?)
    }

    fn parse(text: &str) -> Result<Self, BenchError> {
        toml::from_str(text).map_err(|e| BenchError::Bars(e.to_string()))
    }

    /// Holds a number against its bar.
    #[must_use]
    pub fn figure(&self, name: &str, value: f64, unit: &'static str) -> Figure {
        let bar = self.bars.get(name);
        let pass = bar.is_none_or(|bar| {
            // A number that is not one passes no bar.
            bar.min.is_none_or(|min| value >= min) && bar.max.is_none_or(|max| value <= max)
        });
        Figure {
            name: name.to_owned(),
            value,
            unit,
            bar: bar.and_then(|b| b.min.or(b.max)),
            pass,
        }
    }
}

/// Prints figures to standard output and remembers whether one missed its bar.
pub(crate) struct Report {
    bars: Bars,
    missed: bool,
}

impl Report {
    pub(crate) fn new(bars: Bars) -> Self {
        Self {
            bars,
            missed: false,
        }
    }

    pub(crate) fn print(&mut self, name: &str, value: f64, unit: &'static str) {
        let rounded = (value * 1000.0).round() / 1000.0;
        let figure = self.bars.figure(name, rounded, unit);
        self.missed |= !figure.pass;
        let line = serde_json::to_string(&figure).expect("a figure has only plain fields");
        println!("{line}");
    }

    pub(crate) fn all_passed(&self) -> bool {
        !self.missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_passes_only_on_the_right_side_of_its_bar() {
        let bars = Bars::built_in().expect("bars.toml");
        assert!(bars.figure("ingest.rows_per_s", 150_000.0, "rows/s").pass);
        assert!(!bars.figure("ingest.rows_per_s", 149_999.0, "rows/s").pass);
        assert!(!bars.figure("ingest.rows_per_s", f64::NAN, "rows/s").pass);
        assert!(!bars.figure("query.lastpoint.ms", 100.1, "ms").pass);
        assert_eq!(
            bars.figure("query.lastpoint.ms", 1.0, "ms").bar,
            Some(100.0)
        );
        let shown_only = bars.figure("ingest.mb_per_s", 0.0, "MB/s");
        assert!(shown_only.pass && shown_only.bar.is_none());
    }
}
