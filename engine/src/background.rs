//! Work that nobody waits for: flushes and compactions.

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::EngineError;

/// How far the threads of background work stand back where others want the processor (`nice`): they
/// get about a third of what a thread gets that serves a request or applies the log. When memory is
/// full, writers wait, and the processor is theirs.
const NICE: i32 = 5;

/// Runs work as a task of its own, which a caller that goes away does not stop.
///
/// # Errors
/// The work's own; [`EngineError::Invalid`] if it panicked.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|e| Err(EngineError::Invalid(format!("background work failed: {e}"))))
}

/// Runs work that computes between its waits on a thread of its own, which stands back behind those
/// that serve requests. Callers bound how many there are.
///
/// # Errors
/// The work's own; [`EngineError::Invalid`] if it panicked or there is no thread for it.
pub(crate) async fn on_own_thread<T, F>(
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<T, EngineError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, EngineError>>,
{
    let failed = |what: &str| EngineError::Invalid(format!("background work failed: {what}"));
    let runtime = Handle::current();
    let (sender, done) = oneshot::channel();
    let thread = std::thread::Builder::new().name("shoal-background".into());
    let started = thread.spawn(move || {
        stand_back();
        // Whoever asked may have gone away.
        let _ = sender.send(runtime.block_on(work()));
    });
    started.map_err(|e| failed(&e.to_string()))?;
    // A thread that panicked has said so.
    done.await.unwrap_or_else(|_| Err(failed("it panicked")))
}

/// Lowers the priority of the calling thread alone: on Linux it is a thread's own.
fn stand_back() {
    #[cfg(target_os = "linux")]
    {
        let this = std::fs::read_link("/proc/thread-self").ok();
        let id = this.and_then(|path| path.file_name()?.to_str()?.parse().ok());
        let thread = id.and_then(rustix::process::Pid::from_raw);
        // Without its own id it would be the whole process.
        let Some(thread) = thread else { return };
        if let Err(error) = rustix::process::setpriority_process(Some(thread), NICE) {
            tracing::debug!(%error, "the priority of a background thread stays as it is");
        }
    }
}
