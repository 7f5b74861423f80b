//! Split and merge of two shards, checked exhaustively within bounds, on the real fold (PROTOCOLS
//! §7 (a); after `model-logs` of the design, which has a fold of its own).
//!
//! - A record may be appended at any time after it was sent, or never, in any order, and twice.
//! - A leader is a *session* (its index is its writer id) that may stop for ever between any two
//!   steps; promotion is allowed at any moment. `Reclaim` is a delivery failure. Two records are
//!   under way at most.
//! - The scheduler has no state: any step may be ordered whenever the logs allow it, which covers
//!   crash, restart and two schedulers at once.
//! - A replica is a position. A strong read is the pair of log lengths when it began; it may be
//!   answered at any later position of either log, and must see all that any strong read could have
//!   returned before it began (which includes every acknowledged write).
//! - "No wedge": from *every* state all processes crash, and a fixed undisturbed recovery (claim,
//!   `Abort` if undecided, `Unseal` if sealed, open the child if split), with the late records before
//!   or after it, must end with both keys writable by one shard and every acknowledged write there
//!   once.
//!
//! Each [`Mutant`] drops a rule, by what is put before the fold or made of its state, and must be
//! caught: that shows that the model looks where the rule is needed.
//!
//! Two rules do no harm in these worlds when they are dropped, and are not among the mutants: that a
//! merge raises the target's generation (its units keep their ids and bounds, so a write that was
//! routed before brings the right rows), and that a claim's manifest does not lower the version (the
//! lower one is no plan's). They guard against recuts and re-sent `Manifest` records.
//!
//! Not modelled: put races of manifests, GC, trim, pins; expiry of write ids, imports, `Recut` and
//! partial coverage within a unit (`fold/tests/retries.rs` has those); schema changes,
//! UPDATE/DELETE conflicts; sessions and bounded reads; a second split or merge of the same shard,
//! version bases. Tails of logs that were flushed, trimmed and pinned are the rows of one state.
//!
//! `SHOAL_MODEL_SECONDS=600 cargo test -p shoal-wal --test model -- --nocapture` gives each of the
//! larger worlds so long.

mod logs;
mod schedule;
mod world;

use std::time::{Duration, Instant};

use logs::{K0, K1};
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use world::{Bounds, Procedure, Schedules};

/// A rule that is dropped, or read otherwise than it is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Mutant {
    None,
    SealClearedByClaim,
    SealDoesNotStopWrites,
    AbortNotInCommittingLog,
    AbortAfterCommit,
    CommitAfterAbort,
    WriteWithoutGeneration,
    WriteCoversAllThatIsOwned,
    SplitWithoutVersionCheck,
    CarveForgetsWriteIds,
    MergeForgetsWriteIds,
    AckWithoutReadBack,
    BarrierOnSealedSource,
    EpochWithoutWriter,
    PoisonIgnored,
    ClaimVersionDoesNotCount,
    UnsealWithoutProcedure,
    NoManifestNoOpenUnderSeal,
}

fn base(procedure: Procedure) -> Bounds {
    Bounds {
        mutant: Mutant::None,
        procedure,
        procedures: 1,
        writes: [K0 | K1, 0, 0],
        sends: 2,
        opens: [1, 1],
        same_term: 0,
        claims: 0,
        flushes: 1,
        orders: 1,
        twice: 0,
        reads: true,
    }
}

/// The worlds, smaller ones first.
fn worlds() -> Vec<(&'static str, Bounds)> {
    use Procedure::{CutAndSplit, Merge, Split};
    vec![
        (
            "split-noid",
            Bounds {
                writes: [0, 0, K1],
                twice: 1,
                claims: 1,
                opens: [0, 1],
                reads: false,
                ..base(Split)
            },
        ),
        (
            "split-flush",
            Bounds {
                writes: [K1, 0, 0],
                sends: 1,
                flushes: 2,
                opens: [1, 0],
                reads: false,
                ..base(Split)
            },
        ),
        (
            "split-reclaim",
            Bounds {
                writes: [K1, 0, 0],
                sends: 1,
                flushes: 2,
                claims: 1,
                opens: [0, 0],
                reads: false,
                ..base(Split)
            },
        ),
        (
            "split-same-term",
            Bounds {
                writes: [0, K1, K1],
                sends: 1,
                same_term: 1,
                opens: [1, 0],
                reads: false,
                ..base(Split)
            },
        ),
        (
            "cut",
            Bounds {
                opens: [0, 1],
                ..base(CutAndSplit)
            },
        ),
        (
            "merge-noid",
            Bounds {
                writes: [0, 0, K1],
                twice: 1,
                claims: 1,
                opens: [0, 0],
                reads: false,
                ..base(Merge)
            },
        ),
        (
            "merge-twice",
            Bounds {
                writes: [0, 0, K1],
                procedures: 2,
                opens: [0, 0],
                ..base(Merge)
            },
        ),
        (
            "merge-retry",
            Bounds {
                sends: 3,
                opens: [0, 0],
                ..base(Merge)
            },
        ),
        (
            "merge-2w",
            Bounds {
                writes: [K0 | K1, 0, K1],
                sends: 1,
                opens: [0, 0],
                ..base(Merge)
            },
        ),
        (
            "merge",
            Bounds {
                opens: [1, 0],
                ..base(Merge)
            },
        ),
        (
            "merge-b",
            Bounds {
                opens: [0, 1],
                ..base(Merge)
            },
        ),
        ("split", base(Split)),
        ("cut-wide", base(CutAndSplit)),
        (
            "split-wide",
            Bounds {
                writes: [K0 | K1, 0, K1],
                opens: [1, 1],
                ..base(Split)
            },
        ),
        (
            "merge-wide",
            Bounds {
                writes: [K0 | K1, 0, K1],
                opens: [1, 1],
                claims: 1,
                twice: 1,
                ..base(Merge)
            },
        ),
    ]
}

/// Worlds up to here are explored in every run, the others on demand.
const SMALL: usize = 13;

#[allow(clippy::disallowed_methods)]
fn explore(name: &str, bounds: Bounds, seconds: u64, must_end: bool) {
    let began = Instant::now();
    let checked = Schedules::new(bounds)
        .checker()
        .threads(2)
        .timeout(Duration::from_secs(seconds))
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    let took = began.elapsed();
    let whole = took < Duration::from_secs(seconds);
    println!(
        "{name}: {} states of {} logs in {:.1} s{}",
        checked.unique_state_count(),
        checked.model().logs.count(),
        took.as_secs_f32(),
        if whole { "" } else { ", cut off" },
    );
    assert!(whole || !must_end, "{name} has outgrown its time");
    if whole {
        checked.assert_properties();
    }
    for property in checked.model().properties() {
        if property.expectation == Expectation::Always {
            checked.assert_no_discovery(property.name);
        }
    }
}

#[test]
fn in_every_small_world_split_and_merge_lose_and_double_nothing() {
    for (name, bounds) in worlds().into_iter().take(SMALL) {
        explore(name, bounds, 120, true);
    }
}

#[test]
fn larger_worlds_are_explored_for_as_long_as_is_asked() {
    let seconds = std::env::var("SHOAL_MODEL_SECONDS").ok();
    let Some(seconds) = seconds.and_then(|s| s.parse().ok()) else {
        return;
    };
    for (name, bounds) in worlds().into_iter().skip(SMALL) {
        explore(name, bounds, seconds, false);
    }
}

/// Each rule that is dropped, and a world in which that does harm.
fn mutants() -> Vec<(&'static str, Mutant)> {
    use Mutant::*;
    vec![
        ("merge-b", SealClearedByClaim),
        ("merge-retry", SealDoesNotStopWrites),
        ("merge", AbortNotInCommittingLog),
        ("split", AbortNotInCommittingLog),
        ("split", AbortAfterCommit),
        ("split", CommitAfterAbort),
        ("merge", CommitAfterAbort),
        ("cut-wide", WriteWithoutGeneration),
        ("merge-retry", WriteCoversAllThatIsOwned),
        ("split-flush", SplitWithoutVersionCheck),
        ("cut", CarveForgetsWriteIds),
        ("split", CarveForgetsWriteIds),
        ("merge-retry", MergeForgetsWriteIds),
        ("split", AckWithoutReadBack),
        ("merge", BarrierOnSealedSource),
        ("split-same-term", EpochWithoutWriter),
        ("split-noid", PoisonIgnored),
        ("split-flush", ClaimVersionDoesNotCount),
        ("merge-twice", UnsealWithoutProcedure),
        ("merge-b", NoManifestNoOpenUnderSeal),
    ]
}

#[test]
fn every_dropped_rule_is_noticed() {
    let mut unnoticed = Vec::new();
    for (name, mutant) in mutants() {
        let mut worlds = worlds().into_iter();
        let (_, bounds) = worlds.find(|w| w.0 == name).expect("a world");
        let checked = Schedules::new(Bounds { mutant, ..bounds })
            .checker()
            .threads(2)
            .timeout(Duration::from_secs(60))
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let broken: Vec<_> = checked.discoveries().into_iter().collect();
        let broken = broken.into_iter().filter(|(property, _)| {
            let mut all = checked.model().properties().into_iter();
            all.any(|p| p.name == *property && p.expectation == Expectation::Always)
        });
        let broken: Vec<_> = broken
            .map(|(property, path)| format!("{property} ({} steps)", path.into_actions().len()))
            .collect();
        let states = checked.unique_state_count();
        println!("{mutant:?} in {name}: {states} states, {broken:?}");
        if broken.is_empty() {
            unnoticed.push((name, mutant));
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:?}");
}
