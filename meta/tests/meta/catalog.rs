//! The catalog of one process.

use std::sync::Arc;

use shoal_meta::{
    Catalog, EmbeddedMetaStore, Layout, MemoryMetaStore, MetaError, MetaStore, NamedTable, Op,
    Part, SchemaEntry, ShardEntry, TableEntry, Txn,
};
use shoal_types::{
    ColumnId, Extent, LogId, PartitionBy, PartitionId, PartitionMethod, ShardId, SlotRange, TableId,
};

pub fn table(schema: &str, name: &str, shard: ShardId) -> NamedTable {
    NamedTable {
        schema_name: schema.into(),
        name: name.into(),
        entry: TableEntry::whole(TableId::generate(), shard),
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
            birth: None,
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
    assert_eq!(catalog.partitions_on(shard), 2);
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
async fn an_entry_of_a_table_from_before_partitions_is_still_read() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let old = (
        TableId::generate(),
        PartitionId::generate(),
        ShardId::generate(),
    );
    let schema = rmp_serde::to_vec(&SchemaEntry { created_ms: 1 }).expect("encodes");
    let value = rmp_serde::to_vec(&old).expect("encodes");
    let txn = Txn::default()
        .then(Op::Put("/shoal/c/schema/s".into(), schema))
        .then(Op::Put("/shoal/c/table/s/t".into(), value.clone()));
    store.commit(txn).await.expect("put");
    let catalog = Catalog::open(store, "c").await.expect("opens");
    let entry = catalog.table("s", "t").expect("the table");
    assert_eq!((entry.table, entry.partition, entry.shard), old);
    assert_eq!(entry.layout, None);
    assert_eq!(entry.home().unit, entry.table);
    // And is written so, for the versions that wrote it.
    assert_eq!(rmp_serde::to_vec(&entry).expect("encodes"), value);
}

/// A table of HASH partitions on these shards.
fn partitioned(shards: &[ShardId]) -> TableEntry {
    let count = u32::try_from(shards.len()).expect("few");
    let parts = SlotRange::even(count).zip(shards).enumerate();
    let parts = parts.map(|(i, (slots, shard))| Part {
        name: format!("p{i}"),
        unit: TableId::generate(),
        shard: *shard,
        extent: Extent::Slots(slots),
        generation: 0,
        origin: None,
    });
    let layout = Layout {
        by: PartitionBy {
            method: PartitionMethod::Hash,
            columns: vec![ColumnId(0)],
        },
        parts: parts.collect(),
        home: 0,
        loose: Vec::new(),
    };
    layout.check().expect("disjoint");
    TableEntry::partitioned(TableId::generate(), Arc::new(layout))
}

#[tokio::test]
async fn partitions_are_found_by_unit_counted_by_shard_and_changed_by_one_of_two() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let one = Catalog::open(Arc::clone(&store), "c").await.expect("one");
    let entry = SchemaEntry { created_ms: 1 };
    one.create_schema("s", entry).await.expect("schema");
    let (a, b) = (ShardId::generate(), ShardId::generate());
    let made = NamedTable {
        entry: partitioned(&[a, a, b]),
        ..table("s", "t", a)
    };
    let tables = std::slice::from_ref(&made);
    one.create_tables(tables).await.expect("made");
    let two = Catalog::open(Arc::clone(&store), "c").await.expect("two");
    let layout = made.entry.layout.clone().expect("partitions");
    for catalog in [&one, &two] {
        for part in &layout.parts {
            assert_eq!(catalog.placed(part.unit), Some(part.placed()));
            assert_eq!(catalog.named(part.unit), Some(made.clone()));
        }
        let counts = [a, b].map(|shard| catalog.partitions_on(shard));
        assert_eq!(counts, [2, 1]);
    }

    // The second partition goes to the other shard; the third is joined to it.
    let mut moved = Layout::clone(&layout);
    let gone = moved.parts.pop().expect("three");
    moved.parts[1].shard = b;
    let joined = moved.parts[1].extent.join(&gone.extent);
    moved.parts[1].extent = joined.expect("neighbours");
    let changed = TableEntry::partitioned(made.entry.table, Arc::new(moved.clone()));
    one.put_entry(&made, changed.clone()).await.expect("put");
    let late = two.put_entry(&made, made.entry.clone()).await;
    assert!(matches!(late, Err(MetaError::Conflict)), "{late:?}");
    for catalog in [&one, &two] {
        assert_eq!(catalog.table("s", "t"), Some(changed.clone()));
        assert_eq!(catalog.placed(gone.unit), None);
        assert_eq!(catalog.named(gone.unit), None);
        assert_eq!(
            catalog.placed(moved.parts[1].unit).map(|p| p.shard),
            Some(b)
        );
        let counts = [a, b].map(|shard| catalog.partitions_on(shard));
        assert_eq!(counts, [1, 1]);
    }
    let renamed = one.named(made.entry.table).expect("named");
    one.rename_table(&renamed, "u").await.expect("renamed");
    assert_eq!(one.partitions_on(a), 1);
    let named = one.named(moved.parts[0].unit).expect("by unit");
    assert_eq!(&*named.name, "u");
    one.drop_table(&named).await.expect("dropped");
    assert_eq!(one.partitions_on(a) + one.partitions_on(b), 0);
    assert_eq!(one.named(moved.parts[0].unit), None);
}

#[test]
fn a_layout_whose_partitions_share_rows_is_refused() {
    let shard = ShardId::generate();
    let good = partitioned(&[shard, shard]).layout.expect("partitions");
    let mut overlapping = Layout::clone(&good);
    overlapping.parts[1].extent = Extent::Slots(SlotRange::WHOLE);
    let error = overlapping.check().expect_err("both own slot 0");
    assert!(error.contains("\"p0\" and \"p1\""), "{error}");
    let mut twice = Layout::clone(&good);
    twice.parts[1].name = "p0".into();
    assert!(twice.check().is_err());
    let mut homeless = Layout::clone(&good);
    homeless.home = 2;
    assert!(homeless.check().is_err());
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
