//! The messages of a `COPY … FROM STDIN`.

use std::fmt::Debug;

use async_trait::async_trait;
use futures::Sink;
use pgwire::api::ClientInfo;
use pgwire::api::copy::CopyHandler;
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyFail};

use super::connection::Connection;
use super::{answer, errors};

fn no_copy() -> PgWireError {
    errors::error("08P01", "copy data without a COPY")
}

#[async_trait]
impl CopyHandler for Connection {
    async fn on_copy_data<C>(&self, _client: &mut C, data: CopyData) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut under_way = self.copy.lock().await;
        let copy = under_way.as_mut().ok_or_else(no_copy)?;
        let pushed = copy.push(&data.data, &self.opened()?.session).await;
        if pushed.is_err() {
            *under_way = None;
        }
        pushed
    }

    async fn on_copy_done<C>(&self, client: &mut C, _done: CopyDone) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut copy = self.copy.lock().await.take().ok_or_else(no_copy)?;
        let rows = copy.finish(&self.opened()?.session).await?;
        answer::complete(client, format!("COPY {rows}")).await
    }

    async fn on_copy_fail<C>(&self, _client: &mut C, fail: CopyFail) -> PgWireError
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        *self.copy.lock().await = None;
        errors::error("57014", format!("COPY from stdin failed: {}", fail.message))
    }
}
