//! One suite for every `MetaStore`.

use std::sync::Arc;
use std::time::Duration;

use shoal_meta::{
    Compare, EmbeddedMetaStore, EtcdConfig, EtcdMetaStore, Limits, Lost, MemoryMetaStore,
    MetaError, MetaStore, Op, Txn, Watch, WatchEvent,
};
use shoal_testkit::Etcd;

pub const PATIENCE: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(2);

pub fn put(key: &str, value: &str) -> Op {
    Op::Put(key.into(), value.into())
}

pub async fn connect(etcd: &Etcd) -> EtcdMetaStore {
    let mut config = EtcdConfig::new(etcd.endpoints());
    config.request_timeout = Duration::from_secs(3);
    EtcdMetaStore::connect(config).await.expect("connect")
}

async fn next(watch: &mut Watch) -> WatchEvent {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("an event in time")
        .expect("a store that is open")
}

/// Changes until one of `key` comes.
async fn until(watch: &mut Watch, key: &str) -> Vec<(String, Option<String>)> {
    let mut seen = Vec::new();
    loop {
        let WatchEvent::Changes(changes) = next(watch).await else {
            panic!("only changes are expected");
        };
        for change in changes {
            let text = |v: Vec<u8>| String::from_utf8(v).expect("text");
            let ends = change.key == key;
            seen.push((change.key, change.value.map(text)));
            if ends {
                return seen;
            }
        }
    }
}

async fn conforms(store: Arc<dyn MetaStore>) {
    transactions(&*store).await;
    prefixes(&*store).await;
    races(&store).await;
    limits(&*store).await;
    watches(&*store).await;
    registrations(&*store).await;
    elections(&*store).await;
}

async fn transactions(store: &dyn MetaStore) {
    assert_eq!(store.get("/a").await.expect("get"), None);
    let absent = |key: &str| Txn::default().when(Compare::Absent(key.into()));
    let first = store
        .commit(absent("/a").then(put("/a", "1")).then(put("/b", "1")))
        .await
        .expect("first");
    assert_eq!(
        store.get("/a").await.expect("get"),
        Some((b"1".to_vec(), first))
    );
    // A failed compare changes nothing, not even keys of the transaction it does not name.
    let refused = store
        .commit(absent("/a").then(put("/a", "2")).then(put("/c", "2")))
        .await;
    assert!(matches!(refused, Err(MetaError::Conflict)), "{refused:?}");
    assert_eq!(store.get("/c").await.expect("get"), None);
    let swap = |revision| Txn::default().when(Compare::Revision("/a".into(), revision));
    let second = store
        .commit(swap(first).then(put("/a", "3")))
        .await
        .expect("swap");
    assert!(second > first);
    let stale = store.commit(swap(first).then(put("/a", "4"))).await;
    assert!(matches!(stale, Err(MetaError::Conflict)), "{stale:?}");
    // Prefixes are bytes of the key, not path elements; order is by key.
    let third = store
        .commit(
            Txn::default()
                .then(put("/ab", "x"))
                .then(Op::Delete("/b".into())),
        )
        .await
        .expect("third");
    let listing = store.list("/a").await.expect("list");
    let keys: Vec<_> = listing.entries.iter().map(|(k, _, _)| k.as_str()).collect();
    assert_eq!(keys, ["/a", "/ab"]);
    assert_eq!(listing.revision, third);
    assert_eq!(store.get("/b").await.expect("get"), None);
}

async fn prefixes(store: &dyn MetaStore) {
    for key in ["/p/1", "/p/2", "/p", "/p0"] {
        store
            .commit(Txn::default().then(put(key, "v")))
            .await
            .expect("put");
    }
    let at = store.list("/p/").await.expect("list").revision;
    let since = |revision| Txn::default().when(Compare::NotPutSince("/p/".into(), revision));
    // Deletions and keys beside the prefix do not count.
    let beside = Txn::default()
        .then(Op::Delete("/p/2".into()))
        .then(put("/p0", "w"));
    store.commit(beside).await.expect("beside");
    let removal = |revision| since(revision).then(Op::DeletePrefix("/p/".into()));
    let put_again = store
        .commit(Txn::default().then(put("/p/3", "v")))
        .await
        .expect("put");
    let refused = store.commit(removal(at)).await;
    assert!(matches!(refused, Err(MetaError::Conflict)), "{refused:?}");
    store.commit(removal(put_again)).await.expect("removed");
    assert!(store.list("/p/").await.expect("list").entries.is_empty());
    assert!(store.get("/p").await.expect("get").is_some());
    assert!(store.get("/p0").await.expect("get").is_some());
}

async fn races(store: &Arc<dyn MetaStore>) {
    let mut racing = tokio::task::JoinSet::new();
    for i in 0..20 {
        let store = Arc::clone(store);
        racing.spawn(async move {
            let txn = Txn::default()
                .when(Compare::Absent("/race".into()))
                .then(put("/race", &i.to_string()));
            store.commit(txn).await.is_ok()
        });
    }
    let won = racing.join_all().await.into_iter().filter(|w| *w).count();
    assert_eq!(won, 1);
}

async fn limits(store: &dyn MetaStore) {
    let Limits { txn_ops, txn_bytes } = store.limits();
    let many = |n: usize| Txn {
        compares: Vec::new(),
        ops: (0..n).map(|i| put(&format!("/many/{i}"), "v")).collect(),
    };
    store.commit(many(txn_ops)).await.expect("as many as fit");
    let error = store.commit(many(txn_ops + 1)).await.expect_err("too many");
    assert!(matches!(error, MetaError::Refused(_)), "{error}");
    assert!(error.to_string().contains(&txn_ops.to_string()), "{error}");
    let large = Op::Put("/large".into(), vec![7; txn_bytes + 1]);
    let error = store
        .commit(Txn::default().then(large))
        .await
        .expect_err("too large");
    assert!(matches!(error, MetaError::Refused(_)), "{error}");
    assert!(error.to_string().contains("/large"), "{error}");
    assert!(store.get("/large").await.expect("get").is_none());
    let fits = Op::Put("/large".into(), vec![7; txn_bytes - 64]);
    store.commit(Txn::default().then(fits)).await.expect("fits");
}

async fn watches(store: &dyn MetaStore) {
    let first = store
        .commit(Txn::default().then(put("/w/a", "1")))
        .await
        .expect("put");
    // From a listing on: nothing of it again, everything after it, nothing beside the prefix.
    let mut watch = store.watch("/w/", first);
    let txn = Txn::default()
        .then(put("/w/b", "2"))
        .then(Op::Delete("/w/a".into()))
        .then(put("/wide", "x"));
    store.commit(txn).await.expect("commit");
    store
        .commit(Txn::default().then(put("/w/end", "3")))
        .await
        .expect("commit");
    let some = |v: &str| Some(v.to_owned());
    let mut seen = until(&mut watch, "/w/end").await;
    seen[..2].sort();
    assert_eq!(
        seen,
        [
            ("/w/a".to_owned(), None),
            ("/w/b".to_owned(), some("2")),
            ("/w/end".to_owned(), some("3"))
        ]
    );
    // From nothing: everything there is, then what changes.
    let mut watch = store.watch("/w/", 0);
    let WatchEvent::Reset { listing, restored } = next(&mut watch).await else {
        panic!("a reset comes first");
    };
    assert!(!restored);
    let keys: Vec<_> = listing.entries.iter().map(|(k, _, _)| k.as_str()).collect();
    assert_eq!(keys, ["/w/b", "/w/end"]);
    let gone = Txn::default()
        .then(Op::DeletePrefix("/w/".into()))
        .then(put("/wide", "y"));
    store.commit(gone).await.expect("commit");
    let seen = until(&mut watch, "/w/end").await;
    assert_eq!(
        seen,
        [("/w/b".to_owned(), None), ("/w/end".to_owned(), None)]
    );
}

async fn registrations(store: &dyn MetaStore) {
    let value = |v: &str| v.as_bytes().to_vec();
    let held = store
        .register("/r/n", value("one"), TTL)
        .await
        .expect("register");
    // Longer than its time to live.
    tokio::time::sleep(TTL + TTL / 2).await;
    assert_eq!(held.lost(), None);
    let found = store.get("/r/n").await.expect("get").expect("there");
    assert_eq!(found.0, b"one");
    // A second process of the same name takes over; the first is told and leaves the key alone.
    let second = store
        .register("/r/n", value("two"), TTL)
        .await
        .expect("register");
    let mut held = held;
    let lost = tokio::time::timeout(PATIENCE, held.wait_lost()).await;
    assert_eq!(lost.expect("told in time"), Lost::Overtaken);
    held.end().await;
    let found = store.get("/r/n").await.expect("get").expect("there");
    assert_eq!(found.0, b"two");
    // Removed by somebody: told.
    let mut second = second;
    store
        .commit(Txn::default().then(Op::Delete("/r/n".into())))
        .await
        .expect("delete");
    let lost = tokio::time::timeout(PATIENCE, second.wait_lost()).await;
    assert!(matches!(lost, Ok(Lost::Expired(_))), "{lost:?}");
    // Ended: gone at once. Dropped: gone soon.
    let third = store
        .register("/r/n", value("three"), TTL)
        .await
        .expect("register");
    third.end().await;
    assert_eq!(store.get("/r/n").await.expect("get"), None);
    drop(
        store
            .register("/r/n", value("four"), TTL)
            .await
            .expect("register"),
    );
    let gone = async {
        while store.get("/r/n").await.expect("get").is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(TTL, gone).await.expect("gone soon");
}

/// One of several wins; what it wrote before it lost the key stays the last that it wrote.
async fn elections(store: &dyn MetaStore) {
    let campaign = |who: &str| store.campaign("/e/leader", who.as_bytes().to_vec(), TTL);
    let write = |held: u64, key: &str| {
        let leads = Compare::Revision("/e/leader".into(), held);
        store.commit(Txn::default().when(leads).then(put(key, "v")))
    };
    let (first, second) = tokio::join!(campaign("one"), campaign("two"));
    let (winner, loser) = match (first, second) {
        (Ok(first), second) => (first, second),
        (first, second) => (second.expect("one of them wins"), first),
    };
    assert!(matches!(loser, Err(MetaError::Conflict)), "{loser:?}");
    let held = winner.revision();
    write(held, "/e/x").await.expect("it leads");
    winner.end().await;
    let next = campaign("three").await.expect("nobody leads");
    assert!(next.revision() > held);
    let late = write(held, "/e/x").await;
    assert!(matches!(late, Err(MetaError::Conflict)), "{late:?}");
    write(next.revision(), "/e/x")
        .await
        .expect("the next one leads");
    next.end().await;
}

#[tokio::test]
async fn the_memory_store_keeps_the_contract() {
    conforms(Arc::new(MemoryMetaStore::new())).await;
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("meta.redb");
    conforms(Arc::new(EmbeddedMetaStore::open(&path).expect("open"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_etcd_store_keeps_the_contract() {
    let etcd = Etcd::start().await;
    conforms(Arc::new(connect(&etcd).await)).await;
}

#[tokio::test]
async fn what_a_process_registered_in_a_file_is_gone_when_it_is_opened_again() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("meta.redb");
    let store = EmbeddedMetaStore::open(&path).expect("open");
    let held = store
        .register("/r", b"v".to_vec(), TTL)
        .await
        .expect("register");
    store
        .commit(Txn::default().then(put("/kept", "v")))
        .await
        .expect("put");
    // As if killed: the guard outlives the store.
    drop(store);
    let store = EmbeddedMetaStore::open(&path).expect("open again");
    assert_eq!(store.get("/r").await.expect("get"), None);
    assert!(store.get("/kept").await.expect("get").is_some());
    drop(held);
}
