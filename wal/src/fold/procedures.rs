//! Which procedures are decided in this log, and the seal (PROTOCOLS §5).
//!
//! Master rule M2: the outcome of a procedure is one applied record in one log. The first of
//! `Split`, `Merge`, `Recut` and `Abort` to apply decides; whatever of the same procedure comes
//! later, however late, is refused as `Decided`.
//!
//! A `Seal` decides nothing: it stands in the source's log, the decision in the target's. Once the
//! target's log says `Abort`, `Unseal` lifts it, for the procedure that holds it alone. The
//! procedure is then done with here, so that a `Seal` of it that was still on its way cannot close
//! the shard again with nobody left to open it. A claim lifts no seal: the source's rows may be
//! another shard's by then.

use serde::{Deserialize, Serialize};
use shoal_types::{Offset, ProcedureId, ShardId};

use super::{FoldLimits, FoldState, Map, Verdict};

/// What was decided of a procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Units left for a new shard.
    Split {
        /// The new shard.
        child: ShardId,
    },
    /// Another shard's units came in.
    Merged {
        /// The shard that ended.
        source: ShardId,
        /// Where in its log it was sealed.
        seal: Offset,
    },
    /// Units were cut or joined in place.
    Recut,
    /// It was decided against.
    Aborted,
    /// Its seal on this shard was lifted.
    Unsealed,
}

/// A procedure that is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The procedure.
    pub procedure: ProcedureId,
    /// Where the record stands that decided it.
    pub at: Offset,
    /// How.
    pub decision: Decision,
}

/// The newest decisions. One record decides one procedure, so no two have one offset, and which
/// are the newest does not depend on the order in which they were learnt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Procedures {
    by_id: Map<ProcedureId, Decided>,
}

impl Procedures {
    fn note(&mut self, limits: &FoldLimits, decided: Decided) {
        self.by_id.insert_mut(decided.procedure, decided);
        while self.by_id.size() > (limits.procedures_max as usize).max(1) {
            // A scan, but of a thousand, and procedures are rare.
            let oldest = self.by_id.values().min_by_key(|d| (d.at, d.procedure));
            let Some(oldest) = oldest.map(|d| d.procedure) else {
                return;
            };
            self.by_id.remove_mut(&oldest);
        }
    }

    /// Decisions at or after `from`, oldest first.
    pub(super) fn since(&self, from: Offset) -> Vec<Decided> {
        let newer = self.by_id.values().filter(|d| d.at >= from);
        let mut decided: Vec<Decided> = newer.copied().collect();
        decided.sort_unstable_by_key(|d| (d.at, d.procedure));
        decided
    }

    pub(super) fn apply_edit(&mut self, limits: &FoldLimits, decided: &[Decided]) {
        for one in decided {
            self.note(limits, *one);
        }
    }
}

impl FoldState {
    /// How a procedure was decided in this log; `None`: it is open, or forgotten long after.
    #[must_use]
    pub fn decided(&self, procedure: ProcedureId) -> Option<&Decided> {
        self.procedures.by_id.get(&procedure)
    }

    /// All procedures decided in this log that are remembered, in no order.
    pub fn decisions(&self) -> impl Iterator<Item = &Decided> {
        self.procedures.by_id.values()
    }

    /// The merge that this shard is sealed for: it takes no write until that is decided.
    #[must_use]
    pub fn seal(&self) -> Option<ProcedureId> {
        self.head.seal
    }

    pub(super) fn decide(&mut self, at: Offset, procedure: ProcedureId, decision: Decision) {
        let decided = Decided {
            procedure,
            at,
            decision,
        };
        self.procedures.note(&self.head.limits, decided);
    }

    /// What stands against any change of what this shard owns; `Apply`: nothing.
    pub(super) fn judge_procedure(&self, procedure: ProcedureId) -> Verdict {
        if self.decided(procedure).is_some() {
            return Verdict::Decided;
        }
        if self.head.seal.is_some() {
            return Verdict::Sealed;
        }
        Verdict::Apply
    }

    pub(super) fn fold_seal(&mut self, procedure: ProcedureId) -> Verdict {
        if self.head.seal == Some(procedure) {
            return Verdict::Noted;
        }
        let verdict = self.judge_procedure(procedure);
        if verdict == Verdict::Apply {
            self.head.seal = Some(procedure);
        }
        verdict
    }

    pub(super) fn fold_unseal(&mut self, at: Offset, procedure: ProcedureId) -> Verdict {
        if self.head.seal != Some(procedure) {
            return match self.decided(procedure) {
                Some(_) => Verdict::Decided,
                None => Verdict::StalePlan,
            };
        }
        self.head.seal = None;
        self.decide(at, procedure, Decision::Unsealed);
        Verdict::Apply
    }

    /// Sealed or not: the seal is of another procedure, and this one must get its answer.
    pub(super) fn fold_abort(&mut self, at: Offset, procedure: ProcedureId) -> Verdict {
        match self.decided(procedure).map(|d| d.decision) {
            Some(Decision::Aborted) => Verdict::Noted,
            Some(_) => Verdict::Decided,
            None => {
                self.decide(at, procedure, Decision::Aborted);
                Verdict::Apply
            }
        }
    }
}
