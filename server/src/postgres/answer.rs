//! Outcomes as messages, shared by the simple and the extended protocol.

use std::fmt::Debug;
use std::sync::Arc;

use futures::{Sink, SinkExt};
use pgwire::api::ClientInfo;
use pgwire::api::portal::Format;
use pgwire::api::results::FieldInfo;
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyInResponse, CopyOutResponse};
use pgwire::messages::data::RowDescription;
use pgwire::messages::response::{CommandComplete, NoticeResponse};
use pgwire::messages::startup::ParameterStatus;
use shoal_query::Session;

use super::copy::Copy;
use super::cursor::{Cursor, ROWS_AT_ONCE};
use super::interrupt::Interrupt;
use super::{errors, rows, statement};

/// What handlers need of the connection that messages go to.
pub trait Client: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync {}

impl<C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync> Client for C {}

/// Sends `CommandComplete`.
pub async fn complete<C: Client>(client: &mut C, tag: impl Into<String>) -> PgWireResult<()>
where
    C::Error: Debug,
    PgWireError: From<C::Error>,
{
    let done = CommandComplete::new(tag.into());
    client
        .feed(PgWireBackendMessage::CommandComplete(done))
        .await?;
    Ok(())
}

/// Sends a warning.
pub async fn warn<C: Client>(client: &mut C, sqlstate: &str, message: &str) -> PgWireResult<()>
where
    C::Error: Debug,
    PgWireError: From<C::Error>,
{
    let notice = NoticeResponse::from(errors::info("WARNING", sqlstate, message));
    client
        .feed(PgWireBackendMessage::NoticeResponse(notice))
        .await?;
    Ok(())
}

/// Sends `RowDescription`.
pub async fn describe<C: Client>(client: &mut C, fields: &[FieldInfo]) -> PgWireResult<()>
where
    C::Error: Debug,
    PgWireError: From<C::Error>,
{
    let description = RowDescription::new(fields.iter().map(Into::into).collect());
    client
        .feed(PgWireBackendMessage::RowDescription(description))
        .await?;
    Ok(())
}

/// Tells the client the new value of a setting that a statement changed, if it is a reported one.
pub async fn report<C: Client>(client: &mut C, sql: &str, session: &Session) -> PgWireResult<()>
where
    C::Error: Debug,
    PgWireError: From<C::Error>,
{
    let Some(name) = statement::reported(sql) else {
        return Ok(());
    };
    if let Ok(value) = session.setting(name) {
        let status = ParameterStatus::new(name.to_owned(), value);
        client
            .feed(PgWireBackendMessage::ParameterStatus(status))
            .await?;
    }
    Ok(())
}

/// Sends rows of a cursor, at most `limit`; how many were sent. Whether more may come is the
/// cursor's to say.
pub async fn rows<C: Client>(
    client: &mut C,
    cursor: &mut Cursor,
    fields: &Arc<Vec<FieldInfo>>,
    limit: usize,
    interrupt: &mut Interrupt,
) -> PgWireResult<usize>
where
    C::Error: Debug,
    PgWireError: From<C::Error>,
{
    let mut sent = 0;
    while sent < limit {
        let batch = interrupt.guard(cursor.next(fields, limit - sent)).await?;
        if batch.is_empty() {
            break;
        }
        sent += batch.len();
        // Guarded too: a client that reads nothing must not hold the statement for ever.
        interrupt
            .guard(async {
                for row in batch {
                    client.feed(PgWireBackendMessage::DataRow(row)).await?;
                }
                Ok(())
            })
            .await?;
        tokio::task::consume_budget().await;
    }
    Ok(sent)
}

/// Lets the client send copy data.
pub async fn begin_copy_in<C: Client>(client: &mut C, columns: usize) -> PgWireResult<()>
where
    C::Error: Debug,
    PgWireError: From<C::Error>,
{
    let columns = i16::try_from(columns).unwrap_or(i16::MAX);
    let begin = CopyInResponse::new(0, columns, vec![0; columns as usize]);
    client
        .send(PgWireBackendMessage::CopyInResponse(begin))
        .await?;
    Ok(())
}

/// Sends all rows of a cursor as copy data.
pub async fn copy_out<C: Client>(
    client: &mut C,
    copy: &Copy,
    mut cursor: Cursor,
    interrupt: &mut Interrupt,
) -> PgWireResult<()>
where
    C::Error: Debug,
    PgWireError: From<C::Error>,
{
    let fields = rows::fields(cursor.schema(), &Format::UnifiedText, cursor.names())?;
    let columns = i16::try_from(fields.len()).unwrap_or(i16::MAX);
    let begin = CopyOutResponse::new(0, columns, vec![0; columns as usize]);
    client
        .feed(PgWireBackendMessage::CopyOutResponse(begin))
        .await?;
    if let Some(header) = copy.header_line(fields.iter().map(FieldInfo::name)) {
        let data = CopyData::new(header.into());
        client.feed(PgWireBackendMessage::CopyData(data)).await?;
    }
    let forced = copy.forced(fields.iter().map(FieldInfo::name));
    let mut sent = 0_usize;
    loop {
        let batch = interrupt.guard(cursor.next(&fields, ROWS_AT_ONCE)).await?;
        if batch.is_empty() {
            break;
        }
        sent += batch.len();
        interrupt
            .guard(async {
                for row in batch {
                    let data = CopyData::new(copy.line(&row, forced.as_deref()).into());
                    client.feed(PgWireBackendMessage::CopyData(data)).await?;
                }
                Ok(())
            })
            .await?;
    }
    client
        .feed(PgWireBackendMessage::CopyDone(CopyDone::new()))
        .await?;
    complete(client, format!("COPY {sent}")).await
}
