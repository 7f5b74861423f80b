//! Bounds, `Split`, `Recut`, seals and decisions.

use super::*;

/// One leader with table 1 whole and table 9 in two hash partitions, 2 and 3.
fn leader() -> Leader {
    let mut leader = Leader::with_tables(FoldLimits::default(), 1);
    assert_eq!(leader.put_part(2, 9, slots(0, 100)), Verdict::Apply);
    assert_eq!(leader.put_part(3, 9, slots(100, 65_536)), Verdict::Apply);
    leader
}

#[test]
fn what_a_unit_owns_is_said_once_and_with_its_making() {
    let mut leader = leader();
    let bounds = |leader: &Leader, unit| leader.state.bounds(table(unit)).map(|b| (**b).clone());
    assert_eq!(bounds(&leader, 1), None);
    assert_eq!(bounds(&leader, 2), Some(slots(0, 100)));
    assert_eq!(leader.state.table_of(table(2)), table(9));
    assert_eq!(leader.state.table_of(table(1)), table(1));
    let own = |unit: u128| SchemaChange::Own {
        table: table(unit),
        of: table(9),
        bounds: Arc::new(slots(0, 7)),
    };
    for unit in [1, 2, 4] {
        let stale = Verdict::StaleSchema { table: table(unit) };
        assert_eq!(leader.say(Payload::Schema(vec![own(unit)])), stale);
    }
    let put = SchemaChange::Put(Arc::new(schema(table(4), 1, 3)));
    let twice = Payload::Schema(vec![put, own(4), own(4)]);
    let stale = Verdict::StaleSchema { table: table(4) };
    assert_eq!(leader.say(twice), stale);
    let older = leader.state.clone();
    let drop = SchemaChange::Drop { table: table(2) };
    assert_eq!(leader.say(Payload::Schema(vec![drop])), Verdict::Apply);
    assert_eq!(bounds(&leader, 2), None);
    assert_eq!(leader.put(schema(table(2), 1, 3)), Verdict::Apply);
    assert_eq!(bounds(&leader, 2), None, "a table of its own now");
    assert_publishes(&older, &leader.state);
}

#[test]
fn a_split_takes_units_and_parts_of_them_to_the_child() {
    let mut leader = leader();
    leader.stamp_ms += 1;
    let id = write_id(leader.stamp_ms, 1);
    let with_id = WriteHeader {
        write_id: Some(WriteIdPart { id, part: 0 }),
        ..to_tables(&[3])
    };
    assert_eq!(leader.write_all(with_id.clone()), Verdict::Apply);
    let older = leader.state.clone();
    let order = split(5, vec![cut(1, keys(0, 50), 4, keys(50, 255)), moved(3)]);
    let at = leader.state.next_offset();
    let child = older.carve(shard(1), &order, at).expect("applies");
    assert_eq!(leader.say(Payload::Split(order.clone())), Verdict::Apply);
    assert_publishes(&older, &leader.state);

    let parent = &leader.state;
    assert_eq!(parent.generation(), 1);
    assert_eq!(parent.bounds(table(1)).map(|b| &**b), Some(&keys(0, 50)));
    assert_eq!(parent.bounds(table(2)).map(|b| &**b), Some(&slots(0, 100)));
    assert!(parent.schema(table(3)).is_none() && parent.bounds(table(3)).is_none());
    assert_eq!(
        (parent.changed_at(table(1)), parent.changed_at(table(3))),
        (at, at)
    );
    assert!(parent.changed_at(table(2)) < at);
    let decided = Decided {
        procedure: procedure(5),
        at,
        decision: Decision::Split { child: shard(77) },
    };
    assert_eq!(parent.decided(procedure(5)), Some(&decided));

    let right = TableSchema {
        part_of: Some(table(1)),
        ..schema(table(4), 1, 3)
    };
    assert_eq!(child.table_count(), 2);
    assert_eq!(child.schema(table(4)).map(|s| &**s), Some(&right));
    assert_eq!(child.bounds(table(4)).map(|b| &**b), Some(&keys(50, 255)));
    assert_eq!(child.table_of(table(4)), table(1));
    assert_eq!(child.schema(table(3)), older.schema(table(3)));
    assert_eq!(child.bounds(table(3)), older.bounds(table(3)));
    assert_eq!((child.generation(), child.next_offset()), (1, Offset(0)));
    assert!(
        child.row_version(Offset(0), 0) > older.row_version(at, u16::MAX),
        "later than all of the parent's"
    );
    let origin = Origin {
        shard: shard(1),
        procedure: procedure(5),
        at,
    };
    assert_eq!(child.origin(), Some(origin));
    assert_eq!((child.manifest(), child.seal()), (None, None));
    assert_eq!(child.decided(procedure(5)), None);
    assert_publishes(&FoldState::default(), &child);
    assert_publishes(&child, &child);

    // A retry of what the parent applied is known to the child.
    let mut heir = Leader {
        state: child,
        ..Leader::new(FoldLimits::default())
    };
    heir.seq = 0;
    let claim = Record::claim(heir.claim.0, heir.claim.1, manifest(2), 0);
    assert_eq!(heir.fold(&claim), Verdict::Apply);
    heir.stamp_ms = leader.stamp_ms;
    assert_eq!(heir.write_all(with_id), Verdict::DuplicateId);
    assert_eq!(leader.say(Payload::Split(order)), Verdict::Decided);
    assert_eq!(leader.say(rows(to_tables(&[2]))), Verdict::WrongGeneration);
    assert_eq!(leader.write(to_tables(&[2])), Verdict::Apply);
    assert_eq!(
        leader.write(to_tables(&[3])),
        Verdict::StaleSchema { table: table(3) }
    );
}

#[test]
fn a_plan_that_does_not_fit_changes_nothing() {
    let mut leader = leader();
    let before = leader.state.clone();
    let late = ManifestRef {
        attempt: AttemptId(Uuid::from_u128(9)),
        ..manifest(1)
    };
    let mut list = vec![
        Payload::Split(Split {
            manifest: late,
            ..split(5, vec![moved(3)])
        }),
        Payload::Split(Split {
            manifest: manifest(2),
            ..split(5, vec![moved(3)])
        }),
        Payload::Recut(recut(5, vec![moved(3)], vec![])),
        Payload::Recut(recut(5, vec![], vec![])),
    ];
    let misfits = [
        vec![],
        vec![moved(8)],
        vec![moved(3), moved(3)],
        // The new unit is there already, or named twice.
        vec![cut(1, keys(0, 50), 2, keys(50, 255))],
        vec![
            cut(1, keys(0, 50), 4, keys(50, 255)),
            cut(2, slots(0, 50), 4, slots(50, 100)),
        ],
        // Not all of it, more than it, one part nothing, overlapping, not of its columns.
        vec![cut(1, keys(0, 50), 4, keys(60, 255))],
        vec![cut(1, keys(0, 50), 4, keys(50, 200))],
        vec![cut(2, slots(0, 50), 4, slots(50, 101))],
        vec![cut(2, slots(0, 0), 4, slots(0, 100))],
        vec![cut(2, slots(0, 100), 4, slots(100, 100))],
        vec![cut(2, slots(0, 200), 4, slots(200, 100))],
        vec![cut(2, slots(0, 60), 4, slots(50, 100))],
        // The right part first; measured otherwise.
        vec![cut(2, slots(50, 100), 4, slots(0, 50))],
        vec![cut(2, keys(0, 50), 4, keys(50, 255))],
        vec![cut(1, slots(0, 50), 4, slots(50, 65_536))],
        vec![cut(
            1,
            PartitionBounds {
                by: PartitionBy {
                    method: PartitionMethod::Range,
                    columns: vec![ColumnId(7)],
                },
                ..keys(0, 50)
            },
            4,
            keys(50, 255),
        )],
    ];
    for moves in misfits {
        assert!(
            before
                .carve(shard(1), &split(5, moves.clone()), Offset(9))
                .is_none()
        );
        if moves.iter().all(|m| m.cut.is_some()) {
            list.push(Payload::Recut(recut(5, moves.clone(), vec![])));
        }
        list.push(Payload::Split(split(5, moves)));
    }
    let joins = [
        vec![join(2, 3, slots(0, 65_535))],
        vec![join(3, 2, slots(0, 65_536))],
        vec![join(1, 2, slots(0, 65_536))],
        vec![join(2, 8, slots(0, 65_536))],
        vec![join(2, 3, keys(0, 255))],
        vec![join(2, 2, slots(0, 65_536))],
        vec![join(2, 3, slots(0, 65_536)), join(2, 3, slots(0, 65_536))],
    ];
    for joins in joins {
        list.push(Payload::Recut(recut(5, vec![], joins)));
    }
    let both = recut(
        5,
        vec![cut(2, slots(0, 50), 4, slots(50, 100))],
        vec![join(2, 3, slots(0, 65_536))],
    );
    list.push(Payload::Recut(both));
    for payload in list {
        let text = format!("{payload:?}");
        assert_eq!(leader.say(payload), Verdict::StalePlan, "{text}");
    }
    assert_eq!(leader.state.generation(), 0);
    assert_eq!(leader.state.decided(procedure(5)), None);
    assert!(leader.state.units == before.units && leader.state.schemas == before.schemas);
    // The same procedure may try again with a plan that fits.
    let order = split(5, vec![moved(3)]);
    assert_eq!(leader.say(Payload::Split(order)), Verdict::Apply);
}

#[test]
fn a_recut_cuts_and_joins_in_place() {
    let mut leader = leader();
    let older = leader.state.clone();
    let apart = recut(6, vec![cut(1, keys(0, 50), 4, keys(50, 255))], vec![]);
    assert_eq!(leader.say(Payload::Recut(apart)), Verdict::Apply);
    let cut_at = leader.last();
    assert_eq!(leader.state.changed_at(table(4)), cut_at);
    assert_eq!(leader.state.changed_at(table(1)), cut_at);
    assert_eq!(leader.state.table_of(table(4)), table(1));
    assert_publishes(&older, &leader.state);
    assert_eq!(leader.write(to_tables(&[1, 4])), Verdict::Apply);

    let middle = leader.state.clone();
    let again = recut(
        7,
        vec![cut(3, slots(100, 200), 5, slots(200, 65_536))],
        vec![join(1, 4, keys(0, 255))],
    );
    assert_eq!(leader.say(Payload::Recut(again)), Verdict::Apply);
    assert_eq!(leader.state.generation(), 2);
    assert!(leader.state.schema(table(4)).is_none());
    assert_eq!(
        leader.state.bounds(table(1)).map(|b| &**b),
        Some(&keys(0, 255))
    );
    assert_eq!(
        leader.state.bounds(table(5)).map(|b| &**b),
        Some(&slots(200, 65_536))
    );
    assert_eq!(leader.state.table_of(table(5)), table(9));
    assert_eq!(
        leader.state.decided(procedure(7)).map(|d| d.decision),
        Some(Decision::Recut)
    );
    assert_publishes(&middle, &leader.state);
    assert_publishes(&older, &leader.state);
    // Units whose columns or incarnations differ do not become one.
    assert_eq!(leader.put(schema(table(5), 2, 4)), Verdict::Apply);
    let join_unlike = recut(8, vec![], vec![join(3, 5, slots(100, 65_536))]);
    assert_eq!(
        leader.say(Payload::Recut(join_unlike.clone())),
        Verdict::StalePlan
    );
    let mut emptied = schema(table(3), 2, 4);
    emptied.incarnation = Incarnation(1);
    assert_eq!(leader.put(emptied), Verdict::Apply);
    assert_eq!(leader.say(Payload::Recut(join_unlike)), Verdict::StalePlan);
}

#[test]
fn the_first_of_commit_and_abort_decides() {
    let mut leader = leader();
    assert_eq!(leader.abort(5), Verdict::Apply);
    assert_eq!(leader.abort(5), Verdict::Noted);
    let order = split(5, vec![moved(3)]);
    assert_eq!(leader.state.carve(shard(1), &order, Offset(9)), None);
    assert_eq!(leader.say(Payload::Split(order)), Verdict::Decided);
    let order = recut(5, vec![], vec![join(2, 3, slots(0, 65_536))]);
    assert_eq!(leader.say(Payload::Recut(order)), Verdict::Decided);
    assert_eq!(leader.seal(5), Verdict::Decided);
    assert_eq!(
        leader.say(Payload::Split(split(6, vec![moved(3)]))),
        Verdict::Apply
    );
    assert_eq!(leader.abort(6), Verdict::Decided);
    // More decisions than are remembered push out the oldest.
    let limits = FoldLimits {
        procedures_max: 2,
        ..FoldLimits::default()
    };
    let mut leader = Leader::new(limits);
    for number in 1..=3 {
        assert_eq!(leader.abort(number), Verdict::Apply);
    }
    assert_eq!(leader.state.decisions().count(), 2);
    assert_eq!(leader.state.decided(procedure(1)), None);
    assert_publishes(&FoldState::new(limits), &leader.state);
}

#[test]
fn a_sealed_shard_takes_nothing_but_claims_and_manifests() {
    let mut leader = leader();
    assert_eq!(leader.unseal(5), Verdict::StalePlan);
    assert_eq!(leader.seal(5), Verdict::Apply);
    assert_eq!(leader.seal(5), Verdict::Noted);
    assert_eq!(leader.seal(6), Verdict::Sealed);
    assert_eq!(leader.state.seal(), Some(procedure(5)));
    let older = leader.state.clone();
    let other = {
        let mut other = Leader::new(FoldLimits::default());
        assert_eq!(other.seal(7), Verdict::Apply);
        other.state
    };
    let put = SchemaChange::Put(Arc::new(schema(table(4), 1, 3)));
    let refused = [
        rows(to_tables(&[1])),
        rows(WriteHeader {
            generation: 3,
            ..to_tables(&[1])
        }),
        Payload::Schema(vec![put]),
        Payload::Split(split(8, vec![moved(3)])),
        Payload::Recut(recut(
            8,
            vec![cut(1, keys(0, 50), 4, keys(50, 255))],
            vec![],
        )),
        Payload::Merge(merge(7, &other)),
    ];
    for payload in refused {
        let text = format!("{payload:?}");
        assert_eq!(leader.say(payload), Verdict::Sealed, "{text}");
    }
    assert!(leader.state.schemas == older.schemas);
    assert_eq!(leader.say(Payload::Manifest(manifest(2))), Verdict::Apply);
    let next = (epoch(2, 0), writer(2));
    let claim = Record::claim(next.0, next.1, manifest(3), 0);
    assert_eq!(leader.fold(&claim), Verdict::Apply);
    (leader.claim, leader.seq) = (next, 0);
    assert_eq!(
        leader.state.seal(),
        Some(procedure(5)),
        "a claim lifts no seal"
    );
    assert_eq!(leader.write(to_tables(&[1])), Verdict::Sealed);
    assert_publishes(&older, &leader.state);

    assert_eq!(leader.unseal(6), Verdict::StalePlan);
    assert_eq!(leader.unseal(5), Verdict::Apply);
    assert_eq!(leader.unseal(5), Verdict::Decided);
    assert_eq!(leader.seal(5), Verdict::Decided, "one that was late");
    assert_eq!(leader.write(to_tables(&[1])), Verdict::Apply);
    assert_eq!(leader.seal(6), Verdict::Apply, "another procedure may try");
    assert_publishes(&older, &leader.state);
}

#[test]
fn carving_from_memory_and_from_what_was_published_is_the_same() {
    let mut leader = leader();
    let published = leader.state.clone();
    for part in 0..4 {
        let id = write_id(leader.stamp_ms, u128::from(part));
        let header = WriteHeader {
            write_id: Some(WriteIdPart { id, part }),
            ..to_tables(&[1, 3])
        };
        assert_eq!(leader.write_all(header), Verdict::Apply);
    }
    let edit = leader.state.edit_since(&published);
    let mut opened = FoldState::from_snapshot(&published.to_snapshot());
    opened.apply_edit(&edit).expect("follows");
    let order = split(5, vec![cut(1, keys(0, 50), 4, keys(50, 255)), moved(3)]);
    let at = leader.state.next_offset();
    let carved = leader.state.carve(shard(1), &order, at);
    assert!(carved.is_some());
    assert_eq!(carved, opened.carve(shard(1), &order, at));
    // Its log replayed from either goes on alike, and from its own snapshot.
    let child = carved.expect("applies");
    let claim = Record::claim(epoch(4, 0), writer(4), manifest(2), 0);
    let mut a = child.clone();
    let mut b = FoldState::from_snapshot(&child.to_snapshot());
    for state in [&mut a, &mut b] {
        assert_eq!(fold(state, Offset(1), &claim), Verdict::Apply);
    }
    assert!(a == b);
    // What goes and what stays is all there was, once.
    let mut parent = leader;
    assert_eq!(parent.say(Payload::Split(order)), Verdict::Apply);
    let units = |state: &FoldState| {
        let mut units: Vec<TableId> = state.schemas().map(|s| s.table).collect();
        units.sort_unstable();
        units
    };
    assert_eq!(units(&parent.state), [table(1), table(2)]);
    assert_eq!(units(&child), [table(3), table(4)]);
}

#[test]
fn version_bases_have_a_limit() {
    let mut leader = leader();
    leader.state.head.version_base = VERSION_BASE_MAX;
    let order = split(5, vec![moved(3)]);
    assert_eq!(
        leader.say(Payload::Split(order.clone())),
        Verdict::StalePlan
    );
    leader.state.head.version_base = 0;
    leader.state.head.generation = u64::MAX;
    assert_eq!(leader.say(Payload::Split(order)), Verdict::StalePlan);
}
