//! etcd that fails, is replaced, is large, or asks who we are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_meta::{
    Catalog, Compare, EtcdConfig, EtcdMetaStore, EtcdTls, MetaError, MetaStore, NamedTable, Op,
    SchemaEntry, Txn, WatchEvent,
};
use shoal_testkit::{Cut, Etcd, EtcdTlsFiles, Proxy};
use shoal_types::ShardId;

use super::catalog::table;
use super::conformance::{PATIENCE, connect, put};

fn counted(key: &str) -> Txn {
    Txn::default()
        .when(Compare::Absent(key.into()))
        .then(put(key, "v"))
}

/// Makes a key that is not there: what is unclear is read; while members elect a leader, nobody
/// answers. A conflict would mean that a commit was sent twice.
async fn surely(store: &EtcdMetaStore, key: &str) {
    let begun = Instant::now();
    loop {
        match store.commit(counted(key)).await {
            Ok(_) => return,
            Err(MetaError::Store(_)) => {}
            Err(MetaError::Unknown(_)) => {
                if store.get(key).await.is_ok_and(|found| found.is_some()) {
                    return;
                }
            }
            Err(e) => panic!("{key}: {e}"),
        }
        assert!(begun.elapsed() < PATIENCE, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_die_or_hang_cost_one_request_at_most() {
    let mut etcd = Etcd::start_members(3, &[]).await;
    let store = connect(&etcd).await;
    store.commit(counted("/k0")).await.expect("first");
    let mut watch = store.watch("/k", store.list("/k").await.expect("list").revision);
    // The member that we talk to dies.
    etcd.kill(0);
    surely(&store, "/k1").await;
    assert!(store.get("/k0").await.expect("read").is_some());
    etcd.restart(0).await;
    // Whichever member we talk to hangs: the others answer.
    for i in 0..3 {
        etcd.freeze(i);
        surely(&store, &format!("/k{}", i + 2)).await;
        assert!(store.get("/k0").await.expect("read").is_some());
        etcd.thaw(i);
    }
    // The watch went through all of it without a gap.
    let mut seen = Vec::new();
    let watching = async {
        while seen.len() < 4 {
            match watch.next().await.expect("open") {
                WatchEvent::Changes(changes) => {
                    for change in changes {
                        if !seen.contains(&change.key) {
                            seen.push(change.key);
                        }
                    }
                }
                WatchEvent::Interrupted(_) => {}
                WatchEvent::Reset { .. } => panic!("nothing was compacted or restored"),
            }
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(40), watching).await;
    assert!(done.is_ok(), "{seen:?}");
    assert_eq!(seen, ["/k1", "/k2", "/k3", "/k4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_an_unknown_outcome_and_names_are_found_by_their_ids() {
    let etcd = Etcd::start().await;
    let proxy = Proxy::start(etcd.endpoints()[0].trim_start_matches("http://")).await;
    let mut config = EtcdConfig::new(vec![format!("http://{}", proxy.address())]);
    config.request_timeout = Duration::from_secs(1);
    let store: Arc<dyn MetaStore> =
        Arc::new(EtcdMetaStore::connect(config).await.expect("connect"));
    proxy.cut_next(Cut::Silence, "/lost", 1);
    let error = store.commit(counted("/lost")).await.expect_err("no answer");
    assert!(matches!(error, MetaError::Unknown(_)), "{error}");
    assert_eq!(proxy.cuts_done(), 1);
    proxy.hang_up();
    assert!(store.get("/lost").await.expect("read").is_some());

    let catalog = Catalog::open(Arc::clone(&store), "c")
        .await
        .expect("catalog");
    let entry = SchemaEntry { created_ms: 1 };
    catalog.create_schema("s", entry).await.expect("schema");
    let shard = ShardId::generate();
    let one = table("s", "one", shard);
    let commit_answers_lost = |needle: &str| {
        proxy.hang_up();
        proxy.cut_next(Cut::Answer, needle, 1);
    };
    commit_answers_lost("table/s/one");
    // Whether the commit came before the end of the connection is up to etcd; what the catalog
    // says must be so.
    let outcome = catalog.create_tables(std::slice::from_ref(&one)).await;
    let there = store
        .get("/shoal/c/table/s/one")
        .await
        .expect("read")
        .is_some();
    match outcome {
        Ok(()) => assert!(there),
        Err(MetaError::Unknown(_)) => assert!(!there, "it was there to be found"),
        Err(e) => panic!("{e}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_away_is_told_apart_from_an_unclear_commit() {
    let mut etcd = Etcd::start().await;
    let store = connect(&etcd).await;
    etcd.kill(0);
    let begun = Instant::now();
    let error = store.commit(counted("/x")).await.expect_err("away");
    // The connection that broke may have been in use; from then on nothing is sent at all.
    assert!(
        matches!(error, MetaError::Store(_) | MetaError::Unknown(_)),
        "{error}"
    );
    let error = store.commit(counted("/x")).await.expect_err("away");
    assert!(matches!(error, MetaError::Store(_)), "{error}");
    let error = store.get("/x").await.expect_err("away");
    assert!(matches!(error, MetaError::Store(_)), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    etcd.restart(0).await;
    store.commit(counted("/x")).await.expect("back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_missed_compacted_changes_gets_everything() {
    let etcd = Etcd::start().await;
    let store = connect(&etcd).await;
    let first = store.commit(counted("/a/1")).await.expect("commit");
    let mut last = first;
    for i in 2..10 {
        last = store
            .commit(counted(&format!("/a/{i}")))
            .await
            .expect("commit");
    }
    let mut client = etcd_client::Client::connect(etcd.endpoints(), None)
        .await
        .expect("client");
    client.compact(last as i64, None).await.expect("compact");
    let mut watch = store.watch("/a/", first);
    let event = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("in time");
    let Some(WatchEvent::Reset { listing, restored }) = event else {
        panic!("{event:?}");
    };
    assert!(!restored);
    assert_eq!(listing.entries.len(), 9);
    store.commit(counted("/a/last")).await.expect("commit");
    let event = tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("in time");
    let Some(WatchEvent::Changes(changes)) = event else {
        panic!("{event:?}");
    };
    assert_eq!(changes[0].key, "/a/last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_restored_from_a_backup_is_read_anew() {
    let mut etcd = Etcd::start().await;
    let store: Arc<dyn MetaStore> = Arc::new(connect(&etcd).await);
    let catalog = Catalog::open(Arc::clone(&store), "c")
        .await
        .expect("catalog");
    let entry = SchemaEntry { created_ms: 1 };
    catalog.create_schema("s", entry).await.expect("schema");
    let shard = ShardId::generate();
    let kept = table("s", "kept", shard);
    catalog
        .create_tables(std::slice::from_ref(&kept))
        .await
        .expect("kept");
    etcd.kill(0);
    let backup = etcd.backup();
    etcd.restart(0).await;
    for i in 0..20 {
        let lost = table("s", &format!("lost{i}"), shard);
        catalog.create_tables(&[lost]).await.expect("lost");
    }
    catalog.sync().await.expect("sync");
    etcd.kill(0);
    etcd.restore(&backup);
    etcd.restart(0).await;
    let forgotten = async {
        while catalog.tables_count() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten)
        .await
        .expect("in time");
    assert_eq!(catalog.table("s", "kept"), Some(kept.entry));
    // And followed from there, although its revisions are those of before.
    let other = Catalog::open(Arc::clone(&store), "c")
        .await
        .expect("catalog");
    let new = table("s", "new", shard);
    other
        .create_tables(std::slice::from_ref(&new))
        .await
        .expect("new");
    let followed = async {
        while catalog.table("s", "new").is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, followed)
        .await
        .expect("in time");
    assert!(catalog.interrupted().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_tables_and_values_of_megabytes_pass_all_limits() {
    let etcd = Etcd::start().await;
    let store: Arc<dyn MetaStore> = Arc::new(connect(&etcd).await);
    // 24 MB in one listing: gRPC clients take answers of 4 MB.
    for i in 0..24 {
        let large = Op::Put(format!("/large/{i:02}"), vec![7; 1_000_000]);
        store.commit(Txn::default().then(large)).await.expect("put");
    }
    let listing = store.list("/large/").await.expect("list");
    assert_eq!(listing.entries.len(), 24);
    assert!(listing.entries.iter().all(|(_, v, _)| v.len() == 1_000_000));

    let (a, b) = (
        Catalog::open(Arc::clone(&store), "c").await.expect("a"),
        Catalog::open(Arc::clone(&store), "c").await.expect("b"),
    );
    let entry = SchemaEntry { created_ms: 1 };
    a.create_schema("s", entry).await.expect("schema");
    let shard = ShardId::generate();
    let long = "x".repeat(100);
    let many: Vec<NamedTable> = (0..5000)
        .map(|i| table("s", &format!("{long}{i}"), shard))
        .collect();
    a.create_tables(&many).await.expect("tables");
    b.sync().await.expect("sync");
    assert_eq!(b.tables_count(), 5000);
    let late = Catalog::open(Arc::clone(&store), "c").await.expect("late");
    assert_eq!(late.tables_count(), 5000);
    let tables = b.tables("s").expect("schema");
    b.drop_schema("s", &tables).await.expect("drop");
    a.sync().await.expect("sync");
    assert_eq!(a.tables_count(), 0);
    assert!(!a.has_schema("s"));
    // Followed, not read anew: the next change arrives by the same watch.
    a.create_schema("again", entry).await.expect("schema");
    b.sync().await.expect("sync");
    assert!(b.has_schema("again"));
    assert!(b.interrupted().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_of_several_pages_is_of_one_moment() {
    let etcd = Etcd::start().await;
    let store = Arc::new(connect(&etcd).await);
    for chunk in (0..5000).collect::<Vec<_>>().chunks(100) {
        let ops = chunk.iter().map(|i| put(&format!("/m/{i:04}"), "0"));
        let txn = Txn {
            compares: Vec::new(),
            ops: ops.collect(),
        };
        store.commit(txn).await.expect("put");
    }
    // The first and the last always change together.
    let both = |i: u64| Txn {
        compares: Vec::new(),
        ops: ["/m/0000", "/m/4999"]
            .map(|key| put(key, &i.to_string()))
            .into(),
    };
    store.commit(both(0)).await.expect("put");
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            for i in 1.. {
                store.commit(both(i)).await.expect("put");
            }
        }
    });
    let mut changes = 0;
    let mut before = Vec::new();
    let begun = Instant::now();
    while changes < 10 {
        let listing = store.list("/m/").await.expect("list");
        assert_eq!(listing.entries.len(), 5000);
        let (first, last) = (&listing.entries[0], &listing.entries[4999]);
        assert_eq!((&first.1, first.2), (&last.1, last.2));
        changes += u32::from(before != first.1);
        before = first.1.clone();
        assert!(begun.elapsed() < PATIENCE, "nothing is written meanwhile");
    }
    writing.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_log_in_and_wrong_passwords_are_told() {
    let etcd = Etcd::start_members(1, &["--auth-token", "simple", "--auth-token-ttl", "2"]).await;
    let endpoints = etcd.endpoints();
    let mut root = etcd_client::Client::connect(&endpoints, None)
        .await
        .expect("client");
    root.user_add("root", "secret", None).await.expect("user");
    root.role_add("root").await.expect("role");
    root.user_grant_role("root", "root").await.expect("grant");
    root.auth_enable().await.expect("auth");
    let config = |user: Option<(&str, &str)>| EtcdConfig {
        user: user.map(|(name, password)| (name.to_owned(), password.to_owned())),
        ..EtcdConfig::new(endpoints.clone())
    };
    for (user, word) in [
        (None, "user name is empty"),
        (Some(("root", "guess")), "password"),
    ] {
        let error = EtcdMetaStore::connect(config(user))
            .await
            .expect_err("refused");
        assert!(matches!(error, MetaError::Refused(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.to_string().contains("guess"), "{error}");
    }
    let store = EtcdMetaStore::connect(config(Some(("root", "secret"))))
        .await
        .expect("log in");
    store.commit(counted("/a")).await.expect("commit");
    // Its token expires unused; it logs in again by itself.
    tokio::time::sleep(Duration::from_secs(5)).await;
    store.commit(counted("/b")).await.expect("commit");
    assert!(store.get("/b").await.expect("get").is_some());
}

/// An authority and a certificate of it for 127.0.0.1, with the key; all PEM.
fn certificates() -> (String, String, String) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key"));
    let authority = authority.expect("authority");
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("params");
    let certificate = params.signed_by(&key, &authority).expect("certificate");
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_on_both_sides() {
    let dir = tempfile::tempdir().expect("dir");
    let (ca, certificate, key) = certificates();
    let file = |name: &str, pem: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).expect("write");
        path
    };
    let etcd = Etcd::start_secure(EtcdTlsFiles {
        certificate: &file("server.pem", &certificate),
        key: &file("server.key", &key),
        clients_ca: &file("ca.pem", &ca),
    })
    .await;
    let config = |ca_pem: &str, identity_pem| EtcdConfig {
        tls: EtcdTls {
            ca_pem: Some(ca_pem.to_owned()),
            identity_pem,
            server_name: None,
        },
        request_timeout: Duration::from_secs(2),
        ..EtcdConfig::new(etcd.endpoints())
    };
    let ours = Some((certificate, key));
    let store = EtcdMetaStore::connect(config(&ca, ours.clone()))
        .await
        .expect("both fit");
    store.commit(counted("/a")).await.expect("commit");
    let (other_ca, ..) = certificates();
    for wrong in [config(&other_ca, ours), config(&ca, None)] {
        EtcdMetaStore::connect(wrong).await.expect_err("refused");
    }
}

#[tokio::test]
async fn settings_that_cannot_be_right_are_refused_at_once() {
    let mut mixed = EtcdConfig::new(vec!["http://a:1".into(), "https://b:2".into()]);
    let mut unused = EtcdConfig::new(vec!["http://a:1".into()]);
    unused.tls.ca_pem = Some(String::new());
    mixed.connect_timeout = Duration::from_millis(100);
    for (config, word) in [
        (EtcdConfig::new(Vec::new()), "endpoints"),
        (EtcdConfig::new(vec!["a:1".into()]), "http://"),
        (mixed, "not both"),
        (unused, "certificates"),
    ] {
        let error = EtcdMetaStore::connect(config).await.expect_err(word);
        assert!(matches!(error, MetaError::Refused(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}
