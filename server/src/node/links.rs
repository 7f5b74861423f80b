//! Connections to other nodes, and one call over one of them.
//!
//! A connection is made before it is used, so that "nobody there" is told apart from "no answer":
//! only the first is certain to have had no effect. HTTP/2 pings notice a node that stands still.

use std::collections::HashMap;
use std::time::Duration;

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

use super::beats::BEATS;
use super::service::MESSAGE_BYTES_MAX;
use super::wire::{Answer, Ask, CLUSTER, Failure, Ticket, WriteHead, decode, encode};

/// How often a connection under way is tried with a ping, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_secs(2);

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
        })
    }

    async fn connect(&self, address: &str) -> Result<Channel, CallError> {
        let not_sent = |why: String| CallError::NotSent {
            address: address.to_owned(),
            why,
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
        self.channels.lock().remove(address);
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
            | tonic::Code::ResourceExhausted => CallError::NotSent { address, why },
            _ => CallError::NoAnswer { address, why },
        }
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
        let mut client = self.client(address).await?;
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
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            tables: write.parts.iter().map(|p| p.tables.clone()).collect(),
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

    /// Fetches a view.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn view(
        &self,
        address: &str,
        ticket: &Ticket,
    ) -> Result<Result<EncodedView, Failure>, CallError> {
        let mut client = self.client(address).await?;
        let ticket = FlightTicket {
            ticket: encode(ticket),
        };
        let call = async {
            let mut messages = client.do_get(self.request(ticket)).await?.into_inner();
            let first = messages.message().await?;
            let first = first.ok_or_else(|| Status::internal("an empty answer"))?;
            let head: Result<ViewHead, Failure> = decode(&first.app_metadata, "a view")?;
            let head = match head {
                Ok(head) => head,
                Err(failure) => return Ok(Err(failure)),
            };
            let mut bodies = Vec::new();
            while let Some(message) = messages.message().await? {
                bodies.push(message.data_body);
            }
            Ok(Ok(EncodedView { head, bodies }))
        };
        call.await
            .map_err(|status: Status| self.failed(address, &status))
    }
}
