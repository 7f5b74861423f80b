//! A network of a test's own: a star of network namespaces, in which what goes from one address to
//! another can be cut, in one direction alone.
//!
//! ```text
//!   Kafka 10.77.1.2, S3 .3, etcd .4 ──┐
//!                     node 10.77.2.2 ──┼── hub, which forwards; the test and its clients are here
//!                scheduler 10.77.3.2 ──┘
//! ```
//!
//! A cut is a rule of the hub's routing: what goes that way vanishes, and nobody is told. The test
//! itself reaches everything at all times. There is no way out of the star.
//!
//! Nothing is left behind: a namespace lives as long as a process in it, and those end with the test,
//! however it ends.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, held by a process that ends when this is dropped or the test dies: its
/// standard input ends then.
#[derive(Debug)]
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn make() -> Result<Self, String> {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; exec cat >/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("unshare: {e}"))?;
        let mut said = holder.stdout.take().expect("it is piped");
        // Its word comes from within the namespace.
        if said.read_exact(&mut [0]).is_ok() {
            return Ok(Self { holder });
        }
        let mut why = String::new();
        let stderr = holder.stderr.as_mut().expect("it is piped");
        let _ = stderr.read_to_string(&mut why);
        let _ = holder.wait();
        Err(why.trim().to_owned())
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// A command that is run in it, and is killed if this thread ends before it.
    fn command(&self, program: &OsStr) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path()))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program);
        command
    }

    /// Has `ip` do all of it, a line each.
    fn ip(&self, lines: &str) -> Result<(), String> {
        let mut ip = self
            .command(OsStr::new("ip"))
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("nsenter: {e}"))?;
        let mut stdin = ip.stdin.take().expect("it is piped");
        let told = stdin.write_all(lines.as_bytes());
        drop(stdin);
        let done = ip.wait_with_output().map_err(|e| e.to_string())?;
        if done.status.success() && told.is_ok() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&done.stderr);
        Err(format!("ip: {}\n{lines}", why.trim()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// One direction between two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Who sends.
    pub from: Ipv4Addr,
    /// To whom.
    pub to: Ipv4Addr,
}

/// A machine of the network: processes in one namespace.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: Arc<Namespace>,
    addresses: Vec<Ipv4Addr>,
}

impl Host {
    /// Its first address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.addresses[0]
    }

    /// All its addresses.
    #[must_use]
    pub fn addresses(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    /// A command that is run there. What it starts is killed when the thread that starts it ends:
    /// start it from the test's own, not from one that comes and goes.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.namespace.command(program.as_ref())
    }

    /// Takes the calling thread there, and with it the threads and processes that it starts.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn enter(&self) {
        enter(&self.namespace);
    }
}

fn enter(namespace: &Namespace) {
    let file = File::open(namespace.path()).expect("the holder lives");
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(file.as_fd(), network).expect("enter a namespace of our own");
}

/// The hub and what is joined to it.
#[derive(Debug)]
pub struct Network {
    hub: Namespace,
    hosts: u8,
}

impl Network {
    /// Runs a test in a new network, on a thread of its own at the hub. On a machine that permits
    /// none it says so, and does not run it.
    ///
    /// # Panics
    /// As the test does.
    pub fn run<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Self) -> F + Send) {
        let network = match Self::new() {
            Ok(network) => network,
            Err(why) => {
                // Not by `eprintln`: it is to be read though the test passes.
                let said =
                    format!("SKIPPED {name}: this machine permits no network namespaces: {why}\n");
                let _ = std::io::stderr().write_all(said.as_bytes());
                return;
            }
        };
        let body = move || {
            enter(&network.hub);
            // Its threads are there, too, and so are their connections.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(test(network));
        };
        let done = std::thread::scope(|scope| scope.spawn(body).join());
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    }

    /// A hub that nothing is joined to yet.
    fn new() -> Result<Self, String> {
        let hub = Namespace::make()?;
        hub.ip("link set lo up\n")?;
        // A way back that is cut must not cut the way there: no check of return paths.
        let forward = "echo 1 >/proc/sys/net/ipv4/ip_forward; \
            for f in all default; do echo 0 >/proc/sys/net/ipv4/conf/$f/rp_filter; done";
        let done = hub.command(OsStr::new("sh")).args(["-c", forward]).status();
        match done {
            Ok(status) if status.success() => Ok(Self { hub, hosts: 0 }),
            other => Err(format!("the hub does not forward: {other:?}")),
        }
    }

    /// A new machine with so many addresses.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn host(&mut self, addresses: u8) -> Host {
        self.hosts += 1;
        let net = self.hosts;
        let namespace = Namespace::make().expect("one more namespace");
        let holder = namespace.holder.id();
        let hub = format!(
            "link add v{net} type veth peer name eth0 netns {holder}\n\
             addr add 10.77.{net}.1/24 dev v{net}\nlink set v{net} up\n"
        );
        let addresses: Vec<Ipv4Addr> = (0..addresses)
            .map(|n| Ipv4Addr::new(10, 77, net, 2 + n))
            .collect();
        let mut there = "link set lo up\nlink set eth0 up\n".to_owned();
        for address in &addresses {
            let _ = writeln!(there, "addr add {address}/24 dev eth0");
        }
        let _ = writeln!(there, "route add default via 10.77.{net}.1");
        self.hub.ip(&hub).unwrap_or_else(|why| panic!("{why}"));
        namespace.ip(&there).unwrap_or_else(|why| panic!("{why}"));
        Host {
            namespace: Arc::new(namespace),
            addresses,
        }
    }

    /// Cuts ways, all with one call.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn cut(&self, ways: &[Way]) {
        self.rules("add", ways);
    }

    /// Heals ways that were cut.
    ///
    /// # Panics
    /// When one was not.
    pub fn heal(&self, ways: &[Way]) {
        self.rules("del", ways);
    }

    fn rules(&self, what: &str, ways: &[Way]) {
        let rules = ways.iter().fold(String::new(), |mut rules, way| {
            let _ = writeln!(
                rules,
                "rule {what} from {} to {} blackhole",
                way.from, way.to
            );
            rules
        });
        self.hub.ip(&rules).unwrap_or_else(|why| panic!("{why}"));
    }
}
