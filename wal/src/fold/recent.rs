//! Which schemas changed lately, newest first, so that an edit need not walk over all tables.
//! Derived and bounded: where it does not reach back far enough, the walk is done after all.

use rpds::ListSync;
use shoal_types::{Offset, TableId};

/// Changes remembered; then all are forgotten at once.
const CHANGES_MAX: usize = 65_536;

#[derive(Clone, Debug)]
pub(super) struct RecentSchemas {
    changes: ListSync<(Offset, TableId)>,
    /// All changes at or after this are listed.
    complete_from: Offset,
}

impl Default for RecentSchemas {
    fn default() -> Self {
        Self::complete_from(Offset(0))
    }
}

impl RecentSchemas {
    /// Nothing is known of what was before.
    pub(super) fn complete_from(offset: Offset) -> Self {
        Self {
            changes: ListSync::new_sync(),
            complete_from: offset,
        }
    }

    pub(super) fn note(&mut self, offset: Offset, table: TableId) {
        if self.changes.len() >= CHANGES_MAX {
            *self = Self::complete_from(offset.next());
        }
        self.changes.push_front_mut((offset, table));
    }

    /// Tables changed at or after `from`, each once, sorted; `None` if that cannot be told.
    pub(super) fn since(&self, from: Offset) -> Option<Vec<TableId>> {
        if from < self.complete_from {
            return None;
        }
        let recent = self.changes.iter().take_while(|(at, _)| *at >= from);
        let mut tables: Vec<_> = recent.map(|(_, table)| *table).collect();
        tables.sort_unstable();
        tables.dedup();
        Some(tables)
    }
}
