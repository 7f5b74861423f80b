//! Several nodes that ask each other: writes, schemas and views that cross from one to another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use shoal_engine::{
    Database, EncodedView, EngineError, Peers, Read, ReadLevel, ReadPlace, Role, ShardCommit,
    ShardStatus, ShardWrite, SplitOrder, TableHandle, UnitChange, WriteError, WriteOptions,
};
use shoal_types::{
    Clock, Column, ColumnId, ColumnType, NodeId, ShardId, TableId, TableMode, TableSchema, WriteId,
};
use shoal_wal::record::SchemaChange;
use shoal_wal::simulated::SimulatedLogStore;

use super::support::*;

/// What all nodes know: who there is, and who leads.
#[derive(Debug, Default)]
struct Shared {
    nodes: Mutex<BTreeMap<NodeId, Weak<Database>>>,
    leader: Mutex<Option<NodeId>>,
    term: AtomicU64,
}

impl Shared {
    fn leading(&self, shard: ShardId) -> Result<Arc<Database>, EngineError> {
        let leader = self.leader.lock().expect("somebody leads");
        let found = self.nodes.lock().get(&leader).and_then(Weak::upgrade);
        found.ok_or_else(|| EngineError::ShardUnavailable {
            shard,
            why: "its leader is gone".into(),
        })
    }
}

#[derive(Debug)]
struct InProcess {
    me: NodeId,
    shared: Arc<Shared>,
}

impl InProcess {
    /// The leader, if that is another one.
    fn other(&self, shard: ShardId) -> Result<Arc<Database>, EngineError> {
        if *self.shared.leader.lock() == Some(self.me) {
            return Err(WriteError::NotLeader { shard }.into());
        }
        self.shared.leading(shard)
    }
}

#[async_trait]
impl Peers for InProcess {
    fn me(&self) -> NodeId {
        self.me
    }

    fn is_led(&self, shard: ShardId) -> Result<(), EngineError> {
        self.shared.leading(shard).map(drop)
    }

    fn leader_of(&self, _: ShardId) -> Option<NodeId> {
        *self.shared.leader.lock()
    }

    fn idle_shards(&self) -> Vec<ShardId> {
        Vec::new()
    }

    fn may_answer(&self, _: ShardId, place: ReadPlace) -> bool {
        place != ReadPlace::Follower && *self.shared.leader.lock() == Some(self.me)
    }

    async fn raise_term(&self, shard: ShardId, above: u64) -> Result<u64, EngineError> {
        if *self.shared.leader.lock() != Some(self.me) {
            return Err(EngineError::ShardUnavailable {
                shard,
                why: "another is to lead".into(),
            });
        }
        self.shared.term.fetch_max(above, Ordering::SeqCst);
        Ok(self.shared.term.fetch_add(1, Ordering::SeqCst) + 1)
    }

    async fn write(
        &self,
        shard: ShardId,
        write: ShardWrite,
        patience: Duration,
    ) -> Result<ShardCommit, WriteError> {
        if *self.shared.leader.lock() == Some(self.me) {
            return Err(WriteError::NotLeader { shard });
        }
        let leader = self.shared.leading(shard).expect("a leader");
        leader.write_here(shard, write, patience).await
    }

    async fn change_schemas(
        &self,
        shard: ShardId,
        changes: Vec<SchemaChange>,
        patience: Duration,
    ) -> Result<(), WriteError> {
        let leader = self.shared.leading(shard).expect("a leader");
        leader.change_schemas_here(shard, changes, patience).await
    }

    async fn table_schema(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<Option<Arc<TableSchema>>, EngineError> {
        self.other(shard)?.schema_here(shard, table)
    }

    async fn pending_deletes(
        &self,
        shard: ShardId,
        table: TableId,
    ) -> Result<Vec<String>, EngineError> {
        let leader = self.other(shard)?;
        leader.pending_deletes_here(shard, table).await
    }

    async fn change_unit(&self, shard: ShardId, change: UnitChange) -> Result<(), EngineError> {
        let leader = self.other(shard)?;
        leader.change_unit_here(shard, change).await
    }

    async fn place_child(&self, _: ShardId, child: ShardId) -> Result<(), EngineError> {
        let leader = *self.shared.leader.lock();
        for (node, db) in self.shared.nodes.lock().iter() {
            let role = match Some(*node) == leader {
                true => Role::Leader,
                false => Role::Follower,
            };
            let db = db.clone();
            tokio::spawn(async move {
                if let Some(db) = db.upgrade() {
                    db.set_role(child, role, 0).await.expect("the child's role");
                }
            });
        }
        Ok(())
    }

    async fn split_shard(&self, shard: ShardId, order: SplitOrder) -> Result<ShardId, EngineError> {
        let leader = self.other(shard)?;
        leader.split_shard_here(shard, order).await
    }

    async fn apply_deletes(&self, shard: ShardId, table: TableId) -> Result<(), EngineError> {
        let leader = self.other(shard)?;
        leader.apply_deletes_here(shard, table).await
    }

    async fn was_applied(
        &self,
        shard: ShardId,
        table: TableId,
        id: WriteId,
    ) -> Result<bool, EngineError> {
        self.other(shard)?.was_applied_here(shard, table, id)
    }

    async fn read_views(
        &self,
        shard: ShardId,
        tables: &[TableId],
        read: &Read,
    ) -> Result<Vec<EncodedView>, EngineError> {
        let leader = self.shared.leading(shard)?;
        let views = leader.views_here(shard, tables, read).await?;
        views.iter().map(EncodedView::encode).collect()
    }

    async fn statuses(&self) -> Vec<(NodeId, Option<Vec<ShardStatus>>)> {
        let nodes = self.shared.nodes.lock();
        let others = nodes.iter().filter(|(id, _)| **id != self.me);
        others
            .map(|(id, db)| (*id, db.upgrade().map(|db| db.status())))
            .collect()
    }

    async fn import_progress(
        &self,
        shard: ShardId,
        import: u128,
    ) -> Result<Option<u64>, EngineError> {
        self.other(shard)?.import_progress_here(shard, import)
    }
}

struct Nodes {
    world: World,
    shared: Arc<Shared>,
}

impl Nodes {
    fn new(seed: u64) -> Self {
        Self {
            world: World::new(
                Arc::new(SimulatedLogStore::new(seed)),
                Arc::new(InMemory::new()),
            ),
            shared: Arc::default(),
        }
    }

    async fn join(&self) -> (NodeId, Arc<Database>) {
        let me = NodeId::generate();
        let peers = InProcess {
            me,
            shared: Arc::clone(&self.shared),
        };
        let db = self.world.open_peer(config(), Arc::new(peers)).await;
        self.shared.nodes.lock().insert(me, Arc::downgrade(&db));
        (me, db)
    }

    async fn lead(&self, node: NodeId, db: &Database) {
        *self.shared.leader.lock() = Some(node);
        let shard = db.shard_ids()[0];
        db.set_role(shard, Role::Leader, 0).await.expect("leads");
    }
}

/// What a node without a replica sees of a table.
async fn seen(db: &Database, table: &TableHandle) -> Vec<((String, i64), i64)> {
    let view = db.read(table, &Read::default()).await.expect("view");
    assert!(view.served_by.leader);
    list_of(db, &view).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_replica_makes_tables_writes_and_reads() {
    let nodes = Nodes::new(71);
    let (first, leader) = nodes.join().await;
    nodes.lead(first, &leader).await;
    let (_, other) = nodes.join().await;
    for mode in [TableMode::Upsert, TableMode::Append] {
        let name = format!("{mode:?}").to_lowercase();
        let table = make(&other, &name, mode).await;
        // In segments, in files and in the tail; overwritten and deleted on both sides.
        for round in 0..3 {
            let rows: Vec<_> = (0..40)
                .map(|i| (["a", "b", "c"][i % 3], i as i64, round + (i % 2) as i64))
                .collect();
            for part in rows.chunks(7) {
                put(&other, &table, part, WriteOptions::default())
                    .await
                    .expect("write");
            }
            if mode == TableMode::Append {
                other
                    .delete_where(&table, "v < 1", WriteOptions::default())
                    .await
                    .expect("delete");
            } else {
                let schema = other.table_schema(&table).expect("schema");
                let gone = block(&schema, &[("a", 3, 0), ("b", 4, 0)], true);
                other
                    .write(vec![gone], WriteOptions::default())
                    .await
                    .expect("delete");
                put(
                    &other,
                    &table,
                    &[("b", 4, 100 + round)],
                    WriteOptions::default(),
                )
                .await
                .expect("write again");
            }
            let there = list(&leader, &table).await;
            assert!(!there.is_empty());
            assert_eq!(seen(&other, &table).await, there, "{mode:?}, round {round}");
            if round == 0 {
                leader.flush(None).await.expect("flush");
                assert_eq!(seen(&other, &table).await, there, "{mode:?}, in files");
            }
        }
    }
    // Columns are the leader's to change, and the other's next write knows them.
    let table = other.table("public", "upsert").expect("named");
    let wider = |schema: &TableSchema| {
        let mut wider = schema.clone();
        wider.columns.push(Column {
            id: wider.next_column_id,
            name: "more".into(),
            column_type: ColumnType::Int64,
            nullable: true,
            default: None,
        });
        wider.next_column_id = ColumnId(wider.next_column_id.0 + 1);
        Ok(Some(wider))
    };
    let before = other.table_schema(&table).expect("schema");
    leader.alter_table(&table, &wider).await.expect("alter");
    let stale = block(&before, &[("a", 1, 1)], false);
    let outcome = other.write(vec![stale], WriteOptions::default()).await;
    if let Err(error) = outcome {
        assert!(matches!(error, WriteError::StaleSchema { .. }), "{error}");
        assert_eq!(
            other.table_schema(&table).expect("schema").version,
            before.version + 1
        );
    }
    other.refresh_schema(&table).await.expect("refresh");
    other.drop_table(&table).await.expect("drop");
    // A name that a node knows goes when meta tells it so.
    for turn in 0.. {
        let known = leader.find_table("public", "upsert").await.expect("meta");
        if known.is_none() {
            break;
        }
        assert!(turn < 500, "still known");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_finds_the_next_leader_and_its_retry_is_not_doubled() {
    let nodes = Nodes::new(72);
    let (first, a) = nodes.join().await;
    nodes.lead(first, &a).await;
    let (second, b) = nodes.join().await;
    let table = make(&a, "log", TableMode::Append).await;
    let id = WriteId(ulid::Ulid::from_parts(shoal_types::SystemClock.now_ms(), 1).0);
    let options = || WriteOptions {
        write_id: Some(id),
        ..WriteOptions::default()
    };
    b.set_role(table.shard, Role::Follower, 0)
        .await
        .expect("follows");
    // A replica that was just opened may not have applied the table yet.
    b.refresh_schema(&table).await.expect("caught up");
    let sent = put(&b, &table, &[("a", 1, 1)], options())
        .await
        .expect("write");
    assert!(!sent.duplicate);
    nodes.lead(second, &b).await;
    // The old leader has read the claim by the time its write is back.
    for db in [&a, &b] {
        let again = put(db, &table, &[("a", 1, 1)], options())
            .await
            .expect("retry");
        assert!(again.duplicate);
        put(db, &table, &[("a", 2, 2)], WriteOptions::default())
            .await
            .expect("write");
    }
    assert_eq!(a.role(table.shard), Role::Follower);
    for db in [&a, &b] {
        assert_eq!(list(db, &table).await.len(), 3);
    }
    let follower = Read {
        place: ReadPlace::Follower,
        level: ReadLevel::Strong,
        patience: None,
    };
    let view = a.read(&table, &follower).await.expect("view");
    assert!(!view.served_by.leader && view.served_by.node == Some(first));
    let error = b.views_here(table.shard, &[table.id], &follower).await;
    assert!(matches!(error, Err(EngineError::ShardUnavailable { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reaches_a_node_that_is_about_to_lead_is_answered_as_soon_as_it_does() {
    let nodes = Nodes::new(74);
    let (first, old) = nodes.join().await;
    nodes.lead(first, &old).await;
    let table = make(&old, "log", TableMode::Append).await;
    put(&old, &table, &[("a", 1, 1)], WriteOptions::default())
        .await
        .expect("write");
    let (second, next) = nodes.join().await;
    // It is named, and has no replica yet.
    *nodes.shared.leader.lock() = Some(second);
    let id: WriteId = ulid::Ulid::new().to_string().parse().expect("id");
    let asked = async {
        tokio::try_join!(
            async { next.read(&table, &Read::default()).await.map(drop) },
            async { next.pending_deletes(&table).await.map(drop) },
            async { next.was_applied(&table, id).await.map(drop) },
            async { next.refresh_schema(&table).await },
        )
    };
    let leads = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        nodes.lead(second, &next).await;
    };
    let (answers, ()) = tokio::join!(asked, leads);
    answers.expect("answered");
}
