//! Connections to other nodes, and one call over one of them.
//!
//! A connection is made before it is used, so that "nobody there" is told apart from "no answer":
//! only the first is certain to have had no effect. HTTP/2 pings notice a node that stands still.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightData, Ticket as FlightTicket};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use shoal_engine::{EncodedView, ShardCommit, ShardWrite, ViewHead, WriteError};
use shoal_scheduler::Beat;
use shoal_types::ShardId;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::wire::{
    Answer, Ask, BEATS, CLUSTER, Failure, MESSAGE_BYTES_MAX, PartHead, Ticket, WriteHead, decode,
    encode,
};

/// How often a connection under way is tried with a ping, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Addresses that were not called for so long are forgotten.
const USED_MEMORY: Duration = Duration::from_secs(60);

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The node was certainly not told.
    #[error("node at {address} cannot be reached: {why}")]
    NotSent {
        /// `host:port`.
        address: String,
        /// Why.
        why: String,
        /// It is there, and does not let this process in.
        locked_out: bool,
    },
    /// It may have been told.
    #[error("node at {address} did not answer: {why}")]
    NoAnswer {
        /// `host:port`.
        address: String,
        /// Why.
        why: String,
    },
}

/// Connections, made when they are needed and kept.
#[derive(Debug)]
pub struct Links {
    cluster_id: MetadataValue<Ascii>,
    authorization: Option<MetadataValue<Ascii>>,
    connect_timeout: Duration,
    channels: Mutex<HashMap<String, Channel>>,
    /// When each address was called last.
    used: Mutex<HashMap<String, Instant>>,
}

impl Links {
    /// No connections yet.
    ///
    /// # Errors
    /// The token or the cluster's id cannot stand in a header.
    pub fn new(
        cluster_id: &str,
        token: Option<&str>,
        connect_timeout: Duration,
    ) -> Result<Self, String> {
        let header = |text: &str| MetadataValue::try_from(text).map_err(|e| e.to_string());
        Ok(Self {
            cluster_id: header(cluster_id)?,
            authorization: token
                .map(|token| {
                    let mut value = header(&format!("Bearer {token}"))?;
                    value.set_sensitive(true);
                    Ok::<_, String>(value)
                })
                .transpose()?,
            connect_timeout,
            channels: Mutex::default(),
            used: Mutex::default(),
        })
    }

    async fn connect(&self, address: &str) -> Result<Channel, CallError> {
        let not_sent = |why: String| CallError::NotSent {
            address: address.to_owned(),
            why,
            locked_out: false,
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| not_sent(e.to_string()))?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY);
        let connected = endpoint.connect().await;
        connected.map_err(|e| not_sent(crate::chain::chain(&e)))
    }

    async fn client(&self, address: &str) -> Result<FlightServiceClient<Channel>, CallError> {
        self.note_use(address);
        self.kept(address).await
    }

    fn note_use(&self, address: &str) {
        let mut used = self.used.lock();
        if let Some(last) = used.get_mut(address) {
            *last = Instant::now();
            return;
        }
        used.retain(|_, last| last.elapsed() < USED_MEMORY);
        used.insert(address.to_owned(), Instant::now());
    }

    /// Whether a node was called within this time.
    #[must_use]
    pub fn was_used(&self, address: &str, within: Duration) -> bool {
        let used = self.used.lock();
        used.get(address)
            .is_some_and(|last| last.elapsed() < within)
    }

    /// Drops a connection: the next call makes a new one.
    pub fn forget(&self, address: &str) {
        self.channels.lock().remove(address);
    }

    /// The kept connection to an address.
    async fn kept(&self, address: &str) -> Result<FlightServiceClient<Channel>, CallError> {
        let known = self.channels.lock().get(address).cloned();
        let channel = match known {
            Some(channel) => channel,
            None => {
                let channel = self.connect(address).await?;
                let mut channels = self.channels.lock();
                channels
                    .entry(address.to_owned())
                    .or_insert(channel)
                    .clone()
            }
        };
        Ok(FlightServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(CLUSTER, self.cluster_id.clone());
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        request
    }

    /// What a status means; the connection is made anew by the next call, in case it is broken.
    fn failed(&self, address: &str, status: &Status) -> CallError {
        self.forget(address);
        let why = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        let address = address.to_owned();
        match status.code() {
            // The service says so before it does anything.
            tonic::Code::Unauthenticated
            | tonic::Code::PermissionDenied
            | tonic::Code::Unimplemented
            | tonic::Code::InvalidArgument
            | tonic::Code::ResourceExhausted => CallError::NotSent {
                address,
                why,
                locked_out: matches!(
                    status.code(),
                    tonic::Code::Unauthenticated | tonic::Code::PermissionDenied
                ),
            },
            _ => CallError::NoAnswer { address, why },
        }
    }

    /// Connects, if that was not done: until then nothing was sent.
    ///
    /// # Errors
    /// [`CallError::NotSent`].
    pub async fn ready(&self, address: &str) -> Result<(), CallError> {
        self.client(address).await.map(drop)
    }

    /// Asks a question.
    ///
    /// # Errors
    /// [`CallError`]; the node's own failure is inside the answer.
    pub async fn ask(
        &self,
        address: &str,
        ask: &Ask,
    ) -> Result<Result<Answer, Failure>, CallError> {
        self.note_use(address);
        self.ping(address, ask).await
    }

    /// As [`Self::ask`], and is no use of the connection for [`Self::was_used`].
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ping(
        &self,
        address: &str,
        ask: &Ask,
    ) -> Result<Result<Answer, Failure>, CallError> {
        let mut client = self.kept(address).await?;
        let action = Action {
            r#type: Ask::NAME.to_owned(),
            body: encode(ask),
        };
        let call = async {
            let mut results = client.do_action(self.request(action)).await?.into_inner();
            let first = results.message().await?;
            let first = first.ok_or_else(|| Status::internal("an empty answer"))?;
            decode(&first.body, "an answer")
        };
        call.await.map_err(|status| self.failed(address, &status))
    }

    /// Listens to a node's beats, over a connection of its own: beats behind a large view would come
    /// late.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn beats(
        &self,
        address: &str,
    ) -> Result<impl Stream<Item = Result<Beat, Status>> + Send + use<>, CallError> {
        let mut client = FlightServiceClient::new(self.connect(address).await?);
        let action = Action {
            r#type: BEATS.to_owned(),
            body: Bytes::new(),
        };
        let call = client.do_action(self.request(action)).await;
        let beats = call.map_err(|status| self.failed(address, &status))?;
        let beats = beats.into_inner();
        Ok(beats.map(|beat| decode::<Beat>(&beat?.body, "a beat")))
    }

    /// Writes records.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn write(
        &self,
        address: &str,
        shard: ShardId,
        write: &ShardWrite,
        patience: Duration,
    ) -> Result<Result<ShardCommit, WriteError>, CallError> {
        let mut client = self.client(address).await?;
        let head = WriteHead {
            shard,
            write_id: write.write_id,
            import: write.import,
            read_at: write.read_at,
            owns: write.owns.clone(),
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            parts: write.parts.iter().map(PartHead::of).collect(),
        };
        let first = FlightData {
            app_metadata: encode(&head),
            ..FlightData::default()
        };
        let rows: Vec<Bytes> = write.parts.iter().map(|p| p.body.clone()).collect();
        let rows = rows.into_iter().map(|body| FlightData {
            data_body: body,
            ..FlightData::default()
        });
        let messages = stream::iter(std::iter::once(first).chain(rows));
        let call = async {
            let mut results = client.do_put(self.request(messages)).await?.into_inner();
            let first = results.message().await?;
            let first = first.ok_or_else(|| Status::internal("an empty answer"))?;
            decode(&first.app_metadata, "an answer")
        };
        call.await.map_err(|status| self.failed(address, &status))
    }

    /// Fetches views.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn views(
        &self,
        address: &str,
        ticket: &Ticket,
    ) -> Result<Result<Vec<EncodedView>, Failure>, CallError> {
        let mut client = self.client(address).await?;
        let ticket = FlightTicket {
            ticket: encode(ticket),
        };
        let call = async {
            let mut messages = client.do_get(self.request(ticket)).await?.into_inner();
            let first = messages.message().await?;
            let first = first.ok_or_else(|| Status::internal("an empty answer"))?;
            let heads: Result<Vec<ViewHead>, Failure> = decode(&first.app_metadata, "views")?;
            let heads = match heads {
                Ok(heads) => heads,
                Err(failure) => return Ok(Err(failure)),
            };
            let mut views = Vec::with_capacity(heads.len());
            for head in heads {
                let mut bodies = Vec::new();
                for _ in 0..head.bodies() {
                    let body = messages.message().await?;
                    let body = body.ok_or_else(|| Status::data_loss("rows are missing"))?;
                    bodies.push(body.data_body);
                }
                views.push(EncodedView { head, bodies });
            }
            Ok(Ok(views))
        };
        call.await
            .map_err(|status: Status| self.failed(address, &status))
    }
}
