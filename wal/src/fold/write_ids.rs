//! The window of write ids (PROTOCOLS §3): what was applied of which request, in bounded memory.
//!
//! # What an entry says
//!
//! A request is cut into *parts* before its rows are routed, by the request alone, so that part `n`
//! holds the same rows in every try, whoever cuts it and whatever the shards are by then. A record
//! of (id, part) names units; of each it brings all rows of that part that the unit owns, but for
//! those that it says were brought before (`besides`). When it applies, therefore, this is true:
//!
//! > of part `n` of request `id`, all rows of these parts of these tables are applied,
//!
//! and the entry (id, `n`, scope) says so. The scope is in terms of *tables*, not units or shards.
//! What was applied stays so, and a split, merge or recut moves rows without changing them: the
//! statement is true for good, in whichever window it stands. Hence
//!
//! - **No row is lost:** a retry is judged `DuplicateId` only if for each unit that it names one
//!   statement covers what the unit owns, so all that it would bring is there. (→ with what the
//!   *shard* owned when it applied in place of what the record named, a retry after a merge is
//!   taken for done)
//! - **No row is doubled:** whoever owns a row has every statement about it, or has raised its
//!   floor above the id: the shard where it was applied noted it in the same record, a split copies
//!   the window to both sides, a merge unites both windows under the higher floor. A retry applies
//!   only if no statement meets what it names or if it leaves out exactly what the statements say;
//!   otherwise the verdict `Overlaps` says what to leave out. Then the whole of what the units own
//!   is applied, and that is what is noted: a scope is never the remains of a subtraction.
//!
//! Statements of one (id, part) are one entry, whose scope is the union. A scope stands once in
//! the state and entries have its number; one with a single whole table is 24 bytes.
//!
//! **Records from before partitions** name no scope, and their parts were cut per shard. As long as
//! the shard's units have not moved, they are judged as they were: by id and part. At the first
//! split, merge or recut their ids become *closed* ([`CLOSED`]): which rows they brought cannot be
//! told in other units' terms, so a retry is refused as expired.
//!
//! # What is forgotten
//!
//! *The window has exactly the entries of ids made at or after `floor_ms`*. So an id at or above
//! the floor that is not in the window was never applied, and one below the floor cannot be told
//! and is refused. Forgetting ids raises the floor above them.
//!
//! Ids are kept by the time they were made, because clients make them when they send: nearly all
//! inserts hit one bucket, old ones go as a whole, and a copy of the state shares all but the
//! newest.

use std::sync::Arc;

use hashbrown::HashMap;
use rpds::RedBlackTreeMapSync;
use shoal_types::{TimestampMs, WriteId};

use super::scopes::{FIRST_NUMBER, Piece, Scope, ScopeSnapshot, Scopes, covered, left_out, united};
use super::snapshot::WriteIdEntry;
use super::{FoldLimits, Verdict};
use crate::record::{Covered, WriteIdPart};

/// One bucket holds the ids of 2^14 ms, about 16 s.
const BUCKET_BITS: u32 = 14;

/// The scope of a record that named none.
const UNSCOPED: u32 = 0;
/// The scope of an id of which nothing can be told any more.
const CLOSED: u32 = 1;
const _: () = assert!(CLOSED < FIRST_NUMBER);
/// Stands for all parts of a closed id; no request has so many.
const ALL_PARTS: u32 = u32::MAX;

/// 20 bytes without padding (a `u128` would align it to 32).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    id: [u8; 16],
    part: u32,
}

/// The scope of each (id, part).
type Bucket = HashMap<Key, u32, std::hash::BuildHasherDefault<ahash::AHasher>>;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WriteIds {
    floor_ms: TimestampMs,
    count: usize,
    /// Entries among them without a scope.
    unscoped: usize,
    buckets: RedBlackTreeMapSync<u64, Arc<Bucket>>,
    scopes: Scopes,
}

impl WriteIds {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Parts of tables in all scopes.
    pub(super) fn scope_parts(&self) -> usize {
        self.scopes.parts()
    }

    /// Whether anything of a part was applied.
    pub(super) fn contains(&self, part: WriteIdPart) -> bool {
        self.find(Key::from(part)).is_some() || self.is_closed(part.id)
    }

    /// Whether all of a piece is applied, as far as can be told.
    pub(super) fn covers(&self, part: WriteIdPart, piece: &Piece) -> bool {
        match self.find(Key::from(part)) {
            Some(UNSCOPED) => true,
            Some(number) => self.scopes.get(number).is_some_and(|scope| {
                let known = covered(scope, std::slice::from_ref(piece));
                known.iter().any(|c| c.bounds.is_none())
            }),
            None => false,
        }
    }

    fn is_closed(&self, id: WriteId) -> bool {
        let part = ALL_PARTS;
        self.find(Key::from(WriteIdPart { id, part })).is_some()
    }

    fn find(&self, key: Key) -> Option<u32> {
        self.buckets.get(&key.bucket())?.get(&key).copied()
    }

    /// `besides`: what the record leaves out; `None`: it is of before partitions.
    pub(super) fn judge(
        &self,
        limits: &FoldLimits,
        stamp_ms: TimestampMs,
        part: WriteIdPart,
        besides: Option<&[Covered]>,
        pieces: &[Piece],
    ) -> Verdict {
        if part.part == ALL_PARTS || self.is_closed(part.id) {
            return Verdict::ExpiredId;
        }
        let found = self.find(Key::from(part));
        let known = match (found, besides) {
            (Some(_), None) | (Some(UNSCOPED), _) => return Verdict::DuplicateId,
            (Some(number), Some(_)) => {
                let scope = self.scopes.get(number);
                let known = scope.map_or_else(Vec::new, |scope| covered(scope, pieces));
                let whole = known.iter().filter(|c| c.bounds.is_none()).count();
                if whole == pieces.len() {
                    return Verdict::DuplicateId;
                }
                known
            }
            (None, _) => Vec::new(),
        };
        let made_ms = part.id.created_ms();
        // The age counts from this record's stamp, not from the newest stamp ever: a leader whose
        // clock ran ahead for a while must not expire everybody's ids for good.
        let too_old = made_ms < self.floor_ms
            || made_ms.saturating_add(limits.write_id_age_ms_max) < stamp_ms;
        let too_new = made_ms > stamp_ms.saturating_add(limits.write_id_ahead_ms_max);
        if too_old || too_new {
            return Verdict::ExpiredId;
        }
        if known != left_out(besides.unwrap_or_default(), pieces) {
            return Verdict::Overlaps { covered: known };
        }
        Verdict::Apply
    }

    /// Notes a record that [`Self::judge`] let pass, and forgets what is too old or too many.
    pub(super) fn insert(
        &mut self,
        limits: &FoldLimits,
        stamp_ms: TimestampMs,
        part: WriteIdPart,
        pieces: Option<&[Piece]>,
    ) {
        let key = Key::from(part);
        match pieces {
            Some(pieces) => {
                let parts = pieces.iter().map(|piece| piece.part.clone());
                self.widen(key, parts.collect());
            }
            None => self.set(key, UNSCOPED),
        }
        let oldest_ms = stamp_ms.saturating_sub(limits.write_id_age_ms_max);
        while let Some(end_ms) = self.first_bucket_end_ms()
            && end_ms <= oldest_ms
        {
            self.forget_below(end_ms);
        }
        self.forget_surplus(limits);
    }

    /// Takes over what another shard's window says. An id below either floor may have been forgotten
    /// by its window, so the higher floor is the union's.
    pub(super) fn unite(&mut self, limits: &FoldLimits, other: &Self) {
        // In sorted order, so that every replica numbers new scopes alike.
        for entry in other.added_since(&Self::default()) {
            let key = Key::from(entry.part());
            match other.scopes.get(entry.scope) {
                Some(scope) => self.widen(key, scope.to_vec()),
                None => self.set(key, entry.scope),
            }
        }
        self.forget_below(other.floor_ms);
        self.forget_surplus(limits);
    }

    /// The shard's units change: of an id whose records named no scope nothing can be told from
    /// here on.
    pub(super) fn close_unscoped(&mut self, limits: &FoldLimits) {
        if self.unscoped == 0 {
            return;
        }
        let buckets = self.buckets.values();
        let all = buckets.flat_map(|bucket| bucket.iter());
        let unscoped: Vec<Key> = all
            .filter(|(_, scope)| **scope == UNSCOPED)
            .map(|(key, _)| *key)
            .collect();
        for key in unscoped {
            self.set(key, CLOSED);
            let part = ALL_PARTS;
            self.set(Key { part, ..key }, CLOSED);
        }
        self.forget_surplus(limits);
    }

    /// Adds parts of tables to what an entry says.
    fn widen(&mut self, key: Key, parts: Scope) {
        let scope = match self.find(key) {
            Some(CLOSED | UNSCOPED) => return,
            Some(number) => {
                let known = self.scopes.get(number).map(|scope| scope.to_vec());
                united(known.unwrap_or_default(), parts)
            }
            None => united(Scope::new(), parts),
        };
        let number = self.scopes.enter(scope);
        self.put(key, number);
    }

    /// Gives an entry a scope that stands already, or one of the reserved ones.
    fn set(&mut self, key: Key, scope: u32) {
        self.scopes.hold(scope);
        self.put(key, scope);
    }

    /// Puts an entry whose scope is counted already.
    fn put(&mut self, key: Key, scope: u32) {
        let bucket = key.bucket();
        let old = match self.buckets.get_mut(&bucket) {
            Some(bucket) => Arc::make_mut(bucket).insert(key, scope),
            None => {
                let mut entries = Bucket::default();
                entries.insert(key, scope);
                self.buckets.insert_mut(bucket, Arc::new(entries));
                None
            }
        };
        self.unscoped += usize::from(scope == UNSCOPED);
        self.count += 1;
        if let Some(old) = old {
            self.forget_entry(old);
        }
    }

    fn forget_entry(&mut self, scope: u32) {
        self.count -= 1;
        self.unscoped -= usize::from(scope == UNSCOPED);
        self.scopes.release(scope);
    }

    fn first_bucket_end_ms(&self) -> Option<TimestampMs> {
        let (key, _) = self.buckets.first()?;
        Some((key + 1) << BUCKET_BITS)
    }

    /// Makes room for at least a sixteenth of the window, so that finding the oldest within a bucket
    /// is paid once for many inserts.
    fn forget_surplus(&mut self, limits: &FoldLimits) {
        let ids_max = limits.write_ids_max as usize;
        if self.count > ids_max {
            self.keep_newest(ids_max - ids_max / 16);
        }
        while self.scopes.parts() > limits.write_id_parts_max as usize && self.count > 0 {
            self.keep_newest(self.count - (self.count / 16).max(1));
        }
    }

    fn keep_newest(&mut self, keep: usize) {
        while self.count > keep {
            let Some((_, bucket)) = self.buckets.first() else {
                return;
            };
            let surplus = self.count - keep;
            let floor_ms = if bucket.len() <= surplus {
                self.first_bucket_end_ms().unwrap_or(TimestampMs::MAX)
            } else {
                let mut made_ms: Vec<_> = bucket.keys().map(Key::made_ms).collect();
                let (_, oldest_kept, _) = made_ms.select_nth_unstable(surplus - 1);
                *oldest_kept + 1
            };
            self.forget_below(floor_ms);
        }
    }

    /// Raises the floor and forgets every id below it.
    fn forget_below(&mut self, floor_ms: TimestampMs) {
        self.floor_ms = self.floor_ms.max(floor_ms);
        let floor_ms = self.floor_ms;
        while let Some((&key, bucket)) = self.buckets.first()
            && key << BUCKET_BITS < floor_ms
        {
            let bucket = Arc::clone(bucket);
            let mut kept = Bucket::default();
            for (key, scope) in bucket.iter() {
                if key.made_ms() >= floor_ms {
                    kept.insert(*key, *scope);
                } else {
                    self.forget_entry(*scope);
                }
            }
            if kept.is_empty() {
                self.buckets.remove_mut(&key);
                continue;
            }
            self.buckets.insert_mut(key, Arc::new(kept));
            return;
        }
    }

    pub(super) fn floor_ms(&self) -> TimestampMs {
        self.floor_ms
    }

    /// Entries of this window that `older` has not or has with another scope, sorted.
    pub(super) fn added_since(&self, older: &Self) -> Vec<WriteIdEntry> {
        let mut added = Vec::new();
        for (key, bucket) in &self.buckets {
            let known = older.buckets.get(key);
            if known.is_some_and(|k| Arc::ptr_eq(k, bucket)) {
                continue;
            }
            let new = |(key, scope): &(&Key, &u32)| {
                let then = known.and_then(|k| k.get(*key));
                then != Some(*scope)
            };
            let entries = bucket.iter().filter(new);
            added.extend(entries.map(|(key, scope)| WriteIdEntry {
                id: key.id(),
                part: key.part,
                scope: *scope,
            }));
        }
        added.sort_unstable_by_key(|w| (w.id, w.part));
        added
    }

    pub(super) fn scopes_added_since(&self, older: &Self) -> Vec<ScopeSnapshot> {
        self.scopes.added_since(&older.scopes)
    }

    pub(super) fn apply_edit(
        &mut self,
        floor_ms: TimestampMs,
        scopes: &[ScopeSnapshot],
        added: &[WriteIdEntry],
    ) {
        self.scopes.apply_edit(scopes);
        // Made-up bytes may name a scope that there is not; nothing can be told of such an id.
        let known = |entry: &WriteIdEntry, scopes: &Scopes| {
            entry.scope < FIRST_NUMBER || scopes.get(entry.scope).is_some()
        };
        // All are held before any is given up: a scope may go from one entry to another.
        for entry in added {
            self.scopes.hold(entry.scope);
        }
        for entry in added {
            let usable = known(entry, &self.scopes);
            let scope = if usable { entry.scope } else { CLOSED };
            self.put(Key::from(entry.part()), scope);
        }
        // Last, because an entry below the floor may be what kept a scope's number.
        self.forget_below(floor_ms);
        self.scopes.remove_unused(scopes);
    }
}

impl Key {
    fn id(&self) -> WriteId {
        WriteId(u128::from_be_bytes(self.id))
    }

    fn made_ms(&self) -> TimestampMs {
        self.id().created_ms()
    }

    fn bucket(&self) -> u64 {
        self.made_ms() >> BUCKET_BITS
    }
}

impl From<WriteIdPart> for Key {
    fn from(part: WriteIdPart) -> Self {
        Self {
            id: part.id.0.to_be_bytes(),
            part: part.part,
        }
    }
}
