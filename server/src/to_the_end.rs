//! Work that is done although the one who asked for it goes away.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;

/// Work that panicked; the panic was said where it happened.
#[derive(Debug)]
pub struct Panicked;

/// Does `work` here; if this future is dropped before it is done, a task of its own does the rest. So
/// a caller that stays, as nearly all do, costs no task.
///
/// # Errors
/// It panicked.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Panicked> {
    let work = AssertUnwindSafe(work).catch_unwind();
    let mut rest = Rest(Some(work.map(|done| done.map_err(|_| Panicked)).boxed()));
    let done = poll_fn(|cx| match &mut rest.0 {
        Some(work) => work.as_mut().poll(cx),
        None => std::task::Poll::Pending,
    })
    .await;
    rest.0 = None;
    done
}

struct Rest<T: Send + 'static>(Option<BoxFuture<'static, T>>);

impl<T: Send + 'static> Drop for Rest<T> {
    fn drop(&mut self) {
        if let Some(work) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_is_done_whether_or_not_somebody_waits() {
        assert!(matches!(to_the_end(async { 7 }).await, Ok(7)));
        let (done, was_done) = oneshot::channel();
        let work = async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = done.send(());
        };
        let gone = tokio::time::timeout(Duration::from_millis(1), to_the_end(work));
        assert!(gone.await.is_err());
        was_done.await.expect("a task has done the rest");
    }

    #[tokio::test]
    async fn a_panic_ends_nothing_else() {
        let failed = to_the_end(async { panic!("on purpose") });
        assert!(failed.await.is_err());
    }
}
