//! `system`: what the database knows of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringViewArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use shoal_engine::{Database, TableHandle};
use shoal_types::{Clock, SystemClock, TableMode};

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
}

/// The name of the only node of a standalone process.
const NODE: &str = "standalone";

struct SystemTable {
    db: Arc<Database>,
    running: Arc<Running>,
    view: View,
}

/// Name of a column and whether it is text (`t`), a number (`n`) or a time (`m`).
fn columns_of(view: View) -> &'static [(&'static str, char)] {
    match view {
        View::Tables => &[
            ("table_schema", 't'),
            ("table_name", 't'),
            ("id", 't'),
            ("mode", 't'),
            ("primary_key", 't'),
            ("time_column", 't'),
            ("ttl_ms", 'n'),
            ("columns", 'n'),
            ("schema_version", 'n'),
            ("shard", 't'),
        ],
        View::Partitions => &[
            ("table_schema", 't'),
            ("table_name", 't'),
            ("id", 't'),
            ("shard", 't'),
        ],
        View::Shards => &[
            ("id", 't'),
            ("role", 't'),
            ("state", 't'),
            ("why", 't'),
            ("epoch", 't'),
            ("position", 'n'),
            ("manifest", 'n'),
            ("replay_offset", 'n'),
            ("tables", 'n'),
            ("memory_bytes", 'n'),
            ("log_bytes", 'n'),
            ("files", 'n'),
            ("bytes", 'n'),
        ],
        View::Ssts => &[
            ("table_schema", 't'),
            ("table_name", 't'),
            ("partition", 't'),
            ("shard", 't'),
            ("path", 't'),
            ("bytes", 'n'),
            ("rows", 'n'),
            ("series", 'n'),
            ("level", 'n'),
            ("time_min", 'n'),
            ("time_max", 'n'),
            ("version_min", 'n'),
            ("version_max", 'n'),
        ],
        View::Queries => &[
            ("id", 'n'),
            ("user", 't'),
            ("schema", 't'),
            ("started", 'm'),
            ("elapsed_ms", 'n'),
            ("rows", 'n'),
            ("bytes_read", 'n'),
            ("sql", 't'),
        ],
        View::Nodes => &[
            ("id", 't'),
            ("state", 't'),
            ("version", 't'),
            ("leaders", 'n'),
            ("replicas", 'n'),
            ("statements", 'n'),
            ("memory_bytes", 'n'),
            ("log_bytes", 'n'),
            ("bytes", 'n'),
        ],
        View::Replicas => &[
            ("shard", 't'),
            ("node", 't'),
            ("role", 't'),
            ("state", 't'),
            ("why", 't'),
            ("epoch", 't'),
            ("position", 'n'),
        ],
    }
}

enum Cell {
    Text(Option<String>),
    Number(Option<i64>),
}

fn text(value: impl ToString) -> Cell {
    Cell::Text(Some(value.to_string()))
}

fn number(value: impl TryInto<i64>) -> Cell {
    Cell::Number(value.try_into().ok())
}

fn arrow_schema(view: View) -> SchemaRef {
    Arc::new(Schema::new(
        columns_of(view)
            .iter()
            .map(|(name, kind)| {
                let data_type = match kind {
                    'n' => DataType::Int64,
                    'm' => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
                    _ => DataType::Utf8View,
                };
                Field::new(*name, data_type, true)
            })
            .collect::<Vec<_>>(),
    ))
}

#[async_trait]
impl VirtualRows for SystemTable {
    fn schema(&self) -> SchemaRef {
        arrow_schema(self.view)
    }

    async fn rows(&self, wanted: &Wanted) -> Result<RecordBatch, QueryError> {
        let rows = match self.view {
            View::Tables => self.table_rows(wanted),
            View::Partitions => self
                .tables(wanted)
                .into_iter()
                .map(|t| {
                    vec![
                        text(t.schema_name),
                        text(t.name),
                        text(t.partition),
                        text(t.shard),
                    ]
                })
                .collect(),
            View::Shards => self.shard_rows(),
            View::Ssts => self.sst_rows(wanted).await?,
            View::Queries => self.query_rows(),
            View::Nodes => vec![self.node_row()],
            View::Replicas => self.replica_rows(),
        };
        to_batch(self.view, &rows)
    }
}

impl SystemTable {
    fn tables(&self, wanted: &Wanted) -> Vec<TableHandle> {
        let schemas = self
            .db
            .schema_names()
            .into_iter()
            .filter(|schema| wanted.may_be("table_schema", schema));
        match wanted.value("table_name") {
            Some(name) => schemas
                .filter_map(|schema| self.db.table(&schema, name))
                .collect(),
            None => schemas.flat_map(|schema| self.db.tables(&schema)).collect(),
        }
    }

    fn table_rows(&self, wanted: &Wanted) -> Vec<Vec<Cell>> {
        let mut rows = Vec::new();
        for table in self.tables(wanted) {
            let Ok(schema) = self.db.table_schema(&table) else {
                continue;
            };
            let name_of = |id| schema.column_by_id(id).map(|c| c.name.clone());
            let key: Vec<String> = schema.key.iter().filter_map(|id| name_of(*id)).collect();
            rows.push(vec![
                text(&table.schema_name),
                text(&table.name),
                text(table.id),
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

    fn shard_rows(&self) -> Vec<Vec<Cell>> {
        self.db
            .status()
            .into_iter()
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
                ]
            })
            .collect()
    }

    /// The one node that there is: this process.
    fn node_row(&self) -> Vec<Cell> {
        let shards = self.db.status();
        vec![
            text(NODE),
            // It answers, so that it is up.
            text("up"),
            text(env!("CARGO_PKG_VERSION")),
            number(shards.iter().filter(|s| s.role == "leader").count()),
            number(shards.len()),
            number(self.running.list().len()),
            number(shards.iter().map(|s| s.memory_bytes).sum::<u64>()),
            number(shards.iter().map(|s| s.log_bytes).sum::<u64>()),
            number(shards.iter().map(|s| s.bytes).sum::<u64>()),
        ]
    }

    /// One replica of each shard, here.
    fn replica_rows(&self) -> Vec<Vec<Cell>> {
        self.db
            .status()
            .into_iter()
            .map(|shard| {
                vec![
                    text(shard.id),
                    text(NODE),
                    text(shard.role),
                    text(shard.state),
                    Cell::Text(shard.why),
                    text(shard.epoch),
                    number(shard.position.0),
                ]
            })
            .collect()
    }

    async fn sst_rows(&self, wanted: &Wanted) -> Result<Vec<Vec<Cell>>, QueryError> {
        let mut rows = Vec::new();
        for table in self.tables(wanted) {
            let view = self.db.read_view(&table).await?;
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

fn to_batch(view: View, rows: &[Vec<Cell>]) -> Result<RecordBatch, QueryError> {
    let numbers = |i: usize| {
        rows.iter().map(move |row| match row.get(i) {
            Some(Cell::Number(number)) => *number,
            _ => None,
        })
    };
    let columns: Vec<ArrayRef> = columns_of(view)
        .iter()
        .enumerate()
        .map(|(i, (_, kind))| -> ArrayRef {
            match kind {
                'n' => Arc::new(numbers(i).collect::<Int64Array>()),
                'm' => Arc::new(
                    numbers(i)
                        .collect::<TimestampMillisecondArray>()
                        .with_timezone("UTC"),
                ),
                _ => Arc::new(
                    rows.iter()
                        .map(|row| match row.get(i) {
                            Some(Cell::Text(value)) => value.as_deref(),
                            _ => None,
                        })
                        .collect::<StringViewArray>(),
                ),
            }
        })
        .collect();
    Ok(RecordBatch::try_new(arrow_schema(view), columns)?)
}
