//! Opening a shard as its leader (PROTOCOLS §2, "Open as leader").
//!
//! Order: raise the term in meta → read the newest manifest → publish a manifest with that term →
//! read the log from its replay offset → append `Claim`, naming that manifest → apply through it →
//! read the newest manifest again; still ours → serve.
//!
//! Why: the term in the manifest keeps an older leader from publishing; the claim keeps its late
//! records from applying. Between the two it may still append, and what it appends before the claim
//! is applied here as by everybody. The last look catches a leader with a higher term that came in
//! between.
//!
//! A crash after any step leaves a raised term, a manifest that changes nothing, or a claim that
//! nobody uses; the next open does it all again.
//!
//! A shard whose log, manifest or files are damaged or missing is not opened; the error names the
//! place, nothing is changed or deleted, and other shards are not concerned.

use std::collections::HashMap;
use std::sync::Arc;

use object_store::{ObjectStoreExt, path::Path};
use parking_lot::{Mutex, RwLock};
use shoal_meta::{MetaError, ShardEntry};
use shoal_sst::SstError;
use shoal_types::{Epoch, ShardId, WriterId};
use shoal_wal::log::Log;
use shoal_wal::record::AttemptId;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::pins::Pins;
use super::publish::Publishing;
use super::state::ShardState;
use super::write::Pipeline;
use super::{Counters, Shard, Stopped, apply, claim, residue};
use crate::EngineError;
use crate::env::Env;
use crate::manifest::format::{Edit, Publisher};
use crate::manifest::publish::{PublishError, confirm_newest, prepare, publish};
use crate::manifest::{Chain, ManifestState};

/// Terms tried before giving up: each miss means that somebody else opened the shard meanwhile.
const TERMS_MAX: u32 = 16;
/// Largest memtable that may be carried over as residue.
const RESIDUE_TABLE_BYTES_MAX: usize = 64 << 10;

/// Sizes of all objects, by path, taken before the manifests were read.
pub(crate) type Listed = HashMap<String, u64>;

/// Opens a shard; `listed` (if given) is checked for every file the manifest names.
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
    let log = open_log(&env, id).await?;
    let writer = WriterId::generate();
    let (term, newest) = take_term(&env, &chain, writer).await?;
    if let Some(listed) = &listed {
        check_files(&newest, listed)?;
    }
    let newest = Arc::new(newest);
    let mut state = ShardState::new(Arc::clone(&newest), RESIDUE_TABLE_BYTES_MAX);
    load_residue(&env, &newest, &mut state).await?;
    let reader = log.read(newest.replay_offset()).await?;

    let (deliveries, to_deliver) = mpsc::unbounded_channel();
    let epoch = Epoch { term, claim: 0 };
    env.memory.change(0, state.memory_bytes);
    let (applied, _) = watch::channel(state.fold.next_offset());
    let shard = Arc::new(Shard {
        id,
        pipeline: Pipeline::new(epoch, writer, env.config.inflight_bytes_max, deliveries),
        env,
        chain,
        log,
        term,
        writer,
        state: RwLock::new(state),
        applied,
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
        counters: Counters::default(),
        trouble: Mutex::default(),
    });
    shard.look_for_compactions();
    let reading = {
        let shard = Arc::clone(&shard);
        tokio::spawn(async move {
            let _ends = StopsIfPanicked(Arc::clone(&shard));
            apply::run(shard, reader).await;
        })
    };
    shard.tasks.lock().push(reading);
    let Some(epoch) = shard.claim().await else {
        return Err(shard.unavailable());
    };
    if let Err(error) = confirm_newest(&shard.chain, &newest).await {
        let error = EngineError::from(error);
        shard.stop(Stopped::Overtaken(error.to_string()));
        return Err(error);
    }
    shard.serve(epoch);
    let delivering = {
        let shard = Arc::clone(&shard);
        tokio::spawn(async move {
            let _ends = StopsIfPanicked(Arc::clone(&shard));
            claim::run(shard, to_deliver).await;
        })
    };
    shard.tasks.lock().push(delivering);
    tracing::info!(
        shard = %id, %epoch, manifest = %newest.version(),
        replay_offset = %newest.replay_offset(), "shard open"
    );
    Ok(shard)
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

async fn open_log(env: &Env, id: ShardId) -> Result<Arc<dyn Log>, EngineError> {
    let entry = env
        .catalog
        .reload_shard(id)
        .await?
        .ok_or_else(|| EngineError::Invalid(format!("shard {id} is not known to meta")))?;
    let log = env.logs.open(id, !entry.has_log).await?;
    if !entry.has_log {
        let made = ShardEntry {
            has_log: true,
            ..entry
        };
        env.catalog.put_shard(id, Some(entry), made).await?;
    }
    Ok(log)
}

/// Takes a term above all before and publishes a manifest with it.
async fn take_term(
    env: &Env,
    chain: &Chain,
    writer: WriterId,
) -> Result<(u64, ManifestState), EngineError> {
    for _ in 0..TERMS_MAX {
        let Some(entry) = env.catalog.reload_shard(chain.shard).await? else {
            return Err(EngineError::Invalid("the shard is not in meta".into()));
        };
        let found = chain.load_newest().await?;
        let published = found.as_ref().map_or(0, |m| m.publisher.term);
        let term = entry.term.max(published) + 1;
        let raised = ShardEntry { term, ..entry };
        match env
            .catalog
            .put_shard(chain.shard, Some(entry), raised)
            .await
        {
            Ok(()) => {}
            Err(MetaError::Conflict) => continue,
            Err(e) => return Err(e.into()),
        }
        let base = found.unwrap_or_else(|| {
            let nobody = Publisher {
                term: 0,
                writer,
                attempt: AttemptId(Uuid::nil()),
            };
            ManifestState::before_first(chain.shard, &chain.cluster, nobody)
        });
        let now_ms = env.clock.now_ms();
        let prepared = prepare(chain, &base, Edit::default(), term, writer, now_ms)?;
        match publish(chain, &prepared).await {
            Ok(()) => return Ok((term, prepared.state)),
            Err(PublishError::Undecided(e) | PublishError::Refused(e)) => return Err(e),
            Err(other) => {
                let why = EngineError::from(other);
                tracing::info!(shard = %chain.shard, term, %why, "trying a higher term");
            }
        }
    }
    Err(EngineError::ShardUnavailable {
        shard: chain.shard,
        why: format!("{TERMS_MAX} terms in a row were overtaken by another opener"),
    })
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

async fn load_residue(
    env: &Env,
    newest: &ManifestState,
    state: &mut ShardState,
) -> Result<(), EngineError> {
    let Some(named) = &newest.residue else {
        return Ok(());
    };
    let path = Path::from(named.path.as_str());
    let read = async { env.store.get(&path).await?.bytes().await };
    let bytes = read.await.map_err(|e| SstError::from_store(&path, e))?;
    let damaged = |what| SstError::Damaged {
        path: named.path.clone(),
        what,
    };
    if crc32fast::hash(&bytes) != named.crc {
        return Err(damaged("its checksum differs from the manifest's".to_owned()).into());
    }
    for applied in residue::decode(&bytes).map_err(damaged)? {
        state.take_rows(applied.offset, applied.first_row, &applied.block);
    }
    Ok(())
}
