//! Finding and reading a shard's manifests. The newest manifest is always the LIST maximum: a
//! zombie can re-create a number that garbage collection removed, never one above the newest.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use shoal_sst::{ObjectLayout, SstError};
use shoal_types::{ManifestVersion, ShardId};

use super::format::{Body, Manifest, hash_of};
use super::state::ManifestState;
use crate::EngineError;

/// The manifests of one shard.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The store.
    pub store: Arc<dyn ObjectStore>,
    /// Names of objects.
    pub layout: ObjectLayout,
    /// `cluster.name`
    pub cluster: String,
    /// The shard.
    pub shard: ShardId,
}

/// A manifest with its bytes' size and hash.
#[derive(Clone, Debug)]
pub struct Read {
    /// What it says.
    pub manifest: Manifest,
    /// Size of the object.
    pub bytes: u64,
    /// xxh3-64 of the object.
    pub hash: u64,
}

impl Chain {
    fn damaged(&self, version: ManifestVersion, what: String) -> EngineError {
        EngineError::Manifest {
            path: self.path(version).to_string(),
            what,
        }
    }

    /// The path of a manifest.
    #[must_use]
    pub fn path(&self, version: ManifestVersion) -> Path {
        self.layout.manifest(self.shard, version)
    }

    /// Numbers of all manifests there are, ascending.
    ///
    /// # Errors
    /// The store's.
    pub async fn versions(&self) -> Result<Vec<ManifestVersion>, EngineError> {
        let folder = self.layout.manifests(self.shard);
        let listed: Vec<_> = self
            .store
            .list(Some(&folder))
            .try_collect()
            .await
            .map_err(|e| SstError::from_store(&folder, e))?;
        let mut versions: Vec<_> = listed
            .iter()
            .filter_map(|meta| ObjectLayout::manifest_version(&meta.location))
            .collect();
        versions.sort_unstable();
        Ok(versions)
    }

    /// The number of the newest manifest.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(&self) -> Result<Option<ManifestVersion>, EngineError> {
        Ok(self.versions().await?.last().copied())
    }

    /// Reads one manifest; `None`: there is none with that number.
    ///
    /// # Errors
    /// The store's, or [`EngineError::Manifest`] for a damaged or foreign one.
    pub async fn read(&self, version: ManifestVersion) -> Result<Option<Read>, EngineError> {
        let path = self.path(version);
        let bytes = match self.store.get(&path).await {
            Ok(found) => found
                .bytes()
                .await
                .map_err(|e| SstError::from_store(&path, e))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(SstError::from_store(&path, e).into()),
        };
        let manifest = Manifest::decode(&bytes).map_err(|what| self.damaged(version, what))?;
        if manifest.version != version
            || manifest.shard != self.shard
            || manifest.cluster != self.cluster
        {
            let what = format!(
                "it is manifest {} of shard {} in cluster {:?}",
                manifest.version, manifest.shard, manifest.cluster
            );
            return Err(self.damaged(version, what));
        }
        Ok(Some(Read {
            manifest,
            bytes: bytes.len() as u64,
            hash: hash_of(&bytes),
        }))
    }

    /// The state that manifest `version` describes, from its snapshot on.
    ///
    /// # Errors
    /// The store's, or [`EngineError::Manifest`] naming the manifest that is damaged, missing or
    /// does not follow its predecessor.
    pub async fn load(&self, version: ManifestVersion) -> Result<ManifestState, EngineError> {
        self.load_after(None, version).await
    }

    /// As [`Self::load`]; where the chain leads through `known`, only what came after it is read.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_after(
        &self,
        known: Option<&ManifestState>,
        version: ManifestVersion,
    ) -> Result<ManifestState, EngineError> {
        let mut edits = Vec::new();
        let mut at = version;
        let mut state = loop {
            let Some(read) = self.read(at).await? else {
                return Err(self.damaged(at, "it is missing from the chain".into()));
            };
            match &read.manifest.body {
                Body::Snapshot(_) => {
                    break ManifestState::from_snapshot(&read.manifest, read.bytes, read.hash)
                        .map_err(|what| self.damaged(at, what))?;
                }
                Body::Edit(_) => {
                    let Some(before) = read.manifest.predecessor else {
                        return Err(self.damaged(at, "an edit without predecessor".into()));
                    };
                    if before.version >= at {
                        return Err(self.damaged(at, "it names itself as predecessor".into()));
                    }
                    at = before.version;
                    edits.push(read);
                    if let Some(known) = known.filter(|k| k.as_predecessor() == before) {
                        break known.clone();
                    }
                }
            }
        };
        for read in edits.into_iter().rev() {
            let manifest = &read.manifest;
            if manifest.predecessor != Some(state.as_predecessor()) {
                let what = format!(
                    "its predecessor's hash is not that of manifest {}",
                    state.version()
                );
                return Err(self.damaged(manifest.version, what));
            }
            let Body::Edit(edit) = &manifest.body else {
                continue;
            };
            state = state
                .apply(
                    edit,
                    manifest.reference(),
                    manifest.publisher,
                    manifest.published_ms,
                )
                .map_err(|what| self.damaged(manifest.version, what))?
                .placed(read.hash, read.bytes, false);
        }
        Ok(state)
    }

    /// The newest state; `None`: the shard has no manifest.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn load_newest(&self) -> Result<Option<ManifestState>, EngineError> {
        match self.newest().await? {
            None => Ok(None),
            Some(version) => self.load(version).await.map(Some),
        }
    }

    /// The newest state, given one that was the newest at some time.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn newest_after(
        &self,
        known: &Arc<ManifestState>,
    ) -> Result<Arc<ManifestState>, EngineError> {
        match self.newest().await? {
            Some(version) if known.is_before(version) => {
                self.load_after(Some(known), version).await.map(Arc::new)
            }
            // At the same number there may be another attempt only if `known` was never the newest.
            _ => Ok(Arc::clone(known)),
        }
    }
}
