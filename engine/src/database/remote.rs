//! What is asked of other nodes, and what is answered to them.
//!
//! Answers come from this process alone: one that does not lead a shard says so, and the asker
//! looks for the leader again. So a request crosses at most one node, whatever two nodes believe of
//! each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_rows::decode_blocks;
use shoal_types::{NodeId, ShardId, TableId, TableSchema, WriteId};
use shoal_wal::record::{Payload, SchemaChange, WriteIdPart};
use tokio::time::Instant;

use super::writes::{Outcome, Owned, Sending, worse};
use super::{Database, Role, Shared, TableHandle, as_write_error};
use crate::peers::{Peers, Read, ReadPlace, ShardCommit, ShardWrite};
use crate::shard::Shard;
use crate::shard::parts::Part;
use crate::{EngineError, ReadLevel, ReadView, ShardStatus, WriteError};

/// Pause before it is looked again whether this process leads a shard.
const PAUSE: Duration = Duration::from_millis(10);

impl Shared {
    /// The shard, if this process leads it or is alone (then an error says what is wrong with it).
    pub(super) fn led_here(&self, id: ShardId) -> Result<Arc<Shard>, EngineError> {
        let shard = self.shard(id).map_err(|error| {
            match self.slots.get(id).and_then(|slot| slot.cannot_lead()) {
                Some(why) if self.env.peers.is_some() => {
                    WriteError::ShardHalted { shard: id, why }.into()
                }
                _ => error,
            }
        })?;
        // Where this process is the one to lead, nobody else takes the write instead.
        let leads = self.slots.get(id).map(|slot| *slot.wanted.lock()) == Some(Role::Leader);
        if leads && let Some(halt) = shard.halted.why() {
            let why = halt.to_string();
            return Err(WriteError::ShardHalted { shard: id, why }.into());
        }
        if self.env.peers.is_some() && !shard.leads() {
            return Err(WriteError::NotLeader { shard: id }.into());
        }
        Ok(shard)
    }

    /// A write that would wait for this process to lead, which it cannot.
    fn refuse_halted(&self, id: ShardId) -> Result<(), WriteError> {
        match self.led_here(id) {
            Err(EngineError::Write(error @ WriteError::ShardHalted { .. })) => Err(error),
            _ => Ok(()),
        }
    }

    /// Asks whoever leads a shard: this process, else another one. One that is about to lead and does
    /// not yet is waited for.
    pub(super) async fn of_leader<T, H, O>(
        &self,
        id: ShardId,
        here: impl Fn(Arc<Shard>) -> H,
        there: impl Fn(Arc<dyn Peers>) -> O,
    ) -> Result<T, EngineError>
    where
        H: Future<Output = Result<T, EngineError>>,
        O: Future<Output = Result<T, EngineError>>,
    {
        let deadline = Instant::now() + self.patience();
        loop {
            let error = match (self.led_here(id), self.peers()) {
                (Ok(shard), _) => return here(shard).await,
                (Err(error), None) => return Err(error),
                (Err(error @ EngineError::Write(WriteError::ShardHalted { .. })), _) => {
                    return Err(error);
                }
                (Err(_), Some(peers)) => match there(Arc::clone(peers)).await {
                    Err(error @ EngineError::Write(WriteError::NotLeader { .. })) => error,
                    answer => return answer,
                },
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(super) fn peers(&self) -> Option<&Arc<dyn Peers>> {
        self.env.peers.as_ref()
    }

    /// Puts one `Schema` record into a shard's log, here or through its leader. When this returns,
    /// this process knows of the change.
    pub(super) async fn submit_schemas(
        &self,
        id: ShardId,
        changes: Vec<SchemaChange>,
    ) -> Result<(), WriteError> {
        let patience = self.patience();
        let payload = || Payload::Schema(changes.clone());
        let Some(peers) = self.peers() else {
            let shard = self.shard(id).map_err(as_write_error)?;
            return shard
                .submit(payload(), Vec::new(), patience)
                .await
                .map(|_| ());
        };
        let deadline = Instant::now() + patience;
        loop {
            self.refuse_halted(id)?;
            if let Ok(shard) = self.led_here(id) {
                match shard.submit(payload(), Vec::new(), patience).await {
                    Err(WriteError::NotLeader { .. }) => {}
                    outcome => return outcome.map(|_| ()),
                }
            }
            match peers.change_schemas(id, changes.clone(), patience).await {
                // This node is to lead it and does not yet.
                Err(WriteError::NotLeader { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => break outcome?,
            }
        }
        match self.shard(id) {
            Ok(replica) => {
                // A replica that cannot catch up answers with what it has, and is asked again.
                if let Err(error) = replica.reach(&ReadLevel::Strong, patience).await {
                    tracing::debug!(shard = %id, %error, "the replica here does not know the change yet");
                }
            }
            Err(_) => {
                let mut known = self.env.remote_schemas.lock();
                for change in changes {
                    match change {
                        SchemaChange::Put(schema) => drop(known.put(schema.table, schema)),
                        SchemaChange::Drop { table } => drop(known.pop(&table)),
                        SchemaChange::Own { .. } => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// The schema of a table as of now, by whoever leads its shard. One that has left its shard is
    /// looked for where it is placed by now.
    pub(super) async fn current_schema(
        &self,
        table: &TableHandle,
    ) -> Result<Arc<TableSchema>, EngineError> {
        Ok(self.current_place(table).await?.1)
    }

    /// As [`Self::current_schema`], and the shard that has it.
    pub(super) async fn current_place(
        &self,
        table: &TableHandle,
    ) -> Result<(ShardId, Arc<TableSchema>), EngineError> {
        let deadline = Instant::now() + self.patience();
        let mut place = (table.shard, table.id);
        loop {
            let (shard, unit) = place;
            let found = self.of_leader(
                shard,
                |shard| async move { Ok(shard.schema(unit)) },
                |peers| async move { peers.table_schema(shard, unit).await },
            );
            if let Some(schema) = found.await? {
                self.remember(Some(&schema));
                return Ok((shard, schema));
            }
            self.env.catalog.sync().await?;
            let not_found = || self.table_not_found(&table.schema_name, &table.name);
            let now = self.env.catalog.placed(unit).ok_or_else(not_found)?;
            if now.shard == shard {
                if Instant::now() >= deadline {
                    return Err(not_found());
                }
                tokio::time::sleep(PAUSE).await;
            }
            place = (now.shard, unit);
        }
    }

    /// No replica has the table. One that has a name was in the log before it got that.
    fn not_there(&self, table: &TableHandle) -> EngineError {
        match self.env.catalog.placed(table.id) {
            // It has left: who planned with its former place plans anew.
            Some(placed) if placed.shard != table.shard => {
                WriteError::StaleSchema { table: table.id }.into()
            }
            Some(_) => EngineError::NotFresh {
                shard: table.shard,
                what: format!(
                    "no replica that answers has read the creation of table {:?} yet",
                    table.name
                ),
            },
            None => self.table_not_found(&table.schema_name, &table.name),
        }
    }

    /// Whether meta does not place a unit in a shard (any more).
    async fn has_left(&self, shard: ShardId, unit: &str) -> bool {
        if let Err(error) = self.env.catalog.sync().await {
            tracing::debug!(%error, "names not brought up to date");
        }
        let placed = unit.parse().ok().and_then(|id| self.env.catalog.placed(id));
        placed.is_none_or(|placed| placed.shard != shard)
    }

    /// A shard has not one of the tables that were asked for.
    fn lacks(&self, tables: &[&TableHandle], id: &str) -> EngineError {
        let named = tables.iter().find(|table| table.id.to_string() == id);
        self.not_there(named.unwrap_or(&tables[0]))
    }

    fn remember(&self, schema: Option<&Arc<TableSchema>>) {
        if let Some(schema) = schema {
            let mut known = self.env.remote_schemas.lock();
            // An answer that was overtaken on its way must not bring an older one back.
            if known
                .peek(&schema.table)
                .is_none_or(|k| k.version < schema.version)
            {
                known.put(schema.table, Arc::clone(schema));
            }
        }
    }

    /// The schema of a table as this process knows it.
    pub(super) fn known_schema(
        &self,
        table: &TableHandle,
    ) -> Result<Arc<TableSchema>, EngineError> {
        let replica = self.shard(table.shard);
        if let Ok(shard) = &replica
            && let Some(schema) = shard.schema(table.id)
        {
            return Ok(schema);
        }
        match self.env.remote_schemas.lock().get(&table.id) {
            // A replica that was opened a moment ago has not read that far; or the table has left it,
            // and meta does not say so yet.
            Some(schema) => Ok(Arc::clone(schema)),
            None => Err(match (replica, self.peers()) {
                (Ok(_), _) => self.not_there(table),
                // Without a replica here it is the others' trouble that counts.
                (Err(error), Some(peers)) => peers.is_led(table.shard).err().unwrap_or(error),
                (Err(error), None) => error,
            }),
        }
    }

    /// Sees to it that [`Self::known_schema`] has an answer.
    pub(super) async fn learn_schema(&self, table: &TableHandle) -> Result<(), EngineError> {
        if self.peers().is_none() || self.known_schema(table).is_ok() {
            return Ok(());
        }
        self.refresh_schema(table).await
    }

    /// Brings what this process knows of a table's schema up to date.
    pub(super) async fn refresh_schema(&self, table: &TableHandle) -> Result<(), EngineError> {
        if let Ok(replica) = self.shard(table.shard) {
            match replica.reach(&ReadLevel::Strong, self.patience()).await {
                Ok(()) if replica.schema(table.id).is_some() => return Ok(()),
                // It was closed meanwhile.
                Ok(()) | Err(EngineError::ShardUnavailable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.current_schema(table).await.map(|_| ())
    }

    /// Writes a request's records for one shard, here or through its leader.
    pub(super) async fn deliver(
        &self,
        id: ShardId,
        sending: Sending,
        patience: Duration,
    ) -> Vec<Outcome> {
        let Some(peers) = self.peers() else {
            return match self.shard(id) {
                Ok(shard) => shard.send_parts(sending, patience).await,
                Err(error) => vec![Err(as_write_error(error))],
            };
        };
        let remote = sending.to_shard_write();
        let harmless = sending.is_idempotent();
        let deadline = Instant::now() + patience;
        let outcome = loop {
            if let Err(error) = self.refuse_halted(id) {
                return vec![Err(error)];
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(shard) = self.led_here(id) {
                let outcomes = shard.send_parts(sending.clone(), left).await;
                let overtaken =
                    |outcome: &Outcome| matches!(outcome, Err(WriteError::NotLeader { .. }));
                // Records that were overtaken by another leader's claim never take effect. Those of
                // a request without an id are sent on only if all were: the rest would be doubled.
                let send_on = if harmless {
                    outcomes.iter().any(overtaken)
                } else {
                    outcomes.iter().all(overtaken)
                };
                if !send_on {
                    return outcomes;
                }
            }
            match peers.write(id, remote.clone(), left).await {
                // This node is to lead it and does not yet.
                Err(WriteError::NotLeader { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                outcome => break outcome,
            }
        };
        if let Err(WriteError::StaleSchema { table }) = &outcome
            && let Some(named) = self.env.catalog.named(*table)
        {
            // Else its next try would be built with the same old columns.
            let refreshed = self.refresh_schema(&TableHandle::of(&named)).await;
            if let Err(error) = refreshed {
                tracing::debug!(%table, %error, "schema not brought up to date");
            }
        }
        vec![outcome.map(Into::into)]
    }
}

impl Database {
    /// One consistent view of a table, as `read` asks for it, from this process or another node.
    ///
    /// # Errors
    /// As [`Self::read_view_at`].
    pub async fn read(&self, table: &TableHandle, read: &Read) -> Result<ReadView, EngineError> {
        let mut views = self.read_all(std::slice::from_ref(table), read).await?;
        views
            .pop()
            .ok_or_else(|| EngineError::Invalid("a read without a view".into()))
    }

    /// As [`Self::read`], of several tables or partitions, in their order: those of one shard at one
    /// position.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_all(
        &self,
        tables: &[TableHandle],
        read: &Read,
    ) -> Result<Vec<ReadView>, EngineError> {
        let mut by_shard: BTreeMap<ShardId, Vec<usize>> = BTreeMap::new();
        for (at, table) in tables.iter().enumerate() {
            by_shard.entry(table.shard).or_default().push(at);
        }
        let taken = by_shard.into_values().map(|places| async move {
            let wanted: Vec<&TableHandle> = places.iter().map(|at| &tables[*at]).collect();
            let views = self.read_shard(&wanted, read).await?;
            Ok::<_, EngineError>(places.into_iter().zip(views))
        });
        let taken = futures::future::try_join_all(taken).await?;
        let mut views: Vec<(usize, ReadView)> = taken.into_iter().flatten().collect();
        views.sort_by_key(|(at, _)| *at);
        Ok(views.into_iter().map(|(_, view)| view).collect())
    }

    /// Views of tables of one shard, of which there is at least one.
    async fn read_shard(
        &self,
        tables: &[&TableHandle],
        read: &Read,
    ) -> Result<Vec<ReadView>, EngineError> {
        let shared = &self.shared;
        let id = tables[0].shard;
        let units: Vec<TableId> = tables.iter().map(|table| table.id).collect();
        let patience = read.patience.unwrap_or(shared.patience());
        let deadline = Instant::now() + patience;
        let Some(peers) = shared.peers() else {
            let shard = shared.shard(id)?;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match shard.views_of(&units, &read.level, left).await {
                    Err(EngineError::NotFound { name, .. }) => {
                        if Instant::now() >= deadline || shared.has_left(id, &name).await {
                            return Err(shared.lacks(tables, &name));
                        }
                    }
                    other => return other,
                }
                // It has become part of another one, which meta is told of in a moment.
                tokio::time::sleep(PAUSE).await;
            }
        };
        let encoded = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(shard) = shared.shard(id)
                && fits(&shard, read.place)
            {
                match shard.views_of(&units, &read.level, left).await {
                    // It was closed meanwhile.
                    Err(EngineError::ShardUnavailable { .. }) => {}
                    // It was opened a moment ago and has not read that far.
                    Err(EngineError::NotFound { .. }) => {}
                    // It is another one's to answer now.
                    Ok(_) if !fits(&shard, read.place) => {}
                    other => return other,
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let elsewhere = Read {
                patience: Some(left),
                ..read.clone()
            };
            match peers.read_views(id, &units, &elsewhere).await {
                // What is to answer here is being opened.
                Err(EngineError::ShardUnavailable { .. })
                    if peers.may_answer(id, read.place) && Instant::now() < deadline =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(EngineError::NotFound { name, .. }) => {
                    if Instant::now() >= deadline || shared.has_left(id, &name).await {
                        return Err(shared.lacks(tables, &name));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                other => break other?,
            }
        };
        let predicate = shared.env.predicate.clone();
        let decode = move || {
            let views = encoded
                .into_iter()
                .map(|view| view.decode(predicate.clone()));
            views.collect::<Result<Vec<_>, _>>()
        };
        // Its rows may be many, and sorting them is work.
        let views = tokio::task::spawn_blocking(decode)
            .await
            .map_err(|e| EngineError::Invalid(format!("decoding a view: {e}")))??;
        for view in &views {
            shared.remember(Some(&view.schema));
        }
        Ok(views)
    }

    /// Brings what this process knows of a table's columns up to date; another node may have
    /// changed them a moment ago. Nothing to do where this process is alone.
    ///
    /// # Errors
    /// As [`Self::read_view_at`].
    pub async fn refresh_schema(&self, table: &TableHandle) -> Result<(), EngineError> {
        match self.shared.peers() {
            Some(_) => self.shared.refresh_schema(table).await,
            None => Ok(()),
        }
    }

    /// Whether there may be other nodes.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.shared.peers().is_some()
    }

    /// For another node: writes records to a shard that this process leads.
    ///
    /// # Errors
    /// [`WriteError::NotLeader`] if it does not; [`WriteError`].
    pub async fn write_here(
        &self,
        shard: ShardId,
        write: ShardWrite,
        patience: Duration,
    ) -> Result<ShardCommit, WriteError> {
        let led = self.shared.led_here(shard).map_err(as_write_error)?;
        if write.read_at.is_none() {
            let tables = write.parts.iter().flat_map(|part| &part.tables);
            let tables = tables.map(|table| table.table);
            self.shared.holds.wait(tables, patience).await?;
        }
        self.wait_for_memory(patience).await?;
        let idempotent = write.write_id.is_some() || write.import.is_some();
        let broken = |what: String| WriteError::Invalid(format!("rows of another node: {what}"));
        let decode = move || {
            let mut parts = Vec::with_capacity(write.parts.len());
            for part in write.parts {
                // A predicate alone, or a mark that an import had nothing here.
                let blocks = if part.body.is_empty() {
                    Vec::new()
                } else {
                    decode_blocks(&part.body).map_err(|e| broken(e.to_string()))?
                };
                for block in &blocks {
                    block.check().map_err(|e| broken(e.to_string()))?;
                }
                parts.push(Part {
                    number: part.number,
                    last: part.last,
                    tables: part.tables,
                    body: part.body,
                    blocks: blocks.into_iter().map(Arc::new).collect(),
                });
            }
            let owns = write.owns.into_iter().map(|(unit, print)| {
                // The sender routes anew, who knows the table.
                (unit, Owned { table: unit, print })
            });
            Ok(Sending {
                write_id: write.write_id,
                import: write.import,
                read_at: write.read_at,
                owns: owns.collect(),
                parts,
            })
        };
        let sending = tokio::task::spawn_blocking(decode)
            .await
            .map_err(|e| WriteError::Invalid(format!("decoding rows: {e}")))??;
        let outcomes = led.send_parts(sending, patience).await;
        let mut commit: Option<ShardCommit> = None;
        let mut failed = None;
        for outcome in outcomes {
            match outcome {
                Ok(done) => {
                    commit = Some(ShardCommit {
                        epoch: done.epoch,
                        offset: done.offset,
                        duplicate: done.duplicate && commit.is_none_or(|c| c.duplicate),
                    });
                }
                Err(error) => failed = worse(failed, error),
            }
        }
        match (failed, commit) {
            (None, Some(commit)) => Ok(commit),
            (None, None) => Err(WriteError::Invalid("no rows to write".into())),
            (Some(error), Some(_))
                if !idempotent && error.retry() != shoal_types::Retry::Unknown =>
            {
                Err(WriteError::OutcomeUnknown(format!(
                    "part of the rows was written, the rest was not: {error}"
                )))
            }
            (Some(error), _) => Err(error),
        }
    }

    /// For another node: changes schemas of a shard that this process leads.
    ///
    /// # Errors
    /// As [`Self::write_here`].
    pub async fn change_schemas_here(
        &self,
        shard: ShardId,
        changes: Vec<SchemaChange>,
        patience: Duration,
    ) -> Result<(), WriteError> {
        let led = self.shared.led_here(shard).map_err(as_write_error)?;
        for change in &changes {
            if let SchemaChange::Put(schema) = change {
                schema
                    .check()
                    .map_err(|e| WriteError::Invalid(e.to_string()))?;
            }
        }
        let payload = Payload::Schema(changes);
        led.submit(payload, Vec::new(), patience).await.map(|_| ())
    }

    /// For another node: a table's schema by a shard that this process leads.
    ///
    /// # Errors
    /// [`WriteError::NotLeader`], [`EngineError::ShardUnavailable`].
    pub fn schema_here(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<Option<Arc<TableSchema>>, EngineError> {
        Ok(self.shared.led_here(shard)?.schema(table))
    }

    /// For another node: views by this process's replica of a shard, all at one position.
    ///
    /// # Errors
    /// As [`Self::read_view_at`]; [`EngineError::ShardUnavailable`] also where the replica is not
    /// of the kind that was asked for.
    pub async fn views_here(
        &self,
        shard: ShardId,
        tables: &[TableId],
        read: &Read,
    ) -> Result<Vec<ReadView>, EngineError> {
        let replica = self.shared.shard(shard)?;
        if !fits(&replica, read.place) {
            let role = if replica.leads() { "leads" } else { "follows" };
            return Err(EngineError::ShardUnavailable {
                shard,
                why: format!("this node {role} it, which was not asked for"),
            });
        }
        let patience = read.patience.unwrap_or(self.shared.patience());
        replica.views_of(tables, &read.level, patience).await
    }

    /// For another node: an import's progress on a shard that this process leads.
    ///
    /// # Errors
    /// As [`Self::schema_here`].
    pub fn import_progress_here(
        &self,
        shard: ShardId,
        import: u128,
    ) -> Result<Option<u64>, EngineError> {
        let led = self.shared.led_here(shard)?;
        Ok(led.state.read().fold.import_progress(import))
    }

    /// For a resumable import: the chunk to go on with, the least over all shards (every shard notes
    /// every chunk); `None`: nothing of it is known. A client may have several chunks on their way;
    /// after an interruption it sends again from here, and shards that have a chunk already answer
    /// it as a duplicate.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`]: some shard of the cluster does not answer.
    pub async fn import_progress(&self, import: u128) -> Result<Option<u64>, EngineError> {
        let shared = &self.shared;
        let mut progress = Vec::new();
        match shared.peers() {
            None => {
                for shard in shared.open_shards() {
                    progress.push(shard.state.read().fold.import_progress(import));
                }
            }
            Some(_) => {
                for id in shared.slots.ids() {
                    let told = shared.of_leader(
                        id,
                        |shard| async move { Ok(shard.state.read().fold.import_progress(import)) },
                        |peers| async move { peers.import_progress(id, import).await },
                    );
                    progress.push(told.await?);
                }
            }
        }
        if progress.iter().all(Option::is_none) {
            return Ok(None);
        }
        Ok(progress.into_iter().map(Option::unwrap_or_default).min())
    }

    /// What this process is for a shard at the moment, and the last offset it has applied.
    #[must_use]
    pub fn role(&self, shard: ShardId) -> Role {
        match self.shared.shard(shard) {
            Ok(shard) if shard.leads() => Role::Leader,
            Ok(_) => Role::Follower,
            Err(_) => Role::None,
        }
    }

    /// Predicates of deletes of a table that are held against rows when these are read.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`].
    pub async fn pending_deletes(&self, table: &TableHandle) -> Result<Vec<String>, EngineError> {
        let told = self.shared.of_leader(
            table.shard,
            |_| async move { self.pending_deletes_here(table.shard, table.id).await },
            |peers| async move { peers.pending_deletes(table.shard, table.id).await },
        );
        told.await
    }

    /// As [`Self::pending_deletes`], by this process, which must lead the shard.
    ///
    /// # Errors
    /// As [`Self::schema_here`].
    pub async fn pending_deletes_here(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<Vec<String>, EngineError> {
        let pending = self.shared.led_here(shard)?.pending_deletes(table).await;
        Ok(pending.into_iter().map(|delete| delete.predicate).collect())
    }

    /// Writes a table's files anew without the rows that deletes by predicate hide.
    ///
    /// # Errors
    /// As [`Self::flush`] and [`Self::compact`].
    pub async fn apply_deletes(&self, table: &TableHandle) -> Result<(), EngineError> {
        let done = self.shared.of_leader(
            table.shard,
            |_| async move { self.apply_deletes_here(table.shard, table.id).await },
            |peers| async move { peers.apply_deletes(table.shard, table.id).await },
        );
        done.await
    }

    /// As [`Self::apply_deletes`], by this process, which must lead the shard.
    ///
    /// # Errors
    /// As [`Self::apply_deletes`] and [`Self::schema_here`].
    pub async fn apply_deletes_here(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<(), EngineError> {
        let led = self.shared.led_here(shard)?;
        led.flush().await?;
        led.compact_fully(table).await.map(|_| ())
    }

    /// Whether a write with this id was applied to a table or partition, as far as is remembered.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`].
    pub async fn was_applied(&self, table: &TableHandle, id: WriteId) -> Result<bool, EngineError> {
        if let Ok(replica) = self.shared.shard(table.shard) {
            return Ok(replica.has_applied(table.id, id));
        }
        let told = self.shared.of_leader(
            table.shard,
            |shard| async move { Ok(shard.has_applied(table.id, id)) },
            |peers| async move { peers.was_applied(table.shard, table.id, id).await },
        );
        told.await
    }

    /// As [`Self::was_applied`], by this process, which must lead the shard.
    ///
    /// # Errors
    /// As [`Self::schema_here`].
    pub fn was_applied_here(
        &self,
        shard: ShardId,
        table: TableId,
        id: WriteId,
    ) -> Result<bool, EngineError> {
        Ok(self.shared.led_here(shard)?.has_applied(table, id))
    }

    /// This node; `None`: the process is alone.
    #[must_use]
    pub fn node(&self) -> Option<NodeId> {
        self.shared.peers().map(|peers| peers.me())
    }

    /// What every node tells of its replicas, this one first; `None`: it did not answer.
    pub async fn all_statuses(&self) -> Vec<(Option<NodeId>, Option<Vec<ShardStatus>>)> {
        let mut all = vec![(self.node(), Some(self.status()))];
        if let Some(peers) = self.shared.peers() {
            let others = peers.statuses().await.into_iter();
            all.extend(others.map(|(node, told)| (Some(node), told)));
        }
        for told in all.iter_mut().filter_map(|(_, told)| told.as_mut()) {
            told.retain(|status| status.placed);
        }
        all
    }

    /// What schedulers keep below a path of theirs: paths and JSON.
    ///
    /// # Errors
    /// Meta's.
    pub async fn scheduler_records(
        &self,
        path: &str,
    ) -> Result<Vec<(String, Vec<u8>)>, EngineError> {
        Ok(self.shared.env.catalog.scheduler_records(path).await?)
    }

    /// All shards of the cluster, ascending by id.
    #[must_use]
    pub fn shard_ids(&self) -> Vec<ShardId> {
        self.shared.slots.ids()
    }
}

impl Shard {
    /// Whether the first part of a write with this id was applied to a unit.
    fn has_applied(&self, unit: TableId, id: WriteId) -> bool {
        let part = WriteIdPart { id, part: 0 };
        self.state.read().fold.covers_write_id(unit, part)
    }
}

/// Whether a replica may answer a read that names a place.
fn fits(shard: &Shard, place: ReadPlace) -> bool {
    match place {
        ReadPlace::Nearest | ReadPlace::Any => true,
        ReadPlace::Leader => shard.leads(),
        ReadPlace::Follower => !shard.leads(),
    }
}
