//! The catalog: names → ids → placement, kept in memory and in a [`MetaStore`].
//!
//! Keys, under `/shoal/{cluster}/` (values are `rmp-serde` arrays, so that 100,000 tables load
//! quickly; a field is only ever added at the end):
//!
//! | key | value |
//! |---|---|
//! | `format` | [`CATALOG_FORMAT`] |
//! | `schema/{name}` | [`SchemaEntry`] |
//! | `table/{schema}/{name}` | [`TableEntry`] |
//! | `shard/{shard}` | [`ShardEntry`] |
//! | `ddl` | empty; put by every change of names, so that its revision is that of the last one |
//! | `gone/{table}` | when a table without a name was given up: it gets none any more |
//!
//! `%` and `/` in names are escaped as `%25` and `%2F`. Columns and keys of tables are not here:
//! they live in shard logs and manifests (DESIGN §4).
//!
//! Every change is committed to the store first and enters memory after; compares on the
//! revisions seen keep two processes from overwriting each other. When one fails, the keys it
//! named are read again ([`Catalog::refresh`]) and the caller decides anew. When nobody can say
//! whether a commit took effect, the keys are read, too: the ids in them tell whose they are.
//!
//! Where other processes change the store as well, each follows its changes (`catalog/follow.rs`),
//! some milliseconds behind. Who must not be behind asks the store:
//!
//! - a name that is not known: [`Catalog::find_table`], [`Catalog::find_schema`];
//! - a name whose table the shard does not know any more (dropped, perhaps made anew):
//!   [`Catalog::refresh`], then look again;
//! - a list of names, or anything about an id: [`Catalog::sync`], one small read, then memory.

mod changes;
mod follow;
mod layout;
mod state;

pub use layout::{Layout, LooseUnit, PARTITIONS_MAX, Part, PartOrigin, Placed};

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde::{Deserialize, Deserializer, Serialize};
use shoal_types::{LogId, PartitionId, ProcedureId, ShardId, TableId, TimestampMs};
use tokio::sync::watch;

use crate::store::{Compare, MetaError, MetaStore, Op, Txn};
use state::{State, decode};

/// Version of the keys and values.
pub const CATALOG_FORMAT: u32 = 1;
/// How long [`Catalog::sync`] waits for the watch before it reads everything itself.
const SYNC_WAIT: Duration = Duration::from_secs(2);

/// A schema (a namespace of tables).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaEntry {
    /// When it was made.
    pub created_ms: TimestampMs,
}

/// Where a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEntry {
    /// The table.
    pub table: TableId,
    /// Its only partition; of several, the one that decides the columns.
    pub partition: PartitionId,
    /// The shard that holds that partition.
    pub shard: ShardId,
    /// All partitions; `None`: there is one, which owns everything and whose unit has the table's
    /// id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Arc<Layout>>,
}

/// A shard as meta knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// The newest term given out; rises with every open as leader.
    pub term: u64,
    /// When it was made.
    pub created_ms: TimestampMs,
    /// Its log, once that was made: from then on a missing log is a loss, not a new shard.
    #[serde(deserialize_with = "log_or_whether")]
    pub log: Option<LogId>,
    /// The split that it comes from; `None`: it was made with the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub birth: Option<Birth>,
}

/// How a shard comes from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// The shard whose units it was given.
    pub parent: ShardId,
    /// The split, as the parent's log names it.
    pub procedure: ProcedureId,
    /// How far it is.
    pub stage: BirthStage,
}

/// How far a shard's birth is; only ever rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BirthStage {
    /// Nothing is decided: the shard may not be opened, and goes again if the split is not.
    Prepared,
    /// Its first manifest is there: it may be opened.
    Born,
    /// The catalog names it as the place of its units.
    Named,
}

impl ShardEntry {
    /// Whether it may be opened.
    #[must_use]
    pub fn is_born(&self) -> bool {
        let stage = self.birth.map(|birth| birth.stage);
        stage.is_none_or(|stage| stage > BirthStage::Prepared)
    }

    /// Whether tables may be placed in it, and whatever names it names it as the place of its units.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let stage = self.birth.map(|birth| birth.stage);
        stage.is_none_or(|stage| stage == BirthStage::Named)
    }
}

/// The first version wrote only whether there is a log, of which there was one kind.
fn log_or_whether<'de, D: Deserializer<'de>>(from: D) -> Result<Option<LogId>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Whether(bool),
        Log(Option<LogId>),
    }
    Ok(match Either::deserialize(from)? {
        Either::Whether(made) => made.then_some(LogId::SOLE),
        Either::Log(log) => log,
    })
}

/// A table with its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTable {
    /// Schema name.
    pub schema_name: Arc<str>,
    /// Table name.
    pub name: Arc<str>,
    /// Where it is.
    pub entry: TableEntry,
}

/// Names and placement of one cluster.
#[derive(Debug)]
pub struct Catalog {
    store: Arc<dyn MetaStore>,
    known: Arc<Known>,
    _following: Option<follow::Following>,
}

/// What the catalog shares with the task that follows the store.
#[derive(Debug)]
struct Known {
    prefix: String,
    state: RwLock<State>,
    /// The revision of the last change of names that was followed.
    followed: watch::Sender<u64>,
    /// Since when, and why, the store's changes are not heard.
    interrupted: RwLock<Option<(tokio::time::Instant, String)>>,
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, MetaError> {
    rmp_serde::to_vec(value).map_err(|e| MetaError::Damaged {
        key: key.to_owned(),
        what: e.to_string(),
    })
}

fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

fn unescape(name: &str) -> String {
    name.replace("%2F", "/").replace("%25", "%")
}

/// The prefix of all keys of a cluster.
pub(crate) fn cluster_prefix(cluster: &str) -> String {
    format!("/shoal/{}/", escape(cluster))
}

impl Catalog {
    /// Loads the catalog; writes the format into an empty store. A store that others change is
    /// followed until the catalog is dropped.
    ///
    /// # Errors
    /// [`MetaError`]: unreadable, damaged, or written in another format.
    pub async fn open(store: Arc<dyn MetaStore>, cluster: &str) -> Result<Self, MetaError> {
        let prefix = cluster_prefix(cluster);
        let listing = store.list(&prefix).await?;
        let state = State::load(&prefix, &listing)?;
        if !state.has_format {
            let key = format!("{prefix}format");
            let value = encode(&key, &CATALOG_FORMAT)?;
            let txn = Txn::default()
                .when(Compare::Absent(key.clone()))
                .then(Op::Put(key, value));
            match store.commit(txn).await {
                Ok(_) | Err(MetaError::Conflict) => {}
                Err(e) => return Err(e),
            }
        }
        let known = Arc::new(Known {
            followed: watch::channel(state.ddl_revision).0,
            state: RwLock::new(state),
            prefix,
            interrupted: RwLock::default(),
        });
        let following = store.is_shared().then(|| {
            let changes = store.watch(&known.prefix, listing.revision);
            follow::start(Arc::clone(&known), changes)
        });
        Ok(Self {
            store,
            known,
            _following: following,
        })
    }

    /// What schedulers keep below a path of theirs: paths and JSON.
    ///
    /// # Errors
    /// The store's.
    pub async fn scheduler_records(&self, path: &str) -> Result<Vec<(String, Vec<u8>)>, MetaError> {
        let below = format!("{}scheduler/{path}", self.known.prefix);
        let entries = self.store.list(&below).await?.entries.into_iter();
        Ok(entries.map(|(key, value, _)| (key, value)).collect())
    }

    fn schema_key(&self, name: &str) -> String {
        format!("{}schema/{}", self.known.prefix, escape(name))
    }

    fn tables_prefix(&self, schema: &str) -> String {
        format!("{}table/{}/", self.known.prefix, escape(schema))
    }

    fn table_key(&self, schema: &str, name: &str) -> String {
        format!("{}{}", self.tables_prefix(schema), escape(name))
    }

    fn shard_key(&self, shard: ShardId) -> String {
        format!("{}shard/{shard}", self.known.prefix)
    }

    fn ddl_key(&self) -> String {
        format!("{}ddl", self.known.prefix)
    }

    fn gone_key(&self, table: TableId) -> String {
        format!("{}gone/{table}", self.known.prefix)
    }

    /// Why and for how long changes of others are not heard; `None`: they are. Everything known
    /// goes on to be served meanwhile.
    #[must_use]
    pub fn interrupted(&self) -> Option<(Duration, String)> {
        let interrupted = self.known.interrupted.read();
        interrupted
            .as_ref()
            .map(|(since, why)| (since.elapsed(), why.clone()))
    }

    /// Makes sure that memory has all changes of names that were committed before this was called,
    /// by whomever. One small read; where nobody else changes the store, nothing.
    ///
    /// # Errors
    /// The store's: what is known may be behind.
    pub async fn sync(&self) -> Result<(), MetaError> {
        self.synced().await.map(|_| ())
    }

    /// As [`Self::sync`]; the revision of the last change of names.
    async fn synced(&self) -> Result<u64, MetaError> {
        if !self.store.is_shared() {
            return Ok(0);
        }
        let Some((_, wanted)) = self.store.get(&self.ddl_key()).await? else {
            return Ok(0);
        };
        let mut followed = self.known.followed.subscribe();
        let told = followed.wait_for(|revision| *revision >= wanted);
        if tokio::time::timeout(SYNC_WAIT, told).await.is_err() {
            let listing = self.store.list(&self.known.prefix).await?;
            let mut state = self.known.state.write();
            state.reset(&self.known.prefix, &listing, false)?;
        }
        Ok(wanted)
    }

    /// Commits a change of names.
    async fn commit_names(&self, txn: Txn) -> Result<u64, MetaError> {
        let txn = txn.then(Op::Put(self.ddl_key(), Vec::new()));
        self.store.commit(txn).await
    }

    /// After a commit of unknown outcome: reads the names again and asks whether it is there.
    async fn settle(
        &self,
        error: MetaError,
        schema: &str,
        tables: &[&str],
        took_effect: impl FnOnce() -> bool + Send,
    ) -> Result<(), MetaError> {
        match self.refresh(schema, tables).await {
            Ok(()) if took_effect() => Ok(()),
            _ => Err(error),
        }
    }

    /// Keeps what we removed from coming back with changes that are told late.
    fn note_removed(&self, state: &mut State, key: String, revision: u64) {
        if self.store.is_shared() {
            state.note_removed(key, revision);
        }
    }

    /// Names of all schemas, sorted.
    #[must_use]
    pub fn schema_names(&self) -> Vec<String> {
        let state = self.known.state.read();
        state.schemas.keys().map(|name| name.to_string()).collect()
    }

    /// Whether a schema exists.
    #[must_use]
    pub fn has_schema(&self, name: &str) -> bool {
        self.known.state.read().schemas.contains_key(name)
    }

    /// A table by name. Allocates nothing.
    #[must_use]
    pub fn table(&self, schema: &str, name: &str) -> Option<TableEntry> {
        let state = self.known.state.read();
        let tables = &state.schemas.get(schema)?.tables;
        tables.get(name).map(|(entry, _)| entry.clone())
    }

    /// As [`Self::has_schema`], asking the store if it is not known here.
    ///
    /// # Errors
    /// The store's.
    pub async fn find_schema(&self, name: &str) -> Result<bool, MetaError> {
        if !self.has_schema(name) && self.store.is_shared() {
            self.refresh(name, &[]).await?;
        }
        Ok(self.has_schema(name))
    }

    /// As [`Self::table`], asking the store if it is not known here.
    ///
    /// # Errors
    /// The store's.
    pub async fn find_table(
        &self,
        schema: &str,
        name: &str,
    ) -> Result<Option<TableEntry>, MetaError> {
        if self.table(schema, name).is_none() && self.store.is_shared() {
            self.refresh(schema, &[name]).await?;
        }
        Ok(self.table(schema, name))
    }

    /// As [`Self::placement`], asking the store if it is not known here: then no name leads to the
    /// table.
    ///
    /// # Errors
    /// The store's.
    pub async fn find_placement(&self, table: TableId) -> Result<Option<TableEntry>, MetaError> {
        if self.placement(table).is_none() {
            self.sync().await?;
        }
        Ok(self.placement(table))
    }

    /// The table that an id is of, a table's or one of its units': where it is. Allocates nothing.
    #[must_use]
    pub fn placement(&self, id: TableId) -> Option<TableEntry> {
        let state = self.known.state.read();
        state.named(id).map(|t| t.entry.clone())
    }

    /// Where a unit is.
    #[must_use]
    pub fn placed(&self, unit: TableId) -> Option<Placed> {
        let state = self.known.state.read();
        state.named(unit)?.entry.placed_unit(unit)
    }

    /// The table that an id is of, a table's or one of its units', with its names.
    #[must_use]
    pub fn named(&self, id: TableId) -> Option<NamedTable> {
        self.known.state.read().named(id).cloned()
    }

    /// Tables of a schema, sorted by name; `None`: no such schema.
    #[must_use]
    pub fn tables(&self, schema: &str) -> Option<Vec<NamedTable>> {
        let state = self.known.state.read();
        let (schema_name, schema) = state.schemas.get_key_value(schema)?;
        Some(
            schema
                .tables
                .iter()
                .map(|(name, (entry, _))| NamedTable {
                    schema_name: Arc::clone(schema_name),
                    name: Arc::clone(name),
                    entry: entry.clone(),
                })
                .collect(),
        )
    }

    /// All tables, in no order.
    #[must_use]
    pub fn all_tables(&self) -> Vec<NamedTable> {
        self.known.state.read().by_id.values().cloned().collect()
    }

    /// Number of tables.
    #[must_use]
    pub fn tables_count(&self) -> usize {
        self.known.state.read().by_id.len()
    }

    /// All shards, ascending.
    #[must_use]
    pub fn shards(&self) -> Vec<(ShardId, ShardEntry)> {
        let state = self.known.state.read();
        state.shards.iter().map(|(id, (e, _))| (*id, *e)).collect()
    }

    /// Shards that these were split off from, as far as is known here.
    #[must_use]
    pub fn parents_of(&self, these: impl Fn(&ShardEntry) -> bool) -> HashSet<ShardId> {
        let state = self.known.state.read();
        let chosen = state.shards.values().filter(|(entry, _)| these(entry));
        chosen
            .filter_map(|(entry, _)| entry.birth)
            .map(|birth| birth.parent)
            .collect()
    }

    /// How many shards there are.
    #[must_use]
    pub fn shards_count(&self) -> usize {
        self.known.state.read().shards.len()
    }

    /// Number of partitions placed on a shard.
    #[must_use]
    pub fn partitions_on(&self, shard: ShardId) -> u64 {
        let state = self.known.state.read();
        state.partitions_by_shard.get(&shard).copied().unwrap_or(0)
    }

    /// Adds a shard or changes its entry; `None` expects that it does not exist.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: somebody else changed it (the entry known here is the new one now).
    pub async fn put_shard(
        &self,
        shard: ShardId,
        expected: Option<ShardEntry>,
        entry: ShardEntry,
    ) -> Result<(), MetaError> {
        let key = self.shard_key(shard);
        let known = self.known.state.read().shards.get(&shard).copied();
        let compare = match (known, expected) {
            (None, None) => Compare::Absent(key.clone()),
            (Some((have, revision)), Some(wanted)) if have == wanted => {
                Compare::Revision(key.clone(), revision)
            }
            _ => return Err(MetaError::Conflict),
        };
        let value = encode(&key, &entry)?;
        let txn = Txn::default()
            .when(compare)
            .then(Op::Put(key.clone(), value));
        match self.store.commit(txn).await {
            Ok(revision) => {
                self.known
                    .state
                    .write()
                    .shards
                    .insert(shard, (entry, revision));
                Ok(())
            }
            Err(MetaError::Conflict) => {
                self.reload_shard(shard).await?;
                Err(MetaError::Conflict)
            }
            Err(e) => Err(e),
        }
    }

    /// Removes a shard whose split was decided against.
    ///
    /// # Errors
    /// [`MetaError::Conflict`]: somebody else changed its entry (the entry known here is the new one
    /// now).
    pub async fn remove_shard(
        &self,
        shard: ShardId,
        expected: ShardEntry,
    ) -> Result<(), MetaError> {
        let key = self.shard_key(shard);
        let known = self.known.state.read().shards.get(&shard).copied();
        let revision = match known {
            None => return Ok(()),
            Some((have, revision)) if have == expected => revision,
            Some(_) => return Err(MetaError::Conflict),
        };
        let txn = Txn::default()
            .when(Compare::Revision(key.clone(), revision))
            .then(Op::Delete(key));
        match self.store.commit(txn).await {
            Ok(_) => {}
            Err(MetaError::Conflict) => match self.reload_shard(shard).await? {
                None => {}
                Some(_) => return Err(MetaError::Conflict),
            },
            Err(error) => return Err(error),
        }
        self.known.state.write().shards.remove(&shard);
        Ok(())
    }

    /// A shard as it is known here.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> Option<ShardEntry> {
        let state = self.known.state.read();
        state.shards.get(&shard).map(|(entry, _)| *entry)
    }

    /// Shards that come from this one, as far as is known here.
    #[must_use]
    pub fn children_of(&self, parent: ShardId) -> Vec<(ShardId, ShardEntry)> {
        let state = self.known.state.read();
        let of_parent = |entry: &ShardEntry| entry.birth.is_some_and(|b| b.parent == parent);
        let shards = state.shards.iter().map(|(id, (entry, _))| (*id, *entry));
        shards.filter(|(_, entry)| of_parent(entry)).collect()
    }

    /// Makes the shards of a new cluster, all or none, and never a second time: of several
    /// processes that start together one makes them, and all know them then.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn create_first_shards(
        &self,
        shards: &[(ShardId, ShardEntry)],
    ) -> Result<(), MetaError> {
        let prefix = format!("{}shard/", self.known.prefix);
        let mut txn = Txn::default().when(Compare::NotPutSince(prefix.clone(), 0));
        for (shard, entry) in shards {
            let key = self.shard_key(*shard);
            let value = encode(&key, entry)?;
            txn = txn.then(Op::Put(key, value));
        }
        let unclear = match self.store.commit(txn).await {
            Ok(_) | Err(MetaError::Conflict) => None,
            Err(e @ MetaError::Unknown(_)) => Some(e),
            Err(e) => return Err(e),
        };
        let listing = self.store.list(&prefix).await?;
        if let (true, Some(error)) = (listing.entries.is_empty(), unclear) {
            return Err(error);
        }
        let mut state = self.known.state.write();
        for (key, value, revision) in &listing.entries {
            if let Ok(shard) = key[prefix.len()..].parse() {
                let entry = decode(key, value)?;
                state.shards.insert(shard, (entry, *revision));
            }
        }
        Ok(())
    }

    /// Reads a shard's entry from the store.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn reload_shard(&self, shard: ShardId) -> Result<Option<ShardEntry>, MetaError> {
        let key = self.shard_key(shard);
        let Some((value, revision)) = self.store.get(&key).await? else {
            return Ok(None);
        };
        let entry = decode(&key, &value)?;
        self.known
            .state
            .write()
            .shards
            .insert(shard, (entry, revision));
        Ok(Some(entry))
    }

    /// Reads a schema and some of its table names from the store again.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn refresh(&self, schema: &str, tables: &[&str]) -> Result<(), MetaError> {
        let found_schema = self.store.get(&self.schema_key(schema)).await?;
        let mut found = Vec::with_capacity(tables.len());
        for name in tables {
            let key = self.table_key(schema, name);
            let entry = match self.store.get(&key).await? {
                None => None,
                Some((value, revision)) => Some((decode::<TableEntry>(&key, &value)?, revision)),
            };
            found.push((*name, entry));
        }
        let mut state = self.known.state.write();
        match found_schema {
            Some((_, revision)) => state.put_schema(schema, revision),
            // Its tables went with it.
            None => state.forget_schema(schema),
        }
        for (name, entry) in found {
            state.remove_table(schema, name);
            if let Some((entry, revision)) = entry {
                state.put_table(schema, name, entry, revision);
            }
        }
        Ok(())
    }

    /// Reads a schema and all its table names from the store again.
    async fn reload_schema(&self, schema: &str) -> Result<(), MetaError> {
        let prefix = self.tables_prefix(schema);
        let listing = self.store.list(&prefix).await?;
        let found_schema = self.store.get(&self.schema_key(schema)).await?;
        let mut tables = Vec::with_capacity(listing.entries.len());
        for (key, value, revision) in &listing.entries {
            let entry: TableEntry = decode(key, value)?;
            tables.push((unescape(&key[prefix.len()..]), entry, *revision));
        }
        let mut state = self.known.state.write();
        state.forget_schema(schema);
        if let Some((_, revision)) = found_schema {
            state.put_schema(schema, revision);
        }
        for (name, entry, revision) in tables {
            state.put_table(schema, &name, entry, revision);
        }
        Ok(())
    }

    fn revision_of(&self, table: &NamedTable) -> Option<u64> {
        let state = self.known.state.read();
        let schema = state.schemas.get(&*table.schema_name)?;
        let (entry, revision) = schema.tables.get(&*table.name)?;
        (*entry == table.entry).then_some(*revision)
    }
}
