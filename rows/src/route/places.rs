//! The extents of a table's partitions, ready to be searched.

use std::cmp::Ordering;

use hashbrown::HashMap;
use shoal_types::{ColumnId, Extent, KeyRange, PartitionMethod, SLOTS, SlotRange};

use super::{NOWHERE, Slot};

/// What the partitions own.
#[derive(Clone, Debug)]
pub(super) enum Places {
    /// One partition owns everything.
    Whole,
    Slots(Slots),
    Keys(Keys),
    Lists(Lists),
}

impl Places {
    pub(super) fn new(method: PartitionMethod, extents: &[Extent]) -> Self {
        match (method, extents) {
            (PartitionMethod::Hash, [Extent::Slots(SlotRange::WHOLE)]) => Self::Whole,
            (PartitionMethod::Hash, _) => Self::Slots(Slots::new(extents)),
            (PartitionMethod::Range, [Extent::Keys(keys)]) if *keys == KeyRange::WHOLE => {
                Self::Whole
            }
            (PartitionMethod::Range, _) => Self::Keys(Keys::new(extents)),
            (PartitionMethod::List, _) => Self::Lists(Lists::new(extents)),
        }
    }
}

/// Bits of a slot that [`Slots::before`] goes by.
const COARSE_BITS: u32 = 8;
const SLOTS_IN_COARSE: u32 = SLOTS >> COARSE_BITS;

/// Slot ranges, ascending.
///
/// A table of all slots would be 128 KiB for each partitioned table; a search among all ranges
/// guesses wrong half of the time. So the first bits of a slot are looked up, and the few ranges
/// that begin with them searched.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// The first slot of each range.
    from: Vec<u32>,
    /// One past the last, and the partition.
    rest: Vec<(u32, u32)>,
    /// Number of ranges that begin before the slots with these first bits; one more at the end.
    before: Vec<u32>,
}

impl Slots {
    fn new(extents: &[Extent]) -> Self {
        let mut places: Vec<(u32, u32, u32)> = (0_u32..)
            .zip(extents)
            .filter_map(|(partition, extent)| match extent {
                Extent::Slots(slots) => Some((slots.from, slots.to, partition)),
                _ => None,
            })
            .collect();
        places.sort_unstable();
        let before = |coarse| {
            let begin = coarse * SLOTS_IN_COARSE;
            places.partition_point(|place| place.0 < begin) as u32
        };
        Self {
            before: (0..=1 << COARSE_BITS).map(before).collect(),
            from: places.iter().map(|place| place.0).collect(),
            rest: places.iter().map(|place| (place.1, place.2)).collect(),
        }
    }

    pub(super) fn find(&self, slot: Slot) -> u32 {
        let slot = u32::from(slot);
        let coarse = (slot / SLOTS_IN_COARSE) as usize;
        let (first, end) = (
            self.before[coarse] as usize,
            self.before[coarse + 1] as usize,
        );
        let after = first + self.from[first..end].partition_point(|from| *from <= slot);
        match after.checked_sub(1).map(|at| self.rest[at]) {
            Some((to, partition)) if slot < to => partition,
            _ => NOWHERE,
        }
    }

    /// All partitions.
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        self.rest.iter().map(|(_, partition)| *partition)
    }
}

/// Key ranges as the places where one begins or nothing is owned any more, ascending.
///
/// A key is compared by a word of eight bytes first, after the bytes that all places (but the
/// beginning of everything) have in common: comparing slices, of bytes just written, costs several
/// times as much.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    bounds: Vec<Vec<u8>>,
    /// The partition from a place up to the next, or [`NOWHERE`].
    owners: Vec<u32>,
    /// The word of each place.
    words: Vec<u64>,
    common: Vec<u8>,
}

impl Keys {
    pub(super) fn new(extents: &[Extent]) -> Self {
        let mut ranges: Vec<_> = (0_u32..)
            .zip(extents)
            .filter_map(|(partition, extent)| match extent {
                Extent::Keys(range) => Some((range, partition)),
                _ => None,
            })
            .collect();
        ranges.sort_unstable_by(|a, b| a.0.from.cmp(&b.0.from));
        let (mut bounds, mut owners) = (Vec::new(), Vec::new());
        for (at, (range, partition)) in ranges.iter().enumerate() {
            bounds.push(range.from.clone());
            owners.push(*partition);
            let next = ranges.get(at + 1).map(|(range, _)| &range.from);
            if let Some(to) = &range.to
                && next != Some(to)
            {
                bounds.push(to.clone());
                owners.push(NOWHERE);
            }
        }
        debug_assert!(bounds.is_sorted(), "partitions of a table are disjoint");
        let mut some = bounds.iter().filter(|bound| !bound.is_empty());
        let first = some.next().map_or(&[][..], Vec::as_slice);
        let common = some.fold(first, |common, bound| {
            let same = common.iter().zip(bound).take_while(|(a, b)| a == b);
            &common[..same.count()]
        });
        let common = common.to_vec();
        Self {
            words: bounds
                .iter()
                .map(|bound| word(bound.get(common.len()..).unwrap_or_default()))
                .collect(),
            bounds,
            owners,
            common,
        }
    }

    /// Number of places at or before a key.
    fn passed(&self, key: &[u8]) -> usize {
        let (start, rest) = key.split_at(key.len().min(self.common.len()));
        let word = match start.cmp(&self.common) {
            Ordering::Equal => word(rest),
            // Only the beginning of everything is before it.
            Ordering::Less => return self.bounds.partition_point(Vec::is_empty),
            Ordering::Greater => return self.bounds.len(),
        };
        let before = self.words.partition_point(|bound| *bound < word);
        if self.words.get(before) != Some(&word) {
            return before;
        }
        let alike = self.words[before..].partition_point(|bound| *bound == word);
        let alike = &self.bounds[before..before + alike];
        before + alike.partition_point(|bound| bound.as_slice() <= key)
    }

    pub(super) fn find(&self, key: &[u8]) -> u32 {
        match self.passed(key) {
            0 => NOWHERE,
            passed => self.owners[passed - 1],
        }
    }

    /// The partitions that own any of a range.
    pub(super) fn meeting(&self, wanted: &KeyRange) -> impl Iterator<Item = u32> {
        let first = self.passed(&wanted.from).saturating_sub(1);
        let places = self.bounds[first..].iter().zip(&self.owners[first..]);
        places
            .take_while(|(bound, _)| wanted.to.as_ref().is_none_or(|to| *bound < to))
            .map(|(_, owner)| *owner)
            .filter(|owner| *owner != NOWHERE)
    }
}

/// The first eight bytes, or all and zeros, as a number that orders them. Of two keys with
/// different words, those order them.
fn word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            u64::from_be_bytes(padded)
        }
    }
}

/// Partitions by the values that they own.
#[derive(Clone, Debug)]
pub(super) struct Lists {
    /// By encoded value; the owners of one have disjoint ranges.
    pub(super) owners: HashMap<Vec<u8>, Vec<Owner>, ahash::RandomState>,
    /// The different lists of columns by which partitions are cut.
    pub(super) within: Vec<Vec<ColumnId>>,
}

/// A partition that owns a value's rows, or those of them in a range of other columns.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) partition: u32,
    /// Index into [`Lists::within`], and the range.
    pub(super) within: Option<(usize, KeyRange)>,
}

impl Lists {
    pub(super) fn new(extents: &[Extent]) -> Self {
        let mut out = Self {
            owners: HashMap::default(),
            within: Vec::new(),
        };
        for (partition, extent) in (0_u32..).zip(extents) {
            let Extent::Values { values, within } = extent else {
                continue;
            };
            let within = within.as_ref().map(|within| {
                let known = out.within.iter().position(|c| *c == within.columns);
                let at = known.unwrap_or_else(|| {
                    out.within.push(within.columns.clone());
                    out.within.len() - 1
                });
                (at, within.range.clone())
            });
            for value in values {
                out.owners.entry(value.clone()).or_default().push(Owner {
                    partition,
                    within: within.clone(),
                });
            }
        }
        out
    }

    /// `is_within`: whether the row's encoding of columns [`Lists::within`]`[i]` is in a range.
    pub(super) fn find(
        &self,
        value: &[u8],
        mut is_within: impl FnMut(usize, &KeyRange) -> bool,
    ) -> u32 {
        let owners = self.owners.get(value).map_or(&[][..], Vec::as_slice);
        let mut owners = owners.iter();
        let owner = owners.find(|owner| match &owner.within {
            None => true,
            Some((columns, range)) => is_within(*columns, range),
        });
        owner.map_or(NOWHERE, |owner| owner.partition)
    }
}
