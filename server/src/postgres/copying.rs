//! The messages of a `COPY … FROM STDIN`.

use std::fmt::Debug;

use async_trait::async_trait;
use futures::Sink;
use pgwire::api::ClientInfo;
use pgwire::api::copy::CopyHandler;
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyFail};

use super::connection::{Connection, CopyUnderWay};
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
        let CopyUnderWay { copy, interrupt } = under_way.as_mut().ok_or_else(no_copy)?;
        let pushed = interrupt.guard(copy.push(&data.data)).await;
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
        let under_way = self.copy.lock().await.take();
        let CopyUnderWay {
            mut copy,
            mut interrupt,
        } = under_way.ok_or_else(no_copy)?;
        let rows = interrupt.guard(copy.finish()).await?;
        answer::complete(client, format!("COPY {rows}")).await
    }

    async fn on_copy_fail<C>(&self, _client: &mut C, fail: CopyFail) -> PgWireError
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let stored = match self.copy.lock().await.take() {
            Some(mut under_way) => under_way.copy.abandon().await,
            None => 0,
        };
        let kept = match stored {
            0 => String::new(),
            rows => format!(" ({rows} rows before it were stored)"),
        };
        let message = format!("COPY from stdin failed: {}{kept}", fail.message);
        errors::error("57014", message)
    }
}
