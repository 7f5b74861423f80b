//! What must hold between a manifest and its successor. Checked before every publish, also in
//! release builds: a manifest that breaks one of these would lose or double rows for every replica
//! that opens from it, and is better not written.

use shoal_sst::SstFile;
use shoal_types::{TableId, TableMode};

use super::format::{Edit, LossKind, TableEdit, TableFiles};
use super::state::ManifestState;

/// Checks `new`, which is `old` after `edit`. The cost is that of what the edit touches.
///
/// # Errors
/// The rule that is broken, with the ids that find it.
pub fn check(old: &ManifestState, new: &ManifestState, edit: &Edit) -> Result<(), String> {
    if new.shard != old.shard || new.cluster != old.cluster {
        return Err("a manifest may not change its shard or cluster".into());
    }
    if new.version() != old.version().next() && old.hash != 0 {
        return Err(format!(
            "manifest {} may not follow {}",
            new.version(),
            old.version()
        ));
    }
    if new.publisher.term < old.publisher.term {
        return Err(format!(
            "term {} is below the newest manifest's {}",
            new.publisher.term, old.publisher.term
        ));
    }
    if new.publisher.term == old.publisher.term
        && new.publisher.writer != old.publisher.writer
        && old.hash != 0
    {
        return Err(format!("term {} has two writers", new.publisher.term));
    }
    if new.replay_offset() < old.replay_offset() {
        return Err(format!(
            "the replay offset goes back from {} to {}",
            old.replay_offset(),
            new.replay_offset()
        ));
    }
    if new.fold.claim().0 < old.fold.claim().0 {
        return Err("the fold's epoch goes back".into());
    }
    if new.log.is_same(&old.log) {
        if !old.log.topic.is_empty() && new.log != old.log {
            return Err(format!(
                "the log changes from {:?} to {:?}",
                old.log.topic, new.log.topic
            ));
        }
    } else {
        check_adoption(old, new, edit)?;
    }
    // Residue carries rows that are below the replay offset and in no file: it may change only
    // together with the position, or rows are lost.
    if edit.residue.is_some() && edit.fold.is_none() {
        return Err("the residue changes without the replay offset".into());
    }
    for (id, table_edit) in &edit.tables {
        if let Some(files) = new.table(*id) {
            check_table(*id, files, new, table_edit)?;
            if edit.fold.is_none() && !table_edit.add.is_empty() {
                check_no_rows_lost(*id, old, files)?;
            }
        }
    }
    Ok(())
}

/// Another log may take the place of the last one only in a new term, above all positions so far,
/// and with a trace of what lies between.
fn check_adoption(old: &ManifestState, new: &ManifestState, edit: &Edit) -> Result<(), String> {
    let broken = |rule: &str| {
        Err(format!(
            "the log changes from {:?} to {:?}, {rule}",
            old.log, new.log
        ))
    };
    if new.publisher.term <= old.publisher.term && new.publisher.writer != old.publisher.writer {
        return broken("without a higher term");
    }
    if new.log.id.is_none() || new.log.shift > new.replay_offset().0 {
        return broken("and its beginning is not told");
    }
    if new.replay_offset() <= old.replay_offset() {
        return broken("and positions begin again");
    }
    let traced = edit.losses.iter().any(|loss| {
        loss.kind == LossKind::LogAdopted && loss.to == new.replay_offset() && loss.from < loss.to
    });
    if !traced {
        return broken("and nothing says so");
    }
    Ok(())
}

fn check_table(
    id: TableId,
    files: &TableFiles,
    new: &ManifestState,
    edit: &TableEdit,
) -> Result<(), String> {
    let Some(schema) = new.fold.schema(id) else {
        return Err(format!("table {id} has files but no schema"));
    };
    for entry in &files.files {
        let file = &entry.file;
        if file.table != id {
            return Err(format!("file {} is of table {}", file.path, file.table));
        }
        if file.incarnation > schema.incarnation || file.schema_version > schema.version {
            return Err(format!(
                "file {} is newer than the schema of its table",
                file.path
            ));
        }
        if file.version_min > file.version_max || file.key_min > file.key_max {
            return Err(format!("file {} has its bounds reversed", file.path));
        }
        if file.version_max >= new.fold.row_version(new.replay_offset(), 0) {
            return Err(format!(
                "file {} holds rows at or above the replay offset, which would be doubled",
                file.path
            ));
        }
    }
    // Where versions of two files overlap, keys or times must not meet, or nobody could tell which
    // row of a key is the newer. What was there before was checked when it came.
    // Rows of append tables do not replace one another (a file of rows without a time meets all
    // others of its flush).
    for added in &edit.add {
        let a = &added.file;
        let same_path = files.files.iter().filter(|f| f.file.path == a.path);
        if same_path.count() != 1 {
            return Err(format!("file {} is named twice", a.path));
        }
        for b in files.files.iter().map(|f| &f.file) {
            let apart = b.version_min > a.version_max || a.version_min > b.version_max;
            let append = schema.mode == TableMode::Append;
            // Of two units that were joined.
            let apart = apart || owned_apart(a, b);
            if append || apart || a.path == b.path || a.incarnation != b.incarnation {
                continue;
            }
            if a.may_share_keys(b) {
                return Err(format!(
                    "files {} and {} interleave: versions {}..{} and {}..{} with keys that meet",
                    a.path, b.path, a.version_min, a.version_max, b.version_min, b.version_max
                ));
            }
        }
    }
    if files
        .deletes
        .windows(2)
        .any(|w| w[0].version > w[1].version)
    {
        return Err(format!("predicate deletes of table {id} are out of order"));
    }
    Ok(())
}

/// Whether two files were written under bounds that do not meet, so that their keys do not.
fn owned_apart(a: &SstFile, b: &SstFile) -> bool {
    let bounds = a.bounds.as_ref().zip(b.bounds.as_ref());
    bounds.is_some_and(|(a, b)| a.by == b.by && !a.extent.meets(&b.extent))
}

/// A rewrite without a new position (compaction) names no rows newer than what it replaced.
fn check_no_rows_lost(id: TableId, old: &ManifestState, new: &TableFiles) -> Result<(), String> {
    let newest = |t: &TableFiles| t.files.iter().map(|f| f.file.version_max).max();
    let before = old.table(id).and_then(|t| newest(t));
    if newest(new) > before {
        return Err(format!(
            "a rewrite of table {id} names rows newer than those it replaced"
        ));
    }
    Ok(())
}
