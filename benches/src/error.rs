//! What can go wrong while measuring.

/// Why a benchmark stopped.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The server cannot be reached or broke off.
    #[error("{url}: {source}")]
    Http {
        /// Where the request went.
        url: String,
        /// What the client saw.
        source: reqwest::Error,
    },
    /// The server refused a request.
    #[error("{url} answered {status}: {body}")]
    Refused {
        /// Where the request went.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer.
        body: String,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// `bars.toml` is malformed.
    #[error("bars: {0}")]
    Bars(String),
}

/// How much of a refusal's body is worth showing.
const BODY_CHARS_MAX: usize = 600;

impl BenchError {
    pub(crate) fn refused(url: &str, status: u16, body: &[u8]) -> Self {
        Self::Refused {
            url: url.to_owned(),
            status,
            body: String::from_utf8_lossy(body)
                .chars()
                .take(BODY_CHARS_MAX)
                .collect(),
        }
    }

    pub(crate) fn file(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::File {
            path: path.display().to_string(),
            source,
        }
    }
}
