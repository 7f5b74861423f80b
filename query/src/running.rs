//! The statements that are running: listed in `system.queries`, cancelled by id, ended by their
//! time limit. A statement counts as running until its last row was read or its stream dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ahash::AHashMap;
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use futures::Stream;
use parking_lot::Mutex;
use shoal_types::{Clock, SystemClock, TimestampMs};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::error::Kind;
use crate::threads::{Pumped, StatementThreads};
use crate::{QueryError, QueryStats};

/// Names a running statement; never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryId(pub u64);

/// A statement as `system.queries` shows it.
#[derive(Clone, Debug)]
pub struct RunningStatement {
    /// Its id, for [`crate::QueryEngine::cancel`].
    pub id: QueryId,
    /// Who asked.
    pub user: String,
    /// The schema it looks names up in.
    pub schema: String,
    /// Its text, cut at 4 KiB.
    pub sql: String,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_ms: TimestampMs,
    /// What it read and returned so far.
    pub stats: Arc<QueryStats>,
}

/// Longest text kept of a statement, in bytes.
const SQL_BYTES_SHOWN: usize = 4096;

/// All running statements.
#[derive(Debug, Default)]
pub(crate) struct Running {
    next: AtomicU64,
    statements: Mutex<AHashMap<QueryId, (RunningStatement, CancellationToken)>>,
}

impl Running {
    /// Lists a new statement; it is unlisted when the guard is dropped.
    pub(crate) fn begin(
        self: &Arc<Self>,
        user: &str,
        schema: &str,
        sql: &str,
        timeout: Option<Duration>,
    ) -> StatementGuard {
        let id = QueryId(self.next.fetch_add(1, Ordering::Relaxed) + 1);
        let stats = Arc::new(QueryStats::default());
        let cancel = CancellationToken::new();
        let mut end = sql.len().min(SQL_BYTES_SHOWN);
        while !sql.is_char_boundary(end) {
            end -= 1;
        }
        let statement = RunningStatement {
            id,
            user: user.to_owned(),
            schema: schema.to_owned(),
            sql: sql[..end].to_owned(),
            started_ms: SystemClock.now_ms(),
            stats: Arc::clone(&stats),
        };
        self.statements
            .lock()
            .insert(id, (statement, cancel.clone()));
        StatementGuard {
            id,
            running: Arc::clone(self),
            cancel,
            began: Instant::now(),
            deadline: timeout.map(|limit| (Instant::now() + limit, limit)),
            stats,
            permit: None,
        }
    }

    /// All of them, oldest first.
    pub(crate) fn list(&self) -> Vec<RunningStatement> {
        let mut all: Vec<_> = self
            .statements
            .lock()
            .values()
            .map(|(statement, _)| statement.clone())
            .collect();
        all.sort_by_key(|statement| statement.id);
        all
    }

    /// Cancels one; `false`: it is not running.
    pub(crate) fn cancel(&self, id: QueryId) -> bool {
        match self.statements.lock().get(&id) {
            Some((_, token)) => {
                token.cancel();
                true
            }
            None => false,
        }
    }
}

/// Keeps a statement listed, and knows when it must end.
#[derive(Debug)]
pub(crate) struct StatementGuard {
    id: QueryId,
    running: Arc<Running>,
    cancel: CancellationToken,
    began: Instant,
    deadline: Option<(Instant, Duration)>,
    pub(crate) stats: Arc<QueryStats>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Drop for StatementGuard {
    fn drop(&mut self) {
        self.running.statements.lock().remove(&self.id);
    }
}

impl StatementGuard {
    /// Keeps the right to run for as long as the statement does.
    pub(crate) fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    /// Runs `work`, unless the statement is cancelled or out of time first.
    pub(crate) async fn bound<T>(
        &self,
        work: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, QueryError> {
        let timeout = async {
            match self.deadline {
                Some((at, _)) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(cancelled()),
            () = timeout => Err(self.timed_out()),
            out = work => out,
        }
    }

    /// How long it has run.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// How much time is left; `None`: no limit.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.deadline
            .map(|(at, _)| at.saturating_duration_since(Instant::now()))
    }

    fn timed_out(&self) -> QueryError {
        timed_out(self.deadline.map(|(_, limit)| limit).unwrap_or_default())
    }

    /// Hands the guard to the stream: the statement runs on `threads` until that ends.
    pub(crate) fn wrap(
        self: Arc<Self>,
        stream: SendableRecordBatchStream,
        threads: &StatementThreads,
    ) -> SendableRecordBatchStream {
        Box::pin(GuardedStream {
            schema: stream.schema(),
            cancelled: Box::pin(self.cancel.clone().cancelled_owned()),
            timeout: self
                .deadline
                .map(|(at, _)| Box::pin(tokio::time::sleep_until(at))),
            inner: Some((threads.pump(stream, Arc::clone(&self)), self)),
        })
    }
}

fn cancelled() -> QueryError {
    QueryError::new(Kind::CANCELLED, "the statement was cancelled")
}

fn timed_out(limit: Duration) -> QueryError {
    QueryError::new(
        Kind::TIMEOUT,
        format!(
            "the statement ran longer than its limit of {} ms",
            limit.as_millis()
        ),
    )
    .with_hint("narrow it, or SET statement_timeout")
}

/// Rows of a running statement. Ends with an error when the statement is cancelled or out of
/// time; the plan below is dropped with it at once, so that its work stops.
struct GuardedStream {
    schema: SchemaRef,
    inner: Option<(Pumped, Arc<StatementGuard>)>,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    timeout: Option<Pin<Box<Sleep>>>,
}

impl Stream for GuardedStream {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some((stream, guard)) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let failure = if this.cancelled.as_mut().poll(cx).is_ready() {
            Some(cancelled())
        } else {
            this.timeout
                .as_mut()
                .is_some_and(|timeout| timeout.as_mut().poll(cx).is_ready())
                .then(|| guard.timed_out())
        };
        if let Some(error) = failure {
            this.inner = None;
            return Poll::Ready(Some(Err(DataFusionError::External(Box::new(error)))));
        }
        let next = stream.poll_next(cx);
        match &next {
            Poll::Ready(Some(Ok(batch))) => {
                QueryStats::add(&guard.stats.rows, batch.num_rows() as u64);
            }
            Poll::Ready(Some(Err(_)) | None) => this.inner = None,
            Poll::Pending => {}
        }
        next
    }
}

impl RecordBatchStream for GuardedStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
