//! Tables whose writes wait while one statement changes them.
//!
//! An `UPDATE` reads, computes and writes; the write is refused if the table changed since
//! (PROTOCOLS §3). Where others write faster than it reads it would never come through, so that
//! after some refusals it holds the table: plain writes wait, for a bounded time. The refusal stays
//! what makes it correct; a hold only makes it likely to succeed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shoal_types::TableId;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Database;
use crate::WriteError;

/// All holds of a process.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    /// Tables held; read by every write, so that writes cost nothing where there are none.
    count: AtomicUsize,
    tables: Mutex<BTreeMap<TableId, Instant>>,
    released: Notify,
}

/// Plain writes to a table wait while this lives, and no longer than was said.
#[derive(Debug)]
#[must_use]
pub struct Hold {
    holds: Arc<Holds>,
    table: TableId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut tables = self.holds.tables.lock();
        tables.remove(&self.table);
        self.holds.count.store(tables.len(), Ordering::Release);
        drop(tables);
        self.holds.released.notify_waiters();
    }
}

impl Holds {
    fn until(&self, tables: impl Iterator<Item = TableId>) -> Option<Instant> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let held = self.tables.lock();
        let now = Instant::now();
        let until = tables.filter_map(|table| held.get(&table).copied());
        until.filter(|until| *until > now).max()
    }

    /// Returns once none of the tables is held.
    ///
    /// # Errors
    /// [`WriteError::Overloaded`] after `patience`.
    pub(super) async fn wait(
        &self,
        tables: impl Iterator<Item = TableId> + Clone,
        patience: Duration,
    ) -> Result<(), WriteError> {
        let deadline = Instant::now() + patience;
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            let Some(until) = self.until(tables.clone()) else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                return Err(WriteError::Overloaded(
                    "an UPDATE or DELETE changes the table at this moment".into(),
                ));
            }
            let _ = tokio::time::timeout_at(until.min(deadline), released).await;
        }
    }
}

impl Database {
    /// Makes writes to a table wait that were not computed from what it holds (those without
    /// [`super::WriteOptions::read_at`]); for `write_timeout_ms / 2` at most, so that they are late
    /// but not refused. One hold a table at a time: a second takes the place of the first.
    pub fn hold_writes(&self, table: TableId) -> Hold {
        let holds = &self.shared.holds;
        let mut tables = holds.tables.lock();
        tables.insert(table, Instant::now() + self.shared.patience() / 2);
        holds.count.store(tables.len(), Ordering::Release);
        drop(tables);
        Hold {
            holds: Arc::clone(holds),
            table,
        }
    }
}
