//! When each table last changed, for UPDATE and DELETE (PROTOCOLS §3), in bounded memory.
//!
//! Two generations instead of an order by age: a change goes into `current`; when that is full it
//! becomes `previous`, and what was `previous` is forgotten by raising `floor`. A forgotten table
//! counts as changed at the floor, which can only cause a needless retry. So a change costs one
//! look-up and moves no other entry, and the oldest go first, half of them at a time.

use shoal_types::{Offset, TableId, WriteId};

use super::snapshot::{ChangesEdit, TableChange};
use super::{FoldLimits, Map};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Change {
    /// The last change by anybody.
    at: Offset,
    /// The write id of that change: parts of one statement do not conflict with each other.
    by: Option<WriteId>,
    /// The last change by anybody else than `by`.
    before: Offset,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TableChanges {
    current: Map<TableId, Change>,
    previous: Map<TableId, Change>,
    /// How often `current` became `previous`.
    rotations: u64,
    /// No change in `previous` is above this.
    previous_end: Offset,
    /// Tables in neither generation changed here at the latest.
    floor: Offset,
}

impl TableChanges {
    fn get(&self, table: TableId) -> Option<&Change> {
        self.current
            .get(&table)
            .or_else(|| self.previous.get(&table))
    }

    /// The last change of a table by anybody but `own`, or later.
    pub(super) fn changed_at(&self, table: TableId, own: Option<WriteId>) -> Offset {
        match self.get(table) {
            Some(change) if own.is_some() && change.by == own => change.before,
            Some(change) => change.at,
            None => self.floor,
        }
    }

    pub(super) fn note(
        &mut self,
        limits: &FoldLimits,
        table: TableId,
        at: Offset,
        by: Option<WriteId>,
    ) {
        if let Some(change) = self.current.get_mut(&table) {
            *change = change.followed_by(at, by);
            return;
        }
        let change = match self.previous.get(&table) {
            Some(change) => change.followed_by(at, by),
            None => Change {
                at,
                by,
                before: self.floor,
            },
        };
        if self.current.size() >= (limits.changed_tables_max as usize / 2).max(1) {
            self.floor = self.previous_end;
            self.previous = std::mem::take(&mut self.current);
            self.previous_end = at;
            self.rotations += 1;
        }
        self.current.insert_mut(table, change);
    }

    /// Every table counts as changed just below `begin`, and nothing more is known.
    pub(super) fn forget_below(&mut self, begin: Offset) {
        self.floor = Offset(begin.0.saturating_sub(1)).max(self.floor);
        self.current = Map::default();
        self.previous = Map::default();
        self.previous_end = self.floor;
        // So that an edit carries both halves.
        self.rotations += 1;
    }

    pub(super) fn to_edit(&self, since: Option<(&Self, Offset)>) -> ChangesEdit {
        // After a rotation at least half of all remembered tables changed: send both halves.
        let since = since.filter(|(older, _)| older.rotations == self.rotations);
        let list = |map: &Map<TableId, Change>, from: Offset| {
            let mut changes: Vec<TableChange> = map
                .iter()
                .filter(|(_, c)| c.at >= from)
                .map(|(table, c)| TableChange {
                    table: *table,
                    at: c.at,
                    by: c.by,
                    before: c.before,
                })
                .collect();
            changes.sort_unstable_by_key(|c| c.table);
            changes
        };
        ChangesEdit {
            rotations: self.rotations,
            previous_end: self.previous_end,
            floor: self.floor,
            current: list(&self.current, since.map_or(Offset(0), |(_, from)| from)),
            previous: match since {
                Some(_) => None,
                None => Some(list(&self.previous, Offset(0))),
            },
        }
    }

    pub(super) fn apply_edit(&mut self, edit: &ChangesEdit) {
        let fill = |map: &mut Map<TableId, Change>, changes: &[TableChange]| {
            for c in changes {
                let change = Change {
                    at: c.at,
                    by: c.by,
                    before: c.before,
                };
                map.insert_mut(c.table, change);
            }
        };
        if let Some(previous) = &edit.previous {
            self.current = Map::default();
            self.previous = Map::default();
            fill(&mut self.previous, previous);
        }
        fill(&mut self.current, &edit.current);
        self.rotations = edit.rotations;
        self.previous_end = edit.previous_end;
        self.floor = edit.floor;
    }
}

impl Change {
    fn followed_by(self, at: Offset, by: Option<WriteId>) -> Self {
        let same = by.is_some() && by == self.by;
        Self {
            at,
            by,
            before: if same { self.before } else { self.at },
        }
    }
}
