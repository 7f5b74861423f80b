//! When to flush, compact, collect garbage and open again. Decisions are pure functions; the loops
//! around them only carry them out.
//!
//! - **Flush**: memory of all shards over its budget (largest first), a shard's log over its
//!   budget, rows older than the age limit.
//! - **Failures** (no space, a store that does not answer) are tried again for ever, at growing
//!   intervals, and stand in the status meanwhile. When the cause is gone everything goes on
//!   without a restart.

use std::sync::Arc;
use std::time::Duration;

use shoal_types::ShardId;
use tokio::task::JoinSet;

use super::open_shard::open_as;
use super::{Role, Served, Shared, Slot};
use crate::EngineError;
use crate::shard::gc::GcReport;
use crate::shard::open::StopsIfDropped;
use crate::shard::relatives::Relatives;
use crate::shard::{Shard, Stopped};

/// How often is looked whether something is due.
const TICK: Duration = Duration::from_millis(200);
/// First pause after a failure; doubles up to [`PAUSE_MAX_MS`].
const PAUSE_MS: u64 = 200;
const PAUSE_MAX_MS: u64 = 10_000;
/// Time between two looks at the newest manifest of a shard that cannot read its log.
const LOOK_MS: u64 = 1000;
/// Least time between two flushes of a shard that only serve to free the log.
const LOG_FLUSH_MS: u64 = 10_000;
/// Garbage that no manifest ever named is looked for every so many collections.
const ORPHANS_EVERY: u64 = 60;

/// What decides on flushing a shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlushInput {
    pub id: ShardId,
    pub memory_bytes: usize,
    pub log_bytes: u64,
    pub dirty_ms: Option<u64>,
    pub flushing: bool,
    pub log_flush_due: bool,
    /// Its replay offset is to rise.
    pub is_asked_for: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct FlushLimits {
    pub memory_bytes_max: usize,
    pub log_bytes_max: u64,
    pub age_max_ms: u64,
}

/// Shards to be flushed now. What is being flushed counts as gone already.
pub(super) fn due(shards: &[FlushInput], limits: FlushLimits) -> Vec<ShardId> {
    let mut chosen = Vec::new();
    let mut memory: usize = shards
        .iter()
        .filter(|s| !s.flushing)
        .map(|s| s.memory_bytes)
        .sum();
    let mut rest: Vec<&FlushInput> = shards.iter().filter(|s| !s.flushing).collect();
    rest.retain(|s| {
        let old = s.dirty_ms.is_some_and(|age| age > limits.age_max_ms);
        let long = s.log_flush_due && s.log_bytes > limits.log_bytes_max;
        if old || long || s.is_asked_for {
            chosen.push(s.id);
            memory -= s.memory_bytes;
        }
        !(old || long || s.is_asked_for)
    });
    rest.sort_by_key(|s| std::cmp::Reverse(s.memory_bytes));
    for shard in rest {
        if memory <= limits.memory_bytes_max || shard.memory_bytes == 0 {
            break;
        }
        chosen.push(shard.id);
        memory -= shard.memory_bytes;
    }
    chosen
}

pub(super) fn start(shared: &Arc<Shared>) -> Vec<tokio::task::JoinHandle<()>> {
    vec![
        tokio::spawn(flush_loop(Arc::clone(shared))),
        tokio::spawn(compaction_loop(Arc::clone(shared))),
        tokio::spawn(collection_loop(Arc::clone(shared))),
    ]
}

async fn tick(shared: &Shared) -> bool {
    tokio::select! {
        biased;
        () = shared.stop.cancelled() => false,
        () = shared.env.wake.notified() => true,
        () = tokio::time::sleep(TICK) => true,
    }
}

async fn flush_loop(shared: Arc<Shared>) {
    let mut running = JoinSet::new();
    while tick(&shared).await {
        while running.try_join_next().is_some() {}
        shared.meet_shards();
        reopen(&shared, &mut running);
        tell(&shared, &mut running);
        for id in due(&flush_inputs(&shared), flush_limits(&shared)) {
            let Ok(shard) = shared.shard(id) else {
                continue;
            };
            let Some(slot) = shared.slots.get(id) else {
                continue;
            };
            {
                let mut work = slot.work.lock();
                work.flushing = true;
                work.log_flush_ms = shared.env.clock.now_ms();
            }
            let shared = Arc::clone(&shared);
            running.spawn(async move {
                let outcome = shard.flush().await;
                note(&shared, &shard, "flush", outcome.as_ref().err());
                if let Some(slot) = shared.slots.get(shard.id) {
                    slot.work.lock().flushing = false;
                }
            });
        }
        // A tick that a steady stream of wake-ups brought on leaves time for the work itself.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A flush under way is not waited for: what it wrote and did not publish is garbage.
    running.shutdown().await;
}

/// Tells meta of partitions that have changed, and goes on with splits, where whoever began did not
/// come to it.
fn tell(shared: &Arc<Shared>, running: &mut JoinSet<()>) {
    let parents = shared.env.catalog.parents_of(|entry| !entry.is_born());
    for shard in shared.led_shards() {
        let Some(slot) = shared.slots.get(shard.id) else {
            continue;
        };
        let (has_births, has_news) = {
            let state = shard.state.read();
            let has_births = !state.departed.is_empty() || parents.contains(&shard.id);
            (has_births, has_births || !state.untold.is_empty())
        };
        if !has_news || slot.work.lock().telling {
            continue;
        }
        slot.work.lock().telling = true;
        let shared = Arc::clone(shared);
        running.spawn(async move {
            let told = match has_births {
                // Tells of partitions, too.
                true => shard.go_on_with_births().await,
                false => shard.tell_layouts().await,
            };
            if let Err(error) = told {
                tracing::warn!(shard = %shard.id, %error, "partitions not told to meta, will be tried again");
                tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
            }
            if let Some(slot) = shared.slots.get(shard.id) {
                slot.work.lock().telling = false;
            }
        });
    }
}

fn flush_limits(shared: &Shared) -> FlushLimits {
    let config = &shared.env.config;
    FlushLimits {
        memory_bytes_max: config.memtable_bytes_max,
        log_bytes_max: config.log_bytes_max,
        age_max_ms: config.flush_age_max_s.saturating_mul(1000),
    }
}

fn flush_inputs(shared: &Shared) -> Vec<FlushInput> {
    let now_ms = shared.env.clock.now_ms();
    let mut inputs = Vec::with_capacity(shared.slots.len());
    // What follows a split is in no hurry as long as writers wait for the new shard.
    let bearing = shared.env.catalog.parents_of(|entry| !entry.is_settled());
    for slot in shared.slots.all() {
        let Ok(shard) = slot.shard() else { continue };
        if !shard.leads() {
            continue;
        }
        let (flushing, log_flush_due) = {
            let work = slot.work.lock();
            let waiting = now_ms < work.not_before_ms;
            let due = now_ms >= work.log_flush_ms.saturating_add(LOG_FLUSH_MS);
            (work.flushing || waiting, due)
        };
        let state = shard.state.read();
        inputs.push(FlushInput {
            id: slot.id,
            memory_bytes: state.memory_bytes,
            log_bytes: shard.log.held_back_bytes(),
            dirty_ms: state
                .dirty_since_ms
                .map(|since| now_ms.saturating_sub(since)),
            flushing,
            log_flush_due,
            is_asked_for: !bearing.contains(&slot.id)
                && (*shard.flush_past.lock())
                    .is_some_and(|past| past >= state.manifest.replay_offset()),
        });
    }
    inputs
}

/// Notes how background work went; after a failure the shard is left alone for a while.
fn note(shared: &Shared, shard: &Shard, what: &str, error: Option<&EngineError>) {
    let Some(slot) = shared.slots.get(shard.id) else {
        return;
    };
    let mut work = slot.work.lock();
    match error {
        None => {
            work.failures = 0;
            work.not_before_ms = 0;
            *shard.trouble.lock() = None;
        }
        Some(_) if shard.stopped().is_some() => {}
        Some(error) => {
            let pause = (PAUSE_MS << work.failures.min(10)).min(PAUSE_MAX_MS);
            work.failures = work.failures.saturating_add(1);
            work.not_before_ms = shared.env.clock.now_ms() + pause;
            tracing::warn!(shard = %shard.id, %error, pause_ms = pause, "{what} failed, will be tried again");
            *shard.trouble.lock() = Some(format!("{what}: {error}"));
        }
    }
}

/// What would bring a shard back to what this process is to be for it.
enum Again {
    /// Lead with the replica that is open.
    Lead(Arc<Shard>),
    /// Open a replica, once this one has ended.
    Open(Option<Arc<Shard>>),
    /// It reads no further: look whether the newest manifest leads on.
    Look(Arc<Shard>),
}

fn again(slot: &Slot) -> Option<Again> {
    let wanted = *slot.wanted.lock();
    if wanted == Role::None {
        return None;
    }
    match &*slot.served.read() {
        Served::Open(shard) => match shard.stopped() {
            Some(Stopped::Reopen(_)) => Some(Again::Open(Some(Arc::clone(shard)))),
            None if shard.halted.is() => Some(Again::Look(Arc::clone(shard))),
            None if wanted == Role::Leader && shard.has_lost_its_lead() => {
                Some(Again::Lead(Arc::clone(shard)))
            }
            _ => None,
        },
        Served::NotPlaced => None,
        Served::Unavailable { try_again, .. } => try_again.then_some(Again::Open(None)),
    }
}

/// Opens shards again that may be served again, and leads again what this process is to lead.
fn reopen(shared: &Arc<Shared>, running: &mut JoinSet<()>) {
    let now_ms = shared.env.clock.now_ms();
    for slot in shared.slots.all() {
        if again(&slot).is_none() {
            continue;
        }
        {
            let mut work = slot.work.lock();
            if work.opening || now_ms < work.not_before_ms {
                continue;
            }
            work.opening = true;
        }
        let (shared, id) = (Arc::clone(shared), slot.id);
        running.spawn(async move {
            if let Some(slot) = shared.slots.get(id) {
                serve_again(&shared, &slot).await;
            }
        });
    }
}

/// Opens a halted replica anew, if the newest manifest leads past the place.
async fn look(shared: &Shared, slot: &Slot, shard: Arc<Shard>) -> Option<Served> {
    match shard.may_go_on().await {
        Ok(true) => {}
        Ok(false) => return None,
        Err(error) => {
            tracing::debug!(shard = %slot.id, %error, "newest manifest not looked at");
            return None;
        }
    }
    shard.stop_to_go_on();
    shard.join().await;
    // Who repaired it leads it, unless this process is alone or is told otherwise.
    let leads = *slot.wanted.lock() == Role::Leader;
    Some(open_again(shared, slot.id, leads).await)
}

async fn serve_again(shared: &Shared, slot: &Slot) {
    let turn = slot.turn.lock().await;
    let served = match again(slot) {
        // Somebody gave it a role meanwhile.
        None => return slot.work.lock().opening = false,
        Some(Again::Lead(shard)) => {
            if let Err(error) = shard.promote(0).await {
                tracing::warn!(shard = %slot.id, %error, "not leading, will be tried again");
            }
            shard.leads().then_some(Served::Open(shard))
        }
        Some(Again::Look(shard)) => match look(shared, slot, shard).await {
            Some(served) => Some(served),
            None => {
                let mut work = slot.work.lock();
                work.opening = false;
                work.not_before_ms = shared.env.clock.now_ms() + LOOK_MS;
                return;
            }
        },
        Some(Again::Open(old)) => {
            let mut leads = *slot.wanted.lock() == Role::Leader;
            if let Some(old) = old {
                old.join().await;
                leads &= !old.is_deposed();
            }
            Some(open_again(shared, slot.id, leads).await)
        }
    };
    {
        let mut work = slot.work.lock();
        work.opening = false;
        work.flushing = false;
        match &served {
            Some(Served::Open(_)) => work.failures = 0,
            _ => {
                let pause = (PAUSE_MS << work.failures.min(10)).min(PAUSE_MAX_MS);
                work.failures = work.failures.saturating_add(1);
                work.not_before_ms = shared.env.clock.now_ms() + pause;
            }
        }
    }
    if let Some(served) = served {
        *slot.served.write() = served;
        // A new shard tells meta what it has, once it can be asked.
        shared.env.wake.notify_one();
    }
    drop(turn);
    // Whoever closes the database looks at the slots once, perhaps just before this.
    if shared.stop.is_cancelled()
        && let Ok(shard) = slot.shard()
    {
        shard.stop(Stopped::Closed);
    }
}

/// Opens a shard that could not be served for a while: to follow, and if it is to be led, to lead.
/// One that another replica leads by now is not taken from it; one that cannot be led yet serves
/// reads meanwhile.
pub(super) async fn open_again(shared: &Shared, id: ShardId, leads: bool) -> Served {
    let opened = open_as(Arc::clone(&shared.env), id, None, Role::Follower).await;
    let mut unfinished = StopsIfDropped(opened.as_ref().ok().cloned());
    if let Ok(shard) = &opened {
        if !leads {
            shard.depose();
        } else if let Err(error) = shard.promote(0).await {
            tracing::warn!(shard = %id, %error, "not leading, will be tried again");
        }
    }
    unfinished.0 = None;
    Served::of(id, opened)
}

async fn compaction_loop(shared: Arc<Shared>) {
    let tasks_max = shared.env.config.compaction_tasks_max.max(1);
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            () = tokio::time::sleep(TICK) => {}
        }
        while running.try_join_next().is_some() {}
        let now_ms = shared.env.clock.now_ms();
        for slot in shared.slots.all() {
            if running.len() >= tasks_max {
                break;
            }
            let Ok(shard) = slot.shard() else { continue };
            if !shard.leads() || shard.compactable.lock().is_empty() {
                continue;
            }
            {
                let mut work = slot.work.lock();
                if work.compacting || now_ms < work.not_before_ms {
                    continue;
                }
                work.compacting = true;
            }
            let shared = Arc::clone(&shared);
            running.spawn(async move {
                let outcome = shard.compact_next().await;
                if let Err(error) = &outcome {
                    note(&shared, &shard, "compaction", Some(error));
                }
                if let Some(slot) = shared.slots.get(shard.id) {
                    slot.work.lock().compacting = false;
                }
            });
        }
    }
    running.shutdown().await;
}

async fn collection_loop(shared: Arc<Shared>) {
    let interval_s = shared.env.config.gc_interval_s;
    if interval_s == 0 {
        return;
    }
    let mut round = 0_u64;
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(interval_s)) => {}
        }
        let mut known = Relatives::default();
        for shard in shared.led_shards() {
            let tables = shard.tables_with_files();
            let outcome = async {
                shard.expire(&tables).await?;
                let mut report = GcReport::default();
                shard.collect(false, &mut known, &mut report).await
            };
            if let Err(error) = outcome.await {
                tracing::warn!(shard = %shard.id, %error, "garbage collection failed, will be tried again");
            }
            shard.look_for_compactions();
        }
        if round.is_multiple_of(ORPHANS_EVERY)
            && let Err(error) = shared
                .collect_orphans(false, &mut GcReport::default())
                .await
        {
            tracing::warn!(%error, "orphans not collected, will be tried again");
        }
        round += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(memory_bytes: usize) -> FlushInput {
        FlushInput {
            id: ShardId::generate(),
            memory_bytes,
            log_bytes: 0,
            dirty_ms: Some(0),
            flushing: false,
            log_flush_due: true,
            is_asked_for: false,
        }
    }

    #[test]
    fn the_largest_memtables_are_flushed_until_the_budget_is_kept() {
        let limits = FlushLimits {
            memory_bytes_max: 100,
            log_bytes_max: 1000,
            age_max_ms: 1000,
        };
        let shards = [shard(40), shard(70), shard(30)];
        assert_eq!(due(&shards, limits), [shards[1].id]);
        let mut busy = shards;
        busy[1].flushing = true;
        assert_eq!(
            due(&busy, limits),
            [],
            "what is being flushed counts as gone"
        );
        let mut old = [shard(1), shard(1)];
        old[0].dirty_ms = Some(1001);
        old[1].log_bytes = 1001;
        assert_eq!(due(&old, limits), [old[0].id, old[1].id]);
        old[1].log_flush_due = false;
        assert_eq!(due(&old, limits), [old[0].id]);
    }
}
