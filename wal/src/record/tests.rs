use bytes::Bytes;
use proptest::prelude::*;
use shoal_types::{
    Column, ColumnId, ColumnType, Epoch, Extent, Incarnation, KeyRange, ManifestVersion, Offset,
    PartitionBounds, PartitionBy, PartitionMethod, ProcedureId, Seq, ShardId, SlotRange, TableId,
    TableMode, TableOrigin, TableSchema, TimePrecision, Within, WriteId, WriterId,
};
use std::sync::Arc;
use ulid::Ulid;
use uuid::Uuid;

use super::*;

fn table() -> TableId {
    TableId(Ulid(0x0189_0000_0000_0000_0000_0000_0000_0007))
}

fn schema() -> TableSchema {
    TableSchema {
        table: table(),
        version: 1,
        incarnation: Incarnation(0),
        columns: vec![Column {
            id: ColumnId(0),
            name: "ts".into(),
            column_type: ColumnType::Timestamp {
                precision: TimePrecision::Millisecond,
                utc: false,
            },
            nullable: false,
            default: None,
        }],
        key: vec![ColumnId(0)],
        time_column: Some(ColumnId(0)),
        mode: TableMode::Upsert,
        ttl_ms: Some(86_400_000),
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(1),
        part_of: None,
    }
}

/// One record of every kind, with every optional field once set and once not.
fn one_of_each() -> Vec<Record> {
    let epoch = Epoch { term: 7, claim: 2 };
    let writer = WriterId(Uuid::from_u128(0x1234_5678_9abc_4def_8012_3456_789a_bcde));
    let manifest = ManifestRef {
        version: ManifestVersion(41),
        attempt: AttemptId(Uuid::from_u128(0xfeed_f00d)),
    };
    let sequenced = |seq, payload| Record::sequenced((epoch, writer), Seq(seq), 1_700_000, payload);
    let header = WriteHeader {
        generation: 3,
        tables: vec![TableWrite {
            table: table(),
            incarnation: Incarnation(1),
            columns: vec![ColumnId(0), ColumnId(5)],
            rows: 2,
            delete_where: Some("ts < 5".into()),
        }],
        write_id: Some(WriteIdPart {
            id: WriteId(0x0189_dead_beef_7000_8000_0000_0000_0001),
            part: 1,
        }),
        import: Some(ImportChunk {
            import: u128::MAX - 5,
            chunk: 9,
            part: 0,
            last_part: true,
        }),
        read_at: Some(Offset(99)),
        besides: None,
    };
    vec![
        Record::genesis(Genesis {
            cluster: "c".into(),
            shard: ShardId(Ulid(5)),
            topic: "shoal.c.5".into(),
        }),
        Record::claim(epoch, writer, manifest, 1_699_999),
        Record::barrier(Uuid::from_u128(77), 1_700_001),
        sequenced(
            0,
            Payload::Write(Write {
                header,
                body: Bytes::from_static(b"row blocks"),
            }),
        ),
        sequenced(
            1,
            Payload::Write(Write {
                header: WriteHeader::default(),
                body: Bytes::new(),
            }),
        ),
        sequenced(
            2,
            Payload::Schema(vec![
                SchemaChange::Put(Arc::new(schema())),
                SchemaChange::Drop { table: table() },
            ]),
        ),
        sequenced(3, Payload::Manifest(manifest)),
    ]
}

/// The records that came with partitions: one of every kind, and what a write and a schema then say.
fn one_of_each_of_ownership() -> Vec<Record> {
    let epoch = Epoch { term: 7, claim: 2 };
    let writer = WriterId(Uuid::from_u128(0x1234_5678_9abc_4def_8012_3456_789a_bcde));
    let manifest = ManifestRef {
        version: ManifestVersion(41),
        attempt: AttemptId(Uuid::from_u128(0xfeed_f00d)),
    };
    let procedure = ProcedureId(Ulid(0x0189_0000_0000_0000_0000_0000_0000_0051));
    let unit = |number| TableId(Ulid(number));
    let of = |method| PartitionBy {
        method,
        columns: vec![ColumnId(0)],
    };
    let slots = |from, to| PartitionBounds {
        by: of(PartitionMethod::Hash),
        extent: Extent::Slots(SlotRange { from, to }),
    };
    let keys = PartitionBounds {
        by: of(PartitionMethod::Range),
        extent: Extent::Keys(KeyRange {
            from: vec![1, 2],
            to: None,
        }),
    };
    let within = Within {
        columns: vec![ColumnId(0)],
        range: KeyRange {
            from: Vec::new(),
            to: Some(vec![9]),
        },
    };
    let values = PartitionBounds {
        by: of(PartitionMethod::List),
        extent: Extent::Values {
            values: vec![vec![5], vec![6, 7]],
            within: Some(within),
        },
    };
    let cut = Move {
        unit: unit(3),
        cut: Some(UnitCut {
            left: slots(0, 5),
            right_unit: unit(4),
            right: slots(5, 9),
        }),
    };
    let header = WriteHeader {
        generation: 3,
        write_id: Some(WriteIdPart {
            id: WriteId(0x0189_dead_beef_7000_8000_0000_0000_0001),
            part: 1,
        }),
        besides: Some(vec![
            Covered {
                unit: unit(3),
                bounds: None,
            },
            Covered {
                unit: unit(4),
                bounds: Some(Arc::new(values)),
            },
        ]),
        ..WriteHeader::default()
    };
    let own = SchemaChange::Own {
        table: table(),
        of: unit(9),
        bounds: Arc::new(keys),
    };
    let payloads = vec![
        Payload::Split(Split {
            procedure,
            manifest,
            child: ShardId(Ulid(6)),
            moves: vec![
                Move {
                    unit: unit(2),
                    cut: None,
                },
                cut.clone(),
            ],
        }),
        Payload::Seal { procedure },
        Payload::Unseal { procedure },
        Payload::Merge(Merge {
            procedure,
            source: ShardId(Ulid(7)),
            seal: Offset(12),
            manifest,
            fold: Box::new(crate::fold::FoldState::default().to_snapshot()),
        }),
        Payload::Abort { procedure },
        Payload::Recut(Recut {
            procedure,
            manifest,
            cuts: vec![cut],
            joins: vec![Join {
                left: unit(5),
                right: unit(6),
                bounds: slots(0, 9),
            }],
        }),
        Payload::Write(Write {
            header,
            body: Bytes::new(),
        }),
        Payload::Schema(vec![SchemaChange::Put(Arc::new(schema())), own]),
    ];
    let sequenced =
        |(seq, payload)| Record::sequenced((epoch, writer), Seq(seq), 1_700_000, payload);
    (0..).zip(payloads).map(sequenced).collect()
}

#[test]
fn records_of_format_1_are_written_and_read_as_in_the_golden_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/record-v1.bin");
    golden(path, &one_of_each());
}

#[test]
fn records_of_ownership_are_written_and_read_as_in_the_golden_file() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/record-v1-ownership.bin"
    );
    golden(path, &one_of_each_of_ownership());
}

/// A golden file: each record behind its length as u32. Rewritten with `SHOAL_GOLDEN=write`, which
/// only a new format version may need, or another zstd for the `Merge`.
fn golden(path: &str, records: &[Record]) {
    let mut bytes = Vec::new();
    for record in records {
        let encoded = record.encode();
        bytes.extend_from_slice(&(encoded.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&encoded);
    }
    if std::env::var_os("SHOAL_GOLDEN").is_some() {
        std::fs::write(path, &bytes).expect("golden file written");
    }
    let golden = std::fs::read(path).expect("golden file");
    assert!(golden == bytes, "format 1 is written otherwise than before");
    let mut rest = Bytes::from(golden);
    for record in records {
        let length = u32::from_le_bytes(rest.split_to(4)[..].try_into().expect("4 bytes"));
        let encoded = rest.split_to(length as usize);
        assert_eq!(Record::decode(&encoded).as_ref(), Ok(record));
        let id = Record::peek(&encoded).expect("peeks");
        assert_eq!(
            (id.kind, id.epoch, id.seq),
            (record.kind(), record.epoch, record.seq)
        );
    }
    assert!(rest.is_empty());
}

#[test]
fn the_body_of_a_write_is_read_without_a_copy() {
    let encoded = one_of_each()[3].encode();
    let Payload::Write(write) = Record::decode(&encoded).expect("decodes").payload else {
        panic!("a write");
    };
    assert!(encoded.as_ptr_range().contains(&write.body.as_ptr()));
    assert_eq!(&write.body[..], b"row blocks");
}

#[test]
fn each_way_of_being_wrong_has_its_own_error() {
    let good = one_of_each()[1].encode();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = byte;
        Record::decode(&Bytes::from(bytes)).unwrap_err()
    };
    assert_eq!(changed(0, b'x'), RecordError::Foreign);
    assert_eq!(
        Record::decode(&Bytes::new()).unwrap_err(),
        RecordError::Foreign
    );
    assert_eq!(changed(4, 2), RecordError::UnknownVersion { version: 2 });
    let last = good.len() - 1;
    assert!(matches!(
        changed(last, good[last] ^ 1),
        RecordError::Damaged { .. }
    ));
    // An unknown kind with a good crc.
    let mut reserved = good.to_vec();
    reserved[9] = 25;
    let crc = crc32fast::hash(&reserved[9..]);
    reserved[5..9].copy_from_slice(&crc.to_le_bytes());
    let error = Record::decode(&Bytes::from(reserved)).unwrap_err();
    assert_eq!(error, RecordError::UnknownKind { kind: 25 });
    for length in 4..good.len() {
        let cut = Record::decode(&good.slice(..length)).unwrap_err();
        assert!(
            matches!(cut, RecordError::Damaged { .. }),
            "cut to {length}: {cut}"
        );
    }
}

#[test]
fn a_record_over_the_limits_is_not_encoded() {
    let mut record = one_of_each().swap_remove(3);
    let bytes = record.encode().len();
    assert!(record.encode_within(bytes).is_ok());
    assert!(matches!(
        record.encode_within(bytes - 1),
        Err(RecordError::OverLimit { .. })
    ));
    let Payload::Write(write) = &mut record.payload else {
        panic!("a write");
    };
    write.header.tables[0].rows = RECORD_ROWS_MAX + 1;
    assert!(matches!(
        record.encode_within(usize::MAX),
        Err(RecordError::OverLimit { .. })
    ));
    assert!(matches!(
        Record::decode(&record.encode()),
        Err(RecordError::Damaged { .. })
    ));
}

#[test]
fn a_write_header_without_the_fields_of_later_versions_is_read() {
    // What a version would write that knew only the generation.
    #[derive(serde::Serialize)]
    struct Old {
        generation: u64,
    }
    let bytes = rmp_serde::to_vec_named(&Old { generation: 8 }).expect("packs");
    let header: WriteHeader = rmp_serde::from_slice(&bytes).expect("reads");
    assert_eq!(
        header,
        WriteHeader {
            generation: 8,
            ..WriteHeader::default()
        }
    );
}

#[test]
fn a_merge_that_does_not_unpack_is_damage() {
    let bytes = one_of_each_of_ownership()[3].encode();
    let mut short = bytes[..bytes.len() - 3].to_vec();
    let crc = crc32fast::hash(&short[9..]);
    short[5..9].copy_from_slice(&crc.to_le_bytes());
    let error = Record::decode(&Bytes::from(short)).unwrap_err();
    assert!(matches!(error, RecordError::Damaged { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any payload behind a good header and crc, so that the decoders of the kinds see it.
    #[test]
    fn no_bytes_make_the_decoder_panic(kind in 0_u8..32, payload: Vec<u8>, cut in 0_usize..80) {
        let mut bytes = one_of_each()[1].encode()[..codec::HEADER_BYTES].to_vec();
        bytes[9] = kind;
        bytes.extend_from_slice(&payload);
        let crc = crc32fast::hash(&bytes[9..]);
        bytes[5..9].copy_from_slice(&crc.to_le_bytes());
        let bytes = Bytes::from(bytes);
        let _ = Record::decode(&bytes);
        let _ = Record::decode(&bytes.slice(..cut.min(bytes.len())));
    }
}
