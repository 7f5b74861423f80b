//! The bytes of manifests, and what they refuse.

use std::path::Path;

use shoal_types::{
    Incarnation, ManifestVersion, Offset, PartitionId, RowVersion, ShardId, TableId, WriterId,
};
use shoal_wal::fold::FoldState;
use shoal_wal::record::AttemptId;
use uuid::Uuid;

use super::format::LOSSES_MAX;
use super::*;
use crate::PredicateDelete;

fn manifest() -> Manifest {
    let deletes = vec![PredicateDelete {
        version: RowVersion(9 << 16),
        predicate: "v < 5".into(),
    }];
    let files = TableFiles {
        files: Vec::new(),
        deletes,
        flushed_through: Some(Offset(8)),
    };
    Manifest {
        version: ManifestVersion(7),
        publisher: Publisher {
            term: 3,
            writer: WriterId(Uuid::from_u128(1)),
            attempt: AttemptId(Uuid::from_u128(2)),
        },
        published_ms: 1_700_000_000_000,
        predecessor: Some(Predecessor {
            version: ManifestVersion(6),
            hash: 42,
        }),
        cluster: "default".into(),
        shard: ShardId::from_bytes([3; 16]),
        body: Body::Snapshot(Box::new(Snapshot {
            log: LogIdentity {
                topic: "shoal.default".into(),
                ..LogIdentity::default()
            },
            replay_offset: Offset(0),
            fold: FoldState::default().to_snapshot(),
            tables: vec![(TableId::from_bytes([4; 16]), files)],
            residue: Some(Residue {
                path: "default/shard/x/residue/y".into(),
                bytes: 10,
                crc: 11,
                rows: 12,
            }),
            obsolete: vec![Obsolete {
                path: "default/table/z.parquet".into(),
                since_ms: 13,
                version: ManifestVersion(5),
            }],
            // As written before there were any: they have a default.
            losses: Vec::new(),
        })),
    }
}

/// `UPDATE_GOLDEN=1` writes the file anew; do that only with a new format version and a note in
/// `docs/decisions/`.
#[test]
fn the_golden_manifest_still_reads_as_it_was_written() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/manifest-v1.bin");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, manifest().encode().expect("encode")).expect("write");
    }
    let bytes = std::fs::read(path).expect("golden file");
    assert_eq!(Manifest::decode(&bytes).expect("decode"), manifest());
}

#[test]
fn an_edit_that_removes_the_residue_is_read_back_as_such() {
    let edit = |residue| Manifest {
        body: Body::Edit(Box::new(Edit {
            residue,
            ..Edit::default()
        })),
        ..manifest()
    };
    for residue in [None, Some(ResidueEdit::Removed)] {
        let written = edit(residue);
        let bytes = written.encode().expect("encode");
        assert_eq!(Manifest::decode(&bytes).expect("decode"), written);
    }
}

#[test]
fn no_flipped_or_missing_byte_of_a_manifest_goes_unnoticed() {
    let bytes = manifest().encode().expect("encode");
    for at in 0..bytes.len() {
        let mut hurt = bytes.to_vec();
        hurt[at] ^= 1;
        assert!(Manifest::decode(&hurt).is_err(), "byte {at}");
        assert!(Manifest::decode(&bytes[..at]).is_err(), "cut at {at}");
    }
}

fn file(path: &str, versions: (u64, u64), times: (i64, i64)) -> FileEntry {
    FileEntry {
        file: shoal_sst::SstFile {
            path: path.into(),
            table: TableId::from_bytes([4; 16]),
            partition: PartitionId::from_bytes([5; 16]),
            incarnation: Incarnation(0),
            schema_version: 1,
            column_ids: Vec::new(),
            bytes: 1,
            rows: 1,
            version_min: RowVersion(versions.0),
            version_max: RowVersion(versions.1),
            key_min: vec![0],
            key_max: vec![9],
            time_range: Some(times),
            level: 0,
            has_deletes: false,
            has_partial: false,
            series: 1,
            tail_bytes: 0,
            tail_crc: 0,
            bounds: None,
        },
        deletes_through: RowVersion(0),
    }
}

fn state(replay: u64) -> ManifestState {
    let publisher = manifest().publisher;
    let mut state = ManifestState::before_first(ShardId::from_bytes([3; 16]), "c", publisher);
    state.hash = 1;
    let mut fold = FoldState::default();
    let schema = std::sync::Arc::new(shoal_types::TableSchema {
        table: TableId::from_bytes([4; 16]),
        version: 1,
        incarnation: Incarnation(0),
        columns: Vec::new(),
        key: Vec::new(),
        time_column: None,
        mode: shoal_types::TableMode::Upsert,
        ttl_ms: None,
        origin: shoal_types::TableOrigin::Sql,
        next_column_id: shoal_types::ColumnId(0),
        part_of: None,
    });
    let mut snapshot = fold.to_snapshot();
    snapshot.schemas.push(schema);
    fold = FoldState::from_snapshot(&snapshot);
    if replay > 0 {
        fold.pass(Offset(replay - 1));
    }
    state.fold = fold;
    state
}

fn checked(old: &ManifestState, replay: u64, add: Vec<FileEntry>) -> Result<(), String> {
    let mut fold = old.fold.clone();
    if replay > 0 {
        fold.pass(Offset(replay - 1));
    }
    let edit = Edit {
        fold: Some(fold.edit_since(&old.fold)),
        tables: vec![(
            TableId::from_bytes([4; 16]),
            TableEdit {
                add,
                ..TableEdit::default()
            },
        )],
        ..Edit::default()
    };
    let mut reference = old.reference;
    reference.version = old.version().next();
    let new = old.apply(&edit, reference, old.publisher, 1)?;
    invariants::check(old, &new, &edit)
}

#[test]
fn a_manifest_that_would_lose_or_double_rows_is_not_published() {
    let base = state(5);
    let fine = || file("a", (1 << 16, 2 << 16), (0, 9));
    assert_eq!(checked(&base, 6, vec![fine()]), Ok(()));
    let apart = file("b", (1 << 16, 2 << 16), (10, 19));
    assert_eq!(checked(&base, 6, vec![fine(), apart]), Ok(()));
    let refused = [
        ("replay", vec![file("a", (1 << 16, 6 << 16), (0, 9))]),
        ("twice", vec![fine(), fine()]),
        (
            "interleave",
            vec![fine(), file("b", (2 << 16, 3 << 16), (5, 19))],
        ),
        ("reversed", vec![file("a", (2 << 16, 1 << 16), (0, 9))]),
    ];
    for (word, files) in refused {
        let error = checked(&base, 6, files).expect_err(word);
        assert!(error.contains(word), "{word}: {error}");
    }
    let mut lower = state(3);
    lower.reference.version = base.version().next();
    let error = invariants::check(&base, &lower, &Edit::default()).expect_err("back");
    assert!(error.contains("goes back"), "{error}");
}

#[test]
fn the_number_of_files_is_kept_through_every_kind_of_edit_and_a_snapshot() {
    let table = TableId::from_bytes([4; 16]);
    let sum = |state: &ManifestState| {
        let files = state.tables.values().flat_map(|t| &t.files);
        files.fold((0, 0), |(n, bytes), f| (n + 1, bytes + f.file.bytes))
    };
    let sized = |path: &str, bytes| {
        let mut entry = file(path, (1 << 16, 2 << 16), (0, 9));
        entry.file.bytes = bytes;
        entry
    };
    let edits = [
        TableEdit {
            add: vec![sized("a", 10), sized("b", 20)],
            ..TableEdit::default()
        },
        TableEdit {
            remove: vec!["a".into()],
            add: vec![sized("c", 5)],
            ..TableEdit::default()
        },
        TableEdit {
            remove: vec!["b".into(), "c".into()],
            ..TableEdit::default()
        },
        TableEdit {
            add: vec![sized("d", 7)],
            ..TableEdit::default()
        },
        TableEdit {
            dropped: true,
            ..TableEdit::default()
        },
    ];
    let expected = [(2, 30), (2, 25), (0, 0), (1, 7), (0, 0)];
    let mut now = state(5);
    for (edit, expected) in edits.into_iter().zip(expected) {
        let edit = Edit {
            tables: vec![(table, edit)],
            ..Edit::default()
        };
        now = now
            .apply(&edit, now.reference, now.publisher, 1)
            .expect("applies");
        assert_eq!((now.files.count, now.files.bytes), expected);
        assert_eq!(sum(&now), expected);
        let mut manifest = manifest();
        manifest.body = Body::Snapshot(Box::new(now.to_snapshot()));
        let read = ManifestState::from_snapshot(&manifest, 1, 1).expect("reads");
        assert_eq!(read.files, now.files);
    }
}

fn loss(from: u64, to: u64) -> Loss {
    Loss {
        kind: LossKind::LogAdopted,
        from: Offset(from),
        to: Offset(to),
        at_ms: 1,
        term: 2,
        node: "n".into(),
        what: "w".into(),
        reason: "r".into(),
    }
}

#[test]
fn another_log_takes_a_place_only_above_it_and_with_a_trace() {
    let mut base = state(5);
    base.log.topic = "old".into();
    let adopt = |shift: u64, begin: u64, losses: Vec<Loss>| {
        let mut fold = base.fold.clone();
        fold.begin_log(Offset(begin));
        let edit = Edit {
            log: Some(LogIdentity {
                id: Some(shoal_types::LogId::SOLE),
                shift,
                ..LogIdentity::default()
            }),
            fold: Some(fold.edit_since(&base.fold)),
            losses,
            ..Edit::default()
        };
        let mut reference = base.reference;
        reference.version = base.version().next();
        let new = base.apply(&edit, reference, base.publisher, 1)?;
        invariants::check(&base, &new, &edit)
    };
    assert_eq!(adopt(100, 100, vec![loss(5, 100)]), Ok(()));
    let refused = [
        ("nothing says so", adopt(100, 100, Vec::new())),
        ("nothing says so", adopt(100, 100, vec![loss(5, 90)])),
        ("beginning", adopt(101, 100, vec![loss(5, 100)])),
        ("begin again", adopt(0, 5, vec![loss(4, 5)])),
    ];
    for (word, outcome) in refused {
        let error = outcome.expect_err(word);
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn of_too_many_losses_the_oldest_become_one_and_nothing_given_up_is_forgotten() {
    let mut now = state(5);
    for n in 0..LOSSES_MAX as u64 + 9 {
        let edit = Edit {
            losses: vec![loss(10 * n, 10 * n + 1)],
            ..Edit::default()
        };
        let next = now.apply(&edit, now.reference, now.publisher, 1);
        now = next.expect("applies");
    }
    assert_eq!(now.losses.len(), LOSSES_MAX);
    for n in 0..LOSSES_MAX as u64 + 9 {
        let covered = now.losses.iter().any(|l| l.covers(Offset(10 * n)));
        assert!(covered, "{n}");
    }
    let mut manifest = manifest();
    manifest.body = Body::Snapshot(Box::new(now.to_snapshot()));
    let bytes = manifest.encode().expect("encode");
    let read = Manifest::decode(&bytes).expect("decode");
    let read = ManifestState::from_snapshot(&read, 1, 1).expect("reads");
    assert_eq!(read.losses, now.losses);
}
