//! Looking at a data folder offline: read-only, no lock, nothing is changed.

use std::path::Path as FilePath;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Serialize;
use shoal_sst::{ObjectLayout, SstError};
use shoal_types::{ManifestVersion, ShardId, TimestampMs};

use crate::EngineError;
use crate::manifest::format::{Body, FileEntry, Publisher};
use crate::manifest::{Chain, Loss, Manifest, ManifestState};

/// One manifest object.
#[derive(Clone, Debug, Serialize)]
pub struct ManifestInfo {
    /// Object path.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// What it says; else why it cannot be read.
    pub manifest: Result<ManifestSummary, String>,
}

/// The outline of a manifest.
#[derive(Clone, Debug, Serialize)]
pub struct ManifestSummary {
    /// `cluster.name`
    pub cluster: String,
    /// The shard.
    pub shard: ShardId,
    /// Its number.
    pub version: ManifestVersion,
    /// `snapshot` or `edit`.
    pub kind: &'static str,
    /// Who published it.
    pub publisher: Publisher,
    /// When.
    pub published_ms: TimestampMs,
    /// Tables in it (of an edit: tables changed).
    pub tables: u64,
    /// Files in it (of an edit: files added).
    pub files: u64,
    /// Files removed (edits).
    pub removed: u64,
    /// Replay offset, where it says one.
    pub replay_offset: Option<u64>,
    /// What operators gave up (of an edit: with this manifest).
    pub losses: Vec<Loss>,
}

/// The newest state of one shard, as a restart would load it.
#[derive(Clone, Debug, Serialize)]
pub struct ShardInfo {
    /// The shard.
    pub shard: ShardId,
    /// Number of the newest manifest.
    pub version: ManifestVersion,
    /// Where replay would begin.
    pub replay_offset: u64,
    /// The fold's epoch there.
    pub epoch: String,
    /// Tables (schemas) known there.
    pub tables: u64,
    /// All files.
    pub files: Vec<FileEntry>,
    /// Path of the residue object.
    pub residue: Option<String>,
    /// Objects waiting to be deleted.
    pub obsolete: u64,
    /// What operators gave up, ascending.
    pub losses: Vec<Loss>,
}

fn open(data_dir: &FilePath) -> Result<Arc<dyn ObjectStore>, EngineError> {
    let folder = data_dir.join("objects");
    let store = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|e| EngineError::Invalid(format!("{}: {e}", folder.display())))?;
    Ok(Arc::new(store))
}

fn summary(manifest: &Manifest) -> ManifestSummary {
    let (kind, tables, files, removed, replay_offset) = match &manifest.body {
        Body::Snapshot(s) => {
            let files = s.tables.iter().map(|(_, t)| t.files.len() as u64).sum();
            let tables = s.fold.schemas.len() as u64;
            ("snapshot", tables, files, 0, Some(s.replay_offset.0))
        }
        Body::Edit(e) => {
            let added = e.tables.iter().map(|(_, t)| t.add.len() as u64).sum();
            let removed = e.tables.iter().map(|(_, t)| t.remove.len() as u64).sum();
            let replay = e.fold.as_ref().map(|f| f.head.next_offset.0);
            ("edit", e.tables.len() as u64, added, removed, replay)
        }
    };
    ManifestSummary {
        cluster: manifest.cluster.clone(),
        shard: manifest.shard,
        version: manifest.version,
        kind,
        publisher: manifest.publisher,
        published_ms: manifest.published_ms,
        tables,
        files,
        removed,
        replay_offset,
        losses: match &manifest.body {
            Body::Snapshot(snapshot) => snapshot.losses.clone(),
            Body::Edit(edit) => edit.losses.clone(),
        },
    }
}

/// All manifests of a data folder, by path (so by cluster, shard, number).
///
/// # Errors
/// The folder cannot be listed. A damaged manifest is part of the result.
pub async fn manifests(data_dir: &FilePath) -> Result<Vec<ManifestInfo>, EngineError> {
    let store = open(data_dir)?;
    let mut infos = Vec::new();
    for (path, bytes) in list_manifests(&store).await? {
        let manifest = read(&store, &path).await.map(|m| summary(&m));
        infos.push(ManifestInfo {
            path: path.to_string(),
            bytes,
            manifest,
        });
    }
    Ok(infos)
}

async fn list_manifests(store: &Arc<dyn ObjectStore>) -> Result<Vec<(Path, u64)>, EngineError> {
    let root = Path::default();
    let mut listed: Vec<(Path, u64)> = store
        .list(None)
        .map_ok(|meta| (meta.location, meta.size))
        .try_collect()
        .await
        .map_err(|e| SstError::from_store(&root, e))?;
    listed.retain(|(path, _)| {
        path.as_ref().contains("/manifest/") && ObjectLayout::manifest_version(path).is_some()
    });
    listed.sort();
    Ok(listed)
}

/// Reads one manifest object of a data folder.
///
/// # Errors
/// [`EngineError::Manifest`] naming the object and what is wrong with it.
pub async fn manifest(data_dir: &FilePath, path: &str) -> Result<Manifest, EngineError> {
    let store = open(data_dir)?;
    let location = Path::from(path);
    read(&store, &location)
        .await
        .map_err(|what| EngineError::Manifest {
            path: path.to_owned(),
            what,
        })
}

async fn read(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<Manifest, String> {
    let bytes = async { store.get(path).await?.bytes().await };
    Manifest::decode(&bytes.await.map_err(|e| e.to_string())?)
}

/// The newest state of every shard of a data folder; for a shard that cannot be loaded, why.
///
/// # Errors
/// The folder cannot be listed.
pub async fn shards(
    data_dir: &FilePath,
) -> Result<Vec<(ShardId, Result<ShardInfo, String>)>, EngineError> {
    let store = open(data_dir)?;
    let mut seen: Vec<(String, ShardId)> = list_manifests(&store)
        .await?
        .iter()
        .filter_map(|(path, _)| {
            let (cluster, rest) = path.as_ref().split_once("/shard/")?;
            let shard = rest.split('/').next()?.parse().ok()?;
            Some((cluster.to_owned(), shard))
        })
        .collect();
    seen.dedup();
    let mut infos = Vec::new();
    for (cluster, shard) in seen {
        let chain = Chain {
            store: Arc::clone(&store),
            layout: ObjectLayout::new("", &cluster),
            cluster,
            shard,
        };
        let info = match chain.load_newest().await {
            Ok(Some(state)) => Ok(shard_info(&state)),
            Ok(None) => Err("it has no manifest".to_owned()),
            Err(e) => Err(e.to_string()),
        };
        infos.push((shard, info));
    }
    Ok(infos)
}

fn shard_info(state: &ManifestState) -> ShardInfo {
    let mut files: Vec<FileEntry> = state
        .tables
        .values()
        .flat_map(|t| t.files.iter().cloned())
        .collect();
    files.sort_by(|a, b| a.file.path.cmp(&b.file.path));
    ShardInfo {
        shard: state.shard,
        version: state.version(),
        replay_offset: state.replay_offset().0,
        epoch: state.fold.claim().0.to_string(),
        tables: state.fold.table_count() as u64,
        files,
        residue: state.residue.as_ref().map(|r| r.path.clone()),
        obsolete: state.obsolete.len() as u64,
        losses: state.losses.to_vec(),
    }
}
