//! A small table, writers and a reader that merges like the query layer does.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampNanosecondType};
use arrow_array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringViewArray, TimestampNanosecondArray,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use shoal_engine::merge::{MergeOptions, file_run, memory_run, merge_runs};
use shoal_engine::{
    Backends, Commit, Database, EngineConfig, NewTable, Peers, ReadView, Role, RowPredicate,
    TableHandle, WriteError, WriteOptions,
};
use shoal_meta::{
    Compare, Limits, Listing, MemoryMetaStore, MetaError, MetaStore, Registration, Txn, Watch,
};
use shoal_rows::{RowBlock, block_from_batch};
use shoal_sst::{ReadCounters, ScanOptions};
use shoal_types::{
    Clock, Column, ColumnId, ColumnType, Incarnation, LogId, Offset, ShardId, SystemClock, TableId,
    TableMode, TableOrigin, TableSchema, TimePrecision,
};
use shoal_wal::log::{AppendReceipt, Log, LogError, LogReader, LogStore};
use shoal_wal::simulated::SimulatedLogStore;
use tokio::sync::oneshot;

pub type Rows = BTreeMap<(String, i64), i64>;

pub fn config() -> EngineConfig {
    EngineConfig {
        cluster_name: "simulated".into(),
        shards: 1,
        gc_interval_s: 0,
        write_timeout_ms: 10_000,
        trim_delay_ms: 0,
        ..EngineConfig::default()
    }
}

pub fn schema(mode: TableMode) -> TableSchema {
    let column = |id, name: &str, column_type, nullable| Column {
        id: ColumnId(id),
        name: name.into(),
        column_type,
        nullable,
        default: None,
    };
    let time = ColumnType::Timestamp {
        precision: TimePrecision::Nanosecond,
        utc: false,
    };
    TableSchema {
        table: TableId::generate(),
        version: 1,
        incarnation: Incarnation(0),
        columns: vec![
            column(0, "host", ColumnType::Text, true),
            column(1, "ts", time, false),
            column(2, "v", ColumnType::Int64, true),
        ],
        key: vec![ColumnId(0), ColumnId(1)],
        time_column: Some(ColumnId(1)),
        mode,
        ttl_ms: None,
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(3),
        part_of: None,
    }
}

pub fn new_table(name: &str, mode: TableMode) -> NewTable {
    NewTable {
        schema_name: "public".into(),
        name: name.into(),
        schema: schema(mode),
        partitions: None,
    }
}

pub async fn make(db: &Database, name: &str, mode: TableMode) -> TableHandle {
    let made = db.create_tables(vec![new_table(name, mode)], false).await;
    made.expect("create").remove(0)
}

pub fn block(schema: &TableSchema, rows: &[(&str, i64, i64)], deletes: bool) -> RowBlock {
    let hosts = StringViewArray::from_iter_values(rows.iter().map(|r| r.0));
    let times = TimestampNanosecondArray::from_iter_values(rows.iter().map(|r| r.1));
    let values = Int64Array::from_iter_values(rows.iter().map(|r| r.2));
    let columns: Vec<ArrayRef> = vec![Arc::new(hosts), Arc::new(times), Arc::new(values)];
    let plain = schema.arrow();
    let keep: Vec<usize> = (0..3).collect();
    let arrow = Arc::new(plain.project(&keep).expect("columns"));
    let batch = RecordBatch::try_new(arrow, columns).expect("batch");
    let ids = [ColumnId(0), ColumnId(1), ColumnId(2)];
    block_from_batch(schema, &batch, &ids, deletes).expect("block")
}

pub async fn put(
    db: &Database,
    table: &TableHandle,
    rows: &[(&str, i64, i64)],
    options: WriteOptions,
) -> std::result::Result<Commit, WriteError> {
    let schema = db.table_schema(table).expect("schema");
    db.write(vec![block(&schema, rows, false)], options).await
}

/// All rows of a table, one entry a row, ordered by key.
pub async fn list(db: &Database, table: &TableHandle) -> Vec<((String, i64), i64)> {
    let view = db.read_view(table).await.expect("view");
    list_of(db, &view).await
}

/// All rows of a view.
pub async fn list_of(db: &Database, view: &ReadView) -> Vec<((String, i64), i64)> {
    let mut runs = Vec::new();
    for file in &view.files {
        let stream = db
            .sst_store()
            .scan(
                file,
                &view.schema,
                &ScanOptions::default(),
                Arc::new(ReadCounters::default()),
            )
            .await
            .expect("scan");
        let deletes: Vec<_> = view
            .deletes
            .iter()
            .filter(|d| file.version_max < d.version)
            .cloned()
            .collect();
        let batches: Vec<RecordBatch> = stream.try_collect().await.expect("batches");
        let batches = batches
            .into_iter()
            .map(|b| {
                deletes.iter().fold(b, |b, d| {
                    let predicate = view.predicate.as_ref().expect("predicate");
                    let hit = predicate
                        .matches(&view.schema, &d.predicate, &b)
                        .expect("matches");
                    let keep = BooleanArray::from(!hit.values());
                    arrow_select::filter::filter_record_batch(&b, &keep).expect("filter")
                })
            })
            .collect();
        runs.push(memory_run(batches));
    }
    for memory in &view.memory {
        let sorted = memory.sorted(&view.schema, view.predicate.as_deref());
        runs.push(memory_run(sorted.expect("sorted")));
    }
    let _ = file_run;
    let merged: Vec<RecordBatch> = merge_runs(Arc::clone(&view.schema), runs, MergeOptions::read())
        .try_collect()
        .await
        .expect("merge");
    let mut rows = Vec::new();
    for batch in merged {
        let hosts = batch.column(0).as_string_view();
        let times = batch.column(1).as_primitive::<TimestampNanosecondType>();
        let values = batch.column(2).as_primitive::<Int64Type>();
        for i in 0..batch.num_rows() {
            rows.push(((hosts.value(i).to_owned(), times.value(i)), values.value(i)));
        }
    }
    rows
}

pub async fn read(db: &Database, table: &TableHandle) -> Rows {
    let listed = list(db, table).await;
    let count = listed.len();
    let rows: Rows = listed.into_iter().collect();
    assert_eq!(rows.len(), count, "an upsert table shows a key once");
    rows
}

pub fn rows(all: &[(&str, i64, i64)]) -> Rows {
    let row = |r: &(&str, i64, i64)| ((r.0.to_owned(), r.1), r.2);
    all.iter().map(row).collect()
}

/// `v < N`
#[derive(Debug)]
pub struct BelowPredicate;

impl RowPredicate for BelowPredicate {
    fn matches(
        &self,
        _schema: &TableSchema,
        predicate: &str,
        batch: &RecordBatch,
    ) -> std::result::Result<BooleanArray, String> {
        let limit: i64 = predicate
            .trim_start_matches("v < ")
            .parse()
            .map_err(|_| "not v < N".to_owned())?;
        let values = batch.column_by_name("v").ok_or("no v")?;
        let values = values.as_primitive::<Int64Type>();
        Ok(values
            .iter()
            .map(|v| Some(v.is_some_and(|v| v < limit)))
            .collect())
    }
}

/// Milliseconds that only the test moves.
#[derive(Debug)]
pub struct ManualClock(pub AtomicU64);

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

pub async fn embedded(dir: &FilePath, config: EngineConfig) -> Arc<Database> {
    // The folder's lock goes with the last task of the process that held it.
    for _ in 0..200 {
        let predicate: Arc<dyn RowPredicate> = Arc::new(BelowPredicate);
        let opened =
            Database::open_embedded(dir, config.clone(), Arc::new(SystemClock), Some(predicate))
                .await;
        match opened {
            Ok(db) => return db,
            Err(e) if e.to_string().contains("in use") => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(e) => panic!("{e}"),
        }
    }
    panic!("the folder stays locked");
}

/// Parts of a database that outlive its process.
#[derive(Clone)]
pub struct World {
    pub logs: Arc<dyn LogStore>,
    pub store: Arc<dyn ObjectStore>,
    pub meta: Arc<dyn MetaStore>,
    pub clock: Arc<dyn Clock>,
}

impl World {
    pub fn new(logs: Arc<dyn LogStore>, store: Arc<dyn ObjectStore>) -> Self {
        Self {
            logs,
            store,
            meta: Arc::new(MemoryMetaStore::new()),
            clock: Arc::new(SystemClock),
        }
    }

    fn backends(&self) -> Backends {
        Backends {
            logs: Arc::clone(&self.logs),
            store: Arc::clone(&self.store),
            meta: Arc::clone(&self.meta),
            clock: Arc::clone(&self.clock),
            predicate: Some(Arc::new(BelowPredicate)),
            peers: None,
        }
    }

    pub async fn open(&self, config: EngineConfig) -> Arc<Database> {
        let opened = Database::open(config, self.backends()).await;
        opened.expect("open")
    }

    /// One node of several that know of each other.
    pub async fn open_peer(&self, config: EngineConfig, peers: Arc<dyn Peers>) -> Arc<Database> {
        let backends = Backends {
            peers: Some(peers),
            ..self.backends()
        };
        Database::open_node(config, backends).await.expect("open")
    }

    /// One node of several: it serves nothing until it is told to.
    pub async fn open_node(&self, config: EngineConfig) -> Arc<Database> {
        let opened = Database::open_node(config, self.backends()).await;
        opened.expect("open")
    }
}

/// One more node, which follows the shard of a table.
pub async fn follow_with(
    world: &World,
    table: &TableHandle,
    config: EngineConfig,
) -> Arc<Database> {
    let db = world.open_node(config).await;
    let role = db.set_role(table.shard, Role::Follower, 0).await;
    assert_eq!(role.expect("follow"), None);
    assert_eq!(db.status()[0].role, "follower");
    db
}

pub async fn until(db: &Database, what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within ten seconds: {what}: {:?}", db.status());
}

/// A process that stops having any effect after so many changes of the store and of meta.
#[derive(Debug)]
pub struct Fuse {
    left: AtomicI64,
    /// Whether the first change that is not answered takes effect.
    pub does_last: bool,
}

/// What a fuse makes of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Burn {
    Does,
    DoesUnheard,
    Fails,
}

impl Fuse {
    pub fn new(changes: i64, does_last: bool) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicI64::new(changes),
            does_last,
        })
    }

    fn next(&self) -> Burn {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            1.. => Burn::Does,
            0 if self.does_last => Burn::DoesUnheard,
            _ => Burn::Fails,
        }
    }

    pub fn is_burnt(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }
}

fn burn(fuse: &Mutex<Option<Arc<Fuse>>>) -> Burn {
    fuse.lock().as_ref().map_or(Burn::Does, |fuse| fuse.next())
}

/// A store whose puts fail on demand: before or after they took effect.
#[derive(Debug)]
pub struct FaultyStore {
    pub inner: Arc<dyn ObjectStore>,
    pub full: AtomicBool,
    /// Puts that take effect and report failure.
    pub lost_acks: AtomicU64,
    pub fuse: Mutex<Option<Arc<Fuse>>>,
    withheld: Mutex<Withheld>,
}

/// A put that is slow on its way.
#[derive(Debug, Default)]
struct Withheld {
    path: Option<Path>,
    payload: Option<PutPayload>,
    is_due: bool,
}

impl FaultyStore {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            full: AtomicBool::new(false),
            lost_acks: AtomicU64::new(0),
            fuse: Mutex::default(),
            withheld: Mutex::default(),
        })
    }

    /// The put of this object fails for its caller, and is kept back.
    pub fn withhold(&self, path: Path) {
        self.withheld.lock().path = Some(path);
    }

    /// The put kept back arrives just before the next one of the same object.
    pub fn deliver_before_next_put(&self) {
        self.withheld.lock().is_due = true;
    }

    /// What arrives before a put of this object; `Err`: the put itself is kept back.
    fn withheld(&self, location: &Path, payload: &PutPayload) -> Result<Option<PutPayload>> {
        let mut withheld = self.withheld.lock();
        if withheld.path.as_ref() != Some(location) {
            return Ok(None);
        }
        if withheld.is_due {
            withheld.path = None;
            return Ok(withheld.payload.take());
        }
        withheld.payload = Some(payload.clone());
        Err(Self::failed(std::io::ErrorKind::TimedOut))
    }

    fn failed(kind: std::io::ErrorKind) -> Error {
        Error::Generic {
            store: "FaultyStore",
            source: Box::new(std::io::Error::from(kind)),
        }
    }
}

impl Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultyStore")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Self::failed(std::io::ErrorKind::StorageFull));
        }
        let burn = burn(&self.fuse);
        if burn == Burn::Fails {
            return Err(Self::failed(std::io::ErrorKind::TimedOut));
        }
        if let Some(earlier) = self.withheld(location, &payload)? {
            self.inner.put_opts(location, earlier, opts.clone()).await?;
        }
        let done = self.inner.put_opts(location, payload, opts).await?;
        let lose = |n: u64| n.checked_sub(1);
        let lost = (self.lost_acks).fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose);
        if burn == Burn::DoesUnheard || lost.is_ok() {
            return Err(Self::failed(std::io::ErrorKind::TimedOut));
        }
        Ok(done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A meta store that takes a while to answer a commit it has done, or takes none.
#[derive(Debug)]
pub struct SlowMeta {
    inner: Arc<dyn MetaStore>,
    pub delay_ms: AtomicU64,
    /// It takes nothing.
    pub refuses: AtomicBool,
    pub fuse: Mutex<Option<Arc<Fuse>>>,
}

impl SlowMeta {
    pub fn new(inner: Arc<dyn MetaStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            delay_ms: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
            fuse: Mutex::default(),
        })
    }
}

#[async_trait]
impl MetaStore for SlowMeta {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn watch(&self, prefix: &str, after: u64) -> Watch {
        self.inner.watch(prefix, after)
    }

    async fn register_when(
        &self,
        condition: Option<Compare>,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> std::result::Result<Registration, MetaError> {
        self.inner.register_when(condition, key, value, ttl).await
    }

    async fn get(&self, key: &str) -> std::result::Result<Option<(Vec<u8>, u64)>, MetaError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str) -> std::result::Result<Listing, MetaError> {
        self.inner.list(prefix).await
    }

    async fn commit(&self, txn: Txn) -> std::result::Result<u64, MetaError> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(MetaError::Store("it takes nothing".into()));
        }
        let burn = burn(&self.fuse);
        if burn == Burn::Fails {
            return Err(MetaError::Store("it takes nothing any more".into()));
        }
        let revision = self.inner.commit(txn).await?;
        if burn == Burn::DoesUnheard {
            return Err(MetaError::Unknown("no answer".into()));
        }
        let delay_ms = self.delay_ms.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        Ok(revision)
    }
}

/// Logs that lose records and say nothing of it.
#[derive(Debug)]
pub struct SilentLogs {
    inner: SimulatedLogStore,
    silence: Arc<Mutex<Silence>>,
}

#[derive(Debug, Default)]
struct Silence {
    records: usize,
    receipts: Vec<oneshot::Sender<std::result::Result<Offset, LogError>>>,
}

impl SilentLogs {
    pub fn new(inner: SimulatedLogStore) -> Arc<Self> {
        Arc::new(Self {
            inner,
            silence: Arc::default(),
        })
    }

    /// Loses the next `records`. The last makes the failure of the first known; the others never
    /// hear anything.
    pub fn silence(&self, records: usize) {
        self.silence.lock().records = records;
    }
}

#[async_trait]
impl LogStore for SilentLogs {
    async fn create(&self, shard: ShardId) -> std::result::Result<LogId, LogError> {
        self.inner.create(shard).await
    }

    async fn open(
        &self,
        shard: ShardId,
        log: LogId,
    ) -> std::result::Result<Arc<dyn Log>, LogError> {
        Ok(Arc::new(SilentLog {
            inner: self.inner.open(shard, log).await?,
            silence: Arc::clone(&self.silence),
        }))
    }

    async fn list(&self) -> std::result::Result<Vec<(ShardId, LogId)>, LogError> {
        self.inner.list().await
    }

    async fn remove(&self, shard: ShardId) -> std::result::Result<(), LogError> {
        LogStore::remove(&self.inner, shard).await
    }
}

#[derive(Debug)]
struct SilentLog {
    inner: Arc<dyn Log>,
    silence: Arc<Mutex<Silence>>,
}

#[async_trait]
impl Log for SilentLog {
    fn append(&self, record: Bytes) -> AppendReceipt {
        let mut silence = self.silence.lock();
        if silence.records == 0 {
            return self.inner.append(record);
        }
        let (sender, receipt) = oneshot::channel();
        silence.records -= 1;
        silence.receipts.push(sender);
        if silence.records == 0 {
            let first = silence.receipts.remove(0);
            let _ = first.send(Err(LogError::NotAppended("lost".into())));
        }
        receipt
    }

    async fn read(&self, from: Offset) -> std::result::Result<Box<dyn LogReader>, LogError> {
        self.inner.read(from).await
    }

    async fn bounds(&self) -> std::result::Result<(Offset, Offset), LogError> {
        self.inner.bounds().await
    }

    async fn trim(&self, below: Offset) -> std::result::Result<(), LogError> {
        self.inner.trim(below).await
    }

    fn retained_bytes(&self) -> u64 {
        self.inner.retained_bytes()
    }
}
