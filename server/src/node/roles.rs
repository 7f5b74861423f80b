//! This node's part in each shard, as meta assigns it.
//!
//! Two things tell of an assignment: the watched topology, and an order that whoever changed it
//! sends straight here, to save the way through the watch and to learn what came of it. Both end in
//! [`Roles::obey`], one at a time for each shard. An assignment is obeyed if its version is newer
//! than the last one obeyed; so an order that comes late, or from before a restored backup, moves
//! nothing (PROTOCOLS §6).
//!
//! Safety does not rest on any of this: a leader is deposed by the claim of the next one that it
//! reads in the log, whatever it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shoal_engine::{Database, EngineError, GiveUp, Promoted, Repaired, Role};
use shoal_meta::{Assignment, Topology};
use shoal_types::{NodeId, Offset, ShardId};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// First pause after a role could not be taken; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long a request waits for a lead that this node is about to have, and how often it looks.
const LEAD_WAIT: Duration = Duration::from_millis(300);
const LEAD_LOOK: Duration = Duration::from_millis(2);

/// A shard's turn, and the version of the last assignment that was obeyed, which only changes in a
/// turn.
#[derive(Debug, Default)]
struct Obeying {
    turn: Mutex<()>,
    version: AtomicU64,
}

impl Obeying {
    fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }
}

/// What an operator has this node do about a shard's log.
#[derive(Clone, Debug)]
pub enum Repair {
    /// Go on from the damage at which the replica halted.
    Skip {
        /// Where it stands.
        at: Offset,
        /// Whether the damaged records are given up.
        skip: bool,
        /// By whom and why.
        by: GiveUp,
    },
    /// Go on with a new log.
    Adopt {
        /// No replica has passed this.
        above: Offset,
        /// By whom and why.
        by: GiveUp,
    },
}

/// Roles of one node.
pub struct Roles {
    me: NodeId,
    db: Arc<Database>,
    topology: Arc<Topology>,
    shards: parking_lot::Mutex<BTreeMap<ShardId, Arc<Obeying>>>,
}

impl Roles {
    /// Nothing is led or followed yet.
    #[must_use]
    pub fn new(me: NodeId, db: Arc<Database>, topology: Arc<Topology>) -> Arc<Self> {
        Arc::new(Self {
            me,
            topology,
            shards: parking_lot::Mutex::default(),
            db,
        })
    }

    fn role_in(&self, assignment: &Assignment) -> Role {
        if assignment.leader == Some(self.me) {
            Role::Leader
        } else if assignment.followers.contains(&self.me) {
            Role::Follower
        } else {
            Role::None
        }
    }

    /// The version of the assignment that was obeyed last; 0: none.
    #[must_use]
    pub fn obeyed_version(&self, shard: ShardId) -> u64 {
        let shards = self.shards.lock();
        shards.get(&shard).map_or(0, |obeying| obeying.version())
    }

    /// Waits a little for a lead that this node is about to have: whoever hears of an assignment
    /// before it is taken would else come in vain, again and again.
    pub async fn about_to_lead(&self, shard: ShardId) {
        let obeying = self.obeying(shard);
        let deadline = Instant::now() + LEAD_WAIT;
        while self.db.role(shard) != Role::Leader && Instant::now() < deadline {
            let snapshot = self.topology.snapshot();
            let assigned = snapshot.assignments.get(&shard);
            let is_mine = assigned.is_some_and(|a| a.leader == Some(self.me));
            if !is_mine && obeying.turn.try_lock().is_ok() {
                return;
            }
            tokio::time::sleep(LEAD_LOOK).await;
        }
    }

    fn obeying(&self, shard: ShardId) -> Arc<Obeying> {
        Arc::clone(self.shards.lock().entry(shard).or_default())
    }

    /// Takes the role that an assignment gives this node; returns when it has it.
    ///
    /// # Errors
    /// Why it cannot; it is tried again for as long as the topology says so.
    pub async fn obey(
        &self,
        shard: ShardId,
        assignment: &Assignment,
    ) -> Result<Option<Promoted>, EngineError> {
        let obeying = self.obeying(shard);
        let _turn = obeying.turn.lock().await;
        if assignment.version < obeying.version() {
            return Ok(None);
        }
        let role = self.role_in(assignment);
        let done = self.db.set_role(shard, role, assignment.term).await?;
        obeying.version.store(assignment.version, Ordering::Relaxed);
        Ok(done)
    }

    /// Repairs a shard that an assignment has this node lead; returns when it leads.
    ///
    /// # Errors
    /// The assignment is not the newest that was obeyed, or does not name this node; the engine's.
    pub async fn repair(
        &self,
        shard: ShardId,
        assignment: &Assignment,
        repair: Repair,
    ) -> Result<Repaired, EngineError> {
        let obeying = self.obeying(shard);
        // What the topology says of it waits until this is done.
        let _turn = obeying.turn.lock().await;
        if assignment.version < obeying.version() || self.role_in(assignment) != Role::Leader {
            return Err(EngineError::ShardUnavailable {
                shard,
                why: format!(
                    "the order is of assignment {}, this node has obeyed {}",
                    assignment.version,
                    obeying.version()
                ),
            });
        }
        let with_term = |by: GiveUp| GiveUp {
            term_min: by.term_min.max(assignment.term),
            ..by
        };
        let done = match repair {
            Repair::Skip { at, skip, by } => {
                self.db.skip_record(shard, at, skip, with_term(by)).await?
            }
            Repair::Adopt { above, by } => self.db.adopt_log(shard, above, with_term(by)).await?,
        };
        obeying.version.store(assignment.version, Ordering::Relaxed);
        Ok(done)
    }

    /// Takes the roles that the topology gives this node, and every change of them, until `stop`.
    #[must_use]
    pub fn follow(self: &Arc<Self>, stop: &CancellationToken) -> JoinHandle<()> {
        let (roles, stop) = (Arc::clone(self), stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = roles.follow_all() => {}
            }
        })
    }

    async fn follow_all(self: Arc<Self>) {
        let mut changes = self.topology.subscribe();
        let mut followed = BTreeSet::new();
        // They end with this.
        let mut following = JoinSet::new();
        loop {
            let assigned: Vec<ShardId> = {
                let snapshot = changes.borrow_and_update();
                let new = |shard: &&ShardId| !followed.contains(*shard);
                snapshot.assignments.keys().filter(new).copied().collect()
            };
            for shard in assigned {
                followed.insert(shard);
                let roles = Arc::clone(&self);
                following.spawn(async move { roles.follow_one(shard).await });
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn follow_one(&self, shard: ShardId) {
        let mut changes = self.topology.subscribe();
        let mut pause = PAUSE_MIN;
        loop {
            let assignment = {
                let snapshot = changes.borrow_and_update();
                snapshot.assignments.get(&shard).cloned()
            };
            let failed = match assignment {
                None => false,
                Some(assignment) => match self.obey(shard, &assignment).await {
                    Ok(_) => false,
                    Err(error) => {
                        tracing::warn!(
                            %shard, term = assignment.term, version = assignment.version, %error,
                            "the assigned role is not taken yet, will be tried again"
                        );
                        true
                    }
                },
            };
            let again = async {
                if failed {
                    tokio::time::sleep(pause).await;
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    pause = PAUSE_MIN;
                }
                () = again => pause = (pause * 2).min(PAUSE_MAX),
            }
        }
    }

    /// Waits until every shard that the topology gives this node at this moment is served, or its
    /// opening has failed once.
    pub async fn settle(&self) {
        let snapshot = self.topology.snapshot();
        let mine = snapshot.assignments.iter();
        let mine = mine.filter(|(_, assignment)| assignment.involves(self.me));
        let taken = mine.map(|(shard, assignment)| async move {
            if let Err(error) = self.obey(*shard, assignment).await {
                tracing::warn!(%shard, %error, "not served yet, will be tried again");
            }
        });
        futures::future::join_all(taken).await;
    }
}
