//! What of a table a partition owns (DESIGN §1).
//!
//! A row's place is found from the values of the partition columns, encoded as keys are
//! (`shoal_rows`: order-preserving, NULLs first):
//!
//! | method | a partition owns |
//! |---|---|
//! | HASH | a range of [`SLOTS`] slots; a row's slot is the top 16 bits of xxh3-64 (seed 0) of the encoding |
//! | RANGE | a range of encodings |
//! | LIST | some encodings, and of their rows those within a range of other columns' encodings |
//!
//! A table without `PARTITION BY` is one partition that owns everything; cut in two it becomes a
//! table of RANGE partitions over the columns that it was cut by. Columns are named one by one
//! and not as "the key", because a line-protocol table's key grows.

use serde::{Deserialize, Serialize};

use crate::ColumnId;

/// Number of hash slots of a table.
pub const SLOTS: u32 = 65_536;

/// How the values of the partition columns choose a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionMethod {
    /// By the hash of the values.
    Hash,
    /// By their order.
    Range,
    /// By the values themselves.
    List,
}

/// How a table's rows find their partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PartitionBy {
    /// The method.
    pub method: PartitionMethod,
    /// The partition columns, in the order of the clause.
    pub columns: Vec<ColumnId>,
}

/// Hash slots from `from` up to, and without, `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotRange {
    /// The first slot.
    pub from: u32,
    /// One past the last; at most [`SLOTS`].
    pub to: u32,
}

/// Encodings from `from` up to, and without, `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The smallest encoding, or a prefix of it; empty: from the beginning.
    pub from: Vec<u8>,
    /// Above all encodings in the range; `None`: no end.
    pub to: Option<Vec<u8>>,
}

/// A key range of columns other than the partition columns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Within {
    /// The columns.
    pub columns: Vec<ColumnId>,
    /// The encodings of theirs that are in it.
    pub range: KeyRange,
}

/// The part of a table that a partition owns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Extent {
    /// HASH.
    Slots(SlotRange),
    /// RANGE.
    Keys(KeyRange),
    /// LIST.
    Values {
        /// Encodings, ascending.
        values: Vec<Vec<u8>>,
        /// Of their rows only these; `None`: all.
        within: Option<Within>,
    },
}

/// A partition's extent with what it is measured by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PartitionBounds {
    /// How rows find it.
    pub by: PartitionBy,
    /// What it owns.
    pub extent: Extent,
}

/// Where a partition is cut in two: what is at or above it goes to the right one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CutPoint {
    /// Of a HASH partition: a slot.
    Slot(u32),
    /// Of a RANGE partition: an encoding of its columns, or a prefix of one. Of a LIST partition:
    /// an encoding of the columns that its cut is measured by.
    Key(Vec<u8>),
}

impl SlotRange {
    /// All slots.
    pub const WHOLE: Self = Self { from: 0, to: SLOTS };

    /// The ranges of `count` partitions of nearly equal size; `count` is 1 to [`SLOTS`].
    pub fn even(count: u32) -> impl Iterator<Item = Self> {
        let bound = move |i: u32| {
            // Below 2^16 times 2^16.
            u32::try_from(u64::from(i) * u64::from(SLOTS) / u64::from(count)).unwrap_or(SLOTS)
        };
        (0..count).map(move |i| Self {
            from: bound(i),
            to: bound(i + 1),
        })
    }

    /// Whether a slot is in it.
    #[must_use]
    pub fn contains(&self, slot: u32) -> bool {
        (self.from..self.to).contains(&slot)
    }
}

impl KeyRange {
    /// Everything.
    pub const WHOLE: Self = Self {
        from: Vec::new(),
        to: None,
    };

    /// Whether an encoding is in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.from.as_slice() && self.to.as_deref().is_none_or(|to| key < to)
    }

    fn covers(&self, other: &Self) -> bool {
        let ends_later = match (&self.to, &other.to) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(its)) => mine >= its,
        };
        self.from <= other.from && ends_later
    }

    fn meets(&self, other: &Self) -> bool {
        let begins_before_end = |a: &Self, b: &Self| b.to.as_ref().is_none_or(|end| a.from < *end);
        begins_before_end(self, other) && begins_before_end(other, self)
    }

    fn cut(&self, at: &[u8]) -> Option<(Self, Self)> {
        if at <= self.from.as_slice() || self.to.as_deref().is_some_and(|to| at >= to) {
            return None;
        }
        let left = Self {
            from: self.from.clone(),
            to: Some(at.to_vec()),
        };
        let right = Self {
            from: at.to_vec(),
            to: self.to.clone(),
        };
        Some((left, right))
    }

    fn join(&self, right: &Self) -> Option<Self> {
        (self.to.as_ref() == Some(&right.from)).then(|| Self {
            from: self.from.clone(),
            to: right.to.clone(),
        })
    }
}

impl Extent {
    /// Whether all of `other` is in it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Slots(mine), Self::Slots(its)) => mine.from <= its.from && its.to <= mine.to,
            (Self::Keys(mine), Self::Keys(its)) => mine.covers(its),
            (
                Self::Values { values, within },
                Self::Values {
                    values: its_values,
                    within: its_within,
                },
            ) => {
                let all = its_values.iter().all(|v| values.binary_search(v).is_ok());
                let inside = match (within, its_within) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(mine), Some(its)) => {
                        mine.columns == its.columns && mine.range.covers(&its.range)
                    }
                };
                all && inside
            }
            _ => false,
        }
    }

    /// Whether a row may be in both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Slots(mine), Self::Slots(its)) => mine.from < its.to && its.from < mine.to,
            (Self::Keys(mine), Self::Keys(its)) => mine.meets(its),
            (
                Self::Values { values, within },
                Self::Values {
                    values: its_values,
                    within: its_within,
                },
            ) => {
                let shared = its_values.iter().any(|v| values.binary_search(v).is_ok());
                let apart = match (within, its_within) {
                    (Some(mine), Some(its)) => {
                        mine.columns == its.columns && !mine.range.meets(&its.range)
                    }
                    _ => false,
                };
                shared && !apart
            }
            _ => true,
        }
    }

    /// What is in both; `None`: nothing is, or it cannot be said by one extent.
    #[must_use]
    pub fn common(&self, other: &Self) -> Option<Self> {
        if self.covers(other) {
            return Some(other.clone());
        }
        if other.covers(self) {
            return Some(self.clone());
        }
        match (self, other) {
            (Self::Slots(a), Self::Slots(b)) => {
                let (from, to) = (a.from.max(b.from), a.to.min(b.to));
                (from < to).then_some(Self::Slots(SlotRange { from, to }))
            }
            (Self::Keys(a), Self::Keys(b)) if a.meets(b) => {
                let to = match (&a.to, &b.to) {
                    (Some(a), Some(b)) => Some(a.min(b).clone()),
                    (a, b) => a.clone().or_else(|| b.clone()),
                };
                Some(Self::Keys(KeyRange {
                    from: a.from.clone().max(b.from.clone()),
                    to,
                }))
            }
            _ => None,
        }
    }

    /// The two parts of it. `cut_columns`: what a LIST partition that was never cut is to be
    /// measured by. `None`: the point is not inside, or of another kind.
    #[must_use]
    pub fn cut(&self, at: &CutPoint, cut_columns: &[ColumnId]) -> Option<(Self, Self)> {
        match (self, at) {
            (Self::Slots(slots), CutPoint::Slot(at)) => {
                let inside = slots.from < *at && *at < slots.to;
                let left = SlotRange { to: *at, ..*slots };
                let right = SlotRange {
                    from: *at,
                    ..*slots
                };
                inside.then_some((Self::Slots(left), Self::Slots(right)))
            }
            (Self::Keys(keys), CutPoint::Key(at)) => {
                let (left, right) = keys.cut(at)?;
                Some((Self::Keys(left), Self::Keys(right)))
            }
            (Self::Values { values, within }, CutPoint::Key(at)) => {
                let (columns, range) = match within {
                    Some(within) => (within.columns.as_slice(), &within.range),
                    None => (cut_columns, &KeyRange::WHOLE),
                };
                let (left, right) = range.cut(at)?;
                let part = |range| Self::Values {
                    values: values.clone(),
                    within: Some(Within {
                        columns: columns.to_vec(),
                        range,
                    }),
                };
                Some((part(left), part(right)))
            }
            _ => None,
        }
    }

    /// The extent of this and its right neighbour as one; `None`: they are not neighbours.
    #[must_use]
    pub fn join(&self, right: &Self) -> Option<Self> {
        match (self, right) {
            (Self::Slots(left), Self::Slots(right)) => {
                (left.to == right.from).then_some(Self::Slots(SlotRange {
                    from: left.from,
                    to: right.to,
                }))
            }
            (Self::Keys(left), Self::Keys(right)) => left.join(right).map(Self::Keys),
            (
                Self::Values { values, within },
                Self::Values {
                    values: right_values,
                    within: right_within,
                },
            ) => match (within, right_within) {
                (None, None) => {
                    let mut all = [values.as_slice(), right_values].concat();
                    all.sort_unstable();
                    all.dedup();
                    (all.len() == values.len() + right_values.len()).then_some(Self::Values {
                        values: all,
                        within: None,
                    })
                }
                (Some(left), Some(right))
                    if values == right_values && left.columns == right.columns =>
                {
                    let range = left.range.join(&right.range)?;
                    let within = (range != KeyRange::WHOLE).then(|| Within {
                        columns: left.columns.clone(),
                        range,
                    });
                    Some(Self::Values {
                        values: values.clone(),
                        within,
                    })
                }
                _ => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(from: &[u8], to: Option<&[u8]>) -> Extent {
        Extent::Keys(KeyRange {
            from: from.to_vec(),
            to: to.map(<[u8]>::to_vec),
        })
    }

    #[test]
    fn what_is_common_is_in_both() {
        let slots = |from, to| Extent::Slots(SlotRange { from, to });
        assert_eq!(slots(0, 5).common(&slots(3, 9)), Some(slots(3, 5)));
        assert_eq!(slots(0, 5).common(&slots(5, 9)), None);
        let (low, high) = (keys(b"a", Some(b"m")), keys(b"c", None));
        assert_eq!(low.common(&high), Some(keys(b"c", Some(b"m"))));
        assert_eq!(
            low.common(&keys(b"d", Some(b"e"))),
            Some(keys(b"d", Some(b"e")))
        );
        assert_eq!(low.common(&keys(b"m", None)), None);
    }

    #[test]
    fn even_slots_cover_all_and_differ_by_one_at_most() {
        for count in [1, 2, 3, 7, 64, 65_535, SLOTS] {
            let ranges: Vec<_> = SlotRange::even(count).collect();
            assert_eq!(ranges.first().map(|r| r.from), Some(0));
            assert_eq!(ranges.last().map(|r| r.to), Some(SLOTS));
            assert!(ranges.windows(2).all(|w| w[0].to == w[1].from));
            let sizes = ranges.iter().map(|r| r.to - r.from);
            let (min, max) = (sizes.clone().min(), sizes.max());
            assert!(max.zip(min).is_some_and(|(max, min)| max - min <= 1));
        }
    }

    #[test]
    fn the_parts_of_a_cut_are_disjoint_and_join_again() {
        let list = Extent::Values {
            values: vec![vec![1, 2], vec![1, 3]],
            within: None,
        };
        let cases = [
            (Extent::Slots(SlotRange::WHOLE), CutPoint::Slot(7)),
            (keys(b"", None), CutPoint::Key(b"m".to_vec())),
            (keys(b"a", Some(b"c")), CutPoint::Key(b"b".to_vec())),
            (list, CutPoint::Key(b"k".to_vec())),
        ];
        for (whole, at) in cases {
            let (left, right) = whole.cut(&at, &[ColumnId(4)]).expect("inside");
            assert!(whole.covers(&left) && whole.covers(&right), "{whole:?}");
            assert!(!left.covers(&whole) && !right.covers(&whole));
            assert!(!left.meets(&right) && !right.meets(&left), "{whole:?}");
            assert_eq!(left.join(&right), Some(whole.clone()));
            assert_eq!(right.join(&left), None);
            assert!(left.cut(&at, &[]).is_none(), "its own end");
            assert!(right.cut(&at, &[]).is_none(), "its own beginning");
        }
    }

    #[test]
    fn lists_join_whatever_their_order_unless_they_share_a_value() {
        let list = |values: &[&[u8]]| Extent::Values {
            values: values.iter().map(|v| v.to_vec()).collect(),
            within: None,
        };
        let (a, b) = (list(&[b"a", b"c"]), list(&[b"b"]));
        assert_eq!(b.join(&a), Some(list(&[b"a", b"b", b"c"])));
        assert!(!a.meets(&b));
        assert!(a.meets(&list(&[b"c"])));
        assert_eq!(a.join(&list(&[b"c"])), None);
    }
}
