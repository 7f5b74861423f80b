//! Rows in.
//!
//! Order: check the blocks → wait for room in memory (bounded) → route by table to shards → cut
//! into records, encode → hand each shard its records in order, all shards side by side → wait for
//! all verdicts. The unit that is applied whole or not at all is one record; a request that became
//! several may fail in part, and then says so unless a write id makes its retry harmless.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_rows::RowBlock;
use shoal_types::{Retry, ShardId, WriteId};
use shoal_wal::record::{ImportChunk, Payload, TableWrite, Write, WriteHeader, WriteIdPart};

use super::{Commit, CommitToken, Database, TableHandle, WriteOptions, as_write_error};
use crate::shard::Shard;
use crate::shard::parts::{Part, PartLimits, cut};
use crate::shard::write::Acknowledged;
use crate::{EngineError, WriteError};

/// Rows above this are cut and encoded on a thread of their own.
const INLINE_BYTES_MAX: usize = 256 << 10;

struct Outgoing {
    shard: Arc<Shard>,
    parts: Vec<Part>,
}

impl Database {
    /// Writes rows; returns when they are durable and applied.
    ///
    /// # Errors
    /// [`WriteError`]; its `retry()` tells what the caller may do.
    pub async fn write(
        &self,
        blocks: Vec<RowBlock>,
        options: WriteOptions,
    ) -> Result<Commit, WriteError> {
        let patience = self.write_patience(&options);
        let mut rows = 0;
        let mut by_shard: BTreeMap<ShardId, Vec<RowBlock>> = BTreeMap::new();
        if options.read_at.is_none() {
            let tables = blocks.iter().map(|block| block.table);
            self.shared.holds.wait(tables, patience).await?;
        }
        for block in blocks {
            block
                .check()
                .map_err(|e| WriteError::Invalid(e.to_string()))?;
            if block.rows() == 0 {
                continue;
            }
            rows += block.rows() as u64;
            let shard = self.shard_of(block.table)?;
            by_shard.entry(shard).or_default().push(block);
        }
        if options.import.is_some() {
            // Every shard notes every chunk, also those that have no rows for it: then the least
            // progress of all shards is the progress of the import.
            for shard in self.shared.open_shards() {
                by_shard.entry(shard.id).or_default();
            }
        }
        if by_shard.is_empty() {
            return Ok(Commit::default());
        }
        if options.atomic && by_shard.len() > 1 {
            return Err(WriteError::TooLargeForAtomic {
                what: format!(
                    "its tables are on {} shards; send one table at a time",
                    by_shard.len()
                ),
            });
        }
        self.wait_for_memory(patience).await?;
        let outgoing = self.cut_all(by_shard, &options).await?;
        let sent = outgoing
            .into_iter()
            .map(|o| self.write_shard(o, &options, patience));
        let outcomes = futures::future::join_all(sent).await;
        self.gather(outcomes.into_iter().flatten().collect(), rows, &options)
    }

    /// Deletes the rows of an append table that match an SQL predicate, as one record.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn delete_where(
        &self,
        table: &TableHandle,
        predicate: &str,
        options: WriteOptions,
    ) -> Result<Commit, WriteError> {
        let patience = self.write_patience(&options);
        let tables = std::iter::once(table.id);
        self.shared.holds.wait(tables, patience).await?;
        let shard = self.shared.shard(table.shard).map_err(as_write_error)?;
        let Some(schema) = shard.schema(table.id) else {
            return Err(self.dropped(table.id));
        };
        let part = Part {
            tables: vec![TableWrite {
                table: table.id,
                incarnation: schema.incarnation,
                columns: Vec::new(),
                rows: 0,
                delete_where: Some(predicate.to_owned()),
            }],
            body: Bytes::new(),
            blocks: Vec::new(),
        };
        let outgoing = Outgoing {
            shard,
            parts: vec![part],
        };
        let outcomes = self.write_shard(outgoing, &options, patience).await;
        self.gather(outcomes, 0, &options)
    }

    /// Puts `rows` in the place of the rows of an append table that match an SQL predicate, in one
    /// record: no reader sees both or neither. `rows` may be as they please, they are not compared
    /// with the predicate. With `options.read_at` nothing is done if the table changed since.
    ///
    /// # Errors
    /// [`WriteError`]; `TooLargeForAtomic` if the rows need more than one record.
    pub async fn replace_where(
        &self,
        table: &TableHandle,
        predicate: &str,
        rows: Vec<RowBlock>,
        options: WriteOptions,
    ) -> Result<Commit, WriteError> {
        let patience = self.write_patience(&options);
        let mut count = 0;
        for block in &rows {
            block
                .check()
                .map_err(|e| WriteError::Invalid(e.to_string()))?;
            if block.table != table.id || block.rows() == 0 {
                return Err(WriteError::Invalid(
                    "rows of another table, or none, in the place of others".into(),
                ));
            }
            count += block.rows() as u64;
        }
        self.wait_for_memory(patience).await?;
        let options = WriteOptions {
            atomic: true,
            ..options
        };
        let by_shard = BTreeMap::from([(table.shard, rows)]);
        let mut outgoing = self.cut_all(by_shard, &options).await?;
        let Some(mut outgoing) = outgoing.pop() else {
            return Err(WriteError::Invalid("no rows in the place of others".into()));
        };
        // The delete comes before all rows of the record, whichever entry has it.
        let entry = outgoing
            .parts
            .first_mut()
            .and_then(|p| p.tables.first_mut());
        let Some(entry) = entry else {
            return Err(WriteError::Invalid("no rows in the place of others".into()));
        };
        entry.delete_where = Some(predicate.to_owned());
        let outcomes = self.write_shard(outgoing, &options, patience).await;
        self.gather(outcomes, count, &options)
    }

    /// Whether a write to a table's shard with this id was applied, as far as is remembered here.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`].
    pub fn was_applied(&self, table: &TableHandle, id: WriteId) -> Result<bool, EngineError> {
        let shard = self.shared.shard(table.shard)?;
        Ok(shard.state.read().fold.has_write_id(id))
    }

    fn write_patience(&self, options: &WriteOptions) -> Duration {
        options.timeout.unwrap_or(self.shared.patience())
    }

    fn dropped(&self, table: shoal_types::TableId) -> WriteError {
        WriteError::Invalid(format!("table {table} does not exist any more"))
    }

    fn shard_of(&self, table: shoal_types::TableId) -> Result<ShardId, WriteError> {
        self.shared
            .env
            .catalog
            .placement(table)
            .map(|entry| entry.shard)
            .ok_or_else(|| self.dropped(table))
    }

    /// Waits while rows in memory exceed one and a half times their budget: flushes lag behind.
    async fn wait_for_memory(&self, patience: Duration) -> Result<(), WriteError> {
        let env = &self.shared.env;
        let max = env.config.memtable_bytes_max;
        let limit = max.saturating_add(max / 2);
        let relieved = async {
            loop {
                let told = env.memory.relieved.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                if env.memory.used() <= limit {
                    return;
                }
                env.wake.notify_one();
                told.await;
            }
        };
        tokio::time::timeout(patience, relieved).await.map_err(|_| {
            let troubles: Vec<_> = self
                .shared
                .open_shards()
                .iter()
                .filter_map(|s| s.trouble.lock().clone())
                .collect();
            let why = troubles.first().map_or(String::new(), |t| format!(": {t}"));
            WriteError::Overloaded(format!(
                "{} bytes of rows wait to be flushed, {limit} are allowed{why}",
                env.memory.used()
            ))
        })
    }

    async fn cut_all(
        &self,
        by_shard: BTreeMap<ShardId, Vec<RowBlock>>,
        options: &WriteOptions,
    ) -> Result<Vec<Outgoing>, WriteError> {
        let config = &self.shared.env.config;
        let limits = PartLimits {
            bytes_max: config.record_bytes_max,
            rows_max: config.record_rows_max.clamp(1, 65_536),
        };
        let mut outgoing = Vec::with_capacity(by_shard.len());
        for (shard, blocks) in by_shard {
            let shard = self.shared.shard(shard).map_err(as_write_error)?;
            let bytes: usize = blocks.iter().map(RowBlock::memory_bytes).sum();
            let mut parts = if bytes > INLINE_BYTES_MAX {
                tokio::task::spawn_blocking(move || cut(blocks, limits))
                    .await
                    .map_err(|e| WriteError::Invalid(format!("encoding rows: {e}")))??
            } else {
                cut(blocks, limits)?
            };
            if options.atomic && parts.len() > 1 {
                return Err(WriteError::TooLargeForAtomic {
                    what: format!(
                        "its rows need {} records of at most {} bytes and {} rows",
                        parts.len(),
                        limits.bytes_max,
                        limits.rows_max
                    ),
                });
            }
            if parts.is_empty() {
                parts.push(Part {
                    tables: Vec::new(),
                    body: Bytes::new(),
                    blocks: Vec::new(),
                });
            }
            outgoing.push(Outgoing { shard, parts });
        }
        Ok(outgoing)
    }

    /// Sends a shard's records in order and waits for all of them.
    async fn write_shard(
        &self,
        outgoing: Outgoing,
        options: &WriteOptions,
        patience: Duration,
    ) -> Vec<(ShardId, Result<Acknowledged, WriteError>)> {
        let Outgoing { shard, parts } = outgoing;
        let id = shard.id;
        let count = parts.len();
        let write_id = self.id_of_parts(options, count);
        let generation = shard.state.read().fold.generation();
        let mut waiting = Vec::with_capacity(count);
        let mut outcomes = Vec::with_capacity(count);
        for (number, part) in parts.into_iter().enumerate() {
            let read_at = match options.read_at {
                Some(at) if at.shard == id => Some(at.position),
                Some(_) => {
                    let error = WriteError::Invalid(
                        "rows and read position are of different shards".into(),
                    );
                    return vec![(id, Err(error))];
                }
                None => None,
            };
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let header = WriteHeader {
                generation,
                tables: part.tables,
                write_id: write_id.map(|id| WriteIdPart { id, part: number }),
                import: options.import.map(|chunk| ImportChunk {
                    part: number,
                    last_part: number as usize + 1 == count,
                    ..chunk
                }),
                read_at,
            };
            let payload = Payload::Write(Write {
                header,
                body: part.body,
            });
            match shard.send(payload, part.blocks, patience).await {
                Ok(receiver) => waiting.push(receiver),
                Err(error) => {
                    // Later parts without this one would be out of order.
                    outcomes.push((id, Err(error)));
                    break;
                }
            }
        }
        for receiver in waiting {
            outcomes.push((id, shard.answer(receiver, patience).await));
        }
        outcomes
    }

    /// An UPDATE or DELETE of several records needs an id, so that its own earlier parts are no
    /// conflict for the later ones.
    fn id_of_parts(&self, options: &WriteOptions, parts: usize) -> Option<WriteId> {
        if options.write_id.is_some() || options.read_at.is_none() || parts < 2 {
            return options.write_id;
        }
        let random = uuid::Uuid::new_v4().as_u128();
        let ulid = ulid::Ulid::from_parts(self.shared.env.clock.now_ms(), random);
        Some(WriteId(ulid.0))
    }

    fn gather(
        &self,
        outcomes: Vec<(ShardId, Result<Acknowledged, WriteError>)>,
        rows: u64,
        options: &WriteOptions,
    ) -> Result<Commit, WriteError> {
        let mut commit = Commit {
            tokens: Vec::new(),
            rows,
            duplicate: !outcomes.is_empty(),
        };
        let mut failed = None;
        let mut applied = false;
        for (shard, outcome) in outcomes {
            match outcome {
                Ok(done) => {
                    applied = true;
                    commit.duplicate &= done.duplicate;
                    let token = CommitToken {
                        shard,
                        epoch: done.epoch,
                        offset: done.offset,
                    };
                    match commit.tokens.iter_mut().find(|t| t.shard == shard) {
                        Some(known) if known.offset < token.offset => *known = token,
                        Some(_) => {}
                        None => commit.tokens.push(token),
                    }
                }
                Err(error) => failed = worse(failed, error),
            }
        }
        let Some(error) = failed else {
            return Ok(commit);
        };
        let harmless = options.write_id.is_some() || options.import.is_some();
        Err(match error {
            WriteError::StaleSchema { table }
                if self.shared.env.catalog.placement(table).is_none() =>
            {
                self.dropped(table)
            }
            other if applied && !harmless && other.retry() != Retry::Unknown => {
                WriteError::OutcomeUnknown(format!(
                    "part of the rows was written, the rest was not: {other}"
                ))
            }
            other => other,
        })
    }

    /// For a resumable import: the chunk to go on with, the least over all shards being served
    /// (every shard notes every chunk); `None`: nothing of it is known. A client may have several
    /// chunks on their way; after an interruption it sends again from here, and shards that have a
    /// chunk already answer it as a duplicate.
    pub fn import_progress(&self, import: u128) -> Option<u64> {
        let progress: Vec<Option<u64>> = self
            .shared
            .open_shards()
            .iter()
            .map(|s| s.state.read().fold.import_progress(import))
            .collect();
        if progress.iter().all(Option::is_none) {
            return None;
        }
        progress.into_iter().map(Option::unwrap_or_default).min()
    }
}

/// Of two failures of one request, the one that says less about what happened: a caller that may
/// retry after both may retry after it.
fn worse(a: Option<WriteError>, b: WriteError) -> Option<WriteError> {
    let rank = |e: &WriteError| match e.retry() {
        Retry::Unknown => 2,
        Retry::Never => 1,
        Retry::Safe => 0,
    };
    match a {
        Some(a) if rank(&a) >= rank(&b) => Some(a),
        _ => Some(b),
    }
}
