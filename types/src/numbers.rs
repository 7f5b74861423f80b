//! Numbers of the log, the manifests and the schemas. No bare `u64` crosses a function boundary.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number that follows this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A record's place in its shard's log. Rises; may have gaps (Kafka control records).
    Offset(u64)
);
number!(
    /// A record's number within one epoch, from 0, without gaps.
    Seq(u64)
);
number!(
    /// A manifest's number in its shard's chain.
    ManifestVersion(u64)
);
number!(
    /// A column's number in its table: never reused, survives a rename.
    ColumnId(u32)
);
number!(
    /// Raised by `TRUNCATE`: rows of an older incarnation are invisible.
    Incarnation(u64)
);
number!(
    /// Orders row versions of one key: `(base + offset) << 16 | row in record` (PROTOCOLS §3).
    RowVersion(u64)
);

impl RowVersion {
    /// The version of row `row` of the record at `offset`, on a shard with version base `base`.
    #[must_use]
    pub fn new(base: u64, offset: Offset, row: u16) -> Self {
        Self(((base + offset.0) << 16) | u64::from(row))
    }
}

/// One tenure of one leader: the term comes from meta with the assignment, the claim number is
/// raised by the holder alone. Compared in that order.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Given by meta; must exceed the newest manifest's.
    pub term: u64,
    /// Raised after every delivery failure.
    pub claim: u64,
}

impl Epoch {
    /// The claim number that closes a log for good: no holder of a term raises its number so far, so
    /// nothing but a higher term follows it, and a higher term has another log.
    pub const CLOSING_CLAIM: u64 = u64::MAX;

    /// Whether this claim said that another log took this one's place.
    #[must_use]
    pub fn closes_the_log(self) -> bool {
        self.claim == Self::CLOSING_CLAIM
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.claim)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
