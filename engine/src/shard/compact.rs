//! Compaction and TTL: fewer files instead of many, none past their time (PROTOCOLS §3).
//!
//! Order: choose inputs from the newest manifest → merge them into new files → under the
//! publishing lock, if all inputs are still named, publish a manifest with the outputs in their
//! place → append its `Manifest` record; on reading it the files are swapped. The inputs are
//! obsolete from then on and deleted by `gc.rs` after the retention.
//!
//! Outputs are written with the schema of the manifest, not the newest one: a manifest must be
//! readable without the log behind it. The TTL alone is the newest one's, and looked at again
//! before the publish: where it was raised meanwhile, rows are gone from the outputs that it
//! keeps, and the outputs become garbage. Predicate deletes known when the merge began are applied to
//! older rows; each output notes through which version that was done, so that a delete goes once
//! every file has it.
//!
//! A crash before the publish leaves unnamed objects; rows are untouched.

use std::sync::Arc;

use shoal_sst::SstFile;
use shoal_types::{PartitionBounds, TableId, TableSchema, TimestampMs};

use super::state::{ShardState, needed_deletes, needs, version_before};
use super::{Counters, Shard};
use crate::background::{on_own_thread, to_the_end};
use crate::compaction::{CompactionJob, PickConfig, TtlCut, expired, pick, pick_full, pick_stale};
use crate::manifest::format::{Edit, FileEntry, TableEdit};
use crate::manifest::{ManifestState, TableFiles};
use crate::owned::owns_all;
use crate::{EngineError, PredicateDelete};

/// Rounds of a full compaction: each leaves one run a group, unless flushes come in between.
const FULL_ROUNDS_MAX: u32 = 8;

/// What compactions did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Compacted {
    /// Merges published.
    pub jobs: u64,
    /// Files read.
    pub files_in: u64,
    /// Files written.
    pub files_out: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Files dropped for their age.
    pub expired: u64,
}

impl Compacted {
    /// Counts another's work in.
    pub fn add(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.files_in += other.files_in;
        self.files_out += other.files_out;
        self.bytes_out += other.bytes_out;
        self.expired += other.expired;
    }
}

/// What a merge starts from.
struct Plan {
    job: CompactionJob,
    /// Files that the outputs may lie above.
    older: Vec<SstFile>,
    schema: Arc<TableSchema>,
    /// What the unit owns by the manifest, as with the schema.
    owned: Option<Arc<PartitionBounds>>,
    deletes: Vec<PredicateDelete>,
    deletes_through: shoal_types::RowVersion,
    /// When `cut` was taken.
    now_ms: TimestampMs,
    cut: Option<TtlCut>,
}

impl Shard {
    /// Looks at all tables again with several files, or with one that has rows of others.
    pub(crate) fn look_for_compactions(&self) {
        let manifest = Arc::clone(&self.state.read().manifest);
        let waiting = manifest.tables.iter().filter(|(id, t)| {
            let owned = manifest.fold.bounds(**id);
            t.files.len() > 1 || t.files.iter().any(|f| is_shared(owned, &f.file))
        });
        self.compactable.lock().extend(waiting.map(|(id, _)| *id));
    }

    /// Does the most useful merge of one table that waits for a look; `None`: nothing waits.
    ///
    /// # Errors
    /// [`EngineError`]; the table is looked at again later.
    pub(crate) async fn compact_next(self: &Arc<Self>) -> Result<Option<Compacted>, EngineError> {
        loop {
            let Some(table) = self.compactable.lock().iter().next().copied() else {
                return Ok(None);
            };
            self.compactable.lock().remove(&table);
            let newest = self.newest().await;
            let jobs = self.jobs(&newest, table, false);
            let Some(job) = jobs.into_iter().next() else {
                continue;
            };
            // There may be more to do in the table.
            self.compactable.lock().insert(table);
            return self.merge(&newest, table, job).await.map(Some);
        }
    }

    /// Merges everything of one table that is not one run a group, and drops what is past its TTL.
    ///
    /// # Errors
    /// [`EngineError`]; merges published before stay.
    pub(crate) async fn compact_fully(
        self: &Arc<Self>,
        table: TableId,
    ) -> Result<Compacted, EngineError> {
        let mut all = Compacted::default();
        all.add(self.expire(&[table]).await?);
        for _ in 0..FULL_ROUNDS_MAX {
            let newest = self.newest().await;
            let jobs = self.jobs(&newest, table, true);
            if jobs.is_empty() {
                break;
            }
            for job in jobs {
                let newest = self.newest().await;
                all.add(self.merge(&newest, table, job).await?);
            }
        }
        Ok(all)
    }

    pub(crate) async fn newest(&self) -> Arc<ManifestState> {
        Arc::clone(&self.publishing.lock().await.newest)
    }

    fn jobs(&self, newest: &ManifestState, table: TableId, full: bool) -> Vec<CompactionJob> {
        let (Some(named), Some(schema)) = (newest.table(table), newest.fold.schema(table)) else {
            return Vec::new();
        };
        // A table dropped or emptied since is not worth the work.
        if self.schema(table).map(|s| s.incarnation) != Some(schema.incarnation) {
            return Vec::new();
        }
        let current = named.of_incarnation(schema.incarnation);
        let files: Vec<SstFile> = current.map(|f| f.file.clone()).collect();
        let config = PickConfig::new(&self.env.config);
        let owned = newest.fold.bounds(table);
        if full {
            let is_stale = |file: &SstFile| {
                if is_shared(owned, file) {
                    return true;
                }
                let entry = named.files.iter().find(|f| f.file.path == file.path);
                entry.is_some_and(|f| named.deletes.iter().any(|delete| needs(f, delete)))
            };
            return pick_full(&files, schema, &config, &is_stale);
        }
        let now_ms = self.env.clock.now_ms();
        pick(&files, schema, now_ms, &config, &|_| false)
            .or_else(|| pick_stale(&files, schema, &config, &|file| is_shared(owned, file)))
            .into_iter()
            .collect()
    }

    async fn merge(
        self: &Arc<Self>,
        newest: &ManifestState,
        table: TableId,
        job: CompactionJob,
    ) -> Result<Compacted, EngineError> {
        let Some(schema) = newest.fold.schema(table).cloned() else {
            return Ok(Compacted::default());
        };
        let older = older_files(newest, &schema, &job);
        let producing = self.produce();
        let now_ms = self.env.clock.now_ms();
        let plan = {
            let state = self.state.read();
            Plan {
                job,
                older,
                schema,
                owned: newest.fold.bounds(table).cloned(),
                deletes: known_deletes(newest, &state, table),
                deletes_through: version_before(&state.fold, state.fold.next_offset()),
                now_ms,
                cut: newest_cut(&state, table, now_ms),
            }
        };
        let producer = self.producer();
        let (plan, outputs) = on_own_thread(move || async move {
            let outputs = producer
                .compact(
                    &plan.job,
                    &plan.schema,
                    &plan.older,
                    &plan.deletes,
                    plan.cut,
                    plan.owned.clone(),
                )
                .await?;
            Ok((plan, outputs))
        })
        .await?;
        let shard = Arc::clone(self);
        to_the_end(async move {
            let done = shard.replace(table, plan, outputs).await;
            drop(producing);
            done
        })
        .await
    }

    async fn replace(
        &self,
        table: TableId,
        plan: Plan,
        outputs: Vec<SstFile>,
    ) -> Result<Compacted, EngineError> {
        let mut publishing = self.publishing.lock().await;
        self.settle(&mut publishing).await?;
        let Some(named) = publishing.newest.table(table) else {
            return Ok(Compacted::default());
        };
        let remove: Vec<String> = plan.job.inputs.iter().map(|f| f.path.clone()).collect();
        let still_named = |path: &String| named.files.iter().any(|f| f.file.path == *path);
        if !remove.iter().all(still_named) {
            // Dropped, truncated or expired meanwhile: the outputs are garbage.
            return Ok(Compacted::default());
        }
        let cut = newest_cut(&self.state.read(), table, plan.now_ms);
        if plan.cut.is_some_and(|c| !c.spares_all_of(cut)) {
            tracing::info!(shard = %self.id, %table, "compaction dropped: the TTL was raised meanwhile");
            return Ok(Compacted::default());
        }
        let done = Compacted {
            jobs: 1,
            files_in: remove.len() as u64,
            files_out: outputs.len() as u64,
            bytes_out: outputs.iter().map(|f| f.bytes).sum(),
            expired: 0,
        };
        let add = outputs
            .into_iter()
            .map(|file| FileEntry {
                file,
                deletes_through: plan.deletes_through,
            })
            .collect();
        let edit = table_edit(table, named, remove, add);
        self.publish(&mut publishing, edit).await?;
        Counters::add(&self.counters.compactions, 1);
        Counters::add(&self.counters.compacted_bytes, done.bytes_out);
        tracing::info!(
            shard = %self.id, %table, files_in = done.files_in,
            files_out = done.files_out, bytes_out = done.bytes_out, "compacted"
        );
        Ok(done)
    }

    /// Drops files whose rows are all past their table's TTL.
    ///
    /// # Errors
    /// [`EngineError`].
    pub(crate) async fn expire(
        self: &Arc<Self>,
        tables: &[TableId],
    ) -> Result<Compacted, EngineError> {
        let (shard, tables) = (Arc::clone(self), tables.to_vec());
        to_the_end(async move { shard.expire_now(&tables).await }).await
    }

    async fn expire_now(&self, tables: &[TableId]) -> Result<Compacted, EngineError> {
        let now_ms = self.env.clock.now_ms();
        let mut publishing = self.publishing.lock().await;
        self.settle(&mut publishing).await?;
        let mut edits = Vec::new();
        let mut done = Compacted::default();
        for table in tables {
            let Some(named) = publishing.newest.table(*table) else {
                continue;
            };
            let Some(schema) = self.schema(*table).filter(|s| s.ttl_ms.is_some()) else {
                continue;
            };
            let current = named.of_incarnation(schema.incarnation);
            let files: Vec<SstFile> = current.map(|f| f.file.clone()).collect();
            let gone = expired(&files, &schema, now_ms);
            if gone.is_empty() {
                continue;
            }
            done.expired += gone.len() as u64;
            let remove = gone.into_iter().map(|f| f.path).collect();
            edits.extend(table_edit(*table, named, remove, Vec::new()).tables);
        }
        if !edits.is_empty() {
            edits.sort_by_key(|(id, _)| *id);
            let edit = Edit {
                tables: edits,
                ..Edit::default()
            };
            self.publish(&mut publishing, edit).await?;
        }
        Ok(done)
    }

    /// Deletes by predicate of a table that some rows are still to be held against.
    pub(crate) async fn pending_deletes(&self, table: TableId) -> Vec<PredicateDelete> {
        let newest = self.newest().await;
        known_deletes(&newest, &self.state.read(), table)
    }

    /// Tables with files, as of the newest manifest in force.
    pub(crate) fn tables_with_files(&self) -> Vec<TableId> {
        let manifest = Arc::clone(&self.state.read().manifest);
        manifest.tables.keys().copied().collect()
    }
}

/// The table's files that are neither inputs of a job nor newer than all of them.
fn older_files(newest: &ManifestState, schema: &TableSchema, job: &CompactionJob) -> Vec<SstFile> {
    let Some(named) = newest.table(schema.table) else {
        return Vec::new();
    };
    let last = job.inputs.iter().map(|f| f.version_max).max();
    let is_input = |file: &SstFile| job.inputs.iter().any(|input| input.path == file.path);
    named
        .of_incarnation(schema.incarnation)
        .map(|entry| &entry.file)
        .filter(|file| Some(file.version_min) <= last && !is_input(file))
        .cloned()
        .collect()
}

/// Rows that the table's newest TTL hides.
fn newest_cut(state: &ShardState, table: TableId, now_ms: TimestampMs) -> Option<TtlCut> {
    TtlCut::of(state.fold.schema(table)?, now_ms)
}

/// All predicate deletes that files named by `newest` may need, as of the state's position.
///
/// The manifest in force counts too: since `newest` was read, a flush may have taken deletes from
/// the state's list over into its manifest. An output says that everything up to the position was
/// applied to it; one forgotten here would bring its rows back for ever.
fn known_deletes(
    newest: &ManifestState,
    state: &ShardState,
    table: TableId,
) -> Vec<PredicateDelete> {
    let named = [newest, &*state.manifest];
    let named = named.into_iter().filter_map(|m| m.table(table));
    let fresh = state.deletes.get(&table).into_iter().flatten();
    let mut deletes: Vec<PredicateDelete> = named
        .flat_map(|t| &t.deletes)
        .chain(fresh)
        .cloned()
        .collect();
    deletes.sort_by_key(|d| d.version);
    deletes.dedup();
    deletes
}

/// Whether a file has rows that its unit does not own (any more).
fn is_shared(owned: Option<&Arc<PartitionBounds>>, file: &SstFile) -> bool {
    !owns_all(owned.map(|o| &**o), file.bounds.as_deref())
}

fn table_edit(
    table: TableId,
    named: &TableFiles,
    remove: Vec<String>,
    add: Vec<FileEntry>,
) -> Edit {
    let mut files: Vec<FileEntry> = named.files.clone();
    files.retain(|f| !remove.contains(&f.file.path));
    files.extend(add.iter().cloned());
    let needed = needed_deletes(&files, named.deletes.iter());
    let deletes = (needed != named.deletes).then_some(needed);
    let edit = TableEdit {
        remove,
        add,
        deletes,
        ..TableEdit::default()
    };
    Edit {
        tables: vec![(table, edit)],
        ..Edit::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::format::Publisher;
    use shoal_types::{RowVersion, ShardId, WriterId};
    use shoal_wal::record::AttemptId;

    #[test]
    fn a_delete_that_a_flush_took_over_while_a_merge_was_planned_is_applied_by_it() {
        let nobody = Publisher {
            term: 1,
            writer: WriterId::generate(),
            attempt: AttemptId(uuid::Uuid::nil()),
        };
        let table = TableId::generate();
        let delete = |version| PredicateDelete {
            version: RowVersion(version),
            predicate: format!("v < {version}"),
        };
        let manifest = |deletes| {
            let mut manifest = ManifestState::before_first(ShardId::generate(), "c", nobody);
            let files = TableFiles {
                deletes,
                ..TableFiles::default()
            };
            manifest.tables.insert_mut(table, Arc::new(files));
            Arc::new(manifest)
        };
        let chosen_from = manifest(vec![delete(1)]);
        let mut state = ShardState::new(manifest(vec![delete(1), delete(2)]), 0);
        state.deletes.insert(table, vec![delete(3)]);
        let known = known_deletes(&chosen_from, &state, table);
        assert_eq!(known, [delete(1), delete(2), delete(3)]);
    }
}
