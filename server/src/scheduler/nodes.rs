//! Nodes, as the scheduler reaches them: over Arrow Flight ([`crate::node::wire`]).

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use shoal_meta::{Assignment, NodeEntry};
use shoal_scheduler::{Beat, Led, Nodes, NotHeard, Probe};
use shoal_types::ShardId;
use tokio::net::TcpStream;

use crate::node::links::{CallError, Links};
use crate::node::wire::{Answer, Ask};

/// How long a node may take to obey before its beats are asked.
const OBEY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may take to begin its beats.
const BEATS_TIMEOUT: Duration = Duration::from_secs(2);

/// The nodes of a cluster.
pub struct FlightNodes {
    links: Arc<Links>,
}

impl FlightNodes {
    /// Reached over these connections.
    #[must_use]
    pub fn new(links: Arc<Links>) -> Self {
        Self { links }
    }
}

#[async_trait]
impl Nodes for FlightNodes {
    async fn beats(
        &self,
        node: &NodeEntry,
    ) -> Result<BoxStream<'static, Result<Beat, String>>, NotHeard> {
        let asked = tokio::time::timeout(BEATS_TIMEOUT, self.links.beats(&node.grpc)).await;
        let beats = asked
            .map_err(|_| NotHeard::Silent("it does not begin to beat".to_owned()))?
            .map_err(|error| match error {
                CallError::NotSent {
                    locked_out: true,
                    why,
                    ..
                } => NotHeard::NotLetIn(why),
                error => NotHeard::Silent(error.to_string()),
            })?;
        let beats = beats.map(|beat| beat.map_err(|status| status.message().to_owned()));
        Ok(beats.boxed())
    }

    async fn probe(&self, node: &NodeEntry, within: Duration) -> Probe {
        let asked = async {
            // A machine that says that nobody listens is told apart from one that says nothing.
            match TcpStream::connect(&node.grpc).await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    return Probe::Refused;
                }
                Err(_) => return Probe::Silent,
                Ok(_) => {}
            }
            match self.links.ask(&node.grpc, &Ask::Process).await {
                // Another process than the one that was registered: that one has ended.
                Ok(Ok(Answer::Process(process))) if process != node.process => Probe::Refused,
                Ok(Ok(_)) => Probe::Answered,
                Ok(Err(_)) | Err(_) => Probe::Silent,
            }
        };
        let asked = tokio::time::timeout(within, asked).await;
        asked.unwrap_or(Probe::Silent)
    }

    async fn obey(
        &self,
        node: &NodeEntry,
        shard: ShardId,
        assignment: &Assignment,
    ) -> Result<Option<Led>, String> {
        let ask = Ask::Obey {
            shard,
            assignment: assignment.clone(),
        };
        let asked = tokio::time::timeout(OBEY_TIMEOUT, self.links.ask(&node.grpc, &ask)).await;
        match asked {
            Ok(Ok(Ok(Answer::Obeyed(promoted)))) => Ok(promoted.map(|p| Led {
                epoch: p.epoch,
                records_replayed: p.records_replayed,
                pause: p.pause,
            })),
            Ok(Ok(Ok(_))) => Err("an answer of another kind".into()),
            Ok(Ok(Err(failure))) => Err(failure.into_error(shard).to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", OBEY_TIMEOUT.as_secs())),
        }
    }
}
