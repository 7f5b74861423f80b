//! Making, renaming and dropping schemas and tables.
//!
//! A table has its columns in its shard's log and its name in meta. Order of `create_tables`:
//! columns first, name after. A crash in between leaves columns nobody can reach (dropped at the
//! next open); the other order would leave a name whose columns nobody knows, a half table that
//! every reader would trip over. `drop_table` is the mirror image: the name goes first.
//!
//! Two creators of one name race in meta: its transaction lets one win, the other drops the columns
//! it made and looks again.
//!
//! Each runs to its end once begun, also when its caller goes away: dropped between the log and
//! meta, or between meta and what this process knows of meta, it would leave columns without a name
//! until the next start, or a name that nobody here finds and nobody may take.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use shoal_meta::{MetaError, NamedTable, Placed, SchemaEntry, TableEntry};
use shoal_types::{NodeId, SchemaError, ShardId, TableId, TableSchema};
use shoal_wal::record::SchemaChange;

use super::open::ByShard;
use super::partitions::{NewUnit, new_layout};
use super::tables::{TRIES, contended};
use super::{NewTable, Shared, TableHandle};
use crate::{EngineError, WriteError};

/// Columns of one `Schema` record: keeps it far below the record limit.
const COLUMNS_A_RECORD: usize = 20_000;

impl Shared {
    pub(super) async fn create_schema(
        &self,
        name: &str,
        if_not_exists: bool,
    ) -> Result<bool, EngineError> {
        SchemaError::check_name("schema", name)?;
        let catalog = &self.env.catalog;
        let exists = || {
            if if_not_exists {
                Ok(false)
            } else {
                Err(EngineError::AlreadyExists {
                    what: "schema",
                    name: name.to_owned(),
                })
            }
        };
        if catalog.has_schema(name) {
            return exists();
        }
        let created_ms = self.env.clock.now_ms();
        match catalog
            .create_schema(name, SchemaEntry { created_ms })
            .await
        {
            Ok(()) => Ok(true),
            Err(MetaError::Conflict) => exists(),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) async fn drop_schema(
        &self,
        name: &str,
        if_exists: bool,
        cascade: bool,
    ) -> Result<bool, EngineError> {
        let catalog = &self.env.catalog;
        catalog.find_schema(name).await?;
        for _ in 0..TRIES {
            let Some(tables) = catalog.tables(name) else {
                return if if_exists {
                    Ok(false)
                } else {
                    Err(self.schema_not_found(name))
                };
            };
            if !tables.is_empty() && !cascade {
                return Err(EngineError::Invalid(format!(
                    "schema {name:?} holds {} tables; DROP SCHEMA … CASCADE drops them too",
                    tables.len()
                )));
            }
            match catalog.drop_schema(name, &tables).await {
                Ok(()) => {
                    let units = tables.iter().flat_map(|t| t.entry.placed());
                    self.forget(units).await;
                    return Ok(true);
                }
                Err(MetaError::Conflict) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(contended(name))
    }

    pub(super) async fn create_tables(
        &self,
        tables: &[NewTable],
        if_not_exists: bool,
    ) -> Result<Vec<TableHandle>, EngineError> {
        let catalog = &self.env.catalog;
        for table in tables {
            SchemaError::check_name("table", &table.name)?;
            table.schema.check()?;
            if let Some(partitions) = &table.partitions {
                partitions.check(&table.schema)?;
            }
            if !catalog.find_schema(&table.schema_name).await? {
                return Err(self.schema_not_found(&table.schema_name));
            }
        }
        let mut broken = HashSet::new();
        for _ in 0..TRIES {
            let mut seen = HashSet::new();
            let mut missing = Vec::new();
            for table in tables {
                let exists = catalog.table(&table.schema_name, &table.name).is_some();
                let fresh = seen.insert((table.schema_name.as_str(), table.name.as_str()));
                if (exists || !fresh) && !if_not_exists {
                    return Err(EngineError::AlreadyExists {
                        what: "table",
                        name: table.name.clone(),
                    });
                }
                if !exists && fresh {
                    missing.push(table);
                }
            }
            match self.make_tables(&missing, &broken).await {
                Ok(()) => {}
                Err(MakeError::Raced) => continue,
                Err(MakeError::Broken { shard, error }) => {
                    tracing::warn!(%shard, %error, "no table can be placed there; the next shard is tried");
                    broken.insert(shard);
                    if broken.len() == self.slots.len() {
                        return Err(error);
                    }
                    continue;
                }
                Err(MakeError::Failed(e)) => return Err(e),
            }
            let made = tables
                .iter()
                .map(|t| self.table(&t.schema_name, &t.name))
                .collect::<Option<Vec<_>>>();
            if let Some(made) = made {
                return Ok(made);
            }
        }
        Err(contended("creating tables"))
    }

    async fn make_tables(
        &self,
        missing: &[&NewTable],
        broken: &HashSet<ShardId>,
    ) -> Result<(), MakeError> {
        if missing.is_empty() {
            return Ok(());
        }
        let mut named = Vec::with_capacity(missing.len());
        let mut by_shard: ByShard<NewUnit> = HashMap::new();
        let mut placing = self.placing(broken)?;
        for table in missing {
            placing.begin_table();
            let id = TableId::generate();
            let schema = TableSchema {
                table: id,
                version: 1,
                ..table.schema.clone()
            };
            let entry = match &table.partitions {
                None => {
                    let shard = placing.next();
                    by_shard.entry(shard).or_default().push(NewUnit {
                        schema: Arc::new(schema),
                        bounds: None,
                    });
                    TableEntry::whole(id, shard)
                }
                Some(partitions) => {
                    let layout = new_layout(partitions, || placing.next())?;
                    for part in &layout.parts {
                        let unit = NewUnit::of(&schema, &layout, part);
                        by_shard.entry(part.shard).or_default().push(unit);
                    }
                    TableEntry::partitioned(id, Arc::new(layout))
                }
            };
            named.push(NamedTable {
                schema_name: table.schema_name.as_str().into(),
                name: table.name.as_str().into(),
                entry,
            });
        }
        let written = by_shard
            .into_iter()
            .map(|(shard, units)| async move { (shard, self.put_units(shard, units).await) });
        let written = futures::future::join_all(written).await;
        let failed = written.into_iter().find(|(_, outcome)| outcome.is_err());
        if let Some((shard, Err(error))) = failed {
            let unserved = matches!(
                error,
                EngineError::Write(
                    WriteError::ShardHalted { .. } | WriteError::ShardUnavailable { .. }
                )
            );
            let units = named.iter().flat_map(|t| t.entry.placed());
            let others = |placed: &Placed| !unserved || placed.shard != shard;
            self.forget(units.filter(others)).await;
            return Err(if unserved {
                MakeError::Broken { shard, error }
            } else {
                MakeError::Failed(error)
            });
        }
        match self.env.catalog.create_tables(&named).await {
            Ok(()) => Ok(()),
            Err(MetaError::Conflict) => {
                // Another creator took a name (or a schema went): what we made has none.
                let ours = |t: &&NamedTable| self.env.catalog.placement(t.entry.table).is_none();
                let lost = named.iter().filter(ours);
                let lost: Vec<_> = lost.flat_map(|t| t.entry.placed()).collect();
                self.forget(lost.into_iter()).await;
                Err(MakeError::Raced)
            }
            // It may have taken effect; the next open drops the columns if it did not.
            Err(e) => Err(MakeError::Failed(e.into())),
        }
    }

    /// Makes units in a shard.
    pub(super) async fn put_units(
        &self,
        shard: ShardId,
        units: Vec<NewUnit>,
    ) -> Result<(), EngineError> {
        let mut part = Vec::new();
        let mut columns = 0;
        for unit in units {
            if columns + unit.schema.columns.len() > COLUMNS_A_RECORD && !part.is_empty() {
                self.submit_schemas(shard, std::mem::take(&mut part))
                    .await?;
                columns = 0;
            }
            columns += unit.schema.columns.len() + 8;
            let (table, of) = (unit.schema.table, unit.schema.owner());
            part.push(SchemaChange::Put(unit.schema));
            part.extend(unit.bounds.map(|bounds| SchemaChange::Own {
                table,
                of,
                bounds: Arc::new(bounds),
            }));
        }
        Ok(self.submit_schemas(shard, part).await?)
    }

    pub(super) fn placing(&self, broken: &HashSet<ShardId>) -> Result<Placing, EngineError> {
        let catalog = &self.env.catalog;
        let fit: Vec<ShardId> = match self.peers() {
            None => self.open_shards().iter().map(|s| s.id).collect(),
            Some(peers) => {
                let all = self.slots.ids().into_iter();
                all.filter(|id| peers.is_led(*id).is_ok()).collect()
            }
        };
        let mut fit: Vec<ShardId> = fit.into_iter().filter(|id| !broken.contains(id)).collect();
        let idle = self
            .peers()
            .map(|peers| peers.idle_shards())
            .unwrap_or_default();
        if fit.iter().any(|id| idle.contains(id)) {
            fit.retain(|id| idle.contains(id));
        }
        let leader = |id| self.peers().and_then(|peers| peers.leader_of(id));
        let shards = fit.into_iter().map(|shard| Place {
            shard,
            node: leader(shard),
            partitions: catalog.partitions_on(shard),
        });
        let shards: Vec<Place> = shards.collect();
        if shards.is_empty() {
            return Err(match self.slots.all().first() {
                Some(slot) => slot.shard().err().unwrap_or(EngineError::ShuttingDown),
                None => EngineError::Invalid("there are no shards".into()),
            });
        }
        Ok(Placing {
            shards,
            on_nodes: HashMap::new(),
        })
    }

    /// Drops the columns of tables that have no name any more. What fails is made good at the next
    /// open: nobody can reach them.
    pub(super) async fn forget(&self, units: impl Iterator<Item = Placed>) {
        let mut by_shard: ByShard<SchemaChange> = HashMap::new();
        for placed in units {
            let drop = SchemaChange::Drop { table: placed.unit };
            by_shard.entry(placed.shard).or_default().push(drop);
        }
        for (shard, mut drops) in by_shard {
            match (self.led_here(shard), self.peers()) {
                (Ok(shard), _) => {
                    let state = shard.state.read();
                    drops.retain(|d| state.fold.schema(d.table()).is_some());
                }
                (Err(_), Some(_)) => {}
                (Err(_), None) => continue,
            }
            for part in drops.chunks(1024) {
                if let Err(error) = self.submit_schemas(shard, part.to_vec()).await {
                    tracing::warn!(%shard, %error, "dropped tables keep their files until the next start");
                }
            }
        }
    }

    pub(super) async fn rename_table(
        &self,
        table: &TableHandle,
        name: &str,
    ) -> Result<TableHandle, EngineError> {
        SchemaError::check_name("table", name)?;
        let catalog = &self.env.catalog;
        for _ in 0..TRIES {
            let Some(named) = catalog.named(table.table) else {
                return Err(self.table_not_found(&table.schema_name, &table.name));
            };
            if &*named.name == name {
                return Ok(TableHandle::of(&named));
            }
            if catalog.table(&named.schema_name, name).is_some() {
                return Err(EngineError::AlreadyExists {
                    what: "table",
                    name: name.to_owned(),
                });
            }
            match catalog.rename_table(&named, name).await {
                Ok(()) => {
                    return Ok(TableHandle {
                        name: name.to_owned(),
                        ..TableHandle::of(&named)
                    });
                }
                Err(MetaError::Conflict) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(contended(&table.name))
    }

    pub(super) async fn drop_table(&self, table: &TableHandle) -> Result<(), EngineError> {
        let catalog = &self.env.catalog;
        for _ in 0..TRIES {
            let Some(named) = catalog.named(table.table) else {
                return Err(self.table_not_found(&table.schema_name, &table.name));
            };
            match catalog.drop_table(&named).await {
                Ok(()) => {
                    self.forget(named.entry.placed().into_iter()).await;
                    return Ok(());
                }
                Err(MetaError::Conflict) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(contended(&table.name))
    }
}

enum MakeError {
    Raced,
    /// A shard takes nothing, and this is known.
    Broken {
        shard: ShardId,
        error: EngineError,
    },
    Failed(EngineError),
}

impl From<EngineError> for MakeError {
    fn from(error: EngineError) -> Self {
        Self::Failed(error)
    }
}

/// Gives each new partition to the shard with the fewest, of those with the least load; partitions
/// of one table to different nodes as far as there are some.
pub(super) struct Placing {
    shards: Vec<Place>,
    /// Partitions that this table has on each node.
    on_nodes: HashMap<NodeId, u64>,
}

struct Place {
    shard: ShardId,
    /// Who leads it.
    node: Option<NodeId>,
    partitions: u64,
}

impl Placing {
    /// From here on another table's partitions are placed.
    pub(super) fn begin_table(&mut self) {
        self.on_nodes.clear();
    }

    pub(super) fn next(&mut self) -> ShardId {
        let mut least = 0;
        let rank = |place: &Place| {
            let node = place.node.and_then(|node| self.on_nodes.get(&node));
            (node.copied().unwrap_or(0), place.partitions)
        };
        for (i, place) in self.shards.iter().enumerate() {
            if rank(place) < rank(&self.shards[least]) {
                least = i;
            }
        }
        let place = &mut self.shards[least];
        place.partitions += 1;
        if let Some(node) = place.node {
            *self.on_nodes.entry(node).or_default() += 1;
        }
        place.shard
    }
}
