//! The PostgreSQL protocol (version 3, as of PostgreSQL 16), on the `pgwire` crate.
//!
//! pgwire decodes and encodes messages and dispatches them; the handlers here keep the rules:
//! statements run in a [`shoal_query::Session`] of the connection, rows are streamed, a statement
//! ends when a cancel request comes or its client goes away. `BEGIN` … `COMMIT` is bookkeeping for
//! drivers: statements commit one by one, and a `ROLLBACK` after writes says so in a warning.
//! There is no TLS: `SSLRequest` is answered with `N`.

mod answer;
mod arrays;
pub mod catalog;
mod column_text;
mod completion;
mod connection;
mod copy;
mod copy_in;
mod copy_options;
mod copying;
mod cursor;
mod definitions;
mod errors;
mod extended;
mod functions;
mod gate;
mod indexes;
mod interrupt;
pub mod lexer;
mod parameters;
mod reg;
mod rewrite;
mod rows;
mod simple;
mod socket;
mod startup;
mod statement;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use pgwire::api::{
    ClientInfo, ConnectionManager, DefaultClient, PgWireConnectionState,
    RandomPidSecretKeyGenerator,
};
use pgwire::error::PgWireError;
use pgwire::messages::response::{GssEncResponse, SslResponse};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage, SslNegotiationMetaMessage};
use pgwire::tokio::server::{PgWireMessageServerCodec, process_error, process_message};
use shoal_query::QueryEngine;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Auth;
use crate::starting::{Place, Starting};
use connection::Connection;
use gate::Gate;
use socket::Socket;

/// Bounds of the listener.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// Connections at a time that were let in; more are refused with SQLSTATE 53300.
    pub connections_max: usize,
    /// Connections at a time that were not let in yet; beyond it the oldest that has sent nothing
    /// is closed.
    pub startup_connections_max: usize,
}

/// How long a client may take to send its startup message and password.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long running statements may go on when the server stops; then they are ended.
const DRAIN: Duration = Duration::from_secs(5);
/// How long a client may take to read an error. One that reads nothing, and so had its statement
/// ended by the time limit, would keep its connection for ever.
const ERROR_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of answer gathered before they are written to the socket.
const WRITE_BUFFER_BYTES: usize = 64 << 10;
/// Pause after a failed accept (out of file descriptors), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections open in this process, for metrics.
static CONNECTIONS_OPEN: AtomicUsize = AtomicUsize::new(0);

/// Those of them that were not let in yet.
static CONNECTIONS_STARTING: AtomicUsize = AtomicUsize::new(0);

/// Connections of this process that were not let in yet, for metrics.
#[must_use]
pub fn connections_starting() -> usize {
    CONNECTIONS_STARTING.load(Ordering::Relaxed)
}

/// Connections open in this process.
#[must_use]
pub fn connections_open() -> usize {
    CONNECTIONS_OPEN.load(Ordering::Relaxed)
}

/// What connections share.
pub(crate) struct Shared {
    engine: Arc<QueryEngine>,
    auth: Arc<Auth>,
    connections: Arc<ConnectionManager>,
    keys: RandomPidSecretKeyGenerator,
    /// Let in. Of this listener alone: its bound is not shared with others of the process.
    open: AtomicUsize,
    connections_max: usize,
    starting: Arc<Starting>,
}

impl Shared {
    /// A place among those who are let in; `None`: all are taken.
    fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let room = |open: usize| (open < self.connections_max).then_some(open + 1);
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        Some(Admitted(Arc::clone(self)))
    }
}

/// A place among those who were let in, until it is dropped.
pub(crate) struct Admitted(Arc<Shared>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves connections until `shutdown`: then no more are taken, idle ones are closed, running
/// statements get five seconds to end.
///
/// `pg_catalog` and its functions are made known to the engine at once, when this is called:
/// sessions made before do not have them.
pub fn serve(
    listener: TcpListener,
    engine: Arc<QueryEngine>,
    auth: Arc<Auth>,
    config: PostgresConfig,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send + 'static {
    if let Err(error) = catalog::register(&engine) {
        // Statements run without it; only clients that look around suffer.
        tracing::error!(%error, "pg_catalog is not available");
    }
    let shared = Arc::new(Shared {
        engine,
        auth,
        connections: Arc::new(ConnectionManager::new()),
        keys: RandomPidSecretKeyGenerator::default(),
        open: AtomicUsize::new(0),
        connections_max: config.connections_max,
        starting: Starting::new(config.startup_connections_max),
    });
    accept(listener, shared, shutdown)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, shutdown: CancellationToken) {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (shared, shutdown, stop) = (shared.clone(), shutdown.clone(), stop.clone());
                tasks.spawn(connect(stream, peer, shared, shutdown, stop));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a PostgreSQL connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        stop.cancel();
        // Ended statements still say so to their clients; one that does not read is left behind.
        let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
    }
}

/// Keeps a count right however what it counts ends.
struct Counted(&'static AtomicUsize);

impl Counted {
    fn one_more(count: &'static AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connect(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
    stop: CancellationToken,
) {
    let counted = Counted::one_more(&CONNECTIONS_OPEN);
    let place = shared.starting.enter();
    if let Err(error) = converse(stream, peer, shared, &shutdown, stop, place).await {
        // A client that went away is no event; what else can fail here is its network.
        tracing::debug!(%peer, %error, "PostgreSQL connection ended");
    }
    drop(counted);
}

type Wire = Framed<Gate, PgWireMessageServerCodec<extended::Statement>>;

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    shutdown: &CancellationToken,
    stop: CancellationToken,
    place: Place,
) -> io::Result<()> {
    let (closed, heard) = (place.closed().clone(), place.heard());
    let mut begins = Some((place, Counted::one_more(&CONNECTIONS_STARTING)));
    stream.set_nodelay(true)?;
    socket::keep_alive(&stream)?;
    let socket = Socket::new(stream);
    let codec = PgWireMessageServerCodec::new(DefaultClient::new(peer, false));
    let mut wire: Wire = Framed::new(Gate::new(socket.clone(), heard), codec);
    wire.set_backpressure_boundary(WRITE_BUFFER_BYTES);
    let startup_timeout = tokio::time::sleep(STARTUP_TIMEOUT);
    tokio::pin!(startup_timeout);
    tokio::select! {
        () = &mut startup_timeout => return Ok(()),
        () = shutdown.cancelled() => return Ok(()),
        () = closed.cancelled() => return Ok(()),
        done = refuse_encryption(&mut wire) => if !done? { return Ok(()) },
    }
    let connection = Arc::new(Connection::new(Arc::clone(&shared), socket, stop));
    let extended = Arc::new(extended::Extended(Arc::clone(&connection)));
    let cancel = startup::cancel_handler(&shared);
    loop {
        let starting = matches!(
            wire.state(),
            PgWireConnectionState::AwaitingStartup
                | PgWireConnectionState::AuthenticationInProgress
        );
        if !starting && begins.take().is_some() {
            wire.get_mut().open();
        }
        let message = tokio::select! {
            message = wire.next() => message,
            () = &mut startup_timeout, if starting => return Ok(()),
            () = closed.cancelled(), if starting => return Ok(()),
            () = shutdown.cancelled() => {
                let end = "terminating connection due to administrator command";
                return goodbye(&mut wire, errors::fatal("57P01", end)).await;
            }
        };
        let message = match message {
            None | Some(Ok(PgWireFrontendMessage::Terminate(_))) => return Ok(()),
            Some(Ok(message)) => message,
            // Broken framing: nothing after it can be understood.
            Some(Err(PgWireError::IoError(error)))
                if error.kind() == io::ErrorKind::InvalidData =>
            {
                return goodbye(&mut wire, errors::fatal("08P01", error.to_string())).await;
            }
            Some(Err(PgWireError::IoError(error))) => return Err(error),
            Some(Err(error)) => return goodbye(&mut wire, error).await,
        };
        let cancelling = matches!(message, PgWireFrontendMessage::CancelRequest(_));
        let wait_for_sync = match wire.state() {
            PgWireConnectionState::CopyInProgress(extended) => extended,
            _ => message.is_extended_query(),
        };
        let processed = process_message(
            message,
            &mut wire,
            connection.clone(),
            connection.clone(),
            extended.clone(),
            connection.clone(),
            cancel.clone(),
        )
        .await;
        match processed {
            Ok(()) if cancelling => return Ok(()),
            Ok(()) => {}
            Err(PgWireError::IoError(error)) => return Err(error),
            Err(error) => {
                let starting = matches!(
                    wire.state(),
                    PgWireConnectionState::AwaitingStartup
                        | PgWireConnectionState::AuthenticationInProgress
                );
                if starting || is_fatal(&error) {
                    return goodbye(&mut wire, error).await;
                }
                let told = process_error(&mut wire, error, wait_for_sync);
                match tokio::time::timeout(ERROR_PATIENCE, told).await {
                    Ok(told) => told?,
                    Err(_) => return Ok(()),
                }
            }
        }
    }
}

/// Answers `SSLRequest` and `GSSENCRequest` with no, as often as they come; `false`: the client
/// left, or speaks TLS at once.
async fn refuse_encryption(wire: &mut Wire) -> io::Result<bool> {
    loop {
        wire.set_state(PgWireConnectionState::AwaitingSslRequest);
        match wire.next().await {
            Some(Ok(PgWireFrontendMessage::SslNegotiation(asked))) => match asked {
                SslNegotiationMetaMessage::PostgresSsl(_) => {
                    let no = PgWireBackendMessage::SslResponse(SslResponse::Refuse);
                    wire.send(no).await?;
                }
                SslNegotiationMetaMessage::PostgresGss(_) => {
                    let no = PgWireBackendMessage::GssEncResponse(GssEncResponse::Refuse);
                    wire.send(no).await?;
                }
                SslNegotiationMetaMessage::None => {
                    wire.set_state(PgWireConnectionState::AwaitingStartup);
                    return Ok(true);
                }
            },
            _ => return Ok(false),
        }
    }
}

/// Errors after which the connection ends.
fn is_fatal(error: &PgWireError) -> bool {
    matches!(error, PgWireError::UserError(info) if info.is_fatal())
}

/// Sends a last error.
async fn goodbye(wire: &mut Wire, error: PgWireError) -> io::Result<()> {
    let mut info: pgwire::error::ErrorInfo = error.into();
    "FATAL".clone_into(&mut info.severity);
    info.severity_nonlocalized = Some("FATAL".into());
    let told = wire.send(PgWireBackendMessage::ErrorResponse(info.into()));
    match tokio::time::timeout(ERROR_PATIENCE, told).await {
        Ok(told) => told,
        Err(_) => Ok(()),
    }
}
