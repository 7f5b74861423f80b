//! Changes of a store within this process, for its watchers: the last few commits, and a bell.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::store::{Change, Kept, Listing, Lost, MetaError, Watch, WatchEvent};

/// Commits kept for watchers that are behind; older ones are answered with everything there is.
const COMMITS_KEPT: usize = 1024;

/// The last commits of a store.
#[derive(Debug)]
pub(crate) struct Feed {
    recent: Mutex<Recent>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Recent {
    commits: VecDeque<(u64, Arc<Vec<Change>>)>,
    /// Commits up to this are not known any more.
    floor: u64,
    /// How often the store was put back to an older state.
    restored: u64,
}

enum Since {
    Changes(Vec<Change>, u64),
    TooOld { restored: u64 },
}

impl Feed {
    /// A feed of a store that is at `revision`.
    pub(crate) fn new(revision: u64) -> Arc<Self> {
        Arc::new(Self {
            recent: Mutex::new(Recent {
                floor: revision,
                ..Recent::default()
            }),
            newest: watch::channel(revision).0,
        })
    }

    /// Notes a commit that has taken effect. In the order of the revisions.
    pub(crate) fn push(&self, revision: u64, changes: Vec<Change>) {
        {
            let mut recent = self.recent.lock();
            recent.commits.push_back((revision, Arc::new(changes)));
            if recent.commits.len() > COMMITS_KEPT
                && let Some((oldest, _)) = recent.commits.pop_front()
            {
                recent.floor = oldest;
            }
        }
        self.newest.send_replace(revision);
    }

    /// Forgets all history, as etcd's compaction does.
    pub(crate) fn compact(&self) {
        let mut recent = self.recent.lock();
        if let Some((newest, _)) = recent.commits.back() {
            recent.floor = *newest;
        }
        recent.commits.clear();
    }

    /// The store was put back to an older state, now at `revision`.
    pub(crate) fn restored(&self, revision: u64) {
        {
            let mut recent = self.recent.lock();
            recent.commits.clear();
            recent.floor = revision;
            recent.restored += 1;
        }
        self.newest.send_replace(revision);
    }

    fn since(&self, after: u64, restored: u64) -> Since {
        let recent = self.recent.lock();
        if recent.restored != restored || after < recent.floor {
            return Since::TooOld {
                restored: recent.restored,
            };
        }
        let mut changes = Vec::new();
        let mut through = after;
        for (revision, commit) in &recent.commits {
            if *revision > after {
                changes.extend(commit.iter().cloned());
                through = *revision;
            }
        }
        Since::Changes(changes, through)
    }

    /// A watch; `list` reads everything below the prefix.
    pub(crate) fn watch<F>(
        self: &Arc<Self>,
        prefix: &str,
        after: u64,
        list: impl Fn() -> F + Send + Sync + 'static,
    ) -> Watch
    where
        F: Future<Output = Result<Listing, MetaError>> + Send,
    {
        let (events, watch) = Watch::channel();
        let feed = Arc::downgrade(self);
        let prefix = prefix.to_owned();
        let mut newest = self.newest.subscribe();
        let mut restored = self.recent.lock().restored;
        let mut after = after;
        let mut begun = after > 0;
        tokio::spawn(async move {
            loop {
                newest.mark_unchanged();
                let Some(since) = feed.upgrade().map(|f| f.since(after, restored)) else {
                    return;
                };
                let event = match since {
                    Since::Changes(mut changes, through) if begun => {
                        changes.retain(|c| c.key.starts_with(&prefix));
                        after = through;
                        (!changes.is_empty()).then_some(WatchEvent::Changes(changes))
                    }
                    other => {
                        let went_back = match other {
                            Since::TooOld { restored: now } => {
                                let went_back = now != restored;
                                restored = now;
                                went_back
                            }
                            Since::Changes(..) => false,
                        };
                        match list().await {
                            Ok(listing) => {
                                after = listing.revision;
                                begun = true;
                                Some(WatchEvent::Reset {
                                    listing,
                                    restored: went_back,
                                })
                            }
                            Err(e) => Some(WatchEvent::Interrupted(e.to_string())),
                        }
                    }
                };
                if let Some(event) = event
                    && events.send(event).await.is_err()
                {
                    return;
                }
                tokio::select! {
                    changed = newest.changed() => if changed.is_err() { return },
                    () = events.closed() => return,
                }
            }
        });
        watch
    }

    /// Keeps a registration: ends when the guard goes, or when the key is not the one put by the
    /// commit `revision` any more. True: the key is still ours and must be removed.
    pub(crate) async fn keep<F>(
        self: Arc<Self>,
        mut kept: Kept,
        revision: u64,
        current: impl Fn() -> F,
    ) -> bool
    where
        F: Future<Output = Option<u64>>,
    {
        let mut newest = self.newest.subscribe();
        loop {
            newest.mark_unchanged();
            match current().await {
                Some(now) if now == revision => {}
                Some(_) => {
                    kept.tell(Lost::Overtaken);
                    return false;
                }
                None => {
                    kept.tell(Lost::Expired("the key is gone".into()));
                    return false;
                }
            }
            tokio::select! {
                () = kept.ended() => return true,
                changed = newest.changed() => if changed.is_err() { return false },
            }
        }
    }
}
