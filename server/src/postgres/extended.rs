//! The extended query protocol: prepared statements, bound values, portals read in parts.
//!
//! A portal's rows are a cursor of the connection under the portal's name, so that they are
//! streamed (pgwire's own portals gather them) and can be stopped while they are.

use std::fmt::Debug;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use async_trait::async_trait;
use datafusion::scalar::ScalarValue;
use futures::{Sink, SinkExt};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::ExtendedQueryHandler;
use pgwire::api::results::{FieldInfo, Response};
use pgwire::api::stmt::{QueryParser, StoredStatement};
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, PgWireConnectionState, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::data::{NoData, ParameterDescription};
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Describe, Execute, Parse, ParseComplete,
    PortalSuspended, Sync as PgSync, TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{EmptyQueryResponse, ReadyForQuery, TransactionStatus};
use shoal_query::{Names, Prepared};

use super::connection::{self, Connection, Outcome};
use super::copy_in::CopyIn;
use super::interrupt::Interrupt;
use super::statement::{self, Kind};
use super::{answer, errors, lexer, parameters, rows, simple};

/// A statement that was parsed once.
#[derive(Clone)]
pub struct Statement {
    sql: Arc<str>,
    kind: Kind,
    /// The plan, for statements of the query layer.
    prepared: Option<Prepared>,
    /// Columns of the result; `None`: no rows.
    schema: Option<SchemaRef>,
    names: Arc<Names>,
}

/// Prepares statements in a connection's session.
pub struct Parser(Arc<Connection>);

#[async_trait]
impl QueryParser for Parser {
    type Statement = Statement;

    async fn parse_sql<C>(
        &self,
        _client: &C,
        sql: &str,
        types: &[Option<Type>],
    ) -> PgWireResult<Option<Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let connection = &self.0;
        let range = match lexer::statements(sql).as_slice() {
            [] => return Ok(None),
            [one] => one.clone(),
            _ => {
                return Err(errors::error(
                    "42601",
                    "cannot insert multiple commands into a prepared statement",
                ));
            }
        };
        let text = &sql[range.clone()];
        let kind = statement::kind(text);
        let (prepared, schema, names) = match &kind {
            Kind::Engine | Kind::Catalog => {
                let hints: Vec<_> = types
                    .iter()
                    .map(|t| t.as_ref().and_then(parameters::arrow_type))
                    .collect();
                let engine_text = connection.engine_text(text, &kind).await?;
                let session = &connection.opened()?.session;
                let prepared = session
                    .prepare(&engine_text, &hints)
                    .await
                    .map_err(|e| connection.failed(e, sql, range.start, &kind))?;
                let schema = prepared.schema.clone();
                (Some(prepared), schema, connection::names(text, &kind))
            }
            Kind::Fetch(name, _) => match connection.cursor(name) {
                Some(cursor) => {
                    let cursor = cursor.lock().await;
                    (None, Some(cursor.schema().clone()), cursor.names().clone())
                }
                None => {
                    let missing = format!("cursor \"{name}\" does not exist");
                    return Err(errors::error("34000", missing));
                }
            },
            _ => (None, None, Names::default()),
        };
        Ok(Some(Statement {
            sql: text.into(),
            kind,
            prepared,
            schema,
            names: Arc::new(names),
        }))
    }

    fn get_parameter_types(&self, statement: &Statement) -> PgWireResult<Vec<Type>> {
        match &statement.prepared {
            Some(prepared) => prepared.parameter_types.iter().map(rows::type_of).collect(),
            None => Ok(Vec::new()),
        }
    }

    fn get_result_schema(
        &self,
        statement: &Statement,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        match &statement.schema {
            Some(schema) => {
                let format = format.unwrap_or(&Format::UnifiedText);
                Ok(rows::fields(schema, format, &statement.names)?.to_vec())
            }
            None => Ok(Vec::new()),
        }
    }
}

/// The values of a portal as the plan wants them.
fn values(portal: &Portal<Statement>) -> PgWireResult<Vec<ScalarValue>> {
    let Some(prepared) = &portal.statement.statement.prepared else {
        return Ok(Vec::new());
    };
    let wanted = &prepared.parameter_types;
    portal
        .parameters
        .iter()
        .zip(wanted)
        .enumerate()
        .map(|(i, (value, wanted))| {
            let declared = portal
                .statement
                .parameter_types
                .get(i)
                .and_then(Option::as_ref);
            let binary = portal.parameter_format.is_binary(i);
            parameters::decode(i, value.as_deref(), binary, declared, wanted)
        })
        .collect()
}

/// Extended-protocol half of a connection.
pub struct Extended(pub Arc<Connection>);

#[async_trait]
impl ExtendedQueryHandler for Extended {
    type Statement = Statement;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::new(Parser(Arc::clone(&self.0)))
    }

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        self.0.note_prepared(name, &message.query)?;
        let mut interrupt = self.0.arm().await?;
        interrupt.begin(&self.0.opened()?.session, "");
        let parsed = {
            let parser = self.query_parser();
            let client = &*client;
            interrupt
                .guard(StoredStatement::parse(client, &message, parser))
                .await?
        };
        match parsed {
            Some(statement) => client.portal_store().put_statement(Arc::new(statement)),
            None => client.portal_store().put_empty_statement(name),
        }
        let complete = PgWireBackendMessage::ParseComplete(ParseComplete::new());
        client.feed(complete).await?;
        Ok(())
    }

    async fn on_bind<C>(&self, client: &mut C, message: Bind) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statement_name = message.statement_name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal_name = message.portal_name.as_deref().unwrap_or(DEFAULT_NAME);
        self.0.forget_portal(portal_name);
        let values = message.parameters.iter().flatten();
        let bytes = values.map(bytes::Bytes::len).sum();
        self.0.note_portal(portal_name, bytes)?;
        match client.portal_store().get_statement(statement_name) {
            Some(Entry::Value(statement)) => {
                check_bind(&message, &statement.statement)?;
                let portal = Portal::try_new(&message, statement)?;
                client.portal_store().put_portal(Arc::new(portal));
            }
            Some(Entry::Empty) => client.portal_store().put_empty_portal(portal_name),
            None => return Err(PgWireError::StatementNotFound(statement_name.to_owned())),
        }
        client
            .feed(PgWireBackendMessage::BindComplete(BindComplete::new()))
            .await?;
        Ok(())
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if !matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            return Err(PgWireError::NotReadyForQuery);
        }
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let limit = usize::try_from(message.max_rows).unwrap_or(0);
        let limit = if limit == 0 { usize::MAX } else { limit };
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                let empty = PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new());
                client.feed(empty).await?;
                return Ok(());
            }
            None => return Err(PgWireError::PortalNotFound(name.to_owned())),
        };
        client.set_state(PgWireConnectionState::QueryInProgress);
        let mut interrupt = self.0.arm().await?;
        let copying = self
            .execute(client, name, &portal, limit, &mut interrupt)
            .await?;
        let state = match copying {
            Some(copy) => {
                self.0.await_copy(client, copy, interrupt).await?;
                PgWireConnectionState::CopyInProgress(true)
            }
            None => PgWireConnectionState::ReadyForQuery,
        };
        client.set_state(state);
        Ok(())
    }

    async fn on_describe<C>(&self, client: &mut C, message: Describe) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        // A cursor of DECLARE is a portal too, which psycopg describes before it fetches.
        if message.target_type == TARGET_TYPE_BYTE_PORTAL
            && client.portal_store().get_portal(name).is_none()
            && let Some(cursor) = self.0.cursor(name)
        {
            let cursor = cursor.lock().await;
            let fields = rows::fields(cursor.schema(), &Format::UnifiedText, cursor.names())?;
            return answer::describe(client, &fields).await;
        }
        // pgwire says "rows of no columns" of a statement with parameters but without rows; the
        // JDBC driver takes that for a result where it expects none.
        if message.target_type == TARGET_TYPE_BYTE_STATEMENT
            && let Some(Entry::Value(stored)) = client.portal_store().get_statement(name)
        {
            let described = self.do_describe_statement(client, &stored).await?;
            if described.fields.is_empty() {
                let oids = described.parameters.iter().map(Type::oid).collect();
                let parameters = ParameterDescription::new(oids);
                client
                    .send(PgWireBackendMessage::ParameterDescription(parameters))
                    .await?;
                client
                    .send(PgWireBackendMessage::NoData(NoData::new()))
                    .await?;
                return Ok(());
            }
        }
        self._on_describe(client, message).await
    }

    async fn on_sync<C>(&self, client: &mut C, _message: PgSync) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let status = client.transaction_status();
        // Outside a transaction a Sync ends the implicit one, and portals end with it.
        if status == TransactionStatus::Idle {
            self.0.forget_all_portals();
            client.portal_store().clear_portals();
        }
        client
            .send(PgWireBackendMessage::ReadyForQuery(ReadyForQuery::new(
                status,
            )))
            .await?;
        Ok(())
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => {
                self.0.forget_prepared(name);
                client.portal_store().rm_statement(name);
            }
            TARGET_TYPE_BYTE_PORTAL => {
                self.0.forget_portal(name);
                client.portal_store().rm_portal(name);
            }
            _ => {}
        }
        client
            .feed(PgWireBackendMessage::CloseComplete(CloseComplete::new()))
            .await?;
        Ok(())
    }

    async fn do_query<C>(
        &self,
        _: &mut C,
        _: &Portal<Statement>,
        _: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        // `on_execute` answers everything itself.
        Err(PgWireError::NotReadyForQuery)
    }
}

impl Extended {
    /// Runs a portal, or goes on with it; a copy that waits for data is given back.
    async fn execute<C>(
        &self,
        client: &mut C,
        name: &str,
        portal: &Portal<Statement>,
        limit: usize,
        interrupt: &mut Interrupt,
    ) -> PgWireResult<Option<Box<CopyIn>>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let connection = &self.0;
        let statement = &portal.statement.statement;
        let status = client.transaction_status();
        interrupt.begin(&connection.opened()?.session, &statement.sql);
        let outcome = match (connection.cursor(name), &statement.prepared) {
            (Some(open), _) => Outcome::Fetch(open, limit),
            (None, Some(prepared)) => {
                let values = values(portal)?;
                interrupt
                    .guard(connection.run_prepared(
                        &statement.sql,
                        &statement.kind,
                        prepared,
                        &statement.names,
                        &values,
                        status,
                    ))
                    .await?
            }
            (None, None) => interrupt
                .guard(connection.run_own(&statement.kind, &statement.sql, status))
                .await?
                .ok_or(PgWireError::NotReadyForQuery)?,
        };
        match outcome {
            Outcome::Rows(cursor) => {
                connection.open_cursor(name, cursor)?;
                let open = connection
                    .cursor(name)
                    .ok_or_else(|| PgWireError::PortalNotFound(name.to_owned()))?;
                self.send_rows(client, portal, &open, limit, None, interrupt)
                    .await?;
            }
            Outcome::Fetch(open, most) => {
                let fetch = matches!(statement.kind, Kind::Fetch(..)).then_some("FETCH");
                self.send_rows(client, portal, &open, most.min(limit), fetch, interrupt)
                    .await?;
            }
            Outcome::Plain(plain) => {
                let (sql, kind) = (&statement.sql, &statement.kind);
                return connection
                    .answer_plain(client, sql, kind, plain, interrupt)
                    .await;
            }
        }
        Ok(None)
    }

    /// Sends rows in the portal's formats, then how it ended: `fetch` is SQL's `FETCH`, complete
    /// after each part; a portal is suspended instead while rows may be left.
    async fn send_rows<C>(
        &self,
        client: &mut C,
        portal: &Portal<Statement>,
        open: &Arc<tokio::sync::Mutex<super::cursor::Cursor>>,
        limit: usize,
        fetch: Option<&str>,
        interrupt: &mut Interrupt,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut cursor = open.lock().await;
        let format = &portal.result_column_format;
        let fields = rows::fields(cursor.schema(), format, cursor.names())?;
        let sent = answer::rows(client, &mut cursor, &fields, limit, interrupt).await?;
        match fetch {
            Some(word) => answer::complete(client, format!("{word} {sent}")).await,
            None if sent == limit && !cursor.is_done() => {
                client
                    .feed(PgWireBackendMessage::PortalSuspended(PortalSuspended::new()))
                    .await?;
                Ok(())
            }
            None => {
                answer::complete(client, simple::tag(&portal.statement.statement.sql, sent)).await
            }
        }
    }
}

/// Refuses a Bind whose counts do not fit its statement; pgwire would index out of bounds later.
fn check_bind(bind: &Bind, statement: &Statement) -> PgWireResult<()> {
    let wants = statement
        .prepared
        .as_ref()
        .map_or(0, |p| p.parameter_types.len());
    let has = bind.parameters.len();
    if has != wants {
        return Err(errors::error(
            "08P01",
            format!("bind message supplies {has} parameters, but the statement requires {wants}"),
        ));
    }
    let formats = bind.parameter_format_codes.len();
    if formats > 1 && formats != has {
        return Err(errors::error(
            "08P01",
            format!("bind message has {formats} parameter formats but {has} parameters"),
        ));
    }
    let columns = statement.schema.as_ref().map_or(0, |s| s.fields().len());
    let formats = bind.result_column_format_codes.len();
    if formats > 1 && formats != columns {
        return Err(errors::error(
            "08P01",
            format!(
                "bind message has {formats} result formats but the statement has {columns} columns"
            ),
        ));
    }
    Ok(())
}
