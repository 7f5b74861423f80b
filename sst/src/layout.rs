//! Names of objects: `{prefix}/{cluster}/shard/{shard}/manifest/{version:020}` and
//! `{prefix}/{cluster}/table/{table}/{partition}/{ulid}-{shard}-{term}.parquet`.

use object_store::path::Path;
use shoal_types::{ManifestVersion, PartitionId, ShardId, TableId};

/// Makes and reads object paths of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectLayout {
    root: String,
}

/// What the name of an SST says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SstName {
    /// Unique for ever; its time is when the file was begun.
    pub ulid: ulid::Ulid,
    /// The shard that wrote it.
    pub shard: ShardId,
    /// The term of the leader that wrote it.
    pub term: u64,
}

impl ObjectLayout {
    /// Paths below `prefix` (may be empty) for the cluster named `cluster`.
    #[must_use]
    pub fn new(prefix: &str, cluster: &str) -> Self {
        let prefix = prefix.trim_matches('/');
        let root = if prefix.is_empty() {
            cluster.to_owned()
        } else {
            format!("{prefix}/{cluster}")
        };
        Self { root }
    }

    /// The folder of a shard's manifests.
    #[must_use]
    pub fn manifests(&self, shard: ShardId) -> Path {
        Path::from(format!("{}/shard/{shard}/manifest", self.root))
    }

    /// One manifest.
    #[must_use]
    pub fn manifest(&self, shard: ShardId, version: ManifestVersion) -> Path {
        Path::from(format!(
            "{}/shard/{shard}/manifest/{:020}",
            self.root, version.0
        ))
    }

    /// The folder of all SSTs.
    #[must_use]
    pub fn tables(&self) -> Path {
        Path::from(format!("{}/table", self.root))
    }

    /// A new SST's path; never used twice.
    #[must_use]
    pub fn new_sst(
        &self,
        table: TableId,
        partition: PartitionId,
        shard: ShardId,
        term: u64,
    ) -> Path {
        Path::from(format!(
            "{}/table/{table}/{partition}/{}-{shard}-{term}.parquet",
            self.root,
            ulid::Ulid::new()
        ))
    }

    /// Reads the number off a manifest's path.
    #[must_use]
    pub fn manifest_version(path: &Path) -> Option<ManifestVersion> {
        let name = path.filename()?;
        (name.len() == 20).then(|| name.parse().ok().map(ManifestVersion))?
    }

    /// Reads the parts off an SST's path.
    #[must_use]
    pub fn sst_name(path: &Path) -> Option<SstName> {
        let mut parts = path.filename()?.strip_suffix(".parquet")?.split('-');
        let name = SstName {
            ulid: ulid::Ulid::from_string(parts.next()?).ok()?,
            shard: parts.next()?.parse().ok()?,
            term: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(name)
    }
}
