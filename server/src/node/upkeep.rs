//! Upkeep by hand: `flush`, `compact` and `gc` go to the nodes that lead.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_engine::{Compacted, EngineError, Flushed, GcReport};
use shoal_types::{NodeId, ShardId, TableId};

use super::orders::{OrderError, Orders, another_kind};
use super::wire::{Answer, Ask};

/// How long a node may take to write its memory to files.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to merge files, or to look through all objects.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(3600);

fn failed(error: EngineError) -> OrderError {
    OrderError::Unavailable(error.to_string())
}

impl Orders {
    async fn leader(&self, shard: ShardId) -> Result<NodeId, OrderError> {
        let leader = self.assignment(shard).await?.leader;
        leader.ok_or_else(|| OrderError::Unavailable(format!("no node leads shard {shard}")))
    }

    /// Asks a node something that may take long, for as long as it is heard of.
    async fn ask_while_heard_of(
        &self,
        node: NodeId,
        ask: &Ask,
        limit: Duration,
    ) -> Result<Answer, OrderError> {
        let mut changes = self.topology.subscribe();
        if changes.borrow().node(node).is_none() {
            return Err(OrderError::Unavailable(self.leads_and_is_gone(node)));
        }
        let gone = changes.wait_for(|snapshot| snapshot.node(node).is_none());
        tokio::select! {
            biased;
            answer = self.ask(node, ask, limit) => answer.map_err(|error| {
                if self.topology.snapshot().nodes.contains_key(&node) {
                    return error;
                }
                OrderError::Unavailable(format!("{error}; {}", self.leads_and_is_gone(node)))
            }),
            _ = gone => Err(OrderError::Unavailable(self.leads_and_is_gone(node))),
        }
    }

    fn leads_and_is_gone(&self, node: NodeId) -> String {
        let snapshot = self.topology.snapshot();
        let led = snapshot.assignments.iter();
        let led = led
            .filter(|(_, a)| a.leader == Some(node))
            .map(|(id, _)| id.to_string());
        let led: Vec<String> = led.collect();
        format!(
            "node {node}, which leads {}, is not heard of; start it, or `shoal admin shard promote` a follower",
            led.join(", ")
        )
    }

    /// Writes a shard's rows in memory to files, at its leader.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn flush(&self, shard: ShardId) -> Result<Flushed, OrderError> {
        let leader = self.leader(shard).await?;
        if leader == self.me {
            return self.db.flush(Some(shard)).await.map_err(failed);
        }
        let ask = Ask::Flush { shard };
        match self.ask_while_heard_of(leader, &ask, FLUSH_TIMEOUT).await? {
            Answer::Flushed(flushed) => Ok(flushed),
            _ => another_kind(),
        }
    }

    /// Merges a shard's files, or those of one table in it, at its leader.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn compact(
        &self,
        shard: ShardId,
        table: Option<TableId>,
    ) -> Result<Compacted, OrderError> {
        let leader = self.leader(shard).await?;
        if leader == self.me {
            return self.db.compact_here(shard, table).await.map_err(failed);
        }
        let ask = Ask::Compact { shard, table };
        match self
            .ask_while_heard_of(leader, &ask, UPKEEP_TIMEOUT)
            .await?
        {
            Answer::Compacted(compacted) => Ok(compacted),
            _ => another_kind(),
        }
    }

    /// Deletes what nobody needs of any shard, at one leader after the other.
    ///
    /// # Errors
    /// Which leaders could not, once all were asked; what the others deleted is.
    pub async fn collect(&self, dry_run: bool) -> Result<GcReport, OrderError> {
        let mut all = GcReport {
            dry_run,
            ..GcReport::default()
        };
        let assignments = &self.topology.snapshot().assignments;
        let leaders: BTreeSet<NodeId> = assignments.values().filter_map(|a| a.leader).collect();
        let (mut done, mut troubles) = (0, Vec::new());
        for node in leaders {
            match self.collect_at(node, dry_run).await {
                Ok(one) => {
                    all.add(one);
                    done += 1;
                }
                Err(error) => troubles.push(error.to_string()),
            }
        }
        if troubles.is_empty() {
            return Ok(all);
        }
        Err(OrderError::Unavailable(format!(
            "{}; {done} other leaders did it",
            troubles.join("; ")
        )))
    }

    async fn collect_at(&self, node: NodeId, dry_run: bool) -> Result<GcReport, OrderError> {
        if node == self.me {
            return self.db.gc(dry_run).await.map_err(failed);
        }
        let ask = Ask::Collect { dry_run };
        match self.ask_while_heard_of(node, &ask, UPKEEP_TIMEOUT).await? {
            Answer::Collected(report) => Ok(*report),
            _ => another_kind(),
        }
    }
}
