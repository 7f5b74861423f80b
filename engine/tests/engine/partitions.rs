//! Partitions as the engine's users see them: where rows go, what one view shows, and what is left
//! of changes that were broken off.

use std::collections::BTreeSet;

use shoal_engine::{
    Database, EngineError, NewPartition, NewPartitions, NewTable, Read, TableHandle, WriteError,
    WriteOptions,
};
use shoal_types::{ColumnId, Extent, KeyRange, PartitionBy, PartitionMethod, TableMode};

use super::support::*;

fn shards(count: usize) -> shoal_engine::EngineConfig {
    shoal_engine::EngineConfig {
        shards: count,
        ..config()
    }
}

/// Hash partitions by host.
fn by_host(count: u32) -> NewPartitions {
    NewPartitions::hash(vec![ColumnId(0)], count)
}

async fn make_parted(db: &Database, name: &str, partitions: NewPartitions) -> TableHandle {
    let table = NewTable {
        partitions: Some(partitions),
        ..new_table(name, TableMode::Upsert)
    };
    let made = db.create_tables(vec![table], false).await;
    made.expect("create").remove(0)
}

/// All rows of all partitions; the rows of a shard are seen at one position.
async fn everything(db: &Database, table: &TableHandle) -> Rows {
    let partitions = table.partitions();
    let views = db
        .read_all(&partitions, &Read::default())
        .await
        .expect("views");
    let mut all = Rows::new();
    let mut positions = BTreeSet::new();
    for (partition, view) in partitions.iter().zip(&views) {
        assert_eq!(view.schema.table, partition.id);
        positions.insert((view.shard, view.position));
        for (key, value) in list_of(db, view).await {
            assert_eq!(all.insert(key, value), None, "in two partitions");
        }
    }
    let shards: BTreeSet<_> = positions.iter().map(|(shard, _)| shard).collect();
    assert_eq!(shards.len(), positions.len(), "one position a shard");
    all
}

fn named(range: std::ops::Range<i64>) -> Vec<(String, i64, i64)> {
    range.map(|i| (format!("host_{i}"), i % 7, i)).collect()
}

fn borrowed(rows: &[(String, i64, i64)]) -> Vec<(&str, i64, i64)> {
    rows.iter().map(|(h, t, v)| (h.as_str(), *t, *v)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_to_their_partitions_and_are_there_after_flush_compaction_and_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let all = named(0..500);
    let table = {
        let db = embedded(dir.path(), shards(3)).await;
        let table = make_parted(&db, "t", by_host(7)).await;
        let on: Vec<_> = table.partitions().iter().map(|p| p.shard).collect();
        let distinct: BTreeSet<_> = on.iter().collect();
        assert_eq!(distinct.len(), 3, "spread over all shards: {on:?}");
        for part in all.chunks(60) {
            let commit = put(&db, &table, &borrowed(part), WriteOptions::default())
                .await
                .expect("write");
            assert_eq!(commit.rows, part.len() as u64);
            assert_eq!(commit.tokens.len(), 3, "one a shard");
        }
        assert_eq!(everything(&db, &table).await, rows(&borrowed(&all)));
        db.flush(None).await.expect("flush");
        put(
            &db,
            &table,
            &borrowed(&named(0..50)),
            WriteOptions::default(),
        )
        .await
        .expect("again");
        db.flush(None).await.expect("flush");
        db.compact(None).await.expect("compact");
        assert_eq!(everything(&db, &table).await, rows(&borrowed(&all)));
        table
    };
    let db = embedded(dir.path(), shards(3)).await;
    assert_eq!(db.table("public", "t"), Some(table.clone()));
    assert_eq!(everything(&db, &table).await, rows(&borrowed(&all)));
    let report = db.gc(true).await.expect("gc");
    assert_eq!(report.orphans, 0, "{report:?}");
    db.drop_table(&table).await.expect("drop");
    let gone = db.table_schema(&table);
    assert!(
        matches!(gone, Err(EngineError::NotFound { .. })),
        "{gone:?}"
    );
}

fn by_time(ends: &[(&str, Option<i64>)]) -> NewPartitions {
    let encoded = |end: i64| {
        let mut bytes = Vec::new();
        shoal_rows::encode_time(end, &mut bytes);
        bytes
    };
    let mut from = Vec::new();
    let mut partitions = Vec::new();
    for (name, end) in ends {
        let to = end.map(encoded);
        partitions.push(NewPartition {
            name: (*name).to_owned(),
            extent: Extent::Keys(KeyRange {
                from: from.clone(),
                to: to.clone(),
            }),
        });
        from = to.unwrap_or_default();
    }
    NewPartitions {
        by: PartitionBy {
            method: PartitionMethod::Range,
            columns: vec![ColumnId(1)],
        },
        partitions,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_partition_that_decides_columns_may_be_dropped_and_the_next_one_does() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), shards(2)).await;
    let table = make_parted(&db, "t", by_time(&[("a", Some(10)), ("b", Some(20))])).await;
    let wide = |schema: &shoal_types::TableSchema| {
        let mut schema = schema.clone();
        let id = schema.next_column_id;
        schema.next_column_id = ColumnId(id.0 + 1);
        schema.columns.push(shoal_types::Column {
            id,
            name: format!("c{}", id.0),
            column_type: shoal_types::ColumnType::Int64,
            nullable: true,
            default: None,
        });
        Ok::<_, EngineError>(Some(schema))
    };
    db.alter_table(&table, &wide).await.expect("alter");
    put(
        &db,
        &table,
        &[("x", 5, 1), ("x", 15, 2)],
        WriteOptions::default(),
    )
    .await
    .expect("write");
    let outside = put(
        &db,
        &table,
        &[("x", 7, 3), ("x", 20, 3)],
        WriteOptions::default(),
    )
    .await;
    match outside {
        Err(WriteError::NoPartition(text)) => assert!(text.contains("ts = "), "{text}"),
        other => panic!("{other:?}"),
    }
    db.drop_partitions(&table, vec!["a".into()], false)
        .await
        .expect("drop");
    let table = db.table("public", "t").expect("still there");
    assert_eq!(table.partitions().len(), 1);
    let version = db.table_schema(&table).expect("schema").version;
    assert_eq!(version, 2, "the columns as they were altered");
    db.alter_table(&table, &wide).await.expect("alter");
    assert_eq!(everything(&db, &table).await, rows(&[("x", 15, 2)]));
    let last = db.drop_partitions(&table, vec!["b".into()], false).await;
    assert!(matches!(last, Err(EngineError::Invalid(_))), "{last:?}");
    let NewPartitions { partitions, .. } = by_time(&[("a", Some(10)), ("b", Some(12))]);
    let taken = db.add_partitions(&table, partitions, false).await;
    assert!(
        matches!(taken, Err(EngineError::AlreadyExists { .. })),
        "{taken:?}"
    );
    let NewPartitions { partitions, .. } = by_time(&[("a", Some(10)), ("c", None)]);
    let overlaps = db.add_partitions(&table, partitions.clone(), false).await;
    assert!(
        matches!(overlaps, Err(EngineError::Invalid(_))),
        "{overlaps:?}"
    );
    db.add_partitions(&table, partitions[..1].to_vec(), false)
        .await
        .expect("add");
    let table = db.table("public", "t").expect("still there");
    put(&db, &table, &[("x", 5, 7)], WriteOptions::default())
        .await
        .expect("write");
    assert_eq!(
        everything(&db, &table).await,
        rows(&[("x", 5, 7), ("x", 15, 2)])
    );
    // What was refused has left nothing in the shards.
    let units: usize = db.status().iter().map(|s| s.tables as usize).sum();
    assert_eq!(units, 2);
    let layout = table.layout.as_ref().expect("partitions");
    assert!(layout.loose.is_empty());
}
