//! What may reach the protocol's decoder.
//!
//! pgwire takes messages of up to 1 GiB from anybody, before the password too, and trusts that a
//! message holds all that its counts announce: it panics over one that ends early. So lengths are
//! bounded here, and the messages that have parts are looked through before they are let in.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::socket::Socket;

/// The longest message before the client was let in, as PostgreSQL has it.
const STARTUP_BYTES_MAX: usize = 10_000;
/// The longest message after that: a statement, a row's parameters, a piece of copy data.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;

/// Requests that come in place of a startup message, by their code.
const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// A client's socket, of which only whole and bounded messages are read.
pub struct Gate {
    socket: Socket,
    checked: Checked,
    heard: Arc<AtomicBool>,
}

impl Gate {
    /// Before the startup message. `heard` is set once the client has sent something.
    pub fn new(socket: Socket, heard: Arc<AtomicBool>) -> Self {
        Self {
            socket,
            checked: Checked::new(),
            heard,
        }
    }

    /// The client was let in: messages may be as long as statements are.
    pub fn open(&mut self) {
        self.checked.limit = MESSAGE_BYTES_MAX;
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            socket,
            checked,
            heard,
        } = &mut *self;
        loop {
            let allowed = checked
                .allowed()
                .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
            if allowed > 0 {
                let count = allowed.min(buf.remaining());
                buf.put_slice(&checked.held[..count]);
                checked.pass(count);
                return Poll::Ready(Ok(()));
            }
            checked.held.reserve(READ_BYTES);
            let read = poll_read_buf(Pin::new(&mut *socket), cx, &mut checked.held);
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(()));
            }
            heard.store(true, Ordering::Relaxed);
        }
    }
}

impl AsyncWrite for Gate {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// Bytes that came, and how many of them may pass.
struct Checked {
    held: BytesMut,
    /// What is left of the message at the front, which was checked.
    passing: usize,
    starting: bool,
    limit: usize,
}

impl Checked {
    fn new() -> Self {
        Self {
            held: BytesMut::new(),
            passing: 0,
            starting: true,
            limit: STARTUP_BYTES_MAX,
        }
    }

    /// How many bytes at the front may pass; 0: more are needed to tell.
    fn allowed(&mut self) -> Result<usize, String> {
        if self.passing == 0 {
            self.passing = if self.starting {
                self.startup()?
            } else {
                self.message()?
            };
        }
        Ok(self.passing.min(self.held.len()))
    }

    fn pass(&mut self, count: usize) {
        self.held.advance(count);
        self.passing -= count;
    }

    /// The length of the startup message at the front, once it is whole.
    fn startup(&mut self) -> Result<usize, String> {
        let Some(mut head) = self.held.get(..8) else {
            return Ok(0);
        };
        let (length, code) = (head.get_u32() as usize, head.get_u32());
        let least = match code {
            CANCEL => 16,
            _ => 8,
        };
        if length < least || length > STARTUP_BYTES_MAX {
            return Err(format!("a startup message cannot have {length} bytes"));
        }
        if self.held.len() < length {
            return Ok(0);
        }
        // After these two the client begins anew.
        self.starting = matches!(code, TLS | GSS);
        Ok(length)
    }

    /// The length of the message at the front, if it may pass.
    fn message(&self) -> Result<usize, String> {
        let Some(mut head) = self.held.get(..5) else {
            return Ok(0);
        };
        let (kind, length) = (head.get_u8(), head.get_u32() as usize);
        if length < 4 || length > self.limit {
            return Err(format!(
                "a message {:?} of {length} bytes is not taken; {} are allowed",
                char::from(kind),
                self.limit
            ));
        }
        let whole = length + 1;
        let check: fn(&mut Body) -> Option<()> = match kind {
            b'P' => parse,
            b'Q' => query,
            b'B' => bind,
            b'D' | b'C' => named,
            b'E' => execute,
            // No parts, or one text, which is all that is left.
            _ => return Ok(whole),
        };
        let Some(bytes) = self.held.get(5..whole) else {
            return Ok(0);
        };
        let mut body = Body(bytes);
        match check(&mut body) {
            Some(()) if body.0.is_empty() => Ok(whole),
            _ => Err(format!("a message {:?} is malformed", char::from(kind))),
        }
    }
}

/// A message's body as far as it was not read; `None` where it ends early.
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    fn text(&mut self) -> Option<()> {
        let end = memchr::memchr(0, self.0)?;
        // The decoder would put U+FFFD for what is no UTF-8, and it would be stored.
        std::str::from_utf8(&self.0[..end]).ok()?;
        self.skip(end + 1)
    }

    fn count(&mut self) -> Option<usize> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(usize::from(u16::from_be_bytes(*bytes)))
    }

    /// A value with its length before it; -1: NULL.
    fn value(&mut self) -> Option<()> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        match i32::from_be_bytes(*bytes) {
            -1 => Some(()),
            length => self.skip(usize::try_from(length).ok()?),
        }
    }
}

fn query(body: &mut Body) -> Option<()> {
    body.text()
}

fn parse(body: &mut Body) -> Option<()> {
    body.text()?;
    body.text()?;
    let types = body.count()?;
    body.skip(4 * types)
}

fn bind(body: &mut Body) -> Option<()> {
    body.text()?;
    body.text()?;
    let formats = body.count()?;
    body.skip(2 * formats)?;
    for _ in 0..body.count()? {
        body.value()?;
    }
    let formats = body.count()?;
    body.skip(2 * formats)
}

fn named(body: &mut Body) -> Option<()> {
    body.skip(1)?;
    body.text()
}

fn execute(body: &mut Body) -> Option<()> {
    body.text()?;
    body.skip(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        out.extend_from_slice(body);
        out
    }

    fn started() -> Checked {
        Checked {
            starting: false,
            limit: 1_000,
            ..Checked::new()
        }
    }

    #[test]
    fn whole_messages_pass_however_they_are_cut() {
        let mut text = Vec::new();
        text.extend_from_slice(&8_u32.to_be_bytes());
        text.extend_from_slice(&TLS.to_be_bytes());
        text.extend_from_slice(&15_u32.to_be_bytes());
        text.extend_from_slice(b"\x00\x03\x00\x00user\0\0\0");
        text.extend(message(b'P', b"s\0SELECT $1\0\x00\x01\x00\x00\x00\x19"));
        text.extend(message(
            b'B',
            b"\0s\0\x00\x01\x00\x01\x00\x02\xff\xff\xff\xff\x00\x00\x00\x02ab\x00\x00",
        ));
        text.extend(message(b'D', b"Ss\0"));
        text.extend(message(b'E', b"\0\x00\x00\x00\x05"));
        text.extend(message(b'S', b""));
        text.extend(message(b'Q', b"SELECT 1\0"));
        for piece in [1, 3, text.len()] {
            let (mut checked, mut passed) = (Checked::new(), Vec::new());
            for bytes in text.chunks(piece) {
                checked.held.extend_from_slice(bytes);
                loop {
                    let allowed = checked.allowed().expect("well-formed");
                    if allowed == 0 {
                        break;
                    }
                    passed.extend_from_slice(&checked.held[..allowed]);
                    checked.pass(allowed);
                }
            }
            assert_eq!(passed, text, "in pieces of {piece}");
        }
    }

    #[test]
    fn messages_that_end_early_or_never_are_refused() {
        let refused = |mut checked: Checked, bytes: &[u8]| {
            checked.held.extend_from_slice(bytes);
            checked.allowed().is_err()
        };
        for (kind, body) in [
            (b'P', &b"s\0SELECT 1\0"[..]),
            (b'P', b"s\0SELECT 1\0\x00\x02\x00\x00\x00\x19"),
            (b'P', b"s\0SELECT 1\0\x00\x00\x00"),
            (b'B', b"\0s\0\xff\xff"),
            (b'B', b"\0s\0\x00\x00\x00\x01\x00\x00\x00\x09ab\x00\x00"),
            (b'B', b"\0s\0\x00\x00\x00\x01\xff\xff\xff\xfe\x00\x00"),
            (b'D', b""),
            (b'C', b"Sno end"),
            (b'E', b"\0\x00"),
        ] {
            assert!(refused(started(), &message(kind, body)), "{body:?}");
        }
        assert!(refused(started(), b"Q\x00\x00\x00\x03"));
        assert!(refused(started(), b"Q\xff\xff\xff\xff"));
        assert!(refused(started(), b"Q\x00\x00\x10\x00"));
        // A TLS hello without asking, a cancel request without its key.
        assert!(refused(Checked::new(), b"\x16\x03\x01\x02\x00\x01\x00\x01"));
        let mut cancel = 8_u32.to_be_bytes().to_vec();
        cancel.extend_from_slice(&CANCEL.to_be_bytes());
        assert!(refused(Checked::new(), &cancel));
        // What needs the password first is short.
        let mut waiting = Checked::new();
        waiting.starting = false;
        assert!(refused(waiting, b"Q\x00\x01\x00\x00"));
    }
}
