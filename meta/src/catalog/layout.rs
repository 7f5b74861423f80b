//! The partitions of a table and where they are.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_types::{Extent, Offset, PartitionBounds, PartitionBy, PartitionId, ShardId, TableId};

use super::TableEntry;

/// The most partitions of one table.
pub const PARTITIONS_MAX: usize = 1024;

/// One partition of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name, unique within the table.
    pub name: String,
    /// Its rows' id in its shard.
    pub unit: TableId,
    /// The shard that holds it.
    pub shard: ShardId,
    /// What it owns. No two partitions of a table own a row both.
    pub extent: Extent,
    /// Generation of its shard in which it was last cut, joined or moved.
    #[serde(default)]
    pub generation: u64,
    /// The cut that made it; `None`: it was made with the table, or added.
    #[serde(default)]
    pub origin: Option<PartOrigin>,
}

/// The cut that a partition comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartOrigin {
    /// The unit that was cut.
    pub unit: TableId,
    /// The shard in whose log it was decided.
    pub shard: ShardId,
    /// Offset of the record there.
    pub at: Offset,
}

/// A unit that is no partition yet, or not any more: its shard may still have columns of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LooseUnit {
    /// Its id in the shard.
    pub unit: TableId,
    /// The shard.
    pub shard: ShardId,
}

/// The partitions of a table that has, or may have, several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// How rows find their partition.
    pub by: PartitionBy,
    /// The partitions, in the order of what they own (LIST: in the order they were made).
    pub parts: Vec<Part>,
    /// Which of them decides versions and ids of columns: a place in `parts`.
    pub home: usize,
    /// Units being made or dropped.
    #[serde(default)]
    pub loose: Vec<LooseUnit>,
}

/// Where one unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placed {
    /// Its id in its shard.
    pub unit: TableId,
    /// The partition, as objects of it are named.
    pub partition: PartitionId,
    /// The shard that holds it.
    pub shard: ShardId,
}

impl Part {
    /// Where it is.
    #[must_use]
    pub fn placed(&self) -> Placed {
        Placed {
            unit: self.unit,
            partition: PartitionId(self.unit.0),
            shard: self.shard,
        }
    }
}

impl Layout {
    /// The partition that decides the columns.
    #[must_use]
    pub fn home(&self) -> &Part {
        // Layouts are checked before they are stored.
        self.parts.get(self.home).unwrap_or(&self.parts[0])
    }

    /// The partition of a unit.
    #[must_use]
    pub fn part(&self, unit: TableId) -> Option<&Part> {
        self.parts.iter().find(|part| part.unit == unit)
    }

    /// Puts partitions in the order of what they own (LIST: leaves it), with `home` deciding the
    /// columns; the first, if that is none of them.
    pub fn sort(&mut self, home: TableId) {
        self.parts.sort_by(|a, b| match (&a.extent, &b.extent) {
            (Extent::Keys(a), Extent::Keys(b)) => a.from.cmp(&b.from),
            (Extent::Slots(a), Extent::Slots(b)) => a.from.cmp(&b.from),
            _ => std::cmp::Ordering::Equal,
        });
        let home = self.parts.iter().position(|part| part.unit == home);
        self.home = home.unwrap_or(0);
    }

    /// The bounds of a partition.
    #[must_use]
    pub fn bounds(&self, part: &Part) -> PartitionBounds {
        PartitionBounds {
            by: self.by.clone(),
            extent: part.extent.clone(),
        }
    }

    /// At least the bytes of it in the store.
    pub(super) fn encoded_bytes_max(&self) -> usize {
        let parts = self.parts.iter();
        let extents = parts.map(|part| {
            let extent = match &part.extent {
                Extent::Slots(_) => 32,
                Extent::Keys(keys) => keys.from.len() + keys.to.as_ref().map_or(0, Vec::len),
                Extent::Values { values, within } => {
                    let range = within.as_ref().map(|within| &within.range);
                    let ends =
                        range.map_or(0, |r| r.from.len() + r.to.as_ref().map_or(0, Vec::len));
                    ends + values.iter().map(|value| value.len() + 8).sum::<usize>()
                }
            };
            // A byte above 127 takes two.
            part.name.len() + 2 * extent + 256
        });
        extents.sum::<usize>() + 64 * self.loose.len() + 256
    }

    /// What every layout must keep, in words that name what is wrong.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.parts.len() > PARTITIONS_MAX {
            return Err(format!(
                "a table has at most {PARTITIONS_MAX} partitions, this one would have {}",
                self.parts.len()
            ));
        }
        self.check_parts()
    }

    /// As [`Self::check`], but for their number: of partitions that are cut already there may be
    /// some too many.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check_parts(&self) -> Result<(), String> {
        if self.parts.is_empty() || self.home >= self.parts.len() {
            return Err("a table needs at least one partition".into());
        }
        for (i, part) in self.parts.iter().enumerate() {
            for other in &self.parts[..i] {
                if other.name == part.name {
                    return Err(format!("two partitions are named {:?}", part.name));
                }
                if other.unit == part.unit || other.extent.meets(&part.extent) {
                    return Err(format!(
                        "partitions {:?} and {:?} would own the same rows",
                        other.name, part.name
                    ));
                }
            }
        }
        Ok(())
    }
}

impl TableEntry {
    /// The entry of a table that is one partition.
    #[must_use]
    pub fn whole(table: TableId, shard: ShardId) -> Self {
        Self {
            table,
            partition: PartitionId(table.0),
            shard,
            layout: None,
        }
    }

    /// The entry of a table with these partitions.
    #[must_use]
    pub fn partitioned(table: TableId, layout: Arc<Layout>) -> Self {
        let home = layout.home().placed();
        Self {
            table,
            partition: home.partition,
            shard: home.shard,
            layout: Some(layout),
        }
    }

    /// The partition that decides the columns.
    #[must_use]
    pub fn home(&self) -> Placed {
        match &self.layout {
            Some(layout) => layout.home().placed(),
            None => Placed {
                unit: self.table,
                partition: self.partition,
                shard: self.shard,
            },
        }
    }

    /// All partitions.
    #[must_use]
    pub fn placed(&self) -> Vec<Placed> {
        match &self.layout {
            Some(layout) => layout.parts.iter().map(Part::placed).collect(),
            None => vec![self.home()],
        }
    }

    /// Where one of its units is.
    #[must_use]
    pub fn placed_unit(&self, unit: TableId) -> Option<Placed> {
        match &self.layout {
            Some(layout) => layout.part(unit).map(Part::placed),
            None => (unit == self.table).then(|| self.home()),
        }
    }
}
