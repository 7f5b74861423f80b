//! Partitions cut and joined where they are: one record in their shard's log (`Recut`), no row moved.
//!
//! Order: the shard's leader writes the record; from then on it owns other units. It tells meta
//! (`shard/layouts.rs`), by which everybody routes. What was routed by the old layout meanwhile is
//! refused and routed anew. A crash before the record: nothing has changed. After it: who leads
//! next finds the record and tells meta.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_meta::PARTITIONS_MAX;
use shoal_rows::encodings;
use shoal_sst::{ReadCounters, ScanOptions};
use shoal_types::{
    CutPoint, Extent, KeyRange, PartitionBounds, PartitionBy, PartitionMethod, ProcedureId,
    ShardId, TableId,
};
use shoal_wal::record::{Join, Move, UnitCut};

use super::{Database, TableHandle};
use crate::background::to_the_end;
use crate::memtable::MemtableScan;
use crate::owned::OwnedRows;
use crate::shard::Shard;
use crate::{EngineError, ReadLevel, ReadView};

/// Rows looked at to find the middle of a partition.
const SAMPLE_ROWS: u64 = 8192;
/// Consecutive rows of a file that are looked at together.
const SAMPLE_RUN: u64 = 32;

/// How units of one shard change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitChange {
    /// One becomes two.
    Cut {
        /// The unit; it keeps the left part.
        unit: TableId,
        /// Where; `None`: in the middle.
        at: Option<CutPoint>,
        /// The unit that the right part becomes; it must be new.
        right: TableId,
        /// The name of the right part's partition; `None`: a free one.
        name: Option<String>,
    },
    /// Two neighbours become one.
    Join {
        /// The left one, which stays.
        left: TableId,
        /// The right one.
        right: TableId,
    },
}

impl Database {
    /// Cuts a partition in two; the left part keeps its name. A table that is one partition becomes
    /// one of two RANGE partitions of its key.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: the point does not lie inside, the table has no key, or the
    /// name is taken.
    pub async fn split_partition(
        &self,
        partition: &TableHandle,
        at: Option<CutPoint>,
        name: Option<String>,
    ) -> Result<(), EngineError> {
        if let (Some(name), Some(layout)) = (&name, &partition.layout)
            && layout.parts.iter().any(|part| part.name == *name)
        {
            return Err(EngineError::AlreadyExists {
                what: "partition",
                name: name.clone(),
            });
        }
        if let Some(layout) = &partition.layout
            && layout.parts.len() >= PARTITIONS_MAX
        {
            return Err(EngineError::Invalid(format!(
                "a table has at most {PARTITIONS_MAX} partitions"
            )));
        }
        let change = UnitChange::Cut {
            unit: partition.id,
            at,
            right: TableId::generate(),
            name,
        };
        self.change_unit(partition.shard, change).await
    }

    /// Joins two neighbouring partitions of one shard under the left one's name. Where their files
    /// still hold rows of each other, or of others, these are written anew before.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: they are no neighbours, or not in one shard.
    pub async fn merge_partitions(
        &self,
        left: &TableHandle,
        right: &TableHandle,
    ) -> Result<(), EngineError> {
        let name = |table: &TableHandle| table.part().map_or_else(String::new, |p| p.name.clone());
        if left.shard != right.shard {
            return Err(EngineError::Invalid(format!(
                "partitions {:?} and {:?} are in different shards; move one of them first",
                name(left),
                name(right)
            )));
        }
        let extents = left.part().zip(right.part());
        let joined = extents.and_then(|(left, right)| left.extent.join(&right.extent));
        if joined.is_none() {
            return Err(EngineError::Invalid(format!(
                "partition {:?} does not begin where {:?} ends: only neighbours can become one",
                name(right),
                name(left)
            )));
        }
        // Both must have the same columns.
        let home = self.shared.current_schema(&self.home_of(left)).await?;
        for partition in [left, right] {
            if partition.id != home.table {
                self.shared.bring_up(partition, &home).await?;
            }
        }
        let change = UnitChange::Join {
            left: left.id,
            right: right.id,
        };
        self.change_unit(left.shard, change).await
    }

    fn home_of(&self, partition: &TableHandle) -> TableHandle {
        let named = self.shared.env.catalog.named(partition.table);
        named.map_or_else(|| partition.clone(), |named| TableHandle::of(&named))
    }

    async fn change_unit(&self, shard: ShardId, change: UnitChange) -> Result<(), EngineError> {
        let done = self.shared.of_leader(
            shard,
            |_| async { self.change_unit_here(shard, change.clone()).await },
            |peers| {
                let change = change.clone();
                async move { peers.change_unit(shard, change).await }
            },
        );
        done.await?;
        Ok(self.shared.env.catalog.sync().await?)
    }

    /// For another node: changes units of a shard that this process leads.
    ///
    /// # Errors
    /// As [`Self::split_partition`] and [`Self::merge_partitions`]; `NotLeader` if it does not.
    pub async fn change_unit_here(
        &self,
        shard: ShardId,
        change: UnitChange,
    ) -> Result<(), EngineError> {
        let led = self.shared.led_here(shard)?;
        to_the_end(async move {
            match change {
                UnitChange::Cut {
                    unit,
                    at,
                    right,
                    name,
                } => led.cut_unit(unit, at, right, name).await,
                UnitChange::Join { left, right } => led.join_units(left, right).await,
            }
        })
        .await
    }
}

impl Shard {
    pub(super) async fn cut_unit(
        self: &Arc<Self>,
        unit: TableId,
        at: Option<CutPoint>,
        right: TableId,
        name: Option<String>,
    ) -> Result<(), EngineError> {
        let at = match at {
            Some(at) => at,
            None => self.middle(unit).await?,
        };
        let name_of = name.clone();
        if let Some(name) = name {
            self.part_names.lock().insert(right, name);
        }
        let done = self
            .recut(ProcedureId::generate(), move |state| {
                let (bounds, key) = bounds_of(&state.fold, unit)?;
                let Some((left, rest)) = bounds.extent.cut(&at, &key) else {
                    return Err(EngineError::Invalid(
                        "the point does not lie inside the partition: choose one above its lower bound and below its upper one".into(),
                    ));
                };
                let part = |extent| PartitionBounds {
                    by: bounds.by.clone(),
                    extent,
                };
                let cut = Move {
                    unit,
                    cut: Some(UnitCut {
                        left: part(left),
                        right_unit: right,
                        right: part(rest),
                    }),
                };
                Ok((vec![cut], Vec::new()))
            })
            .await;
        if done.is_err() && name_of.is_some() {
            self.part_names.lock().remove(&right);
        }
        done
    }

    async fn join_units(
        self: &Arc<Self>,
        left: TableId,
        right: TableId,
    ) -> Result<(), EngineError> {
        self.recut(ProcedureId::generate(), move |state| {
            let fold = &state.fold;
            let (Some(of_left), Some(of_right)) = (fold.bounds(left), fold.bounds(right)) else {
                return Err(EngineError::Invalid(
                    "one of the partitions has changed; look again".into(),
                ));
            };
            let Some(extent) = of_left.extent.join(&of_right.extent) else {
                return Err(EngineError::Invalid(
                    "the partitions are no neighbours (any more)".into(),
                ));
            };
            let bounds = PartitionBounds {
                by: of_left.by.clone(),
                extent,
            };
            Ok((
                Vec::new(),
                vec![Join {
                    left,
                    right,
                    bounds,
                }],
            ))
        })
        .await
    }

    /// A point with about as many rows of a unit below as above.
    pub(super) async fn middle(self: &Arc<Self>, unit: TableId) -> Result<CutPoint, EngineError> {
        let (bounds, key) = bounds_of(&self.state.read().fold, unit)?;
        let columns = match &bounds.extent {
            Extent::Slots(slots) => {
                let middle = slots.from + (slots.to - slots.from) / 2;
                if middle == slots.from {
                    return Err(EngineError::Invalid(
                        "the partition has a single slot, which cannot be cut".into(),
                    ));
                }
                return Ok(CutPoint::Slot(middle));
            }
            Extent::Keys(_) => bounds.by.columns.clone(),
            Extent::Values { within, .. } => match within {
                Some(within) => within.columns.clone(),
                None => key,
            },
        };
        let level = ReadLevel::Eventual;
        let mut views = self.views_of(&[unit], &level, self.patience()).await?;
        let Some(view) = views.pop() else {
            return Err(EngineError::Invalid("a read without a view".into()));
        };
        let mut keys = Vec::new();
        self.sample(&view, &columns, &mut keys).await?;
        keys.sort_unstable();
        let middle = keys.get(keys.len() / 2).cloned();
        let at = middle.map(CutPoint::Key);
        let at = at.filter(|at| bounds.extent.cut(at, &columns).is_some());
        // Half of the rows or more have the lowest key of all.
        let first = keys.first().cloned();
        let other = keys.into_iter().find(|key| Some(key) > first.as_ref());
        let other = other.map(CutPoint::Key);
        at.or(other.filter(|at| bounds.extent.cut(at, &columns).is_some()))
            .ok_or_else(|| {
                EngineError::Invalid(
                    "the partition has too few different keys to find its middle; say where to cut it".into(),
                )
            })
    }

    /// Encodings of `columns` in some rows, taken evenly from files and memory.
    async fn sample(
        &self,
        view: &ReadView,
        columns: &[shoal_types::ColumnId],
        keys: &mut Vec<Vec<u8>>,
    ) -> Result<(), EngineError> {
        let schema = &view.schema;
        let owned = view.owned_rows();
        let mut wanted: Vec<_> = columns.to_vec();
        wanted.extend(owned.iter().flat_map(OwnedRows::columns));
        let of_files: u64 = view.files.iter().map(|f| f.rows).sum();
        let of_memory: u64 = view.memory.iter().map(|m| m.rows() as u64).sum();
        let all = (of_files + of_memory).max(1);
        let mut note = |batch: arrow_array::RecordBatch, step: usize| {
            let batch = match &owned {
                Some(owned) => owned.filter(&batch)?,
                None => batch,
            };
            let column = |id| {
                let name = &schema.column_by_id(id)?.name;
                batch.column_by_name(name).cloned()
            };
            let found = encodings(columns, &column, batch.num_rows());
            let found = found.map_err(|e| EngineError::Invalid(e.to_string()))?;
            keys.extend(found.into_iter().step_by(step.max(1)));
            Ok::<_, EngineError>(())
        };
        for file in &view.files {
            let share =
                (SAMPLE_ROWS * file.rows / all).clamp(SAMPLE_RUN, file.rows.max(SAMPLE_RUN));
            let runs = (share / SAMPLE_RUN).max(1);
            let stretch = (file.rows / runs).max(1);
            let ranges = (0..runs).map(|run| {
                let room = stretch.saturating_sub(SAMPLE_RUN);
                // Anywhere in its stretch: at even steps something regular might be met.
                let hash = xxhash_rust::xxh3::xxh3_64_with_seed(file.path.as_bytes(), run);
                let from = run * stretch + hash % (room + 1);
                from..(from + SAMPLE_RUN).min(file.rows)
            });
            let options = ScanOptions {
                columns: Some(wanted.clone()),
                rows: Some(ranges.filter(|range| range.start < range.end).collect()),
                ..ScanOptions::default()
            };
            let counters = Arc::new(ReadCounters::default());
            let mut rows = self
                .env
                .sst
                .scan_once(file, schema, &options, counters)
                .await?;
            while let Some(batch) = futures::TryStreamExt::try_next(&mut rows).await? {
                note(batch, 1)?;
            }
        }
        let step = usize::try_from(all / SAMPLE_ROWS).unwrap_or(usize::MAX);
        for memory in &view.memory {
            let scan = MemtableScan {
                columns: Some(
                    schema
                        .columns
                        .iter()
                        .map(|c| c.id)
                        .filter(|id| wanted.contains(id) || schema.is_key(*id))
                        .collect(),
                ),
                ..MemtableScan::default()
            };
            for batch in memory.scan(schema, view.predicate.as_deref(), &scan)? {
                note(batch?, step)?;
            }
        }
        Ok(())
    }
}

/// What a unit owns, and the key of its table. One that owns everything is cut by its key.
fn bounds_of(
    fold: &shoal_wal::fold::FoldState,
    unit: TableId,
) -> Result<(PartitionBounds, Vec<shoal_types::ColumnId>), EngineError> {
    let Some(schema) = fold.schema(unit) else {
        return Err(EngineError::Invalid(
            "the partition has changed; look again".into(),
        ));
    };
    let key = schema.key.clone();
    if let Some(bounds) = fold.bounds(unit) {
        return Ok((PartitionBounds::clone(bounds), key));
    }
    if key.is_empty() {
        return Err(EngineError::Invalid(
            "the rows of a table without a key have no place in an order; make it with PARTITION BY HASH".into(),
        ));
    }
    let whole = PartitionBounds {
        by: PartitionBy {
            method: PartitionMethod::Range,
            columns: key.clone(),
        },
        extent: Extent::Keys(KeyRange::WHOLE),
    };
    Ok((whole, key))
}
