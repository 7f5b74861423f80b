//! What a node counts beyond a standalone process: the log in Kafka, requests to the object store,
//! requests of other nodes, what it knows of the cluster.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use shoal_engine::RequestKind;
use shoal_wal::kafka::PRODUCE_BUCKETS_MS;

use super::cluster::Cluster;
use crate::config::Config;

/// Reads a cluster's figures when `/metrics` is asked for.
pub struct ClusterCollector {
    cluster: Arc<Cluster>,
    queue_bytes_max: u64,
    queue_records_max: u64,
    requests_max: u64,
}

impl std::fmt::Debug for ClusterCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterCollector")
    }
}

impl ClusterCollector {
    /// A collector of one node.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, config: &Config) -> Self {
        Self {
            cluster,
            queue_bytes_max: config.kafka_queue_bytes_max.0,
            queue_records_max: config.kafka_queue_records_max,
            requests_max: config.grpc_requests_max,
        }
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), Error> {
    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), Error> {
    let counter = ConstCounter::new(value);
    counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

impl Collector for ClusterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let encoder = &mut encoder;
        let log = self.cluster.logs.stats();
        for (name, help, value) in [
            (
                "kafka_records",
                "Records confirmed by the brokers",
                log.records,
            ),
            ("kafka_appended_bytes", "Their bytes", log.appended_bytes),
            ("kafka_read_records", "Records read", log.read_records),
            ("kafka_read_bytes", "Their bytes", log.read_bytes),
            (
                "kafka_refused_full",
                "Appends pushed back",
                log.refused_full,
            ),
            (
                "kafka_commit_timeouts",
                "Appends that too few replicas confirmed in time",
                log.commit_timeouts,
            ),
            (
                "kafka_append_failures",
                "Appends that failed otherwise",
                log.append_failures,
            ),
            (
                "kafka_producers_replaced",
                "Producers replaced after an error for good",
                log.producers_replaced,
            ),
            (
                "kafka_client_errors",
                "Errors that the client reported",
                log.client_errors,
            ),
            ("kafka_reconnects", "Connections made again", log.reconnects),
            (
                "kafka_reader_resets",
                "Readers pointed at their offset again",
                log.reader_resets,
            ),
        ] {
            counter(encoder, name, help, value)?;
        }
        for (name, help, value) in [
            (
                "kafka_queue_bytes",
                "Records waiting for their confirmation",
                log.in_flight_bytes,
            ),
            (
                "kafka_queue_bytes_max",
                "kafka.queue_bytes_max",
                self.queue_bytes_max,
            ),
            (
                "kafka_queue_records",
                "Records waiting for their confirmation",
                log.in_flight_records,
            ),
            (
                "kafka_queue_records_max",
                "kafka.queue_records_max",
                self.queue_records_max,
            ),
            ("kafka_readers", "Open readers", log.readers),
            (
                "kafka_fetch_lag_records_max",
                "Records that the reader furthest behind has not read",
                log.fetch_lag_records_max,
            ),
        ] {
            gauge(encoder, name, help, value)?;
        }
        let bounds = PRODUCE_BUCKETS_MS.into_iter().map(|ms| ms / 1e3);
        let buckets: Vec<(f64, u64)> = bounds.chain([f64::MAX]).zip(log.produce_buckets).collect();
        let sum = log.produce_us_sum as f64 / 1e6;
        let count = log.produce_buckets.iter().sum();
        encoder
            .encode_descriptor(
                "kafka_produce_seconds",
                "From append to confirmation",
                None,
                MetricType::Histogram,
            )?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        for kind in RequestKind::ALL {
            let traffic = self.cluster.objects.of(kind);
            let kind = kind.as_str();
            for (what, value) in [
                ("requests", traffic.requests),
                ("failed", traffic.failed),
                ("sent_bytes", traffic.sent_bytes),
                ("received_bytes", traffic.received_bytes),
                ("waited_us", traffic.waited_us),
            ] {
                let name = format!("s3_{kind}_{what}");
                counter(encoder, &name, &name.replace('_', " "), value)?;
            }
        }
        let snapshot = self.cluster.topology.snapshot();
        for (name, help, value) in [
            (
                "cluster_nodes",
                "Nodes that are heard of",
                snapshot.nodes.len() as u64,
            ),
            (
                "cluster_topology_interrupted",
                "1: changes of the topology are not heard at the moment",
                u64::from(snapshot.interrupted.is_some()),
            ),
            (
                "grpc_requests",
                "Requests of other nodes under way",
                self.cluster.requests.under_way(),
            ),
            ("grpc_requests_max", "grpc.requests_max", self.requests_max),
        ] {
            gauge(encoder, name, help, value)?;
        }
        Ok(())
    }
}
