//! Identifiers. All are 128 bit and never re-issued, so that a meta store restored from a backup
//! cannot hand out an id twice (PROTOCOLS §6).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;
use uuid::Uuid;

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Ulid);

        impl $name {
            /// A fresh id: the time in milliseconds, then 80 random bits.
            #[must_use]
            pub fn generate() -> Self {
                Self(Ulid::new())
            }

            /// The 16 bytes in big-endian order (sorts like the id).
            #[must_use]
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_bytes()
            }

            /// The id that [`Self::to_bytes`] wrote.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Ulid::from_bytes(bytes))
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

        impl FromStr for $name {
            type Err = ulid::DecodeError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Ulid::from_string(text).map(Self)
            }
        }
    };
}

ulid_id!(
    /// The unit of scheduling: one log, one manifest chain, many partitions of many tables.
    ShardId
);
ulid_id!(
    /// A table, for its whole life (a dropped and re-created name gets a new id).
    TableId
);
ulid_id!(
    /// A part of a table that lives on one shard at a time.
    PartitionId
);
ulid_id!(
    /// One log of a shard among all that it ever had: never re-issued, so that the name of a log
    /// that is gone is not met again.
    LogId
);

impl LogId {
    /// The log of a backend that keeps one log a shard and needs no name for it.
    pub const SOLE: Self = Self(Ulid::nil());
}

ulid_id!(
    /// A split, merge or recut of shards: what its records have in common, so that it is decided
    /// once.
    ProcedureId
);
ulid_id!(
    /// A process that holds replicas, plans queries or schedules.
    NodeId
);

/// Who writes in an epoch: a fresh UUID for every open of a shard as leader.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WriterId(pub Uuid);

impl WriterId {
    /// A fresh writer id (UUIDv4).
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A client's name for one write (UUIDv7 or ULID): a retry with the same id is never applied
/// twice. Both forms carry their creation time in the top 48 bits (RFC 9562 §5.7; ULID spec).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WriteId(pub u128);

impl WriteId {
    /// Milliseconds since the Unix epoch at which the client made this id.
    #[must_use]
    pub fn created_ms(self) -> u64 {
        (self.0 >> 80) as u64
    }
}

impl FromStr for WriteId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(uuid) = Uuid::parse_str(text) {
            return if uuid.get_version_num() == 7 {
                Ok(Self(uuid.as_u128()))
            } else {
                Err(format!(
                    "write id {text:?} is a UUIDv{}; send a UUIDv7 or a ULID, whose time bounds the dedupe window",
                    uuid.get_version_num()
                ))
            };
        }
        let ulid = Ulid::from_string(text).ok().map(|u| Self(u.0));
        // 26 digits of 5 bits are 130: the first digit has three (ULID spec, "overflow errors").
        let fits = text.starts_with(|c: char| c.is_ascii_digit() && c < '8');
        ulid.filter(|_| fits)
            .ok_or_else(|| format!("write id {text:?} is neither a UUIDv7 nor a ULID"))
    }
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ulid(self.0).fmt(f)
    }
}

impl fmt::Debug for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_id_takes_uuid_v7_and_ulid_and_refuses_v4() {
        let v7 = "018bcfe5-6800-7a3c-9d2b-3f1c2b7a9e10";
        let id: WriteId = v7.parse().expect("v7");
        assert_eq!(id.created_ms(), 0x018b_cfe5_6800);
        let ulid: WriteId = "01HF7YAT00YB6BTT2PM2X0R0WH".parse().expect("ulid");
        assert!(ulid.created_ms() > 0);
        assert!(Uuid::new_v4().to_string().parse::<WriteId>().is_err());
        assert!("nonsense".parse::<WriteId>().is_err());
        let most = format!("7{}", "Z".repeat(25));
        assert_eq!(most.parse::<WriteId>(), Ok(WriteId(u128::MAX)));
        let beyond = format!("8{}", "Z".repeat(25));
        assert!(beyond.parse::<WriteId>().is_err());
    }
}
