//! Rows in.
//!
//! Order: check the blocks → wait for room in memory (bounded) → route by table to shards → cut
//! into records, encode → hand each shard its records in order, all shards side by side → wait for
//! all verdicts. The unit that is applied whole or not at all is one record; a request that became
//! several may fail in part, and then says so unless a write id makes its retry harmless.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use shoal_rows::RowBlock;
use shoal_types::{Offset, Retry, ShardId, WriteId};
use shoal_wal::record::{ImportChunk, Payload, TableWrite, Write, WriteHeader, WriteIdPart};

use super::{Commit, CommitToken, Database, TableHandle, WriteOptions, as_write_error};
use crate::peers::{RecordPart, ShardCommit, ShardWrite};
use crate::shard::Shard;
use crate::shard::parts::{Part, PartLimits, cut};
use crate::shard::write::Acknowledged;
use crate::{EngineError, WriteError};

/// Rows above this are cut and encoded on a thread of their own.
const INLINE_BYTES_MAX: usize = 256 << 10;

struct Outgoing {
    shard: ShardId,
    parts: Vec<Part>,
}

/// What became of one record, or of all of a shard's records where another node wrote them.
pub(super) type Outcome = Result<Acknowledged, WriteError>;

/// A request's records for one shard.
#[derive(Clone)]
pub(crate) struct Sending {
    pub write_id: Option<WriteId>,
    pub import: Option<ImportChunk>,
    pub read_at: Option<Offset>,
    pub parts: Vec<Part>,
}

impl Sending {
    /// Whether records may be sent again that may have taken effect.
    pub(super) fn is_idempotent(&self) -> bool {
        self.write_id.is_some() || self.import.is_some()
    }

    pub(super) fn to_shard_write(&self) -> ShardWrite {
        let parts = self.parts.iter().map(|part| RecordPart {
            tables: part.tables.clone(),
            body: part.body.clone(),
        });
        ShardWrite {
            write_id: self.write_id,
            import: self.import,
            read_at: self.read_at,
            parts: parts.collect(),
        }
    }
}

impl From<ShardCommit> for Acknowledged {
    fn from(commit: ShardCommit) -> Self {
        Self {
            epoch: commit.epoch,
            offset: commit.offset,
            duplicate: commit.duplicate,
        }
    }
}

impl Shard {
    /// Sends records in order and waits for all of them; one outcome a record that was tried.
    pub(super) async fn send_parts(&self, sending: Sending, patience: Duration) -> Vec<Outcome> {
        let count = sending.parts.len();
        let generation = self.state.read().fold.generation();
        let mut waiting = Vec::with_capacity(count);
        let mut outcomes = Vec::with_capacity(count);
        for (number, part) in sending.parts.into_iter().enumerate() {
            let last_part = number + 1 == count;
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let header = WriteHeader {
                generation,
                tables: part.tables,
                write_id: sending.write_id.map(|id| WriteIdPart { id, part: number }),
                import: sending.import.map(|chunk| ImportChunk {
                    part: number,
                    last_part,
                    ..chunk
                }),
                read_at: sending.read_at,
            };
            let payload = Payload::Write(Write {
                header,
                body: part.body,
            });
            match self.send(payload, part.blocks, patience).await {
                Ok(receiver) => waiting.push(receiver),
                Err(error) => {
                    // Later parts without this one would be out of order.
                    outcomes.push(Err(error));
                    break;
                }
            }
        }
        for receiver in waiting {
            outcomes.push(self.answer(receiver, patience).await);
        }
        outcomes
    }
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
            for shard in self.shared.slots.values() {
                // One process alone goes on without a shard that it cannot open.
                if self.shared.peers().is_some() || shard.shard().is_ok() {
                    by_shard.entry(shard.id).or_default();
                }
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
        let schema = match self.shared.current_schema(table).await {
            Ok(schema) => schema,
            Err(EngineError::NotFound { .. }) => return Err(self.dropped(table.id)),
            Err(error) => return Err(as_write_error(error)),
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
            shard: table.shard,
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
    pub(super) async fn wait_for_memory(&self, patience: Duration) -> Result<(), WriteError> {
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
        let env = &self.shared.env;
        let numbered = options.write_id.is_some() || options.import.is_some();
        let limits = if numbered && !options.atomic {
            env.stable_limits
        } else {
            PartLimits::of(&env.config)
        };
        let mut outgoing = Vec::with_capacity(by_shard.len());
        for (shard, blocks) in by_shard {
            if self.shared.peers().is_none() {
                self.shared.shard(shard).map_err(as_write_error)?;
            }
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

    /// Writes a shard's records in order, here or through another node, and waits for all of them.
    async fn write_shard(
        &self,
        outgoing: Outgoing,
        options: &WriteOptions,
        patience: Duration,
    ) -> Vec<(ShardId, Outcome)> {
        let Outgoing { shard: id, parts } = outgoing;
        let read_at = match options.read_at {
            Some(at) if at.shard == id => Some(at.position),
            Some(_) => {
                let error =
                    WriteError::Invalid("rows and read position are of different shards".into());
                return vec![(id, Err(error))];
            }
            None => None,
        };
        let sending = Sending {
            write_id: self.id_of_parts(options, parts.len()),
            import: options.import,
            read_at,
            parts,
        };
        let outcomes = self.shared.deliver(id, sending, patience).await;
        outcomes.into_iter().map(|outcome| (id, outcome)).collect()
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
        outcomes: Vec<(ShardId, Outcome)>,
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
}

/// Of two failures of one request, the one that says less about what happened: a caller that may
/// retry after both may retry after it.
pub(super) fn worse(a: Option<WriteError>, b: WriteError) -> Option<WriteError> {
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
