//! How fresh a read is (PROTOCOLS §4).
//!
//! `strong`: append a `Barrier` after the read arrived, wait until it is read back: everything that
//! was acknowledged before, by whichever leader, stands below it in the log and is applied here.
//! One barrier serves all reads that wait when it is appended, never one that came later. A log
//! whose durable end is known for certain (the local one) needs none.
//!
//! `bounded`: the age of what this replica shows is counted from the moment at which its last
//! barrier that came back was sent, so that an isolated broker cannot make old rows look current.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_types::Offset;
use shoal_wal::log::receipt_outcome;
use shoal_wal::record::Record;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::entry::LogEntry;
use super::{Shard, apply};
use crate::{CommitToken, EngineError, ReadLevel};

/// How long reads of any age wait for a replica that was opened a moment ago.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);

/// Pause after a barrier that could not be appended.
const PAUSE: Duration = Duration::from_millis(50);

type Waiting = oneshot::Sender<()>;

/// Barriers of one replica.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    state: Mutex<State>,
    /// Appended, not read back.
    appended: Mutex<HashMap<Uuid, Waiting>>,
}

#[derive(Debug, Default)]
struct State {
    /// Reads that came after the last append.
    waiting: Vec<Waiting>,
    /// Whether a task sends barriers.
    sending: bool,
    /// When the last barrier that came back was sent.
    fresh_as_of: Option<Instant>,
    /// Why the last one did not come back.
    trouble: Option<String>,
}

impl Barriers {
    /// Barriers that were read back.
    pub(crate) fn passed(&self, marks: &[Uuid]) {
        if marks.is_empty() {
            return;
        }
        let mut appended = self.appended.lock();
        for mark in marks {
            if let Some(waiting) = appended.remove(mark) {
                let _ = waiting.send(());
            }
        }
    }

    /// How old what this replica shows may be; `None`: nobody knows.
    fn age(&self) -> Option<Duration> {
        self.state.lock().fresh_as_of.map(|sent| sent.elapsed())
    }
}

impl Shard {
    /// Waits until this replica is as fresh as `level` asks.
    ///
    /// # Errors
    /// [`EngineError::NotFresh`] if it is not within `patience`; the shard stopped; the log's.
    pub(crate) async fn reach(
        self: &Arc<Self>,
        level: &ReadLevel,
        patience: Duration,
    ) -> Result<(), EngineError> {
        match level {
            ReadLevel::Eventual => {
                self.wait_caught_up(patience).await;
                Ok(())
            }
            ReadLevel::Strong => self.pass_barrier(patience).await,
            ReadLevel::Bounded(age_max) => {
                if self.barriers.age().is_some_and(|age| age <= *age_max) {
                    return Ok(());
                }
                let begun = Instant::now();
                match self.pass_barrier(patience.max(*age_max)).await {
                    Err(EngineError::NotFresh { shard, what }) => Err(EngineError::NotFresh {
                        shard,
                        what: format!("{what}; asked for {} ms", age_max.as_millis()),
                    }),
                    Ok(()) if begun.elapsed() > *age_max => Err(self.not_fresh(format!(
                        "the log took {} ms to answer, asked for {} ms",
                        begun.elapsed().as_millis(),
                        age_max.as_millis()
                    ))),
                    other => other,
                }
            }
            ReadLevel::Session(tokens) => {
                let mine = tokens.iter().filter(|token| token.shard == self.id);
                for token in mine.clone() {
                    self.refuse_lost(token.offset)?;
                }
                let Some(end) = mine.map(|token| token.offset.next()).max() else {
                    self.wait_caught_up(patience).await;
                    return Ok(());
                };
                tokio::time::timeout(patience, self.wait_applied(end))
                    .await
                    .unwrap_or_else(|_| {
                        let at = *self.applied.borrow();
                        Err(self.not_fresh(format!(
                            "replica is at offset {at}, the session has seen {end}"
                        )))
                    })?;
                // What was given up while this waited was passed without being applied.
                let mut mine = tokens.iter().filter(|token| token.shard == self.id);
                mine.try_for_each(|token| {
                    self.refuse_lost(token.offset)?;
                    self.refuse_unheard_of(token)
                })
            }
        }
    }

    /// A replica that was opened a moment ago has what its newest manifest had; whoever reads again
    /// and again would see rows vanish. It is given a little time to catch up.
    async fn wait_caught_up(&self, patience: Duration) {
        if *self.caught_up.borrow() {
            return;
        }
        let mut caught_up = self.caught_up.subscribe();
        let limit = patience.min(CATCH_UP_MAX);
        let _ = tokio::time::timeout(limit, caught_up.wait_for(|caught_up| *caught_up)).await;
    }

    /// A token of something that an operator gave up is never met, however far this replica reads.
    fn refuse_lost(&self, offset: Offset) -> Result<(), EngineError> {
        let losses = Arc::clone(&self.state.read().manifest.losses);
        let Some(loss) = losses.iter().find(|loss| loss.covers(offset)) else {
            return Ok(());
        };
        Err(EngineError::Lost {
            shard: self.id,
            what: format!(
                "what the session wrote at position {offset} was given up by an operator ({} from {} to {}: {})",
                loss.kind.as_str(),
                loss.from,
                loss.to,
                loss.reason
            ),
        })
    }

    /// Whoever was told a token was told it by a leader whose claim stands below it.
    fn refuse_unheard_of(&self, token: &CommitToken) -> Result<(), EngineError> {
        let (epoch, _) = self.state.read().fold.claim();
        if token.epoch <= epoch {
            return Ok(());
        }
        Err(EngineError::Invalid(format!(
            "the commit token {token} is of an epoch that shard {} has not had at that position (it is {epoch}): it was given by another database, or by one that was since restored from a backup",
            self.id
        )))
    }

    fn not_fresh(&self, what: String) -> EngineError {
        EngineError::NotFresh {
            shard: self.id,
            what,
        }
    }

    /// Waits until everything that was acknowledged before this call is applied here.
    async fn pass_barrier(self: &Arc<Self>, patience: Duration) -> Result<(), EngineError> {
        if self.halted.is() {
            return Err(self.unavailable());
        }
        if self.log.end_is_barrier() {
            let (_, end) = self.log.bounds().await?;
            return self.wait_applied(end).await;
        }
        let (waiting, passed) = oneshot::channel();
        {
            let mut state = self.barriers.state.lock();
            state.waiting.push(waiting);
            if !std::mem::replace(&mut state.sending, true) {
                let shard = Arc::clone(self);
                tokio::spawn(async move { shard.send_barriers().await });
            }
        }
        let passed = async {
            tokio::select! {
                biased;
                () = self.halted.happened() => None,
                passed = tokio::time::timeout(patience, passed) => Some(passed),
            }
        };
        let Some(passed) = passed.await else {
            return Err(self.unavailable());
        };
        match passed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.unavailable()),
            Err(_) => {
                let why = self.barriers.state.lock().trouble.clone();
                let behind = match self.barriers.age() {
                    Some(age) => format!("replica is {:.1} s behind", age.as_secs_f64()),
                    None => "nobody knows how far behind the replica is".to_owned(),
                };
                let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                Err(self.not_fresh(format!(
                    "{behind}: its log did not answer within {} ms{why}",
                    patience.as_millis()
                )))
            }
        }
    }

    /// Sends one barrier after the other for as long as somebody waits.
    async fn send_barriers(self: Arc<Self>) {
        loop {
            let mut group = {
                let mut state = self.barriers.state.lock();
                state.waiting.retain(|waiting| !waiting.is_closed());
                let ended = self.stop.is_cancelled() || self.halted.is();
                if state.waiting.is_empty() || ended {
                    state.waiting.clear();
                    state.sending = false;
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            let sent = Instant::now();
            let outcome = self.send_barrier(&mut group).await;
            let failed = {
                let mut state = self.barriers.state.lock();
                match outcome {
                    Ok(()) => {
                        state.fresh_as_of = Some(sent);
                        state.trouble = None;
                        false
                    }
                    Err(why) => {
                        state.trouble = Some(why);
                        state.waiting.append(&mut group);
                        true
                    }
                }
            };
            if failed {
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = tokio::time::sleep(PAUSE) => {}
                }
                continue;
            }
            for waiting in group {
                let _ = waiting.send(());
            }
        }
    }

    /// Appends one barrier and waits until it is read back, or until nobody waits for it.
    async fn send_barrier(&self, group: &mut [Waiting]) -> Result<(), String> {
        let mark = Uuid::new_v4();
        let (waiting, passed) = oneshot::channel();
        self.barriers.appended.lock().insert(mark, waiting);
        let entry = LogEntry::without_rows(Record::barrier(mark, self.env.clock.now_ms()));
        let (bytes, crc) = entry.encode();
        let receipt = self.log.append(bytes);
        let failed = async {
            match receipt_outcome(receipt).await {
                // It passes at once where everything below is applied, else it will be read.
                Ok(offset) => {
                    apply::confirm(self, offset, entry, crc);
                    std::future::pending().await
                }
                Err(error) => error.to_string(),
            }
        };
        let given_up = async {
            for waiting in group.iter_mut() {
                waiting.closed().await;
            }
        };
        let outcome = tokio::select! {
            biased;
            read = passed => read.map_err(|_| "it was given up".to_owned()),
            why = failed => Err(why),
            () = given_up => Err("it was not read back in time".to_owned()),
            () = self.stop.cancelled() => Err("the shard stopped".to_owned()),
            () = self.halted.happened() => Err("the log is read no further".to_owned()),
        };
        self.barriers.appended.lock().remove(&mark);
        outcome
    }
}
