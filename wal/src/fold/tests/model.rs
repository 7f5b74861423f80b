//! Every small schedule of two leaders over one log, with the real fold (after `model-logs` of the
//! design, which models the fold too). A record may get into the log at any time after it was
//! sent, twice, or never; a leader may stop for ever between any two steps.

use stateright::{Checker, Model, Property};

use super::*;

/// Number of client writes; each has a write id.
const WRITES: usize = 2;

/// A rule dropped, to see that the model would notice.
#[derive(Clone, Copy, PartialEq)]
enum Mutant {
    None,
    /// Acknowledged when delivered, not when read back.
    AckWithoutReadBack,
    /// Records carry no write ids.
    NoWriteIds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Sent {
    leader: u8,
    claim: u8,
    seq: u8,
    /// `None`: a claim.
    write: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Session {
    /// Records of the log that it has read.
    read: u8,
    /// Its claim number; it raises it after a delivery failure.
    claim: u8,
    claiming: bool,
    next_seq: u8,
    dead: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    log: Vec<Sent>,
    /// Sent, not (finally) appended; sorted, so that schedules that differ in nothing are one.
    net: Vec<Sent>,
    sessions: [Session; 2],
    acked: [bool; WRITES],
    sends: u8,
    twice: u8,
    /// An acknowledgement given after a higher claim was in the log before the record.
    zombie_ack: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Act {
    /// The second leader is promoted.
    Promote,
    Send {
        leader: usize,
        write: u8,
    },
    Reclaim(usize),
    Append {
        sent: usize,
        again: bool,
    },
    Read(usize),
}

struct Schedules {
    mutant: Mutant,
}

impl Schedules {
    fn record(&self, sent: &Sent) -> Record {
        let by = (
            epoch(u64::from(sent.leader) + 1, u64::from(sent.claim)),
            writer(u128::from(sent.leader) + 1),
        );
        match sent.write {
            None => Record::claim(by.0, by.1, manifest(1), 0),
            Some(write) => {
                let id = write_id(0, u128::from(write));
                let write_id = WriteIdPart { id, part: 0 };
                let with_id = self.mutant != Mutant::NoWriteIds;
                let header = WriteHeader {
                    write_id: with_id.then_some(write_id),
                    ..WriteHeader::default()
                };
                Record::sequenced(by, Seq(u64::from(sent.seq)), 0, rows(header))
            }
        }
    }

    fn verdicts(&self, log: &[Sent]) -> (FoldState, Vec<Verdict>) {
        let mut state = FoldState::default();
        let verdicts = log
            .iter()
            .enumerate()
            .map(|(i, sent)| fold(&mut state, Offset(i as u64), &self.record(sent)))
            .collect();
        (state, verdicts)
    }

    fn applied(&self, world: &World, write: usize) -> usize {
        let (_, verdicts) = self.verdicts(&world.log);
        let of_write = world.log.iter().zip(&verdicts);
        of_write
            .filter(|(s, v)| s.write == Some(write as u8) && **v == Verdict::Apply)
            .count()
    }

    /// Whether every acknowledged write but what stood in it would be there if record `lost` were
    /// damaged now and given up.
    fn survives_without(&self, world: &World, lost: usize) -> bool {
        let (_, whole) = self.verdicts(&world.log);
        let mut state = FoldState::default();
        let mut there = [false; WRITES];
        for (i, sent) in world.log.iter().enumerate() {
            if i == lost {
                state.skip(Offset(i as u64 + 1), 100);
                continue;
            }
            let verdict = fold(&mut state, Offset(i as u64), &self.record(sent));
            if let (Verdict::Apply, Some(write)) = (verdict, sent.write)
                && std::mem::replace(&mut there[write as usize], true)
            {
                return false;
            }
        }
        let stood_in =
            |write| world.log[lost].write == Some(write as u8) && whole[lost] == Verdict::Apply;
        (0..WRITES).all(|write| !world.acked[write] || there[write] || stood_in(write))
    }

    fn send(world: &mut World, sent: Sent) {
        world.net.push(sent);
        world.net.sort_unstable();
    }

    fn claim(world: &mut World, leader: usize) {
        let session = &mut world.sessions[leader];
        session.claiming = true;
        session.next_seq = 0;
        let sent = Sent {
            leader: leader as u8,
            claim: session.claim,
            seq: 0,
            write: None,
        };
        Self::send(world, sent);
    }

    fn ack(world: &mut World, at: usize, sent: &Sent) {
        if let Some(write) = sent.write {
            world.acked[write as usize] = true;
            let mine = (sent.leader, sent.claim);
            let higher = |s: &Sent| s.write.is_none() && (s.leader, s.claim) > mine;
            world.zombie_ack |= world.log[..at].iter().any(higher);
        }
    }

    fn read(&self, world: &mut World, leader: usize) {
        let at = world.sessions[leader].read as usize;
        let sent = world.log[at];
        let (state, verdicts) = self.verdicts(&world.log[..=at]);
        let session = &mut world.sessions[leader];
        session.read += 1;
        let mine = (
            epoch(leader as u64 + 1, u64::from(session.claim)),
            writer(leader as u128 + 1),
        );
        if sent.write.is_none() {
            session.claiming &= state.claim() != mine;
            session.dead |= state.claim().0 > mine.0;
        }
        let own = sent.leader as usize == leader;
        let done = matches!(verdicts[at], Verdict::Apply | Verdict::DuplicateId);
        if own && done && self.mutant != Mutant::AckWithoutReadBack {
            Self::ack(world, at, &sent);
        }
    }
}

impl Model for Schedules {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let session = |dead| Session {
            read: 0,
            claim: 0,
            claiming: false,
            next_seq: 0,
            dead,
        };
        let mut world = World {
            log: vec![],
            net: vec![],
            sessions: [session(false), session(true)],
            acked: [false; WRITES],
            sends: 0,
            twice: 0,
            zombie_ack: false,
        };
        Self::claim(&mut world, 0);
        vec![world]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        if world.sessions[1].dead && world.sessions[1].read == 0 {
            acts.push(Act::Promote);
        }
        for sent in 0..world.net.len() {
            acts.push(Act::Append { sent, again: false });
            if world.twice < 1 {
                acts.push(Act::Append { sent, again: true });
            }
        }
        for (leader, session) in world.sessions.iter().enumerate() {
            if session.dead {
                continue;
            }
            if (session.read as usize) < world.log.len() {
                acts.push(Act::Read(leader));
            }
            if session.claim < 1 && (session.claiming || session.next_seq > 0) {
                acts.push(Act::Reclaim(leader));
            }
            for write in 0..WRITES as u8 {
                if !session.claiming && !world.acked[write as usize] && world.sends < 3 {
                    acts.push(Act::Send { leader, write });
                }
            }
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut world = world.clone();
        match act {
            Act::Promote => {
                world.sessions[1].dead = false;
                Self::claim(&mut world, 1);
            }
            Act::Reclaim(leader) => {
                world.sessions[leader].claim += 1;
                Self::claim(&mut world, leader);
            }
            Act::Send { leader, write } => {
                let session = &mut world.sessions[leader];
                let sent = Sent {
                    leader: leader as u8,
                    claim: session.claim,
                    seq: session.next_seq,
                    write: Some(write),
                };
                session.next_seq += 1;
                world.sends += 1;
                Self::send(&mut world, sent);
            }
            Act::Append { sent, again } => {
                let record = world.net[sent];
                if again {
                    world.twice += 1;
                } else {
                    world.net.remove(sent);
                }
                world.log.push(record);
                if self.mutant == Mutant::AckWithoutReadBack {
                    let at = world.log.len() - 1;
                    Self::ack(&mut world, at, &record);
                }
            }
            Act::Read(leader) => self.read(&mut world, leader),
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("an acknowledged write is applied", |m, w: &World| {
                (0..WRITES).all(|i| !w.acked[i] || m.applied(w, i) >= 1)
            }),
            Property::always("no write is applied twice", |m, w: &World| {
                (0..WRITES).all(|i| m.applied(w, i) <= 1)
            }),
            Property::always(
                "nothing is acknowledged behind a higher claim",
                |_, w: &World| !w.zombie_ack,
            ),
            Property::always("any one record may be given up", |m, w: &World| {
                (0..w.log.len()).all(|lost| m.survives_without(w, lost))
            }),
            Property::sometimes("both writes are acknowledged", |_, w: &World| {
                w.acked == [true; WRITES]
            }),
            Property::sometimes("the second leader serves", |_, w: &World| {
                w.sessions[1].read > 0 && w.sessions[1].next_seq > 0
            }),
        ]
    }
}

#[test]
fn in_every_small_schedule_an_acknowledged_write_is_applied_exactly_once() {
    let checked = Schedules {
        mutant: Mutant::None,
    }
    .checker()
    .threads(2)
    .target_max_depth(13)
    .spawn_bfs()
    .join();
    println!("{} states", checked.unique_state_count());
    assert!(
        checked.unique_state_count() > 10_000,
        "the bounds leave something to check"
    );
    checked.assert_properties();
}

#[test]
fn the_model_notices_a_dropped_rule() {
    let discoveries = |mutant| {
        let checked = Schedules { mutant }
            .checker()
            .threads(2)
            .target_max_depth(12)
            .spawn_bfs()
            .join();
        checked.discoveries().into_keys().collect::<Vec<_>>()
    };
    let lost = discoveries(Mutant::AckWithoutReadBack);
    assert!(
        lost.contains(&"an acknowledged write is applied"),
        "{lost:?}"
    );
    assert!(
        lost.contains(&"nothing is acknowledged behind a higher claim"),
        "{lost:?}"
    );
    let doubled = discoveries(Mutant::NoWriteIds);
    assert!(
        doubled.contains(&"no write is applied twice"),
        "{doubled:?}"
    );
}
