//! Objects in a real MinIO: what a fit store is, answers that get lost, outages; and the tests of
//! manifests and files that any store must pass.

use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use shoal_engine::manifest::Chain;
use shoal_engine::manifest::format::Edit;
use shoal_engine::manifest::publish::{prepare, publish};
use shoal_engine::{EngineError, RemoteStore, RequestKind, S3Config, WriteOptions};
use shoal_testkit::{Cut, Minio, Proxy};
use shoal_types::TableMode;
use shoal_wal::simulated::SimulatedLogStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use super::{faults, files, model};

fn settings(address: &str) -> S3Config {
    S3Config {
        endpoint: format!("http://{address}"),
        bucket: Minio::BUCKET.into(),
        prefix: "some/where".into(),
        access_key: Minio::ACCESS_KEY.into(),
        secret_key: Minio::SECRET_KEY.into(),
        allow_http: true,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(2),
        retries_max: 2,
        retry_timeout: Duration::from_secs(4),
        ..S3Config::default()
    }
}

async fn refused(config: &S3Config) -> String {
    match RemoteStore::open(config).await {
        Err(EngineError::Invalid(what)) => what,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fit_store_is_taken_and_wrong_settings_are_named() {
    let minio = Minio::start().await;
    let fine = settings(&minio.address());
    let remote = RemoteStore::open(&fine).await.expect("fit");
    let left: Vec<_> = futures::TryStreamExt::try_collect(remote.store.list(None))
        .await
        .expect("list");
    assert_eq!(left, [], "the probe cleans up");
    let path = Path::from("one");
    let counted = |kind| {
        let now = remote.traffic.of(kind);
        (now.requests, now.failed, now.sent_bytes, now.received_bytes)
    };
    let before = RequestKind::ALL.map(counted);
    let create = || PutOptions::from(PutMode::Create);
    let put = remote.store.put_opts(&path, "12345".into(), create()).await;
    put.expect("put");
    let again = remote
        .store
        .put_opts(&path, "123456".into(), create())
        .await;
    again.expect_err("there already");
    remote.store.get(&path).await.expect("get");
    remote.store.head(&path).await.expect("head");
    remote.store.delete(&path).await.expect("delete");
    let mut after = RequestKind::ALL.map(counted);
    for (now, then) in after.iter_mut().zip(before) {
        *now = (
            now.0 - then.0,
            now.1 - then.1,
            now.2 - then.2,
            now.3 - then.3,
        );
    }
    let [get, head, put, list, delete] = after;
    assert_eq!(get, (1, 0, 0, 5));
    assert_eq!(head, (1, 0, 0, 0));
    assert_eq!((put.0, put.1, put.2), (2, 1, 11));
    assert_eq!(list, (0, 0, 0, 0));
    assert_eq!((delete.0, delete.1), (1, 0));
    assert!(remote.traffic.of(RequestKind::Put).waited_us > 0);

    let mut wrong = fine.clone();
    wrong.secret_key = "guess".into();
    let what = refused(&wrong).await;
    assert!(what.contains("SignatureDoesNotMatch"), "{what}");
    assert!(what.contains("objects.secret_key"), "{what}");
    assert!(!what.contains("guess"), "{what}");
    wrong.access_key = "nobody".into();
    let what = refused(&wrong).await;
    assert!(what.contains("InvalidAccessKeyId"), "{what}");
    let mut wrong = fine.clone();
    wrong.bucket = "elsewhere".into();
    let what = refused(&wrong).await;
    assert!(what.contains("objects.bucket"), "{what}");
    let mut wrong = fine.clone();
    wrong.allow_http = false;
    let what = refused(&wrong).await;
    assert!(what.contains("objects.allow_http"), "{what}");
    let mut wrong = fine.clone();
    wrong.secret_key = String::new();
    let what = refused(&wrong).await;
    assert!(what.contains("objects.secret_key"), "{what}");
    let begun = Instant::now();
    let error = RemoteStore::open(&settings("127.0.0.1:1"))
        .await
        .expect_err("nobody there");
    assert!(matches!(error, EngineError::Sst(_)), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_belongs_to_one_cluster_of_a_name() {
    let minio = Minio::start().await;
    let remote = RemoteStore::open(&settings(&minio.address()))
        .await
        .expect("fit");
    remote.claim("one", "id-1").await.expect("first");
    remote.claim("one", "id-1").await.expect("again");
    remote.claim("other", "id-2").await.expect("another name");
    let error = remote
        .claim("one", "id-3")
        .await
        .expect_err("another cluster");
    let what = error.to_string();
    assert!(what.contains("id-1") && what.contains("id-3"), "{what}");
}

/// How a store that must not be used answers.
#[derive(Clone, Copy)]
enum Unfit {
    /// Every PUT succeeds.
    IgnoresCondition,
    /// A PUT with a condition is not implemented.
    NoConditions,
    /// A second PUT is refused, LIST shows nothing.
    ListsLate,
}

/// A server that speaks just enough S3.
async fn unfit_store(kind: Unfit) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("port");
    let address = listener.local_addr().expect("address").to_string();
    let puts = Arc::new(std::sync::atomic::AtomicU32::new(0));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let puts = Arc::clone(&puts);
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut piece).await {
                    request.extend_from_slice(&piece[..n]);
                    let text = String::from_utf8_lossy(&request).to_lowercase();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        continue;
                    };
                    let length = head.split("content-length: ").nth(1);
                    let length = length.and_then(|l| l.lines().next()?.trim().parse().ok());
                    if body.len() < length.unwrap_or(0) {
                        continue;
                    }
                    let earlier = puts.load(std::sync::atomic::Ordering::SeqCst);
                    let (status, answer) = match (head.split(' ').next(), kind) {
                        (Some("put"), Unfit::NoConditions) => ("501 Not Implemented", ""),
                        (Some("put"), Unfit::ListsLate) if earlier > 0 => {
                            ("412 Precondition Failed", "")
                        }
                        (Some("put"), _) => {
                            puts.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            ("200 OK", "")
                        }
                        (Some("get"), _) if head.contains("list-type") => (
                            "200 OK",
                            "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
                        ),
                        (Some("get"), _) => ("200 OK", "first"),
                        _ => ("204 No Content", ""),
                    };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nETag: \"1\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {}\r\n\r\n{answer}",
                        answer.len()
                    );
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                    request.clear();
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_on_which_two_leaders_could_both_win_is_refused() {
    for (kind, word) in [
        (Unfit::IgnoresCondition, "ignores If-None-Match"),
        (Unfit::NoConditions, "If-None-Match"),
        (Unfit::ListsLate, "LIST does not show"),
    ] {
        let mut config = settings(&unfit_store(kind).await);
        config.retries_max = 0;
        let outcome = RemoteStore::open(&config).await;
        let error = outcome.expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// The client repeats a put whose connection broke. The second one is refused by the first one's
/// effect: whoever puts with a condition must find out that it was his.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_whose_answer_is_lost_is_found_and_used() {
    let minio = Minio::start().await;
    let proxy = Proxy::start(&minio.address()).await;
    let config = settings(&proxy.address());
    let store = RemoteStore::open(&config).await.expect("fit").store;
    // The trap itself: a success that looks like a loss.
    proxy.cut_next(Cut::Answer, "/plain", 1);
    let path = Path::from("plain");
    let put = store.put_opts(&path, "x".into(), PutOptions::from(PutMode::Create));
    let outcome = put.await;
    assert!(
        matches!(outcome, Err(object_store::Error::AlreadyExists { .. })),
        "{outcome:?}"
    );
    assert_eq!(proxy.cuts_done(), 1);

    let world = World::new(Arc::new(SimulatedLogStore::new(11)), Arc::clone(&store));
    let db = world.open(super::support::config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    for v in 0..6_i64 {
        put_row(&db, &table, v).await;
        // By turns the SST's, the manifest's, and both by silence.
        let (cut, needle) = match v % 3 {
            0 => (Cut::Answer, ".parquet"),
            1 => (Cut::Answer, "/manifest/"),
            _ => (Cut::Silence, "/manifest/"),
        };
        let before = proxy.cuts_done();
        proxy.cut_next(cut, needle, 1);
        let begun = Instant::now();
        while let Err(error) = db.flush(None).await {
            assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
        }
        assert_eq!(proxy.cuts_done(), before + 1, "round {v} lost an answer");
    }
    assert_eq!(db.status()[0].memory_bytes, 0);
    assert_eq!(list(&db, &table).await.len(), 6);
    drop(db);
    let db = world.open(super::support::config()).await;
    assert_eq!(list(&db, &table).await.len(), 6);
}

async fn put_row(db: &shoal_engine::Database, table: &shoal_engine::TableHandle, v: i64) {
    put(db, table, &[("a", v, v)], WriteOptions::default())
        .await
        .expect("write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_publish_one_number_agree_on_the_winner() {
    let minio = Minio::start().await;
    let store = RemoteStore::open(&settings(&minio.address()))
        .await
        .expect("fit")
        .store;
    let world = World::new(Arc::new(SimulatedLogStore::new(12)), Arc::clone(&store));
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    let chain = Chain {
        store,
        layout: shoal_sst::ObjectLayout::new("", "simulated"),
        cluster: "simulated".into(),
        shard: table.shard,
    };
    drop(db);
    for round in 0..10 {
        let base = chain.load_newest().await.expect("load").expect("manifest");
        let term = base.publisher.term + 1;
        let racers: Vec<_> = (0..4)
            .map(|_| {
                let writer = shoal_types::WriterId::generate();
                prepare(&chain, &base, Edit::default(), term, writer, 1).expect("prepare")
            })
            .collect();
        let tried = racers.iter().map(|r| publish(&chain, r));
        let tried = futures::future::join_all(tried).await;
        let won: Vec<usize> = (0..4).filter(|i| tried[*i].is_ok()).collect();
        assert_eq!(won.len(), 1, "round {round}: {tried:?}");
        let newest = chain.load_newest().await.expect("load").expect("manifest");
        assert_eq!(newest.reference, racers[won[0]].state.reference);
    }
}

/// A store that is away or hangs stops flushes, not writes, and everything goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_or_hangs_stops_flushes_alone() {
    let mut minio = Minio::start().await;
    let store = RemoteStore::open(&settings(&minio.address()))
        .await
        .expect("fit")
        .store;
    let world = World::new(Arc::new(SimulatedLogStore::new(13)), store);
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    put_row(&db, &table, 0).await;
    db.flush(None).await.expect("flush");
    for (v, hangs) in [(1, false), (2, true)] {
        if hangs {
            minio.freeze();
        } else {
            minio.kill();
        }
        put_row(&db, &table, v * 10).await;
        let begun = Instant::now();
        db.flush(None).await.expect_err("no store");
        // Tries of the client times tries of whoever asks, none without end.
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
        put_row(&db, &table, v * 10 + 1).await;
        if hangs {
            minio.thaw();
        } else {
            minio.restart().await;
        }
        db.flush(None).await.expect("goes on");
        db.flush(None).await.expect("the rest");
    }
    assert_eq!(list(&db, &table).await.len(), 5);
    assert_eq!(db.status()[0].memory_bytes, 0);
    drop(db);
    let db = world.open(config()).await;
    assert_eq!(list(&db, &table).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_store_is_only_slow() {
    let minio = Minio::start().await;
    let proxy = Proxy::start(&minio.address()).await;
    let store = RemoteStore::open(&settings(&proxy.address()))
        .await
        .expect("fit")
        .store;
    let world = World::new(Arc::new(SimulatedLogStore::new(14)), store);
    let db = world.open(config()).await;
    let table = make(&db, "log", TableMode::Append).await;
    proxy.delay(Duration::from_millis(300));
    put_row(&db, &table, 1).await;
    db.flush(None).await.expect("flush");
    assert_eq!(list(&db, &table).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rules_of_manifests_and_files_hold_on_a_real_store() {
    let minio = Minio::start().await;
    let store = |prefix: &str| -> Arc<dyn ObjectStore> {
        let config = S3Config {
            prefix: prefix.into(),
            ..settings(&minio.address())
        };
        RemoteStore::untried(&config).expect("settings").store
    };
    faults::a_zombie_follows(store("zombie")).await;
    faults::an_overtaken_leader_steps_down(store("overtaken")).await;
    files::replaced_files_go_in_time(store("retention")).await;
    let world = World::new(Arc::new(SimulatedLogStore::new(15)), store("model"));
    let open: model::Open = Box::new(move |config| {
        let world = world.clone();
        Box::pin(async move { world.open(config).await })
    });
    model::life(5, open).await;
}

/// A file of several parts, and a listing of several pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_go_in_parts_and_long_listings_come_in_pages() {
    let minio = Minio::start().await;
    let remote = RemoteStore::open(&settings(&minio.address()))
        .await
        .expect("fit");
    let path = Path::from("large");
    let mut upload = remote.store.put_multipart(&path).await.expect("begin");
    for part in 0..3_u8 {
        let bytes = vec![part; 5 << 20];
        upload.put_part(bytes.into()).await.expect("part");
    }
    upload.complete().await.expect("complete");
    let back = remote
        .store
        .get_range(&path, (5 << 20) - 1..(5 << 20) + 1)
        .await;
    assert_eq!(back.expect("range").as_ref(), [0, 1]);
    let before = remote.traffic.of(RequestKind::List).requests;
    let mut putting = tokio::task::JoinSet::new();
    for i in 0..1100 {
        let store = Arc::clone(&remote.store);
        putting.spawn(async move {
            let path = Path::from(format!("many/{i:05}"));
            store.put(&path, "x".into()).await.expect("put");
        });
        if i % 32 == 31 {
            while putting.join_next().await.is_some() {}
        }
    }
    while putting.join_next().await.is_some() {}
    let folder = Path::from("many");
    let listed: Vec<_> = futures::TryStreamExt::try_collect(remote.store.list(Some(&folder)))
        .await
        .expect("list");
    assert_eq!(listed.len(), 1100);
    assert_eq!(remote.traffic.of(RequestKind::List).requests, before + 2);
}
