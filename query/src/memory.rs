//! The memory of all statements. What can be spilled leaves room for what cannot.
//!
//! A sort that has to spill must merge the batches it holds on their way to disk, and the merge
//! needs memory for encoded keys and output that it cannot spill. DataFusion's sorter sets a little
//! aside for that, gives it back to the pool just before it merges, and asks again; by then another
//! sort may have taken it, and with several keys the encoded rows are larger than what was set
//! aside anyway (<https://github.com/apache/datafusion/issues/24739>). So here the operators that
//! spill get a part of the memory only, together; the rest is for merges and for operators that do
//! not spill. Measured with four keys, two of them texts: at its peak the merge has twice what the
//! sort had. With a third of the memory for sorts there is room for that.

use std::fmt;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryLimit, MemoryPool, MemoryReservation};
use parking_lot::Mutex;

/// Of the memory, the part that operators which can spill may fill: one in so many.
const SPILLABLE_PART: usize = 2;

/// The same while it is a sort that asks: the merge is still to come.
const SORT_PART: usize = 3;

/// How DataFusion's sorts call themselves.
const SORT: &str = "ExternalSorter[";

/// Memory for each file of a merge from disk, about a sixteenth of which it takes. What is left is
/// for the merges beside and above it: the batches of text that a merge puts out name the buffers
/// of all batches they come from, and count for as much.
const MERGED_FILE_BYTES: usize = 16 << 20;

/// Most files that are merged at one time, however much memory there is.
const MERGED_FILES_MAX: usize = 32;

/// How many spilled files a sort merges at one time. Without a limit DataFusion takes as many as
/// the memory has room for, and leaves none.
pub(crate) fn merge_fan_in(bytes_max: usize) -> usize {
    (bytes_max / MERGED_FILE_BYTES).clamp(2, MERGED_FILES_MAX)
}

/// A limit for everything, and a lower one for what can be spilled.
#[derive(Debug)]
pub(crate) struct StatementMemory {
    bytes_max: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    spillable: usize,
}

impl StatementMemory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            used: Mutex::default(),
        }
    }
}

impl MemoryPool for StatementMemory {
    fn name(&self) -> &str {
        "statement memory"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        let mut used = self.used.lock();
        used.all += additional;
        if reservation.consumer().can_spill() {
            used.spillable += additional;
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut used = self.used.lock();
        used.all = used.all.saturating_sub(shrink);
        if reservation.consumer().can_spill() {
            used.spillable = used.spillable.saturating_sub(shrink);
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let spills = reservation.consumer().can_spill();
        let mut used = self.used.lock();
        let free = self.bytes_max.saturating_sub(used.all);
        // It cannot do without its first batch, and has nothing to spill before.
        let first = reservation.size() == 0;
        let free = if spills && !first {
            let is_sort = reservation.consumer().name().starts_with(SORT);
            let part = if is_sort { SORT_PART } else { SPILLABLE_PART };
            let free = free.min((self.bytes_max / part).saturating_sub(used.spillable));
            if is_sort {
                // What merges took over from their sorts is not for other sorts to fill again.
                free.min((self.bytes_max / SPILLABLE_PART).saturating_sub(used.all))
            } else {
                free
            }
        } else {
            free
        };
        if additional > free {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} bytes more for {}, which has {}; {free} of {} are left for it",
                additional,
                reservation.consumer().name(),
                reservation.size(),
                self.bytes_max
            )));
        }
        used.all += additional;
        if spills {
            used.spillable += additional;
        }
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.used.lock().all
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes_max)
    }
}

impl fmt::Display for StatementMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes for statements", self.bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::execution::memory_pool::MemoryConsumer;

    use super::*;

    #[test]
    fn what_can_spill_leaves_half_to_what_cannot() {
        let pool: Arc<dyn MemoryPool> = Arc::new(StatementMemory::new(6400));
        let register = |name: &str, spills| {
            MemoryConsumer::new(name)
                .with_can_spill(spills)
                .register(&pool)
        };
        let (group, merge, other) = (
            register("group", true),
            register("merge", false),
            register("other", true),
        );
        group.try_grow(3200).expect("half");
        group.try_grow(1).expect_err("more than half");
        other.try_grow(100).expect("its first");
        other.try_grow(1).expect_err("no more");
        merge.try_grow(3100).expect("the rest");
        merge.try_grow(1).expect_err("more than all");
        group.shrink(200);
        group.try_grow(101).expect_err("what the other has counts");
        group.try_grow(100).expect("up to half, together");
        group.shrink(1200);
        let sort = register("ExternalSorter[0]", true);
        merge.shrink(3100);
        sort.try_grow(100).expect("its first");
        sort.try_grow(34).expect_err("more than a third, together");
        sort.try_grow(32).expect("up to a third");
        merge.try_grow(2000).expect("all that is left");
        sort.try_grow(1).expect_err("while merges are at work");
        drop((group, merge, other, sort));
        assert_eq!(pool.reserved(), 0);
    }
}
