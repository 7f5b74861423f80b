//! A folder as an object store whose puts are durable when they return.
//!
//! `object_store::local::LocalFileSystem` renames files into place without syncing anything: after
//! a power cut a manifest may name SSTs that are empty, or be the newest and unreadable. Here a
//! put is: write a staging file → sync it → link (put-if-absent) or rename (overwrite) it into
//! place → sync the folder, and every folder that had to be made. A crash leaves the object whole
//! or absent, and at most a staging file (`name#number`), which listings skip.
//!
//! Reads, listings and deletions are `LocalFileSystem`'s. A deletion need not be durable: what
//! comes back after a crash is garbage, not data.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};

const NAME: &str = "DurableLocalStore";

/// A folder of durable objects.
#[derive(Debug)]
pub struct DurableLocalStore {
    inner: LocalFileSystem,
    root: PathBuf,
    staged: Arc<AtomicU64>,
}

impl std::fmt::Display for DurableLocalStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{NAME}({})", self.root.display())
    }
}

fn failed(error: io::Error) -> Error {
    Error::Generic {
        store: NAME,
        source: Box::new(error),
    }
}

impl DurableLocalStore {
    /// Opens a folder, making it if it is not there.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(root: impl AsRef<FilePath>) -> Result<Self> {
        let root = root.as_ref();
        make_folder(root).map_err(failed)?;
        let root = root.canonicalize().map_err(failed)?;
        Ok(Self {
            inner: LocalFileSystem::new_with_prefix(&root)?,
            root,
            staged: Arc::new(AtomicU64::new(u64::from(std::process::id()) << 32)),
        })
    }
}

fn sync_folder(folder: &FilePath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Makes a folder and its missing ancestors durably.
fn make_folder(folder: &FilePath) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_folder(parent)?;
    }
    match std::fs::create_dir(folder) {
        Ok(()) => sync_folder(parent.unwrap_or(FilePath::new("."))),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

enum Placing {
    Create,
    Overwrite,
}

fn put_file(
    path: &FilePath,
    staged: u64,
    payload: &PutPayload,
    placing: &Placing,
) -> io::Result<()> {
    let folder = path
        .parent()
        .ok_or_else(|| io::Error::other("an object needs a folder"))?;
    make_folder(folder)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!("#{staged}"));
    let staging = PathBuf::from(name);
    let written = write_and_place(&staging, path, payload, placing);
    if written.is_err() || matches!(placing, Placing::Create) {
        // After a rename it is gone already; otherwise a leftover is skipped by listings.
        let _ = std::fs::remove_file(&staging);
    }
    written?;
    sync_folder(folder)
}

fn write_and_place(
    staging: &FilePath,
    path: &FilePath,
    payload: &PutPayload,
    placing: &Placing,
) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(staging)?;
    for part in payload.iter() {
        file.write_all(part)?;
    }
    file.sync_all()?;
    match placing {
        Placing::Create => std::fs::hard_link(staging, path),
        Placing::Overwrite => std::fs::rename(staging, path),
    }
}

#[async_trait]
impl ObjectStore for DurableLocalStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let placing = match opts.mode {
            PutMode::Create => Placing::Create,
            PutMode::Overwrite => Placing::Overwrite,
            PutMode::Update(_) => {
                return Err(Error::NotImplemented {
                    operation: "`put_opts` with mode `PutMode::Update`".into(),
                    implementer: self.to_string(),
                });
            }
        };
        let path = self.inner.path_to_filesystem(location)?;
        let staged = self.staged.fetch_add(1, Ordering::Relaxed);
        let put = move || put_file(&path, staged, &payload, &placing);
        let outcome = tokio::task::spawn_blocking(put)
            .await
            .map_err(|e| failed(io::Error::other(e)))?;
        match outcome {
            Ok(()) => Ok(PutResult {
                e_tag: None,
                version: None,
            }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(Error::AlreadyExists {
                path: location.to_string(),
                source: Box::new(e),
            }),
            Err(e) => Err(failed(e)),
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.inner.path_to_filesystem(location)?;
        if let Some(folder) = path.parent().map(FilePath::to_path_buf) {
            tokio::task::spawn_blocking(move || make_folder(&folder))
                .await
                .map_err(|e| failed(io::Error::other(e)))?
                .map_err(failed)?;
        }
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(DurableUpload { upload, path }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[std::ops::Range<u64>],
    ) -> Result<Vec<bytes::Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    /// A copy is read and put again, so that it is durable too.
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let bytes = self
            .inner
            .get_opts(from, GetOptions::default())
            .await?
            .bytes()
            .await?;
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        let options = PutOptions::from(mode);
        self.put_opts(to, PutPayload::from_bytes(bytes), options)
            .await
            .map(|_| ())
    }
}

/// Parts go to a staging file; completing it syncs the object before it is reported as put. It may
/// be seen before it is durable, but nobody names it before the put returned.
#[derive(Debug)]
struct DurableUpload {
    upload: Box<dyn MultipartUpload>,
    path: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.upload.complete().await?;
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || {
            File::open(&path)?.sync_all()?;
            path.parent().map_or(Ok(()), sync_folder)
        })
        .await
        .map_err(|e| failed(io::Error::other(e)))?
        .map_err(failed)?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn puts_are_create_only_where_asked_and_staging_files_are_not_listed() {
        let dir = tempfile::tempdir().expect("dir");
        let store = DurableLocalStore::open(dir.path().join("objects")).expect("open");
        let path = Path::from("a/b/c");
        let create = || PutOptions::from(PutMode::Create);
        store
            .put_opts(&path, "one".into(), create())
            .await
            .expect("first");
        let second = store.put_opts(&path, "two".into(), create()).await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })));
        let read = |path: Path| async move { store.get(&path).await?.bytes().await };
        assert_eq!(read(path).await.expect("get").as_ref(), b"one");
        std::fs::write(dir.path().join("objects/a/b/d#17"), b"left over").expect("write");
        let store = DurableLocalStore::open(dir.path().join("objects")).expect("open");
        let listed: Vec<_> = futures::TryStreamExt::try_collect::<Vec<_>>(store.list(None))
            .await
            .expect("list");
        assert_eq!(listed.len(), 1, "{listed:?}");
    }
}
