//! A listener that holds a bounded number of connections. Where all places are taken, a connection
//! that has sent no whole request head yet is closed in favour of the newcomer; where all have,
//! newcomers wait, most of them in the listen queue of the operating system.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::starting::{Place, Starting};

/// How long a client may take to send the head of its first request.
const FIRST_HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Accepts while fewer than the most allowed connections are open.
pub struct BoundedListener {
    inner: TcpListener,
    permits: Arc<Semaphore>,
    starting: Arc<Starting>,
    open: Gauge,
}

impl BoundedListener {
    /// Bounds a listener; `open` shows how many connections there are.
    pub fn new(inner: TcpListener, connections_max: usize, open: Gauge) -> Self {
        Self {
            inner,
            permits: Arc::new(Semaphore::new(connections_max)),
            starting: Starting::new(connections_max),
            open,
        }
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return permit;
        }
        self.starting.close_one();
        Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }
}

impl axum::serve::Listener for BoundedListener {
    type Io = CountedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (inner, address) = axum::serve::Listener::accept(&mut self.inner).await;
        let permit = self.permit().await;
        // Answers are written in one piece: waiting for more only delays them.
        if let Err(error) = inner.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        self.open.inc();
        let stream = CountedStream {
            inner,
            open: self.open.clone(),
            first: Some(FirstHead::new(self.starting.enter())),
            _permit: permit,
        };
        (stream, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection that gives its place back when it is closed.
pub struct CountedStream {
    inner: TcpStream,
    open: Gauge,
    /// Until the head of the first request has come.
    first: Option<FirstHead>,
    _permit: OwnedSemaphorePermit,
}

/// What a connection is to be closed by until the head of its first request has come.
struct FirstHead {
    heard: Arc<AtomicBool>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Pin<Box<Sleep>>,
    ending: HeadEnd,
    _place: Place,
}

impl FirstHead {
    fn new(place: Place) -> Self {
        Self {
            heard: place.heard(),
            closed: Box::pin(place.closed().clone().cancelled_owned()),
            deadline: Box::pin(tokio::time::sleep(FIRST_HEAD_TIMEOUT)),
            ending: HeadEnd::default(),
            _place: place,
        }
    }

    fn has_to_go(&mut self, cx: &mut Context<'_>) -> bool {
        self.closed.as_mut().poll(cx).is_ready() || self.deadline.as_mut().poll(cx).is_ready()
    }
}

/// Looks for the empty line that ends a head, however it is cut into reads.
#[derive(Default)]
struct HeadEnd {
    /// Something else than line ends has come; a client may send some of those first.
    began: bool,
    /// Line feeds that stand at the end with nothing but carriage returns between them.
    line_feeds: u8,
}

impl HeadEnd {
    fn found_in(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            match byte {
                b'\n' => self.line_feeds += u8::from(self.began),
                b'\r' => {}
                _ => (self.began, self.line_feeds) = (true, 0),
            }
            if self.line_feeds == 2 {
                return true;
            }
        }
        false
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { inner, first, .. } = &mut *self;
        let Some(starting) = first else {
            return Pin::new(inner).poll_read(cx, buf);
        };
        let before = buf.filled().len();
        let read = Pin::new(inner).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        if starting.ending.found_in(new) {
            *first = None;
            return read;
        }
        if !new.is_empty() {
            starting.heard.store(true, Ordering::Relaxed);
        }
        if starting.has_to_go(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_an_empty_line_however_it_is_cut() {
        let text = b"\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\nbody";
        for size in 1..text.len() {
            let mut end = HeadEnd::default();
            assert!(text.chunks(size).any(|part| end.found_in(part)), "{size}");
        }
        let mut end = HeadEnd::default();
        assert!(!end.found_in(b"GET / HTTP/1.1\r\nHost: x\r\n\r"));
        assert!(end.found_in(b"\n"));
    }
}
