//! `Merge`: a sealed shard's units become this shard's (PROTOCOLS §5).
//!
//! The record carries the source's fold just behind its seal; nothing can have applied there since,
//! so the source's log up to the seal and this record say the same, and the fold reads no store.
//!
//! - Units come with schemas and bounds under their own ids. All count as changed here: positions
//!   of the source's log mean nothing in this one.
//! - The generation rises above both, so that a write routed by either layout is refused.
//! - The version base rises until every later version is above all that either shard gave.
//! - Write ids are united, the floor is the higher of the two. An id at or above it is known to
//!   both windows, so what neither has was not applied. The lower floor would be wrong: of an id
//!   between the two, one side has forgotten whether its rows are there, and the union would say
//!   that they are not. What the entries say is true of tables, so it stays true (`write_ids`).
//! - Progress of imports comes along with the units (`imports`).

use std::sync::Arc;

use shoal_types::Offset;

use super::ownership::VERSION_BASE_MAX;
use super::procedures::Decision;
use super::{FoldState, Verdict};
use crate::record::Merge;

impl FoldState {
    pub(super) fn fold_merge(&mut self, at: Offset, merge: &Merge) -> Verdict {
        let verdict = self.judge_procedure(merge.procedure);
        if verdict != Verdict::Apply {
            return verdict;
        }
        let (Some(version_base), Some(generation)) = (
            self.base_above(at, merge),
            self.generation_above(merge.fold.head.generation),
        ) else {
            return Verdict::StalePlan;
        };
        if !self.takes(merge) {
            return Verdict::StalePlan;
        }
        let mut source = Self::from_snapshot(&merge.fold);
        for schema in &merge.fold.schemas {
            self.schemas.insert_mut(schema.table, Arc::clone(schema));
            if let Some(owned) = source.units.get(&schema.table) {
                self.units.insert_mut(schema.table, owned.clone());
            }
            self.note_changed(at, schema.table);
        }
        let limits = self.head.limits;
        self.write_ids.close_unscoped(&limits);
        source.write_ids.close_unscoped(&limits);
        self.write_ids.unite(&limits, &source.write_ids);
        self.imports.unite(&limits, at, &source.imports);
        self.head.version_base = version_base;
        self.head.generation = generation;
        let decision = Decision::Merged {
            source: merge.source,
            seal: merge.seal,
        };
        self.decide(at, merge.procedure, decision);
        Verdict::Apply
    }

    /// Whether the fold carried is of the source at this procedure's seal, and no unit is in both.
    fn takes(&self, merge: &Merge) -> bool {
        let head = &merge.fold.head;
        head.seal == Some(merge.procedure)
            && head.next_offset.0.checked_sub(1) == Some(merge.seal.0)
            && head.manifest == Some(merge.manifest)
            && !(merge.fold.schemas.iter()).any(|s| self.schemas.contains_key(&s.table))
    }

    /// The base with which the version of every later row, from `at + 1` on, is above all that the
    /// source gave up to its seal; it never falls.
    fn base_above(&self, at: Offset, merge: &Merge) -> Option<u64> {
        let largest = merge.fold.head.version_base.checked_add(merge.seal.0)?;
        let base = self.head.version_base.max(largest.saturating_sub(at.0));
        (base <= VERSION_BASE_MAX).then_some(base)
    }
}
