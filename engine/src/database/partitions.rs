//! Which rows go to which partition; partitions made and dropped.
//!
//! Order of adding: the new units are noted in the layout as loose, made in their shards, and made
//! partitions of the table. Order of dropping: from partition to loose, dropped in the shard,
//! forgotten. So a crash leaves units that the layout names as loose, which the next change of the
//! table's partitions clears away ([`Shared::clear_loose`]); never one that nobody knows of, and
//! never a partition whose columns nobody knows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_meta::{
    Layout, LooseUnit, MetaError, NamedTable, PARTITIONS_MAX, Part, Placed, TableEntry,
};
use shoal_rows::{RouteError, Router, RowBlock};
use shoal_types::{
    ColumnId, Extent, Incarnation, PartitionBounds, PartitionBy, PartitionId, PartitionMethod,
    SchemaError, ShardId, SlotRange, TableId, TableMode, TableSchema,
};
use shoal_wal::record::SchemaChange;

use super::open::ByShard;
use super::tables::{TRIES, contended};
use super::writes::{Owned, Owns};
use super::{Database, NewPartitions, Shared, TableHandle, as_write_error};
use crate::background::to_the_end;
use crate::owned::fingerprint;
use crate::{EngineError, WriteError};

/// Tables whose router is kept. One takes up to 128 KiB (a place for each slot).
const ROUTERS_MAX: usize = 256;
/// Pause before rows are routed anew that were refused.
const MOVED_PAUSE: Duration = Duration::from_millis(2);
/// Versions of one `Schema` record, when a partition that was left behind is brought up.
const VERSIONS_A_RECORD: u32 = 64;

/// A partition to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPartition {
    /// Its name.
    pub name: String,
    /// What it owns.
    pub extent: Extent,
}

/// A unit to be made in a shard.
pub(super) struct NewUnit {
    pub schema: Arc<TableSchema>,
    pub bounds: Option<PartitionBounds>,
}

impl NewUnit {
    /// The unit of a partition, with the columns of its table.
    pub(super) fn of(columns: &TableSchema, layout: &Layout, part: &Part) -> Self {
        Self {
            schema: Arc::new(TableSchema {
                table: part.unit,
                part_of: Some(columns.owner()),
                version: 1,
                ..columns.clone()
            }),
            bounds: Some(layout.bounds(part)),
        }
    }
}

/// How rows find their partitions, of tables that were written to lately.
#[derive(Debug)]
pub(crate) struct Routers {
    known: Mutex<lru::LruCache<TableId, (Arc<Layout>, Arc<Router>)>>,
}

impl Default for Routers {
    fn default() -> Self {
        let max = std::num::NonZeroUsize::new(ROUTERS_MAX).unwrap_or(std::num::NonZeroUsize::MIN);
        Self {
            known: Mutex::new(lru::LruCache::new(max)),
        }
    }
}

impl Routers {
    /// How rows of a table find their partition in `layout`.
    fn of(
        &self,
        table: TableId,
        layout: &Arc<Layout>,
        schema: impl FnOnce() -> Result<Arc<TableSchema>, EngineError>,
    ) -> Result<Arc<Router>, EngineError> {
        if let Some((of, router)) = self.known.lock().get(&table)
            && Arc::ptr_eq(of, layout)
        {
            return Ok(Arc::clone(router));
        }
        let extents: Vec<Extent> = layout.parts.iter().map(|p| p.extent.clone()).collect();
        let router = Arc::new(Router::new(&layout.by, &extents, &*schema()?));
        let kept = (Arc::clone(layout), Arc::clone(&router));
        self.known.lock().put(table, kept);
        Ok(router)
    }
}

impl NewPartitions {
    /// `count` hash partitions of equal size, named `p0`, `p1`, ….
    #[must_use]
    pub fn hash(columns: Vec<ColumnId>, count: u32) -> Self {
        let parts = SlotRange::even(count).enumerate();
        Self {
            by: PartitionBy {
                method: PartitionMethod::Hash,
                columns,
            },
            partitions: parts
                .map(|(i, slots)| NewPartition {
                    name: format!("p{i}"),
                    extent: Extent::Slots(slots),
                })
                .collect(),
        }
    }

    /// Whether rows of a table with these columns can be spread so.
    pub(super) fn check(&self, schema: &TableSchema) -> Result<(), EngineError> {
        let invalid = |why: String| Err(EngineError::Invalid(why));
        let mut seen = HashSet::new();
        for id in &self.by.columns {
            let Some(column) = schema.column_by_id(*id) else {
                return invalid(format!("partition column {id} does not exist"));
            };
            if !seen.insert(*id) {
                return invalid(format!("partition column {:?} is named twice", column.name));
            }
            if !column.column_type.may_be_key() {
                return invalid(format!(
                    "column {:?} of type {} cannot be a partition column",
                    column.name, column.column_type
                ));
            }
            if schema.mode == TableMode::Upsert && !schema.is_key(*id) {
                return invalid(format!(
                    "partition column {:?} is not in the primary key: rows of one key could be in two partitions",
                    column.name
                ));
            }
        }
        if self.by.columns.is_empty() {
            return invalid("a table is partitioned by at least one column".into());
        }
        for partition in &self.partitions {
            SchemaError::check_name("partition", &partition.name)?;
            let fits = matches!(
                (self.by.method, &partition.extent),
                (PartitionMethod::Hash, Extent::Slots(_))
                    | (PartitionMethod::Range, Extent::Keys(_))
                    | (PartitionMethod::List, Extent::Values { .. })
            );
            if !fits {
                return invalid(format!(
                    "partition {:?} is of another kind than the table's",
                    partition.name
                ));
            }
        }
        Ok(())
    }
}

/// The layout of a new table, with units of its own.
pub(super) fn new_layout(
    partitions: &NewPartitions,
    mut place: impl FnMut() -> ShardId,
) -> Result<Layout, EngineError> {
    if partitions.partitions.len() > PARTITIONS_MAX {
        return Err(EngineError::Invalid(format!(
            "a table has at most {PARTITIONS_MAX} partitions"
        )));
    }
    let parts = partitions.partitions.iter().map(|partition| Part {
        name: partition.name.clone(),
        unit: TableId::generate(),
        shard: place(),
        extent: partition.extent.clone(),
        generation: 0,
        origin: None,
    });
    let layout = Layout {
        by: partitions.by.clone(),
        parts: parts.collect(),
        home: 0,
        loose: Vec::new(),
    };
    layout.check().map_err(EngineError::Invalid)?;
    Ok(layout)
}

impl Shared {
    /// Spreads a request's rows over the shards of their partitions. `owns`: what those own is noted
    /// here.
    ///
    /// # Errors
    /// [`WriteError::Moved`]: a partition owned something else when other rows of the request were
    /// routed.
    pub(super) fn route(
        &self,
        blocks: Vec<RowBlock>,
        owns: &mut Owns,
    ) -> Result<Vec<(ShardId, RowBlock)>, WriteError> {
        let mut routed = Vec::with_capacity(blocks.len());
        for block in blocks {
            let Some(named) = self.env.catalog.named(block.table) else {
                // Planned anew, the table is missed by its name.
                return Err(WriteError::StaleSchema { table: block.table });
            };
            let Some(layout) = &named.entry.layout else {
                let table = named.entry.table;
                let owned = Owned { table, print: 0 };
                note_owned(owns, named.entry.shard, table, owned)?;
                routed.push((named.entry.shard, block));
                continue;
            };
            let router = self
                .router(&TableHandle::of(&named), layout)
                .map_err(as_write_error)?;
            let parts = router.divide(block).map_err(|error| match error {
                RouteError::NoPartition { .. } => WriteError::NoPartition(error.to_string()),
                RouteError::Block(why) => WriteError::Invalid(why),
            })?;
            for (at, block) in parts {
                let part = &layout.parts[at];
                let print = fingerprint(Some(&layout.bounds(part)));
                let owned = Owned {
                    table: named.entry.table,
                    print,
                };
                note_owned(owns, part.shard, part.unit, owned)?;
                let block = RowBlock {
                    table: part.unit,
                    ..block
                };
                routed.push((part.shard, block));
            }
        }
        Ok(routed)
    }

    /// Brings what this process knows of partitions up to date, after one turned out to own something
    /// else.
    pub(super) async fn learn_layouts(&self) {
        if let Err(error) = self.env.catalog.sync().await {
            tracing::debug!(%error, "partitions not brought up to date");
        }
        // The log knows of a change a moment before meta does.
        tokio::time::sleep(MOVED_PAUSE).await;
    }

    fn router(
        &self,
        table: &TableHandle,
        layout: &Arc<Layout>,
    ) -> Result<Arc<Router>, EngineError> {
        let schema = || self.known_schema(table);
        self.routers.of(table.table, layout, schema)
    }

    /// Gives the other partitions of a table the columns of its home. One that cannot be reached is
    /// brought up by the first write that is refused for it.
    pub(super) async fn bring_up_all(&self, table: &TableHandle, home: &TableSchema) {
        // As meta has it now: a partition may have come since.
        let Some(named) = self.env.catalog.named(table.table) else {
            return;
        };
        let partitions = TableHandle::of(&named).partitions();
        let others = partitions.iter().filter(|p| p.id != home.table);
        let brought = others.map(|partition| async move {
            if let Err(error) = self.bring_up(partition, home).await {
                tracing::info!(table = %home.owner(), unit = %partition.id, %error, "columns of a partition are behind");
            }
        });
        futures::future::join_all(brought).await;
    }

    /// Gives a partition the columns of its table's home.
    pub(super) async fn bring_up(
        &self,
        partition: &TableHandle,
        home: &TableSchema,
    ) -> Result<(), EngineError> {
        for _ in 0..TRIES {
            let (shard, current) = self.current_place(partition).await?;
            if current.version >= home.version {
                return Ok(());
            }
            let last = home.version.min(current.version + VERSIONS_A_RECORD);
            let changes = (current.version + 1..=last).map(|version| {
                SchemaChange::Put(Arc::new(TableSchema {
                    table: current.table,
                    part_of: current.part_of,
                    version,
                    ..home.clone()
                }))
            });
            match self.submit_schemas(shard, changes.collect()).await {
                Ok(()) | Err(WriteError::StaleSchema { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(contended(&partition.name))
    }

    /// Sees to it that a unit knows the columns of its table's home; its incarnation then. `None`:
    /// it is no partition of a table any more.
    pub(super) async fn unit_as_of_now(
        &self,
        unit: TableId,
    ) -> Result<Option<Incarnation>, EngineError> {
        let Some(named) = self.env.catalog.named(unit) else {
            return Ok(None);
        };
        let table = TableHandle::of(&named);
        let Some(placed) = named.entry.placed_unit(unit) else {
            return Ok(None);
        };
        let home = self.current_schema(&table).await?;
        if unit == table.id {
            return Ok(Some(home.incarnation));
        }
        let partition = table.at(placed);
        self.bring_up(&partition, &home).await?;
        let schema = self.current_schema(&partition).await?;
        Ok(Some(schema.incarnation))
    }

    /// Changes a table's layout: `change` gets the newest and says what it is to be; again when
    /// another change came between.
    pub(super) async fn change_layout(
        &self,
        table: &TableHandle,
        mut change: impl FnMut(&NamedTable, &Layout) -> Result<Option<Layout>, EngineError> + Send,
    ) -> Result<Arc<Layout>, EngineError> {
        let catalog = &self.env.catalog;
        for _ in 0..TRIES {
            let Some(named) = catalog.named(table.table) else {
                return Err(self.table_not_found(&table.schema_name, &table.name));
            };
            let Some(layout) = &named.entry.layout else {
                return Err(EngineError::Invalid(format!(
                    "table {:?} is not partitioned",
                    table.name
                )));
            };
            let Some(mut changed) = change(&named, layout)? else {
                return Ok(Arc::clone(layout));
            };
            let home = changed.home().unit;
            changed.sort(home);
            changed.check().map_err(EngineError::Invalid)?;
            let changed = Arc::new(changed);
            let entry = TableEntry::partitioned(named.entry.table, Arc::clone(&changed));
            match catalog.put_entry(&named, entry).await {
                Ok(()) => return Ok(changed),
                Err(MetaError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(contended(&table.name))
    }

    async fn add_partitions(
        &self,
        table: &TableHandle,
        partitions: &[NewPartition],
        if_not_exists: bool,
    ) -> Result<(), EngineError> {
        self.clear_loose(table).await?;
        let mut placing = self.placing(&HashSet::new())?;
        let parts: Vec<Part> = partitions
            .iter()
            .map(|partition| Part {
                name: partition.name.clone(),
                unit: TableId::generate(),
                shard: placing.next(),
                extent: partition.extent.clone(),
                generation: 0,
                origin: None,
            })
            .collect();
        let mut wanted: Vec<Part> = Vec::new();
        let noted = self
            .change_layout(table, |_, layout| {
                wanted.clear();
                for part in &parts {
                    if !layout.parts.iter().any(|known| known.name == part.name) {
                        wanted.push(part.clone());
                    } else if !if_not_exists {
                        return Err(EngineError::AlreadyExists {
                            what: "partition",
                            name: part.name.clone(),
                        });
                    }
                }
                if wanted.is_empty() {
                    return Ok(None);
                }
                // What they will own is found out before anything is made.
                let mut whole = layout.clone();
                whole.parts.extend(wanted.iter().cloned());
                whole.check().map_err(EngineError::Invalid)?;
                let mut noted = layout.clone();
                noted.loose.extend(wanted.iter().map(loose));
                Ok(Some(noted))
            })
            .await?;
        if wanted.is_empty() {
            return Ok(());
        }
        let home = self.current_schema(table).await?;
        let mut by_shard: ByShard<NewUnit> = HashMap::new();
        for part in &wanted {
            let unit = NewUnit::of(&home, &noted, part);
            by_shard.entry(part.shard).or_default().push(unit);
        }
        let made = by_shard
            .into_iter()
            .map(|(shard, units)| self.put_units(shard, units));
        futures::future::try_join_all(made).await?;
        self.change_layout(table, |_, layout| {
            let mut changed = layout.clone();
            for part in &wanted {
                let before = changed.loose.len();
                changed.loose.retain(|loose| loose.unit != part.unit);
                if changed.loose.len() == before {
                    return Err(contended(&table.name));
                }
                changed.parts.push(part.clone());
            }
            Ok(Some(changed))
        })
        .await?;
        // Columns that came meanwhile went to the partitions there were.
        let home = self.current_schema(table).await?;
        self.bring_up_all(table, &home).await;
        Ok(())
    }

    async fn drop_partitions(
        &self,
        table: &TableHandle,
        names: &[String],
        if_exists: bool,
    ) -> Result<(), EngineError> {
        // One that is to decide the columns next must know them.
        let home = self.current_schema(table).await?;
        self.bring_up_all(table, &home).await;
        self.change_layout(table, |_, layout| {
            let is_named = |part: &&Part| names.contains(&part.name);
            if !if_exists
                && let Some(name) = names
                    .iter()
                    .find(|name| layout.parts.iter().all(|part| part.name != **name))
            {
                return Err(EngineError::NotFound {
                    what: "partition",
                    name: name.clone(),
                    nearest: None,
                });
            }
            let gone: Vec<LooseUnit> = layout.parts.iter().filter(is_named).map(loose).collect();
            if gone.is_empty() {
                return Ok(None);
            }
            if gone.len() == layout.parts.len() {
                return Err(EngineError::Invalid(format!(
                    "a table keeps at least one partition; DROP TABLE {:?} drops it with all",
                    table.name
                )));
            }
            let home = layout.home().unit;
            let mut changed = layout.clone();
            changed.parts.retain(|part| !is_named(&part));
            changed.loose.extend(gone);
            let stays = changed.parts.iter().position(|part| part.unit == home);
            changed.home = stays.unwrap_or(0);
            Ok(Some(changed))
        })
        .await?;
        self.clear_loose(table).await
    }

    /// Drops the units that a change of partitions, finished or not, has left behind.
    async fn clear_loose(&self, table: &TableHandle) -> Result<(), EngineError> {
        let Some(named) = self.env.catalog.named(table.table) else {
            return Ok(());
        };
        let loose = named
            .entry
            .layout
            .as_ref()
            .map(|layout| layout.loose.clone());
        let loose = loose.unwrap_or_default();
        if loose.is_empty() {
            return Ok(());
        }
        let placed = loose.iter().map(|loose| Placed {
            unit: loose.unit,
            partition: PartitionId(loose.unit.0),
            shard: loose.shard,
        });
        // From here on whoever was about to make a partition of one of them cannot.
        self.change_layout(table, |_, layout| {
            let mut changed = layout.clone();
            changed.loose.retain(|known| !loose.contains(known));
            Ok(Some(changed))
        })
        .await?;
        self.forget(placed).await;
        Ok(())
    }
}

fn note_owned(
    owns: &mut Owns,
    shard: ShardId,
    unit: TableId,
    owned: Owned,
) -> Result<(), WriteError> {
    match owns.insert(unit, owned) {
        Some(known) if known != owned => Err(WriteError::Moved {
            shard,
            applied: 0,
            commit: None,
        }),
        _ => Ok(()),
    }
}

fn loose(part: &Part) -> LooseUnit {
    LooseUnit {
        unit: part.unit,
        shard: part.shard,
    }
}

impl Database {
    /// How rows of a table find their partitions; `None`: there is one.
    ///
    /// # Errors
    /// As [`Self::table_schema`].
    pub fn router(&self, table: &TableHandle) -> Result<Option<Arc<Router>>, EngineError> {
        let layout = table.layout.as_ref();
        layout
            .map(|layout| self.shared.router(table, layout))
            .transpose()
    }

    /// Adds partitions to a table that is partitioned by range or list.
    ///
    /// # Errors
    /// [`EngineError::AlreadyExists`] for a name that is taken, unless `if_not_exists`;
    /// [`EngineError::Invalid`]: rows of a new one belong to one that is there.
    pub async fn add_partitions(
        &self,
        table: &TableHandle,
        partitions: Vec<NewPartition>,
        if_not_exists: bool,
    ) -> Result<(), EngineError> {
        let (shared, table) = (Arc::clone(&self.shared), table.clone());
        to_the_end(async move {
            shared
                .add_partitions(&table, &partitions, if_not_exists)
                .await
        })
        .await
    }

    /// Drops partitions of a table that is partitioned by range or list, with their rows: their
    /// files become garbage, no row is looked at.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] unless `if_exists`; [`EngineError::Invalid`]: none would be left.
    pub async fn drop_partitions(
        &self,
        table: &TableHandle,
        names: Vec<String>,
        if_exists: bool,
    ) -> Result<(), EngineError> {
        let (shared, table) = (Arc::clone(&self.shared), table.clone());
        to_the_end(async move { shared.drop_partitions(&table, &names, if_exists).await }).await
    }
}
