//! What holds for any log whatever: many writers, stale claims, lost and doubled records.

use proptest::prelude::*;

use super::*;

/// What a step of a made-up log does; numbers are small so that they collide.
#[derive(Clone, Debug)]
enum Step {
    Claim {
        who: usize,
        manifest: u64,
    },
    Barrier,
    Pass,
    /// The next offsets are given up.
    Skip {
        records: u64,
    },
    /// By the writer `who`, `skew` off its next seq.
    Say {
        who: usize,
        skew: i8,
        what: What,
    },
}

#[derive(Clone, Debug)]
enum What {
    Write {
        tables: Vec<u128>,
        id: Option<(u64, u32)>,
        chunk: Option<(u128, u64, u32, bool)>,
        ago: Option<u64>,
        /// It says what it brings.
        scoped: bool,
    },
    Put {
        table: u128,
        ahead: u32,
    },
    Seal(u128),
    Unseal(u128),
    Abort(u128),
    /// With a unit cut if there is a place, else all of it goes.
    Split {
        procedure: u128,
        manifest: u64,
        table: u128,
        at: Option<u8>,
    },
    Recut {
        procedure: u128,
        manifest: u64,
        table: u128,
        at: u8,
    },
    /// Of a small shard that is sealed for it.
    Merge {
        procedure: u128,
        unit: u128,
    },
    Drop {
        table: u128,
    },
    Manifest {
        version: u64,
    },
}

/// The writers of the log, in the order of their epochs; two share one.
fn claims() -> Vec<(Epoch, WriterId)> {
    vec![
        (epoch(1, 0), writer(1)),
        (epoch(1, 1), writer(1)),
        (epoch(2, 0), writer(2)),
        (epoch(2, 0), writer(3)),
        (epoch(3, 0), writer(4)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let write = (
        prop::collection::vec(1_u128..6, 1..3),
        prop::option::of((0_u64..12, 0_u32..2)),
        prop::option::of((1_u128..4, 0_u64..80, 0_u32..3, any::<bool>())),
        prop::option::of(0_u64..4),
        any::<bool>(),
    )
        .prop_map(|(tables, id, chunk, ago, scoped)| What::Write {
            tables,
            id,
            chunk,
            ago,
            scoped,
        });
    let split = (1_u128..9, 0_u64..4, 1_u128..6, prop::option::of(1_u8..9));
    let recut = (1_u128..9, 0_u64..4, 1_u128..6, 1_u8..9);
    let what = prop_oneof![
        10 => write,
        3 => (1_u128..6, 1_u32..3).prop_map(|(table, ahead)| What::Put { table, ahead }),
        1 => (1_u128..6).prop_map(|table| What::Drop { table }),
        1 => (0_u64..9).prop_map(|version| What::Manifest { version }),
        1 => (1_u128..9).prop_map(What::Seal),
        2 => (1_u128..9).prop_map(What::Unseal),
        1 => (1_u128..9).prop_map(What::Abort),
        1 => split.prop_map(|(procedure, manifest, table, at)| {
            What::Split { procedure, manifest, table, at }
        }),
        1 => recut.prop_map(|(procedure, manifest, table, at)| {
            What::Recut { procedure, manifest, table, at }
        }),
        1 => (1_u128..9, 50_u128..60).prop_map(|(procedure, unit)| {
            What::Merge { procedure, unit }
        }),
    ];
    let skew = prop_oneof![30 => Just(0_i8), 2 => Just(-1), 1 => Just(1)];
    prop_oneof![
        3 => (0_usize..5, 0_u64..4).prop_map(|(who, manifest)| Step::Claim { who, manifest }),
        1 => Just(Step::Barrier),
        1 => Just(Step::Pass),
        1 => (1_u64..3).prop_map(|records| Step::Skip { records }),
        40 => (0_usize..5, skew, what).prop_map(|(who, skew, what)| Step::Say { who, skew, what }),
    ]
}

/// What stands at an offset.
#[derive(Clone, Debug)]
enum Entry {
    Record(Box<Record>),
    Foreign,
    /// This one and so many in all were given up, in this term.
    Skipped(u64, u64),
}

impl Entry {
    fn record(&self) -> Option<&Record> {
        match self {
            Self::Record(record) => Some(record),
            _ => None,
        }
    }
}

/// The log that the steps make.
fn log(steps: &[Step]) -> Vec<(Offset, Entry)> {
    let claims = claims();
    let mut next = [0_i64; 5];
    let mut versions = std::collections::HashMap::new();
    // The newest claimer does most of the talking, or little would ever apply.
    let mut newest = 0;
    // Folded along, so that plans fit more often than by chance.
    let mut seen = FoldState::new(small());
    let mut offset = 0;
    let mut log = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        offset += 1 + u64::from(i % 7 == 3);
        let stamp_ms = 100 * DAY_MS + i as u64 * 1000;
        let record = match step {
            Step::Pass => Entry::Foreign,
            Step::Skip { records } => {
                let skipped = Entry::Skipped(*records, 2 + i as u64 % 3);
                log.push((Offset(offset), skipped));
                run(&mut seen, &log[log.len() - 1..]);
                offset += records - 1;
                continue;
            }
            Step::Barrier => Entry::Record(Box::new(Record::barrier(Uuid::from_u128(1), stamp_ms))),
            Step::Claim { who, manifest: m } => {
                newest = newest.max(*who);
                let claim = Record::claim(claims[*who].0, claims[*who].1, manifest(*m), stamp_ms);
                Entry::Record(Box::new(claim))
            }
            Step::Say { who, skew, what } => {
                let who = if i % 4 == 0 { *who } else { newest };
                let seq = (next[who] + i64::from(*skew)).max(0) as u64;
                next[who] = next[who].max(seq as i64 + 1);
                let payload = payload(what, offset, stamp_ms, &mut versions, &seen);
                let record = Record::sequenced(claims[who], Seq(seq), stamp_ms, payload);
                Entry::Record(Box::new(record))
            }
        };
        log.push((Offset(offset), record));
        run(&mut seen, &log[log.len() - 1..]);
    }
    log
}

/// Mostly the manifest that was named last.
fn planned(version: u64, seen: &FoldState) -> ManifestRef {
    let last = seen.manifest().filter(|_| version > 0);
    last.unwrap_or(manifest(version))
}

fn payload(
    what: &What,
    offset: u64,
    stamp_ms: u64,
    versions: &mut std::collections::HashMap<u128, u32>,
    seen: &FoldState,
) -> Payload {
    match what {
        What::Write {
            tables,
            id,
            chunk,
            ago,
            scoped,
        } => rows(WriteHeader {
            generation: seen.generation(),
            besides: scoped.then(Vec::new),
            write_id: id.map(|(n, part)| WriteIdPart {
                id: write_id(stamp_ms / 40_000 * 40_000 + n / 3 * 9000, u128::from(n)),
                part,
            }),
            import: chunk.map(|(import, chunk, part, last_part)| ImportChunk {
                import,
                chunk,
                part,
                last_part,
            }),
            read_at: ago.map(|ago| Offset(offset.saturating_sub(ago))),
            ..to_tables(tables)
        }),
        What::Put { table: t, ahead } => {
            let version = versions.entry(*t).or_insert(0);
            *version += ahead / 2 + u32::from(*version == 0 || ahead % 2 == 1);
            let schema = schema(table(*t), *version, 3);
            Payload::Schema(vec![SchemaChange::Put(Arc::new(schema))])
        }
        What::Drop { table: t } => {
            versions.remove(t);
            Payload::Schema(vec![SchemaChange::Drop { table: table(*t) }])
        }
        What::Manifest { version } => Payload::Manifest(manifest(*version)),
        What::Seal(number) => Payload::Seal {
            procedure: procedure(*number),
        },
        What::Unseal(number) => Payload::Unseal {
            procedure: procedure(*number),
        },
        What::Abort(number) => Payload::Abort {
            procedure: procedure(*number),
        },
        What::Split {
            procedure,
            manifest: version,
            table,
            at,
        } => {
            let one = match at {
                Some(at) => cut(*table, keys(0, *at), 100 + procedure, keys(*at, 255)),
                None => moved(*table),
            };
            Payload::Split(Split {
                manifest: planned(*version, seen),
                ..split(*procedure, vec![one])
            })
        }
        What::Recut {
            procedure,
            manifest: version,
            table,
            at,
        } => {
            let one = cut(*table, keys(0, *at), 200 + procedure, keys(*at, 255));
            Payload::Recut(Recut {
                manifest: planned(*version, seen),
                ..recut(*procedure, vec![one], vec![])
            })
        }
        What::Merge { procedure, unit } => {
            let mut source = Leader::with_tables(small(), 0);
            assert_eq!(source.put(schema(table(*unit), 1, 3)), Verdict::Apply);
            assert_eq!(source.seal(*procedure), Verdict::Apply);
            Payload::Merge(merge(*procedure, &source.state))
        }
    }
}

fn small() -> FoldLimits {
    FoldLimits {
        write_ids_max: 16,
        write_id_parts_max: 24,
        write_id_age_ms_max: 60_000,
        write_id_ahead_ms_max: 120_000,
        changed_tables_max: 4,
        imports_max: 2,
        procedures_max: 2,
    }
}

fn run(state: &mut FoldState, log: &[(Offset, Entry)]) -> Vec<Option<Verdict>> {
    log.iter()
        .map(|(offset, entry)| match entry {
            Entry::Record(record) => Some(fold(state, *offset, record)),
            Entry::Foreign => {
                state.pass(*offset);
                None
            }
            Entry::Skipped(records, term) => {
                state.skip(Offset(offset.0 + records), *term);
                None
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever the log, the records consumed between two claims that take are those of the
    /// claimer, numbered from 0 without a hole, up to the first gap.
    #[test]
    fn only_the_current_claims_contiguous_prefix_is_consumed(steps in prop::collection::vec(step(), 1..120)) {
        let mut log = log(&steps);
        log.retain(|(_, entry)| !matches!(entry, Entry::Skipped(..)));
        let verdicts = run(&mut FoldState::new(small()), &log);
        let mut current: Option<(Epoch, WriterId)> = None;
        let mut next = Some(0);
        for ((_, record), verdict) in log.iter().zip(verdicts) {
            let (Some(record), Some(verdict)) = (record.record(), verdict) else { continue };
            let by = (record.epoch, record.writer);
            if matches!(record.payload, Payload::Claim(_)) {
                let takes = current.is_none_or(|(epoch, _)| record.epoch > epoch);
                prop_assert_eq!(takes, verdict == Verdict::Apply);
                if takes {
                    (current, next) = (Some(by), Some(0));
                }
                continue;
            }
            if !record.kind().is_sequenced() {
                prop_assert_eq!(verdict, Verdict::Noted);
                continue;
            }
            let expected = match next {
                _ if current != Some(by) => Some(Verdict::NotCurrent),
                Some(n) if record.seq.0 > n => { next = None; Some(Verdict::Gap) }
                Some(n) if record.seq.0 == n => { next = Some(n + 1); None }
                Some(_) => Some(Verdict::Duplicate),
                // Behind a gap: either word, but no effect.
                None => {
                    prop_assert!(matches!(verdict, Verdict::Gap | Verdict::Duplicate));
                    continue;
                }
            };
            let consumed = !matches!(verdict, Verdict::NotCurrent | Verdict::Gap | Verdict::Duplicate);
            match expected {
                Some(expected) => prop_assert_eq!(verdict, expected),
                None => prop_assert!(consumed, "{:?} for a record in order", verdict),
            }
        }
    }

    /// A replica that opens from a snapshot and any chain of edits goes on exactly like one that
    /// read the log from its start.
    #[test]
    fn a_state_from_snapshot_and_edits_is_the_state_from_the_start(
        steps in prop::collection::vec(step(), 1..150),
        cuts in prop::collection::vec(0_usize..150, 1..6),
    ) {
        let log = log(&steps);
        let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(log.len())).collect();
        cuts.sort_unstable();
        let mut straight = FoldState::new(small());
        let first = run(&mut straight, &log[..cuts[0]]);
        let json = serde_json::to_string(&straight.to_snapshot()).expect("json");
        let snapshot: FoldSnapshot = serde_json::from_str(&json).expect("json");
        let mut opened = FoldState::from_snapshot(&snapshot);
        prop_assert!(opened == straight);
        let mut published = straight.clone();
        for pair in cuts.windows(2) {
            run(&mut straight, &log[pair[0]..pair[1]]);
            let packed = rmp_serde::to_vec_named(&straight.edit_since(&published)).expect("packs");
            let edit: FoldEdit = rmp_serde::from_slice(&packed).expect("unpacks");
            opened.apply_edit(&edit).expect("the edit follows");
            published = straight.clone();
            prop_assert!(opened == straight, "after the edit {:?}", edit);
        }
        let rest = &log[cuts[cuts.len() - 1]..];
        let mut edited = opened.clone();
        let verdicts = run(&mut straight, rest);
        prop_assert_eq!(verdicts, run(&mut opened, rest));
        prop_assert!(opened == straight);
        // A replica that was opened itself publishes the right edit, too.
        edited.apply_edit(&opened.edit_since(&edited)).expect("the edit follows");
        prop_assert!(edited == straight);
        prop_assert_eq!(first.len(), cuts[0]);
    }

    /// No (id, part) ever applies twice to a unit, however often and by whom it is sent.
    #[test]
    fn no_write_id_applies_twice(steps in prop::collection::vec(step(), 1..200)) {
        let log = log(&steps);
        let verdicts = run(&mut FoldState::new(small()), &log);
        let mut applied = std::collections::HashSet::new();
        for ((_, entry), verdict) in log.iter().zip(verdicts) {
            if let (Some(Record { payload: Payload::Write(write), .. }), Some(Verdict::Apply)) = (entry.record(), verdict)
                && let Some(id) = write.header.write_id
            {
                let units = write.header.tables.iter().map(|w| w.table);
                for unit in units.collect::<std::collections::HashSet<_>>() {
                    prop_assert!(applied.insert((id, unit)), "{:?} applied twice", id);
                }
            }
        }
    }
}
