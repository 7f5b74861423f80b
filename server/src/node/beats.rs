//! What this node tells the scheduler of itself: a stream of beats, one every [`EVERY`].
//!
//! The scheduler asks for it (`DoAction` of the type [`super::wire::BEATS`]), so a new one needs no node to find
//! it, and both ends see at once when it breaks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{Stream, stream};
use shoal_engine::{Database, ShardStatus};
use shoal_scheduler::{Beat, ReplicaBeat, Serving};
use shoal_types::ShardId;
use shoal_wal::kafka::KafkaLogStore;
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::reach::Reach;
use super::roles::Roles;

/// Time between two beats.
const EVERY: Duration = Duration::from_millis(200);
/// How often the log is tried, and how long its answer may take.
const LOG_EVERY: Duration = Duration::from_millis(250);
const LOG_WITHIN: Duration = Duration::from_millis(500);
/// Without an answer for so long, which is two tries, the log is not reached.
const LOG_SILENT: Duration = Duration::from_millis(1_400);

/// What a node's beats are made of.
pub struct Pulse {
    db: Arc<Database>,
    roles: Arc<Roles>,
    process: Ulid,
    cores: f64,
    reaches_log: Arc<AtomicBool>,
    reach: Arc<Reach>,
    stop: CancellationToken,
}

impl Pulse {
    /// Of this start of a node; tries the log and other nodes until `stop`.
    #[must_use]
    pub fn start(
        db: Arc<Database>,
        roles: Arc<Roles>,
        logs: Arc<KafkaLogStore>,
        reach: Arc<Reach>,
        process: Ulid,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let reaches_log = Arc::new(AtomicBool::new(true));
        let (told, stopping) = (Arc::clone(&reaches_log), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = try_log(&logs, &told) => {}
            }
        });
        let (watching, stopping) = (Arc::clone(&reach), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = watching.watch() => {}
            }
        });
        Arc::new(Self {
            db,
            roles,
            process,
            cores: std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
            reaches_log,
            reach,
            stop: stop.clone(),
        })
    }

    /// Beats for as long as they are taken and the node does not stop.
    pub fn beats(self: Arc<Self>) -> impl Stream<Item = Beat> + Send {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let told: BTreeMap<ShardId, ReplicaBeat> = BTreeMap::new();
        stream::unfold(
            (self, told, every),
            |(pulse, mut told, mut every)| async move {
                tokio::select! {
                    _ = every.tick() => {}
                    () = pulse.stop.cancelled() => return None,
                }
                let beat = pulse.beat(&mut told);
                Some((beat, (pulse, told, every)))
            },
        )
    }

    /// What has changed since `told`.
    fn beat(&self, told: &mut BTreeMap<ShardId, ReplicaBeat>) -> Beat {
        let placed = self.db.status().into_iter().filter(|s| s.placed);
        let now: BTreeMap<ShardId, ReplicaBeat> = placed
            .map(|status| {
                (
                    status.id,
                    replica(&status, self.roles.obeyed_version(status.id)),
                )
            })
            .collect();
        let changed = now
            .iter()
            .filter(|(shard, beat)| told.get(shard) != Some(beat));
        let changed = changed.map(|(_, beat)| beat.clone()).collect();
        let gone = told
            .keys()
            .filter(|shard| !now.contains_key(shard))
            .copied();
        let gone = gone.collect();
        *told = now;
        Beat {
            process: self.process,
            replicas: changed,
            gone,
            reaches_log: self.reaches_log.load(Ordering::Relaxed),
            cores: self.cores,
            unreached: self.reach.unreached(),
        }
    }
}

fn replica(status: &ShardStatus, obeyed: u64) -> ReplicaBeat {
    ReplicaBeat {
        shard: status.id,
        leads: status.role == "leader",
        epoch: status.epoch,
        position: status.position,
        state: match &*status.state {
            "damaged" => Serving::Damaged,
            "unavailable" => Serving::No,
            _ => Serving::Yes,
        },
        why: status.why.clone(),
        obeyed,
        applied_bytes: status.applied_bytes,
        read_us: status.read_us,
        memory_bytes: status.memory_bytes,
    }
}

async fn try_log(logs: &KafkaLogStore, told: &AtomicBool) {
    let mut answered = Instant::now();
    loop {
        if logs.answers(LOG_WITHIN).await {
            answered = Instant::now();
        }
        let reached = answered.elapsed() < LOG_SILENT;
        if told.swap(reached, Ordering::Relaxed) != reached {
            if reached {
                tracing::info!("the log is reached again");
            } else {
                tracing::warn!("the log is not reached");
            }
        }
        tokio::time::sleep(LOG_EVERY).await;
    }
}
