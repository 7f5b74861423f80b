//! A byte rate that background work keeps to.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Bytes a second, with bursts of at most one second's worth. Shared by all compactions of a
/// process.
#[derive(Debug)]
pub struct ByteBudget {
    bytes_per_s: u64,
    /// When the bytes taken so far are paid for.
    paid_at: Mutex<Instant>,
}

impl ByteBudget {
    /// A budget; 0: no limit.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s,
            paid_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes bytes that were read or written, and waits while the rate is exceeded. Always lets
    /// other tasks run in between.
    pub async fn take(&self, bytes: u64) {
        if self.bytes_per_s == 0 {
            tokio::task::yield_now().await;
            return;
        }
        let wait_until = {
            let now = Instant::now();
            let mut paid_at = self.paid_at.lock();
            let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
            *paid_at =
                (*paid_at).max(now.checked_sub(Duration::from_secs(1)).unwrap_or(now)) + cost;
            *paid_at
        };
        tokio::task::yield_now().await;
        tokio::time::sleep_until(wait_until).await;
    }
}
