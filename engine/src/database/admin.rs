//! Status, metrics and commands of operators.

use std::sync::Arc;

use object_store::path::Path;
use shoal_types::{Epoch, Offset, ShardId, TableId};
use shoal_wal::local::LocalLogStats;

use super::{CommitToken, Database, Role, Served, Shared, Slot, TableHandle};
use crate::checksum::{self, ShardChecksum};
use crate::shard::compact::Compacted;
use crate::shard::flush::Flushed;
use crate::shard::gc::{GcReport, list_objects};
use crate::shard::relatives::Relatives;
use crate::shard::{Counters, Shard, position};
use crate::status::{EngineMetrics, ShardStatus, TableStatus};
use crate::{EngineError, ReadLevel};

impl Slot {
    fn status(&self, tables: u64) -> ShardStatus {
        let mut status = ShardStatus {
            id: self.id,
            placed: *self.wanted.lock() != Role::None,
            role: "none".into(),
            state: "unavailable".into(),
            why: None,
            epoch: Default::default(),
            position: Offset(0),
            manifest: 0,
            replay_offset: Offset(0),
            tables,
            memory_bytes: 0,
            applied_bytes: 0,
            read_us: 0,
            in_flight_bytes: 0,
            log_bytes: 0,
            files: 0,
            bytes: 0,
            split_from: None,
            halted: None,
            losses: Vec::new(),
        };
        let shard = match &*self.served.read() {
            Served::Open(shard) => Arc::clone(shard),
            Served::NotPlaced => return status,
            Served::Unavailable { why, .. } => {
                status.why = Some(why.clone());
                return status;
            }
        };
        status.epoch = shard.epoch();
        status.log_bytes = shard.log.retained_bytes();
        status.applied_bytes = Counters::get(&shard.counters.bytes_applied);
        status.read_us = shard.pins.read_us();
        status.in_flight_bytes = shard.pipeline.in_flight_bytes() as u64;
        {
            let state = shard.state.read();
            status.position = position(&state);
            status.manifest = state.manifest.version().0;
            status.files = state.manifest.files.count;
            status.bytes = state.manifest.files.bytes;
            status.replay_offset = state.manifest.replay_offset();
            status.memory_bytes = state.memory_bytes as u64;
            status.losses = state.manifest.losses.to_vec();
            status.split_from = state.fold.origin();
        }
        status.halted = shard.halted.why();
        if let Some(stopped) = shard.stopped() {
            status.why = Some(stopped.why());
            return status;
        }
        status.role = if shard.leads() {
            "leader".into()
        } else {
            "follower".into()
        };
        if let Some(halt) = &status.halted {
            status.state = "damaged".into();
            status.why = Some(halt.to_string());
            return status;
        }
        let claiming = shard.pipeline.trouble();
        let trouble = shard.trouble.lock().clone();
        let (state, why) = match (claiming, trouble) {
            (Some(why), _) => ("claiming", Some(why)),
            (None, Some(why)) => ("degraded", Some(why)),
            (None, None) => ("serving", None),
        };
        (status.state, status.why) = (state.into(), why);
        status
    }
}

impl Shared {
    /// Deletes objects with the names of shards that are led here and that no manifest ever named.
    pub(super) async fn collect_orphans(
        &self,
        dry_run: bool,
        report: &mut GcReport,
    ) -> Result<(), EngineError> {
        let shards = self.led_shards();
        let ids: Vec<ShardId> = shards.iter().map(|s| s.id).collect();
        let listed = list_objects(&*self.env.store, &self.env.layout, &ids).await?;
        let listed: Vec<Path> = listed.into_iter().map(|(path, _)| path).collect();
        let settled: Vec<u64> = shards
            .iter()
            .map(|s| s.production.settled_before_ms())
            .collect();
        let mut known = Relatives::default();
        for (shard, settled) in shards.iter().zip(settled) {
            shard
                .collect_orphans(&listed, settled, dry_run, &mut known, report)
                .await?;
        }
        Ok(())
    }
}

impl Database {
    /// All shards, ascending by id.
    #[must_use]
    pub fn status(&self) -> Vec<ShardStatus> {
        let catalog = &self.shared.env.catalog;
        let slots = self.shared.slots.all();
        slots
            .iter()
            .map(|s| s.status(catalog.partitions_on(s.id)))
            .collect()
    }

    /// How many of the shards that are placed here are served, and those that are not, ascending by
    /// id, with the reason.
    #[must_use]
    pub fn served(&self) -> (usize, Vec<(ShardId, String)>) {
        let mut unserved = Vec::new();
        let mut slots = self.shared.slots.all();
        slots.retain(|slot| *slot.wanted.lock() != Role::None);
        for slot in &slots {
            match slot.shard() {
                Ok(shard) => {
                    let halt = shard.halted.why();
                    unserved.extend(halt.map(|halt| (slot.id, halt.to_string())));
                }
                Err(EngineError::ShardUnavailable { shard, why }) => unserved.push((shard, why)),
                Err(other) => unserved.push((slot.id, other.to_string())),
            }
        }
        (slots.len() - unserved.len(), unserved)
    }

    /// Size of a table.
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`], [`EngineError::NotFound`].
    pub fn table_status(&self, table: &TableHandle) -> Result<TableStatus, EngineError> {
        let shard = self.shared.shard(table.shard)?;
        let Some(schema) = shard.schema(table.id) else {
            return Err(self.table_not_found(&table.schema_name, &table.name));
        };
        let shown = shard.state.read().shown(table.id, &schema);
        Ok(TableStatus {
            file_rows: shown.files.iter().map(|f| f.rows).sum(),
            memory_rows: shown.memory.iter().map(|m| m.rows() as u64).sum(),
            files: shown.files.len() as u64,
            bytes: shown.files.iter().map(|f| f.bytes).sum(),
        })
    }

    /// Counts and gauges.
    #[must_use]
    pub fn metrics(&self) -> EngineMetrics {
        let shards = self.shared.open_shards();
        let (_, unserved) = self.served();
        let env = &self.shared.env;
        let mut metrics = EngineMetrics {
            shards_serving: shards.iter().filter(|s| !s.halted.is()).count() as u64,
            shards_unavailable: unserved.len() as u64,
            tables: env.catalog.tables_count() as u64,
            memory_bytes: env.memory.used() as u64,
            memory_bytes_max: env.config.memtable_bytes_max as u64,
            ..EngineMetrics::default()
        };
        for shard in shards {
            let c = &shard.counters;
            metrics.rows_applied += Counters::get(&c.rows_applied);
            metrics.records_applied += Counters::get(&c.records_applied);
            metrics.foreign_records += Counters::get(&c.foreign_records);
            metrics.claims += Counters::get(&c.claims);
            metrics.flushes += Counters::get(&c.flushes);
            metrics.flushed_bytes += Counters::get(&c.flushed_bytes);
            metrics.compactions += Counters::get(&c.compactions);
            metrics.compacted_bytes += Counters::get(&c.compacted_bytes);
            metrics.collected_objects += Counters::get(&c.collected_objects);
            metrics.recuts += Counters::get(&c.recuts);
            metrics.splits += Counters::get(&c.splits);
            metrics.in_flight_bytes += shard.pipeline.in_flight_bytes() as u64;
            metrics.log_bytes += shard.log.retained_bytes();
            metrics.shards_in_trouble += u64::from(shard.trouble.lock().is_some());
            let files = shard.state.read().manifest.files;
            metrics.files += files.count;
            metrics.file_bytes += files.bytes;
        }
        metrics
    }

    /// What the log on the local disk counts; `None`: the log is elsewhere.
    #[must_use]
    pub fn log_stats(&self) -> Option<LocalLogStats> {
        self.shared.env.logs.local_stats()
    }

    fn chosen(&self, shard: Option<ShardId>) -> Result<Vec<Arc<Shard>>, EngineError> {
        match shard {
            Some(id) => Ok(vec![self.shared.shard(id)?]),
            None => Ok(self.shared.open_shards()),
        }
    }

    /// A command for all shards must not answer success when some could not do it.
    fn all_served(&self) -> Result<(), EngineError> {
        let slots = self.shared.slots.all();
        slots.iter().try_for_each(|slot| match *slot.wanted.lock() {
            Role::None => Ok(()),
            _ => match slot.shard()? {
                shard if shard.halted.is() => Err(shard.unavailable()),
                _ => Ok(()),
            },
        })
    }

    /// Writes all rows in memory of one shard, or of all that are served, to files; waits until the
    /// files have taken their place.
    ///
    /// # Errors
    /// The first failure, also [`EngineError::ShardUnavailable`] for a shard that is not served;
    /// other shards are flushed all the same.
    pub async fn flush(&self, shard: Option<ShardId>) -> Result<Flushed, EngineError> {
        let shards = self.chosen(shard)?;
        let outcomes = futures::future::join_all(shards.iter().map(|s| s.flush())).await;
        let mut all = Flushed::default();
        for outcome in outcomes {
            all.add(outcome?);
        }
        if shard.is_none() {
            self.all_served()?;
        }
        Ok(all)
    }

    /// Merges the files of one table, or of all tables, into as few as there can be; waits until it
    /// is done. Rows in memory are not included: flush before.
    ///
    /// # Errors
    /// The first failure; what was merged before stays.
    pub async fn compact(&self, table: Option<&TableHandle>) -> Result<Compacted, EngineError> {
        let mut all = Compacted::default();
        match table {
            Some(table) => all.add(self.compact_here(table.shard, Some(table.id)).await?),
            None => {
                for shard in self.shared.led_shards() {
                    all.add(self.compact_here(shard.id, None).await?);
                }
                self.all_served()?;
            }
        }
        Ok(all)
    }

    /// As [`Self::compact`], for one shard, which this process must lead.
    ///
    /// # Errors
    /// As [`Self::compact`]; [`WriteError::NotLeader`].
    pub async fn compact_here(
        &self,
        shard: ShardId,
        table: Option<TableId>,
    ) -> Result<Compacted, EngineError> {
        let led = self.shared.led_here(shard)?;
        let tables = table.map_or_else(|| led.tables_with_files(), |table| vec![table]);
        let mut all = Compacted::default();
        for table in tables {
            all.add(led.compact_fully(table).await?);
        }
        Ok(all)
    }

    /// The checksum of one table's rows, as of now (`checksum.rs`).
    ///
    /// # Errors
    /// [`EngineError::ShardUnavailable`], [`EngineError::NotFound`], a file that cannot be read.
    pub async fn checksum_table(&self, table: &TableHandle) -> Result<ShardChecksum, EngineError> {
        let view = self.read_view(table).await?;
        let producer = self.shared.shard(table.shard)?.producer();
        let mut sum = ShardChecksum::new(table.shard, view.position);
        sum.add(checksum::of_view(&view, &producer).await?);
        Ok(sum)
    }

    /// The checksum of all rows of one shard at one position, or of all shards, each at its own.
    ///
    /// # Errors
    /// As [`Self::checksum_table`]; also if some shard is not served.
    pub async fn checksum(
        &self,
        shard: Option<ShardId>,
    ) -> Result<Vec<ShardChecksum>, EngineError> {
        if shard.is_none() {
            self.all_served()?;
        }
        let mut sums = Vec::new();
        let patience = self.shared.patience();
        for shard in self.chosen(shard)? {
            let producer = shard.producer();
            let (position, views) = shard.views(&ReadLevel::Strong, patience).await?;
            let mut sum = ShardChecksum::new(shard.id, position);
            for view in views {
                sum.add(checksum::of_view(&view, &producer).await?);
            }
            sums.push(sum);
        }
        Ok(sums)
    }

    /// The checksum of all rows that this process's replica of a shard shows once it has applied
    /// `position`: at that position, if nothing was written since.
    ///
    /// # Errors
    /// As [`Self::checksum_table`]; [`EngineError::NotFresh`].
    pub async fn checksum_from(
        &self,
        shard: ShardId,
        position: Offset,
    ) -> Result<ShardChecksum, EngineError> {
        let shard = self.shared.shard(shard)?;
        let patience = self.shared.patience();
        let seen = CommitToken {
            shard: shard.id,
            epoch: Epoch::default(),
            offset: position,
        };
        let level = ReadLevel::Session(vec![seen]);
        let producer = shard.producer();
        let (position, views) = shard.views(&level, patience).await?;
        let mut sum = ShardChecksum::new(shard.id, position);
        for view in views {
            sum.add(checksum::of_view(&view, &producer).await?);
        }
        Ok(sum)
    }

    /// Deletes objects that nothing needs any more; with `dry_run`, only says which.
    ///
    /// # Errors
    /// The store's; what was deleted until then stays deleted.
    pub async fn gc(&self, dry_run: bool) -> Result<GcReport, EngineError> {
        let mut report = GcReport {
            dry_run,
            ..GcReport::default()
        };
        let mut known = Relatives::default();
        for shard in self.shared.led_shards() {
            shard.collect(dry_run, &mut known, &mut report).await?;
        }
        self.shared.collect_orphans(dry_run, &mut report).await?;
        Ok(report)
    }
}
