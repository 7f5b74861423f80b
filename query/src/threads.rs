//! The threads that statements are planned and run on: a runtime of their own.
//!
//! A plan may compute for seconds without giving its thread back (a nested-loop join does, and so
//! does planning a long expression). On the threads that serve connections and apply the log, two
//! such statements stop the whole node: no other request, no write, no signal is seen any more.
//! Here they only delay other statements; time limits and cancellation are kept by the caller's
//! side, which waits on its own threads.

use std::task::{Context, Poll};

use arrow_array::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::QueryError;
use crate::error::{Kind, Result};

/// Threads for each part that a statement runs in: so many statements may hold their threads for
/// long before others wait for one.
const THREADS_A_PARTITION: usize = 4;
/// A plan is walked by recursion; the longest chain that the parser lets through fits in a debug
/// build.
const STACK_BYTES: usize = 64 << 20;
/// Batches that wait for the reader of a statement.
const BATCHES_AHEAD: usize = 2;

/// A runtime that runs statements and nothing else.
#[derive(Debug)]
pub(crate) struct StatementThreads {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Drop for StatementThreads {
    fn drop(&mut self) {
        // Waiting for statements is not allowed on an async thread; whoever stops the process
        // has cancelled them before.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl StatementThreads {
    /// Starts them, for statements of `partitions` parts.
    pub(crate) fn start(partitions: usize) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(partitions.max(2) * THREADS_A_PARTITION)
            .thread_name("shoal-statement")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|e| QueryError::new(Kind::IO, format!("threads for statements: {e}")))?;
        Ok(Self {
            runtime: Some(runtime),
        })
    }

    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> AbortOnDropHandle<T> {
        let runtime = self.runtime.as_ref();
        AbortOnDropHandle::new(runtime.expect("taken only by drop").spawn(work))
    }

    /// Runs `work` there. Dropping the returned future ends it at its next pause.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let done = self.spawn(work).await;
        done.unwrap_or_else(|e| Err(QueryError::new(Kind::INTERNAL, died(&e.to_string()))))
    }

    /// Reads `stream` there, a few batches ahead of whoever polls the result. `guard` is kept until
    /// its work has ended.
    pub(crate) fn pump(
        &self,
        mut stream: SendableRecordBatchStream,
        guard: impl Send + 'static,
    ) -> Pumped {
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let task = self.spawn(async move {
            loop {
                let next = stream.next().await;
                let last = !matches!(next, Some(Ok(_)));
                if last {
                    // The guard keeps the statement listed, and counted among the running ones,
                    // until its work has ended; whoever reads the end finds it gone.
                    drop((stream, guard));
                    let _ = sender.send(next).await;
                    return;
                }
                if sender.send(next).await.is_err() {
                    return;
                }
            }
        });
        Pumped {
            receiver,
            _task: task,
        }
    }
}

fn died(why: &str) -> String {
    format!("the statement's task ended: {why}; this is a defect, please report the statement")
}

/// Batches of a statement that runs on its own threads; its work ends when this is dropped.
pub(crate) struct Pumped {
    /// `None` is the end; a closed channel without it is not.
    receiver: mpsc::Receiver<Option<Result<RecordBatch, DataFusionError>>>,
    _task: AbortOnDropHandle<()>,
}

impl Pumped {
    /// As a stream's `poll_next`.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<RecordBatch, DataFusionError>>> {
        self.receiver.poll_recv(cx).map(|next| {
            next.unwrap_or_else(|| {
                let error = QueryError::new(Kind::INTERNAL, died("it panicked"));
                Some(Err(DataFusionError::External(Box::new(error))))
            })
        })
    }
}
