//! The catalog of one process.

use std::sync::Arc;

use shoal_meta::{
    Catalog, EmbeddedMetaStore, MemoryMetaStore, MetaError, MetaStore, NamedTable, Op, SchemaEntry,
    ShardEntry, TableEntry, Txn,
};
use shoal_types::{LogId, PartitionId, ShardId, TableId};

pub fn table(schema: &str, name: &str, shard: ShardId) -> NamedTable {
    NamedTable {
        schema_name: schema.into(),
        name: name.into(),
        entry: TableEntry {
            table: TableId::generate(),
            partition: PartitionId::generate(),
            shard,
        },
    }
}

#[tokio::test]
async fn the_catalog_survives_a_restart_and_escapes_names() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("meta.redb");
    let shard = ShardId::generate();
    let odd = table("a/b%2F", "c/d", shard);
    {
        let store = Arc::new(EmbeddedMetaStore::open(&path).expect("open"));
        let catalog = Catalog::open(store, "default").await.expect("catalog");
        let entry = SchemaEntry { created_ms: 1 };
        catalog
            .create_schema("a/b%2F", entry)
            .await
            .expect("schema");
        catalog
            .create_tables(&[odd.clone(), table("a/b%2F", "z", shard)])
            .await
            .expect("tables");
        let taken = catalog.create_tables(&[table("a/b%2F", "z", shard)]).await;
        assert!(matches!(taken, Err(MetaError::Conflict)), "{taken:?}");
        catalog
            .rename_table(&catalog.tables("a/b%2F").expect("tables")[1], "y")
            .await
            .expect("rename");
        let shard_entry = ShardEntry {
            term: 3,
            created_ms: 5,
            log: Some(LogId::SOLE),
        };
        catalog
            .put_shard(shard, None, shard_entry)
            .await
            .expect("shard");
    }
    // The writer thread ends after the store is dropped; redb lets go of the file then.
    let store = loop {
        match EmbeddedMetaStore::open(&path) {
            Ok(store) => break Arc::new(store),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let catalog = Catalog::open(store, "default").await.expect("catalog");
    let names: Vec<_> = catalog
        .tables("a/b%2F")
        .expect("schema")
        .into_iter()
        .map(|t| t.name.to_string())
        .collect();
    assert_eq!(names, ["c/d", "y"]);
    assert_eq!(catalog.named(odd.entry.table).expect("by id"), odd);
    assert_eq!(catalog.shards()[0].1.term, 3);
    assert_eq!(catalog.tables_on(shard), 2);
}

#[tokio::test]
async fn a_shard_entry_of_the_first_version_is_still_read() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let named = LogId::generate();
    // It said whether there is a log, of which there was one kind.
    let old = |made: bool| rmp_serde::to_vec(&(3_u64, 5_i64, made)).expect("encodes");
    let new = rmp_serde::to_vec(&(3_u64, 5_i64, Some(named))).expect("encodes");
    let none = rmp_serde::to_vec(&(3_u64, 5_i64, None::<LogId>)).expect("encodes");
    let cases = [
        (old(true), Some(LogId::SOLE)),
        (old(false), None),
        (new, Some(named)),
        (none, None),
    ];
    for (value, log) in cases {
        let shard = ShardId::generate();
        let put = Op::Put(format!("/shoal/c/shard/{shard}"), value);
        store.commit(Txn::default().then(put)).await.expect("put");
        let catalog = Catalog::open(Arc::clone(&store), "c").await.expect("opens");
        let entry = catalog.reload_shard(shard).await.expect("read");
        assert_eq!(entry.map(|e| (e.term, e.log)), Some((3, log)));
    }
}

#[tokio::test]
async fn two_catalogs_on_one_store_cannot_both_take_a_name() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let one = Catalog::open(Arc::clone(&store), "c").await.expect("one");
    let entry = SchemaEntry { created_ms: 1 };
    one.create_schema("s", entry).await.expect("schema");
    let two = Catalog::open(store, "c").await.expect("two");
    let shard = ShardId::generate();
    let first = table("s", "t", shard);
    one.create_tables(std::slice::from_ref(&first))
        .await
        .expect("first");
    let second = two.create_tables(&[table("s", "t", shard)]).await;
    assert!(matches!(second, Err(MetaError::Conflict)), "{second:?}");
    assert_eq!(two.table("s", "t"), Some(first.entry), "refreshed");
}

#[tokio::test]
async fn a_damaged_file_and_another_format_are_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("meta.redb");
    std::fs::write(&path, vec![7_u8; 8192]).expect("write");
    let error = EmbeddedMetaStore::open(&path).expect_err("damaged");
    assert!(error.to_string().contains("meta.redb"), "{error}");

    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let value = rmp_serde::to_vec(&99_u32).expect("value");
    let txn = Txn::default().then(Op::Put("/shoal/c/format".into(), value));
    store.commit(txn).await.expect("format");
    let error = Catalog::open(store, "c").await.expect_err("format 99");
    assert!(error.to_string().contains("99"), "{error}");
}
