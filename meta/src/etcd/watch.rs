//! Changes below a prefix, without a gap.
//!
//! A watch is begun after the revision of a listing and, after lost contact, again from the last
//! revision seen, that one included: etcd may have cut one revision's changes into several answers
//! of which only the first arrived. What was told already is told again; watchers compare
//! revisions.
//!
//! Everything is listed anew, and told as such, when etcd has compacted what was missed, and when
//! etcd went back to a backup: then its revision or its Raft term is below what was seen, or its
//! cluster is another one. A watch from a revision that a restored etcd has not reached yet would
//! wait without a word, so this is looked at before each watch.

use std::time::Duration;

use etcd_client::{EventType, WatchOptions, WatchResponse};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection::{Connection, Failure};
use super::{signed, text, unsigned};
use crate::store::{Change, MetaError, Watch, WatchEvent};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub(super) fn start(connection: Connection, prefix: String, after: u64) -> Watch {
    let (events, watch) = Watch::channel();
    let watcher = Watcher {
        connection,
        prefix,
        events,
        listed: after,
        seen: after,
        server: None,
        pause: PAUSE_MIN,
    };
    tokio::spawn(watcher.run());
    watch
}

struct Watcher {
    connection: Connection,
    prefix: String,
    events: mpsc::Sender<WatchEvent>,
    /// The revision of the last listing; what is not above it was in it.
    listed: u64,
    /// The highest revision told.
    seen: u64,
    server: Option<Server>,
    pause: Duration,
}

/// What an answer's header says of the server.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Server {
    cluster: u64,
    raft_term: u64,
    revision: u64,
}

/// Why a watch ended.
enum Ended {
    /// Nobody listens any more.
    Unwanted,
    /// Contact was lost.
    Lost(String),
    /// Changes were missed that etcd does not know any more.
    Missed,
    /// etcd is another, or older, than it was.
    Restored,
}

impl Watcher {
    async fn run(mut self) {
        let mut relist = (self.listed == 0).then_some(false);
        loop {
            let ended = match relist {
                Some(restored) => match self.list(restored).await {
                    Ok(()) => {
                        relist = None;
                        continue;
                    }
                    Err(ended) => ended,
                },
                None => self.watch().await,
            };
            match ended {
                Ended::Unwanted => return,
                Ended::Missed => relist = Some(false),
                Ended::Restored => relist = Some(true),
                Ended::Lost(why) => {
                    if self.tell(WatchEvent::Interrupted(why)).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn tell(&mut self, event: WatchEvent) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended::Unwanted)
    }

    async fn list(&mut self, restored: bool) -> Result<(), Ended> {
        self.server = Some(self.ask().await?);
        let listing = self
            .connection
            .list(&self.prefix)
            .await
            .map_err(|e| Ended::Lost(e.to_string()))?;
        self.listed = listing.revision;
        self.seen = listing.revision;
        self.tell(WatchEvent::Reset { listing, restored }).await
    }

    /// Asks the server who and where it is.
    async fn ask(&self) -> Result<Server, Ended> {
        let key = self.prefix.clone();
        let answer = self
            .connection
            .read(|mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await
            .map_err(|e| Ended::Lost(e.of_read().to_string()))?;
        let header = answer
            .header()
            .ok_or_else(|| Ended::Lost("an answer without a header".into()))?;
        Ok(Server {
            cluster: header.cluster_id(),
            raft_term: header.raft_term(),
            revision: unsigned(header.revision()),
        })
    }

    async fn watch(&mut self) -> Ended {
        let server = match self.ask().await {
            Ok(server) => server,
            Err(ended) => return ended,
        };
        let another = self.server.is_some_and(|before| {
            before.cluster != server.cluster
                || server.raft_term < before.raft_term
                || server.revision < before.revision
        });
        if another || server.revision < self.seen {
            return Ended::Restored;
        }
        let again = self.server.replace(server).is_some() && self.pause > PAUSE_MIN;
        match self.stream(again).await {
            Err(ended) => ended,
            Ok(never) => match never {},
        }
    }

    async fn stream(&mut self, again: bool) -> Result<std::convert::Infallible, Ended> {
        let from = self.seen.max(self.listed + 1);
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(signed(from))
            .with_fragment();
        let (at, mut client) = self
            .connection
            .client()
            .await
            .map_err(|e| Ended::Lost(e.of_read().to_string()))?;
        let begin = client.watch(self.prefix.as_str(), Some(options));
        let mut stream = match timeout(self.connection.request_timeout(), begin).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.connection.turn_from(at);
                let failure: Failure = self.connection.judge(at, &error);
                return Err(Ended::Lost(failure.of_read().to_string()));
            }
            Err(_) => {
                self.connection.turn_from(at);
                return Err(Ended::Lost("etcd did not begin a watch in time".into()));
            }
        };
        if again {
            self.tell(WatchEvent::Changes(Vec::new())).await?;
        }
        self.pause = PAUSE_MIN;
        loop {
            let message = tokio::select! {
                () = self.events.closed() => return Err(Ended::Unwanted),
                () = self.connection.turned_from(at) => {
                    return Err(Ended::Lost("a member of etcd does not answer".into()));
                }
                message = stream.message() => message,
            };
            let answer = match message {
                Ok(Some(answer)) => answer,
                Ok(None) => {
                    self.connection.turn_from(at);
                    return Err(Ended::Lost("etcd ended the watch".into()));
                }
                Err(error) => {
                    self.connection.turn_from(at);
                    let failure = self.connection.judge(at, &error);
                    return Err(Ended::Lost(failure.of_read().to_string()));
                }
            };
            self.take(&answer).await?;
        }
    }

    async fn take(&mut self, answer: &WatchResponse) -> Result<(), Ended> {
        if let (Some(header), Some(server)) = (answer.header(), &mut self.server) {
            server.revision = server.revision.max(unsigned(header.revision()));
            server.raft_term = server.raft_term.max(header.raft_term());
        }
        if answer.compact_revision() > 0 {
            return Err(Ended::Missed);
        }
        if answer.canceled() {
            return Err(Ended::Lost(format!(
                "etcd ended the watch: {}",
                answer.cancel_reason()
            )));
        }
        let mut changes = Vec::with_capacity(answer.events().len());
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let key = match text(kv.key()) {
                Ok(key) => key,
                // Not one of ours: all our keys are text.
                Err(MetaError::Damaged { key, what }) => {
                    tracing::warn!(key, what, "a meta key that is not text");
                    continue;
                }
                Err(e) => return Err(Ended::Lost(e.to_string())),
            };
            let revision = unsigned(kv.mod_revision());
            self.seen = self.seen.max(revision);
            changes.push(Change {
                key,
                value: (event.event_type() == EventType::Put).then(|| kv.value().to_vec()),
                revision,
            });
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.tell(WatchEvent::Changes(changes)).await
    }
}
