//! Takes in request bodies within bounds: the size of each, and of all that are held at a time.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use futures::StreamExt;
use shoal_types::Retry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::config::{ByteSize, Config};

/// Bytes of a body that cost nothing: a SELECT must get through while writes are pushed back.
/// What they may hold is bounded by `http.connections_max`.
const FREE_BYTES: usize = 64 << 10;
/// The grain in which held bytes are counted.
const GRAIN: usize = 1 << 10;
/// Bodies up to this size are decoded and parsed on the reactor; the hop costs more than they do.
pub const INLINE_BYTES: usize = 64 << 10;

/// The bounds of bodies, shared by all requests.
#[derive(Debug)]
pub struct Intake {
    held: Arc<Semaphore>,
    held_max: usize,
    parsers: Arc<Semaphore>,
    parsers_max: usize,
    body_max: ByteSize,
    decompressed_max: ByteSize,
}

/// A body in memory; its share of the bound is given back when it is dropped.
#[derive(Debug)]
pub struct HeldBody {
    /// The decoded bytes.
    pub bytes: Bytes,
    /// Held for its `Drop`.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Intake {
    /// The bounds of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let held_max = config.http_ingest_bytes_max.usize() / GRAIN;
        let parsers_max = match config.http_parse_tasks_max {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => usize::try_from(n).unwrap_or(1),
        };
        Self {
            held: Arc::new(Semaphore::new(held_max)),
            held_max,
            parsers: Arc::new(Semaphore::new(parsers_max)),
            parsers_max,
            body_max: config.http_body_bytes_max,
            decompressed_max: config.http_decompressed_bytes_max,
        }
    }

    /// `(bytes held, most)` of bodies.
    #[must_use]
    pub fn held_bytes(&self) -> (usize, usize) {
        let free = self.held.available_permits().min(self.held_max);
        ((self.held_max - free) * GRAIN, self.held_max * GRAIN)
    }

    /// `(parsers busy, most)`.
    #[must_use]
    pub fn parsers(&self) -> (usize, usize) {
        let free = self.parsers.available_permits().min(self.parsers_max);
        (self.parsers_max - free, self.parsers_max)
    }

    /// Reads and, if it says `Content-Encoding: gzip`, decodes a body.
    ///
    /// # Errors
    /// 413 over a size limit, 429 when too much is held already, 415 for another encoding, 400
    /// for a broken body.
    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<HeldBody, ApiError> {
        let gzip = match encoding(headers) {
            Ok(gzip) => gzip,
            Err(error) => {
                drain(body).await;
                return Err(error);
            }
        };
        let raw = self.read_raw(headers, body).await?;
        if !gzip {
            return Ok(raw);
        }
        if raw.bytes.len() <= INLINE_BYTES / 8 {
            return self.gunzip(&raw);
        }
        let _parser = self.parser().await?;
        tokio::task::block_in_place(|| self.gunzip(&raw))
    }

    /// Waits for the right to parse; dropped when the parsing is done.
    ///
    /// # Errors
    /// The process is stopping.
    pub async fn parser(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.parsers)
            .acquire_owned()
            .await
            .map_err(|_| ApiError::internal("the server is stopping"))
    }

    async fn read_raw(&self, headers: &HeaderMap, body: Body) -> Result<HeldBody, ApiError> {
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.body_max.0) {
            drain(body).await;
            return Err(self.body_too_large());
        }
        let mut permit = None;
        let announced = announced.map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX));
        if let Err(error) = self.hold(&mut permit, announced) {
            drain(body).await;
            return Err(error);
        }
        let mut bytes = BytesMut::with_capacity(announced);
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| {
                ApiError::new(
                    StatusCode::BAD_REQUEST,
                    "body_incomplete",
                    Retry::Safe,
                    format!("the request body broke off: {e}"),
                )
            })?;
            if (bytes.len() + chunk.len()) as u64 > self.body_max.0 {
                drain(Body::from_stream(stream)).await;
                return Err(self.body_too_large());
            }
            if let Err(error) = self.hold(&mut permit, bytes.len() + chunk.len()) {
                drain(Body::from_stream(stream)).await;
                return Err(error);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(HeldBody {
            bytes: bytes.freeze(),
            _permit: permit,
        })
    }

    fn gunzip(&self, raw: &HeldBody) -> Result<HeldBody, ApiError> {
        let mut permit = None;
        let mut out = Vec::with_capacity(raw.bytes.len().saturating_mul(4).min(1 << 20));
        let mut decoder = MultiGzDecoder::new(&raw.bytes[..]);
        let mut piece = vec![0_u8; 64 << 10];
        loop {
            let n = decoder.read(&mut piece).map_err(|e| {
                ApiError::invalid("bad_gzip", format!("the body is not valid gzip: {e}"))
            })?;
            if n == 0 {
                break;
            }
            if (out.len() + n) as u64 > self.decompressed_max.0 {
                return Err(ApiError::too_large(format!(
                    "the decompressed body exceeds http.decompressed_bytes_max = {}; send smaller batches",
                    self.decompressed_max
                )));
            }
            self.hold(&mut permit, out.len() + n)?;
            out.extend_from_slice(&piece[..n]);
        }
        Ok(HeldBody {
            bytes: out.into(),
            _permit: permit,
        })
    }

    /// Raises what is held for one body to `bytes`.
    fn hold(
        &self,
        permit: &mut Option<OwnedSemaphorePermit>,
        bytes: usize,
    ) -> Result<(), ApiError> {
        let wanted = bytes.saturating_sub(FREE_BYTES).div_ceil(GRAIN);
        let have = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted <= have {
            return Ok(());
        }
        let more = u32::try_from(wanted - have).unwrap_or(u32::MAX);
        let got = Arc::clone(&self.held)
            .try_acquire_many_owned(more)
            .map_err(|_| {
                ApiError::overloaded(format!(
                    "bodies of {} are being taken in already (http.ingest_bytes_max = {}); slow down and send again",
                    ByteSize(self.held_bytes().0 as u64),
                    ByteSize((self.held_max * GRAIN) as u64)
                ))
            })?;
        match permit {
            Some(permit) => permit.merge(got),
            None => *permit = Some(got),
        }
        Ok(())
    }

    fn body_too_large(&self) -> ApiError {
        ApiError::too_large(format!(
            "the body exceeds http.body_bytes_max = {}; send smaller batches",
            self.body_max
        ))
    }
}

/// Whether a body is gzip.
fn encoding(headers: &HeaderMap) -> Result<bool, ApiError> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else {
        return Ok(false);
    };
    match value.to_str().map(|v| v.trim().to_ascii_lowercase()) {
        Ok(v) if v == "gzip" || v == "x-gzip" => Ok(true),
        Ok(v) if v.is_empty() || v == "identity" => Ok(false),
        _ => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            Retry::Never,
            "Content-Encoding must be gzip or identity",
        )),
    }
}

/// How long a refused body is taken in only to be thrown away.
const DRAIN: Duration = Duration::from_secs(10);

/// Throws away the rest of a body that was refused: many clients send all of it before they read
/// the answer, and a closed connection would hide the answer from them. Nothing is kept, so only
/// the time is bounded; a slower client learns of the refusal by a closed connection.
async fn drain(body: Body) {
    let discard = async {
        let mut stream = body.into_data_stream();
        while let Some(Ok(_)) = stream.next().await {}
    };
    if tokio::time::timeout(DRAIN, discard).await.is_err() {
        tracing::debug!("a refused body did not end in time");
    }
}
