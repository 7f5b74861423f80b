//! Write, read, restart; schemas; conflicts; write ids.

use std::sync::Arc;

use shoal_engine::{EngineError, ReadAt, WriteError, WriteOptions};
use shoal_types::{Column, ColumnId, ColumnType, TableMode, TableSchema, WriteId};
use shoal_wal::record::ImportChunk;

use super::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_rows_survive_a_kill_and_a_clean_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let table = {
        let db = embedded(dir.path(), config_two()).await;
        let table = make(&db, "cpu", TableMode::Upsert).await;
        put(
            &db,
            &table,
            &[("a", 1, 10), ("b", 1, 20)],
            WriteOptions::default(),
        )
        .await
        .expect("write");
        put(&db, &table, &[("a", 1, 11)], WriteOptions::default())
            .await
            .expect("overwrite");
        assert_eq!(read(&db, &table).await, rows(&[("a", 1, 11), ("b", 1, 20)]));
        // Dropped without shutdown: as if killed, but for what the file system holds.
        table
    };
    let db = embedded(dir.path(), config_two()).await;
    let found = db.table("public", "cpu").expect("table");
    assert_eq!(found, table);
    assert_eq!(read(&db, &found).await, rows(&[("a", 1, 11), ("b", 1, 20)]));
    put(&db, &found, &[("c", 1, 30)], WriteOptions::default())
        .await
        .expect("write");
    db.shutdown().await;
    drop(db);
    let db = embedded(dir.path(), config_two()).await;
    let all = rows(&[("a", 1, 11), ("b", 1, 20), ("c", 1, 30)]);
    assert_eq!(read(&db, &found).await, all);
    assert_eq!(db.status().len(), 2, "two shards");
    let log = db.log_stats().expect("a log on the local disk");
    assert!(log.fsyncs > 0 && log.segments > 0, "{log:?}");
}

fn config_two() -> shoal_engine::EngineConfig {
    shoal_engine::EngineConfig {
        shards: 2,
        ..config()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_refused_and_told_who_has_the_folder() {
    let dir = tempfile::tempdir().expect("dir");
    let _db = embedded(dir.path(), config()).await;
    let clock = Arc::new(shoal_types::SystemClock);
    let second = shoal_engine::Database::open_embedded(dir.path(), config(), clock, None).await;
    let error = second.expect_err("locked").to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_spread_renamed_dropped_and_truncated() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), config_two()).await;
    let many = (0..10).map(|i| new_table(&format!("t{i}"), TableMode::Upsert));
    let made = db
        .create_tables(many.collect(), false)
        .await
        .expect("create");
    let on_first = made.iter().filter(|t| t.shard == made[0].shard).count();
    assert_eq!(on_first, 5, "balanced over two shards");
    let again = db
        .create_tables(vec![new_table("t3", TableMode::Append)], true)
        .await
        .expect("exists");
    assert_eq!(again[0], made[3]);
    let taken = db.create_tables(vec![new_table("t3", TableMode::Append)], false);
    assert!(matches!(
        taken.await,
        Err(EngineError::AlreadyExists { .. })
    ));
    let missing = db.table_not_found("public", "t33").to_string();
    assert!(missing.contains("did you mean \"t3\""), "{missing}");

    for table in &made[..2] {
        put(&db, table, &[("a", 1, 1)], WriteOptions::default())
            .await
            .expect("write");
    }
    db.flush(None).await.expect("flush");
    let renamed = db.rename_table(&made[0], "first").await.expect("rename");
    db.truncate_table(&renamed).await.expect("truncate");
    assert_eq!(read(&db, &renamed).await, rows(&[]));
    put(&db, &renamed, &[("b", 2, 2)], WriteOptions::default())
        .await
        .expect("write");
    db.drop_table(&made[1]).await.expect("drop");
    assert!(db.table("public", "t1").is_none());
    let gone = db.read_view(&made[1]).await;
    assert!(
        matches!(gone, Err(EngineError::NotFound { .. })),
        "{gone:?}"
    );
    let schema = schema(TableMode::Upsert);
    let mut late = block(&schema, &[("x", 1, 1)], false);
    late.table = made[1].id;
    let refused = db.write(vec![late], WriteOptions::default()).await;
    // Whoever built the rows looks the table up again, and finds that it is gone.
    assert!(
        matches!(refused, Err(WriteError::StaleSchema { .. })),
        "{refused:?}"
    );
    db.flush(None).await.expect("flush");
    drop(db);
    let db = embedded(dir.path(), config_two()).await;
    let first = db.table("public", "first").expect("renamed");
    assert_eq!(read(&db, &first).await, rows(&[("b", 2, 2)]));
    assert_eq!(db.tables("public").len(), 9);
    let files: u64 = db.status().iter().map(|s| s.files).sum();
    assert_eq!(
        files, 1,
        "files of truncated and dropped tables are named no more"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_change_reaches_writers_and_old_rows_get_nulls() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), config()).await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    let before = db.table_schema(&table).expect("schema");
    let add = |schema: &TableSchema| {
        let mut new = schema.clone();
        new.columns.push(Column {
            id: new.next_column_id,
            name: "w".into(),
            column_type: ColumnType::Int64,
            nullable: true,
            default: None,
        });
        new.next_column_id = ColumnId(new.next_column_id.0 + 1);
        Ok(Some(new))
    };
    let after = db.alter_table(&table, &add).await.expect("alter");
    assert_eq!(after.version, before.version + 1);
    // Rows built for the older version still fit; rows for another incarnation do not.
    db.write(
        vec![block(&before, &[("a", 1, 1)], false)],
        WriteOptions::default(),
    )
    .await
    .expect("older schema version");
    db.truncate_table(&table).await.expect("truncate");
    let stale = db
        .write(
            vec![block(&after, &[("a", 1, 1)], false)],
            WriteOptions::default(),
        )
        .await;
    assert!(
        matches!(stale, Err(WriteError::StaleSchema { .. })),
        "{stale:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_conflicts_with_a_change_after_its_read() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), config()).await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    put(
        &db,
        &table,
        &[("a", 1, 1), ("b", 1, 1)],
        WriteOptions::default(),
    )
    .await
    .expect("write");
    let schema = db.table_schema(&table).expect("schema");
    let at = |view: &shoal_engine::ReadView| WriteOptions {
        read_at: Some(ReadAt {
            shard: view.shard,
            position: view.position,
        }),
        ..WriteOptions::default()
    };
    let view = db.read_view(&table).await.expect("view");
    put(&db, &table, &[("a", 1, 2)], WriteOptions::default())
        .await
        .expect("concurrent");
    let delete = || vec![block(&schema, &[("a", 1, 0)], true)];
    let conflict = db.write(delete(), at(&view)).await;
    assert!(
        matches!(conflict, Err(WriteError::Conflict { .. })),
        "{conflict:?}"
    );
    let view = db.read_view(&table).await.expect("view");
    db.write(delete(), at(&view)).await.expect("second try");
    assert_eq!(read(&db, &table).await, rows(&[("b", 1, 1)]));
    db.flush(None).await.expect("flush");
    assert_eq!(read(&db, &table).await, rows(&[("b", 1, 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retried_write_id_is_applied_once_across_flush_and_restart() {
    let dir = tempfile::tempdir().expect("dir");
    let id: WriteId = ulid::Ulid::new().to_string().parse().expect("id");
    let options = || WriteOptions {
        write_id: Some(id),
        ..WriteOptions::default()
    };
    let config = || shoal_engine::EngineConfig {
        record_rows_max: 2,
        ..config()
    };
    let many = [
        ("a", 1, 1),
        ("a", 2, 2),
        ("a", 3, 3),
        ("a", 4, 4),
        ("a", 5, 5),
    ];
    {
        let db = embedded(dir.path(), config()).await;
        let table = make(&db, "log", TableMode::Append).await;
        let first = put(&db, &table, &many, options()).await.expect("first");
        assert!(!first.duplicate);
        let again = put(&db, &table, &many, options()).await.expect("again");
        assert!(again.duplicate);
        db.flush(None).await.expect("flush");
    }
    // Whatever the limits are now: it is cut as it was.
    let changed = shoal_engine::EngineConfig {
        record_rows_max: 1,
        ..config()
    };
    let db = embedded(dir.path(), changed).await;
    let table = db.table("public", "log").expect("table");
    let again = put(&db, &table, &many, options()).await.expect("again");
    assert!(again.duplicate);
    assert_eq!(list(&db, &table).await.len(), 5);
    let plain = put(&db, &table, &many, WriteOptions::default()).await;
    assert!(!plain.expect("without id").duplicate);
    assert_eq!(list(&db, &table).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_resumes_where_every_shard_has_it() {
    let dir = tempfile::tempdir().expect("dir");
    let db = embedded(dir.path(), config_two()).await;
    let a = make(&db, "a", TableMode::Append).await;
    let b = make(&db, "b", TableMode::Append).await;
    assert_ne!(a.shard, b.shard);
    let chunk = |chunk| WriteOptions {
        import: Some(ImportChunk {
            import: 7,
            chunk,
            part: 0,
            last_part: true,
        }),
        ..WriteOptions::default()
    };
    assert_eq!(db.import_progress(7).await.expect("alone"), None);
    put(&db, &a, &[("x", 1, 1)], chunk(0))
        .await
        .expect("chunk 0");
    put(&db, &b, &[("x", 1, 1)], chunk(1))
        .await
        .expect("chunk 1");
    assert_eq!(db.import_progress(7).await.expect("alone"), Some(2));
    drop(db);
    let db = embedded(dir.path(), config_two()).await;
    assert_eq!(db.import_progress(7).await.expect("alone"), Some(2));
    let again = put(&db, &b, &[("x", 1, 1)], chunk(1)).await.expect("again");
    assert!(again.duplicate);
    assert_eq!(list(&db, &b).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_atomic_write_that_needs_two_records_is_refused_whole() {
    let dir = tempfile::tempdir().expect("dir");
    let config = shoal_engine::EngineConfig {
        record_rows_max: 2,
        ..config()
    };
    let db = embedded(dir.path(), config).await;
    let table = make(&db, "cpu", TableMode::Upsert).await;
    let atomic = WriteOptions {
        atomic: true,
        ..WriteOptions::default()
    };
    let three = [("a", 1, 1), ("a", 2, 2), ("a", 3, 3)];
    let refused = put(&db, &table, &three, atomic.clone()).await;
    assert!(matches!(refused, Err(WriteError::TooLargeForAtomic { .. })));
    assert_eq!(read(&db, &table).await, rows(&[]));
    put(&db, &table, &three[..2], atomic).await.expect("fits");
}
