//! What a caller may do after an error. Part of every public error type (STYLE).

use serde::{Deserialize, Serialize};

/// Whether the failed request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// It took no effect; send it again.
    Safe,
    /// It may have taken effect: send it again only with the same write id, or look first.
    Unknown,
    /// It took no effect and will fail again until the caller changes something.
    Never,
}

impl Retry {
    /// The word used in JSON errors.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Unknown => "unknown",
            Self::Never => "never",
        }
    }
}
