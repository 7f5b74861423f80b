//! The simple query protocol: a text of one or more statements, answered in order.
//!
//! PostgreSQL runs such a text as one transaction; here each statement takes effect by itself, and
//! the first that fails ends the text.

use std::fmt::Debug;

use async_trait::async_trait;
use futures::{Sink, SinkExt};
use pgwire::api::portal::Format;
use pgwire::api::query::{SimpleQueryHandler, send_ready_for_query};
use pgwire::api::results::Response;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, PgWireConnectionState};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::EmptyQueryResponse;
use pgwire::messages::simplequery::Query;

use super::connection::{Connection, CopyUnderWay, Outcome, Plain};
use super::copy_in::CopyIn;
use super::interrupt::Interrupt;
use super::statement::{self, Kind};
use super::{answer, errors, lexer, rows};

/// Tells the client that nothing is undone.
const ROLLBACK_WARNING: &str =
    "statements commit one by one: what this transaction wrote stays written";

#[async_trait]
impl SimpleQueryHandler for Connection {
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if !matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            return Err(PgWireError::NotReadyForQuery);
        }
        client.set_state(PgWireConnectionState::QueryInProgress);
        let query = query.query;
        let statements = lexer::statements(&query);
        if statements.is_empty() {
            let empty = PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new());
            client.feed(empty).await?;
        }
        let mut interrupt = self.arm().await?;
        let last = statements.len().saturating_sub(1);
        for (i, range) in statements.into_iter().enumerate() {
            let copying = self
                .answer_one(client, &query, range.start, &query[range], &mut interrupt)
                .await?;
            if let Some(copy) = copying {
                if i != last {
                    return Err(errors::unsupported(
                        "a statement after COPY … FROM STDIN in the same text",
                    ));
                }
                self.await_copy(client, copy, interrupt).await?;
                client.set_state(PgWireConnectionState::CopyInProgress(false));
                return Ok(());
            }
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let status = client.transaction_status();
        send_ready_for_query(client, status).await
    }

    async fn do_query<C>(&self, _: &mut C, _: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        // `on_query` answers everything itself.
        Err(PgWireError::NotReadyForQuery)
    }
}

impl Connection {
    /// Answers one statement, unless it waits for copy data: that it gives back.
    async fn answer_one<C>(
        &self,
        client: &mut C,
        query: &str,
        start: usize,
        sql: &str,
        interrupt: &mut Interrupt,
    ) -> PgWireResult<Option<Box<CopyIn>>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let status = client.transaction_status();
        let session = &self.opened()?.session;
        interrupt.begin(session, sql);
        let kind = statement::kind(sql);
        let outcome = interrupt
            .guard(self.run_text(query, start, sql, &kind, status))
            .await?;
        match outcome {
            Outcome::Rows(mut cursor) => {
                let fields = rows::fields(cursor.schema(), &Format::UnifiedText, cursor.names())?;
                answer::describe(client, &fields).await?;
                let sent =
                    answer::rows(client, &mut cursor, &fields, usize::MAX, interrupt).await?;
                answer::complete(client, tag(sql, sent)).await?;
            }
            Outcome::Fetch(cursor, limit) => {
                let mut cursor = cursor.lock().await;
                let fields = rows::fields(cursor.schema(), &Format::UnifiedText, cursor.names())?;
                answer::describe(client, &fields).await?;
                let sent = answer::rows(client, &mut cursor, &fields, limit, interrupt).await?;
                answer::complete(client, format!("FETCH {sent}")).await?;
            }
            Outcome::Plain(plain) => {
                return self
                    .answer_plain(client, sql, &kind, plain, interrupt)
                    .await;
            }
        }
        Ok(None)
    }

    /// Answers an outcome that both protocols answer alike; a copy that waits for data is given
    /// back.
    pub(super) async fn answer_plain<C>(
        &self,
        client: &mut C,
        sql: &str,
        kind: &Kind,
        outcome: Plain,
        interrupt: &mut Interrupt,
    ) -> PgWireResult<Option<Box<CopyIn>>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match outcome {
            Plain::Done(tag) => {
                self.forget_names(client.portal_store(), kind);
                answer::report(client, sql, &self.opened()?.session).await?;
                answer::complete(client, tag).await?;
            }
            Plain::Status(tag, status) => {
                if tag == "ROLLBACK" && self.take_wrote() {
                    answer::warn(client, "01000", ROLLBACK_WARNING).await?;
                }
                client.set_transaction_status(status);
                answer::complete(client, tag).await?;
            }
            Plain::CopyIn(copy) => return Ok(Some(copy)),
            Plain::CopyOut(copied) => {
                let (copy, cursor) = *copied;
                answer::copy_out(client, &copy, cursor, interrupt).await?;
            }
        }
        Ok(None)
    }

    /// Lets the client send copy data.
    pub(super) async fn await_copy<C: answer::Client>(
        &self,
        client: &mut C,
        copy: Box<CopyIn>,
        mut interrupt: Interrupt,
    ) -> PgWireResult<()>
    where
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        answer::begin_copy_in(client, copy.width()).await?;
        // How long it takes is the client's affair; each write has its own limit.
        interrupt.without_limit();
        *self.copy.lock().await = Some(CopyUnderWay { copy, interrupt });
        Ok(())
    }

    /// Drops prepared statements that `DEALLOCATE` or `DISCARD ALL` named.
    fn forget_names<P: PortalStore>(&self, store: &P, kind: &Kind) {
        match kind {
            Kind::Deallocate(Some(name)) => {
                self.forget_prepared(name);
                store.rm_statement(name);
            }
            Kind::Deallocate(None) | Kind::Discard(_) => {
                for name in self.take_prepared() {
                    store.rm_statement(&name);
                }
            }
            _ => {}
        }
    }
}

/// The command tag of a statement that gave rows.
pub(super) fn tag(sql: &str, rows: usize) -> String {
    match statement::row_tag(sql) {
        (word, true) => format!("{word} {rows}"),
        (word, false) => word,
    }
}
