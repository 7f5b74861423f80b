//! Nodes come and go; their beats, probes, and who counts as down.

use std::time::Duration;

use futures::StreamExt;
use shoal_meta::NodeEntry;
use shoal_types::NodeId;
use tokio::task::AbortHandle;
use ulid::Ulid;

use super::{Conductor, Ended, Event};
use crate::beat::{Beat, Report};
use crate::detector::{Probe, Seen};
use crate::nodes::NotHeard;
use crate::view::Health;

/// For so long an assignment that was made here counts before the watch tells of it.
pub(super) const OVERLAY_MAX: Duration = Duration::from_secs(5);
/// A stream that is silent for so long after its node has become suspect is given up.
const SILENT_MORE: Duration = Duration::from_millis(1_500);
/// Pause before a node that could not be asked is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// A node whose beats are listened to.
pub(super) struct Watched {
    /// Which listening: what an earlier one still says is ignored.
    stream: Ulid,
    entry: NodeEntry,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Conductor {
    pub(super) fn topology_changed(&mut self) {
        let snapshot = self.backends.topology.snapshot();
        let now_ms = self.now_ms();
        for entry in snapshot.nodes.values().filter(|n| n.role == "node") {
            let known = self.entries.insert(entry.id, entry.clone());
            self.detector.see(now_ms, entry.id, Seen::Registered);
            let same = self
                .watched
                .get(&entry.id)
                .is_some_and(|w| w.entry == *entry);
            if !same {
                if known.is_none_or(|k| k.process != entry.process) {
                    tracing::info!(node = %entry.id, grpc = entry.grpc, "a node has joined");
                    let rest_ms = self.kept.settings.balance.rest_ms;
                    let joined_ms = self.joined.entry(entry.id).or_insert(entry.started_ms);
                    if joined_ms.saturating_add(rest_ms) <= entry.started_ms {
                        *joined_ms = entry.started_ms;
                    }
                }
                self.listen(entry.clone());
            }
        }
        let gone: Vec<NodeId> = self
            .entries
            .keys()
            .filter(|id| !snapshot.nodes.contains_key(id))
            .copied()
            .collect();
        for node in gone {
            self.detector.see(now_ms, node, Seen::Unregistered);
        }
        self.dirty.extend(self.running.keys());
        self.notice_down();
    }

    /// Listens to a node's beats, again and again.
    fn listen(&mut self, entry: NodeEntry) {
        let stream = Ulid::new();
        let (nodes, tell) = (self.backends.nodes.clone(), self.tell.clone());
        let (node, of) = (entry.id, entry.clone());
        let silent = Duration::from_millis(self.limits.detector.suspect_after_ms) + SILENT_MORE;
        let task = self.tasks.spawn(async move {
            loop {
                let why = match nodes.beats(&of).await {
                    Err(why) => why,
                    Ok(mut beats) => {
                        let mut first = true;
                        let why = loop {
                            let beat = tokio::time::timeout(silent, beats.next()).await;
                            let Ok(beat) = beat else {
                                // A new stream may get through where TCP waits to repeat what was lost.
                                break "it sends no beats".to_owned();
                            };
                            match beat {
                                Some(Ok(beat)) => {
                                    let event = Event::Beat {
                                        node,
                                        stream,
                                        first,
                                        beat,
                                    };
                                    first = false;
                                    if tell.send(event).await.is_err() {
                                        return;
                                    }
                                }
                                Some(Err(why)) => break why,
                                None => break "its stream of beats ended".to_owned(),
                            }
                        };
                        NotHeard::Silent(why)
                    }
                };
                let event = Event::Broken { node, stream, why };
                if tell.send(event).await.is_err() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        self.watched.insert(
            node,
            Watched {
                stream,
                entry,
                task,
            },
        );
    }

    pub(super) fn beat(&mut self, node: NodeId, stream: Ulid, first: bool, beat: Beat) {
        let now_ms = self.now_ms();
        let current = self.watched.get(&node);
        if current.is_none_or(|w| w.stream != stream || w.entry.process != beat.process) {
            return;
        }
        self.detector.see(now_ms, node, Seen::Beat);
        let shards = beat.replicas.iter().map(|r| r.shard);
        let shards = shards.chain(beat.gone.iter().copied());
        let concerned = shards.filter(|s| self.running.contains_key(s));
        self.dirty.extend(concerned);
        if first {
            // Loads go on from what they were if it is the same process.
            let known = self.reports.remove(&node);
            let mut report = known
                .filter(|r| r.process == beat.process)
                .unwrap_or_else(|| Report::new(beat.process));
            let told: Vec<_> = beat.replicas.iter().map(|r| r.shard).collect();
            report.replicas.retain(|shard, _| told.contains(shard));
            self.reports.insert(node, report);
        }
        if let Some(report) = self.reports.get_mut(&node) {
            // One that is cut off gives its leads away at once.
            let cut_off = report.reaches_log && !beat.reaches_log;
            if cut_off || report.unreached != beat.unreached {
                self.next_round = tokio::time::Instant::now();
            }
            report.take(now_ms, beat);
        }
        if self.down.contains(&node) {
            self.notice_down();
        }
    }

    pub(super) fn broken(&mut self, node: NodeId, stream: Ulid, why: NotHeard) {
        if self.watched.get(&node).is_none_or(|w| w.stream != stream) {
            return;
        }
        let now_ms = self.now_ms();
        let was_up = matches!(self.detector.health(node), Some((Health::Up, _)));
        if was_up {
            tracing::warn!(%node, %why, "a node is not heard");
        }
        if let NotHeard::NotLetIn(why) = why {
            self.over = Some(Ended::NotLetIn(format!("node {node} refuses: {why}")));
            return;
        }
        self.detector.see(now_ms, node, Seen::Broken);
        self.look();
    }

    pub(super) fn probed(&mut self, node: NodeId, probe: Probe) {
        let now_ms = self.now_ms();
        self.detector.see(now_ms, node, Seen::Probed(probe));
        self.look();
    }

    /// Lets time pass for the detector, and sends the probes that it wants.
    pub(super) fn look(&mut self) {
        let within = Duration::from_millis(self.limits.detector.probe_timeout_ms);
        for node in self.detector.look(self.now_ms()) {
            let Some(entry) = self.entries.get(&node).cloned() else {
                self.detector.forget(node);
                continue;
            };
            let nodes = self.backends.nodes.clone();
            self.spawn(async move { Event::Probed(node, nodes.probe(&entry, within).await) });
        }
        self.notice_down();
    }

    /// Nodes that have gone down since the last look leave their shards without a leader.
    fn notice_down(&mut self) {
        let nodes: Vec<NodeId> = self.entries.keys().copied().collect();
        for node in nodes {
            if !self.detector.is_down(node) {
                if self.down.remove(&node) {
                    tracing::info!(%node, "a node is back");
                }
                continue;
            }
            if self.down.insert(node) {
                tracing::warn!(%node, "a node is down");
                let snapshot = self.backends.topology.snapshot();
                let led = snapshot.assignments.keys().copied();
                let led: Vec<_> = led
                    .filter(|s| self.assignment(*s).is_some_and(|a| a.leader == Some(node)))
                    .collect();
                self.dirty.extend(self.running.keys());
                self.orphans.extend(led);
            }
            let registered = self.backends.topology.snapshot().nodes.contains_key(&node);
            if !registered {
                self.watched.remove(&node);
                self.reports.remove(&node);
            }
        }
    }

    /// Whether a node is not there, as far as anybody can tell.
    pub(super) fn is_down(&self, node: NodeId) -> bool {
        if self.entries.contains_key(&node) {
            return self.detector.is_down(node);
        }
        // Never heard of: it has gone long ago, or its registration has not come yet.
        self.began.elapsed() >= self.limits.grace
    }
}
