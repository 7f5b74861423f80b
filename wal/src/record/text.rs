//! A record in one line, for logs and `shoal inspect wal`.

use std::fmt;

use super::{Move, Payload, Record, SchemaChange, WriteHeader};

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.payload {
            Payload::Genesis(genesis) => write!(
                f,
                "genesis of {} (cluster {}, shard {})",
                genesis.topic, genesis.cluster, genesis.shard
            ),
            Payload::Claim(manifest) => {
                write!(f, "claim {}", self.epoch)?;
                write!(f, " opened from manifest {}", manifest.version)
            }
            Payload::Barrier(mark) => write!(f, "barrier {mark}"),
            Payload::Manifest(manifest) => write!(f, "manifest {}", manifest.version),
            Payload::Schema(changes) => {
                f.write_str("schema:")?;
                changes.iter().try_for_each(|change| match change {
                    SchemaChange::Put(schema) => {
                        write!(f, " put {} version {}", schema.table, schema.version)
                    }
                    SchemaChange::Drop { table } => write!(f, " drop {table}"),
                    SchemaChange::Own { table, of, .. } => write!(f, " {table} is a part of {of}"),
                })
            }
            Payload::Split(split) => {
                write!(f, "split {} by manifest ", split.procedure)?;
                write!(f, "{} to {}:", split.manifest.version, split.child)?;
                split.moves.iter().try_for_each(|m| fmt_move(m, f))
            }
            Payload::Seal { procedure } => write!(f, "seal {procedure}"),
            Payload::Unseal { procedure } => write!(f, "unseal {procedure}"),
            Payload::Merge(merge) => write!(
                f,
                "merge {} of {}, sealed at {}, manifest {}: {} units, {} write ids",
                merge.procedure,
                merge.source,
                merge.seal,
                merge.manifest.version,
                merge.fold.schemas.len(),
                merge.fold.write_ids.len()
            ),
            Payload::Abort { procedure } => write!(f, "abort {procedure}"),
            Payload::Recut(recut) => {
                write!(f, "recut {} by manifest ", recut.procedure)?;
                write!(f, "{}:", recut.manifest.version)?;
                recut.cuts.iter().try_for_each(|m| fmt_move(m, f))?;
                let mut joins = recut.joins.iter();
                joins.try_for_each(|j| write!(f, " join {} and {}", j.left, j.right))
            }
            Payload::Write(write) => {
                write!(f, "write of {} bytes:", write.body.len())?;
                fmt_header(&write.header, f)
            }
        }
    }
}

fn fmt_move(one: &Move, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match &one.cut {
        Some(cut) => write!(f, " cut {} from {}", cut.right_unit, one.unit),
        None => write!(f, " move {}", one.unit),
    }
}

fn fmt_header(header: &WriteHeader, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for table in &header.tables {
        write!(f, " {} rows of {}", table.rows, table.table)?;
        if let Some(predicate) = &table.delete_where {
            write!(f, " delete where {predicate:?}")?;
        }
    }
    if let Some(part) = &header.write_id {
        write!(f, ", write id {} part {}", part.id, part.part)?;
    }
    for one in header.besides.iter().flatten() {
        let of = if one.bounds.is_some() {
            "a part"
        } else {
            "all"
        };
        write!(f, ", without {of} of {}", one.unit)?;
    }
    if let Some(chunk) = &header.import {
        let last = if chunk.last_part { " (last)" } else { "" };
        write!(
            f,
            ", import {:032x} chunk {} part {}{last}",
            chunk.import, chunk.chunk, chunk.part
        )?;
    }
    if let Some(read_at) = header.read_at {
        write!(f, ", read at {read_at}")?;
    }
    Ok(())
}
