//! Deleting objects that nobody reads any more (PROTOCOLS §2, "Garbage").
//!
//! Objects that a manifest stopped naming stand in its `obsolete` list until they are deleted.
//! Order: choose from the list of the newest manifest (un-named longer ago than the retention; the
//! manifest that un-named them is in force; no view of an older one lives) → delete them → publish
//! an edit that forgets them. A crash in between leaves entries for objects that are gone; deleting
//! those again is no error.
//!
//! Manifests below the newest chain's snapshot go once that snapshot is older than the retention.
//!
//! Objects that no manifest ever named (a crash between writing and publishing) are found by
//! listing: first the objects, then what is being written, then the manifests of every shard that
//! may have been given them (`relatives.rs`), so that nothing published in between looks unnamed. If
//! some of those cannot be read, nothing of the kind is deleted: when in doubt, keep.

use std::collections::HashSet;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use shoal_sst::{ObjectLayout, SstError, SstName};
use shoal_types::{ManifestVersion, TimestampMs};

use super::relatives::{Fate, Relatives};
use super::{Counters, Shard};
use crate::EngineError;
use crate::background::to_the_end;
use crate::manifest::ManifestState;
use crate::manifest::format::{Edit, Obsolete};

/// The wall clock that object ids are made from may step back by this much.
const CLOCK_SLACK_MS: u64 = 60_000;

/// What garbage collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GcReport {
    /// Nothing was deleted, only looked for.
    pub dry_run: bool,
    /// Objects deleted (or to be deleted), by path.
    pub deleted: Vec<String>,
    /// Superseded manifests among them.
    pub manifests: u64,
    /// Objects among them that no manifest had ever named.
    pub orphans: u64,
    /// Objects not named any more but kept for now (retention, or a statement reads them).
    pub kept: u64,
}

impl GcReport {
    /// Counts another's finds in.
    pub fn add(&mut self, other: Self) {
        self.deleted.extend(other.deleted);
        self.manifests += other.manifests;
        self.orphans += other.orphans;
        self.kept += other.kept;
    }
}

/// Which obsolete objects may be deleted now. Pure.
pub(crate) fn choose(
    obsolete: &[Obsolete],
    in_force: ManifestVersion,
    oldest_view: Option<ManifestVersion>,
    now_ms: TimestampMs,
    retention_ms: u64,
) -> Vec<String> {
    obsolete
        .iter()
        .filter(|o| {
            o.version <= in_force
                && oldest_view.is_none_or(|view| view >= o.version)
                && o.since_ms.saturating_add(retention_ms) <= now_ms
        })
        .map(|o| o.path.clone())
        .collect()
}

impl Shard {
    fn retention_ms(&self) -> u64 {
        self.env.config.retention_s.saturating_mul(1000)
    }

    /// Deletes what this shard's manifests allow.
    ///
    /// # Errors
    /// The store's; what was deleted is forgotten by the next call.
    pub(crate) async fn collect(
        self: &Arc<Self>,
        dry_run: bool,
        known: &mut Relatives,
        report: &mut GcReport,
    ) -> Result<(), EngineError> {
        let (shard, mut own) = (Arc::clone(self), std::mem::take(report));
        let mut of_others = std::mem::take(known);
        // A publish must not be dropped halfway.
        (*report, *known) = to_the_end(async move {
            shard.collect_now(dry_run, &mut of_others, &mut own).await?;
            Ok((own, of_others))
        })
        .await?;
        Ok(())
    }

    async fn collect_now(
        &self,
        dry_run: bool,
        known: &mut Relatives,
        report: &mut GcReport,
    ) -> Result<(), EngineError> {
        let mut publishing = self.publishing.lock().await;
        self.settle(&mut publishing).await?;
        let newest = Arc::clone(&publishing.newest);
        let in_force = self.state.read().manifest.version();
        let chosen = choose(
            &newest.obsolete,
            in_force,
            self.pins.oldest(),
            self.env.clock.now_ms(),
            self.retention_ms(),
        );
        let (chosen, forgotten) = self.nobodys(chosen, known).await?;
        report.kept += (newest.obsolete.len() - chosen.len() - forgotten.len()) as u64;
        if !dry_run {
            for path in &chosen {
                self.delete(&Path::from(path.as_str())).await?;
            }
        }
        let is_due = !chosen.is_empty() || !forgotten.is_empty();
        if is_due && !dry_run {
            Counters::add(&self.counters.collected_objects, chosen.len() as u64);
            let edit = Edit {
                forgotten: chosen.iter().chain(&forgotten).cloned().collect(),
                ..Edit::default()
            };
            self.publish(&mut publishing, edit).await?;
        }
        report.deleted.extend(chosen);
        self.collect_manifests(&newest, dry_run, report).await
    }

    /// Of objects that this shard has no use for, those that nobody has, and those that another shard
    /// sees to.
    async fn nobodys(
        &self,
        chosen: Vec<String>,
        known: &mut Relatives,
    ) -> Result<(Vec<String>, Vec<String>), EngineError> {
        // One that never changed units has handed nothing on and was given nothing.
        if chosen.is_empty() || self.state.read().fold.generation() == 0 {
            return Ok((chosen, Vec::new()));
        }
        let Some(named) = self.named_by_relatives(known).await? else {
            return Ok((Vec::new(), Vec::new()));
        };
        let (mut nobodys, mut anothers) = (Vec::new(), Vec::new());
        for path in chosen {
            match named.fate(&path) {
                Fate::Delete => nobodys.push(path),
                Fate::Forget => anothers.push(path),
                Fate::Keep => {}
            }
        }
        Ok((nobodys, anothers))
    }

    async fn collect_manifests(
        &self,
        newest: &ManifestState,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), EngineError> {
        let due = newest.snapshot_ms.saturating_add(self.retention_ms());
        if due > self.env.clock.now_ms() {
            return Ok(());
        }
        for version in self.chain.versions().await? {
            if version >= newest.snapshot {
                break;
            }
            let path = self.chain.path(version);
            if !dry_run {
                self.delete(&path).await?;
            }
            report.deleted.push(path.to_string());
            report.manifests += 1;
        }
        Ok(())
    }

    async fn delete(&self, path: &Path) -> Result<(), EngineError> {
        match self.env.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(SstError::from_store(path, e).into()),
        }
    }

    /// Whether an object with this name may be deleted, given that no manifest names it: it was
    /// begun in an older term, or in ours before everything that is being written now.
    fn is_orphan(&self, name: &SstName, settled_before_ms: u64) -> bool {
        let settled = name.ulid.timestamp_ms() + CLOCK_SLACK_MS < settled_before_ms;
        let term = self.epoch().term;
        name.shard == self.id && (name.term < term || (name.term == term && settled))
    }

    /// Deletes objects with this shard's name that nothing names. `listed` was taken before.
    /// `settled_before_ms` (see `Production`) in between.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn collect_orphans(
        &self,
        listed: &[Path],
        settled_before_ms: u64,
        dry_run: bool,
        known: &mut Relatives,
        report: &mut GcReport,
    ) -> Result<(), EngineError> {
        let named = self.named_objects().await;
        let orphans = listed.iter().filter(|path| {
            let name = name_of(path);
            !named.contains(path.as_ref())
                && name.is_some_and(|name| self.is_orphan(&name, settled_before_ms))
        });
        let mut orphans: Vec<&Path> = orphans.collect();
        if !orphans.is_empty() && self.state.read().fold.generation() > 0 {
            match self.named_by_relatives(known).await? {
                Some(named) => orphans.retain(|path| !named.names(path.as_ref())),
                None => return Ok(()),
            }
        }
        for path in orphans {
            if !dry_run {
                self.delete(path).await?;
                Counters::add(&self.counters.collected_objects, 1);
            }
            report.deleted.push(path.to_string());
            report.orphans += 1;
        }
        Ok(())
    }

    /// Everything that this shard's newest manifest names, live or obsolete.
    async fn named_objects(&self) -> HashSet<String> {
        let publishing = self.publishing.lock().await;
        let newest = &publishing.newest;
        let live = newest.paths().map(str::to_owned);
        let obsolete = newest.obsolete.iter().map(|o| o.path.clone());
        let undecided = publishing.undecided.iter();
        let undecided = undecided.flat_map(|p| p.state.paths().map(str::to_owned));
        live.chain(obsolete).chain(undecided).collect()
    }
}

/// The name of an SST or residue object.
fn name_of(path: &Path) -> Option<SstName> {
    ObjectLayout::sst_name(path).or_else(|| {
        let sst = Path::from(format!("{}.parquet", path.filename()?));
        ObjectLayout::sst_name(&sst)
    })
}

/// All SSTs and residue objects, by listing.
///
/// # Errors
/// The store's.
pub(crate) async fn list_objects(
    store: &dyn ObjectStore,
    layout: &ObjectLayout,
    shards: &[shoal_types::ShardId],
) -> Result<Vec<(Path, u64)>, EngineError> {
    let mut folders = vec![layout.tables()];
    for shard in shards {
        let manifests = layout.manifests(*shard);
        let root = manifests.as_ref().trim_end_matches("manifest");
        folders.push(Path::from(format!("{root}residue")));
    }
    let mut objects = Vec::new();
    for folder in folders {
        let mut listed = store.list(Some(&folder));
        while let Some(meta) = listed
            .try_next()
            .await
            .map_err(|e| SstError::from_store(&folder, e))?
        {
            objects.push((meta.location, meta.size));
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_obsolete_object_stays_for_retention_views_and_until_the_switch() {
        let object = |version, since_ms| Obsolete {
            path: format!("v{version}"),
            since_ms,
            version: ManifestVersion(version),
        };
        let all = [object(3, 100), object(5, 100), object(5, 900)];
        let at = |in_force, view: Option<u64>, now| {
            let in_force = ManifestVersion(in_force);
            choose(&all, in_force, view.map(ManifestVersion), now, 500).len()
        };
        assert_eq!(at(5, None, 600), 2, "retention keeps the young one");
        assert_eq!(at(4, None, 600), 1, "version 5 is not in force");
        assert_eq!(
            at(5, Some(4), 600),
            1,
            "a view of version 4 reads what 5 un-named"
        );
        assert_eq!(at(5, Some(5), 600), 2);
        assert_eq!(at(5, Some(2), 600), 0);
        assert_eq!(at(5, None, 1400), 3);
    }
}
