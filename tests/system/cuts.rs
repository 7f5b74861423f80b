//! Network cuts, one way and both, between nodes, schedulers, Kafka, S3 and etcd, while clients write
//! and read. Whatever is cut, clients that go to the other nodes go on; and what was cut is whole
//! again by itself once the cut is healed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoal_tests::{Client, Cluster, Host, Network, Server, Stack, Way};

use crate::faults::Clients;
use crate::pulse::{self, Pulse};

const FEW: &[(&str, &str)] = &[("SHOAL_ENGINE_SHARDS", "4")];
const NODES: usize = 3;
const SCHEDULERS: usize = 2;
/// How long a cut from etcd lasts: longer than a registration lives.
const ETCD_CUT: Duration = Duration::from_secs(9);
/// How long any other lasts at least.
const OTHER_CUT: Duration = Duration::from_secs(3);
/// How long nobody may take writes while something is cut.
const CUT_PATIENCE: Duration = Duration::from_secs(10);

/// Who is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    /// The node that leads the shard that is written.
    Leader,
    /// The scheduler that leads; while it is cut the node that leads the shard stands still.
    Scheduler,
}

/// From what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Party {
    Kafka,
    S3,
    Etcd,
    /// The other nodes and all schedulers.
    Others,
    /// The other nodes alone.
    Nodes,
    /// The schedulers alone.
    Schedulers,
}

/// Which direction is cut, as the one that is cut sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Out,
    In,
    Both,
}

const DIRECTIONS: [Direction; 3] = [Direction::Out, Direction::In, Direction::Both];

/// One kind of cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cut(Who, Party, Direction);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(who, from, direction) = self;
        let direction = match direction {
            Direction::Out => "what it sends",
            Direction::In => "what it is sent",
            Direction::Both => "both ways",
        };
        write!(f, "{who:?} from {from:?}, {direction}")
    }
}

impl Cut {
    /// Whether the leader must get a successor. Any other may, by balance.
    fn deposes(self) -> bool {
        self.0 == Who::Scheduler || !matches!(self.1, Party::S3 | Party::Etcd)
    }
}

/// A cluster in a network of its own.
struct Place {
    network: Network,
    services: Host,
    cluster: Cluster,
    _stack: Stack,
}

fn address(server: &Server) -> Ipv4Addr {
    server.host().address()
}

impl Place {
    async fn start(mut network: Network, folder: &Path, name: &str) -> Self {
        let services = network.host(3);
        let nodes: Vec<Host> = (0..NODES).map(|_| network.host(1)).collect();
        let schedulers: Vec<Host> = (0..SCHEDULERS).map(|_| network.host(1)).collect();
        let stack = Stack::start_on(folder, &services);
        let hosts = (nodes.as_slice(), schedulers.as_slice());
        let cluster = Cluster::start_on(&stack, folder, name, hosts, FEW).await;
        cluster.leading_scheduler(0).await;
        cluster.placed(0, 2).await;
        Self {
            network,
            services,
            cluster,
            _stack: stack,
        }
    }

    fn ways(&self, server: &Server, cut: Cut) -> Vec<Way> {
        let me = address(server);
        let nodes = self.cluster.nodes.iter().map(address);
        let schedulers = self.cluster.schedulers.iter().map(address);
        let service = |n: usize| vec![self.services.addresses()[n]];
        let others = match cut.1 {
            Party::Kafka => service(0),
            Party::S3 => service(1),
            Party::Etcd => service(2),
            Party::Others => nodes.chain(schedulers).collect(),
            Party::Nodes => nodes.collect(),
            Party::Schedulers => schedulers.collect(),
        };
        let others = others.into_iter().filter(|other| *other != me);
        let ways = others.flat_map(|other| {
            let out = Way {
                from: me,
                to: other,
            };
            let back = Way {
                from: other,
                to: me,
            };
            match cut.2 {
                Direction::Out => vec![out],
                Direction::In => vec![back],
                Direction::Both => vec![out, back],
            }
        });
        ways.collect()
    }

    fn clients_but(&self, node: usize) -> Vec<Client> {
        let others = self.cluster.nodes.iter().enumerate();
        let others = others.filter(|(n, _)| *n != node);
        others.map(|(_, server)| server.client()).collect()
    }

    /// Waits until all nodes are up, a scheduler leads, nothing is under way, every shard has its
    /// replicas, and every node takes writes and reads what was acknowledged.
    async fn whole(&self, pulse: &Pulse) {
        let cluster = &self.cluster;
        let what = "all nodes are up and a scheduler leads";
        let holds = |listed: &Value| {
            let count = |state: &str| {
                let all = listed.as_array().into_iter().flatten();
                all.filter(|one| one["state"] == state).count()
            };
            (count("up"), count("leading"), count("standby")) == (NODES, 1, SCHEDULERS - 1)
        };
        let rests = |all: &Value| {
            let mut all = all.as_array().into_iter().flatten();
            all.all(|one| one["state"] != "running")
        };
        for node in 0..NODES {
            cluster.until(node, what, "/v1/admin/nodes", holds).await;
            cluster.placed(node, 2).await;
        }
        let what = "no procedure is under way";
        let path = "/v1/admin/procedures";
        cluster.until(0, what, path, rests).await;
        for node in 0..NODES {
            pulse.only(vec![cluster.client(node)]);
            pulse.after(Instant::now()).await;
            pulse.read(&cluster.client(node)).await;
        }
        pulse.only(self.clients_but(NODES));
    }
}

/// What a cut did to those who write to the shard that the node led, at the other nodes.
#[derive(Clone, Copy, Debug)]
struct Effect {
    /// From the cut to the first write that was acknowledged.
    first: Duration,
    /// The longest time without one, while the cut lasted.
    cut_gap: Duration,
    /// The longest from the heal until all was whole.
    heal_gap: Duration,
    /// From the heal until all was whole.
    whole: Duration,
}

async fn flush(client: &Client) -> bool {
    client.post("/v1/admin/flush", &json!({})).await.is_ok()
}

/// A cluster, those who use it, and what was seen.
struct Trial {
    place: Place,
    clients: Clients,
    pulse: Pulse,
    effects: BTreeMap<Cut, Vec<Effect>>,
    /// What was not as it must be. It is told in the end, so that one run shows all of it.
    wrong: Vec<String>,
}

impl Trial {
    /// Whether somebody takes writes while a cut lasts; from `moment` to the first of them.
    async fn goes_on(&mut self, moment: Instant, cut: Cut) -> Duration {
        let after = tokio::time::timeout(CUT_PATIENCE, self.pulse.after(moment)).await;
        after.unwrap_or_else(|_| {
            let wrong = format!("{cut}: nobody takes writes for {CUT_PATIENCE:?}");
            eprintln!("{wrong}");
            if !self.wrong.contains(&wrong) {
                self.wrong.push(wrong);
            }
            moment.elapsed()
        })
    }

    /// Cuts somebody from something, and heals it.
    async fn cut(&mut self, cut: Cut) {
        let (cluster, network) = (&self.place.cluster, &self.place.network);
        let victim = cluster.leader_of(pulse::TABLE, 0).await;
        let (asked_at, node) = ((victim + 1) % NODES, cluster.client(victim));
        let leading = cluster.leading_scheduler(asked_at).await;
        self.pulse.only(self.place.clients_but(victim));
        self.pulse.after(Instant::now()).await;
        let ways = match cut.0 {
            Who::Leader => self.place.ways(&cluster.nodes[victim], cut),
            Who::Scheduler => self.place.ways(&cluster.schedulers[leading], cut),
        };
        let begun = Instant::now();
        tokio::task::block_in_place(|| network.cut(&ways));
        if cut.0 == Who::Scheduler {
            cluster.nodes[victim].pause();
        }
        let first = self.goes_on(Instant::now(), cut).await;
        if cut.1 == Party::S3 {
            // Its flushes wait.
            let flushed = tokio::time::timeout(OTHER_CUT, flush(&node)).await;
            assert_ne!(flushed, Ok(true), "a flush without the store");
        }
        let least = match cut {
            Cut(Who::Leader, Party::Etcd, _) => ETCD_CUT,
            _ => OTHER_CUT,
        };
        tokio::time::sleep(least.saturating_sub(begun.elapsed())).await;
        if first < CUT_PATIENCE {
            self.goes_on(Instant::now(), cut).await;
        }
        let cluster = &self.place.cluster;
        if cut.deposes() && cluster.leader_of(pulse::TABLE, asked_at).await == victim {
            let wrong = format!("{cut}: n{victim} leads, which cannot be reached");
            self.wrong.push(wrong);
        }
        let cut_gap = self.pulse.longest_gap(begun);
        let healed = Instant::now();
        tokio::task::block_in_place(|| self.place.network.heal(&ways));
        if cut.0 == Who::Scheduler {
            cluster.nodes[victim].resume();
        }
        self.place.whole(&self.pulse).await;
        let effect = Effect {
            first,
            cut_gap,
            heal_gap: self.pulse.longest_gap(healed),
            whole: healed.elapsed(),
        };
        eprintln!("{cut}, n{victim}: {effect:?}");
        self.effects.entry(cut).or_default().push(effect);
        self.clients.progress(20).await;
        if cut.1 == Party::S3 {
            assert!(flush(&node).await, "a flush");
        }
    }

    async fn end(self) {
        tell(&self.effects);
        let cluster = &self.place.cluster;
        self.pulse.end(&cluster.client(0)).await;
        self.clients.end(&cluster.client(1)).await;
        cluster.replicas_agree(0).await;
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }
}

/// A table of what was measured. No time is asserted: a loaded machine must not break a test.
fn tell(effects: &BTreeMap<Cut, Vec<Effect>>) {
    eprintln!(
        "ms, median and worst                        first write    gap, cut       gap, healed    whole"
    );
    for (cut, effects) in effects {
        let column = |of: fn(&Effect) -> Duration| {
            let mut all: Vec<u128> = effects.iter().map(|e| of(e).as_millis()).collect();
            all.sort_unstable();
            format!("{:>6} {:>6}", all[all.len() / 2], all[all.len() - 1])
        };
        eprintln!(
            "{:<40} {}  {}  {}  {}",
            cut.to_string(),
            column(|e| e.first),
            column(|e| e.cut_gap),
            column(|e| e.heal_gap),
            column(|e| e.whole),
        );
    }
}

/// All directions of all of these, `SHOAL_CUT_ROUNDS` (1) times; of them only those whose name, as the
/// table in the end has it, contains `SHOAL_CUT_ONLY`.
fn cuts_of(name: &str, who: Who, from: &[Party]) {
    let rounds = std::env::var("SHOAL_CUT_ROUNDS").ok();
    let rounds: usize = rounds.and_then(|text| text.parse().ok()).unwrap_or(1);
    let only = std::env::var("SHOAL_CUT_ONLY").unwrap_or_default();
    let kinds = from
        .iter()
        .flat_map(|party| DIRECTIONS.map(|direction| Cut(who, *party, direction)));
    let kinds: Vec<Cut> = kinds
        .filter(|cut| cut.to_string().contains(&only))
        .collect();
    if kinds.is_empty() {
        return;
    }
    Network::run(name, async |network| {
        let dir = tempfile::tempdir().expect("a folder");
        let place = Place::start(network, dir.path(), "cuts").await;
        let clients = Clients::at_each_node(&place.cluster).await;
        let pulse = Pulse::start(place.clients_but(NODES)).await;
        clients.progress(20).await;
        let mut trial = Trial {
            place,
            clients,
            pulse,
            effects: BTreeMap::new(),
            wrong: Vec::new(),
        };
        for _ in 0..rounds {
            for what in &kinds {
                trial.cut(*what).await;
            }
        }
        trial.end().await;
    });
}

#[test]
fn a_leader_that_is_cut_from_the_others_is_replaced() {
    let from = [Party::Others, Party::Schedulers];
    cuts_of("cuts from others", Who::Leader, &from);
}

#[test]
fn a_leader_that_is_cut_from_the_other_nodes_alone_is_replaced() {
    cuts_of("cuts from nodes", Who::Leader, &[Party::Nodes]);
}

#[test]
fn a_leader_that_is_cut_from_kafka_is_replaced_and_one_that_is_cut_from_s3_goes_on() {
    let from = [Party::Kafka, Party::S3];
    cuts_of("cuts from Kafka and S3", Who::Leader, &from);
}

#[test]
fn a_leader_that_is_cut_from_etcd_goes_on() {
    cuts_of("cuts from etcd", Who::Leader, &[Party::Etcd]);
}

#[test]
fn a_scheduler_that_is_cut_from_etcd_is_replaced() {
    cuts_of("schedulers from etcd", Who::Scheduler, &[Party::Etcd]);
}

#[test]
fn a_scheduler_that_is_cut_from_the_nodes_is_replaced() {
    cuts_of("schedulers from nodes", Who::Scheduler, &[Party::Nodes]);
}

/// Of the network itself: that a cut takes its direction and leaves the other.
#[test]
fn a_cut_takes_one_way_and_is_healed() {
    Network::run("a cut", async |mut network| {
        let hosts = [network.host(2), network.host(1)];
        // A socket stays where it was made.
        let socket = |host: &Host, n: usize| {
            let address = host.addresses()[n];
            let made = std::thread::scope(|scope| {
                let made = scope.spawn(|| {
                    host.enter();
                    UdpSocket::bind((address, 7)).expect("bind")
                });
                made.join().expect("a socket")
            });
            let patience = Some(Duration::from_millis(200));
            made.set_read_timeout(patience).expect("a limit");
            made
        };
        let (a, b) = (socket(&hosts[0], 0), socket(&hosts[1], 0));
        let other = socket(&hosts[0], 1);
        let passes = |from: &UdpSocket, to: &UdpSocket| {
            let address = to.local_addr().expect("bound");
            // A sender may be told what came of an earlier packet; here nobody is.
            from.send_to(b"?", address).expect("send");
            to.recv(&mut [0; 8]).is_ok()
        };
        let out = Way {
            from: hosts[0].address(),
            to: hosts[1].address(),
        };
        let back = Way {
            from: out.to,
            to: out.from,
        };
        for (cut, passing) in [
            (vec![], (true, true)),
            (vec![out], (false, true)),
            (vec![back], (true, false)),
            (vec![out, back], (false, false)),
            (vec![], (true, true)),
        ] {
            network.cut(&cut);
            assert_eq!((passes(&a, &b), passes(&b, &a)), passing, "{cut:?}");
            assert!(passes(&other, &b) && passes(&b, &other), "{cut:?}");
            network.heal(&cut);
        }
    });
}
