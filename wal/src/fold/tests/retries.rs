//! Write ids and imports while units are cut, joined and moved between shards: every row is applied
//! once, whoever asks again and however it is cut by then.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn named(leader: &Leader, rest: u128, part: u32, units: &[u128]) -> WriteHeader {
    let id = write_id(leader.stamp_ms, rest);
    WriteHeader {
        write_id: Some(WriteIdPart { id, part }),
        ..to_tables(units)
    }
}

fn chunk(number: u64, units: &[u128]) -> WriteHeader {
    WriteHeader {
        import: Some(ImportChunk {
            import: 1,
            chunk: number,
            part: 0,
            last_part: true,
        }),
        ..to_tables(units)
    }
}

fn whole(unit: u128) -> Covered {
    Covered {
        unit: table(unit),
        bounds: None,
    }
}

fn within(unit: u128, bounds: PartitionBounds) -> Covered {
    Covered {
        unit: table(unit),
        bounds: Some(Arc::new(bounds)),
    }
}

/// Table 9 in two partitions, 2 and 3.
fn leader() -> Leader {
    let mut leader = Leader::with_tables(FoldLimits::default(), 1);
    assert_eq!(leader.put_part(2, 9, slots(0, 50)), Verdict::Apply);
    assert_eq!(leader.put_part(3, 9, slots(50, 65_536)), Verdict::Apply);
    leader
}

#[test]
fn a_retry_that_is_cut_otherwise_leaves_out_what_is_applied() {
    let mut leader = leader();
    let retry = |units: &[u128]| named(&Leader::new(FoldLimits::default()), 1, 0, units);
    assert_eq!(leader.write_all(retry(&[2])), Verdict::Apply);
    // Another unit of the same request, and another part.
    let known = vec![whole(2)];
    let overlap = Verdict::Overlaps {
        covered: known.clone(),
    };
    assert_eq!(leader.write_all(retry(&[2, 3])), overlap);
    assert_eq!(
        leader.write_all(named(&leader_of(&leader), 1, 1, &[2])),
        Verdict::Apply
    );
    // The two become one unit, of which a half is applied.
    let joined = recut(5, vec![], vec![join(2, 3, slots(0, 65_536))]);
    assert_eq!(leader.say(Payload::Recut(joined)), Verdict::Apply);
    let half = vec![within(2, slots(0, 50))];
    let overlap = Verdict::Overlaps {
        covered: half.clone(),
    };
    assert_eq!(leader.write_all(retry(&[2])), overlap);
    assert_eq!(
        leader.write_besides(retry(&[2]), known),
        overlap,
        "says too much"
    );
    let early = vec![within(2, slots(0, 40))];
    assert_eq!(leader.write_besides(retry(&[2]), early), overlap);
    let part = retry(&[2]).write_id.expect("has");
    assert!(!leader.state.covers_write_id(table(2), part));
    assert_eq!(leader.write_besides(retry(&[2]), half), Verdict::Apply);
    assert!(leader.state.covers_write_id(table(2), part));
    assert_eq!(leader.write_all(retry(&[2])), Verdict::DuplicateId);
    // Cut again: both halves have it.
    let apart = recut(6, vec![cut(2, slots(0, 9), 7, slots(9, 65_536))], vec![]);
    assert_eq!(leader.say(Payload::Recut(apart)), Verdict::Apply);
    assert_eq!(leader.write_all(retry(&[7])), Verdict::DuplicateId);
    assert_eq!(leader.write_all(retry(&[2, 7])), Verdict::DuplicateId);
    let unknown = vec![within(7, slots(0, 50))];
    let nothing = Verdict::Overlaps { covered: vec![] };
    let other = named(&leader_of(&leader), 8, 0, &[7]);
    assert_eq!(leader.write_besides(other, unknown), nothing);
}

/// For its clock.
fn leader_of(leader: &Leader) -> Leader {
    Leader {
        state: FoldState::default(),
        ..*leader
    }
}

#[test]
fn the_same_id_and_part_of_two_shards_are_not_one_after_a_merge() {
    let (mut source, mut target) = (leader(), Leader::new(FoldLimits::default()));
    assert_eq!(target.put_part(4, 10, slots(7, 8)), Verdict::Apply);
    let both = named(&source, 1, 0, &[2, 4]);
    let at_target = named(&source, 1, 0, &[4]);
    assert_eq!(target.write_all(at_target), Verdict::Apply);
    // Its rows for unit 2 never reached the source.
    assert_eq!(source.write_all(named(&source, 2, 0, &[3])), Verdict::Apply);
    assert_eq!(source.seal(5), Verdict::Apply);
    let order = merge(5, &source.state);
    assert_eq!(target.say(Payload::Merge(order)), Verdict::Apply);
    let known = vec![whole(4)];
    let overlap = Verdict::Overlaps {
        covered: known.clone(),
    };
    assert_eq!(target.write_all(both.clone()), overlap);
    assert_eq!(target.write_besides(both, known), Verdict::Apply);
    assert_eq!(
        target.write_all(named(&source, 2, 0, &[3])),
        Verdict::DuplicateId
    );
}

#[test]
fn a_request_from_before_partitions_is_refused_once_its_units_changed() {
    let mut leader = leader();
    let header = named(&leader, 1, 0, &[1]);
    assert_eq!(leader.write(header.clone()), Verdict::Apply);
    assert_eq!(leader.write(header.clone()), Verdict::DuplicateId);
    assert_eq!(leader.write_all(header.clone()), Verdict::DuplicateId);
    let older = leader.state.clone();
    let order = split(5, vec![moved(3)]);
    let at = leader.state.next_offset();
    let child = leader.state.carve(shard(1), &order, at).expect("applies");
    assert_eq!(leader.say(Payload::Split(order)), Verdict::Apply);
    assert_publishes(&older, &leader.state);
    let part = |part| WriteHeader {
        write_id: header.write_id.map(|w| WriteIdPart { part, ..w }),
        ..header.clone()
    };
    assert_eq!(leader.write_all(part(0)), Verdict::ExpiredId);
    assert_eq!(
        leader.write_all(part(3)),
        Verdict::ExpiredId,
        "it was cut per shard"
    );
    assert!(leader.state.has_write_id(header.write_id.expect("has").id));
    let mut heir = Leader {
        state: child,
        ..Leader::new(FoldLimits::default())
    };
    let claim = Record::claim(heir.claim.0, heir.claim.1, manifest(2), 0);
    assert_eq!(heir.fold(&claim), Verdict::Apply);
    let retry = WriteHeader {
        tables: to_tables(&[3]).tables,
        ..part(0)
    };
    assert_eq!(heir.write_all(retry), Verdict::ExpiredId);
}

#[test]
fn what_manifests_held_before_partitions_is_read() {
    #[derive(serde::Serialize)]
    struct OldImport {
        import: u128,
        low: u64,
        done: u64,
        open: Vec<OpenChunk>,
        advanced: Offset,
    }
    let id = write_id(7, 7);
    let old = rmp_serde::to_vec_named(&WriteIdPart { id, part: 3 }).expect("packs");
    let entry: WriteIdEntry = rmp_serde::from_slice(&old).expect("reads");
    assert_eq!(
        (entry.part(), entry.scope),
        (WriteIdPart { id, part: 3 }, 0)
    );
    let old = OldImport {
        import: 5,
        low: 2,
        done: 1,
        open: vec![],
        advanced: Offset(9),
    };
    let old = rmp_serde::to_vec_named(&old).expect("packs");
    let import: ImportSnapshot = rmp_serde::from_slice(&old).expect("reads");
    assert_eq!((import.low, import.unit), (2, None));
    assert!(!import.empty && !import.expired);
    // And a state from then is written as it was, but for the limits.
    let mut leader = leader();
    assert_eq!(
        leader.write(named(&leader_of(&leader), 1, 0, &[1])),
        Verdict::Apply
    );
    let json = serde_json::to_string(&leader.state.to_snapshot()).expect("json");
    for newer in [
        "\"scope\"",
        "\"decided\"",
        "\"write_id_scopes\"",
        "\"seal\"",
    ] {
        assert!(!json.contains(newer), "{newer} in {json}");
    }
}

#[test]
fn requests_to_ever_other_tables_are_remembered_in_bounded_memory() {
    let limits = FoldLimits {
        write_id_parts_max: 64,
        ..FoldLimits::default()
    };
    let mut leader = Leader::with_tables(limits, 12);
    let older = leader.state.clone();
    for i in 1..400_u128 {
        leader.stamp_ms += 7;
        let units: Vec<u128> = (0..9)
            .filter(|bit| i >> bit & 1 == 1)
            .map(|bit| bit + 1)
            .collect();
        let header = named(&leader, i, 0, &units);
        assert_eq!(leader.write_all(header.clone()), Verdict::Apply);
        assert_eq!(leader.write_all(header), Verdict::DuplicateId);
        assert!(leader.state.write_id_part_count() <= 64);
    }
    assert!(leader.state.write_id_count() > 8);
    assert_publishes(&older, &leader.state);
    let first = named(&leader_of(&Leader::new(limits)), 1, 0, &[1]);
    assert_eq!(leader.write_all(first), Verdict::ExpiredId);
    // All to one table: the scope stands once.
    for i in 1000..1100_u128 {
        leader.stamp_ms += 7;
        let header = named(&leader, i, 0, &[3]);
        assert_eq!(leader.write_all(header), Verdict::Apply);
    }
    assert!(leader.state.write_id_count() >= 100);
}

#[test]
fn an_import_goes_on_through_split_and_merge() {
    let mut leader = leader();
    assert_eq!(leader.write_all(chunk(0, &[2, 3])), Verdict::Apply);
    assert_eq!(
        leader.write_all(chunk(1, &[])),
        Verdict::Apply,
        "no rows for it"
    );
    assert_eq!(leader.state.import_progress(1), Some(2));
    assert_eq!(leader.write_all(chunk(2, &[2])), Verdict::Apply);
    assert_eq!(leader.state.import_progress(1), Some(2), "unit 3 is behind");
    let older = leader.state.clone();
    let order = split(5, vec![moved(3)]);
    let at = leader.state.next_offset();
    let child = leader.state.carve(shard(1), &order, at).expect("applies");
    assert_eq!(leader.say(Payload::Split(order)), Verdict::Apply);
    assert_publishes(&older, &leader.state);
    assert_eq!(leader.state.import_progress(1), Some(3));
    assert_eq!(child.import_progress(1), Some(2));
    let mut heir = Leader {
        state: child,
        ..Leader::new(FoldLimits::default())
    };
    let claim = Record::claim(heir.claim.0, heir.claim.1, manifest(2), 0);
    assert_eq!(heir.fold(&claim), Verdict::Apply);
    assert_eq!(heir.write_all(chunk(0, &[3])), Verdict::DuplicateId);
    assert_eq!(heir.write_all(chunk(3, &[3])), Verdict::Apply);
    assert_eq!(heir.seal(6), Verdict::Apply);
    let older = leader.state.clone();
    let order = merge(6, &heir.state);
    assert_eq!(leader.say(Payload::Merge(order)), Verdict::Apply);
    assert_publishes(&older, &leader.state);
    let known = vec![whole(2)];
    let overlap = Verdict::Overlaps {
        covered: known.clone(),
    };
    assert_eq!(leader.write_all(chunk(2, &[2, 3])), overlap);
    assert_eq!(leader.write_besides(chunk(2, &[3]), known), Verdict::Apply);
    assert_eq!(leader.write_all(chunk(2, &[2, 3])), Verdict::DuplicateId);
    assert_eq!(leader.write_all(chunk(4, &[2, 3])), Verdict::Apply);
    // Unit 2 has not heard of chunk 3: of the joined unit nothing can be told.
    let joined = recut(7, vec![], vec![join(2, 3, slots(0, 65_536))]);
    assert_eq!(leader.say(Payload::Recut(joined)), Verdict::Apply);
    assert_eq!(leader.write_all(chunk(5, &[2])), Verdict::ExpiredId);
    assert_publishes(&older, &leader.state);
}

#[test]
fn units_that_an_import_reached_alike_may_be_joined() {
    let mut leader = leader();
    for number in 0..3 {
        assert_eq!(leader.write_all(chunk(number, &[2, 3])), Verdict::Apply);
    }
    let joined = recut(7, vec![], vec![join(2, 3, slots(0, 65_536))]);
    assert_eq!(leader.say(Payload::Recut(joined)), Verdict::Apply);
    assert_eq!(leader.write_all(chunk(2, &[2])), Verdict::DuplicateId);
    assert_eq!(leader.write_all(chunk(3, &[2])), Verdict::Apply);
    assert_eq!(leader.state.import_progress(1), Some(4));
}

#[test]
fn an_import_from_before_partitions_is_refused_once_units_come_in() {
    let (mut source, mut target) = (leader(), Leader::with_tables(FoldLimits::default(), 0));
    assert_eq!(target.put(schema(table(8), 1, 3)), Verdict::Apply);
    assert_eq!(target.write(chunk(0, &[8])), Verdict::Apply);
    assert_eq!(target.write_all(chunk(0, &[8])), Verdict::DuplicateId);
    assert_eq!(source.seal(5), Verdict::Apply);
    let order = merge(5, &source.state);
    assert_eq!(target.say(Payload::Merge(order)), Verdict::Apply);
    assert_eq!(target.write_all(chunk(1, &[8])), Verdict::ExpiredId);
}

/// Slots of the made-up table; its id is 1000.
const SLOTS: u32 = 8;
const OF: u128 = 1000;

#[derive(Clone, Debug)]
enum Step {
    /// All or some of a shard's units ask for a part of a request or a chunk.
    Ask {
        shard: usize,
        import: bool,
        number: u64,
        part: u32,
        units: u8,
    },
    Split {
        shard: usize,
        units: u8,
        cut: u32,
    },
    Merge {
        source: usize,
        target: usize,
    },
    Recut {
        shard: usize,
        unit: usize,
        join: bool,
        cut: u32,
    },
    /// The replica is opened anew from what was published.
    Reopen {
        shard: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let ask = (0_usize..4, any::<bool>(), 0_u64..3, 0_u32..2, any::<u8>());
    prop_oneof![
        12 => ask.prop_map(|(shard, import, number, part, units)| {
            Step::Ask { shard, import, number, part, units }
        }),
        2 => (0_usize..4, any::<u8>(), 0..SLOTS).prop_map(|(shard, units, cut)| {
            Step::Split { shard, units, cut }
        }),
        2 => (0_usize..4, 0_usize..4).prop_map(|(source, target)| Step::Merge { source, target }),
        3 => (0_usize..4, 0_usize..4, any::<bool>(), 0..SLOTS).prop_map(|(shard, unit, join, cut)| {
            Step::Recut { shard, unit, join, cut }
        }),
        1 => (0_usize..4).prop_map(|shard| Step::Reopen { shard }),
    ]
}

struct World {
    shards: Vec<(Leader, FoldState)>,
    /// How often a row (import or id, number, part, slot) was applied.
    rows: HashMap<(bool, u64, u32, u32), u32>,
    next: u128,
}

type Rows = Vec<(bool, u64, u32, u32)>;

impl World {
    fn new(limits: FoldLimits) -> Self {
        let mut leader = Leader::new(limits);
        assert_eq!(leader.put_part(1001, OF, slots(0, SLOTS)), Verdict::Apply);
        let state = leader.state.clone();
        Self {
            shards: vec![(leader, state)],
            rows: HashMap::new(),
            next: 2000,
        }
    }

    fn fresh(&mut self) -> u128 {
        self.next += 1;
        self.next
    }

    fn units(&self, shard: usize) -> Vec<u128> {
        let schemas = self.shards[shard].0.state.schemas();
        let mut units: Vec<u128> = schemas.map(|s| s.table.0.0).collect();
        units.sort_unstable();
        units
    }

    fn range(&self, shard: usize, unit: u128) -> SlotRange {
        let bounds = self.shards[shard]
            .0
            .state
            .bounds(table(unit))
            .expect("a part");
        range_of(bounds)
    }

    /// Sends it as a leader does, until it is applied or refused.
    fn ask(
        &mut self,
        shard: usize,
        import: bool,
        number: u64,
        part: u32,
        units: &[u128],
    ) -> Verdict {
        let rows = |range: SlotRange| -> Rows {
            (range.from..range.to)
                .map(|slot| (import, number, part, slot))
                .collect()
        };
        let mut header = to_tables(units);
        if import {
            header.import = Some(ImportChunk {
                import: 1,
                chunk: number,
                part,
                last_part: part == 1,
            });
        } else {
            let id = write_id(100 * DAY_MS + number * 1000, u128::from(number));
            header.write_id = Some(WriteIdPart { id, part });
        }
        let mut besides = vec![];
        for _ in 0..3 {
            let verdict = self.shards[shard]
                .0
                .write_besides(header.clone(), besides.clone());
            let out = |unit: u128, slot: u32| {
                besides.iter().any(|c: &Covered| {
                    let bounds = c.bounds.as_deref().map(range_of);
                    c.unit == table(unit) && bounds.is_none_or(|b| b.contains(slot))
                })
            };
            match verdict {
                Verdict::Apply => {
                    for unit in units {
                        for row in rows(self.range(shard, *unit)) {
                            if !out(*unit, row.3) {
                                let count = self.rows.entry(row).or_default();
                                *count += 1;
                                assert_eq!(*count, 1, "{row:?} is doubled");
                            }
                        }
                    }
                    return Verdict::Apply;
                }
                Verdict::DuplicateId => {
                    for unit in units {
                        for row in rows(self.range(shard, *unit)) {
                            assert!(self.rows.contains_key(&row), "{row:?} is lost");
                        }
                    }
                    return Verdict::DuplicateId;
                }
                Verdict::Overlaps { covered } => {
                    for c in &covered {
                        let own = self.range(shard, c.unit.0.0);
                        let bounds = c.bounds.as_deref().map_or(own, range_of);
                        for row in rows(bounds) {
                            assert!(self.rows.contains_key(&row), "{row:?} is lost");
                        }
                    }
                    besides = covered;
                }
                other => return other,
            }
        }
        panic!("what overlaps is told once and then holds");
    }

    fn split(&mut self, at: usize, mask: u8, slot: u32) {
        let mut moves = vec![];
        for (i, unit) in self.units(at).into_iter().enumerate() {
            let range = self.range(at, unit);
            if range.from < slot && slot < range.to {
                let right = self.fresh();
                moves.push(cut(
                    unit,
                    slots(range.from, slot),
                    right,
                    slots(slot, range.to),
                ));
            } else if mask >> (i % 8) & 1 == 1 {
                moves.push(moved(unit));
            }
        }
        let order = Split {
            manifest: manifest(1),
            ..split(self.fresh(), moves)
        };
        let offset = self.shards[at].0.state.next_offset();
        let Some(child) = self.shards[at].0.state.carve(shard(1), &order, offset) else {
            assert!(order.moves.is_empty());
            return;
        };
        assert_eq!(self.shards[at].0.say(Payload::Split(order)), Verdict::Apply);
        let mut heir = Leader {
            state: child,
            ..Leader::new(FoldLimits::default())
        };
        let claim = Record::claim(heir.claim.0, heir.claim.1, manifest(1), 0);
        assert_eq!(heir.fold(&claim), Verdict::Apply);
        let state = heir.state.clone();
        self.shards.push((heir, state));
    }

    fn merge(&mut self, source: usize, target: usize) {
        let number = self.fresh();
        let (mut source, _) = self.shards.remove(source);
        let target = if target < self.shards.len() {
            target
        } else {
            0
        };
        assert_eq!(source.seal(number), Verdict::Apply);
        let order = merge(number, &source.state);
        let bytes = Record::sequenced(source.claim, Seq(0), 0, Payload::Merge(order)).encode();
        let order = Record::decode(&bytes).expect("decodes").payload;
        assert_eq!(self.shards[target].0.say(order), Verdict::Apply);
    }

    fn recut(&mut self, at: usize, unit: usize, joins: bool, slot: u32) {
        let units = self.units(at);
        let Some(left) = units.get(unit % units.len().max(1)).copied() else {
            return;
        };
        let range = self.range(at, left);
        let order = if joins {
            let right = units.iter().find(|u| self.range(at, **u).from == range.to);
            let Some(right) = right.copied() else {
                return;
            };
            let bounds = slots(range.from, self.range(at, right).to);
            recut(self.fresh(), vec![], vec![join(left, right, bounds)])
        } else if range.from < slot && slot < range.to {
            let right = self.fresh();
            let one = cut(left, slots(range.from, slot), right, slots(slot, range.to));
            recut(self.fresh(), vec![one], vec![])
        } else {
            return;
        };
        assert_eq!(self.shards[at].0.say(Payload::Recut(order)), Verdict::Apply);
    }

    fn step(&mut self, step: &Step) {
        let count = self.shards.len();
        match *step {
            Step::Ask {
                shard,
                import,
                number,
                part,
                units,
            } => {
                let shard = shard % count;
                let mut asked = self.units(shard);
                let mut bits = (0..8).cycle().map(|i| units >> i & 1 == 1);
                asked.retain(|_| bits.next().unwrap_or_default());
                if !asked.is_empty() {
                    self.ask(shard, import, number, part, &asked);
                }
            }
            Step::Split { shard, units, cut } if count < 4 => self.split(shard % count, units, cut),
            Step::Split { .. } => {}
            Step::Merge { source, target } => {
                if count > 1 {
                    self.merge(source % count, target % (count - 1));
                }
            }
            Step::Recut {
                shard,
                unit,
                join,
                cut,
            } => self.recut(shard % count, unit, join, cut),
            Step::Reopen { shard } => {
                let (leader, published) = &mut self.shards[shard % count];
                assert_publishes(published, &leader.state);
                *published = leader.state.clone();
                leader.state = FoldState::from_snapshot(&published.to_snapshot());
            }
        }
    }
}

fn range_of(bounds: &PartitionBounds) -> SlotRange {
    match bounds.extent {
        Extent::Slots(range) => range,
        _ => panic!("slots"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// However units are cut, joined and moved between tries: no row is applied twice, and none is
    /// taken for applied that is not. In the end everything can be brought in.
    #[test]
    fn every_row_is_applied_once(steps in prop::collection::vec(step(), 1..60), tight: bool) {
        let limits = FoldLimits {
            write_ids_max: if tight { 3 } else { 1000 },
            write_id_parts_max: if tight { 5 } else { 1000 },
            ..FoldLimits::default()
        };
        let mut world = World::new(limits);
        for step in &steps {
            world.step(step);
        }
        for shard in 0..world.shards.len() {
            for (number, part) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
                let units = world.units(shard);
                if !units.is_empty() {
                    let verdict = world.ask(shard, false, number, part, &units);
                    prop_assert!(
                        tight || matches!(verdict, Verdict::Apply | Verdict::DuplicateId),
                        "{:?}", verdict
                    );
                }
            }
        }
        let ids = world.rows.keys().filter(|row| !row.0).count();
        prop_assert!(tight || ids == 6 * SLOTS as usize);
    }
}
