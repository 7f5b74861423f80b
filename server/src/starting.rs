//! Connections that have not shown yet what they want.
//!
//! They cost their client nothing, so they must not keep others out: they have a pool of their own,
//! and where there is no room in it, or none on the listener, one of them is closed in favour of
//! the newcomer, the oldest that has sent nothing, else the oldest. A client that means it says so
//! within a round trip and leaves the pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The pool.
#[derive(Debug)]
pub struct Starting {
    most: usize,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    next: u64,
    /// In the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    heard: Arc<AtomicBool>,
    closed: CancellationToken,
}

impl Starting {
    /// A pool of at most so many.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            pool: Mutex::default(),
        })
    }

    /// Takes a new connection in; if that is one too many, another has to go.
    pub fn enter(self: &Arc<Self>) -> Place {
        let heard = Arc::new(AtomicBool::new(false));
        let closed = CancellationToken::new();
        let mut pool = self.pool.lock();
        if pool.waiting.len() >= self.most {
            pool.close_one();
        }
        let id = pool.next;
        pool.next += 1;
        let waiting = Waiting {
            heard: Arc::clone(&heard),
            closed: closed.clone(),
        };
        pool.waiting.insert(id, waiting);
        Place {
            of: Arc::clone(self),
            id,
            heard,
            closed,
        }
    }

    /// Has one connection closed; `false`: there is none in the pool.
    pub fn close_one(&self) -> bool {
        self.pool.lock().close_one()
    }

    /// How many there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.pool.lock().waiting.len()
    }
}

impl Pool {
    fn close_one(&mut self) -> bool {
        let silent = |waiting: &Waiting| !waiting.heard.load(Ordering::Relaxed);
        let oldest = self
            .waiting
            .iter()
            .find(|(_, waiting)| silent(waiting))
            .or_else(|| self.waiting.iter().next())
            .map(|(id, _)| *id);
        let Some(closed) = oldest.and_then(|id| self.waiting.remove(&id)) else {
            return false;
        };
        closed.closed.cancel();
        true
    }
}

/// A connection's place in the pool, until it is dropped.
#[derive(Debug)]
pub struct Place {
    of: Arc<Starting>,
    id: u64,
    heard: Arc<AtomicBool>,
    closed: CancellationToken,
}

impl Place {
    /// To be set once the client has sent something.
    #[must_use]
    pub fn heard(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.heard)
    }

    /// Cancelled when the connection has to go.
    #[must_use]
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.pool.lock().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_has_said_nothing_goes_first() {
        let pool = Starting::new(3);
        let places: Vec<Place> = (0..3).map(|_| pool.enter()).collect();
        places[0].heard().store(true, Ordering::Relaxed);
        let gone = |places: &[Place]| -> Vec<bool> {
            places.iter().map(|p| p.closed().is_cancelled()).collect()
        };
        let fourth = pool.enter();
        assert_eq!(gone(&places), [false, true, false]);
        assert!(pool.close_one());
        assert_eq!(gone(&places), [false, true, true]);
        fourth.heard().store(true, Ordering::Relaxed);
        assert!(pool.close_one());
        assert_eq!(gone(&places), [true, true, true]);
        assert!(!fourth.closed().is_cancelled());
        assert_eq!(pool.len(), 1);
        drop(fourth);
        assert!(!pool.close_one());
        let one = pool.enter();
        drop(one);
        assert_eq!(pool.len(), 0);
    }
}
