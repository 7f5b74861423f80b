//! Which nodes are up, judged by what is heard of them.
//!
//! ```text
//!            beat                    probe refused, or unanswered `probes` times
//!   Up ◄──────────── Suspect ─────────────────────────────► Down
//!    │                  ▲                                     │
//!    └──────────────────┘                                     │ beat
//!    stream broken, or no beat for `suspect_after_ms`         ▼
//!                                                             Up
//! ```
//!
//! Safety does not rest on it: a healthy leader that is taken for dead is deposed by the claim of
//! the next one and loses nothing. So it is quick rather than sure.
//!
//! What it must not do is to take *itself* being cut off for the death of everybody: when more
//! than half of the nodes are silent at once, only those are down that meta does not know any more
//! either, or whose machine says that nobody listens there.

use std::collections::{BTreeMap, BTreeSet};

use shoal_types::{NodeId, TimestampMs};

use crate::view::Health;

/// Times of the detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DetectorLimits {
    /// Without a beat for this long a node is suspect.
    pub suspect_after_ms: u64,
    /// How long a probe may take.
    pub probe_timeout_ms: u64,
    /// Probes that must go unanswered.
    pub probes: u32,
    /// A node that answers probes and sends no beats is given up after this.
    pub suspect_max_ms: u64,
}

impl Default for DetectorLimits {
    fn default() -> Self {
        Self {
            suspect_after_ms: 600,
            probe_timeout_ms: 300,
            probes: 2,
            suspect_max_ms: 5_000,
        }
    }
}

/// What was seen of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Meta knows it.
    Registered,
    /// Meta does not know it any more: it has ended, or was not heard of for its time to live.
    Unregistered,
    /// It sent a beat.
    Beat,
    /// Its stream of beats broke.
    Broken,
    /// How a probe ended.
    Probed(Probe),
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It answered.
    Answered,
    /// Its machine says that nobody listens there.
    Refused,
    /// It did not answer in time.
    Silent,
}

/// What is known of all nodes.
#[derive(Clone, Debug)]
pub struct Detector {
    limits: DetectorLimits,
    nodes: BTreeMap<NodeId, Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    health: Health,
    since_ms: TimestampMs,
    heard_ms: TimestampMs,
    registered: bool,
    silent_probes: u32,
    /// Its machine said that nobody listens there.
    refused: bool,
    /// A probe of it is under way.
    probed: bool,
}

impl Detector {
    /// Nothing is known of any node.
    #[must_use]
    pub fn new(limits: DetectorLimits) -> Self {
        Self {
            limits,
            nodes: BTreeMap::new(),
        }
    }

    /// A node's health and since when; `None`: never heard of.
    #[must_use]
    pub fn health(&self, node: NodeId) -> Option<(Health, TimestampMs)> {
        self.nodes.get(&node).map(|k| (k.health, k.since_ms))
    }

    /// When a node was last heard.
    #[must_use]
    pub fn heard_ms(&self, node: NodeId) -> Option<TimestampMs> {
        self.nodes.get(&node).map(|k| k.heard_ms)
    }

    /// Notes what was seen.
    pub fn see(&mut self, now_ms: TimestampMs, node: NodeId, seen: Seen) {
        let known = self.nodes.entry(node).or_insert(Known {
            // Until it was heard or given up it is neither sent work nor taken its shards.
            health: Health::Suspect,
            since_ms: now_ms,
            heard_ms: now_ms,
            registered: false,
            silent_probes: 0,
            refused: false,
            probed: false,
        });
        match seen {
            Seen::Registered => known.registered = true,
            Seen::Unregistered => {
                known.registered = false;
                // One that also sends beats has only lost its way to meta.
                if known.health == Health::Suspect {
                    known.turn(now_ms, Health::Down);
                }
            }
            Seen::Beat => {
                known.heard_ms = now_ms;
                known.silent_probes = 0;
                known.refused = false;
                known.turn(now_ms, Health::Up);
            }
            Seen::Broken => {
                if known.health == Health::Up {
                    let next = if known.registered {
                        Health::Suspect
                    } else {
                        Health::Down
                    };
                    known.turn(now_ms, next);
                }
            }
            Seen::Probed(probe) => {
                known.probed = false;
                if known.health != Health::Suspect {
                    return;
                }
                match probe {
                    Probe::Answered => known.silent_probes = 0,
                    Probe::Refused => {
                        known.refused = true;
                        known.turn(now_ms, Health::Down);
                    }
                    Probe::Silent => {
                        known.silent_probes += 1;
                        if known.silent_probes >= self.limits.probes {
                            known.turn(now_ms, Health::Down);
                        }
                    }
                }
            }
        }
    }

    /// Lets time pass; the nodes that are to be probed now.
    pub fn look(&mut self, now_ms: TimestampMs) -> Vec<NodeId> {
        let limits = self.limits;
        let mut probe = Vec::new();
        for (node, known) in &mut self.nodes {
            let quiet_ms = now_ms.saturating_sub(known.heard_ms);
            if known.health == Health::Up && quiet_ms >= limits.suspect_after_ms {
                known.turn(now_ms, Health::Suspect);
            }
            if known.health != Health::Suspect {
                continue;
            }
            if now_ms.saturating_sub(known.since_ms) >= limits.suspect_max_ms {
                known.turn(now_ms, Health::Down);
            } else if !known.probed {
                known.probed = true;
                probe.push(*node);
            }
        }
        probe
    }

    /// Whether a node counts as down: see the module's head for when most are silent.
    #[must_use]
    pub fn is_down(&self, node: NodeId) -> bool {
        let Some(known) = self.nodes.get(&node) else {
            return false;
        };
        let certain = known.refused || !known.registered;
        known.health == Health::Down && (certain || !self.most_are_silent())
    }

    /// Whether more than half of the nodes are silent, but those that have certainly ended: then it
    /// is probably us.
    #[must_use]
    pub fn most_are_silent(&self) -> bool {
        let ended = |k: &Known| k.refused || !k.registered && k.health == Health::Down;
        let silent = self.nodes.values().filter(|k| k.health != Health::Up);
        let silent = silent.filter(|k| !ended(k)).count();
        let all = self.nodes.len();
        all > 2 && silent * 2 > all
    }

    /// Forgets a node that was taken out of the cluster.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }
}

/// Nodes that are cut off from at least half of the others, by what each says of whom it does not
/// reach: the one with most such pairs first, and then those pairs count no more, since to a node
/// that is cut off the others seem to be. One of which only it says so itself has trouble of its own.
#[must_use]
pub fn unreached(told: &BTreeMap<NodeId, BTreeSet<NodeId>>) -> BTreeSet<NodeId> {
    let mut pairs: BTreeSet<(NodeId, NodeId)> = BTreeSet::new();
    for (teller, named) in told {
        pairs.extend(
            named
                .iter()
                .map(|node| (*teller.min(node), *teller.max(node))),
        );
    }
    let named_by_others = |node: &NodeId| told.values().any(|named| named.contains(node));
    let mut found = BTreeSet::new();
    let mut others = told.len().saturating_sub(1);
    loop {
        let mut degrees: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (a, b) in &pairs {
            *degrees.entry(*a).or_default() += 1;
            *degrees.entry(*b).or_default() += 1;
        }
        let most = degrees.into_iter().max_by_key(|(_, degree)| *degree);
        let Some((node, _)) = most.filter(|(_, degree)| degree * 2 >= others) else {
            return found;
        };
        if named_by_others(&node) {
            found.insert(node);
        }
        pairs.retain(|(a, b)| *a != node && *b != node);
        others = others.saturating_sub(1);
    }
}

impl Known {
    fn turn(&mut self, now_ms: TimestampMs, health: Health) {
        if self.health != health {
            self.health = health;
            self.since_ms = now_ms;
            self.silent_probes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::NodeId;
    use ulid::Ulid;

    fn node(n: u64) -> NodeId {
        NodeId(Ulid::from_parts(n, 0))
    }

    /// Nodes that are registered and up at 0.
    fn detector(nodes: u64) -> Detector {
        let mut detector = Detector::new(DetectorLimits::default());
        for n in 0..nodes {
            detector.see(0, node(n), Seen::Registered);
            detector.see(0, node(n), Seen::Beat);
        }
        detector
    }

    fn keep_up(detector: &mut Detector, now_ms: u64, nodes: std::ops::Range<u64>) {
        for n in nodes {
            detector.see(now_ms, node(n), Seen::Beat);
        }
    }

    #[test]
    fn a_killed_process_is_down_as_soon_as_its_machine_refuses() {
        let mut detector = detector(3);
        detector.see(10, node(0), Seen::Broken);
        assert!(!detector.is_down(node(0)));
        assert_eq!(detector.look(10), [node(0)]);
        assert!(detector.look(11).is_empty(), "one probe at a time");
        detector.see(12, node(0), Seen::Probed(Probe::Refused));
        assert!(detector.is_down(node(0)));
        assert_eq!(detector.health(node(0)), Some((Health::Down, 12)));
    }

    #[test]
    fn a_frozen_process_is_down_after_silent_probes_and_up_with_its_next_beat() {
        let mut detector = detector(3);
        keep_up(&mut detector, 500, 1..3);
        assert!(detector.look(599).is_empty());
        keep_up(&mut detector, 600, 1..3);
        assert_eq!(detector.look(600), [node(0)]);
        detector.see(900, node(0), Seen::Probed(Probe::Silent));
        assert!(!detector.is_down(node(0)));
        assert_eq!(detector.look(900), [node(0)]);
        detector.see(1_200, node(0), Seen::Probed(Probe::Silent));
        assert!(detector.is_down(node(0)));
        detector.see(9_000, node(0), Seen::Beat);
        assert_eq!(detector.health(node(0)), Some((Health::Up, 9_000)));
    }

    #[test]
    fn one_that_answers_probes_is_not_given_up_until_it_was_silent_for_long() {
        let mut detector = detector(3);
        detector.see(10, node(0), Seen::Broken);
        for now_ms in (10..5_000).step_by(100) {
            keep_up(&mut detector, now_ms, 1..3);
            detector.look(now_ms);
            detector.see(now_ms, node(0), Seen::Probed(Probe::Answered));
            assert!(!detector.is_down(node(0)), "at {now_ms}");
        }
        keep_up(&mut detector, 5_010, 1..3);
        detector.look(5_010);
        assert!(detector.is_down(node(0)));
    }

    #[test]
    fn one_that_ended_orderly_is_down_at_once_and_one_that_lost_meta_alone_is_not() {
        let mut detector = detector(3);
        detector.see(10, node(0), Seen::Unregistered);
        assert!(!detector.is_down(node(0)), "it sends beats");
        detector.see(20, node(0), Seen::Broken);
        assert!(detector.is_down(node(0)));
        detector.see(30, node(1), Seen::Broken);
        detector.see(40, node(1), Seen::Unregistered);
        assert!(detector.is_down(node(1)));
    }

    #[test]
    fn when_most_are_silent_it_is_probably_us() {
        let mut detector = detector(5);
        for n in 0..3 {
            detector.see(10, node(n), Seen::Broken);
        }
        detector.look(10);
        for n in 0..3 {
            for now_ms in [300, 600] {
                keep_up(&mut detector, now_ms, 3..5);
                detector.see(now_ms, node(n), Seen::Probed(Probe::Silent));
                detector.look(now_ms);
            }
            assert_eq!(detector.health(node(n)).map(|(h, _)| h), Some(Health::Down));
            assert!(!detector.is_down(node(n)));
        }
        detector.see(700, node(0), Seen::Unregistered);
        assert!(
            detector.is_down(node(0)),
            "meta does not know it any more either"
        );
        assert!(detector.is_down(node(1)), "two of five are no majority");
    }

    #[test]
    fn one_that_has_ended_does_not_make_the_silence_of_the_others_certain() {
        let mut detector = detector(3);
        for n in 0..3 {
            detector.see(10, node(n), Seen::Broken);
        }
        detector.see(11, node(0), Seen::Unregistered);
        detector.look(11);
        for n in 1..3 {
            for now_ms in [300, 600] {
                detector.see(now_ms, node(n), Seen::Probed(Probe::Silent));
                detector.look(now_ms);
            }
        }
        assert!(detector.is_down(node(0)));
        assert!(!detector.is_down(node(1)) && !detector.is_down(node(2)));
    }

    #[test]
    fn processes_that_were_killed_are_down_however_many() {
        let mut detector = detector(3);
        for n in 0..2 {
            detector.see(10, node(n), Seen::Broken);
            detector.look(10);
            detector.see(11, node(n), Seen::Probed(Probe::Refused));
            assert!(detector.is_down(node(n)));
        }
    }

    #[test]
    fn who_is_cut_off_from_the_others_does_not_have_them_taken_for_cut_off() {
        let told = |said: &[(u64, &[u64])]| {
            let said = said.iter().map(|(n, named)| {
                let named = named.iter().map(|n| node(*n));
                (node(*n), named.collect())
            });
            unreached(&said.collect()).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(told(&[(1, &[]), (2, &[]), (3, &[])]), []);
        assert_eq!(told(&[(1, &[2, 3]), (2, &[1]), (3, &[1])]), [node(1)]);
        // Not all have noticed.
        assert_eq!(told(&[(1, &[2, 3]), (2, &[]), (3, &[1])]), [node(1)]);
        // Two of three do not reach each other: one of them.
        assert_eq!(told(&[(1, &[2]), (2, &[1]), (3, &[])]).len(), 1);
        // One of many has trouble of its own.
        let five: [(u64, &[u64]); 5] = [(1, &[2, 3, 4, 5]), (2, &[]), (3, &[]), (4, &[]), (5, &[])];
        assert_eq!(told(&five), []);
    }
}
