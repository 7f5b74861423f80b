//! Two logs, their leaders (zombies included), a client and a scheduler.
//!
//! Followers have no state here: a replica is a position, and a read may be answered at any position
//! past its barrier. A scheduler that crashes, restarts or runs twice is one that may order any step
//! at any time for which its record of truth (the logs) allows that step.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use shoal_wal::fold::Verdict;

use crate::Mutant;
use crate::logs::{K0, K1, Keys, Kind, Log, Logs, Node, ROOTS, Rec, Rows, Tenure, W, has_id};

/// Parent, or merge target: the log that decides.
pub const A: usize = 0;
/// Child, or merge source.
pub const B: usize = 1;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Procedure {
    /// The unit of K1 moves.
    Split,
    /// The one unit is cut, and the part with K1 moves.
    CutAndSplit,
    Merge,
}

/// Every number is a bound on how often a thing may happen.
#[derive(Clone)]
pub struct Bounds {
    pub mutant: Mutant,
    pub procedure: Procedure,
    pub procedures: u8,
    /// Keys of each write; 0: unused.
    pub writes: [Keys; W],
    pub sends: u8,
    pub opens: [u8; 2],
    pub same_term: u8,
    pub claims: u8,
    pub flushes: u8,
    pub orders: u8,
    pub twice: u8,
    pub reads: bool,
}

/// The model: bounds, and what was worked out of logs already.
pub struct Schedules {
    pub bounds: Bounds,
    pub logs: Logs,
    /// Whether all recovers, by what that depends on.
    recovered: Mutex<HashMap<u64, bool>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    Claiming,
    Serving,
    Dead,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pending {
    pub claim: u8,
    pub seq: u8,
    pub w: u8,
    pub keys: Keys,
}

/// One opening of a shard as leader. Its index in `World::sessions` is its writer id.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Session {
    pub shard: u8,
    pub mode: Mode,
    pub tenure: Tenure,
    pub opened: (u8, Rows),
    /// Records read.
    pub read: u8,
    pub next_seq: u8,
    pub pending: Vec<Pending>,
}

/// The newest manifest of a shard in the object store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Store {
    pub version: u8,
    pub term: u8,
    pub files: Rows,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct World {
    /// B's: `None` while it has no record.
    pub a: Log,
    pub b: Option<Log>,
    /// Records sent and not yet appended; each may be appended at any later moment or never.
    pub net: Vec<(u8, Rec)>,
    pub sessions: Vec<Session>,
    pub store: [Store; 2],
    /// Split: the prepared child's manifest (parent version, files lent).
    pub plan: Option<(u8, Rows)>,
    pub child_deleted: bool,
    /// `out[k][w]`: copies whose verdict is unknown. `acked[k]`: bits of acknowledged writes.
    pub out: Rows,
    pub acked: [u8; 2],
    pub sent: [u8; W],
    pub opened: [u8; 2],
    pub same_term: u8,
    pub flushed: u8,
    pub ordered: [u8; 8],
    pub twice: u8,
    /// Lengths of both logs when the observed strong read began (its barriers' offsets).
    pub reading: Option<(u8, u8)>,
    /// Broken properties, computed when the state is made.
    pub broken: u8,
}

pub const ONCE: u8 = 1;
pub const OWNED: u8 = 2;
pub const ONE_OWNER: u8 = 4;
pub const STRONG: u8 = 8;
pub const WEDGE: u8 = 16;
pub const SEAL: u8 = 32;
pub const CARVE: u8 = 64;
pub const DECIDED_TWICE: u8 = 128;

impl Schedules {
    pub fn new(bounds: Bounds) -> Self {
        let cut = bounds.procedure == Procedure::CutAndSplit;
        let one_shard = bounds.procedure != Procedure::Merge;
        Self {
            logs: Logs::new(bounds.mutant, one_shard, cut, bounds.writes),
            bounds,
            recovered: Mutex::default(),
        }
    }

    pub fn is_split(&self) -> bool {
        self.bounds.procedure != Procedure::Merge
    }

    pub fn mutant(&self, mutant: Mutant) -> bool {
        self.bounds.mutant == mutant
    }

    /// The whole log of a shard.
    pub fn log(&self, w: &World, shard: usize) -> Log {
        match (shard, w.b) {
            (A, _) => w.a,
            (_, Some(b)) => b,
            (_, None) if !self.is_split() => ROOTS[B],
            (_, None) => self.logs.node(w.a).child.unwrap_or(ROOTS[2]),
        }
    }

    pub fn end(&self, w: &World, shard: usize) -> Arc<Node> {
        self.logs.node(self.log(w, shard))
    }

    /// What a session has read.
    pub fn view(&self, w: &World, i: usize) -> Arc<Node> {
        let me = &w.sessions[i];
        let log = self.log(w, me.shard as usize);
        self.logs.node(self.logs.prefix(log, me.read))
    }

    pub fn append(&self, w: &mut World, shard: usize, rec: Rec) {
        let log = self.logs.append(self.log(w, shard), rec);
        match shard {
            A => w.a = log,
            _ => w.b = Some(log),
        }
    }

    // ---- properties ----

    /// Whether a replica of a shard may answer for a key at a position.
    fn readable(&self, state: &Node, k: usize) -> bool {
        let sealed = state.sealed() && !self.mutant(Mutant::BarrierOnSealedSource);
        state.owned >> k & 1 == 1 && !sealed
    }

    fn visible(a: &Node, b: &Node, child_deleted: bool) -> Rows {
        let key1 = match (a.owned & K1 != 0, child_deleted) {
            (true, _) => a.rows[1],
            (false, true) => [0; W],
            (false, false) => b.rows[1],
        };
        [a.rows[0], key1]
    }

    fn once(w: &World, a: &Node, b: &Node) -> bool {
        let rows = Self::visible(a, b, w.child_deleted);
        (0..2).all(|k| {
            (0..W).all(|i| rows[k][i] <= 1 && (w.acked[k] >> i & 1 == 0 || rows[k][i] == 1))
        })
    }

    fn strong(&self, w: &World, states: [&[Arc<Node>]; 2]) -> bool {
        let Some(read) = w.reading else { return true };
        let from = [read.0 as usize, read.1 as usize];
        let bits = |st: &Node, k: usize| (0..W).fold(0u8, |m, i| m | (st.rows[k][i].min(1) << i));
        // Before the split was in A's log, B had none.
        let b_was_there = !self.is_split() || states[A][from[A]].child.is_some();
        (0..2).all(|k| {
            // All that any earlier strong read can have returned (an acknowledged write is in it).
            let mut must = 0;
            for s in [A, B] {
                if s == A || b_was_there {
                    for state in &states[s][..=from[s]] {
                        if self.readable(state, k) {
                            must |= bits(state, k);
                        }
                    }
                }
            }
            [A, B].iter().all(|&s| {
                let later = states[s][from[s]..].iter();
                let mut answers = later.filter(|state| self.readable(state, k));
                answers.all(|state| must & !bits(state, k) == 0)
            })
        })
    }

    fn recovers_remembered(&self, w: &World) -> bool {
        let mut hasher = DefaultHasher::new();
        (w.a, w.b, &w.net, &w.store, w.child_deleted, w.acked).hash(&mut hasher);
        let key = hasher.finish();
        if let Some(known) = self.recovered.lock().get(&key) {
            return *known;
        }
        let recovers = self.recovers(w, true) && self.recovers(w, false);
        self.recovered.lock().insert(key, recovers);
        recovers
    }

    /// Every process crashed; a scheduler and fresh leaders run undisturbed. Late records come
    /// before them, or after them. Can every key be written, and is everything still there?
    fn recovers(&self, w: &World, late_first: bool) -> bool {
        let mut w = w.clone();
        let late = std::mem::take(&mut w.net);
        if late_first {
            late.iter()
                .for_each(|(s, r)| self.append(&mut w, *s as usize, *r));
        }
        let mut seq = [0; 2];
        let mut put = |w: &mut World, s: usize, kind: Kind| {
            let claim = matches!(kind, Kind::Claim { .. });
            let rec = Rec {
                tenure: (9, 0),
                writer: 9,
                seq: if claim { 0 } else { seq[s] },
                kind,
            };
            seq[s] += u8::from(!claim);
            self.append(w, s, rec);
        };
        let open = |w: &World, s: usize| Kind::Claim {
            version: w.store[s].version + 1,
            files: w.store[s].files,
        };
        let claim = open(&w, A);
        put(&mut w, A, claim);
        for procedure in 0..self.bounds.procedures {
            if self.end(&w, A).open(procedure) {
                if self.mutant(Mutant::AbortNotInCommittingLog) {
                    w.child_deleted = self.is_split();
                } else {
                    put(&mut w, A, Kind::Abort { procedure });
                }
            }
        }
        let merged = !self.is_split() && self.end(&w, A).owned & K1 != 0;
        let child = self.is_split() && self.end(&w, A).owned & K1 == 0 && !w.child_deleted;
        if child || (!self.is_split() && !merged) {
            let sealed = self.end(&w, B).sealed_by();
            if sealed.is_some() && self.mutant(Mutant::NoManifestNoOpenUnderSeal) {
                return false;
            }
            let claim = open(&w, B);
            put(&mut w, B, claim);
            if let Some(procedure) = sealed {
                put(&mut w, B, Kind::Unseal { procedure });
            }
        }
        if !late_first {
            late.iter()
                .for_each(|(s, r)| self.append(&mut w, *s as usize, *r));
        }
        let ends = [self.end(&w, A), self.end(&w, B)];
        let writers = |k: Keys| {
            let can = |s: &&usize| {
                let end = &ends[**s];
                let led = end.claim().0 == (9, 0) && !end.fold.poisoned();
                end.owned & k != 0 && !end.sealed() && led
            };
            [A, B].iter().filter(can).count()
        };
        writers(K0) == 1 && writers(K1) == 1 && Self::once(&w, &ends[A], &ends[B])
    }

    /// The properties that `w` breaks. `full`: the logs, what is acknowledged or the read changed;
    /// otherwise only records in flight did.
    pub fn broken(&self, w: &World, full: bool) -> u8 {
        let mut broken = if self.recovers_remembered(w) {
            0
        } else {
            WEDGE
        };
        if !full {
            return broken;
        }
        let (a, b) = (
            self.logs.path(self.log(w, A)),
            self.logs.path(self.log(w, B)),
        );
        for states in [&a, &b] {
            for pair in states.windows(2) {
                let (before, after) = (&pair[0], &pair[1]);
                let applied = after.verdict == Some(Verdict::Apply);
                for procedure in 0..self.bounds.procedures {
                    let decided = before.decided(procedure);
                    if decided.is_some() && decided != after.decided(procedure) {
                        broken |= DECIDED_TWICE;
                    }
                }
                match after.rec.map(|r| r.kind) {
                    Some(Kind::Claim { .. }) if before.fold.seal() != after.fold.seal() => {
                        broken |= SEAL;
                    }
                    Some(Kind::Write { keys, .. })
                        if applied && (keys & !before.owned != 0 || before.sealed()) =>
                    {
                        broken |= OWNED;
                    }
                    Some(Kind::Split { .. }) if applied => {
                        let child = after.child.map(|child| self.logs.node(child));
                        if child.is_none_or(|child| child.rows[1] != before.rows[1]) {
                            broken |= CARVE;
                        }
                    }
                    _ => {}
                }
            }
        }
        let (end_a, end_b) = (&a[a.len() - 1], &b[b.len() - 1]);
        if !Self::once(w, end_a, end_b) {
            broken |= ONCE;
        }
        if end_a.owned & end_b.owned != 0 && !end_b.sealed() {
            broken |= ONE_OWNER;
        }
        if !self.strong(w, [&a, &b]) {
            broken |= STRONG;
        }
        broken
    }

    // ---- what happens ----

    pub fn emit(&self, w: &mut World, i: usize, kind: Kind) {
        let me = &mut w.sessions[i];
        let claim = matches!(kind, Kind::Claim { .. });
        let rec = Rec {
            tenure: me.tenure,
            writer: u8::try_from(i).expect("few sessions"),
            seq: if claim { 0 } else { me.next_seq },
            kind,
        };
        me.next_seq += u8::from(!claim);
        let item = (me.shard, rec);
        let at = w.net.partition_point(|x| *x <= item);
        w.net.insert(at, item);
    }

    pub fn open(&self, w: &mut World, s: usize, same_term: bool) {
        let store = &mut w.store[s];
        if !same_term {
            store.term += 1;
            store.version += 1;
        }
        let (version, files) = (store.version, store.files);
        w.sessions.push(Session {
            shard: s as u8,
            mode: Mode::Claiming,
            tenure: (store.term, 0),
            opened: (version, files),
            read: 0,
            next_seq: 0,
            pending: vec![],
        });
        self.emit(w, w.sessions.len() - 1, Kind::Claim { version, files });
    }

    /// The verdict on a record is known: it is done for these keys.
    pub fn settle(&self, w: &mut World, p: &Pending, done: Keys) {
        let done = done & self.bounds.writes[p.w as usize];
        for k in 0..2 {
            if p.keys >> k & 1 == 1 {
                w.out[k][p.w as usize] -= 1;
                w.acked[k] |= (done >> k & 1) << p.w;
            }
        }
    }

    /// The leader's own reader passes one record (while claiming: all up to its claim).
    pub fn read_one(&self, w: &mut World, i: usize) {
        let path = self.logs.path(self.log(w, w.sessions[i].shard as usize));
        loop {
            let after = &path[w.sessions[i].read as usize + 1];
            let rec = after.rec.expect("not the first state");
            let me = &mut w.sessions[i];
            me.read += 1;
            let any_writer = self.mutant(Mutant::EpochWithoutWriter);
            let claim = matches!(rec.kind, Kind::Claim { .. });
            let mine = rec.writer as usize == i || any_writer;
            if !claim && mine && rec.tenure.0 == me.tenure.0 {
                let sent = |p: &Pending| (p.claim, p.seq) == (rec.tenure.1, rec.seq);
                if let Some(at) = me.pending.iter().position(sent) {
                    let p = me.pending.remove(at);
                    let done = match after.verdict {
                        Some(Verdict::Apply | Verdict::DuplicateId) => p.keys,
                        _ => after.covered(),
                    };
                    self.settle(w, &p, done);
                }
            }
            if claim {
                self.pass_claim(w, i, after, any_writer);
            }
            let me = &mut w.sessions[i];
            if me.mode == Mode::Dead {
                me.read = 0;
                me.next_seq = 0;
                me.opened = (0, Rows::default());
                me.tenure = (0, 0);
            }
            if me.mode != Mode::Claiming {
                return;
            }
        }
    }

    fn pass_claim(&self, w: &mut World, i: usize, after: &Node, any_writer: bool) {
        let me = &mut w.sessions[i];
        let (tenure, writer) = after.claim();
        let mine = tenure == me.tenure && (writer as usize == i || any_writer);
        if mine && me.mode == Mode::Claiming {
            me.mode = Mode::Serving;
            me.next_seq = 0;
        }
        if tenure > me.tenure || (tenure == me.tenure && !mine) {
            me.mode = Mode::Dead;
        }
        // A later claim is in the log: what was not applied by now never will be.
        let now = me.tenure.1;
        let dead = me.mode == Mode::Dead;
        if dead || mine {
            let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut me.pending)
                .into_iter()
                .partition(|p| dead || p.claim < now);
            me.pending = kept;
            gone.iter().for_each(|p| self.settle(w, p, 0));
        }
    }

    pub fn can_read(&self, w: &World, i: usize) -> bool {
        let me = &w.sessions[i];
        let path = self.logs.path(self.log(w, me.shard as usize));
        let mut ahead = path[me.read as usize + 1..].iter().filter_map(|n| n.rec);
        match me.mode {
            Mode::Dead => false,
            Mode::Serving => ahead.next().is_some(),
            Mode::Claiming => {
                ahead.any(|r| matches!(r.kind, Kind::Claim { .. }) && r.tenure >= me.tenure)
            }
        }
    }

    /// B's log up to where a procedure sealed it first.
    pub fn sealed(&self, w: &World, procedure: u8) -> Option<Log> {
        let log = self.log(w, B);
        let path = self.logs.path(log);
        let at = path.iter().position(|n| n.sealed_by() == Some(procedure))?;
        Some(self.logs.prefix(log, path[at].len))
    }

    /// What a session may send of a write: what is not on its way, or with a write id all again.
    pub fn sends(&self, w: &World, view: &Node, id: usize) -> Vec<Keys> {
        let of =
            |keep: &dyn Fn(usize) -> bool| (0..2).filter(|k| keep(*k)).fold(0, |m, k| m | 1 << k);
        let open = of(&|k| w.acked[k] >> id & 1 == 0);
        let quiet = of(&|k| w.out[k][id] == 0);
        let all = self.bounds.writes[id] & open & view.owned;
        let mut sends = vec![];
        if all & quiet != 0 {
            sends.push(all & quiet);
        }
        if has_id(id as u8) && all & quiet != all {
            sends.push(all);
        }
        // Units that are not cut yet are brought whole: both keys, or none.
        for keys in &mut sends {
            if !view.can_name(*keys) {
                *keys = view.owned;
            }
        }
        sends.dedup();
        sends
    }
}
