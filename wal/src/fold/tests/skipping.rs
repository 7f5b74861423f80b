//! What records that an operator gave up do to the rest of the log: nothing acknowledged is lost
//! but what stood in them.

use proptest::prelude::*;

use super::*;

/// A leader of an honest log.
#[derive(Clone, Debug)]
struct Leader {
    by: (Epoch, WriterId),
    next: u64,
}

#[derive(Clone, Debug)]
enum Step {
    /// A higher epoch claims: another term, or the same writer's next claim.
    Claim {
        same_writer: bool,
    },
    /// Some leader so far, mostly the newest, writes its next record; a late one is in the way.
    Write {
        back: usize,
    },
    /// A number of the newest leader is lost on its way: its epoch is over.
    Lose,
    Barrier,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<bool>().prop_map(|same_writer| Step::Claim { same_writer }),
        12 => Just(Step::Write { back: 0 }),
        3 => (1_usize..3).prop_map(|back| Step::Write { back }),
        1 => Just(Step::Lose),
        1 => Just(Step::Barrier),
    ]
}

fn plain() -> Payload {
    rows(WriteHeader::default())
}

/// Records as honest leaders write them: each epoch's claim before its records, numbered in order.
/// Claims of older leaders may come late, as may their records.
fn honest(steps: &[Step]) -> Vec<Record> {
    let mut leaders: Vec<Leader> = Vec::new();
    let mut log = vec![Record::barrier(Uuid::from_u128(0), 0)];
    for step in steps {
        match step {
            Step::Barrier => log.push(Record::barrier(Uuid::from_u128(1), 0)),
            Step::Claim { same_writer } => {
                let newest = leaders.last().map(|l| l.by);
                let by = match newest {
                    Some((epoch, writer)) if *same_writer => {
                        (self::epoch(epoch.term, epoch.claim + 1), writer)
                    }
                    Some((epoch, _)) => (self::epoch(epoch.term + 1, 0), writer(epoch.term.into())),
                    None => (self::epoch(1, 0), writer(100)),
                };
                log.push(Record::claim(by.0, by.1, manifest(1), 0));
                leaders.push(Leader { by, next: 0 });
            }
            Step::Write { back } => {
                let Some(at) = leaders.len().checked_sub(1 + back) else {
                    continue;
                };
                let leader = &mut leaders[at];
                log.push(Record::sequenced(leader.by, Seq(leader.next), 0, plain()));
                leader.next += 1;
            }
            Step::Lose => {
                if let Some(leader) = leaders.last_mut() {
                    leader.next += 1;
                }
            }
        }
    }
    log
}

fn run(state: &mut FoldState, log: &[Record], skipped: &[usize]) -> Vec<Option<Verdict>> {
    log.iter()
        .enumerate()
        .map(|(at, record)| {
            if skipped.contains(&at) {
                state.skip(Offset(at as u64 + 1), 1000);
                return None;
            }
            Some(fold(state, Offset(at as u64), record))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whichever records are given up, every other one that applied applies.
    #[test]
    fn what_applied_still_applies_behind_records_given_up(
        steps in prop::collection::vec(step(), 1..40),
        lost in prop::collection::vec(0_usize..40, 1..4),
    ) {
        let log = honest(&steps);
        let whole = run(&mut FoldState::default(), &log, &[]);
        let mut state = FoldState::default();
        let rest = run(&mut state, &log, &lost);
        for (at, (before, now)) in whole.iter().zip(&rest).enumerate() {
            if now.is_none() || *before != Some(Verdict::Apply) {
                continue;
            }
            // A claim may come to be implied by what followed it.
            let claim = matches!(log[at].payload, Payload::Claim(_));
            prop_assert!(claim || *now == Some(Verdict::Apply), "record {} of {:?}: {:?}", at, log, now);
        }
        // The claim of whoever skipped ends it: from there on the rules are as ever.
        let end = log.len() as u64;
        let claim = Record::claim(epoch(1000, 0), writer(9), manifest(1), 0);
        prop_assert_eq!(fold(&mut state, Offset(end), &claim), Verdict::Apply);
        prop_assert_eq!(state.head().skipped, Skipped::default());
        let gap = Record::sequenced((epoch(1000, 0), writer(9)), Seq(1), 0, plain());
        prop_assert_eq!(fold(&mut state, Offset(end + 1), &gap), Verdict::Gap);
    }
}

fn say(state: &mut FoldState, at: u64, by: (Epoch, WriterId), seq: u64) -> Verdict {
    fold(
        state,
        Offset(at),
        &Record::sequenced(by, Seq(seq), 0, plain()),
    )
}

#[test]
fn a_gap_is_borne_once_and_no_wider_than_what_was_given_up() {
    let by = (epoch(1, 0), writer(1));
    let begun = || {
        let mut state = FoldState::default();
        fold(
            &mut state,
            Offset(0),
            &Record::claim(by.0, by.1, manifest(1), 0),
        );
        assert_eq!(say(&mut state, 1, by, 0), Verdict::Apply);
        state.skip(Offset(4), 7);
        state
    };
    let mut state = begun();
    assert_eq!(state.next_offset(), Offset(4));
    assert_eq!(
        say(&mut state, 4, by, 3),
        Verdict::Apply,
        "1 and 2 were given up"
    );
    assert_eq!(say(&mut state, 5, by, 5), Verdict::Gap, "it was settled");
    let mut state = begun();
    assert_eq!(
        say(&mut state, 4, by, 4),
        Verdict::Gap,
        "more than was given up"
    );
    let mut state = begun();
    assert_eq!(
        say(&mut state, 4, by, 1),
        Verdict::Apply,
        "they were others"
    );
    assert_eq!(say(&mut state, 5, by, 3), Verdict::Gap);
}

#[test]
fn a_lower_claim_does_not_hide_the_one_that_was_given_up() {
    let mut state = FoldState::default();
    fold(
        &mut state,
        Offset(0),
        &Record::claim(epoch(1, 0), writer(1), manifest(1), 0),
    );
    // At 1 stood the claim of 2.0.
    state.skip(Offset(2), 7);
    let late = Record::claim(epoch(1, 1), writer(1), manifest(1), 0);
    assert_eq!(
        fold(&mut state, Offset(2), &late),
        Verdict::Apply,
        "the price"
    );
    let second = (epoch(2, 0), writer(2));
    assert_eq!(say(&mut state, 3, second, 0), Verdict::Apply);
    assert_eq!(
        say(&mut state, 4, (epoch(1, 1), writer(1)), 0),
        Verdict::NotCurrent
    );
    assert_eq!(
        say(&mut state, 5, (epoch(7, 0), writer(3)), 0),
        Verdict::NotCurrent,
        "claims of the skipper's own term are not implied"
    );
    assert_eq!(say(&mut state, 6, second, 1), Verdict::Apply);
}

#[test]
fn behind_another_log_everything_that_was_read_before_conflicts() {
    let by = (epoch(1, 0), writer(1));
    let mut state = FoldState::default();
    fold(
        &mut state,
        Offset(0),
        &Record::claim(by.0, by.1, manifest(1), 0),
    );
    put(&mut state, 1, by, 0, 1);
    let older = state.clone();
    state.begin_log(Offset(1000));
    assert_eq!(state.next_offset(), Offset(1000));
    assert_eq!(state.changed_at(table(1)), Offset(999));
    assert_eq!(state.changed_at(table(2)), Offset(999));
    let mut edited = older.clone();
    edited
        .apply_edit(&state.edit_since(&older))
        .expect("follows");
    assert!(edited == state);
}

/// Makes a table.
fn put(state: &mut FoldState, at: u64, by: (Epoch, WriterId), seq: u64, id: u128) {
    let change = SchemaChange::Put(Arc::new(schema(table(id), 1, 3)));
    let record = Record::sequenced(by, Seq(seq), 0, Payload::Schema(vec![change]));
    assert_eq!(fold(state, Offset(at), &record), Verdict::Apply);
}
