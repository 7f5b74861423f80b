//! What may happen next, and what is asked of every state.

use stateright::{Model, Property};

use crate::Mutant;
use crate::logs::{K1, Keys, Kind, Node, ROOTS, Rows, W};
use crate::world::{
    A, B, CARVE, DECIDED_TWICE, Mode, ONCE, ONE_OWNER, OWNED, Pending, SEAL, STRONG, Schedules,
    Store, WEDGE, World,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    Split,
    Seal(u8),
    Merge(u8),
    Abort(u8),
    Unseal(u8),
    DeleteChild,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Act {
    Append(usize),
    AppendTwice(usize),
    Read(usize),
    Promote(usize),
    OpenSameTerm(usize),
    Reclaim(usize),
    Send { session: usize, w: u8, keys: Keys },
    Flush { session: usize, prepare: bool },
    Order(usize, Order),
    StrongRead,
}

impl Order {
    fn slot(self) -> usize {
        match self {
            Self::Split => 0,
            Self::Seal(p) => p as usize,
            Self::Merge(p) => 2 + p as usize,
            Self::Abort(p) => 4 + p as usize,
            Self::Unseal(p) => 6 + p as usize,
            Self::DeleteChild => 7,
        }
    }
}

impl Schedules {
    fn orders(&self, w: &World, i: usize, view: &Node) -> Vec<Order> {
        let abort_in_log = !self.mutant(Mutant::AbortNotInCommittingLog);
        let mut orders = vec![];
        match (self.is_split(), w.sessions[i].shard as usize) {
            (true, A) if view.open(0) || self.mutant(Mutant::AbortAfterCommit) => {
                if w.plan.is_some() {
                    orders.push(Order::Split);
                }
                orders.push(if abort_in_log {
                    Order::Abort(0)
                } else {
                    Order::DeleteChild
                });
            }
            (false, A) => {
                for p in (0..self.bounds.procedures).filter(|p| view.open(*p)) {
                    if self.sealed(w, p).is_some() {
                        orders.push(Order::Merge(p));
                    }
                    if abort_in_log {
                        orders.push(Order::Abort(p));
                    }
                }
            }
            (false, _) => {
                let a = self.end(w, A);
                for p in 0..self.bounds.procedures {
                    if !view.sealed() && (p == 0 || a.aborted(0)) {
                        orders.push(Order::Seal(p));
                    }
                    if !abort_in_log && view.sealed_by() == Some(p) || a.aborted(p) {
                        orders.push(Order::Unseal(p));
                    }
                }
            }
            _ => {}
        }
        orders.retain(|o| w.ordered[o.slot()] < self.bounds.orders);
        orders
    }

    fn session_acts(&self, w: &World, i: usize, acts: &mut Vec<Act>) {
        let me = &w.sessions[i];
        if me.mode == Mode::Dead {
            return;
        }
        if self.can_read(w, i) {
            acts.push(Act::Read(i));
        }
        let view = self.view(w, i);
        // A delivery failure, or a poisoned epoch.
        let failing = me.mode == Mode::Claiming || me.next_seq > view.next_seq();
        if me.tenure.1 < self.bounds.claims && failing {
            acts.push(Act::Reclaim(i));
        }
        let full = me.next_seq >= view.next_seq() + 2;
        if me.mode == Mode::Claiming || view.fold.poisoned() || full {
            return;
        }
        for id in 0..W {
            if w.sent[id] >= self.bounds.sends || view.sealed() {
                continue;
            }
            for keys in self.sends(w, &view, id) {
                acts.push(Act::Send {
                    session: i,
                    w: id as u8,
                    keys,
                });
            }
        }
        let shard = me.shard as usize;
        let newest = w.store[shard].term == me.tenure.0;
        if self.is_split() && shard == A && newest && w.flushed < self.bounds.flushes {
            for prepare in [true, false] {
                acts.push(Act::Flush {
                    session: i,
                    prepare,
                });
            }
        }
        acts.extend(
            self.orders(w, i, &view)
                .into_iter()
                .map(|o| Act::Order(i, o)),
        );
    }

    fn order(&self, w: &mut World, i: usize, order: Order) {
        w.ordered[order.slot()] += 1;
        let kind = match order {
            Order::Split => w.plan.map(|(version, lent)| Kind::Split {
                procedure: 0,
                version,
                lent,
            }),
            Order::Seal(procedure) => Some(Kind::Seal { procedure }),
            Order::Unseal(procedure) => Some(Kind::Unseal { procedure }),
            Order::Abort(procedure) => Some(Kind::Abort { procedure }),
            Order::Merge(procedure) => {
                let sealed = self.sealed(w, procedure);
                sealed.map(|sealed| Kind::Merge { procedure, sealed })
            }
            Order::DeleteChild => {
                w.child_deleted = true;
                None
            }
        };
        if let Some(kind) = kind {
            self.emit(w, i, kind);
        }
    }

    fn flush(&self, w: &mut World, i: usize, prepare: bool) {
        let files = self.view(w, i).rows;
        let store = &mut w.store[A];
        store.version += 1;
        store.files = files;
        let version = store.version;
        w.flushed += 1;
        if prepare {
            w.plan = Some((version, files));
        }
        self.emit(w, i, Kind::Manifest { version, files });
    }

    fn deliver(&self, w: &mut World, at: usize, again: bool) {
        let (shard, rec) = w.net[at];
        self.append(w, shard as usize, rec);
        if again {
            w.twice += 1;
        } else {
            w.net.remove(at);
        }
        let from = rec.writer as usize;
        if self.mutant(Mutant::AckWithoutReadBack) && w.sessions[from].mode == Mode::Serving {
            let me = &mut w.sessions[from];
            let sent = |p: &Pending| (p.claim, p.seq) == (rec.tenure.1, rec.seq);
            if let Some(at) = me.pending.iter().position(sent) {
                let p = me.pending.remove(at);
                self.settle(w, &p, p.keys);
            }
        }
    }
}

impl Model for Schedules {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let store = Store {
            version: 1,
            term: 1,
            files: Rows::default(),
        };
        let mut w = World {
            a: ROOTS[A],
            b: None,
            net: vec![],
            sessions: vec![],
            store: [store.clone(), store],
            plan: None,
            child_deleted: false,
            out: Rows::default(),
            acked: [0; 2],
            sent: [0; W],
            opened: [0; 2],
            same_term: 0,
            flushed: 0,
            ordered: [0; 8],
            twice: 0,
            reading: None,
            broken: 0,
        };
        for s in [A, B] {
            if s == A || !self.is_split() {
                self.open(&mut w, s, true);
                self.deliver(&mut w, 0, false);
                let session = w.sessions.len() - 1;
                self.read_one(&mut w, session);
            }
        }
        vec![w]
    }

    fn actions(&self, w: &World, acts: &mut Vec<Act>) {
        for i in 0..w.net.len() {
            if i > 0 && w.net[i] == w.net[i - 1] {
                continue;
            }
            acts.push(Act::Append(i));
            if w.twice < self.bounds.twice {
                acts.push(Act::AppendTwice(i));
            }
        }
        for s in [A, B] {
            let exists = s == A || !self.is_split() || self.end(w, A).owned & K1 == 0;
            if exists && w.opened[s] < self.bounds.opens[s] {
                let sealed = s == B && self.end(w, B).sealed();
                if !(sealed && self.mutant(Mutant::NoManifestNoOpenUnderSeal)) {
                    acts.push(Act::Promote(s));
                }
                if w.same_term < self.bounds.same_term {
                    acts.push(Act::OpenSameTerm(s));
                }
            }
        }
        if self.bounds.reads && w.reading.is_none() {
            acts.push(Act::StrongRead);
        }
        for i in 0..w.sessions.len() {
            self.session_acts(w, i, acts);
        }
    }

    fn next_state(&self, old: &World, act: Act) -> Option<World> {
        let mut w = old.clone();
        match act.clone() {
            Act::Append(at) => self.deliver(&mut w, at, false),
            Act::AppendTwice(at) => self.deliver(&mut w, at, true),
            Act::Read(i) => self.read_one(&mut w, i),
            Act::Promote(s) => {
                w.opened[s] += 1;
                self.open(&mut w, s, false);
            }
            Act::OpenSameTerm(s) => {
                w.opened[s] += 1;
                w.same_term += 1;
                self.open(&mut w, s, true);
            }
            Act::Reclaim(i) => {
                let me = &mut w.sessions[i];
                me.tenure.1 += 1;
                me.mode = Mode::Claiming;
                let (version, files) = me.opened;
                self.emit(&mut w, i, Kind::Claim { version, files });
            }
            Act::Send {
                session,
                w: id,
                keys,
            } => {
                let generation = self.view(&w, session).generation();
                w.sent[id as usize] += 1;
                for k in 0..2 {
                    w.out[k][id as usize] += keys >> k & 1;
                }
                let me = &mut w.sessions[session];
                me.pending.push(Pending {
                    claim: me.tenure.1,
                    seq: me.next_seq,
                    w: id,
                    keys,
                });
                let kind = Kind::Write {
                    generation,
                    w: id,
                    keys,
                };
                self.emit(&mut w, session, kind);
            }
            Act::Flush { session, prepare } => self.flush(&mut w, session, prepare),
            Act::Order(i, order) => self.order(&mut w, i, order),
            Act::StrongRead => {
                w.reading = Some((self.end(&w, A).len, self.end(&w, B).len));
            }
        }
        w.broken = match act {
            Act::Read(_) if w.acked == old.acked => old.broken,
            Act::Append(_) | Act::AppendTwice(_) | Act::Read(_) | Act::StrongRead => {
                self.broken(&w, true)
            }
            Act::Order(_, Order::DeleteChild) => self.broken(&w, true),
            _ => self.broken(&w, false),
        };
        Some(w)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "acknowledged writes are visible exactly once, others at most once",
                |_, w: &World| w.broken & ONCE == 0,
            ),
            Property::always(
                "no write applies to a key that is not owned or is sealed",
                |_, w: &World| w.broken & OWNED == 0,
            ),
            Property::always("no key has two live owners", |_, w: &World| {
                w.broken & ONE_OWNER == 0
            }),
            Property::always("strong reads are linearizable", |_, w: &World| {
                w.broken & STRONG == 0
            }),
            Property::always(
                "a live scheduler can always make every key writable",
                |_, w: &World| w.broken & WEDGE == 0,
            ),
            Property::always("a procedure is decided once", |_, w: &World| {
                w.broken & DECIDED_TWICE == 0
            }),
            Property::always("a seal survives claims", |_, w: &World| {
                w.broken & SEAL == 0
            }),
            Property::always("carved is what is replayed", |_, w: &World| {
                w.broken & CARVE == 0
            }),
            Property::sometimes(
                "the procedure commits and all writes are acknowledged",
                |m: &Self, w: &World| {
                    let end = m.end(w, A);
                    let acked = |k: usize, i: usize| {
                        m.bounds.writes[i] >> k & 1 == 0 || w.acked[k] >> i & 1 == 1
                    };
                    let committed = !end.open(0) && !end.aborted(0);
                    committed && (0..2).all(|k| (0..W).all(|i| acked(k, i)))
                },
            ),
            Property::sometimes(
                "the procedure is aborted after a commit record was sent",
                |m: &Self, w: &World| {
                    let path = m.logs.path(w.a);
                    let mut kinds = path.iter().filter_map(|n| n.rec).map(|r| r.kind);
                    m.end(w, A).aborted(0)
                        && kinds.any(|k| matches!(k, Kind::Split { .. } | Kind::Merge { .. }))
                },
            ),
        ]
    }
}
