//! Telling meta what units own after a change of ownership was applied.
//!
//! The log decides, meta follows: order is record → meta → flush. A change stands above the
//! replay offset of every manifest until meta was told of it (`flush.rs` asks), so that whoever
//! leads after a crash finds it again by replaying, and tells.
//!
//! That units have come to this shard with a split, the shard itself tells when it is led for the
//! first time (`split.rs`): so meta names it only once it can be asked.
//!
//! Every change raises the shard's generation, and each partition in meta has the generation that
//! it was last changed in. A leader that was overtaken and comes late finds a higher one and leaves
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_meta::{BirthStage, Layout, MetaError, NamedTable, Part, PartOrigin, TableEntry};
use shoal_types::{Offset, PartitionBounds, ShardId, TableId};
use shoal_wal::fold::FoldState;
use shoal_wal::record::Recut;

use super::Shard;
use crate::EngineError;

/// Tables told of at the same time: a new shard may have very many.
const TABLES_AT_ONCE: usize = 16;
/// Tries against others who change the same table's partitions.
const TRIES: usize = 16;

/// What a unit owns after a change.
#[derive(Clone, Debug)]
pub(crate) struct UnitNow {
    pub unit: TableId,
    pub bounds: Arc<PartitionBounds>,
    /// The unit whose partition this one was, if it is new.
    pub from: Option<TableId>,
}

/// Partitions of one table that are others now.
#[derive(Clone, Debug)]
pub(crate) struct LayoutChange {
    pub table: TableId,
    pub units: Vec<UnitNow>,
    pub gone: Vec<TableId>,
    /// Units that came from another shard as they were.
    pub moved: Option<Moved>,
}

/// Units that came with a split.
#[derive(Clone, Debug)]
pub(crate) struct Moved {
    pub from: ShardId,
    pub units: Vec<TableId>,
}

/// What one record changed, and meta may not know yet.
#[derive(Clone, Debug)]
pub(crate) struct Untold {
    pub at: Offset,
    pub generation: u64,
    pub changes: Vec<LayoutChange>,
}

impl Untold {
    /// What a recut has changed; `fold`: the state after it.
    pub(super) fn of_recut(at: Offset, recut: &Recut, fold: &FoldState) -> Self {
        let now = |unit: TableId, from| {
            let bounds = fold.bounds(unit).cloned();
            bounds.map(|bounds| UnitNow { unit, bounds, from })
        };
        let cuts = recut.cuts.iter().filter_map(|one| {
            let right = one.cut.as_ref()?.right_unit;
            let units = [now(one.unit, None), now(right, Some(one.unit))];
            Some(LayoutChange {
                table: fold.table_of(one.unit),
                units: units.into_iter().flatten().collect(),
                gone: Vec::new(),
                moved: None,
            })
        });
        let joins = recut.joins.iter().map(|join| LayoutChange {
            table: fold.table_of(join.left),
            units: now(join.left, None).into_iter().collect(),
            gone: vec![join.right],
            moved: None,
        });
        Self {
            at,
            generation: fold.generation(),
            changes: cuts.chain(joins).collect(),
        }
    }

    /// What a new shard has by its first state; `None`: it does not come from a split.
    pub(super) fn of_birth(fold: &FoldState) -> Option<Self> {
        let from = fold.origin()?.shard;
        let mut units: BTreeMap<TableId, Vec<TableId>> = BTreeMap::new();
        for schema in fold.schemas() {
            let of_table = units.entry(fold.table_of(schema.table)).or_default();
            of_table.push(schema.table);
        }
        let changes = units.into_iter().map(|(table, units)| LayoutChange {
            table,
            units: Vec::new(),
            gone: Vec::new(),
            moved: Some(Moved { from, units }),
        });
        Some(Self {
            at: Offset(0),
            generation: fold.generation(),
            changes: changes.collect(),
        })
    }
}

impl Shard {
    /// Tells meta of every change of ownership that was applied here.
    ///
    /// # Errors
    /// Meta's; the next call goes on.
    pub(crate) async fn tell_layouts(&self) -> Result<(), EngineError> {
        let untold = self.state.read().untold.clone();
        for one in untold {
            for some in one.changes.chunks(TABLES_AT_ONCE) {
                let told = some.iter().map(|change| self.tell_layout(change, &one));
                futures::future::try_join_all(told).await?;
            }
            if one.changes.iter().any(|change| change.moved.is_some()) {
                self.rise_to(self.id, BirthStage::Named).await?;
            }
            self.state.write().untold.retain(|u| u.at != one.at);
        }
        Ok(())
    }

    async fn tell_layout(&self, change: &LayoutChange, of: &Untold) -> Result<(), EngineError> {
        let record = Record {
            generation: of.generation,
            shard: self.id,
            at: of.at,
        };
        let catalog = &self.env.catalog;
        for _ in 0..TRIES {
            if catalog.find_placement(change.table).await?.is_none() {
                // Dropped.
                return Ok(());
            }
            let Some(named) = catalog.named(change.table) else {
                return Ok(());
            };
            let hint = |unit: TableId| self.part_names.lock().get(&unit).cloned();
            let Some(entry) = changed(&named, change, record, &hint)? else {
                return Ok(());
            };
            match catalog.put_entry(&named, entry).await {
                Ok(()) => {
                    tracing::info!(
                        shard = %self.id, table = %named.name, generation = record.generation,
                        "partitions have changed"
                    );
                    let mut names = self.part_names.lock();
                    for now in &change.units {
                        names.remove(&now.unit);
                    }
                    return Ok(());
                }
                Err(MetaError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(MetaError::Conflict.into())
    }
}

/// The record that made a change.
#[derive(Clone, Copy, Debug)]
struct Record {
    generation: u64,
    shard: ShardId,
    at: Offset,
}

impl Record {
    fn origin(&self, from: Option<TableId>) -> Option<PartOrigin> {
        from.map(|unit| PartOrigin {
            unit,
            shard: self.shard,
            at: self.at,
        })
    }
}

/// The entry of a table after a change; `None`: meta knows this change, or a later one.
fn changed(
    named: &NamedTable,
    change: &LayoutChange,
    record: Record,
    name: &dyn Fn(TableId) -> Option<String>,
) -> Result<Option<TableEntry>, EngineError> {
    let generation = record.generation;
    if let Some(moved) = &change.moved {
        return Ok(with_moved(&named.entry, moved, record));
    }
    let mut next = match &named.entry.layout {
        Some(layout) => {
            let units = change.units.iter();
            let mentioned = units
                .flat_map(|now| std::iter::once(now.unit).chain(now.from))
                .chain(change.gone.iter().copied());
            let known: Vec<&Part> = mentioned.filter_map(|unit| layout.part(unit)).collect();
            if known.is_empty() || known.iter().any(|part| part.generation >= generation) {
                return Ok(None);
            }
            Layout::clone(layout)
        }
        // A table that was one partition, which owned everything.
        None => match change.units.first() {
            Some(now) => Layout {
                by: now.bounds.by.clone(),
                parts: Vec::new(),
                home: 0,
                loose: Vec::new(),
            },
            None => return Ok(None),
        },
    };
    let home = named.entry.home().unit;
    for now in &change.units {
        let extent = now.bounds.extent.clone();
        if let Some(part) = next.parts.iter_mut().find(|part| part.unit == now.unit) {
            part.extent = extent;
            part.shard = record.shard;
            part.generation = generation;
            continue;
        }
        let is_free = |name: &String| next.parts.iter().all(|part| part.name != *name);
        let from = now.from.and_then(|from| next.part(from));
        let name = name(now.unit).filter(is_free);
        let name = name.unwrap_or_else(|| new_name(&next, from.map(|from| from.name.as_str())));
        next.parts.push(Part {
            name,
            unit: now.unit,
            shard: record.shard,
            extent,
            generation,
            origin: record.origin(now.from),
        });
    }
    let home = match (change.gone.contains(&home), change.units.first()) {
        (true, Some(heir)) => heir.unit,
        _ => home,
    };
    next.parts.retain(|part| !change.gone.contains(&part.unit));
    next.sort(home);
    next.check_parts().map_err(EngineError::Invalid)?;
    Ok(Some(TableEntry::partitioned(
        named.entry.table,
        Arc::new(next),
    )))
}

/// As [`changed`], of a table with units that came from another shard.
fn with_moved(entry: &TableEntry, moved: &Moved, record: Record) -> Option<TableEntry> {
    let Some(layout) = &entry.layout else {
        let was_there = moved.units.contains(&entry.table) && entry.shard == moved.from;
        return was_there.then(|| TableEntry::whole(entry.table, record.shard));
    };
    let mut next = Layout::clone(layout);
    let mut has_moved = false;
    for part in &mut next.parts {
        let is_older = part.shard == moved.from && part.generation < record.generation;
        if is_older && moved.units.contains(&part.unit) {
            part.shard = record.shard;
            part.generation = record.generation;
            has_moved = true;
        }
    }
    has_moved.then(|| TableEntry::partitioned(entry.table, Arc::new(next)))
}

/// `p` and the first number that is free; of a partition with a name of its own that name and a
/// number.
fn new_name(layout: &Layout, from: Option<&str>) -> String {
    let is_numbered = |name: &str| {
        let digits = name.strip_prefix('p').unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let from = from.filter(|from| !is_numbered(from));
    let stem = from.map_or_else(|| "p".to_owned(), |from| format!("{from}_"));
    let first = if from.is_some() { 2 } else { 0 };
    let taken = |name: &String| layout.parts.iter().any(|part| part.name == *name);
    let mut names = (first..).map(|n: u64| format!("{stem}{n}"));
    names.find(|name| !taken(name)).unwrap_or(stem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::{ColumnId, Extent, PartitionBy, PartitionMethod, SlotRange};

    fn bounds(from: u32, to: u32) -> PartitionBounds {
        PartitionBounds {
            by: PartitionBy {
                method: PartitionMethod::Hash,
                columns: vec![ColumnId(1)],
            },
            extent: Extent::Slots(SlotRange { from, to }),
        }
    }

    #[test]
    fn who_comes_late_changes_nothing() {
        let [table, right] = [(); 2].map(|()| TableId::generate());
        let shard = ShardId::generate();
        let layout = Layout {
            by: bounds(0, 1).by,
            parts: vec![Part {
                name: "p0".into(),
                unit: table,
                shard,
                extent: bounds(0, 65_536).extent,
                generation: 0,
                origin: None,
            }],
            home: 0,
            loose: Vec::new(),
        };
        let named = |entry| NamedTable {
            schema_name: "public".into(),
            name: "t".into(),
            entry,
        };
        let now = |unit, from, to, of| UnitNow {
            unit,
            bounds: Arc::new(bounds(from, to)),
            from: of,
        };
        let cut = LayoutChange {
            table,
            units: vec![now(table, 0, 9, None), now(right, 9, 65_536, Some(table))],
            gone: Vec::new(),
            moved: None,
        };
        let join = LayoutChange {
            table,
            units: vec![now(table, 0, 65_536, None)],
            gone: vec![right],
            moved: None,
        };
        let no_name = |_: TableId| None;
        let tell = |entry: &TableEntry, change, generation| {
            let record = Record {
                generation,
                shard,
                at: Offset(7),
            };
            changed(&named(entry.clone()), change, record, &no_name).expect("it fits")
        };
        let whole = TableEntry::partitioned(table, Arc::new(layout));
        let apart = tell(&whole, &cut, 1).expect("new");
        let parts = &apart.layout.as_ref().expect("a layout").parts;
        let names: Vec<&str> = parts.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["p0", "p1"]);
        assert!(tell(&apart, &cut, 1).is_none(), "known");
        let again = tell(&apart, &join, 2).expect("new");
        assert_eq!(again.layout.as_ref().expect("a layout").parts.len(), 1);
        assert!(
            tell(&again, &cut, 1).is_none(),
            "of a leader that was overtaken"
        );
    }
}
