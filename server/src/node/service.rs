//! What this node answers to other nodes (Arrow Flight; [`super::wire`] has the messages).
//!
//! Answers come from this process alone, so that a request crosses at most one node. Requests wait
//! for a place (`grpc.requests_max`); one that is given up by its sender gives its place back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, Result as ActionResult, SchemaResult,
    Ticket as FlightTicket,
};
use futures::{Stream, StreamExt, stream};
use shoal_engine::{Database, EncodedView, EngineError, RecordPart, ShardWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};
use ulid::Ulid;

use super::beats::Pulse;
use super::orders;
use super::roles::{Repair, Roles};
use super::wire::{
    Answer, Ask, BEATS, CLUSTER, Failure, MESSAGE_BYTES_MAX, Ticket, WriteHead, decode, encode,
};
use crate::auth::Auth;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
pub struct NodeService {
    db: Arc<Database>,
    roles: Arc<Roles>,
    auth: Arc<Auth>,
    cluster_id: String,
    process: Ulid,
    view_bytes_max: u64,
    write_bytes_max: usize,
    requests: Arc<Requests>,
    pulse: Arc<Pulse>,
}

/// Requests of other nodes: how many, at most and now.
#[derive(Debug)]
pub struct Requests {
    places: Arc<Semaphore>,
    places_max: usize,
}

impl Requests {
    /// None under way.
    #[must_use]
    pub fn new(places_max: usize) -> Self {
        let places_max = places_max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(places_max)),
            places_max,
        }
    }

    /// How many are under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.places_max
            .saturating_sub(self.places.available_permits()) as u64
    }
}

/// What a service needs to know.
pub struct ServiceSettings {
    /// This start of the node.
    pub process: Ulid,
    /// Bytes of one view's rows.
    pub view_bytes_max: u64,
    /// Bytes of one request's rows.
    pub write_bytes_max: usize,
}

impl NodeService {
    /// The service of one node, as a server takes it.
    pub fn server(
        db: Arc<Database>,
        roles: Arc<Roles>,
        auth: Arc<Auth>,
        cluster_id: String,
        requests: Arc<Requests>,
        pulse: Arc<Pulse>,
        settings: &ServiceSettings,
    ) -> FlightServiceServer<Self> {
        FlightServiceServer::new(Self {
            db,
            roles,
            auth,
            cluster_id,
            process: settings.process,
            view_bytes_max: settings.view_bytes_max,
            write_bytes_max: settings.write_bytes_max,
            requests,
            pulse,
        })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Whether a request comes from a node of this cluster.
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let shown = |name: &str| {
            let value = request.metadata().get(name);
            value.and_then(|v| v.to_str().ok()).unwrap_or_default()
        };
        if !self.auth.accepts_http(Some(shown("authorization")), None) {
            return Err(Status::unauthenticated(
                "the token is wrong: auth.token must be the same on all nodes of a cluster",
            ));
        }
        if shown(CLUSTER) != self.cluster_id {
            return Err(Status::permission_denied(format!(
                "this node belongs to the cluster {}, the request came from {}",
                self.cluster_id,
                shown(CLUSTER)
            )));
        }
        Ok(())
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let places = Arc::clone(&self.requests.places);
        places
            .acquire_owned()
            .await
            .map_err(|_| Status::unavailable("the node is shutting down"))
    }

    async fn answer(&self, ask: Ask) -> Result<Answer, EngineError> {
        Ok(match ask {
            Ask::ChangeSchemas {
                shard,
                changes,
                patience_ms,
            } => {
                let patience = Duration::from_millis(patience_ms);
                self.db
                    .change_schemas_here(shard, changes, patience)
                    .await?;
                Answer::Done
            }
            Ask::Schema { shard, table } => Answer::Schema(self.db.schema_here(shard, table)?),
            Ask::ImportProgress { shard, import } => {
                Answer::ImportProgress(self.db.import_progress_here(shard, import)?)
            }
            Ask::PendingDeletes { shard, table } => {
                Answer::Predicates(self.db.pending_deletes_here(shard, table).await?)
            }
            Ask::ApplyDeletes { shard, table } => {
                self.db.apply_deletes_here(shard, table).await?;
                Answer::Done
            }
            Ask::ChangeUnit { shard, change } => {
                self.db.change_unit_here(shard, change).await?;
                Answer::Done
            }
            Ask::SplitShard { shard, order } => {
                Answer::Child(self.db.split_shard_here(shard, order).await?)
            }
            Ask::WasApplied { shard, table, id } => {
                Answer::WasApplied(self.db.was_applied_here(shard, table, id)?)
            }
            Ask::Obey { shard, assignment } => {
                Answer::Obeyed(self.roles.obey(shard, &assignment).await?)
            }
            Ask::Process => Answer::Process(self.process),
            Ask::Replicas => {
                let status = serde_json::to_string(&self.db.status());
                Answer::Replicas(status.map_err(|e| EngineError::Invalid(e.to_string()))?)
            }
            Ask::Checksum { shard, position } => {
                let sum = orders::checksum_here(&self.db, shard, position).await?;
                let text = serde_json::to_string(&sum);
                Answer::Checksum(text.map_err(|e| EngineError::Invalid(e.to_string()))?)
            }
            Ask::FlushBeyond { shard, offset } => {
                self.db.flush_beyond(shard, offset).await?;
                Answer::Done
            }
            Ask::SkipRecord {
                shard,
                assignment,
                at,
                skip,
                by,
            } => {
                let order = Repair::Skip { at, skip, by };
                Answer::Repaired(Box::new(
                    self.roles.repair(shard, &assignment, order).await?,
                ))
            }
            Ask::AdoptLog {
                shard,
                assignment,
                above,
                by,
            } => {
                let order = Repair::Adopt { above, by };
                Answer::Repaired(Box::new(
                    self.roles.repair(shard, &assignment, order).await?,
                ))
            }
            Ask::ExamineLog { shard } => Answer::Log(Box::new(self.db.examine_log(shard).await?)),
            Ask::Flush { shard } => Answer::Flushed(self.db.flush(Some(shard)).await?),
            Ask::Compact { shard, table } => {
                Answer::Compacted(self.db.compact_here(shard, table).await?)
            }
            Ask::Collect { dry_run } => Answer::Collected(Box::new(self.db.gc(dry_run).await?)),
        })
    }
}

/// An error that has no place in the answer.
fn not_offered<T>(what: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!(
        "{what} is not offered: this port is for the nodes of the cluster"
    )))
}

#[tonic::async_trait]
impl FlightService for NodeService {
    type HandshakeStream = Replies<HandshakeResponse>;
    type ListFlightsStream = Replies<FlightInfo>;
    type DoGetStream = Replies<FlightData>;
    type DoPutStream = Replies<PutResult>;
    type DoActionStream = Replies<ActionResult>;
    type ListActionsStream = Replies<ActionType>;
    type DoExchangeStream = Replies<FlightData>;

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        self.check(&request)?;
        let place = self.place().await?;
        let mut messages = request.into_inner();
        let Some(first) = messages.message().await? else {
            return Err(Status::invalid_argument("a write without a head"));
        };
        let head: WriteHead = decode(&first.app_metadata, "the head of a write")?;
        let mut parts = Vec::with_capacity(head.parts.len());
        let mut bytes = 0;
        for part in head.parts {
            let Some(message) = messages.message().await? else {
                return Err(Status::invalid_argument("rows are missing"));
            };
            bytes += message.data_body.len();
            if bytes > self.write_bytes_max {
                return Err(Status::resource_exhausted(format!(
                    "the rows of one request exceed {} bytes",
                    self.write_bytes_max
                )));
            }
            parts.push(RecordPart {
                number: part.number,
                last: part.last,
                tables: part.tables,
                body: message.data_body,
            });
        }
        let write = ShardWrite {
            write_id: head.write_id,
            import: head.import,
            read_at: head.read_at,
            owns: head.owns,
            parts,
        };
        self.roles.about_to_lead(head.shard).await;
        // A task of its own: a sender that goes away must not leave half of its records.
        let (db, patience) = (
            Arc::clone(&self.db),
            Duration::from_millis(head.patience_ms),
        );
        let written = tokio::spawn(async move {
            let outcome = db.write_here(head.shard, write, patience).await;
            drop(place);
            outcome
        });
        let outcome = written
            .await
            .map_err(|e| Status::internal(format!("the write broke off: {e}")))?;
        let result = PutResult {
            app_metadata: encode(&outcome),
        };
        Ok(Response::new(stream::iter([Ok(result)]).boxed()))
    }

    async fn do_get(
        &self,
        request: Request<FlightTicket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        self.check(&request)?;
        let place = self.place().await?;
        let ticket: Ticket = decode(&request.get_ref().ticket, "a ticket")?;
        let Ticket::Views {
            shard,
            tables,
            read,
        } = ticket;
        let views = async {
            let views = self.db.views_here(shard, &tables, &read).await?;
            let encode = move || views.iter().map(EncodedView::encode).collect();
            tokio::task::spawn_blocking(encode)
                .await
                .map_err(|e| EngineError::Invalid(format!("encoding a view: {e}")))?
        };
        let views: Result<Vec<EncodedView>, EngineError> = views.await;
        let (head, bodies) = match views.map_err(Failure::from) {
            Ok(views) => {
                let all = views.iter().flat_map(|view| &view.bodies);
                let bytes: u64 = all.map(|body| body.len() as u64).sum();
                if bytes > self.view_bytes_max {
                    let failure = Failure::Unavailable {
                        shard,
                        why: format!(
                            "{bytes} bytes of rows are not in files yet, cluster.view_bytes_max allows {} to be sent; read where the table has a replica, or flush it",
                            self.view_bytes_max
                        ),
                    };
                    (Err(failure), Vec::new())
                } else {
                    let (heads, bodies): (Vec<_>, Vec<_>) = views
                        .into_iter()
                        .map(|view| (view.head, view.bodies))
                        .unzip();
                    (Ok(heads), bodies.concat())
                }
            }
            Err(failure) => (Err(failure), Vec::new()),
        };
        let first = FlightData {
            app_metadata: encode(&head),
            ..FlightData::default()
        };
        let rows = bodies.into_iter().map(|body| FlightData {
            data_body: body,
            ..FlightData::default()
        });
        let messages = std::iter::once(first).chain(rows).map(Ok);
        // The place is given back with the last message.
        let messages: Vec<Result<FlightData, Status>> = messages.collect();
        let sent = stream::iter(messages).map(move |message| {
            let _held = &place;
            message
        });
        Ok(Response::new(sent.boxed()))
    }

    async fn do_action(
        &self,
        request: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        self.check(&request)?;
        if request.get_ref().r#type == BEATS {
            // It goes on for as long as the scheduler leads, so it takes no place.
            let beats = Arc::clone(&self.pulse).beats();
            let beats = beats.map(|beat| {
                Ok(ActionResult {
                    body: encode(&beat),
                })
            });
            return Ok(Response::new(beats.boxed()));
        }
        let action = request.into_inner();
        if action.r#type != Ask::NAME {
            return not_offered(&format!("the action {:?}", action.r#type));
        }
        let ask: Ask = decode(&action.body, "a question")?;
        // Whether it lives, and who leads, must not wait for others' requests.
        let _place = match ask {
            Ask::Process | Ask::Obey { .. } => None,
            _ => Some(self.place().await?),
        };
        let answer = self.answer(ask).await.map_err(Failure::from);
        let result = ActionResult {
            body: encode(&answer),
        };
        Ok(Response::new(stream::iter([Ok(result)]).boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        not_offered("a handshake")
    }

    async fn list_flights(
        &self,
        _: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        not_offered("a list of flights")
    }

    async fn get_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        not_offered("a flight's info")
    }

    async fn poll_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        not_offered("a flight's info")
    }

    async fn get_schema(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        not_offered("a flight's schema")
    }

    async fn list_actions(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        not_offered("a list of actions")
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        not_offered("an exchange")
    }
}
