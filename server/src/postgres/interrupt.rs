//! What may stop a running statement: a cancel request, its time limit, a client that went away,
//! the server's end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use pgwire::api::ConnectionHandle;
use pgwire::error::{PgWireError, PgWireResult};
use shoal_query::Session;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::socket::Socket;
use super::{errors, statement};

/// Armed for one statement; dropping the guarded future is what stops the work.
pub struct Interrupt {
    cancelled: oneshot::Receiver<()>,
    socket: Socket,
    stop: CancellationToken,
    limit: Option<Limit>,
}

/// The end of a statement's time.
struct Limit {
    at: Instant,
    after: Duration,
    writes: bool,
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
            limit: None,
        }
    }

    /// Starts the clock of a statement, by the session's `statement_timeout`. The query layer keeps
    /// the same limit for what it does; this one covers what comes before (reading, rewriting) and
    /// after (a client that does not take its rows) as well.
    pub fn begin(&mut self, session: &Session, sql: &str) {
        self.limit = session.statement_timeout().map(|after| Limit {
            at: Instant::now() + after,
            after,
            writes: statement::writes(sql),
        });
    }

    /// Stops the clock.
    pub fn without_limit(&mut self) {
        self.limit = None;
    }

    /// Runs a part of the statement's work until it ends or is interrupted.
    ///
    /// # Errors
    /// Those of the work; 57014 for a cancel request or the end of the time; an I/O error once the client is gone; 57P01
    /// when the server stops.
    pub async fn guard<T>(
        &mut self,
        work: impl Future<Output = PgWireResult<T>>,
    ) -> PgWireResult<T> {
        let limit = &self.limit;
        let limit = async move {
            match limit {
                Some(limit) => {
                    tokio::time::sleep_until(limit.at).await;
                    limit.error()
                }
                None => std::future::pending().await,
            }
        };
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
            error = limit => Err(error),
            () = self.socket.gone() => Err(PgWireError::IoError(std::io::Error::new(
                std::io::ErrorKind::ConnectionAborted,
                "the client closed the connection while its statement ran",
            ))),
        }
    }
}

impl Limit {
    /// In the words of the query layer, which keeps the same limit.
    fn error(&self) -> PgWireError {
        let unclear = if self.writes {
            "; it may have taken effect"
        } else {
            ""
        };
        let message = format!(
            "the statement ran longer than its limit of {} ms{unclear}",
            self.after.as_millis()
        );
        let mut info = errors::info("ERROR", "57014", message);
        info.hint = Some("narrow it, or SET statement_timeout".into());
        PgWireError::UserError(Box::new(info))
    }
}
