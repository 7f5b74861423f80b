//! The fold's rules one by one; [`laws`] checks what holds for any log, [`model`] all small
//! schedules of two leaders.

mod laws;
mod merge;
mod model;
mod ownership;
mod retries;
mod skipping;

use std::sync::Arc;

use bytes::Bytes;
use shoal_types::{
    Column, ColumnId, ColumnType, Epoch, Extent, Incarnation, KeyRange, ManifestVersion, Offset,
    PartitionBounds, PartitionBy, PartitionMethod, ProcedureId, Seq, ShardId, SlotRange, TableId,
    TableMode, TableOrigin, TableSchema, WriteId, WriterId,
};
use ulid::Ulid;
use uuid::Uuid;

use super::*;
use crate::record::{
    AttemptId, Covered, ImportChunk, Join, ManifestRef, Merge, Move, Payload, Record, Recut,
    SchemaChange, Split, TableWrite, UnitCut, Write, WriteHeader, WriteIdPart,
};

fn table(number: u128) -> TableId {
    TableId(Ulid(number))
}

fn schema(table: TableId, version: u32, columns: u32) -> TableSchema {
    let column = |id| Column {
        id: ColumnId(id),
        name: format!("c{id}"),
        column_type: ColumnType::Int64,
        nullable: true,
        default: None,
    };
    TableSchema {
        table,
        version,
        incarnation: Incarnation(0),
        columns: (0..columns).map(column).collect(),
        key: vec![],
        time_column: None,
        mode: TableMode::Append,
        ttl_ms: None,
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(columns),
        part_of: None,
    }
}

fn manifest(version: u64) -> ManifestRef {
    ManifestRef {
        version: ManifestVersion(version),
        attempt: AttemptId(Uuid::from_u128(u128::from(version))),
    }
}

fn writer(number: u128) -> WriterId {
    WriterId(Uuid::from_u128(number))
}

fn epoch(term: u64, claim: u64) -> Epoch {
    Epoch { term, claim }
}

fn write_id(made_ms: u64, rest: u128) -> WriteId {
    WriteId(u128::from(made_ms) << 80 | rest)
}

fn to_tables(tables: &[u128]) -> WriteHeader {
    WriteHeader {
        tables: tables
            .iter()
            .map(|t| TableWrite {
                table: table(*t),
                incarnation: Incarnation(0),
                columns: vec![ColumnId(0), ColumnId(1)],
                rows: 1,
                delete_where: None,
            })
            .collect(),
        ..WriteHeader::default()
    }
}

fn rows(header: WriteHeader) -> Payload {
    Payload::Write(Write {
        header,
        body: Bytes::new(),
    })
}

fn procedure(number: u128) -> ProcedureId {
    ProcedureId(Ulid(number))
}

fn shard(number: u128) -> ShardId {
    ShardId(Ulid(number))
}

fn by(method: PartitionMethod) -> PartitionBy {
    let columns = vec![ColumnId(0)];
    PartitionBy { method, columns }
}

/// Keys from `from` to `to`, as one byte each; 255: no end.
fn keys(from: u8, to: u8) -> PartitionBounds {
    let range = KeyRange {
        from: (from > 0).then_some(from).into_iter().collect(),
        to: (to < 255).then(|| vec![to]),
    };
    PartitionBounds {
        by: by(PartitionMethod::Range),
        extent: Extent::Keys(range),
    }
}

fn slots(from: u32, to: u32) -> PartitionBounds {
    PartitionBounds {
        by: by(PartitionMethod::Hash),
        extent: Extent::Slots(SlotRange { from, to }),
    }
}

fn moved(unit: u128) -> Move {
    Move {
        unit: table(unit),
        cut: None,
    }
}

fn cut(unit: u128, left: PartitionBounds, right_unit: u128, right: PartitionBounds) -> Move {
    Move {
        unit: table(unit),
        cut: Some(UnitCut {
            left,
            right_unit: table(right_unit),
            right,
        }),
    }
}

fn split(number: u128, moves: Vec<Move>) -> Split {
    Split {
        procedure: procedure(number),
        manifest: manifest(1),
        child: shard(77),
        moves,
    }
}

fn recut(number: u128, cuts: Vec<Move>, joins: Vec<Join>) -> Recut {
    Recut {
        procedure: procedure(number),
        manifest: manifest(1),
        cuts,
        joins,
    }
}

fn join(left: u128, right: u128, bounds: PartitionBounds) -> Join {
    Join {
        left: table(left),
        right: table(right),
        bounds,
    }
}

/// Takes a sealed shard in.
fn merge(number: u128, source: &FoldState) -> Merge {
    Merge {
        procedure: procedure(number),
        source: shard(78),
        seal: Offset(source.next_offset().0 - 1),
        manifest: source.manifest().expect("a manifest"),
        fold: Box::new(source.to_snapshot()),
    }
}

/// The state after snapshot and edits is the state itself.
fn assert_publishes(older: &FoldState, newer: &FoldState) {
    let packed = rmp_serde::to_vec_named(&older.to_snapshot()).expect("packs");
    let snapshot: FoldSnapshot = rmp_serde::from_slice(&packed).expect("unpacks");
    let mut opened = FoldState::from_snapshot(&snapshot);
    assert!(opened == *older, "from a snapshot");
    let packed = rmp_serde::to_vec_named(&newer.edit_since(older)).expect("packs");
    let edit: FoldEdit = rmp_serde::from_slice(&packed).expect("unpacks");
    opened.apply_edit(&edit).expect("follows");
    assert!(opened == *newer, "after {edit:?}");
}

/// A log with one leader, folded as it is written.
struct Leader {
    state: FoldState,
    claim: (Epoch, WriterId),
    seq: u64,
    stamp_ms: u64,
}

const DAY_MS: u64 = 86_400_000;

impl Leader {
    fn new(limits: FoldLimits) -> Self {
        let mut leader = Self {
            state: FoldState::new(limits),
            claim: (epoch(1, 0), writer(1)),
            seq: 0,
            stamp_ms: 100 * DAY_MS,
        };
        let claim = Record::claim(leader.claim.0, leader.claim.1, manifest(1), 0);
        assert_eq!(leader.fold(&claim), Verdict::Apply);
        leader
    }

    fn with_tables(limits: FoldLimits, count: u128) -> Self {
        let mut leader = Self::new(limits);
        for t in 1..=count {
            assert_eq!(leader.put(schema(table(t), 1, 3)), Verdict::Apply);
        }
        leader
    }

    fn fold(&mut self, record: &Record) -> Verdict {
        let offset = self.state.next_offset();
        fold(&mut self.state, offset, record)
    }

    fn say(&mut self, payload: Payload) -> Verdict {
        let record = Record::sequenced(self.claim, Seq(self.seq), self.stamp_ms, payload);
        self.seq += 1;
        self.fold(&record)
    }

    fn put(&mut self, schema: TableSchema) -> Verdict {
        self.say(Payload::Schema(vec![SchemaChange::Put(Arc::new(schema))]))
    }

    /// A unit that owns a part of table `of`.
    fn put_part(&mut self, unit: u128, of: u128, bounds: PartitionBounds) -> Verdict {
        self.say(Payload::Schema(vec![
            SchemaChange::Put(Arc::new(schema(table(unit), 1, 3))),
            SchemaChange::Own {
                table: table(unit),
                of: table(of),
                bounds: Arc::new(bounds),
            },
        ]))
    }

    fn write(&mut self, header: WriteHeader) -> Verdict {
        self.say(rows(WriteHeader {
            generation: self.state.generation(),
            ..header
        }))
    }

    /// A record that says what it brings.
    fn write_all(&mut self, header: WriteHeader) -> Verdict {
        self.write_besides(header, vec![])
    }

    fn write_besides(&mut self, header: WriteHeader, besides: Vec<Covered>) -> Verdict {
        self.write(WriteHeader {
            besides: Some(besides),
            ..header
        })
    }

    fn seal(&mut self, number: u128) -> Verdict {
        self.say(Payload::Seal {
            procedure: procedure(number),
        })
    }

    fn abort(&mut self, number: u128) -> Verdict {
        self.say(Payload::Abort {
            procedure: procedure(number),
        })
    }

    fn unseal(&mut self, number: u128) -> Verdict {
        self.say(Payload::Unseal {
            procedure: procedure(number),
        })
    }

    fn last(&self) -> Offset {
        Offset(self.state.next_offset().0 - 1)
    }
}

#[test]
fn a_zombie_a_duplicate_and_whatever_follows_a_gap_do_not_apply() {
    let mut leader = Leader::with_tables(FoldLimits::default(), 1);
    let next = leader.seq;
    let say = |claim, seq| Record::sequenced(claim, Seq(seq), 0, rows(to_tables(&[1])));
    let (mine, other) = (leader.claim, (epoch(1, 0), writer(9)));
    assert_eq!(leader.fold(&say(other, next)), Verdict::NotCurrent);
    assert_eq!(leader.fold(&say(mine, next)), Verdict::Apply);
    assert_eq!(leader.fold(&say(mine, next)), Verdict::Duplicate);
    assert_eq!(leader.fold(&say(mine, next + 2)), Verdict::Gap);
    assert!(leader.state.poisoned());
    assert_eq!(
        leader.fold(&say(mine, next + 1)),
        Verdict::Gap,
        "poisoned until the next claim"
    );
    let reclaim = Record::claim(epoch(1, 1), writer(1), manifest(1), 0);
    assert_eq!(leader.fold(&reclaim), Verdict::Apply);
    assert_eq!(leader.fold(&reclaim), Verdict::Duplicate);
    assert_eq!(leader.fold(&say(mine, next + 1)), Verdict::NotCurrent);
    assert_eq!(
        leader.fold(&say((epoch(1, 1), writer(1)), 0)),
        Verdict::Apply
    );
    let low = Record::claim(epoch(1, 0), writer(7), manifest(9), 0);
    assert_eq!(leader.fold(&low), Verdict::NotCurrent);
    assert_eq!(
        leader.state.manifest(),
        Some(manifest(1)),
        "an ignored claim names nothing"
    );
}

#[test]
fn a_refused_write_consumes_its_seq_and_changes_nothing_else() {
    let mut leader = Leader::with_tables(FoldLimits::default(), 1);
    let before = leader.state.clone();
    let wrong_generation = WriteHeader {
        generation: 5,
        ..to_tables(&[1])
    };
    assert_eq!(leader.say(rows(wrong_generation)), Verdict::WrongGeneration);
    assert_eq!(
        leader.write(to_tables(&[1, 2])),
        Verdict::StaleSchema { table: table(2) }
    );
    let mut truncated = to_tables(&[1]);
    truncated.tables[0].incarnation = Incarnation(1);
    assert_eq!(
        leader.write(truncated),
        Verdict::StaleSchema { table: table(1) }
    );
    let mut unknown_column = to_tables(&[1]);
    unknown_column.tables[0].columns = vec![ColumnId(2), ColumnId(0), ColumnId(3)];
    assert_eq!(
        leader.write(unknown_column),
        Verdict::StaleSchema { table: table(1) }
    );
    assert_eq!(
        leader.state.changed_at(table(1)),
        before.changed_at(table(1))
    );
    assert_eq!(leader.state.next_seq().0, before.next_seq().0 + 4);
    assert_eq!(leader.write(to_tables(&[1])), Verdict::Apply);
}

#[test]
fn a_schema_record_applies_as_a_whole_or_not_and_only_in_order() {
    let mut leader = Leader::with_tables(FoldLimits::default(), 1);
    let put = |t, version| SchemaChange::Put(Arc::new(schema(table(t), version, version + 2)));
    let stale = |t| Verdict::StaleSchema { table: table(t) };
    assert_eq!(
        leader.put(schema(table(2), 2, 3)),
        stale(2),
        "new tables begin at 1"
    );
    assert_eq!(leader.put(schema(table(1), 1, 3)), stale(1));
    assert_eq!(leader.put(schema(table(1), 3, 3)), stale(1));
    let half = vec![put(2, 1), put(1, 3)];
    assert_eq!(leader.say(Payload::Schema(half)), stale(1));
    assert!(leader.state.schema(table(2)).is_none(), "all or none");
    let twice = vec![
        put(2, 1),
        put(2, 2),
        put(1, 2),
        SchemaChange::Drop { table: table(2) },
    ];
    assert_eq!(leader.say(Payload::Schema(twice)), Verdict::Apply);
    assert_eq!(leader.state.table_count(), 1);
    // Built for version 1, but all its columns live on.
    assert_eq!(leader.write(to_tables(&[1])), Verdict::Apply);
    let drop_again = vec![SchemaChange::Drop { table: table(2) }];
    assert_eq!(leader.say(Payload::Schema(drop_again)), stale(2));
}

#[test]
fn an_update_conflicts_with_any_later_change_but_not_with_its_own_parts() {
    let mut leader = Leader::with_tables(FoldLimits::default(), 2);
    let read_at = Offset(leader.state.next_offset().0 - 1);
    let id = write_id(leader.stamp_ms, 1);
    let part = |part| WriteHeader {
        read_at: Some(read_at),
        write_id: Some(WriteIdPart { id, part }),
        ..to_tables(&[1])
    };
    assert_eq!(
        leader.write(to_tables(&[2])),
        Verdict::Apply,
        "another table"
    );
    assert_eq!(leader.write(part(0)), Verdict::Apply);
    assert_eq!(leader.write(part(1)), Verdict::Apply);
    assert_eq!(
        leader.write(part(2)),
        Verdict::Apply,
        "nor with two of them"
    );
    assert_eq!(leader.write(to_tables(&[1])), Verdict::Apply);
    let conflict = Verdict::Conflict { table: table(1) };
    assert_eq!(leader.write(part(3)), conflict, "somebody wrote in between");
    let read_at = Some(Offset(leader.state.next_offset().0 - 1));
    assert_eq!(leader.put(schema(table(2), 2, 4)), Verdict::Apply);
    let update = WriteHeader {
        read_at,
        ..to_tables(&[2])
    };
    assert_eq!(
        leader.write(update),
        Verdict::Conflict { table: table(2) },
        "a schema change"
    );
}

#[test]
fn a_table_whose_last_change_is_forgotten_counts_as_changed() {
    let limits = FoldLimits {
        changed_tables_max: 4,
        ..FoldLimits::default()
    };
    let mut leader = Leader::with_tables(limits, 8);
    assert_eq!(leader.write(to_tables(&[1])), Verdict::Apply);
    let changed = Offset(leader.state.next_offset().0 - 1);
    for t in 2..=8 {
        assert_eq!(leader.write(to_tables(&[t])), Verdict::Apply);
    }
    let update = |at| WriteHeader {
        read_at: Some(at),
        ..to_tables(&[1])
    };
    let early = leader.write(update(changed));
    assert_eq!(
        early,
        Verdict::Conflict { table: table(1) },
        "it cannot be told any more"
    );
    let now = Offset(leader.state.next_offset().0 - 1);
    assert_eq!(leader.write(update(now)), Verdict::Apply);
}

#[test]
fn a_write_id_applies_once_and_not_at_all_once_it_cannot_be_told() {
    let limits = FoldLimits {
        write_ids_max: 32,
        ..FoldLimits::default()
    };
    let mut leader = Leader::with_tables(limits, 1);
    let now = leader.stamp_ms;
    let with = |id, part| WriteHeader {
        write_id: Some(WriteIdPart { id, part }),
        ..to_tables(&[1])
    };
    let first = write_id(now - 1000, 7);
    assert_eq!(leader.write(with(first, 0)), Verdict::Apply);
    assert_eq!(leader.write(with(first, 0)), Verdict::DuplicateId);
    assert_eq!(
        leader.write(with(first, 1)),
        Verdict::Apply,
        "another part of the request"
    );
    assert_eq!(
        leader.write(with(write_id(now - 2 * DAY_MS, 1), 0)),
        Verdict::ExpiredId
    );
    assert_eq!(
        leader.write(with(write_id(now + 2 * DAY_MS, 1), 0)),
        Verdict::ExpiredId
    );
    // More ids than are remembered push the oldest out, which are refused from then on.
    for i in 0..40_u64 {
        assert_eq!(leader.write(with(write_id(now + i, 8), 0)), Verdict::Apply);
        assert!(leader.state.write_id_count() <= 32);
    }
    assert_eq!(leader.write(with(first, 0)), Verdict::ExpiredId);
    assert_eq!(
        leader.write(with(write_id(now + 39, 8), 0)),
        Verdict::DuplicateId
    );
    // A day and a bit later the window is empty again; a clock that ran ahead expires nothing
    // that was not forgotten.
    leader.stamp_ms += DAY_MS + 60_000;
    let later = leader.stamp_ms;
    assert_eq!(leader.write(with(write_id(later, 8), 0)), Verdict::Apply);
    assert_eq!(leader.state.write_id_count(), 1);
    leader.stamp_ms = now + 60_000;
    assert_eq!(
        leader.write(with(write_id(now + 60_000, 8), 0)),
        Verdict::Apply
    );
}

#[test]
fn an_import_resumes_behind_what_is_done() {
    let limits = FoldLimits {
        imports_max: 2,
        ..FoldLimits::default()
    };
    let mut leader = Leader::with_tables(limits, 1);
    let with = |import, chunk, part, last_part| WriteHeader {
        import: Some(ImportChunk {
            import,
            chunk,
            part,
            last_part,
        }),
        ..to_tables(&[1])
    };
    assert_eq!(leader.state.import_progress(1), None);
    assert_eq!(leader.write(with(1, 0, 0, true)), Verdict::Apply);
    assert_eq!(leader.write(with(1, 2, 1, true)), Verdict::Apply);
    assert_eq!(leader.write(with(1, 1, 0, true)), Verdict::Apply);
    assert_eq!(
        leader.state.import_progress(1),
        Some(2),
        "part 0 of chunk 2 is missing"
    );
    assert_eq!(leader.write(with(1, 2, 1, true)), Verdict::DuplicateId);
    assert_eq!(leader.write(with(1, 2, 0, false)), Verdict::Apply);
    assert_eq!(leader.state.import_progress(1), Some(3));
    assert_eq!(leader.write(with(1, 0, 0, true)), Verdict::DuplicateId);
    // Chunks 3 to 89 have no rows for this shard.
    assert_eq!(leader.write(with(1, 90, 0, true)), Verdict::Apply);
    assert_eq!(leader.state.import_progress(1), Some(27));
    assert_eq!(
        leader.write(with(1, 58, 0, true)),
        Verdict::Apply,
        "32 behind is never forgotten"
    );
    assert_eq!(leader.write(with(1, 90, 0, true)), Verdict::DuplicateId);
    assert_eq!(
        leader.write(with(1, u64::MAX, 200, true)),
        Verdict::ExpiredId
    );
    assert_eq!(
        leader.write(with(1, u64::MAX, 0, true)),
        Verdict::Apply,
        "no overflow"
    );
    assert_eq!(leader.write(with(2, 0, 0, true)), Verdict::Apply);
    assert_eq!(leader.write(with(3, 0, 0, true)), Verdict::Apply);
    assert_eq!(
        leader.state.import_progress(1),
        None,
        "the one idle for longest is forgotten"
    );
}

#[test]
fn the_manifest_version_only_rises() {
    let mut leader = Leader::new(FoldLimits::default());
    assert_eq!(leader.say(Payload::Manifest(manifest(5))), Verdict::Apply);
    assert_eq!(leader.say(Payload::Manifest(manifest(4))), Verdict::Noted);
    let lower = Record::claim(epoch(2, 0), writer(2), manifest(3), 0);
    assert_eq!(leader.fold(&lower), Verdict::Apply);
    assert_eq!(leader.state.manifest(), Some(manifest(5)));
    let higher = Record::claim(epoch(3, 0), writer(3), manifest(6), 0);
    assert_eq!(leader.fold(&higher), Verdict::Apply);
    assert_eq!(leader.state.manifest(), Some(manifest(6)));
}

#[test]
fn an_offset_folded_already_changes_nothing() {
    let mut leader = Leader::with_tables(FoldLimits::default(), 1);
    let claim = Record::claim(epoch(9, 0), writer(9), manifest(9), 0);
    let before = leader.state.clone();
    assert_eq!(
        fold(&mut leader.state, Offset(0), &claim),
        Verdict::Duplicate
    );
    assert!(leader.state == before);
    leader.state.pass(before.next_offset());
    assert_eq!(leader.state.next_offset(), before.next_offset().next());
}

#[test]
fn an_edit_fits_only_the_state_it_was_made_from() {
    let mut leader = Leader::with_tables(FoldLimits::default(), 1);
    let mut older = leader.state.clone();
    assert_eq!(leader.write(to_tables(&[1])), Verdict::Apply);
    let edit = leader.state.edit_since(&older);
    let mut newer = leader.state.clone();
    assert!(newer.apply_edit(&edit).is_err());
    assert!(newer == leader.state);
    older.apply_edit(&edit).expect("fits");
    assert!(older == leader.state);
}

/// Prints; run with `--ignored --nocapture`, best under `--release`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods)]
fn what_a_usual_fold_costs() {
    let mut leader = Leader::with_tables(FoldLimits::default(), 100_000);
    let mut header = to_tables(&[1]);
    header.tables[0].columns = (0..3).map(ColumnId).collect();
    let mut snapshots = Vec::new();
    let rounds = 400_000_u64;
    // A snapshot every 1000 records makes the maps copy paths, as frozen memtables do.
    for spread in [1, 10, 100_000] {
        let mut record =
            Record::sequenced(leader.claim, Seq(0), leader.stamp_ms, rows(header.clone()));
        let began = std::time::Instant::now();
        for i in 0..rounds {
            if i % 1000 == 0 {
                snapshots = vec![leader.state.clone()];
            }
            if let Payload::Write(write) = &mut record.payload {
                write.header.tables[0].table = table(u128::from(i * 7919 % spread) + 1);
            }
            record.seq = Seq(leader.seq);
            leader.seq += 1;
            assert_eq!(leader.fold(&record), Verdict::Apply);
        }
        let each = began.elapsed().as_nanos() / u128::from(rounds);
        println!("{each} ns a fold, writing to {spread} of 100,000 tables");
    }
    assert_eq!(snapshots.len(), 1);
    let began = std::time::Instant::now();
    for i in 0..rounds {
        if i % 1000 == 0 {
            snapshots = vec![leader.state.clone()];
        }
        let id = write_id(leader.stamp_ms + i / 10, u128::from(i));
        let with_id = WriteHeader {
            write_id: Some(WriteIdPart { id, part: 0 }),
            ..header.clone()
        };
        assert_eq!(leader.write_all(with_id), Verdict::Apply);
    }
    let each = began.elapsed().as_nanos() / u128::from(rounds);
    println!("{each} ns a fold with a write id");
    let began = std::time::Instant::now();
    let older = snapshots.swap_remove(0);
    assert_eq!(leader.put(schema(table(200_000), 1, 3)), Verdict::Apply);
    let edit = leader.state.edit_since(&older);
    println!(
        "{:?} for an edit after 1000 writes and a table made",
        began.elapsed()
    );
    assert_eq!(edit.schemas_put.len(), 1);
}
