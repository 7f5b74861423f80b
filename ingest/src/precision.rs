//! The unit of a request's timestamps.

use std::str::FromStr;

/// What one step of a line's timestamp means (`?precision=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// `ns`, `n`; what InfluxDB assumes.
    #[default]
    Nanoseconds,
    /// `us`, `u`, `µs`, `µ`
    Microseconds,
    /// `ms`
    Milliseconds,
    /// `s`
    Seconds,
    /// `m` (InfluxDB 1 only)
    Minutes,
    /// `h` (InfluxDB 1 only)
    Hours,
}

/// A precision that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("precision {0:?} is not one of ns, us, ms, s (or n, u, m, h)")]
pub struct PrecisionError(pub String);

impl Precision {
    /// Nanoseconds of one step.
    #[must_use]
    pub fn nanoseconds(self) -> i64 {
        match self {
            Self::Nanoseconds => 1,
            Self::Microseconds => 1_000,
            Self::Milliseconds => 1_000_000,
            Self::Seconds => 1_000_000_000,
            Self::Minutes => 60_000_000_000,
            Self::Hours => 3_600_000_000_000,
        }
    }
}

impl FromStr for Precision {
    type Err = PrecisionError;

    fn from_str(text: &str) -> Result<Self, PrecisionError> {
        Ok(match text {
            "ns" | "n" => Self::Nanoseconds,
            // Both code points that look like the micro sign (U+00B5 and U+03BC).
            "us" | "u" | "\u{b5}s" | "\u{b5}" | "\u{3bc}s" | "\u{3bc}" => Self::Microseconds,
            "ms" => Self::Milliseconds,
            "s" => Self::Seconds,
            "m" => Self::Minutes,
            "h" => Self::Hours,
            other => return Err(PrecisionError(other.chars().take(32).collect())),
        })
    }
}
