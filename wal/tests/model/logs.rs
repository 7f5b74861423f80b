//! Logs of small records, folded by the real fold. A log is a node of a tree of all logs met, so
//! that each prefix is folded once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use shoal_types::{
    Column, ColumnId, ColumnType, Epoch, Extent, Incarnation, ManifestVersion, Offset,
    PartitionBounds, PartitionBy, PartitionMethod, ProcedureId, Seq, ShardId, SlotRange, TableId,
    TableMode, TableOrigin, TableSchema, WriteId, WriterId,
};
use shoal_wal::fold::{Decision, FoldLimits, FoldSnapshot, FoldState, Verdict, fold};
use shoal_wal::record::{
    AttemptId, ManifestRef, Merge, Move, Payload, Record, SchemaChange, Split, TableWrite, UnitCut,
    Write, WriteHeader, WriteIdPart,
};
use ulid::Ulid;
use uuid::Uuid;

use crate::Mutant;

/// A set of keys: `K0` stays with A for ever, `K1` moves (A to B in a split, B to A in a merge).
pub type Keys = u8;
pub const K0: Keys = 1;
pub const K1: Keys = 2;
/// Number of distinct client writes.
pub const W: usize = 3;
/// `rows[k][w]`: how often write `w` took effect on key `k`.
pub type Rows = [[u8; W]; 2];
/// Term and claim.
pub type Tenure = (u8, u8);
/// A node of the tree.
pub type Log = u32;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Kind {
    /// Names the manifest version (and its files) that the leader opened from.
    Claim {
        version: u8,
        files: Rows,
    },
    /// Brings the rows of write `w` for `keys`, which are all or none of a unit's.
    Write {
        generation: u8,
        w: u8,
        keys: Keys,
    },
    Manifest {
        version: u8,
        files: Rows,
    },
    /// `lent`: the files that the prepared child's manifest names, as of parent version `version`.
    Split {
        procedure: u8,
        version: u8,
        lent: Rows,
    },
    Seal {
        procedure: u8,
    },
    Unseal {
        procedure: u8,
    },
    /// `sealed`: the source's log up to its seal.
    Merge {
        procedure: u8,
        sealed: Log,
    },
    Abort {
        procedure: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Rec {
    pub tenure: Tenure,
    pub writer: u8,
    pub seq: u8,
    pub kind: Kind,
}

/// The state at the end of a log.
#[derive(Debug)]
pub struct Node {
    /// The log without its last record.
    pub before: Option<Log>,
    /// Number of records.
    pub len: u8,
    pub rec: Option<Rec>,
    pub verdict: Option<Verdict>,
    pub fold: FoldState,
    pub rows: Rows,
    /// Rows in the files of the last manifest named; what is in `rows` and not here is in memory.
    pub files: Rows,
    pub owned: Keys,
    /// Where the log of the child begins, if a split applied.
    pub child: Option<Log>,
}

impl Node {
    pub fn generation(&self) -> u8 {
        small(self.fold.generation())
    }
    pub fn next_seq(&self) -> u8 {
        small(self.fold.next_seq().0)
    }
    pub fn version(&self) -> u8 {
        self.fold.manifest().map_or(0, |m| small(m.version.0))
    }
    pub fn sealed_by(&self) -> Option<u8> {
        self.fold.seal().map(|p| small(p.0.0 as u64))
    }
    pub fn sealed(&self) -> bool {
        self.fold.seal().is_some()
    }
    pub fn claim(&self) -> (Tenure, u8) {
        let (epoch, writer) = self.fold.claim();
        let tenure = (small(epoch.term), small(epoch.claim));
        (tenure, small(writer.0.as_u128() as u64))
    }
    pub fn decided(&self, procedure: u8) -> Option<Decision> {
        self.fold
            .decided(procedure_id(procedure))
            .map(|d| d.decision)
    }
    pub fn open(&self, procedure: u8) -> bool {
        self.decided(procedure).is_none()
    }
    pub fn aborted(&self, procedure: u8) -> bool {
        self.decided(procedure) == Some(Decision::Aborted)
    }
    /// Whether some units own just these keys.
    pub fn can_name(&self, keys: Keys) -> bool {
        let units = [unit(0), unit(1)].map(|unit| keys_of(&self.fold, unit));
        let named = units.iter().filter(|of_unit| *of_unit & keys != 0);
        named.fold(0, |all, of_unit| all | of_unit) == keys
    }
    /// What the verdict says is applied already, of keys that a write named.
    pub fn covered(&self) -> Keys {
        let Some(Verdict::Overlaps { covered }) = &self.verdict else {
            return 0;
        };
        let mut keys = 0;
        for one in covered {
            assert_eq!(one.bounds, None, "units of the model are not joined");
            keys |= keys_of(&self.fold, one.unit);
        }
        keys
    }
}

fn small(number: u64) -> u8 {
    u8::try_from(number).expect("numbers of the model are small")
}

pub fn unit(key: usize) -> TableId {
    TableId(Ulid(key as u128 + 1))
}

fn procedure_id(procedure: u8) -> ProcedureId {
    ProcedureId(Ulid(u128::from(procedure)))
}

fn slots(from: u32, to: u32) -> PartitionBounds {
    PartitionBounds {
        by: PartitionBy {
            method: PartitionMethod::Hash,
            columns: vec![ColumnId(0)],
        },
        extent: Extent::Slots(SlotRange { from, to }),
    }
}

/// Key `k` is slot `k`.
fn keys_of(fold: &FoldState, unit: TableId) -> Keys {
    match fold.bounds(unit).map(|b| &b.extent) {
        Some(Extent::Slots(range)) => (range.from..range.to).fold(0, |keys, slot| keys | 1 << slot),
        _ => 0,
    }
}

fn owned(fold: &FoldState) -> Keys {
    keys_of(fold, unit(0)) | keys_of(fold, unit(1))
}

fn manifest(version: u8) -> ManifestRef {
    ManifestRef {
        version: ManifestVersion(u64::from(version)),
        attempt: AttemptId(Uuid::from_u128(u128::from(version))),
    }
}

fn writer(number: u8) -> WriterId {
    WriterId(Uuid::from_u128(u128::from(number)))
}

fn epoch(tenure: Tenure) -> Epoch {
    Epoch {
        term: u64::from(tenure.0),
        claim: u64::from(tenure.1),
    }
}

/// Write 2 is sent without a write id, so its client never retries an unknown outcome.
pub fn has_id(w: u8) -> bool {
    w != 2
}

fn schema(table: TableId) -> TableSchema {
    TableSchema {
        table,
        version: 1,
        incarnation: Incarnation(0),
        columns: vec![Column {
            id: ColumnId(0),
            name: "k".into(),
            column_type: ColumnType::Int64,
            nullable: false,
            default: None,
        }],
        key: vec![ColumnId(0)],
        time_column: None,
        mode: TableMode::Append,
        ttl_ms: None,
        origin: TableOrigin::Sql,
        next_column_id: ColumnId(1),
        part_of: None,
    }
}

/// A shard that has these units before the model's own records.
fn founded(units: &[(TableId, PartitionBounds)]) -> FoldState {
    let mut state = FoldState::new(FoldLimits::default());
    let by = (epoch((0, 1)), writer(200));
    let claim = Record::claim(by.0, by.1, manifest(0), 0);
    assert_eq!(fold(&mut state, Offset(0), &claim), Verdict::Apply);
    let mut changes = Vec::new();
    for (unit, bounds) in units {
        changes.push(SchemaChange::Put(Arc::new(schema(*unit))));
        changes.push(SchemaChange::Own {
            table: *unit,
            of: TableId(Ulid(9)),
            bounds: Arc::new(bounds.clone()),
        });
    }
    let record = Record::sequenced(by, Seq(0), 0, Payload::Schema(changes));
    assert_eq!(fold(&mut state, Offset(1), &record), Verdict::Apply);
    state
}

fn edited(fold: &FoldState, edit: impl FnOnce(&mut FoldSnapshot)) -> FoldState {
    let mut snapshot = fold.to_snapshot();
    edit(&mut snapshot);
    FoldState::from_snapshot(&snapshot)
}

/// All logs met so far.
pub struct Logs {
    mutant: Mutant,
    /// In a split the moved key is cut off the one unit there is; else it is a unit of its own.
    cut: bool,
    /// Keys that each write has rows for.
    writes: [Keys; W],
    nodes: RwLock<Vec<Arc<Node>>>,
    next: RwLock<HashMap<(Log, Rec), Log>>,
}

/// Of A, of B, and of a B that there is not yet.
pub const ROOTS: [Log; 3] = [0, 1, 2];

impl Logs {
    /// `one_shard`: A has all keys and B is yet to be made.
    pub fn new(mutant: Mutant, one_shard: bool, cut: bool, writes: [Keys; W]) -> Self {
        let (left, right) = ((unit(0), slots(0, 1)), (unit(1), slots(1, 2)));
        let of_a = match (one_shard, cut) {
            (true, true) => vec![(unit(0), slots(0, 2))],
            (true, false) => vec![left, right.clone()],
            (false, _) => vec![left],
        };
        let logs = Self {
            mutant,
            cut,
            writes,
            nodes: RwLock::default(),
            next: RwLock::default(),
        };
        for state in [founded(&of_a), founded(&[right]), FoldState::default()] {
            logs.root(state, Rows::default());
        }
        logs
    }

    fn root(&self, fold: FoldState, rows: Rows) -> Log {
        let owned = owned(&fold);
        self.put(Node {
            before: None,
            len: 0,
            rec: None,
            verdict: None,
            fold,
            rows,
            files: Rows::default(),
            owned,
            child: None,
        })
    }

    fn put(&self, node: Node) -> Log {
        let mut nodes = self.nodes.write();
        nodes.push(Arc::new(node));
        Log::try_from(nodes.len() - 1).expect("fewer logs than that")
    }

    pub fn count(&self) -> usize {
        self.nodes.read().len()
    }

    pub fn node(&self, log: Log) -> Arc<Node> {
        Arc::clone(&self.nodes.read()[log as usize])
    }

    /// The states at all positions of a log, the first before any record.
    pub fn path(&self, log: Log) -> Vec<Arc<Node>> {
        let nodes = self.nodes.read();
        let mut path = vec![Arc::clone(&nodes[log as usize])];
        while let Some(before) = path[path.len() - 1].before {
            path.push(Arc::clone(&nodes[before as usize]));
        }
        path.reverse();
        path
    }

    /// The first `len` records of a log.
    pub fn prefix(&self, log: Log, len: u8) -> Log {
        let nodes = self.nodes.read();
        let mut at = log;
        while nodes[at as usize].len > len {
            at = nodes[at as usize]
                .before
                .expect("a longer log has one before");
        }
        at
    }

    /// The log with one more record.
    pub fn append(&self, log: Log, rec: Rec) -> Log {
        if let Some(next) = self.next.read().get(&(log, rec)) {
            return *next;
        }
        let mut all = self.next.write();
        if let Some(next) = all.get(&(log, rec)) {
            return *next;
        }
        let before = self.node(log);
        let mut node = self.step(&before, rec);
        node.before = Some(log);
        let split = matches!(rec.kind, Kind::Split { .. });
        if split && node.verdict == Some(Verdict::Apply) {
            node.child = Some(self.carve(&before, rec));
        }
        let next = self.put(node);
        all.insert((log, rec), next);
        next
    }

    fn split(&self, rec: Rec, before: &Node) -> Split {
        let Kind::Split {
            procedure, version, ..
        } = rec.kind
        else {
            panic!("a split")
        };
        let named = match self.mutant {
            Mutant::SplitWithoutVersionCheck => before.fold.manifest(),
            _ => None,
        };
        let cut = UnitCut {
            left: slots(0, 1),
            right_unit: unit(1),
            right: slots(1, 2),
        };
        Split {
            procedure: procedure_id(procedure),
            manifest: named.unwrap_or(manifest(version)),
            child: ShardId(Ulid(2)),
            moves: vec![Move {
                unit: unit(usize::from(!self.cut)),
                cut: self.cut.then_some(cut),
            }],
        }
    }

    /// Where the child's log begins: files lent, and memory carved.
    fn carve(&self, before: &Node, rec: Rec) -> Log {
        let Kind::Split { lent, .. } = rec.kind else {
            panic!("a split")
        };
        let split = self.split(rec, before);
        let state = self.judged(before, rec);
        let at = before.fold.next_offset();
        let mut child = state
            .carve(ShardId(Ulid(1)), &split, at)
            .expect("it applied");
        if self.mutant == Mutant::CarveForgetsWriteIds {
            child = edited(&child, |s| s.write_ids.clear());
        }
        let mut rows = Rows::default();
        for w in 0..W {
            rows[1][w] = lent[1][w] + before.rows[1][w].saturating_sub(before.files[1][w]);
        }
        self.root(child, rows)
    }

    /// The state that a record meets; a mutant has forgotten what its rule goes by.
    fn judged(&self, before: &Node, rec: Rec) -> FoldState {
        let fold = &before.fold;
        let decides = matches!(rec.kind, Kind::Split { .. } | Kind::Merge { .. });
        match (self.mutant, rec.kind) {
            (Mutant::SealDoesNotStopWrites, Kind::Write { .. }) => edited(fold, |s| {
                s.head.seal = None;
            }),
            (Mutant::CommitAfterAbort, _) if decides => edited(fold, |s| s.decided.clear()),
            (Mutant::AbortAfterCommit, Kind::Abort { .. }) => edited(fold, |s| s.decided.clear()),
            _ => fold.clone(),
        }
    }

    /// What one record does, without a place in the tree.
    pub fn step(&self, before: &Node, rec: Rec) -> Node {
        let mut state = self.judged(before, rec);
        let record = self.record(before, &state, rec);
        let offset = state.next_offset();
        let verdict = fold(&mut state, offset, &record);
        let applied = verdict == Verdict::Apply;
        let mut node = Node {
            before: None,
            len: before.len + 1,
            rec: Some(rec),
            verdict: Some(verdict),
            fold: self.mended(before, state, rec, applied),
            rows: before.rows,
            files: before.files,
            owned: 0,
            child: before.child,
        };
        node.owned = owned(&node.fold);
        if !applied {
            return node;
        }
        match rec.kind {
            Kind::Write { w, keys, .. } => {
                for k in 0..2 {
                    node.rows[k][w as usize] += (keys & self.writes[w as usize]) >> k & 1;
                }
            }
            Kind::Claim { version, files } | Kind::Manifest { version, files }
                if version > before.version() =>
            {
                node.files = files;
            }
            Kind::Merge { sealed, .. } => {
                let source = self.node(sealed);
                for w in 0..W {
                    node.rows[1][w] += source.rows[1][w];
                }
            }
            _ => {}
        }
        node
    }

    fn record(&self, before: &Node, state: &FoldState, rec: Rec) -> Record {
        let mut by = (epoch(rec.tenure), writer(rec.writer));
        if self.mutant == Mutant::EpochWithoutWriter && state.claim().0 == by.0 {
            by.1 = state.claim().1;
        }
        let payload = match rec.kind {
            Kind::Claim { version, .. } => {
                return Record::claim(by.0, writer(rec.writer), manifest(version), 0);
            }
            Kind::Manifest { version, .. } => Payload::Manifest(manifest(version)),
            Kind::Write {
                generation,
                w,
                keys,
            } => Payload::Write(self.write(before, generation, w, keys)),
            Kind::Split { .. } => Payload::Split(self.split(rec, before)),
            Kind::Seal { procedure } => Payload::Seal {
                procedure: procedure_id(procedure),
            },
            Kind::Unseal { procedure } => {
                let held = (self.mutant == Mutant::UnsealWithoutProcedure).then(|| state.seal());
                let procedure = held.flatten().unwrap_or(procedure_id(procedure));
                Payload::Unseal { procedure }
            }
            Kind::Abort { procedure } => Payload::Abort {
                procedure: procedure_id(procedure),
            },
            Kind::Merge { procedure, sealed } => {
                let source = &self.node(sealed).fold;
                let mut snapshot = source.to_snapshot();
                if self.mutant == Mutant::MergeForgetsWriteIds {
                    snapshot.write_ids.clear();
                }
                Payload::Merge(Merge {
                    procedure: procedure_id(procedure),
                    source: ShardId(Ulid(2)),
                    seal: Offset(source.next_offset().0 - 1),
                    manifest: source.manifest().expect("it was founded with one"),
                    fold: Box::new(snapshot),
                })
            }
        };
        Record::sequenced(by, Seq(u64::from(rec.seq)), 0, payload)
    }

    fn write(&self, before: &Node, generation: u8, w: u8, keys: Keys) -> Write {
        let units: Vec<TableId> = match self.mutant {
            Mutant::WriteCoversAllThatIsOwned => before.fold.schemas().map(|s| s.table).collect(),
            // Before it is cut the one unit has both keys.
            _ if self.cut && keys == K0 | K1 => vec![unit(0)],
            _ => (0..2).filter(|k| keys >> k & 1 == 1).map(unit).collect(),
        };
        let generation = match self.mutant {
            Mutant::WriteWithoutGeneration => before.fold.generation(),
            _ => u64::from(generation),
        };
        let to_unit = |table| TableWrite {
            table,
            incarnation: Incarnation(0),
            columns: vec![ColumnId(0)],
            rows: 1,
            delete_where: None,
        };
        let id = WriteId(u128::from(w) + 1);
        let write_id = has_id(w).then_some(WriteIdPart { id, part: 0 });
        Write {
            header: WriteHeader {
                generation,
                tables: units.into_iter().map(to_unit).collect(),
                write_id,
                besides: Some(Vec::new()),
                ..WriteHeader::default()
            },
            body: Bytes::new(),
        }
    }

    /// What a mutant makes of the state that follows.
    fn mended(&self, before: &Node, state: FoldState, rec: Rec, applied: bool) -> FoldState {
        let old = &before.fold;
        let claimed = applied && matches!(rec.kind, Kind::Claim { .. });
        match (self.mutant, rec.kind) {
            (Mutant::SealClearedByClaim, _) if claimed => edited(&state, |s| s.head.seal = None),
            (Mutant::ClaimVersionDoesNotCount, _) if claimed => {
                edited(&state, |s| s.head.manifest = old.manifest())
            }
            (Mutant::PoisonIgnored, _) if state.poisoned() => {
                edited(&state, |s| s.head.poisoned = false)
            }
            (Mutant::SealDoesNotStopWrites, Kind::Write { .. }) => {
                edited(&state, |s| s.head.seal = old.seal())
            }
            (Mutant::AbortAfterCommit | Mutant::CommitAfterAbort, _) => {
                let kept = old.to_snapshot().decided;
                edited(&state, |s| {
                    let new = std::mem::take(&mut s.decided);
                    s.decided = kept.into_iter().chain(new).collect();
                })
            }
            _ => state,
        }
    }
}
