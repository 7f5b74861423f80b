//! Rows in.
//!
//! Order: check the blocks → wait for room in memory (bounded) → route rows to the shards of their
//! partitions → cut into records, encode → hand each shard its records in order, all shards side by
//! side → wait for all verdicts. The unit that is applied whole or not at all is one record; a
//! request that became several may fail in part, and then says so unless a write id makes its retry
//! harmless.
//!
//! A request that may be sent again is cut before it is routed: its part `n` has the same rows in
//! every try, and each shard's record of it says which units it brings all rows of (the fold's
//! `write_ids`).

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_meta::PARTITIONS_MAX;
use shoal_rows::RowBlock;
use shoal_types::{Offset, Retry, ShardId, TableId, WriteId};
use shoal_wal::record::{
    Covered, ImportChunk, Payload, TableWrite, Write, WriteHeader, WriteIdPart,
};
use tokio::time::Instant;

use super::{Commit, CommitToken, Database, TableHandle, WriteOptions, as_write_error};
use crate::owned::fingerprint;
use crate::peers::{RecordPart, ShardCommit, ShardWrite};
use crate::shard::Shard;
use crate::shard::parts::{Part, PartLimits, cut, encode_share, group};
use crate::shard::write::{Acknowledged, Answer};
use crate::{EngineError, WriteError};

/// How often a record is sent again because more of it turned out to be applied.
const OVERLAPS_MAX: u32 = 8;
/// Rows above this are cut and encoded on a thread of their own.
const INLINE_BYTES_MAX: usize = 256 << 10;

/// What units owned when rows were routed to them.
pub(crate) type Owns = BTreeMap<TableId, Owned>;

/// What a unit owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owned {
    /// The table that it is a part of.
    pub table: TableId,
    /// [`fingerprint`] of its bounds.
    pub print: u64,
}

#[derive(Clone)]
struct Outgoing {
    shard: ShardId,
    owns: Owns,
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
    pub owns: Owns,
    pub parts: Vec<Part>,
}

impl Sending {
    /// Whether records may be sent again that may have taken effect.
    pub(super) fn is_idempotent(&self) -> bool {
        self.write_id.is_some() || self.import.is_some()
    }

    pub(super) fn to_shard_write(&self) -> ShardWrite {
        let parts = self.parts.iter().map(|part| RecordPart {
            number: part.number,
            last: part.last,
            tables: part.tables.clone(),
            body: part.body.clone(),
        });
        ShardWrite {
            write_id: self.write_id,
            import: self.import,
            read_at: self.read_at,
            owns: self
                .owns
                .iter()
                .map(|(unit, owned)| (*unit, owned.print))
                .collect(),
            parts: parts.collect(),
        }
    }
}

impl Acknowledged {
    fn as_commit(&self) -> ShardCommit {
        ShardCommit {
            epoch: self.epoch,
            offset: self.offset,
            duplicate: self.duplicate,
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
    /// Sends records in order and waits for all of them; one outcome a record that was tried, or
    /// [`WriteError::Moved`] alone, which says how many are written. Those
    /// that may be sent again go one after another: of one it may turn out that rows of it were
    /// applied before, and the rest must not come behind the next.
    pub(super) async fn send_parts(&self, sending: Sending, patience: Duration) -> Vec<Outcome> {
        let is_numbered = sending.is_idempotent();
        let mut waiting = Vec::with_capacity(sending.parts.len());
        let mut outcomes = Vec::with_capacity(sending.parts.len());
        for part in &sending.parts {
            if is_numbered {
                let outcome = self.send_numbered(&sending, part.clone(), patience).await;
                let failed = outcome.is_err();
                outcomes.push(outcome);
                if failed {
                    break;
                }
                continue;
            }
            match self.send_part(&sending, part.clone(), None, patience).await {
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
        match moved(&outcomes) {
            Some(moved) => vec![Err(moved)],
            None => outcomes,
        }
    }

    /// Sends a record that may have been sent before, and without what was applied of it.
    async fn send_numbered(
        &self,
        sending: &Sending,
        mut part: Part,
        patience: Duration,
    ) -> Outcome {
        let mut besides = Vec::new();
        for _ in 0..OVERLAPS_MAX {
            let sent = self
                .send_part(sending, part.clone(), Some(besides), patience)
                .await?;
            match self.answer(sent, patience).await {
                Err(WriteError::Overlaps { covered }) => {
                    part.leave_out(&covered, |unit| self.schema(unit))?;
                    besides = covered;
                }
                other => return other,
            }
        }
        Err(WriteError::Overloaded(format!(
            "shard {}: what it owns changes all the time",
            self.id
        )))
    }

    async fn send_part(
        &self,
        sending: &Sending,
        part: Part,
        besides: Option<Vec<Covered>>,
        patience: Duration,
    ) -> Result<tokio::sync::oneshot::Receiver<Answer>, WriteError> {
        let generation = self.routed_to(&sending.owns, &part.tables)?;
        let header = WriteHeader {
            generation,
            tables: part.tables,
            write_id: sending.write_id.map(|id| WriteIdPart {
                id,
                part: part.number,
            }),
            import: sending.import.map(|chunk| ImportChunk {
                part: part.number,
                last_part: part.last,
                ..chunk
            }),
            read_at: sending.read_at,
            besides,
        };
        let payload = Payload::Write(Write {
            header,
            body: part.body,
        });
        self.send(payload, part.blocks, patience).await
    }

    /// The generation in which every table of a record owns what its rows were routed by.
    fn routed_to(&self, owns: &Owns, tables: &[TableWrite]) -> Result<u64, WriteError> {
        let state = self.state.read();
        let fits = tables.iter().all(|write| {
            let (unit, fold) = (write.table, &state.fold);
            owns.get(&unit).is_none_or(|owned| {
                fold.schema(unit).is_some()
                    && fingerprint(fold.bounds(unit).map(|b| &**b)) == owned.print
            })
        });
        match fits {
            true => Ok(state.fold.generation()),
            false => Err(WriteError::Moved {
                shard: self.id,
                applied: 0,
                commit: None,
            }),
        }
    }
}

/// Outcomes of a shard's records as one, where those that were refused are to be routed anew.
fn moved(outcomes: &[Outcome]) -> Option<WriteError> {
    let at = outcomes.iter().position(is_moved)?;
    let (before, after) = outcomes.split_at(at);
    if !after.iter().all(is_moved) || before.iter().any(Result::is_err) {
        return None;
    }
    let Some(Err(WriteError::Moved {
        shard,
        applied,
        commit,
    })) = after.first()
    else {
        return None;
    };
    let last = before
        .iter()
        .rev()
        .find_map(|outcome| outcome.as_ref().ok());
    Some(WriteError::Moved {
        shard: *shard,
        applied: u32::try_from(at)
            .unwrap_or(u32::MAX)
            .saturating_add(*applied),
        commit: last.map(Acknowledged::as_commit).or(*commit),
    })
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
        for block in &blocks {
            block
                .check()
                .map_err(|e| WriteError::Invalid(e.to_string()))?;
            rows += block.rows() as u64;
        }
        let is_numbered = options.write_id.is_some() || options.import.is_some();
        if is_numbered && !options.atomic && options.read_at.is_none() {
            return self.write_numbered(blocks, rows, &options, patience).await;
        }
        let deadline = Instant::now() + patience;
        let (mut rest, mut outcomes) = (blocks, Vec::<(ShardId, Outcome)>::new());
        while !rest.is_empty() {
            let sent = match self
                .write_once(std::mem::take(&mut rest), &options, patience)
                .await
            {
                Ok(sent) => sent,
                Err(error) if outcomes.is_empty() => return Err(error),
                // Some of the rows are written.
                Err(error) => {
                    let (shard, _) = outcomes[0];
                    outcomes.push((shard, Err(error)));
                    break;
                }
            };
            for (outgoing, done) in sent {
                let Some((shard, Err(moved))) = done.iter().find(|(_, outcome)| is_moved(outcome))
                else {
                    outcomes.extend(done);
                    continue;
                };
                let WriteError::Moved {
                    applied, commit, ..
                } = moved
                else {
                    continue;
                };
                outcomes.extend(commit.map(|commit| (*shard, Ok(commit.into()))));
                if Instant::now() >= deadline {
                    outcomes.push((*shard, Err(changes_all_the_time(*shard))));
                    continue;
                }
                let left = outgoing.parts.iter().skip(*applied as usize);
                // By their table: the unit may be no partition any more.
                let blocks = left.flat_map(|part| &part.blocks).map(|block| RowBlock {
                    table: outgoing
                        .owns
                        .get(&block.table)
                        .map_or(block.table, |o| o.table),
                    ..RowBlock::clone(block)
                });
                rest.extend(blocks);
            }
            if !rest.is_empty() {
                self.shared.learn_layouts().await;
            }
        }
        self.gather(outcomes, rows, &options)
    }

    /// Routes, cuts and sends rows; what was sent to each shard, and what became of it.
    async fn write_once(
        &self,
        blocks: Vec<RowBlock>,
        options: &WriteOptions,
        patience: Duration,
    ) -> Result<Vec<(Outgoing, Vec<(ShardId, Outcome)>)>, WriteError> {
        let mut by_shard: BTreeMap<ShardId, Vec<RowBlock>> = BTreeMap::new();
        let mut owns = Owns::new();
        for (shard, block) in self.routed(blocks, options, patience, &mut owns).await? {
            by_shard.entry(shard).or_default().push(block);
        }
        if options.atomic && by_shard.len() > 1 {
            return Err(WriteError::TooLargeForAtomic {
                what: format!(
                    "its rows belong to {} shards; send those of one table, or of one partition, at a time",
                    by_shard.len()
                ),
            });
        }
        self.wait_for_memory(patience).await?;
        let outgoing = self.cut_all(by_shard, &owns, options).await?;
        let sent = outgoing.into_iter().map(|outgoing| async move {
            let done = self.write_shard(outgoing.clone(), options, patience).await;
            (outgoing, done)
        });
        Ok(futures::future::join_all(sent).await)
    }

    /// Brings rows to the shards of their partitions, once nobody holds these.
    async fn routed(
        &self,
        blocks: Vec<RowBlock>,
        options: &WriteOptions,
        patience: Duration,
        owns: &mut Owns,
    ) -> Result<Vec<(ShardId, RowBlock)>, WriteError> {
        let mut routed = self.shared.route(blocks, owns)?;
        routed.retain(|(_, block)| block.rows() > 0);
        if options.read_at.is_none() {
            let units = routed.iter().map(|(_, block)| block.table);
            self.shared.holds.wait(units, patience).await?;
        }
        Ok(routed)
    }

    /// Writes rows that may be sent again, and does send them again where what shards own changes.
    async fn write_numbered(
        &self,
        blocks: Vec<RowBlock>,
        rows: u64,
        options: &WriteOptions,
        patience: Duration,
    ) -> Result<Commit, WriteError> {
        let deadline = Instant::now() + patience;
        loop {
            let done = self.write_numbered_once(blocks.clone(), options, patience);
            let mut outcomes = match done.await {
                Err(WriteError::Moved { .. }) if Instant::now() < deadline => {
                    self.shared.learn_layouts().await;
                    continue;
                }
                done => done?,
            };
            if outcomes.iter().any(|(_, outcome)| is_moved(outcome)) {
                if Instant::now() < deadline {
                    self.shared.learn_layouts().await;
                    continue;
                }
                for (shard, outcome) in &mut outcomes {
                    if is_moved(outcome) {
                        *outcome = Err(changes_all_the_time(*shard));
                    }
                }
            }
            return self.gather(outcomes, rows, options);
        }
    }

    /// Cuts first, then routes.
    async fn write_numbered_once(
        &self,
        blocks: Vec<RowBlock>,
        options: &WriteOptions,
        patience: Duration,
    ) -> Result<Vec<(ShardId, Outcome)>, WriteError> {
        let mut owns = Owns::new();
        self.wait_for_memory(patience).await?;
        let limits = match options.record_a_shard {
            true => PartLimits::of(&self.shared.env.config),
            false => self.shared.env.stable_limits,
        };
        // A statement that is sent again may bring rows to partitions that it had none for.
        let named = match options.import.is_some() || options.record_a_shard {
            true => self.units_of(&blocks, &mut owns),
            false => BTreeMap::new(),
        };
        let groups = tokio::task::spawn_blocking(move || group(blocks, limits));
        let mut groups = groups
            .await
            .map_err(|e| WriteError::Invalid(format!("cutting rows: {e}")))?;
        if groups.is_empty() && options.import.is_some() {
            groups.push(Vec::new());
        }
        let count = groups.len();
        if options.record_a_shard && count > 1 {
            return Err(too_many_records(count, limits));
        }
        let mut by_shard: BTreeMap<ShardId, Vec<Part>> = BTreeMap::new();
        for (number, group) in groups.into_iter().enumerate() {
            let mut shares: BTreeMap<ShardId, Vec<RowBlock>> = BTreeMap::new();
            for (shard, block) in self.routed(group, options, patience, &mut owns).await? {
                shares.entry(shard).or_default().push(block);
            }
            for shard in named.keys() {
                shares.entry(*shard).or_default();
            }
            for (shard, blocks) in shares {
                let named = named.get(&shard).cloned().unwrap_or_default();
                let encode = move || encode_share(blocks, &named, limits);
                let encoded = tokio::task::spawn_blocking(encode).await;
                let encoded =
                    encoded.map_err(|e| WriteError::Invalid(format!("encoding rows: {e}")))??;
                by_shard.entry(shard).or_default().push(Part {
                    number: u32::try_from(number).unwrap_or(u32::MAX),
                    last: number + 1 == count,
                    ..encoded
                });
            }
        }
        if options.import.is_some() {
            // Every shard notes every chunk, also those that have no rows for it: then the least
            // progress of all shards is the progress of the import.
            for shard in self.shared.slots.all() {
                // One process alone goes on without a shard that it cannot open.
                if self.shared.peers().is_some() || shard.shard().is_ok() {
                    by_shard.entry(shard.id).or_insert_with(|| {
                        vec![Part {
                            last: true,
                            ..Part::default()
                        }]
                    });
                }
            }
        }
        if self.shared.peers().is_none() {
            for shard in by_shard.keys() {
                self.shared.shard(*shard).map_err(as_write_error)?;
            }
        }
        let sent = by_shard.into_iter().map(|(shard, parts)| {
            let owns = owns.clone();
            self.write_shard(Outgoing { shard, owns, parts }, options, patience)
        });
        let outcomes = futures::future::join_all(sent).await;
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// All units of the tables of some rows, by shard: each record of an import's chunk names them,
    /// whether it has rows of theirs or not, so that every unit hears of the chunk's last part.
    fn units_of(
        &self,
        blocks: &[RowBlock],
        owns: &mut Owns,
    ) -> BTreeMap<ShardId, Vec<(TableId, shoal_types::Incarnation)>> {
        let mut units: BTreeMap<ShardId, Vec<_>> = BTreeMap::new();
        let mut seen = std::collections::BTreeSet::new();
        for block in blocks {
            let Some(entry) = self.shared.env.catalog.placement(block.table) else {
                continue;
            };
            for placed in entry.placed() {
                if seen.insert(placed.unit) {
                    let layout = entry.layout.as_ref();
                    let bounds = layout.and_then(|l| l.part(placed.unit).map(|p| l.bounds(p)));
                    let owned = Owned {
                        table: entry.table,
                        print: fingerprint(bounds.as_ref()),
                    };
                    owns.insert(placed.unit, owned);
                    let of_shard = units.entry(placed.shard).or_default();
                    of_shard.push((placed.unit, block.incarnation));
                }
            }
        }
        units
    }

    /// Notes at a partition that a request was done, which had nothing for it.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn note_write_id(
        &self,
        partition: &TableHandle,
        id: WriteId,
        options: WriteOptions,
    ) -> Result<(), WriteError> {
        let patience = self.write_patience(&options);
        let schema = self
            .shared
            .known_schema(partition)
            .map_err(as_write_error)?;
        let named = [(partition.id, schema.incarnation)];
        let part = Part {
            last: true,
            ..encode_share(Vec::new(), &named, self.shared.env.stable_limits)?
        };
        let outgoing = Outgoing {
            shard: partition.shard,
            owns: owns_of(partition),
            parts: vec![part],
        };
        let options = WriteOptions {
            write_id: Some(id),
            ..options
        };
        let outcomes = self.write_shard(outgoing, &options, patience).await;
        match self.gather(outcomes, 0, &options) {
            Ok(_) => Ok(()),
            Err(WriteError::Moved { .. }) => Err(WriteError::StaleSchema {
                table: partition.id,
            }),
            Err(error) => Err(error),
        }
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
            Err(EngineError::NotFound { .. }) => return Err(dropped(table.id)),
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
            last: true,
            ..Part::default()
        };
        let outgoing = Outgoing {
            shard: table.shard,
            owns: owns_of(table),
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
        let owns = owns_of(table);
        let mut outgoing = self.cut_all(by_shard, &owns, &options).await?;
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
        owns: &Owns,
        options: &WriteOptions,
    ) -> Result<Vec<Outgoing>, WriteError> {
        let env = &self.shared.env;
        let one_record = options.atomic || options.record_a_shard;
        let limits = PartLimits::of(&env.config);
        let mut outgoing = Vec::with_capacity(by_shard.len());
        for (shard, blocks) in by_shard {
            if self.shared.peers().is_none() {
                self.shared.shard(shard).map_err(as_write_error)?;
            }
            let bytes: usize = blocks.iter().map(RowBlock::memory_bytes).sum();
            let parts = if bytes > INLINE_BYTES_MAX {
                tokio::task::spawn_blocking(move || cut(blocks, limits))
                    .await
                    .map_err(|e| WriteError::Invalid(format!("encoding rows: {e}")))??
            } else {
                cut(blocks, limits)?
            };
            if one_record && parts.len() > 1 {
                return Err(too_many_records(parts.len(), limits));
            }
            outgoing.push(Outgoing {
                shard,
                owns: owns.clone(),
                parts,
            });
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
        let Outgoing {
            shard: id,
            owns,
            parts,
        } = outgoing;
        // A statement read what it changes: it is to begin anew.
        let bound = options.read_at.is_some() || parts.iter().any(Part::is_bound);
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
            owns,
            parts,
        };
        let mut sending = sending;
        let mut outcomes = self.shared.deliver(id, sending.clone(), patience).await;
        for _ in 0..PARTITIONS_MAX {
            let Some(unit) = self.refused_unit(&outcomes) else {
                break;
            };
            match self.shared.unit_as_of_now(unit).await {
                Ok(Some(_)) if read_at.is_some() => {}
                Ok(Some(incarnation)) => {
                    for part in &mut sending.parts {
                        part.build_for(unit, incarnation);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%unit, %error, "columns of a partition are not brought up");
                    break;
                }
            }
            let again = self.shared.deliver(id, sending.clone(), patience).await;
            let same = self.refused_unit(&again) == Some(unit);
            outcomes = again;
            if same {
                break;
            }
        }
        if bound && outcomes.iter().any(is_moved) {
            self.shared.learn_layouts().await;
            let unit = sending.parts.iter().flat_map(|part| &part.tables).next();
            let stale = unit.map(|write| WriteError::StaleSchema { table: write.table });
            return vec![(id, Err(stale.unwrap_or_else(|| changes_all_the_time(id))))];
        }
        outcomes.into_iter().map(|outcome| (id, outcome)).collect()
    }

    /// A partition whose shard refused all of a write because it has not heard of columns that the
    /// table's home has, or was emptied meanwhile.
    fn refused_unit(&self, outcomes: &[Outcome]) -> Option<TableId> {
        let stale = |outcome: &Outcome| match outcome {
            Err(WriteError::StaleSchema { table }) => Some(*table),
            _ => None,
        };
        let unit = outcomes.first().and_then(stale)?;
        let entry = self.shared.env.catalog.placement(unit)?;
        let refused = outcomes.iter().all(|outcome| stale(outcome).is_some());
        (refused && entry.layout.is_some()).then_some(unit)
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
                    token.add_to(&mut commit.tokens);
                }
                Err(error) => failed = worse(failed, error),
            }
        }
        let Some(error) = failed else {
            return Ok(commit);
        };
        let harmless = options.write_id.is_some() || options.import.is_some();
        Err(match error {
            other if applied && !harmless && other.retry() != Retry::Unknown => {
                WriteError::OutcomeUnknown(format!(
                    "part of the rows was written, the rest was not: {other}"
                ))
            }
            other => other,
        })
    }
}

fn is_moved(outcome: &Outcome) -> bool {
    matches!(outcome, Err(WriteError::Moved { .. }))
}

fn changes_all_the_time(shard: ShardId) -> WriteError {
    WriteError::ShardUnavailable {
        shard,
        why: "what it owns is being changed".into(),
    }
}

fn owns_of(partition: &TableHandle) -> Owns {
    let owned = Owned {
        table: partition.table,
        print: fingerprint(partition.bounds().as_ref()),
    };
    Owns::from([(partition.id, owned)])
}

pub(super) fn dropped(table: TableId) -> WriteError {
    WriteError::Invalid(format!("table {table} does not exist any more"))
}

fn too_many_records(count: usize, limits: PartLimits) -> WriteError {
    WriteError::TooLargeForAtomic {
        what: format!(
            "its rows need {count} records of at most {} bytes and {} rows",
            limits.bytes_max, limits.rows_max
        ),
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
