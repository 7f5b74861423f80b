//! `system`: what the database knows of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use shoal_engine::manifest::Loss;
use shoal_engine::{Database, Read, ReadView, ShardStatus, TableHandle};
use shoal_types::{Clock, NodeId, ShardId, SystemClock, TableMode};

use super::cells::{Cell, CellColumn, Holds, batch_of, learn, number, schema_of, tables, text};
use super::partitions::{at_once, column_names, method_text, partition_owns};
use super::virtual_table::{VirtualRows, VirtualSchema, Wanted};
use crate::QueryError;
use crate::running::Running;

/// The schema.
pub(super) fn schema(db: Arc<Database>, running: Arc<Running>) -> VirtualSchema {
    let table = |view| {
        Arc::new(SystemTable {
            db: Arc::clone(&db),
            running: Arc::clone(&running),
            view,
        }) as Arc<dyn VirtualRows>
    };
    VirtualSchema(vec![
        ("tables", table(View::Tables)),
        ("partitions", table(View::Partitions)),
        ("shards", table(View::Shards)),
        ("ssts", table(View::Ssts)),
        ("queries", table(View::Queries)),
        ("nodes", table(View::Nodes)),
        ("replicas", table(View::Replicas)),
        ("events", table(View::Events)),
        ("procedures", table(View::Procedures)),
    ])
}

#[derive(Clone, Copy)]
enum View {
    Tables,
    Partitions,
    Shards,
    Ssts,
    Queries,
    Nodes,
    Replicas,
    Events,
    Procedures,
}

/// The name of the only node of a standalone process.
const NODE: &str = "standalone";

fn name_of(node: Option<NodeId>) -> Cell {
    match node {
        Some(node) => text(node),
        None => text(NODE),
    }
}

struct SystemTable {
    db: Arc<Database>,
    running: Arc<Running>,
    view: View,
}

/// Columns of a view.
fn columns_of(view: View) -> &'static [CellColumn] {
    use Holds::{Number, Text, Time};
    match view {
        View::Tables => &[
            ("table_schema", Text),
            ("table_name", Text),
            ("id", Text),
            ("mode", Text),
            ("primary_key", Text),
            ("time_column", Text),
            ("ttl_ms", Number),
            ("columns", Number),
            ("schema_version", Number),
            ("shard", Text),
        ],
        View::Partitions => &[
            ("table_schema", Text),
            ("table_name", Text),
            ("name", Text),
            ("id", Text),
            ("shard", Text),
            ("method", Text),
            ("columns", Text),
            ("owns", Text),
            ("rows", Number),
            ("files", Number),
            ("bytes", Number),
            ("shared_files", Number),
            ("cut_from", Text),
            ("cut_in_shard", Text),
            ("cut_at", Number),
        ],
        View::Shards => &[
            ("id", Text),
            ("role", Text),
            ("state", Text),
            ("why", Text),
            ("epoch", Text),
            ("position", Number),
            ("manifest", Number),
            ("replay_offset", Number),
            ("tables", Number),
            ("memory_bytes", Number),
            ("log_bytes", Number),
            ("files", Number),
            ("bytes", Number),
            ("split_from", Text),
            ("split_at", Number),
        ],
        View::Ssts => &[
            ("table_schema", Text),
            ("table_name", Text),
            ("partition", Text),
            ("shard", Text),
            ("path", Text),
            ("bytes", Number),
            ("rows", Number),
            ("series", Number),
            ("level", Number),
            ("time_min", Number),
            ("time_max", Number),
            ("version_min", Number),
            ("version_max", Number),
        ],
        View::Queries => &[
            ("id", Number),
            ("user", Text),
            ("schema", Text),
            ("started", Time),
            ("elapsed_ms", Number),
            ("rows", Number),
            ("bytes_read", Number),
            ("sql", Text),
        ],
        View::Nodes => &[
            ("id", Text),
            ("state", Text),
            ("version", Text),
            ("leaders", Number),
            ("replicas", Number),
            ("statements", Number),
            ("memory_bytes", Number),
            ("log_bytes", Number),
            ("bytes", Number),
        ],
        View::Replicas => &[
            ("shard", Text),
            ("node", Text),
            ("role", Text),
            ("state", Text),
            ("why", Text),
            ("epoch", Text),
            ("position", Number),
        ],
        View::Events => &[
            ("at", Time),
            ("shard", Text),
            ("event", Text),
            ("node", Text),
            ("term", Number),
            ("position_from", Number),
            ("position_to", Number),
            ("what", Text),
            ("reason", Text),
        ],
        View::Procedures => &[
            ("id", Text),
            ("task", Text),
            ("state", Text),
            ("shard", Text),
            ("node", Text),
            ("by", Text),
            ("why", Text),
            ("begun", Time),
            ("ended", Time),
            ("old_leader", Text),
            ("old_term", Number),
            ("epoch", Text),
            ("pause_ms", Number),
            ("records_replayed", Number),
            ("error", Text),
        ],
    }
}

#[async_trait]
impl VirtualRows for SystemTable {
    fn schema(&self) -> SchemaRef {
        schema_of(columns_of(self.view))
    }

    async fn rows(&self, wanted: &Wanted) -> Result<RecordBatch, QueryError> {
        if matches!(self.view, View::Tables | View::Partitions | View::Ssts) {
            learn(&self.db, wanted).await;
        }
        let rows = match self.view {
            View::Tables => self.table_rows(wanted),
            View::Partitions => self.partition_rows(wanted).await,
            View::Shards => self.shard_rows().await,
            View::Ssts => self.sst_rows(wanted).await?,
            View::Queries => self.query_rows(),
            View::Nodes => self.node_rows().await,
            View::Replicas => self.replica_rows().await,
            View::Events => self.event_rows().await,
            View::Procedures => self.procedure_rows().await?,
        };
        batch_of(columns_of(self.view), &rows)
    }
}

impl SystemTable {
    fn table_rows(&self, wanted: &Wanted) -> Vec<Vec<Cell>> {
        let mut rows = Vec::new();
        for table in tables(&self.db, wanted) {
            let Ok(schema) = self.db.table_schema(&table) else {
                continue;
            };
            let name_of = |id| schema.column_by_id(id).map(|c| c.name.clone());
            let key: Vec<String> = schema.key.iter().filter_map(|id| name_of(*id)).collect();
            rows.push(vec![
                text(&table.schema_name),
                text(&table.name),
                text(table.table),
                text(match schema.mode {
                    TableMode::Upsert => "upsert",
                    TableMode::Append => "append",
                }),
                text(key.join(", ")),
                Cell::Text(schema.time_column.and_then(name_of)),
                Cell::Number(schema.ttl_ms.and_then(|ttl| i64::try_from(ttl).ok())),
                number(schema.columns.len()),
                number(schema.version),
                text(table.shard),
            ]);
        }
        rows
    }

    /// Each shard once: its leader's, else that of whoever has it.
    async fn shard_rows(&self) -> Vec<Vec<Cell>> {
        let mut shards: BTreeMap<ShardId, ShardStatus> = BTreeMap::new();
        for (_, told) in self.db.all_statuses().await {
            for status in told.into_iter().flatten() {
                let leads = status.role == "leader";
                if leads || !shards.contains_key(&status.id) {
                    shards.insert(status.id, status);
                }
            }
        }
        shards
            .into_values()
            .map(|shard| {
                vec![
                    text(shard.id),
                    text(shard.role),
                    text(shard.state),
                    Cell::Text(shard.why),
                    text(shard.epoch),
                    number(shard.position.0),
                    number(shard.manifest),
                    number(shard.replay_offset.0),
                    number(shard.tables),
                    number(shard.memory_bytes),
                    number(shard.log_bytes),
                    number(shard.files),
                    number(shard.bytes),
                    Cell::Text(shard.split_from.map(|from| from.shard.to_string())),
                    (shard.split_from).map_or(Cell::Number(None), |from| number(from.at.0)),
                ]
            })
            .collect()
    }

    /// The nodes that are heard of, this one first.
    async fn node_rows(&self) -> Vec<Vec<Cell>> {
        let mut statements = Some(self.running.list().len());
        let all = self.db.all_statuses().await.into_iter();
        all.map(|(node, told)| {
            let up = told.is_some();
            let shards = told.unwrap_or_default();
            let sum = |of: fn(&ShardStatus) -> u64| number(shards.iter().map(of).sum::<u64>());
            vec![
                name_of(node),
                text(if up { "up" } else { "silent" }),
                text(env!("CARGO_PKG_VERSION")),
                number(shards.iter().filter(|s| s.role == "leader").count()),
                number(shards.len()),
                // Only its own are known to a node.
                statements.take().map_or(Cell::Number(None), number),
                sum(|s| s.memory_bytes),
                sum(|s| s.log_bytes),
                sum(|s| s.bytes),
            ]
        })
        .collect()
    }

    /// Every replica of each shard.
    async fn replica_rows(&self) -> Vec<Vec<Cell>> {
        let mut rows = Vec::new();
        for (node, told) in self.db.all_statuses().await {
            for shard in told.into_iter().flatten() {
                rows.push(vec![
                    text(shard.id),
                    name_of(node),
                    text(shard.role),
                    text(shard.state),
                    Cell::Text(shard.why),
                    text(shard.epoch),
                    number(shard.position.0),
                ]);
            }
        }
        rows
    }

    /// What operators gave up, as the shards' manifests record it: every replica has the same, but
    /// one that lags has fewer.
    async fn event_rows(&self) -> Vec<Vec<Cell>> {
        let mut events: BTreeMap<(u64, ShardId, u64), Loss> = BTreeMap::new();
        for (_, told) in self.db.all_statuses().await {
            for shard in told.into_iter().flatten() {
                for loss in shard.losses {
                    events.insert((loss.at_ms, shard.id, loss.from.0), loss);
                }
            }
        }
        let rows = events.into_iter().map(|((at_ms, shard, _), loss)| {
            vec![
                number(at_ms),
                text(shard),
                text(loss.kind.as_str()),
                text(loss.node),
                number(loss.term),
                number(loss.from.0),
                number(loss.to.0),
                text(loss.what),
                text(loss.reason),
            ]
        });
        rows.collect()
    }

    /// What the schedulers keep: procedures under way, and the newest that have ended.
    async fn procedure_rows(&self) -> Result<Vec<Vec<Cell>>, QueryError> {
        let kept = self.db.scheduler_records("procedure/").await?;
        let rows = kept.into_iter().filter_map(|(key, value)| {
            let record: serde_json::Value = serde_json::from_slice(&value)
                .inspect_err(|error| tracing::warn!(key, %error, "a procedure cannot be read"))
                .ok()?;
            let outcome = &record["outcome"];
            let word = |value: &serde_json::Value| Cell::Text(value.as_str().map(str::to_owned));
            let count = |value: &serde_json::Value| Cell::Number(value.as_i64());
            let epoch = outcome["epoch"]["term"].as_u64().map(|term| {
                let claim = outcome["epoch"]["claim"].as_u64().unwrap_or_default();
                format!("{term}.{claim}")
            });
            let pause_ms = outcome["pause_ms"].as_f64().map(|ms| ms.ceil() as i64);
            // As operators write it.
            let task = record["task"].as_str().map(|task| task.replace('_', "-"));
            let node = record.get("to").unwrap_or(&record["node"]);
            Some(vec![
                word(&record["id"]),
                Cell::Text(task),
                word(&record["state"]),
                word(&record["shard"]),
                word(node),
                word(&record["by"]),
                word(&record["why"]),
                count(&record["begun_ms"]),
                count(&outcome["ended_ms"]),
                word(&record["old_leader"]),
                count(&record["old_term"]),
                Cell::Text(epoch),
                Cell::Number(pause_ms),
                count(&outcome["records_replayed"]),
                word(&outcome["error"]),
            ])
        });
        Ok(rows.collect())
    }

    /// Each partition; figures only of those whose shard answers.
    async fn partition_rows(&self, wanted: &Wanted) -> Vec<Vec<Cell>> {
        let mut rows = Vec::new();
        for table in tables(&self.db, wanted) {
            let schema = self.db.table_schema(&table).ok();
            let by = table.layout.as_ref().map(|layout| &layout.by);
            let columns = by.zip(schema.as_ref());
            let columns = columns.map(|(by, schema)| column_names(&by.columns, schema).join(", "));
            for partition in table.partitions() {
                let view = self.db.read(&partition, &at_once()).await.ok();
                let figure = |of: fn(&ReadView) -> u64| {
                    let figure = view.as_ref().map(of);
                    Cell::Number(figure.and_then(|n| i64::try_from(n).ok()))
                };
                let owns = schema.as_ref().and_then(|s| partition_owns(&partition, s));
                let origin = partition.part().and_then(|part| part.origin);
                rows.push(vec![
                    text(&table.schema_name),
                    text(&table.name),
                    Cell::Text(partition.part().map(|part| part.name.clone())),
                    text(partition.partition),
                    text(partition.shard),
                    Cell::Text(by.map(|by| method_text(by.method).to_owned())),
                    Cell::Text(columns.clone()),
                    Cell::Text(owns),
                    // Versions of a key that are not merged yet count each.
                    figure(|view| {
                        let files: u64 = view.files.iter().map(|f| f.rows).sum();
                        files + view.memory.iter().map(|m| m.rows() as u64).sum::<u64>()
                    }),
                    figure(|view| view.files.len() as u64),
                    figure(|view| view.files.iter().map(|f| f.bytes).sum()),
                    figure(|view| {
                        let files = 0..view.files.len();
                        files.filter(|at| !view.shows_all_of_file(*at)).count() as u64
                    }),
                    Cell::Text(origin.map(|o| o.unit.to_string())),
                    Cell::Text(origin.map(|o| o.shard.to_string())),
                    Cell::Number(origin.and_then(|o| i64::try_from(o.at.0).ok())),
                ]);
            }
        }
        rows
    }

    async fn sst_rows(&self, wanted: &Wanted) -> Result<Vec<Vec<Cell>>, QueryError> {
        let mut rows = Vec::new();
        let partitions = tables(&self.db, wanted);
        for table in partitions.iter().flat_map(TableHandle::partitions) {
            let view = self.db.read(&table, &Read::default()).await?;
            for file in &view.files {
                rows.push(vec![
                    text(&table.schema_name),
                    text(&table.name),
                    text(file.partition),
                    text(view.shard),
                    text(&file.path),
                    number(file.bytes),
                    number(file.rows),
                    number(file.series),
                    number(file.level),
                    Cell::Number(file.time_range.map(|r| r.0)),
                    Cell::Number(file.time_range.map(|r| r.1)),
                    number(file.version_min.0),
                    number(file.version_max.0),
                ]);
            }
        }
        Ok(rows)
    }

    fn query_rows(&self) -> Vec<Vec<Cell>> {
        let now = SystemClock.now_ms();
        self.running
            .list()
            .into_iter()
            .map(|query| {
                vec![
                    number(query.id.0),
                    text(query.user),
                    text(query.schema),
                    number(query.started_ms),
                    number(now.saturating_sub(query.started_ms)),
                    number(query.stats.rows.load(Ordering::Relaxed)),
                    number(query.stats.bytes_read.load(Ordering::Relaxed)),
                    text(query.sql),
                ]
            })
            .collect()
    }
}
