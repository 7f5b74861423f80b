//! Opening a shard: as a follower. `promote.rs` makes a leader of it.
//!
//! Order: read the newest manifest → put its residue into memory → read the log from its replay
//! offset. If the log was trimmed past that meanwhile, a newer manifest was published: begin again.
//!
//! A shard whose manifest or files are damaged or missing, or whose log was lost, is not opened; the
//! error names the place, nothing is changed or deleted, and other shards are not concerned. One
//! whose log is damaged is open up to there (`halt.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::{Mutex, RwLock};
use shoal_meta::{BirthStage, MetaError, ShardEntry};
use shoal_sst::SstError;
use shoal_types::{Offset, ShardId, WriterId};
use shoal_wal::log::{Log, LogError, LogReader};
use shoal_wal::record::AttemptId;
use shoal_wal::shifted::shifted;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::barrier::Barriers;
use super::halt::Halted;
use super::layouts::Untold;
use super::pins::Pins;
use super::publish::Publishing;
use super::residue::load_residue;
use super::state::ShardState;
use super::write::Pipeline;
use super::{Counters, Shard, Stopped, apply, claim, follow, warm};
use crate::EngineError;
use crate::env::Env;
use crate::manifest::format::Publisher;
use crate::manifest::{Chain, LogIdentity, ManifestState};

/// Manifests tried before giving up: each miss means that the log was trimmed meanwhile.
const TRIES_MAX: u32 = 16;
/// Largest memtable that may be carried over as residue.
const RESIDUE_TABLE_BYTES_MAX: usize = 64 << 10;

/// Sizes of all objects, by path, taken before the manifests were read.
pub(crate) type Listed = HashMap<String, u64>;

/// Opens a shard as follower; `listed` (if given) is checked for every file the manifest names.
///
/// # Errors
/// Why it cannot be served.
pub(crate) async fn open(
    env: Arc<Env>,
    id: ShardId,
    listed: Option<Arc<Listed>>,
) -> Result<Arc<Shard>, EngineError> {
    let chain = Chain {
        store: Arc::clone(&env.store),
        layout: env.layout.clone(),
        cluster: env.config.cluster_name.clone(),
        shard: id,
    };
    let (log, state, reader) = begin(&env, &chain, listed.as_deref()).await?;
    let newest = Arc::clone(&state.manifest);
    let (deliveries, to_deliver) = mpsc::unbounded_channel();
    env.memory.change(0, state.memory_bytes);
    let (applied, _) = watch::channel(state.fold.next_offset());
    let shard = Arc::new(Shard {
        id,
        pipeline: Pipeline::new(env.config.inflight_bytes_max, deliveries),
        env,
        chain,
        log,
        state: RwLock::new(state),
        caught_up: watch::Sender::new(true),
        applied,
        barriers: Barriers::default(),
        named: Notify::new(),
        publishing: tokio::sync::Mutex::new(Publishing {
            newest: Arc::clone(&newest),
            undecided: None,
            flush: None,
        }),
        pins: Arc::new(Pins::default()),
        production: Arc::default(),
        compactable: Mutex::default(),
        tasks: Mutex::default(),
        stop: CancellationToken::new(),
        stopped: Mutex::default(),
        telling: Mutex::default(),
        halted: Halted::default(),
        flush_past: Mutex::default(),
        deposed: AtomicBool::new(false),
        counters: Counters::default(),
        splitting: tokio::sync::Mutex::default(),
        part_names: Mutex::default(),
        trouble: Mutex::default(),
    });
    shard.start(apply::run(Arc::clone(&shard), reader));
    shard.start(claim::run(Arc::clone(&shard), to_deliver));
    shard.start(follow::run(Arc::clone(&shard)));
    shard.start(warm::run(Arc::clone(&shard)));
    tracing::info!(
        shard = %id, manifest = %newest.version(), replay_offset = %newest.replay_offset(),
        "shard open"
    );
    Ok(shard)
}

impl Shard {
    fn start(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let ends = StopsIfPanicked(Arc::clone(self));
        let task = tokio::spawn(async move {
            let _ends = ends;
            work.await;
        });
        self.tasks.lock().push(task);
    }
}

/// The newest manifest of a shard, or the state before its first.
///
/// # Errors
/// As [`Chain::load_newest`].
pub(crate) async fn newest_of(chain: &Chain) -> Result<ManifestState, EngineError> {
    let newest = chain.load_newest().await?;
    Ok(
        newest
            .unwrap_or_else(|| ManifestState::before_first(chain.shard, &chain.cluster, nobody())),
    )
}

/// The log, the state of the newest manifest and a reader of what follows it.
async fn begin(
    env: &Env,
    chain: &Chain,
    listed: Option<&Listed>,
) -> Result<(Arc<dyn Log>, ShardState, Box<dyn LogReader>), EngineError> {
    let mut opened: Option<(LogIdentity, Arc<dyn Log>)> = None;
    let mut prepared = env.prepared_logs.lock().remove(&chain.shard);
    let mut tries = 0;
    loop {
        tries += 1;
        let newest = newest_of(chain).await?;
        if newest.hash == 0 {
            refuse_unborn(env, chain.shard).await?;
        }
        if let Some(listed) = listed {
            check_files(&newest, listed)?;
        }
        // Another log may have taken its place meanwhile.
        let known = opened
            .take()
            .filter(|(named, _)| named.is_same(&newest.log));
        // A shard that has just been born.
        let fits = newest.replay_offset() == Offset(0) && newest.log == LogIdentity::default();
        let (log, at_hand) = match (known, prepared.take().filter(|_| fits)) {
            (Some((_, log)), _) => (log, None),
            (None, Some(prepared)) => (prepared.log, Some(prepared.reader)),
            (None, None) => (open_log(env, chain.shard, &newest.log).await?, None),
        };
        opened = Some((newest.log.clone(), Arc::clone(&log)));
        let newest = Arc::new(newest);
        let mut state = ShardState::new(Arc::clone(&newest), RESIDUE_TABLE_BYTES_MAX);
        let entry = env.catalog.shard(chain.shard);
        if entry.is_some_and(|entry| !entry.is_settled()) {
            state.untold.extend(Untold::of_birth(&newest.fold));
        }
        let residue = load_residue(env, &newest).await?;
        state.take_all(&residue);
        let reader = match at_hand {
            Some(reader) => Ok(reader),
            None => log.read(newest.replay_offset()).await,
        };
        match reader {
            Ok(reader) => return Ok((log, state, reader)),
            Err(LogError::BelowStart { .. }) if tries < TRIES_MAX => {
                tracing::info!(shard = %chain.shard, "the log was trimmed meanwhile, opening again");
            }
            Err(LogError::BelowStart { start, .. }) => {
                return Err(EngineError::Manifest {
                    path: chain.path(newest.version()).to_string(),
                    what: format!(
                        "it replays from {}, the log begins at {start}: newer manifests are missing; restore them, nothing was changed",
                        newest.replay_offset()
                    ),
                });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A shard that comes from another one begins with a manifest.
async fn refuse_unborn(env: &Env, shard: ShardId) -> Result<(), EngineError> {
    let entry = env.catalog.reload_shard(shard).await?;
    match entry.and_then(|entry| entry.birth) {
        None => Ok(()),
        Some(birth) if birth.stage == BirthStage::Prepared => Err(EngineError::ShardUnavailable {
            shard,
            why: format!("shard {} is still to give its units to it", birth.parent),
        }),
        Some(birth) => Err(EngineError::ShardUnavailable {
            shard,
            why: format!(
                "it came from shard {} and has no manifests: they are lost; restore them, nothing was changed",
                birth.parent
            ),
        }),
    }
}

/// The publisher of what is before the first manifest.
fn nobody() -> Publisher {
    Publisher {
        term: 0,
        writer: WriterId(Uuid::nil()),
        attempt: AttemptId(Uuid::nil()),
    }
}

/// A task of a shard that panics (a defect) must not leave readers and writers waiting for ever.
struct StopsIfPanicked(Arc<Shard>);

impl Drop for StopsIfPanicked {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = "a task of it panicked (a defect); start the process again";
            self.0.stop(Stopped::Failed(why.to_owned()));
        }
    }
}

/// An opener that goes away halfway (the process shuts down) leaves no reader behind, which would
/// hold on to the log, the store and the lock of the data folder.
pub(crate) struct StopsIfDropped(pub(crate) Option<Arc<Shard>>);

impl Drop for StopsIfDropped {
    fn drop(&mut self) {
        if let Some(shard) = &self.0 {
            shard.stop(Stopped::Closed);
        }
    }
}

async fn open_log(
    env: &Env,
    id: ShardId,
    named: &LogIdentity,
) -> Result<Arc<dyn Log>, EngineError> {
    let mut made = None;
    loop {
        let entry = env
            .catalog
            .reload_shard(id)
            .await?
            .ok_or_else(|| EngineError::Invalid(format!("shard {id} is not known to meta")))?;
        let with_log = match (named.id, entry.log) {
            // The manifest decides; meta is told, should whoever published it not have come to it.
            (Some(log), known) if known != Some(log) => ShardEntry {
                log: Some(log),
                ..entry
            },
            (_, Some(log)) => {
                let opened = env.logs.open(id, log).await.map_err(|e| gone(id, e))?;
                return Ok(shifted(opened, named.shift));
            }
            (_, None) => {
                let log = match made {
                    Some(log) => log,
                    None => *made.insert(env.logs.create(id).await?),
                };
                ShardEntry {
                    log: Some(log),
                    ..entry
                }
            }
        };
        match env.catalog.put_shard(id, Some(entry), with_log).await {
            // Another node may have made a log at the same time: the one that meta took counts.
            Ok(()) | Err(MetaError::Conflict) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// The error with its remedy.
fn gone(id: ShardId, error: LogError) -> EngineError {
    match error {
        LogError::NotFound { .. } | LogError::Another { .. } => EngineError::LostLog {
            shard: id,
            what: format!(
                "{error}; restore it, or `shoal admin shard adopt-log {id}`, which says what is lost by going on with a new log and does so with --accept-loss"
            ),
        },
        other => other.into(),
    }
}

fn check_files(newest: &ManifestState, listed: &Listed) -> Result<(), EngineError> {
    let files = newest.tables.values().flat_map(|t| &t.files);
    let files = files.map(|f| (f.file.path.as_str(), f.file.bytes));
    let residue = newest.residue.iter().map(|r| (r.path.as_str(), r.bytes));
    for (path, bytes) in files.chain(residue) {
        let path = path.to_owned();
        match listed.get(&path) {
            None => return Err(SstError::NotFound { path }.into()),
            Some(found) if *found != bytes => {
                let what = format!("it has {found} bytes, the manifest says {bytes}");
                return Err(SstError::Damaged { path, what }.into());
            }
            Some(_) => {}
        }
    }
    Ok(())
}
