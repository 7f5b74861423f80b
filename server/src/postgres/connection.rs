//! One client's connection: its session, its transaction books, its cursors, and the way of a
//! statement from text to an outcome.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use datafusion::scalar::ScalarValue;
use futures::StreamExt;
use parking_lot::Mutex;
use pgwire::api::{ConnectionGuard, ConnectionHandle};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::response::TransactionStatus;
use shoal_query::{Names, Output, Prepared, QueryError, Session};
use tokio_util::sync::CancellationToken;

use super::copy::Copy;
use super::copy_in::CopyIn;
use super::cursor::Cursor;
use super::interrupt::Interrupt;
use super::socket::Socket;
use super::statement::{self, Kind};
use super::{Admitted, Shared, catalog, errors};

/// Longer statements are rewritten on a thread of their own, so that their time limit is kept and
/// other connections go on.
const REWRITTEN_INLINE_BYTES: usize = 8 << 10;
/// Prepared statements and open cursors that one connection may hold.
const NAMES_MAX: usize = 10_000;
/// Bytes of their texts, and as many of the values of portals.
const NAMED_BYTES_MAX: usize = 64 << 20;

/// A connection's state. Only the connection's own task uses it; the locks are never contended.
pub struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) socket: Socket,
    pub(super) stop: CancellationToken,
    pub(super) opened: OnceLock<Opened>,
    pub(super) copy: tokio::sync::Mutex<Option<CopyUnderWay>>,
    cursors: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Cursor>>>>,
    prepared: Mutex<Named>,
    portals: Mutex<Named>,
    session_read_only: AtomicBool,
    transaction_read_only: AtomicBool,
    wrote_in_transaction: AtomicBool,
}

/// A `COPY … FROM STDIN` whose data is coming, and what may stop it.
pub(super) struct CopyUnderWay {
    pub(super) copy: Box<CopyIn>,
    pub(super) interrupt: Interrupt,
}

/// What exists once the client was let in.
pub struct Opened {
    pub(super) session: Session,
    pub(super) handle: Arc<ConnectionHandle>,
    pub(super) pid: i32,
    pub(super) _registered: ConnectionGuard,
    pub(super) _admitted: Admitted,
}

/// Names of columns that the query layer cannot know: it is given the rewritten text.
pub fn names(sql: &str, kind: &Kind) -> Names {
    match kind {
        Kind::Catalog => Names::of(sql),
        _ => Names::default(),
    }
}

/// What a statement came to.
pub enum Outcome {
    /// Rows to read.
    Rows(Cursor),
    /// Rows of an open cursor to hand out, at most so many.
    Fetch(Arc<tokio::sync::Mutex<Cursor>>, usize),
    /// Something that both protocols answer alike.
    Plain(Plain),
}

/// An outcome without rows in the protocol's own form.
pub enum Plain {
    /// Done, with the command tag.
    Done(String),
    /// Done, with the command tag and the transaction status from now on.
    Status(String, TransactionStatus),
    /// The client may send rows.
    CopyIn(Box<CopyIn>),
    /// Rows to send as copy data.
    CopyOut(Box<(Copy, Cursor)>),
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
            portals: Mutex::default(),
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
    pub(super) async fn engine_text(&self, sql: &str, kind: &Kind) -> PgWireResult<String> {
        let opened = self.opened()?;
        if *kind != Kind::Catalog {
            return Ok(sql.to_owned());
        }
        if sql.len() <= REWRITTEN_INLINE_BYTES {
            return Ok(catalog::rewrite(sql, &opened.session, opened.pid));
        }
        let (sql, session, pid) = (sql.to_owned(), opened.session.clone(), opened.pid);
        tokio::task::spawn_blocking(move || catalog::rewrite(&sql, &session, pid))
            .await
            .map_err(|e| errors::error("XX000", format!("the rewriting broke off: {e}")))
    }

    /// Runs a statement given as text. `query` is the whole text that it is a part of, from byte
    /// `start`.
    pub(super) async fn run_text(
        &self,
        query: &str,
        start: usize,
        sql: &str,
        kind: &Kind,
        status: TransactionStatus,
    ) -> PgWireResult<Outcome> {
        if let Some(outcome) = self.run_own(kind, sql, status).await? {
            return Ok(outcome);
        }
        self.check_write(sql, status)?;
        let ran = self.execute(sql, kind).await?;
        self.outcome(ran.map_err(|e| self.failed(e, query, start, kind)), || {
            names(sql, kind)
        })
    }

    /// Hands a statement to the query layer, rewritten if it looks into `pg_catalog`.
    async fn execute(&self, sql: &str, kind: &Kind) -> PgWireResult<Result<Output, QueryError>> {
        let text = self.engine_text(sql, kind).await?;
        Ok(self.opened()?.session.execute(&text, &[]).await)
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
        self.begin_statement(kind, status)?;
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
            Output::Affected { tag, .. } => Outcome::Plain(Plain::Done(tag)),
        })
    }

    /// In a failed transaction only its end is taken, as drivers expect. Outside of one SET LOCAL
    /// holds for no other statement.
    fn begin_statement(&self, kind: &Kind, status: TransactionStatus) -> PgWireResult<()> {
        if status == TransactionStatus::Idle {
            self.opened()?.session.end_transaction();
        }
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
        self.begin_statement(kind, status)?;
        let done = |tag: &str| Outcome::Plain(Plain::Done(tag.to_owned()));
        let now = |tag: &str, status| Outcome::Plain(Plain::Status(tag.to_owned(), status));
        Ok(Some(match kind {
            Kind::Engine | Kind::Catalog => return Ok(None),
            Kind::Begin(tag, read_only) => {
                if status == TransactionStatus::Idle {
                    self.transaction_read_only
                        .store(*read_only, Ordering::Relaxed);
                    self.take_wrote();
                }
                now(tag, status.to_in_transaction_state())
            }
            Kind::Commit | Kind::Rollback => {
                self.cursors.lock().clear();
                self.opened()?.session.end_transaction();
                let committed = *kind == Kind::Commit && status != TransactionStatus::Error;
                if committed {
                    self.take_wrote();
                }
                let tag = if committed { "COMMIT" } else { "ROLLBACK" };
                now(tag, TransactionStatus::Idle)
            }
            Kind::Savepoint(tag) => {
                if status == TransactionStatus::Idle {
                    return Err(errors::error(
                        "25P01",
                        format!("{tag} can only be used in transaction blocks"),
                    ));
                }
                // Rolling back to a savepoint ends the failed state.
                now(tag, TransactionStatus::Transaction)
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
            // Those of PREPARE are the session's.
            Kind::Deallocate(name) => {
                let ran = self.opened()?.session.execute(sql, &[]).await;
                ran.map_err(|e| errors::from_query(e, "", 0))?;
                match name {
                    None => done("DEALLOCATE ALL"),
                    Some(_) => done("DEALLOCATE"),
                }
            }
            Kind::Nothing(tag) => done(tag),
            Kind::Declare(name, start) => {
                let query = sql[*start..].to_owned();
                let inner = statement::kind(&query);
                let ran = self.execute(&query, &inner).await?;
                let ran = ran.map_err(|e| self.failed(e, sql, *start, &inner));
                match self.outcome(ran, || names(&query, &inner))? {
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
            Kind::CopyIn(copy) => {
                self.check_write("copy", status)?;
                let copy = CopyIn::begin(copy, &self.opened()?.session).await?;
                Outcome::Plain(Plain::CopyIn(Box::new(copy)))
            }
            Kind::CopyOut(copy) => {
                if let Some(refused) = &copy.refused {
                    return Err(refused.error());
                }
                let query = copy.query();
                let ran = self.opened()?.session.execute(&query, &[]).await;
                let ran = ran.map_err(|e| errors::from_query(e, "", 0));
                match self.outcome(ran, Names::default)? {
                    Outcome::Rows(cursor) => {
                        Outcome::Plain(Plain::CopyOut(Box::new((copy.clone(), cursor))))
                    }
                    _ => return Err(errors::error("42601", "COPY needs a query that gives rows")),
                }
            }
        }))
    }

    /// `DISCARD ALL`: back to how the session began, as connection poolers ask.
    async fn discard(&self) -> PgWireResult<()> {
        self.cursors.lock().clear();
        self.session_read_only.store(false, Ordering::Relaxed);
        let reset = self.opened()?.session.execute("DISCARD ALL", &[]).await;
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

    /// Counts a prepared statement.
    pub(super) fn note_prepared(&self, name: &str, sql: &str) -> PgWireResult<()> {
        if self.prepared.lock().hold(name, sql.len()) {
            return Ok(());
        }
        Err(errors::error(
            "54000",
            "too many prepared statements on this connection; close some (DEALLOCATE)",
        ))
    }

    pub(super) fn forget_prepared(&self, name: &str) {
        self.prepared.lock().release(name);
    }

    /// All prepared names, which are forgotten.
    pub(super) fn take_prepared(&self) -> Vec<String> {
        let all = std::mem::take(&mut *self.prepared.lock());
        all.sizes.into_keys().collect()
    }

    /// Counts a portal with its values.
    pub(super) fn note_portal(&self, name: &str, bytes: usize) -> PgWireResult<()> {
        if self.portals.lock().hold(name, bytes) {
            return Ok(());
        }
        Err(errors::error(
            "54000",
            "too many open portals on this connection; close some, or send Sync",
        ))
    }

    pub(super) fn forget_portal(&self, name: &str) {
        self.close_cursor(name);
        self.portals.lock().release(name);
    }

    pub(super) fn forget_all_portals(&self) {
        self.cursors.lock().clear();
        *self.portals.lock() = Named::default();
    }
}

/// What a client had kept under names, with the bytes of each.
#[derive(Default)]
struct Named {
    sizes: HashMap<String, usize>,
    bytes: usize,
}

impl Named {
    /// Notes one, in place of an earlier one of its name; `false`: there is no room.
    fn hold(&mut self, name: &str, bytes: usize) -> bool {
        self.release(name);
        if self.sizes.len() >= NAMES_MAX || self.bytes + bytes > NAMED_BYTES_MAX {
            return false;
        }
        self.sizes.insert(name.to_owned(), bytes);
        self.bytes += bytes;
        true
    }

    fn release(&mut self, name: &str) {
        self.bytes -= self.sizes.remove(name).unwrap_or(0);
    }
}
