//! `shoal inspect`: what is on disk, offline. Nothing is written and no lock is taken, so a
//! running process may be looked at too; its newest bytes may then look torn.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use object_store::local::LocalFileSystem;
use serde_json::{Value, json};
use shoal_engine::manifest::Manifest;
use shoal_wal::local::inspect::{FrameRecord, LogContent, LogItem, inspect};

use super::{CliError, CliResult, chain, counted};

/// Show logs, manifests and files on disk.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    #[command(subcommand)]
    what: What,
    /// One JSON document a line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Every segment, batch and record of a log folder (`DATA_DIR/wal`).
    Wal {
        /// The log's folder, or the data folder.
        dir: PathBuf,
    },
    /// Manifests: a file, or a folder with all below it.
    Manifest {
        /// A manifest, a shard's manifest folder, or the data folder.
        path: PathBuf,
        /// All of the manifest, not only its summary.
        #[arg(long)]
        full: bool,
    },
    /// SST files: layout, statistics, checksums.
    Sst {
        /// Files, or folders with all `.parquet` files below them.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

/// Shows it. Damage found is exit code 1.
pub async fn run(args: InspectArgs) -> CliResult {
    let mut out = Output {
        json: args.json,
        damage: 0,
    };
    match args.what {
        What::Wal { dir } => wal(&mut out, &dir)?,
        What::Manifest { path, full } => manifests(&mut out, &path, full)?,
        What::Sst { paths } => ssts(&mut out, &paths).await?,
    }
    if out.damage > 0 {
        return Err(CliError::failed(counted(
            out.damage as u64,
            "damaged place",
        )));
    }
    Ok(ExitCode::SUCCESS)
}

struct Output {
    json: bool,
    damage: usize,
}

impl Output {
    /// `false`: nobody reads any more (`| head`).
    fn line(&self, text: &str, document: impl FnOnce() -> Value) -> bool {
        let mut stdout = std::io::stdout().lock();
        let written = if self.json {
            writeln!(stdout, "{}", document())
        } else {
            writeln!(stdout, "{text}")
        };
        written.is_ok()
    }
}

fn wal(out: &mut Output, dir: &Path) -> Result<(), CliError> {
    let inner = dir.join("wal");
    let dir = if inner.is_dir() { &inner } else { dir };
    let items = inspect(dir)
        .map_err(|e| CliError::failed(format!("cannot read {}: {e}", dir.display())))?;
    let mut any = false;
    for item in items {
        any = true;
        let item = item.map_err(|e| CliError::failed(e.to_string()))?;
        if !show_log_item(out, &item) {
            return Ok(());
        }
    }
    if !any {
        return Err(CliError::failed(format!(
            "{} holds no log segments",
            dir.display()
        )));
    }
    Ok(())
}

fn show_log_item(out: &mut Output, item: &LogItem) -> bool {
    let place = json!({ "segment": item.segment, "byte": item.byte });
    let with = |mut extra: Value| {
        extra["segment"] = place["segment"].clone();
        extra["byte"] = place["byte"].clone();
        extra
    };
    match &item.content {
        LogContent::Segment {
            path,
            bytes,
            header,
        } => {
            let logs: Vec<Value> = header
                .iter()
                .flat_map(|(_, shards)| shards)
                .map(|(shard, start, next)| {
                    json!({ "shard": shard.to_string(), "start": start, "next": next })
                })
                .collect();
            let text = format!(
                "segment {} {bytes} bytes, {} logs",
                path.display(),
                logs.len()
            );
            out.line(&text, || {
                with(json!({ "kind": "segment", "path": path, "bytes": bytes, "logs": logs }))
            })
        }
        LogContent::Batch {
            number,
            frames,
            bytes,
        } => {
            let text = format!(
                "  batch {number} at byte {}: {frames} records, {bytes} bytes",
                item.byte
            );
            out.line(&text, || {
                with(json!({ "kind": "batch", "batch": number, "frames": frames, "bytes": bytes }))
            })
        }
        LogContent::Frame {
            shard,
            offset,
            bytes,
            record,
        } => {
            let what = match record {
                FrameRecord::Record(summary) => summary.text.clone(),
                FrameRecord::NotARecord(error) => format!("not a record of ours: {error}"),
                FrameRecord::Damaged { what } => {
                    out.damage += 1;
                    format!("DAMAGED: {what}")
                }
            };
            let text = format!("    {shard} @{offset} {bytes} bytes  {what}");
            out.line(&text, || {
                let mut document = json!({
                    "kind": "record",
                    "shard": shard.to_string(),
                    "offset": offset,
                    "bytes": bytes,
                    "text": what,
                });
                if let FrameRecord::Record(summary) = record {
                    document["stamp_ms"] = summary.stamp_ms.into();
                }
                with(document)
            })
        }
        LogContent::Damage { what } => {
            out.damage += 1;
            let text = format!("  DAMAGE at byte {}: {what}", item.byte);
            out.line(&text, || with(json!({ "kind": "damage", "text": what })))
        }
    }
}

fn manifests(out: &mut Output, path: &Path, full: bool) -> Result<(), CliError> {
    let files = files_below(path, &|p| {
        p.parent()
            .and_then(Path::file_name)
            .is_some_and(|d| d == "manifest")
            && p.file_name().is_some_and(|n| n.len() == 20)
    })?;
    for file in files {
        let bytes = std::fs::read(&file)
            .map_err(|e| CliError::failed(format!("cannot read {}: {e}", file.display())))?;
        let shown = match Manifest::decode(&bytes) {
            Ok(manifest) => {
                let document = serde_json::to_value(&manifest)
                    .unwrap_or_else(|e| json!({ "unshowable": e.to_string() }));
                let text = if full {
                    let pretty = serde_json::to_string_pretty(&document);
                    format!("{}\n{}", file.display(), pretty.unwrap_or_default())
                } else {
                    format!(
                        "{}  {} bytes, shard {}, version {}, term {}, {}",
                        file.display(),
                        bytes.len(),
                        manifest.shard,
                        manifest.version,
                        manifest.publisher.term,
                        summary(&document["body"])
                    )
                };
                out.line(&text, || json!({ "path": file, "manifest": document }))
            }
            Err(what) => {
                out.damage += 1;
                out.line(
                    &format!("{}  DAMAGED: {what}", file.display()),
                    || json!({ "path": file, "damage": what }),
                )
            }
        };
        if !shown {
            return Ok(());
        }
    }
    Ok(())
}

/// A manifest's body in a few words.
fn summary(body: &Value) -> String {
    let count = |v: &Value| v.as_array().map_or(0, Vec::len);
    if let Some(snapshot) = body.get("Snapshot") {
        let tables = count(&snapshot["tables"]);
        let files: usize = snapshot["tables"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|t| count(&t[1]["files"]))
            .sum();
        return format!(
            "snapshot at offset {}: {tables} tables with {files} files{}",
            snapshot["replay_offset"],
            losses(snapshot)
        );
    }
    let edit = &body["Edit"];
    let changed = |name: &str| -> usize {
        let tables = edit["tables"].as_array().into_iter().flatten();
        tables.map(|t| count(&t[1][name])).sum()
    };
    format!(
        "edit of {} tables: {} files added, {} removed{}",
        count(&edit["tables"]),
        changed("add"),
        changed("remove"),
        losses(edit)
    )
}

/// What operators gave up, a line each.
fn losses(body: &Value) -> String {
    let losses = body["losses"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    losses
        .map(|loss| {
            format!(
                "\n    GIVEN UP: {} positions {} to {} at {} ms by {} ({}); reason: {}",
                text(&loss["kind"]),
                loss["from"],
                loss["to"],
                loss["at_ms"],
                text(&loss["node"]),
                text(&loss["what"]),
                text(&loss["reason"])
            )
        })
        .collect()
}

async fn ssts(out: &mut Output, paths: &[PathBuf]) -> Result<(), CliError> {
    for path in paths {
        let files = files_below(path, &|p| p.extension().is_some_and(|e| e == "parquet"))?;
        for file in files {
            if !sst(out, &file).await? {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn sst(out: &mut Output, file: &Path) -> Result<bool, CliError> {
    let unreadable =
        |e: &dyn std::error::Error| CliError::failed(format!("{}: {}", file.display(), chain(e)));
    let absolute = std::fs::canonicalize(file).map_err(|e| unreadable(&e))?;
    let (Some(dir), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(CliError::failed(format!("{} is no file", file.display())));
    };
    let store = LocalFileSystem::new_with_prefix(dir).map_err(|e| unreadable(&e))?;
    let name = object_store::path::Path::from(name.to_string_lossy().into_owned());
    let description = match shoal_sst::describe(&store, &name).await {
        Ok(description) => description,
        Err(error) => {
            out.damage += 1;
            let what = chain(&error);
            return Ok(out.line(
                &format!("{}  DAMAGED: {what}", file.display()),
                || json!({ "path": file, "damage": what }),
            ));
        }
    };
    let mut text = format!(
        "{}  {} rows, {} bytes ({:.2} a row), {} row groups, {} series indexed",
        file.display(),
        description.rows,
        description.bytes,
        description.bytes_per_row,
        description.row_groups,
        description
            .indexed_series
            .map_or_else(|| "no".into(), |n| n.to_string()),
    );
    for column in &description.columns {
        text.push_str(&format!(
            "\n  {:24} {:16} {:>12} bytes {:>8.2} a row {:>6} pages  {} {}{}",
            column.name,
            column.physical_type,
            column.bytes,
            column.bytes_per_row,
            column.pages,
            column.compression,
            column.encodings.join("+"),
            if column.bloom_filter { " bloom" } else { "" },
        ));
    }
    Ok(out.line(&text, || {
        let mut document = serde_json::to_value(&description)
            .unwrap_or_else(|e| json!({ "unshowable": e.to_string() }));
        document["path"] = json!(file);
        document
    }))
}

/// The file itself, or all files below a folder that `wanted` picks, sorted.
fn files_below(path: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>, CliError> {
    let unreadable = |p: &Path, e: &std::io::Error| {
        CliError::failed(format!("cannot read {}: {e}", p.display()))
    };
    if !path.is_dir() {
        std::fs::metadata(path).map_err(|e| unreadable(path, &e))?;
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, &e))? {
            let entry = entry.map_err(|e| unreadable(&folder, &e))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(|e| unreadable(&path, &e))?;
            if kind.is_dir() {
                folders.push(path);
            } else if wanted(&path) {
                found.push(path);
            }
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(CliError::failed(format!(
            "nothing to show below {}",
            path.display()
        )));
    }
    Ok(found)
}
