//! `Merge`, and what a split and a merge do to write ids and imports.

use super::*;

/// A sealed shard with table 2 and a log much longer than the target's.
fn source() -> Leader {
    let mut source = Leader::new(FoldLimits::default());
    assert_eq!(source.put_part(2, 9, slots(0, 100)), Verdict::Apply);
    for _ in 0..20 {
        assert_eq!(source.write(to_tables(&[2])), Verdict::Apply);
    }
    source
}

fn target() -> Leader {
    let mut target = Leader::with_tables(FoldLimits::default(), 1);
    assert_eq!(target.put_part(3, 9, slots(100, 65_536)), Verdict::Apply);
    target
}

fn named(leader: &Leader, unit: u128, rest: u128, part: u32) -> WriteHeader {
    let id = write_id(leader.stamp_ms, rest);
    WriteHeader {
        write_id: Some(WriteIdPart { id, part }),
        ..to_tables(&[unit])
    }
}

#[test]
fn a_merge_brings_units_versions_and_write_ids_together() {
    let (mut source, mut target) = (source(), target());
    source.state.head.generation = 5;
    source.state.head.version_base = 1000;
    let (theirs, ours) = (named(&source, 2, 1, 0), named(&target, 3, 2, 0));
    assert_eq!(source.write_all(theirs.clone()), Verdict::Apply);
    assert_eq!(target.write_all(ours.clone()), Verdict::Apply);
    assert_eq!(source.seal(5), Verdict::Apply);
    let older = target.state.clone();
    let order = merge(5, &source.state);
    assert_eq!(target.say(Payload::Merge(order.clone())), Verdict::Apply);
    let at = target.last();
    assert_eq!(target.state.generation(), 6, "above both");
    assert_eq!(target.state.schema(table(2)), source.state.schema(table(2)));
    assert_eq!(target.state.bounds(table(2)), source.state.bounds(table(2)));
    assert_eq!(target.state.table_of(table(2)), table(9));
    assert_eq!(target.state.changed_at(table(2)), at);
    assert!(target.state.changed_at(table(3)) < at);
    let decision = Decision::Merged {
        source: shard(78),
        seal: order.seal,
    };
    assert_eq!(
        target.state.decided(procedure(5)).map(|d| d.decision),
        Some(decision)
    );
    let next = target.state.row_version(at.next(), 0);
    assert!(next > source.state.row_version(order.seal, u16::MAX));
    assert!(next > older.row_version(at, u16::MAX));
    assert_publishes(&older, &target.state);
    assert_eq!(target.write_all(theirs), Verdict::DuplicateId);
    assert_eq!(target.write_all(ours), Verdict::DuplicateId);
    assert_eq!(target.write(to_tables(&[2, 3])), Verdict::Apply);
    assert_eq!(target.say(Payload::Merge(order)), Verdict::Decided);
    assert_eq!(target.abort(5), Verdict::Decided);
}

#[test]
fn the_base_never_falls_and_has_a_limit() {
    let (mut source, mut target) = (source(), target());
    target.state.head.version_base = 500;
    assert_eq!(source.seal(5), Verdict::Apply);
    let order = merge(5, &source.state);
    let mut beyond = order.clone();
    beyond.fold.head.version_base = VERSION_BASE_MAX + 100;
    assert_eq!(
        target.say(Payload::Merge(beyond.clone())),
        Verdict::StalePlan
    );
    beyond.fold.head.version_base = u64::MAX;
    assert_eq!(target.say(Payload::Merge(beyond)), Verdict::StalePlan);
    assert_eq!(target.say(Payload::Merge(order)), Verdict::Apply);
    assert_eq!(target.state.version_base(), 500);
}

#[test]
fn a_merge_must_carry_the_source_at_its_seal() {
    let (mut source, mut target) = (source(), target());
    let open = merge(5, &source.state);
    assert_eq!(source.seal(5), Verdict::Apply);
    let good = merge(5, &source.state);
    let mut clash = good.clone();
    clash.fold.schemas = vec![Arc::new(schema(table(3), 1, 3))];
    let mut far = good.clone();
    far.fold.head.generation = u64::MAX;
    let wrong = [
        open,
        merge(6, &source.state),
        Merge {
            seal: good.seal.next(),
            ..good.clone()
        },
        Merge {
            manifest: manifest(7),
            ..good.clone()
        },
        clash,
        far,
    ];
    let before = target.state.clone();
    for order in wrong {
        assert_eq!(target.say(Payload::Merge(order)), Verdict::StalePlan);
    }
    assert!(target.state.schemas == before.schemas);
    assert_eq!(target.abort(5), Verdict::Apply);
    assert_eq!(target.say(Payload::Merge(good)), Verdict::Decided);
    assert_eq!(source.unseal(5), Verdict::Apply);
}

#[test]
fn an_id_that_either_window_forgot_is_refused_after_a_merge() {
    let limits = FoldLimits {
        write_ids_max: 32,
        ..FoldLimits::default()
    };
    let (mut source, mut target) = (source(), target());
    target.state.head.limits = limits;
    let old = named(&source, 2, 1, 0);
    assert_eq!(source.write_all(old.clone()), Verdict::Apply);
    source.state.head.limits = limits;
    source.stamp_ms += 60_000;
    for i in 0..40 {
        let header = named(&source, 2, 100 + i, 0);
        source.stamp_ms += 10;
        assert_eq!(source.write_all(header), Verdict::Apply);
    }
    assert_eq!(source.seal(5), Verdict::Apply);
    for i in 0..20 {
        let header = named(&target, 3, 200 + i, 0);
        assert_eq!(target.write_all(header), Verdict::Apply);
    }
    let order = merge(5, &source.state);
    assert_eq!(target.say(Payload::Merge(order)), Verdict::Apply);
    assert!(target.state.write_id_count() <= 32);
    target.stamp_ms = source.stamp_ms;
    assert_eq!(
        target.write_all(old),
        Verdict::ExpiredId,
        "applied, though the target's window never had it"
    );
}

#[test]
fn a_fold_that_is_too_large_for_a_record_forgets_write_ids() {
    let mut source = source();
    for i in 0..50 {
        source.stamp_ms += 10;
        let header = named(&source, 2, i, 0);
        assert_eq!(source.write_all(header), Verdict::Apply);
    }
    assert_eq!(source.seal(5), Verdict::Apply);
    let mut order = merge(5, &source.state);
    order.fold.keep_newest_write_ids(10);
    assert_eq!(order.fold.write_ids.len(), 10);
    let mut target = target();
    target.stamp_ms = source.stamp_ms;
    let (newest, oldest) = (named(&source, 2, 49, 0), {
        source.stamp_ms -= 400;
        named(&source, 2, 9, 0)
    });
    assert_eq!(target.say(Payload::Merge(order)), Verdict::Apply);
    assert_eq!(target.write_all(newest), Verdict::DuplicateId);
    assert_eq!(target.write_all(oldest), Verdict::ExpiredId);
}
