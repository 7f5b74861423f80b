//! What may stop a running statement: a cancel request, a client that went away, the server's end.

use std::future::Future;
use std::sync::Arc;

use futures::channel::oneshot;
use pgwire::api::ConnectionHandle;
use pgwire::error::{PgWireError, PgWireResult};
use tokio_util::sync::CancellationToken;

use super::errors;
use super::socket::Socket;

/// Armed for one statement; dropping the guarded future is what stops the work.
pub struct Interrupt {
    cancelled: oneshot::Receiver<()>,
    socket: Socket,
    stop: CancellationToken,
}

impl Interrupt {
    /// Arms it. A cancel request that came before is forgotten, as PostgreSQL forgets it.
    pub async fn arm(
        handle: &Arc<ConnectionHandle>,
        socket: &Socket,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            cancelled: handle.start_query().await,
            socket: socket.clone(),
            stop: stop.clone(),
        }
    }

    /// Runs a part of the statement's work until it ends or is interrupted.
    ///
    /// # Errors
    /// Those of the work; 57014 for a cancel request; an I/O error once the client is gone; 57P01
    /// when the server stops.
    pub async fn guard<T>(
        &mut self,
        work: impl Future<Output = PgWireResult<T>>,
    ) -> PgWireResult<T> {
        tokio::select! {
            // Requests come first: a statement that is always ready must still be stoppable.
            biased;
            _ = &mut self.cancelled => {
                Err(errors::error("57014", "canceling statement due to user request"))
            }
            () = self.stop.cancelled() => Err(errors::fatal(
                "57P01",
                "terminating connection due to administrator command",
            )),
            done = work => done,
            () = self.socket.gone() => Err(PgWireError::IoError(std::io::Error::new(
                std::io::ErrorKind::ConnectionAborted,
                "the client closed the connection while its statement ran",
            ))),
        }
    }
}
