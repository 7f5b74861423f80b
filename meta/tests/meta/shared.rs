//! Catalogs of several processes on one store, in memory and in etcd.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use shoal_meta::{
    Catalog, Compare, Configured, Limits, Listing, MemoryMetaStore, MetaError, MetaStore,
    NamedTable, Registration, SchemaEntry, ShardEntry, TableEntry, Txn, Watch, join_cluster,
};
use shoal_testkit::Etcd;
use shoal_types::{ShardId, TableId};

use super::catalog::table;
use super::conformance::{PATIENCE, connect};

async fn catalog(store: &Arc<dyn MetaStore>) -> Catalog {
    Catalog::open(Arc::clone(store), "c")
        .await
        .expect("catalog")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(PATIENCE, waiting).await.is_ok(),
        "not in time: {what}"
    );
}

/// A store that lets others come between any two requests.
#[derive(Debug)]
struct Crowded(MemoryMetaStore, AtomicU64);

impl Crowded {
    async fn wait(&self) {
        let turn = self.1.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        for _ in 0..turn >> 60 {
            tokio::task::yield_now().await;
        }
    }
}

#[async_trait]
impl MetaStore for Crowded {
    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, u64)>, MetaError> {
        self.wait().await;
        self.0.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, MetaError> {
        self.wait().await;
        self.0.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> Result<u64, MetaError> {
        self.wait().await;
        self.0.commit(txn).await
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        self.0.watch(prefix, after)
    }

    async fn register_when(
        &self,
        condition: Option<Compare>,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<Registration, MetaError> {
        self.0.register_when(condition, key, value, ttl).await
    }
}

fn small() -> MemoryMetaStore {
    MemoryMetaStore::with_limits(Limits {
        txn_ops: 16,
        txn_bytes: 64 << 10,
    })
}

/// What one process does, another sees: at once where it asks, soon where it waits.
async fn is_seen(store: Arc<dyn MetaStore>) {
    let (a, b) = (catalog(&store).await, catalog(&store).await);
    let entry = SchemaEntry { created_ms: 1 };
    a.create_schema("s", entry).await.expect("schema");
    assert!(b.find_schema("s").await.expect("find"));
    let shard = ShardId::generate();
    let one = table("s", "one", shard);
    a.create_tables(std::slice::from_ref(&one))
        .await
        .expect("table");
    assert_eq!(
        b.find_table("s", "one").await.expect("find"),
        Some(one.entry.clone())
    );
    assert_eq!(b.find_table("s", "none").await.expect("find"), None);
    let two = table("s", "two", shard);
    a.create_tables(std::slice::from_ref(&two))
        .await
        .expect("table");
    assert_eq!(
        b.find_placement(two.entry.table).await.expect("find"),
        Some(two.entry.clone())
    );
    assert_eq!(
        b.find_placement(TableId::generate()).await.expect("find"),
        None
    );
    // A list: sync, then memory.
    for i in 0..30 {
        let name = format!("t{i}");
        a.create_tables(&[table("s", &name, shard)])
            .await
            .expect("table");
        b.sync().await.expect("sync");
        assert!(b.table("s", &name).is_some(), "{name}");
        assert_eq!(b.tables("s").expect("schema").len(), 3 + i);
    }
    a.rename_table(&one, "uno").await.expect("rename");
    let uno = NamedTable {
        name: "uno".into(),
        ..one.clone()
    };
    b.sync().await.expect("sync");
    assert_eq!(b.table("s", "one"), None);
    assert_eq!(b.named(one.entry.table), Some(uno.clone()));
    // Without asking: by the watch.
    a.drop_table(&uno).await.expect("drop");
    eventually("drop is followed", || b.table("s", "uno").is_none()).await;
    assert_eq!(b.partitions_on(shard), 31);
    // A name made anew: who holds the old table asks again.
    let (was, new) = (b.table("s", "two").expect("two"), table("s", "two", shard));
    a.drop_table(&two).await.expect("drop");
    a.create_tables(std::slice::from_ref(&new))
        .await
        .expect("anew");
    b.refresh("s", &["two"]).await.expect("refresh");
    assert_ne!(b.table("s", "two"), Some(was));
    assert_eq!(b.table("s", "two"), Some(new.entry));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_at_one_process_is_seen_at_the_other() {
    is_seen(Arc::new(MemoryMetaStore::new())).await;
    let etcd = Etcd::start().await;
    is_seen(Arc::new(connect(&etcd).await)).await;
}

/// A process that knows nothing of tables that others made must not drop their schema.
async fn drop_is_exact(store: Arc<dyn MetaStore>) {
    let (a, b) = (catalog(&store).await, catalog(&store).await);
    let entry = SchemaEntry { created_ms: 1 };
    a.create_schema("s", entry).await.expect("schema");
    b.sync().await.expect("sync");
    let shard = ShardId::generate();
    let many: Vec<NamedTable> = (0..300)
        .map(|i| table("s", &format!("t{i:03}"), shard))
        .collect();
    let known = b.tables("s").expect("schema");
    a.create_tables(&many).await.expect("tables");
    let refused = b.drop_schema("s", &known).await;
    assert!(matches!(refused, Err(MetaError::Conflict)), "{refused:?}");
    let known = b.tables("s").expect("schema");
    assert_eq!(known.len(), 300, "known after the conflict");
    b.drop_schema("s", &known).await.expect("drop");
    assert!(!b.has_schema("s"));
    a.sync().await.expect("sync");
    assert!(!a.has_schema("s"));
    assert_eq!(a.tables_count(), 0);
    assert_eq!(a.partitions_on(shard), 0);
    // Nobody can put a table into a schema that is gone, whatever he remembers.
    let late = a.create_tables(&[table("s", "late", shard)]).await;
    assert!(matches!(late, Err(MetaError::Conflict)), "{late:?}");
    assert!(
        store
            .list("/shoal/c/table/")
            .await
            .expect("list")
            .entries
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_is_dropped_with_exactly_the_tables_that_were_seen() {
    drop_is_exact(Arc::new(small())).await;
    let etcd = Etcd::start().await;
    drop_is_exact(Arc::new(connect(&etcd).await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creators_and_droppers_of_one_schema_lose_no_table() {
    for round in 0..20 {
        let store: Arc<dyn MetaStore> = Arc::new(Crowded(small(), AtomicU64::new(round)));
        let shard = ShardId::generate();
        let mut racing = tokio::task::JoinSet::new();
        for worker in 0..4 {
            let store = Arc::clone(&store);
            racing.spawn(async move {
                let catalog = catalog(&store).await;
                let (mut made, mut dropped) = (Vec::new(), Vec::new());
                for i in 0..40 {
                    let entry = SchemaEntry { created_ms: i };
                    let _ = catalog.create_schema("s", entry).await;
                    let one = table("s", &format!("{worker}-{i}"), shard);
                    if catalog
                        .create_tables(std::slice::from_ref(&one))
                        .await
                        .is_ok()
                    {
                        made.push(one.entry.table);
                    }
                    if worker == 0 {
                        let tables = catalog.tables("s").unwrap_or_default();
                        if catalog.drop_schema("s", &tables).await.is_ok() {
                            dropped.extend(tables.iter().map(|t| t.entry.table));
                        }
                    }
                }
                (made, dropped)
            });
        }
        let (mut made, mut dropped) = (Vec::new(), Vec::new());
        for (by_one, of_one) in racing.join_all().await {
            made.extend(by_one);
            dropped.extend(of_one);
        }
        let has_schema = store.get("/shoal/c/schema/s").await.expect("get").is_some();
        let tables = store.list("/shoal/c/table/").await.expect("list");
        assert!(
            has_schema || tables.entries.is_empty(),
            "round {round}: {} tables without their schema",
            tables.entries.len()
        );
        // Whoever followed it all knows what a newcomer reads.
        let late = catalog(&store).await;
        late.sync().await.expect("sync");
        assert_eq!(late.tables_count(), tables.entries.len());
        // What was made and not dropped by somebody who knew of it is there.
        made.retain(|id| !dropped.contains(id));
        let lost: Vec<_> = made
            .iter()
            .filter(|id| late.named(**id).is_none())
            .collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_followers_end_with_what_is_in_the_store() {
    let memory = MemoryMetaStore::new();
    let store: Arc<dyn MetaStore> = Arc::new(memory.clone());
    let first = catalog(&store).await;
    let entry = SchemaEntry { created_ms: 1 };
    first.create_schema("s", entry).await.expect("schema");
    let shard = ShardId::generate();
    let mut catalogs = Vec::new();
    for _ in 0..4 {
        catalogs.push(Arc::new(catalog(&store).await));
    }
    let mut racing = tokio::task::JoinSet::new();
    for (worker, catalog) in catalogs.iter().enumerate() {
        let (catalog, memory) = (Arc::clone(catalog), memory.clone());
        racing.spawn(async move {
            for i in 0..200 {
                let name = format!("t{}", (worker * 7 + i * 3) % 23);
                let named = catalog.tables("s").unwrap_or_default();
                let mine = named.iter().find(|t| *t.name == *name);
                // Conflicts are part of it.
                match (mine, i % 3) {
                    (None, _) => drop(catalog.create_tables(&[table("s", &name, shard)]).await),
                    (Some(t), 0) => drop(catalog.drop_table(t).await),
                    (Some(t), _) => {
                        drop(catalog.rename_table(t, &format!("t{}", (i * 5) % 23)).await);
                    }
                }
                if i % 50 == 49 {
                    // Followers that are behind get everything at once.
                    memory.compact();
                }
            }
        });
    }
    racing.join_all().await;
    let wanted = catalog(&store).await;
    let list = |c: &Catalog| -> Vec<(String, TableEntry)> {
        let tables = c.tables("s").unwrap_or_default();
        tables
            .iter()
            .map(|t| (t.name.to_string(), t.entry.clone()))
            .collect()
    };
    let wanted_list = list(&wanted);
    for catalog in &catalogs {
        catalog.sync().await.expect("sync");
        assert_eq!(list(catalog), wanted_list);
        assert_eq!(catalog.tables_count(), wanted_list.len());
        assert_eq!(catalog.partitions_on(shard), wanted_list.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_together_make_the_first_shards_once() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = Arc::clone(&store);
        starting.spawn(async move {
            let catalog = catalog(&store).await;
            let entry = ShardEntry {
                term: 0,
                created_ms: 1,
                log: None,
                birth: None,
            };
            let shards = [(); 3].map(|()| (ShardId::generate(), entry));
            catalog.create_first_shards(&shards).await.expect("made");
            catalog.shards()
        });
    }
    let known = starting.join_all().await;
    assert_eq!(known[0].len(), 3);
    assert!(known.iter().all(|k| *k == known[0]), "{known:?}");
}

#[tokio::test]
async fn a_table_that_is_given_up_gets_no_name_any_more() {
    let store: Arc<dyn MetaStore> = Arc::new(small());
    let (creator, opener) = (catalog(&store).await, catalog(&store).await);
    let entry = SchemaEntry { created_ms: 1 };
    creator.create_schema("s", entry).await.expect("schema");
    let shard = ShardId::generate();
    let (named, nameless) = (table("s", "a", shard), table("s", "b", shard));
    creator
        .create_tables(std::slice::from_ref(&named))
        .await
        .expect("named");
    // The opener has not heard of the name yet, but asks.
    let ids = [named.entry.table, nameless.entry.table];
    let gone = opener.forsake(&ids, 5).await.expect("forsake");
    assert_eq!(gone, [nameless.entry.table]);
    let late = creator.create_tables(&[nameless]).await;
    assert!(matches!(late, Err(MetaError::Conflict)), "{late:?}");
    assert_eq!(creator.table("s", "b"), None);
    // Its mark goes when no creator can remember it.
    opener.forsake(&[], 5 + 3_600_001).await.expect("forsake");
    assert!(
        store
            .list("/shoal/c/gone/")
            .await
            .expect("list")
            .entries
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_table_is_either_named_or_given_up() {
    let store: Arc<dyn MetaStore> = Arc::new(Crowded(MemoryMetaStore::new(), AtomicU64::new(1)));
    let (creator, opener) = (catalog(&store).await, catalog(&store).await);
    let entry = SchemaEntry { created_ms: 1 };
    creator.create_schema("s", entry).await.expect("schema");
    let shard = ShardId::generate();
    let (creator, opener) = (Arc::new(creator), Arc::new(opener));
    let (mut named, mut given_up) = (0, 0);
    for i in 0..400 {
        let table = table("s", &format!("t{i}"), shard);
        let id = table.entry.table;
        let naming = tokio::spawn({
            let creator = Arc::clone(&creator);
            async move {
                // Now one comes first, now the other.
                for _ in 0..i % 40 {
                    tokio::task::yield_now().await;
                }
                creator.create_tables(&[table]).await.is_ok()
            }
        });
        let giving_up = tokio::spawn({
            let opener = Arc::clone(&opener);
            async move { opener.forsake(&[id], 5).await.expect("forsake") }
        });
        let was_named = naming.await.expect("naming");
        let was_given_up = !giving_up.await.expect("giving up").is_empty();
        assert_ne!(was_named, was_given_up, "round {i}");
        named += u32::from(was_named);
        given_up += u32::from(was_given_up);
    }
    assert!(
        named > 0 && given_up > 0,
        "{named} named, {given_up} given up"
    );
}

#[tokio::test]
async fn a_store_put_back_to_a_backup_is_read_anew() {
    let memory = MemoryMetaStore::new();
    let store: Arc<dyn MetaStore> = Arc::new(memory.clone());
    let (a, b) = (catalog(&store).await, catalog(&store).await);
    let entry = SchemaEntry { created_ms: 1 };
    a.create_schema("s", entry).await.expect("schema");
    let shard = ShardId::generate();
    a.create_tables(&[table("s", "kept", shard)])
        .await
        .expect("table");
    let backup = memory.backup();
    a.create_tables(&[table("s", "lost", shard)])
        .await
        .expect("table");
    b.sync().await.expect("sync");
    memory.restore(&backup);
    eventually("restored", || b.table("s", "lost").is_none()).await;
    eventually("restored", || a.table("s", "lost").is_none()).await;
    assert!(b.table("s", "kept").is_some());
    b.create_tables(&[table("s", "lost", shard)])
        .await
        .expect("again");
    eventually("followed", || a.table("s", "lost").is_some()).await;
}

#[tokio::test]
async fn an_emptied_store_takes_nothing_from_those_who_know() {
    let memory = MemoryMetaStore::new();
    let store: Arc<dyn MetaStore> = Arc::new(memory.clone());
    let empty = memory.backup();
    let known = catalog(&store).await;
    let entry = ShardEntry {
        term: 0,
        created_ms: 1,
        log: None,
        birth: None,
    };
    let shard = ShardId::generate();
    known
        .create_first_shards(&[(shard, entry)])
        .await
        .expect("shard");
    let schema = SchemaEntry { created_ms: 1 };
    known.create_schema("s", schema).await.expect("schema");
    known
        .create_tables(&[table("s", "t", shard)])
        .await
        .expect("table");
    let full = memory.backup();
    memory.restore(&empty);
    eventually("noticed", || known.interrupted().is_some()).await;
    let (_, why) = known.interrupted().expect("why");
    assert!(why.contains("restore etcd"), "{why}");
    assert!(known.table("s", "t").is_some());
    memory.restore(&full);
    eventually("restored", || known.interrupted().is_none()).await;
    assert!(known.table("s", "t").is_some());
}

#[tokio::test]
async fn clusters_share_a_store_without_touching_each_other() {
    let store: Arc<dyn MetaStore> = Arc::new(MemoryMetaStore::new());
    let one = Catalog::open(Arc::clone(&store), "one").await.expect("one");
    let other = Catalog::open(Arc::clone(&store), "one/more")
        .await
        .expect("other");
    let entry = SchemaEntry { created_ms: 1 };
    one.create_schema("s", entry).await.expect("schema");
    other.sync().await.expect("sync");
    assert!(!other.find_schema("s").await.expect("find"));
    let configured = |objects: &str| Configured {
        objects: objects.into(),
        logs: String::new(),
    };
    let first = join_cluster(&*store, "one", &configured("s3://a"), 7)
        .await
        .expect("join");
    let again = join_cluster(&*store, "one", &configured("s3://a"), 8)
        .await
        .expect("join");
    assert_eq!(first, again);
    let apart = join_cluster(&*store, "one/more", &configured("s3://b"), 8)
        .await
        .expect("join");
    assert_ne!(first.id, apart.id);
    let error = join_cluster(&*store, "one", &configured("s3://b"), 9)
        .await
        .expect_err("another bucket")
        .to_string();
    assert!(
        error.contains("s3://a") && error.contains("s3://b"),
        "{error}"
    );
    // What the first did not know is noted by who does, and holds from then on.
    let brokers = |logs: &str| Configured {
        logs: logs.into(),
        ..configured("s3://a")
    };
    let noted = join_cluster(&*store, "one", &brokers("kafka:x"), 9)
        .await
        .expect("join");
    assert_eq!((noted.id, noted.logs.as_str()), (first.id, "kafka:x"));
    join_cluster(&*store, "one", &brokers("kafka:y"), 9)
        .await
        .expect_err("other brokers");
}
