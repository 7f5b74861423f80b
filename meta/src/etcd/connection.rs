//! Endpoints, failover, and what an error of etcd means for a caller.
//!
//! One client an endpoint, made when it is first needed, rather than one that balances over all:
//! then it is known which endpoint failed, and a request goes on to the next one at once.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Code;

use super::EtcdConfig;
use crate::store::MetaError;

/// HTTP/2 pings find dead connections of idle watches. etcd refuses more than one in 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Between tries when all endpoints have failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a request failed, by what may be done.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was certainly not received, or refused before anything was done: another endpoint, or
    /// another time.
    NotSent(String),
    /// It may have been received and done.
    Unclear(String),
    /// It will be refused again.
    Refused(String),
    /// The token of our user is not known (any more): log in again.
    LoggedOut(String),
    /// The answer exceeds the message limit: ask for less.
    AnswerTooLarge(String),
    /// The revision asked for is compacted.
    Compacted,
    /// What was read does not decode.
    Damaged(MetaError),
}

impl Failure {
    pub(super) fn of_read(self) -> MetaError {
        match self {
            Self::Damaged(e) => e,
            Self::Refused(what) | Self::LoggedOut(what) | Self::AnswerTooLarge(what) => {
                MetaError::Refused(what)
            }
            Self::Compacted => MetaError::Store("etcd compacts faster than it can be read".into()),
            Self::NotSent(what) | Self::Unclear(what) => MetaError::Store(what),
        }
    }

    pub(super) fn of_commit(self) -> MetaError {
        match self {
            Self::Unclear(what) | Self::AnswerTooLarge(what) => MetaError::Unknown(what),
            other => other.of_read(),
        }
    }
}

/// Clients of all endpoints; cheap to clone.
#[derive(Clone)]
pub(super) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    config: EtcdConfig,
    options: ConnectOptions,
    clients: Vec<Mutex<Option<Client>>>,
    /// The endpoint to ask next. Watches leave one that is turned from, too: where a request gets no
    /// answer a stream may be as dead, and pings find that out ten seconds later.
    current: watch::Sender<usize>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shared.config.fmt(f)
    }
}

impl Connection {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`MetaError::Refused`] for settings that cannot be right.
    pub(super) fn new(config: EtcdConfig) -> Result<Self, MetaError> {
        if config.endpoints.is_empty() {
            return Err(MetaError::Refused("meta.endpoints names none".into()));
        }
        for url in &config.endpoints {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err(MetaError::Refused(format!(
                    "etcd endpoint {url:?}: write http://HOST:PORT or https://HOST:PORT"
                )));
            }
        }
        let mut options = ConnectOptions::new()
            .with_connect_timeout(config.connect_timeout)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((name, password)) = &config.user {
            options = options.with_user(name, password);
        }
        let secure = config.endpoints.iter().any(|e| e.starts_with("https://"));
        if secure {
            if config.endpoints.iter().any(|e| e.starts_with("http://")) {
                return Err(MetaError::Refused(
                    "etcd endpoints are https:// or http://, not both".into(),
                ));
            }
            let mut tls = TlsOptions::new();
            tls = match &config.tls.ca_pem {
                Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                None => tls.with_native_roots(),
            };
            if let Some((certificate, key)) = &config.tls.identity_pem {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            if let Some(name) = &config.tls.server_name {
                tls = tls.domain_name(name);
            }
            options = options.with_tls(tls);
        } else if config.tls.ca_pem.is_some() || config.tls.identity_pem.is_some() {
            return Err(MetaError::Refused(
                "etcd certificates are set, but the endpoints are http://".into(),
            ));
        }
        let clients = config.endpoints.iter().map(|_| Mutex::new(None)).collect();
        let shared = Arc::new(Shared {
            config,
            options,
            clients,
            current: watch::channel(0).0,
        });
        Ok(Self { shared })
    }

    /// What one endpoint that hangs may take of the time of all.
    fn share(&self) -> Duration {
        self.shared.config.request_timeout / self.shared.clients.len() as u32
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.shared.config.request_timeout
    }

    /// The endpoint to ask next, and its client.
    pub(super) async fn client(&self) -> Result<(usize, Client), Failure> {
        let shared = &*self.shared;
        let at = *shared.current.borrow();
        let mut client = shared.clients[at].lock().await;
        if let Some(client) = &*client {
            return Ok((at, client.clone()));
        }
        let url = &shared.config.endpoints[at];
        let connect = Client::connect([url], Some(shared.options.clone()));
        // Logging in is a request, too.
        let patience = shared.config.connect_timeout + shared.config.connect_timeout;
        let made = match timeout(patience, connect).await {
            Ok(made) => made.map_err(|e| self.judge(at, &e)),
            Err(_) => Err(Failure::NotSent(format!("etcd {url} does not answer"))),
        };
        let made = made.map_err(|e| match e {
            // Nothing but a log-in was sent.
            Failure::Unclear(what) => Failure::NotSent(what),
            other => other,
        });
        match made {
            Ok(made) => {
                *client = Some(made.clone());
                Ok((at, made))
            }
            Err(failure) => {
                self.turn_from(at);
                Err(failure)
            }
        }
    }

    /// Asks another endpoint from now on.
    pub(super) fn turn_from(&self, at: usize) {
        let next = (at + 1) % self.shared.clients.len();
        self.shared.current.send_if_modified(|current| {
            // Somebody else may have turned already; of one endpoint there is no other.
            let turns = *current == at && next != at;
            if turns {
                *current = next;
            }
            turns
        });
    }

    /// Resolves when another endpoint than `at` is asked.
    pub(super) async fn turned_from(&self, at: usize) {
        let mut current = self.shared.current.subscribe();
        // No error: the sender lives as long as `self`.
        let _ = current.wait_for(|current| *current != at).await;
    }

    async fn log_out(&self, at: usize) {
        *self.shared.clients[at].lock().await = None;
    }

    /// What an error of endpoint `at` means.
    pub(super) fn judge(&self, at: usize, error: &Error) -> Failure {
        judge(&self.shared.config.endpoints[at], error)
    }

    /// Sends a request once to the current endpoint.
    async fn send<T, F>(
        &self,
        request: &impl Fn(Client) -> F,
        until: Instant,
        patience: Duration,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (at, client) = match timeout_at(until, self.client()).await {
            Ok(client) => client?,
            Err(_) => return Err(Failure::NotSent("etcd does not answer".into())),
        };
        let sent = Instant::now();
        let until = until.min(sent + patience);
        // One that others have turned from meanwhile is given its share of the time.
        let given_up = async {
            self.turned_from(at).await;
            sleep_until(sent + self.share()).await;
        };
        let answered = tokio::select! {
            answered = timeout_at(until, request(client)) => answered.ok(),
            () = given_up => None,
        };
        let failure = match answered {
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) => self.judge(at, &error),
            None => {
                let url = &self.shared.config.endpoints[at];
                Failure::Unclear(format!("etcd {url} did not answer in time"))
            }
        };
        match &failure {
            Failure::NotSent(_) | Failure::Unclear(_) => self.turn_from(at),
            Failure::LoggedOut(_) => self.log_out(at).await,
            _ => {}
        }
        Err(failure)
    }

    /// Sends a request that changes nothing until it is answered or the time is up.
    pub(super) async fn read<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.read_within(self.shared.config.request_timeout, request)
            .await
    }

    /// Like [`Self::read`]; where there are several endpoints none may take longer than `patience`.
    pub(super) async fn read_within<T, F>(
        &self,
        patience: Duration,
        request: impl Fn(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let shared = &*self.shared;
        let until = Instant::now() + shared.config.request_timeout;
        let patience = match shared.clients.len() {
            1 => self.share(),
            _ => self.share().min(patience),
        };
        let mut failed = 0;
        loop {
            let failure = match self.send(&request, until, patience).await {
                Ok(answer) => return Ok(answer),
                Err(e @ (Failure::NotSent(_) | Failure::Unclear(_) | Failure::LoggedOut(_))) => e,
                Err(e) => return Err(e),
            };
            failed += 1;
            if !self.try_again(failed, until).await {
                return Err(failure);
            }
        }
    }

    /// Sends a request that changes something; again only if it was certainly not received.
    pub(super) async fn change<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let until = Instant::now() + self.shared.config.request_timeout;
        let mut failed = 0;
        loop {
            let patience = self.shared.config.request_timeout;
            let failure = match self.send(&request, until, patience).await {
                Ok(answer) => return Ok(answer),
                Err(e @ (Failure::NotSent(_) | Failure::LoggedOut(_))) => e,
                Err(e) => return Err(e),
            };
            failed += 1;
            if !self.try_again(failed, until).await {
                return Err(failure);
            }
        }
    }

    async fn try_again(&self, failed: usize, until: Instant) -> bool {
        if failed.is_multiple_of(self.shared.clients.len()) {
            tokio::time::sleep(PAUSE).await;
        }
        Instant::now() < until
    }
}

fn judge(url: &str, error: &Error) -> Failure {
    let what = || format!("etcd {url}: {}", innermost(error));
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::InvalidArgs(_) | Error::InvalidUri(_) => return Failure::Refused(what()),
        _ if was_never_connected(error) => return Failure::NotSent(what()),
        _ => return Failure::Unclear(what()),
    };
    let message = status.message();
    match status.code() {
        _ if was_never_connected(status) => Failure::NotSent(what()),
        Code::Unauthenticated => Failure::LoggedOut(what()),
        Code::InvalidArgument if message.contains("invalid auth token") => {
            Failure::LoggedOut(what())
        }
        Code::OutOfRange if message.contains("compacted") => Failure::Compacted,
        Code::OutOfRange | Code::ResourceExhausted if message.contains("message") => {
            Failure::AnswerTooLarge(what())
        }
        Code::ResourceExhausted if message.contains("space exceeded") => Failure::Refused(format!(
            "{}; compact and defragment etcd, then disarm its NOSPACE alarm",
            what()
        )),
        Code::ResourceExhausted => Failure::NotSent(what()),
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::NotFound
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::Unimplemented => Failure::Refused(what()),
        _ => Failure::Unclear(what()),
    }
}

/// The last error of a chain says what happened; those before it say "transport error".
fn innermost(error: &Error) -> String {
    // etcd-client's own error does not lead to the status's sources.
    let mut last: &(dyn std::error::Error + 'static) = match error {
        Error::GRpcStatus(status) if std::error::Error::source(status).is_none() => {
            return status.message().to_owned();
        }
        Error::GRpcStatus(status) => status,
        other => other,
    };
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Whether an error says that there was no connection to send a request on.
fn was_never_connected(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind as Kind;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                Kind::ConnectionRefused
                    | Kind::HostUnreachable
                    | Kind::NetworkUnreachable
                    | Kind::AddrNotAvailable
            )
        {
            return true;
        }
        cause = error.source();
    }
    false
}
