//! What applied records have brought of their requests: [`Scope`], and each kept once.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};
use shoal_types::{PartitionBounds, TableId};

use super::{FoldState, Map};
use crate::record::{Covered, WriteHeader};

/// A part of a table, whichever unit holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TablePart {
    /// The table.
    pub of: TableId,
    /// Which part; `None`: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<Arc<PartitionBounds>>,
}

/// Parts of tables, sorted by table; none covers another.
pub(super) type Scope = Vec<TablePart>;

/// A unit that a write names, with what it owns.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) unit: TableId,
    pub(super) part: TablePart,
}

impl TablePart {
    fn covers(&self, other: &Self) -> bool {
        self.of == other.of
            && match (&self.bounds, &other.bounds) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(mine), Some(its)) => {
                    Arc::ptr_eq(mine, its) || (mine.by == its.by && mine.extent.covers(&its.extent))
                }
            }
    }

    /// Whether a row may be in both. Parts that are measured differently may always meet.
    fn meets(&self, other: &Self) -> bool {
        self.of == other.of
            && match (&self.bounds, &other.bounds) {
                (Some(mine), Some(its)) => mine.by != its.by || mine.extent.meets(&its.extent),
                _ => true,
            }
    }
}

/// What of the pieces is in the scope, in the order of the pieces.
pub(super) fn covered(scope: &Scope, pieces: &[Piece]) -> Vec<Covered> {
    let mut covered = Vec::new();
    for piece in pieces {
        let unit = piece.unit;
        let from = scope.partition_point(|part| part.of < piece.part.of);
        let parts = || {
            let of_table = scope[from..].iter();
            of_table.take_while(|part| part.of == piece.part.of)
        };
        if parts().any(|part| part.covers(&piece.part)) {
            covered.push(Covered { unit, bounds: None });
            continue;
        }
        covered.extend(parts().filter(|part| part.meets(&piece.part)).map(|part| {
            let bounds = part.bounds.clone();
            Covered { unit, bounds }
        }));
    }
    covered
}

/// `scope` and `parts` as one scope.
pub(super) fn united(scope: Scope, parts: Scope) -> Scope {
    let mut all = scope;
    for part in parts {
        if all.iter().any(|known| known.covers(&part)) {
            continue;
        }
        all.retain(|known| !part.covers(known));
        let at = all.partition_point(|known| known.of <= part.of);
        all.insert(at, part);
    }
    all
}

impl FoldState {
    /// The units that a write names, each once and sorted, with what they own.
    pub(super) fn pieces(&self, header: &WriteHeader) -> Vec<Piece> {
        let mut units: Vec<TableId> = header.tables.iter().map(|w| w.table).collect();
        units.sort_unstable();
        units.dedup();
        units.into_iter().map(|unit| self.piece(unit)).collect()
    }

    /// A unit with what it owns.
    pub(super) fn piece(&self, unit: TableId) -> Piece {
        let part = TablePart {
            of: self.table_of(unit),
            bounds: self.bounds(unit).cloned(),
        };
        Piece { unit, part }
    }
}

/// What a writer says is left out, as far as it is of the pieces, in their order.
pub(super) fn left_out(besides: &[Covered], pieces: &[Piece]) -> Vec<Covered> {
    let of = |piece: &Piece| {
        let unit = piece.unit;
        besides.iter().filter(move |c| c.unit == unit).cloned()
    };
    pieces.iter().flat_map(of).collect()
}

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    scope: Arc<Scope>,
    /// Entries that name it.
    users: u32,
}

/// Scopes by number. Few requests differ in the units that they write to, so a number stands for
/// the scope in each entry of the window.
///
/// A number is free again when no entry names it. The next one is above all in use, which depends
/// on nothing but the scopes themselves: a replica that was opened from a manifest gives the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scopes {
    by_number: RedBlackTreeMapSync<u32, Kept>,
    numbers: Map<Arc<Scope>, u32>,
    /// Of all scopes together.
    parts: usize,
}

/// Numbers below have a meaning of their own.
pub(super) const FIRST_NUMBER: u32 = 2;

impl Scopes {
    pub(super) fn get(&self, number: u32) -> Option<&Arc<Scope>> {
        self.by_number.get(&number).map(|kept| &kept.scope)
    }

    /// Parts of tables in all scopes, which is what they take of memory.
    pub(super) fn parts(&self) -> usize {
        self.parts
    }

    /// The number of a scope, for one more entry.
    pub(super) fn enter(&mut self, scope: Scope) -> u32 {
        if let Some(number) = self.numbers.get(&scope).copied() {
            self.hold(number);
            return number;
        }
        let number = self.free_number();
        self.put(number, scope);
        self.hold(number);
        number
    }

    fn free_number(&self) -> u32 {
        let above = self.by_number.last().and_then(|(n, _)| n.checked_add(1));
        let from = above.unwrap_or(FIRST_NUMBER).max(FIRST_NUMBER);
        let used = |number: &u32| self.by_number.contains_key(number);
        (from..u32::MAX).find(|n| !used(n)).unwrap_or(u32::MAX)
    }

    fn put(&mut self, number: u32, scope: Scope) {
        let users = self.by_number.get(&number).map_or(0, |kept| kept.users);
        self.remove(number);
        self.parts += scope.len();
        let scope = Arc::new(scope);
        self.numbers.insert_mut(Arc::clone(&scope), number);
        self.by_number.insert_mut(number, Kept { scope, users });
    }

    /// One more entry names it.
    pub(super) fn hold(&mut self, number: u32) {
        if let Some(kept) = self.by_number.get_mut(&number) {
            kept.users += 1;
        }
    }

    /// One entry less names it.
    pub(super) fn release(&mut self, number: u32) {
        let Some(kept) = self.by_number.get_mut(&number) else {
            return;
        };
        kept.users = kept.users.saturating_sub(1);
        if kept.users == 0 {
            self.remove(number);
        }
    }

    fn remove(&mut self, number: u32) {
        let Some(kept) = self.by_number.get(&number) else {
            return;
        };
        let scope = Arc::clone(&kept.scope);
        self.by_number.remove_mut(&number);
        self.parts -= scope.len();
        // While an edit is taken over, the same scope may stand under its new number already.
        if self.numbers.get(&scope) == Some(&number) {
            self.numbers.remove_mut(&scope);
        }
    }

    /// Scopes that `older` does not have under the same number.
    pub(super) fn added_since(&self, older: &Self) -> Vec<ScopeSnapshot> {
        let new = |(number, kept): &(&u32, &Kept)| {
            let known = older.get(**number);
            known.is_none_or(|known| *known != kept.scope)
        };
        let added = self.by_number.iter().filter(new);
        added
            .map(|(number, kept)| ScopeSnapshot {
                number: *number,
                parts: kept.scope.to_vec(),
            })
            .collect()
    }

    /// Takes scopes from an edit. Entries that name them follow; those that none names then go with
    /// [`Self::remove_unused`].
    pub(super) fn apply_edit(&mut self, added: &[ScopeSnapshot]) {
        for one in added {
            self.put(one.number, one.parts.clone());
        }
    }

    pub(super) fn remove_unused(&mut self, added: &[ScopeSnapshot]) {
        for one in added {
            if (self.by_number.get(&one.number)).is_some_and(|kept| kept.users == 0) {
                self.remove(one.number);
            }
        }
    }
}

/// A scope and its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeSnapshot {
    /// What write ids name it by.
    pub number: u32,
    /// Its parts, sorted by table.
    pub parts: Vec<TablePart>,
}
