//! Which partitions can hold the rows that a query wants.

use std::ops::Bound;

use shoal_types::{ColumnId, ColumnType, Extent, KeyRange};

use super::places::{Lists, Places};
use super::{NOWHERE, Router};
use crate::key::column_ends;
use crate::literal::ABOVE_ALL;
use crate::slot_of;

/// Tuples of wanted values that are looked up one by one, at most.
const TUPLES_MAX: usize = 1024;

/// What a query wants of one column, as encodings of single values
/// ([`encode_key_values`](crate::encode_key_values)).
///
/// It may want too much, never too little. NULL is `[0x00]`, below all values: as no comparison
/// is true of it, `x < 5` is `Range(Excluded([0x00]), Excluded(…5))`. Only types that
/// may be keys are compared by their encodings: of REAL and DOUBLE PRECISION columns (where 0 and
/// -0 are equal) want [`Any`](Self::Any).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Any value.
    Any,
    /// One of these (`=`, `IN`, `IS NULL`); none: the query wants nothing.
    Values(Vec<Vec<u8>>),
    /// Those between two.
    Range(Bound<Vec<u8>>, Bound<Vec<u8>>),
}

impl Wanted {
    /// Whether nothing is wanted.
    fn is_none(&self) -> bool {
        match self {
            Self::Any => false,
            Self::Values(values) => values.is_empty(),
            Self::Range(Bound::Unbounded, _) | Self::Range(_, Bound::Unbounded) => false,
            Self::Range(Bound::Included(from), Bound::Included(to)) => from > to,
            Self::Range(
                Bound::Included(from) | Bound::Excluded(from),
                Bound::Included(to) | Bound::Excluded(to),
            ) => from >= to,
        }
    }

    fn has(&self, value: &[u8]) -> bool {
        let is_from = |from: &Bound<Vec<u8>>| match from {
            Bound::Included(from) => value >= from.as_slice(),
            Bound::Excluded(from) => value > from.as_slice(),
            Bound::Unbounded => true,
        };
        let is_to = |to: &Bound<Vec<u8>>| match to {
            Bound::Included(to) => value <= to.as_slice(),
            Bound::Excluded(to) => value < to.as_slice(),
            Bound::Unbounded => true,
        };
        match self {
            Self::Any => true,
            Self::Values(values) => values.binary_search_by(|v| v.as_slice().cmp(value)).is_ok(),
            Self::Range(from, to) => is_from(from) && is_to(to),
        }
    }

    /// With its values ascending and distinct.
    fn sorted(mut self) -> Self {
        if let Self::Values(values) = &mut self {
            values.sort_unstable();
            values.dedup();
        }
        self
    }
}

impl Router {
    /// The partitions, ascending, that can hold rows in which every column has what `wanted` says
    /// of it; `wanted` is asked for partition columns, and for those that LIST partitions are cut
    /// by. No partition is left out that holds such a row.
    ///
    /// | method | partitions left out |
    /// |---|---|
    /// | HASH | if each column has values, up to 1024 tuples in all: those without their slots |
    /// | RANGE | those without any row that begins with the values of the first columns and has the next column in its range |
    /// | LIST | those with no value (and range of other columns) that is wanted |
    #[must_use]
    pub fn may_hold(&self, wanted: impl Fn(ColumnId) -> Wanted) -> Vec<usize> {
        let ask = |columns: &[ColumnId]| -> Vec<Wanted> {
            columns.iter().map(|id| wanted(*id).sorted()).collect()
        };
        let of_columns = ask(&self.by.columns);
        if of_columns.iter().any(Wanted::is_none) {
            return Vec::new();
        }
        let mut found: Vec<u32> = match &self.places {
            Places::Whole => vec![0],
            Places::Slots(places) => match tuples(&of_columns) {
                Some(keys) => {
                    let places = keys.iter().map(|key| places.find(slot_of(key)));
                    places.filter(|place| *place != NOWHERE).collect()
                }
                None => places.all().collect(),
            },
            Places::Keys(places) => key_ranges(&of_columns)
                .iter()
                .flat_map(|range| places.meeting(range))
                .collect(),
            Places::Lists(lists) => {
                let within = lists.within.iter().map(|columns| key_ranges(&ask(columns)));
                let types: Vec<_> = self.columns.iter().map(|c| c.column_type).collect();
                of_lists(lists, &types, &of_columns, &within.collect::<Vec<_>>())
            }
        };
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|place| place as usize).collect()
    }
}

/// All tuples of wanted values, encoded; `None`: some column has no finite set, or they are too
/// many.
fn tuples(wanted: &[Wanted]) -> Option<Vec<Vec<u8>>> {
    let mut tuples = vec![Vec::new()];
    for column in wanted {
        let Wanted::Values(values) = column else {
            return None;
        };
        tuples = times(&tuples, values)?;
    }
    Some(tuples)
}

/// Each prefix followed by each value; `None`: too many.
fn times(prefixes: &[Vec<u8>], values: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let count = prefixes.len().checked_mul(values.len())?;
    if count > TUPLES_MAX {
        return None;
    }
    let each = prefixes
        .iter()
        .flat_map(|prefix| values.iter().map(move |value| joined(prefix, value, None)));
    Some(each.collect())
}

fn joined(prefix: &[u8], value: &[u8], end: Option<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(prefix.len() + value.len() + 1);
    out.extend_from_slice(prefix);
    out.extend_from_slice(value);
    out.extend(end);
    out
}

/// Ranges of the encodings of several columns that hold all that is wanted: every tuple of the
/// values of the first columns, and of the first column without a finite set what follows them.
/// What is wanted of the columns after that is not looked at.
fn key_ranges(wanted: &[Wanted]) -> Vec<KeyRange> {
    if wanted.iter().any(Wanted::is_none) {
        return Vec::new();
    }
    let mut prefixes = vec![Vec::new()];
    for column in wanted {
        let (from, to) = match column {
            Wanted::Any => (Bound::Unbounded, Bound::Unbounded),
            Wanted::Range(from, to) => (from.as_ref(), to.as_ref()),
            Wanted::Values(values) => match (times(&prefixes, values), &values[..]) {
                (Some(longer), _) => {
                    prefixes = longer;
                    continue;
                }
                // Too many: all between the first and the last.
                (None, [first, .., last]) => (Bound::Included(first), Bound::Included(last)),
                (None, _) => (Bound::Unbounded, Bound::Unbounded),
            },
        };
        let range = |prefix: &Vec<u8>| KeyRange {
            from: match from {
                Bound::Included(from) => joined(prefix, from, None),
                // Above all keys that go on after it.
                Bound::Excluded(from) => joined(prefix, from, Some(ABOVE_ALL)),
                Bound::Unbounded => prefix.clone(),
            },
            to: Some(match to {
                Bound::Included(to) => joined(prefix, to, Some(ABOVE_ALL)),
                Bound::Excluded(to) => joined(prefix, to, None),
                Bound::Unbounded => joined(prefix, &[], Some(ABOVE_ALL)),
            }),
        };
        return prefixes.iter().map(range).collect();
    }
    // A whole key and nothing after it: a byte more is the next greater.
    let point = |key: Vec<u8>| KeyRange {
        to: Some(joined(&key, &[0], None)),
        from: key,
    };
    prefixes.into_iter().map(point).collect()
}

/// `within`: for each list of columns in `Lists::within` the ranges that are wanted.
fn of_lists(
    lists: &Lists,
    types: &[ColumnType],
    wanted: &[Wanted],
    within: &[Vec<KeyRange>],
) -> Vec<u32> {
    let is_wanted = |value: &[u8]| match column_ends(value, types) {
        Ok(ends) => {
            let mut from = 0;
            wanted.iter().zip(ends).all(|(column, end)| {
                let part = &value[from..end];
                from = end;
                column.has(part)
            })
        }
        // Not of these columns, so that no row has it; to be asked costs less than to be wrong.
        Err(_) => true,
    };
    let meets = |columns: usize, range: &KeyRange| {
        let range = Extent::Keys(range.clone());
        let mut wanted = within[columns].iter();
        wanted.any(|wanted| range.meets(&Extent::Keys(wanted.clone())))
    };
    let owners = lists.owners.iter().filter(|(value, _)| is_wanted(value));
    owners
        .flat_map(|(_, owners)| owners)
        .filter(|owner| match &owner.within {
            None => true,
            Some((columns, range)) => meets(*columns, range),
        })
        .map(|owner| owner.partition)
        .collect()
}
