//! A TCP proxy that can lose answers, be slow, or be away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It is passed on.
    Nothing,
    /// The request reaches the server; the connection is closed when the answer begins.
    Answer,
    /// As `Answer`, but the connection stays open and silent.
    Silence,
}

#[derive(Debug)]
struct Rules {
    /// Answers to lose: only to connections whose request held these bytes.
    cut: Cut,
    needle: Vec<u8>,
    cuts_left: usize,
    cuts_done: usize,
    delay: Duration,
}

/// Passes connections on to a server.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    rules: Arc<Mutex<Rules>>,
    accepting: JoinHandle<()>,
    hang_up: Arc<Notify>,
}

impl Proxy {
    /// Starts a proxy before `target` (`host:port`) on a free port.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let rules = Arc::new(Mutex::new(Rules {
            cut: Cut::Nothing,
            needle: Vec::new(),
            cuts_left: 0,
            cuts_done: 0,
            delay: Duration::ZERO,
        }));
        let hang_up = Arc::new(Notify::new());
        let (target, shared, bell) = (target.to_owned(), Arc::clone(&rules), Arc::clone(&hang_up));
        let accepting = tokio::spawn(async move {
            let mut passing = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (target, rules, bell) =
                    (target.clone(), Arc::clone(&shared), Arc::clone(&bell));
                passing.spawn(async move {
                    tokio::select! {
                        () = pass(client, &target, &rules) => {}
                        () = bell.notified() => {}
                    }
                });
            }
        });
        Self {
            address,
            rules,
            accepting,
            hang_up,
        }
    }

    /// `host:port` to connect to.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Loses the answers of the next `count` requests that hold `needle`.
    pub fn cut_next(&self, cut: Cut, needle: &str, count: usize) {
        let mut rules = self.rules.lock();
        rules.cut = cut;
        rules.needle = needle.into();
        rules.cuts_left = count;
    }

    /// Answers lost so far.
    #[must_use]
    pub fn cuts_done(&self) -> usize {
        self.rules.lock().cuts_done
    }

    /// Delays every piece of an answer.
    pub fn delay(&self, delay: Duration) {
        self.rules.lock().delay = delay;
    }

    /// Closes all connections there are; new ones are taken.
    pub fn hang_up(&self) {
        self.hang_up.notify_waiters();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|w| w == needle)
}

async fn pass(mut client: TcpStream, target: &str, rules: &Mutex<Rules>) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let (mut from_client, mut from_server) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    // The request so far: pieces may end in the middle of what is looked for.
    let mut request: Vec<u8> = Vec::new();
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(n @ 1..) = read else { return };
                request.extend_from_slice(&from_client[..n]);
                if server.write_all(&from_client[..n]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(n @ 1..) = read else { return };
                let (cut, delay) = {
                    let mut rules = rules.lock();
                    let hit = rules.cuts_left > 0 && holds(&request, &rules.needle);
                    if hit {
                        rules.cuts_left -= 1;
                        rules.cuts_done += 1;
                    }
                    (if hit { rules.cut } else { Cut::Nothing }, rules.delay)
                };
                request.clear();
                match cut {
                    Cut::Nothing => {}
                    Cut::Answer => return,
                    Cut::Silence => std::future::pending().await,
                }
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                if client.write_all(&from_server[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
