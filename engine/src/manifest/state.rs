//! A shard's description in memory, and how an edit moves it.
//!
//! The publisher and every reader of the chain get their state from the same [`ManifestState::apply`],
//! so that what is checked before a publish is what a reopening replica will see.

use std::collections::HashSet;
use std::sync::Arc;

use rpds::HashTrieMapSync;
use shoal_types::{ManifestVersion, Offset, ShardId, TableId, TimestampMs};
use shoal_wal::fold::{FoldLimits, FoldState};
use shoal_wal::record::ManifestRef;

use super::format::{
    Body, Edit, FileEntry, LOSSES_MAX, LogIdentity, Loss, Manifest, Obsolete, Predecessor,
    Publisher, Residue, Snapshot, TableEdit, TableFiles,
};

/// Edits after a snapshot before another snapshot is due whatever their size: bounds the objects
/// read at open.
pub const EDITS_MAX: u32 = 256;
/// A snapshot below this many bytes is never waited for.
const SNAPSHOT_BYTES_FLOOR: u64 = 64 << 10;

/// Files of tables. A persistent map, so that holding an older state costs what changed since.
pub type Tables = HashTrieMapSync<TableId, Arc<TableFiles>>;

/// A number of files and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSum {
    /// Files.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl FileSum {
    fn of(files: &[FileEntry]) -> Self {
        Self {
            count: files.len() as u64,
            bytes: files.iter().map(|f| f.file.bytes).sum(),
        }
    }

    fn replace(&mut self, old: Self, new: Self) {
        self.count = self.count - old.count + new.count;
        self.bytes = self.bytes - old.bytes + new.bytes;
    }
}

/// What one manifest, with its chain, says.
#[derive(Clone, Debug)]
pub struct ManifestState {
    /// Number and attempt.
    pub reference: ManifestRef,
    /// Who published it.
    pub publisher: Publisher,
    /// When.
    pub published_ms: TimestampMs,
    /// xxh3-64 of its bytes.
    pub hash: u64,
    /// The shard.
    pub shard: ShardId,
    /// `cluster.name`
    pub cluster: String,
    /// The log.
    pub log: LogIdentity,
    /// The fold just before the replay offset (which is its `next_offset`).
    pub fold: FoldState,
    /// Files by table.
    pub tables: Tables,
    /// How many files `tables` names, and their bytes: kept, because walking over all tables for
    /// a gauge takes long where there are very many.
    pub files: FileSum,
    /// Rows of small tables.
    pub residue: Option<Residue>,
    /// Objects not named any more and not yet deleted.
    pub obsolete: Arc<Vec<Obsolete>>,
    /// What operators gave up, ascending.
    pub losses: Arc<Vec<Loss>>,
    /// The nearest snapshot at or below.
    pub snapshot: ManifestVersion,
    /// When that snapshot was published.
    pub snapshot_ms: TimestampMs,
    /// Size of that snapshot's object.
    pub snapshot_bytes: u64,
    /// Size of the edits since.
    pub edits_bytes: u64,
    /// Number of edits since.
    pub edits: u32,
}

impl ManifestState {
    /// The state of a shard before its first manifest; `version` of what follows is 0.
    #[must_use]
    pub fn before_first(shard: ShardId, cluster: &str, publisher: Publisher) -> Self {
        Self {
            reference: ManifestRef {
                version: ManifestVersion(0),
                attempt: publisher.attempt,
            },
            publisher,
            published_ms: 0,
            hash: 0,
            shard,
            cluster: cluster.to_owned(),
            log: LogIdentity::default(),
            fold: FoldState::new(FoldLimits::default()),
            tables: Tables::new_sync(),
            files: FileSum::default(),
            residue: None,
            obsolete: Arc::default(),
            losses: Arc::default(),
            snapshot: ManifestVersion(0),
            snapshot_ms: 0,
            snapshot_bytes: 0,
            edits_bytes: 0,
            edits: 0,
        }
    }

    /// Where replay begins.
    #[must_use]
    pub fn replay_offset(&self) -> Offset {
        self.fold.next_offset()
    }

    /// The manifest's number.
    #[must_use]
    pub fn version(&self) -> ManifestVersion {
        self.reference.version
    }

    /// Whether manifest `version` is newer than this one (any is newer than the state before the
    /// first).
    #[must_use]
    pub fn is_before(&self, version: ManifestVersion) -> bool {
        self.hash == 0 || version > self.version()
    }

    /// How a successor names this manifest.
    #[must_use]
    pub fn as_predecessor(&self) -> Predecessor {
        Predecessor {
            version: self.version(),
            hash: self.hash,
        }
    }

    /// Whether the next manifest should be a snapshot: the edits since the last one have grown
    /// beyond it, so a chain is never read at more than about twice the cost of its snapshot.
    #[must_use]
    pub fn snapshot_due(&self) -> bool {
        self.edits >= EDITS_MAX || self.edits_bytes > self.snapshot_bytes.max(SNAPSHOT_BYTES_FLOOR)
    }

    /// Files of a table.
    #[must_use]
    pub fn table(&self, table: TableId) -> Option<&Arc<TableFiles>> {
        self.tables.get(&table)
    }

    /// Every object that this state names as live.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let files = self.tables.values().flat_map(|t| &t.files);
        files
            .map(|f| f.file.path.as_str())
            .chain(self.residue.iter().map(|r| r.path.as_str()))
    }

    /// This state as a snapshot body.
    #[must_use]
    pub fn to_snapshot(&self) -> Snapshot {
        let mut tables: Vec<_> = self
            .tables
            .iter()
            .map(|(id, files)| (*id, TableFiles::clone(files)))
            .collect();
        tables.sort_unstable_by_key(|(id, _)| *id);
        Snapshot {
            log: self.log.clone(),
            replay_offset: self.replay_offset(),
            fold: self.fold.to_snapshot(),
            tables,
            residue: self.residue.clone(),
            obsolete: self.obsolete.to_vec(),
            losses: self.losses.to_vec(),
        }
    }

    /// The state that a snapshot manifest describes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_snapshot(manifest: &Manifest, bytes: u64, hash: u64) -> Result<Self, String> {
        let Body::Snapshot(snapshot) = &manifest.body else {
            return Err("it is an edit where a snapshot was expected".into());
        };
        let mut state = Self::before_first(manifest.shard, &manifest.cluster, manifest.publisher);
        state.reference = manifest.reference();
        state.published_ms = manifest.published_ms;
        state.hash = hash;
        state.log = snapshot.log.clone();
        state.fold = FoldState::from_snapshot(&snapshot.fold);
        if state.fold.next_offset() != snapshot.replay_offset {
            return Err(format!(
                "its fold state is at offset {}, its replay offset is {}",
                state.fold.next_offset(),
                snapshot.replay_offset
            ));
        }
        for (id, files) in &snapshot.tables {
            let new = FileSum::of(&files.files);
            state.files.replace(FileSum::default(), new);
            state.tables.insert_mut(*id, Arc::new(files.clone()));
        }
        state.residue = snapshot.residue.clone();
        state.obsolete = Arc::new(snapshot.obsolete.clone());
        state.losses = Arc::new(snapshot.losses.clone());
        state.snapshot = manifest.version;
        state.snapshot_ms = manifest.published_ms;
        state.snapshot_bytes = bytes;
        Ok(state)
    }

    /// The state after an edit published as `reference` by `publisher`; `hash`, sizes and the
    /// place in the chain are the caller's to set ([`Self::placed`]).
    ///
    /// # Errors
    /// Why the edit does not follow this state.
    pub fn apply(
        &self,
        edit: &Edit,
        reference: ManifestRef,
        publisher: Publisher,
        published_ms: TimestampMs,
    ) -> Result<Self, String> {
        let mut next = self.clone();
        next.reference = reference;
        next.publisher = publisher;
        next.published_ms = published_ms;
        if let Some(log) = &edit.log {
            next.log = log.clone();
        }
        if let Some(fold) = &edit.fold {
            next.fold.apply_edit(fold).map_err(|e| e.to_string())?;
        }
        let mut obsolete = Vec::new();
        let mut unname = |path: String| {
            obsolete.push(Obsolete {
                path,
                since_ms: published_ms,
                version: reference.version,
            });
        };
        for (id, table) in &edit.tables {
            next.apply_table(*id, table, &mut unname)?;
        }
        if let Some(edit) = &edit.residue {
            let residue = edit.residue();
            if let Some(old) = &self.residue
                && residue.is_none_or(|new| new.path != old.path)
            {
                unname(old.path.clone());
            }
            next.residue = residue.cloned();
        }
        if next.fold.generation() > 0 && !obsolete.is_empty() {
            next.keep_named(&mut obsolete);
        }
        if !obsolete.is_empty() || !edit.forgotten.is_empty() {
            let forgotten: HashSet<&str> = edit.forgotten.iter().map(String::as_str).collect();
            let kept = self
                .obsolete
                .iter()
                .filter(|o| !forgotten.contains(o.path.as_str()))
                .cloned();
            next.obsolete = Arc::new(kept.chain(obsolete).collect());
        }
        if !edit.losses.is_empty() {
            next.losses = Arc::new(remember(&self.losses, &edit.losses));
        }
        Ok(next)
    }

    /// Takes from the objects that one unit has stopped naming those that another one names: both
    /// halves of a cut have the same files.
    fn keep_named(&self, unnamed: &mut Vec<Obsolete>) {
        let candidates: HashSet<&str> = unnamed.iter().map(|o| o.path.as_str()).collect();
        let named = self.paths().filter(|path| candidates.contains(path));
        let named: HashSet<String> = named.map(str::to_owned).collect();
        let mut seen = HashSet::new();
        unnamed.retain(|o| !named.contains(&o.path) && seen.insert(o.path.clone()));
    }

    fn apply_table(
        &mut self,
        id: TableId,
        edit: &TableEdit,
        unname: &mut impl FnMut(String),
    ) -> Result<(), String> {
        let old = self.tables.get(&id).cloned();
        let before = old
            .as_ref()
            .map_or_else(FileSum::default, |o| FileSum::of(&o.files));
        if edit.dropped {
            if let Some(old) = old {
                self.files.replace(before, FileSum::default());
                for entry in &old.files {
                    unname(entry.file.path.clone());
                }
                self.tables.remove_mut(&id);
            }
            return Ok(());
        }
        let mut files = old.map(|o| TableFiles::clone(&o)).unwrap_or_default();
        for path in &edit.remove {
            let Some(at) = files.files.iter().position(|f| f.file.path == *path) else {
                return Err(format!(
                    "file {path} of table {id} to be removed is not named"
                ));
            };
            files.files.remove(at);
            unname(path.clone());
        }
        files.files.extend(edit.add.iter().cloned());
        files
            .files
            .sort_by_key(|f| (f.file.version_max, f.file.version_min));
        if let Some(deletes) = &edit.deletes {
            files.deletes = deletes.clone();
        }
        if edit.flushed_through.is_some() {
            files.flushed_through = edit.flushed_through;
        }
        self.files.replace(before, FileSum::of(&files.files));
        if files.files.is_empty() && files.deletes.is_empty() {
            self.tables.remove_mut(&id);
        } else {
            self.tables.insert_mut(id, Arc::new(files));
        }
        Ok(())
    }

    /// Sets what is known only once the object's bytes are: hash, size, place in the chain.
    #[must_use]
    pub fn placed(mut self, hash: u64, bytes: u64, is_snapshot: bool) -> Self {
        self.hash = hash;
        if is_snapshot {
            self.snapshot = self.version();
            self.snapshot_ms = self.published_ms;
            self.snapshot_bytes = bytes;
            self.edits_bytes = 0;
            self.edits = 0;
        } else {
            self.edits_bytes += bytes;
            self.edits += 1;
        }
        self
    }
}

/// All losses, not more than can be kept: the oldest two become one that covers both and what lies
/// between, so that nothing given up ever counts as kept.
fn remember(old: &[Loss], new: &[Loss]) -> Vec<Loss> {
    let mut all: Vec<Loss> = old.iter().chain(new).cloned().collect();
    while all.len() > LOSSES_MAX {
        let first = all.remove(0);
        let second = &mut all[0];
        second.from = first.from;
        second.what = format!("several losses, the last: {}", second.what);
    }
    all
}
