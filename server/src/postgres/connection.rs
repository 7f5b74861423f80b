//! One client's connection: its session, its transaction books, its cursors, and the way of a
//! statement from text to an outcome.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use datafusion::scalar::ScalarValue;
use futures::StreamExt;
use parking_lot::Mutex;
use pgwire::api::{ConnectionGuard, ConnectionHandle};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::response::TransactionStatus;
use shoal_query::{Output, Prepared, QueryError, Session};
use tokio_util::sync::CancellationToken;

use super::copy::{Copy, CopyIn};
use super::cursor::Cursor;
use super::interrupt::Interrupt;
use super::names::Names;
use super::socket::Socket;
use super::statement::{self, Kind};
use super::{Shared, catalog, errors};

/// Prepared statements and open cursors that one connection may hold.
const NAMES_MAX: usize = 10_000;

/// A connection's state. Only the connection's own task uses it; the locks are never contended.
pub struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) socket: Socket,
    pub(super) stop: CancellationToken,
    pub(super) opened: OnceLock<Opened>,
    pub(super) copy: tokio::sync::Mutex<Option<CopyIn>>,
    cursors: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Cursor>>>>,
    prepared: Mutex<HashSet<String>>,
    session_read_only: AtomicBool,
    transaction_read_only: AtomicBool,
    wrote_in_transaction: AtomicBool,
}

/// What exists once the client was let in.
pub struct Opened {
    pub(super) session: Session,
    pub(super) handle: Arc<ConnectionHandle>,
    pub(super) pid: i32,
    pub(super) _registered: ConnectionGuard,
}

/// What a statement came to.
pub enum Outcome {
    /// Rows to read.
    Rows(Cursor),
    /// Done, with the command tag.
    Done(String),
    /// Done, with the command tag and the transaction status from now on.
    Status(String, TransactionStatus),
    /// Rows of an open cursor to hand out, at most so many.
    Fetch(Arc<tokio::sync::Mutex<Cursor>>, usize),
    /// The client may send rows; the number of columns.
    CopyIn(usize),
    /// Rows to send as copy data.
    CopyOut(Copy, Cursor),
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, socket: Socket, stop: CancellationToken) -> Self {
        Self {
            shared,
            socket,
            stop,
            opened: OnceLock::new(),
            copy: tokio::sync::Mutex::new(None),
            cursors: Mutex::default(),
            prepared: Mutex::default(),
            session_read_only: AtomicBool::new(false),
            transaction_read_only: AtomicBool::new(false),
            wrote_in_transaction: AtomicBool::new(false),
        }
    }

    pub(super) fn opened(&self) -> PgWireResult<&Opened> {
        self.opened
            .get()
            .ok_or_else(|| errors::fatal("08P01", "a statement came before the startup message"))
    }

    /// Makes the coming statement stoppable.
    pub(super) async fn arm(&self) -> PgWireResult<Interrupt> {
        let handle = &self.opened()?.handle;
        Ok(Interrupt::arm(handle, &self.socket, &self.stop).await)
    }

    /// The text that goes to the query layer.
    pub(super) fn engine_text(&self, sql: &str, kind: &Kind) -> PgWireResult<String> {
        let opened = self.opened()?;
        Ok(match kind {
            Kind::Catalog => catalog::rewrite(sql, &opened.session, opened.pid),
            _ => sql.to_owned(),
        })
    }

    /// Runs a statement given as text. `query` is the whole text that it is a part of, from byte
    /// `start`.
    pub(super) async fn run_text(
        &self,
        query: &str,
        start: usize,
        sql: &str,
        status: TransactionStatus,
    ) -> PgWireResult<Outcome> {
        let kind = statement::kind(sql);
        if let Some(outcome) = self.run_own(&kind, sql, status).await? {
            return Ok(outcome);
        }
        self.check_write(sql, status)?;
        let text = self.engine_text(sql, &kind)?;
        let ran = self.opened()?.session.execute(&text, &[]).await;
        self.outcome(ran.map_err(|e| self.failed(e, query, start, &kind)), || {
            Names::of(sql)
        })
    }

    /// Runs a prepared statement.
    pub(super) async fn run_prepared(
        &self,
        sql: &str,
        kind: &Kind,
        prepared: &Prepared,
        names: &Names,
        params: &[ScalarValue],
        status: TransactionStatus,
    ) -> PgWireResult<Outcome> {
        self.check_failed_transaction(kind, status)?;
        self.check_write(sql, status)?;
        let session = &self.opened()?.session;
        let ran = session.execute_prepared(prepared, params).await;
        self.outcome(ran.map_err(|e| self.failed(e, sql, 0, kind)), || {
            names.clone()
        })
    }

    /// A failure of the query layer; a rewritten statement's positions mean nothing to the client.
    pub(super) fn failed(
        &self,
        mut error: QueryError,
        query: &str,
        start: usize,
        kind: &Kind,
    ) -> PgWireError {
        if *kind == Kind::Catalog {
            error.position = None;
        }
        errors::from_query(error, query, start)
    }

    fn outcome(
        &self,
        ran: PgWireResult<Output>,
        names: impl FnOnce() -> Names,
    ) -> PgWireResult<Outcome> {
        Ok(match ran? {
            Output::Rows { schema, stream, .. } => Outcome::Rows(Cursor::new(
                schema,
                names(),
                Box::pin(stream.map(|batch| batch.map_err(QueryError::from))),
            )),
            Output::Affected { tag, .. } => Outcome::Done(tag),
        })
    }

    /// In a failed transaction only its end is taken, as drivers expect.
    fn check_failed_transaction(&self, kind: &Kind, status: TransactionStatus) -> PgWireResult<()> {
        if status == TransactionStatus::Error
            && !matches!(
                kind,
                Kind::Commit | Kind::Rollback | Kind::Savepoint("ROLLBACK")
            )
        {
            return Err(errors::error(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        Ok(())
    }

    fn check_write(&self, sql: &str, status: TransactionStatus) -> PgWireResult<()> {
        if !statement::writes(sql) {
            return Ok(());
        }
        let in_transaction = status != TransactionStatus::Idle;
        if self.session_read_only.load(Ordering::Relaxed)
            || (in_transaction && self.transaction_read_only.load(Ordering::Relaxed))
        {
            return Err(errors::error(
                "25006",
                "cannot change data or tables in a read-only transaction",
            ));
        }
        if in_transaction {
            self.wrote_in_transaction.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether a rollback now would undo nothing of what was written; forgets it.
    pub(super) fn take_wrote(&self) -> bool {
        self.wrote_in_transaction.swap(false, Ordering::Relaxed)
    }

    /// Runs one of the protocol's own statements; `None`: it is none.
    pub(super) async fn run_own(
        &self,
        kind: &Kind,
        sql: &str,
        status: TransactionStatus,
    ) -> PgWireResult<Option<Outcome>> {
        self.check_failed_transaction(kind, status)?;
        let done = |tag: &str| Outcome::Done(tag.to_owned());
        Ok(Some(match kind {
            Kind::Engine | Kind::Catalog => return Ok(None),
            Kind::Begin(tag, read_only) => {
                if status == TransactionStatus::Idle {
                    self.transaction_read_only
                        .store(*read_only, Ordering::Relaxed);
                    self.take_wrote();
                }
                Outcome::Status((*tag).into(), status.to_in_transaction_state())
            }
            Kind::Commit | Kind::Rollback => {
                self.cursors.lock().clear();
                let committed = *kind == Kind::Commit && status != TransactionStatus::Error;
                if committed {
                    self.take_wrote();
                }
                let tag = if committed { "COMMIT" } else { "ROLLBACK" };
                Outcome::Status(tag.into(), TransactionStatus::Idle)
            }
            Kind::Savepoint(tag) => {
                if status == TransactionStatus::Idle {
                    return Err(errors::error(
                        "25P01",
                        format!("{tag} can only be used in transaction blocks"),
                    ));
                }
                // Rolling back to a savepoint ends the failed state.
                Outcome::Status((*tag).into(), TransactionStatus::Transaction)
            }
            Kind::Characteristics(read_only) => {
                if let Some(read_only) = read_only {
                    self.session_read_only.store(*read_only, Ordering::Relaxed);
                }
                done("SET")
            }
            Kind::Transaction(read_only) => {
                if let Some(read_only) = read_only {
                    self.transaction_read_only
                        .store(*read_only, Ordering::Relaxed);
                }
                done("SET")
            }
            Kind::Discard(tag) => {
                self.discard().await?;
                done(tag)
            }
            // The names themselves are the portal store's; see `extended`.
            Kind::Deallocate(None) => done("DEALLOCATE ALL"),
            Kind::Deallocate(Some(_)) => done("DEALLOCATE"),
            Kind::Nothing(tag) => done(tag),
            Kind::Declare(name, start) => {
                let query = sql[*start..].to_owned();
                let inner = statement::kind(&query);
                let text = self.engine_text(&query, &inner)?;
                let ran = self.opened()?.session.execute(&text, &[]).await;
                let ran = ran.map_err(|e| self.failed(e, sql, *start, &inner));
                match self.outcome(ran, || Names::of(&query))? {
                    Outcome::Rows(cursor) => self.open_cursor(name, cursor)?,
                    _ => {
                        return Err(errors::error(
                            "42P11",
                            "a cursor needs a query that gives rows",
                        ));
                    }
                }
                done("DECLARE CURSOR")
            }
            Kind::Fetch(name, count) => {
                let cursor = self.cursor(name).ok_or_else(|| {
                    errors::error("34000", format!("cursor \"{name}\" does not exist"))
                })?;
                Outcome::Fetch(cursor, count.unwrap_or(usize::MAX))
            }
            Kind::Close(None) => {
                self.cursors.lock().clear();
                done("CLOSE CURSOR ALL")
            }
            Kind::Close(Some(name)) => {
                if self.close_cursor(name) {
                    done("CLOSE CURSOR")
                } else {
                    let missing = format!("cursor \"{name}\" does not exist");
                    return Err(errors::error("34000", missing));
                }
            }
            Kind::CopyIn(copy) => self.begin_copy_in(copy, status).await?,
            Kind::CopyOut(copy) => {
                if copy.format == super::copy::Format::Binary {
                    return Err(errors::unsupported("COPY in binary format"));
                }
                let query = copy.query();
                let ran = self.opened()?.session.execute(&query, &[]).await;
                let ran = ran.map_err(|e| errors::from_query(e, "", 0));
                match self.outcome(ran, || Names::of(&query))? {
                    Outcome::Rows(cursor) => Outcome::CopyOut(copy.clone(), cursor),
                    _ => return Err(errors::error("42601", "COPY needs a query that gives rows")),
                }
            }
        }))
    }

    async fn begin_copy_in(&self, copy: &Copy, status: TransactionStatus) -> PgWireResult<Outcome> {
        if copy.format == super::copy::Format::Binary {
            return Err(errors::unsupported("COPY in binary format"));
        }
        self.check_write("copy", status)?;
        // Planned, never run: it tells the columns, or that there is no such table.
        let shape = self
            .opened()?
            .session
            .prepare(&copy.shape_query(), &[])
            .await;
        let shape = shape.map_err(|e| errors::from_query(e, "", 0))?;
        let width = shape.schema.as_ref().map_or(0, |s| s.fields().len());
        *self.copy.lock().await = Some(CopyIn::new(copy.clone(), width));
        Ok(Outcome::CopyIn(width))
    }

    /// `DISCARD ALL`: back to how the session began, as connection poolers ask.
    async fn discard(&self) -> PgWireResult<()> {
        self.cursors.lock().clear();
        self.session_read_only.store(false, Ordering::Relaxed);
        let reset = self.opened()?.session.execute("RESET ALL", &[]).await;
        reset.map_err(|e| errors::from_query(e, "", 0))?;
        Ok(())
    }

    pub(super) fn cursor(&self, name: &str) -> Option<Arc<tokio::sync::Mutex<Cursor>>> {
        self.cursors.lock().get(name).cloned()
    }

    /// Opens a cursor; one of the same name is closed.
    pub(super) fn open_cursor(&self, name: &str, cursor: Cursor) -> PgWireResult<()> {
        let mut cursors = self.cursors.lock();
        if cursors.len() >= NAMES_MAX {
            return Err(errors::error(
                "54000",
                "too many open cursors on this connection",
            ));
        }
        cursors.insert(name.to_owned(), Arc::new(tokio::sync::Mutex::new(cursor)));
        Ok(())
    }

    pub(super) fn close_cursor(&self, name: &str) -> bool {
        self.cursors.lock().remove(name).is_some()
    }

    pub(super) fn close_all_cursors(&self) {
        self.cursors.lock().clear();
    }

    /// Counts a prepared statement's name.
    pub(super) fn note_prepared(&self, name: &str) -> PgWireResult<()> {
        let mut names = self.prepared.lock();
        if names.len() >= NAMES_MAX && !names.contains(name) {
            return Err(errors::error(
                "54000",
                "too many prepared statements on this connection; close some (DEALLOCATE)",
            ));
        }
        names.insert(name.to_owned());
        Ok(())
    }

    pub(super) fn forget_prepared(&self, name: &str) {
        self.prepared.lock().remove(name);
    }

    /// All prepared names, which are forgotten.
    pub(super) fn take_prepared(&self) -> Vec<String> {
        self.prepared.lock().drain().collect()
    }
}
