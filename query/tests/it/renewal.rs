//! Files of a view that are gone: another view is taken, unless the newest manifest names them.

use std::fmt::{Debug, Display, Formatter};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use shoal_engine::{Backends, Database, EngineConfig, Role};
use shoal_meta::MemoryMetaStore;
use shoal_query::{QueryEngine, Session, SessionOptions, SqlPredicate};
use shoal_types::SystemClock;
use shoal_wal::simulated::SimulatedLogStore;
use tokio::sync::watch;

use crate::support;

/// A store whose manifests can be held back from its reader.
#[derive(Debug)]
struct Gate {
    inner: Arc<dyn ObjectStore>,
    open: watch::Sender<bool>,
}

impl Gate {
    fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            open: watch::channel(true).0,
        })
    }

    async fn pass(&self, path: Option<&Path>) {
        if path.is_some_and(|path| path.as_ref().contains("/manifest")) {
            let mut open = self.open.subscribe();
            let _ = open.wait_for(|open| *open).await;
        }
    }
}

impl Display for Gate {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

#[async_trait]
impl ObjectStore for Gate {
    async fn put_opts(&self, at: &Path, what: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(at, what, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.pass(Some(at)).await;
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        at: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.inner.list(prefix);
        let mut open = self.open.subscribe();
        if !prefix.is_some_and(|path| path.as_ref().contains("/manifest")) {
            return listed;
        }
        let opened = async move {
            let _ = open.wait_for(|open| *open).await;
            listed
        };
        futures::stream::once(opened).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.pass(prefix).await;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn config() -> EngineConfig {
    EngineConfig {
        cluster_name: "simulated".into(),
        shards: 1,
        gc_interval_s: 0,
        // What was read of a file must not be kept.
        cache_memory_bytes: 0,
        cache_metadata_bytes: 0,
        ..EngineConfig::default()
    }
}

fn session(db: Arc<Database>, dir: &std::path::Path) -> Session {
    let engine = QueryEngine::new(db, support::config(dir)).expect("engine");
    engine.session(SessionOptions::default())
}

async fn ok(session: &Session, sql: &str) -> Vec<String> {
    let done = support::run(session, sql).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

async fn files(store: &InMemory) -> Vec<Path> {
    let all: Vec<_> = store.list(None).try_collect().await.expect("list");
    let paths = all.into_iter().map(|meta| meta.location);
    let is_file = |path: &Path| path.extension() == Some("parquet");
    paths.filter(is_file).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_whose_files_were_collected_is_taken_anew() {
    let dir = tempfile::tempdir().expect("dir");
    let store = Arc::new(InMemory::new());
    let gate = Gate::new(Arc::clone(&store) as _);
    let leader_side = Backends {
        logs: Arc::new(SimulatedLogStore::new(71)),
        store: Arc::clone(&store) as _,
        meta: Arc::new(MemoryMetaStore::new()),
        clock: Arc::new(SystemClock),
        predicate: Some(Arc::new(SqlPredicate::new())),
        peers: None,
    };
    let follower_side = Backends {
        store: Arc::clone(&gate) as _,
        ..leader_side.clone()
    };
    let leader = Database::open(config(), leader_side).await.expect("open");
    let writes = session(Arc::clone(&leader), &dir.path().join("leader"));
    ok(&writes, "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT)").await;
    for v in 0..3 {
        let insert = format!("INSERT INTO t SELECT k, {v} FROM generate_series(1, 1000) AS g(k)");
        ok(&writes, &insert).await;
        leader.flush(None).await.expect("flush");
    }
    let old = files(&store).await;
    let follower = Database::open_node(config(), follower_side)
        .await
        .expect("open");
    let shard = leader.shard_ids()[0];
    let follows = follower.set_role(shard, Role::Follower, 0).await;
    assert_eq!(follows.expect("follow"), None);
    let reads = session(Arc::clone(&follower), &dir.path().join("follower"));

    // The follower learns of nothing, and its files go.
    gate.open.send_replace(false);
    leader.compact(None).await.expect("compact");
    for path in &old {
        store.delete(path).await.expect("delete");
    }
    assert!(!files(&store).await.is_empty());
    reads.set("consistency", "eventual").expect("set");
    let opened = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        gate.open.send_replace(true);
    });
    let sum = "SELECT count(*), sum(v) FROM t";
    assert_eq!(ok(&reads, sum).await, ["1000|2000"]);
    opened.await.expect("opened");

    // A file that the newest manifest names does not come back.
    for path in files(&store).await {
        store.delete(&path).await.expect("delete");
    }
    for session in [&reads, &writes] {
        let error = support::run(session, sum).await.expect_err("no file");
        assert_eq!(error.code, "data_damaged", "{error}");
        assert!(error.message.contains(".parquet does not exist"), "{error}");
    }
}
