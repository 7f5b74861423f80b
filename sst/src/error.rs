//! What can go wrong with files.

use shoal_types::Retry;

/// A failure to read or write an object.
#[derive(Debug, thiserror::Error)]
pub enum SstError {
    /// The object is not there (collected, or never written): re-plan on a newer view.
    #[error("object {path} does not exist")]
    NotFound {
        /// Object path.
        path: String,
    },
    /// The object's bytes are not what was written.
    #[error("object {path} is damaged: {what}")]
    Damaged {
        /// Object path.
        path: String,
        /// What was found.
        what: String,
    },
    /// The store did not answer or refused.
    #[error("object store, {path}: {source}")]
    Store {
        /// Object path.
        path: String,
        /// What it said.
        source: object_store::Error,
    },
    /// No space left for the object; nothing was published.
    #[error("no space left to write {path}")]
    NoSpace {
        /// Object path.
        path: String,
    },
    /// Encoding failed: a defect of ours.
    #[error("cannot encode {path}: {what}")]
    Encode {
        /// Object path.
        path: String,
        /// What failed.
        what: String,
    },
}

impl SstError {
    /// The error of an object store for `path`, told apart by what the caller can do.
    #[must_use]
    pub fn from_store(path: &object_store::path::Path, source: object_store::Error) -> Self {
        let path = path.to_string();
        if matches!(source, object_store::Error::NotFound { .. }) {
            return Self::NotFound { path };
        }
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && matches!(
                    io.kind(),
                    std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
                )
            {
                return Self::NoSpace { path };
            }
            cause = error.source();
        }
        Self::Store { path, source }
    }

    /// What the caller may do.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Damaged { .. } | Self::Encode { .. } => Retry::Never,
            _ => Retry::Safe,
        }
    }
}
