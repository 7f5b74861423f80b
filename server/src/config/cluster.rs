//! What a node is configured with beyond a standalone process: where etcd, the log and the objects
//! are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use shoal_engine::S3Config;
use shoal_meta::{EtcdConfig, EtcdTls};
use shoal_wal::kafka::{Acks as KafkaAcks, KafkaLogConfig};

use super::{Acks, Config, ConfigError, ListenAddr};

/// Room in a record for its header, beyond the rows that `wal.record_bytes_max` bounds.
const RECORD_SLACK_BYTES: usize = 1 << 20;

/// The largest record that the log in Kafka takes.
const KAFKA_RECORD_BYTES_MAX: usize = 64 << 20;

fn together(what: impl Into<String>) -> ConfigError {
    ConfigError::Together(what.into())
}

/// A file's text; `None` where no file is named.
fn text_of(key: &str, path: &Path) -> Result<Option<String>, ConfigError> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path);
    text.map(Some)
        .map_err(|e| together(format!("{key}: cannot read {}: {e}", path.display())))
}

impl Config {
    /// How etcd is reached.
    ///
    /// # Errors
    /// [`ConfigError::Together`] naming the keys.
    pub fn etcd(&self) -> Result<EtcdConfig, ConfigError> {
        let endpoints: Vec<String> = self
            .meta_endpoints
            .split(',')
            .map(|url| url.trim().to_owned())
            .filter(|url| !url.is_empty())
            .collect();
        if endpoints.is_empty() {
            return Err(together(
                "meta.endpoints is not set: a node needs etcd, for example meta.endpoints = \"http://127.0.0.1:2379\" (`scripts/stack up` starts one)",
            ));
        }
        let identity_pem = match (
            text_of("meta.cert_file", &self.meta_cert_file)?,
            text_of("meta.key_file", &self.meta_key_file)?,
        ) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                return Err(together(
                    "set both meta.cert_file and meta.key_file, or neither",
                ));
            }
        };
        let mut etcd = EtcdConfig::new(endpoints);
        etcd.user = (!self.meta_user.is_empty())
            .then(|| (self.meta_user.clone(), self.meta_password.0.clone()));
        etcd.tls = EtcdTls {
            ca_pem: text_of("meta.ca_file", &self.meta_ca_file)?,
            identity_pem,
            server_name: (!self.meta_server_name.is_empty()).then(|| self.meta_server_name.clone()),
        };
        etcd.connect_timeout = Duration::from_millis(self.meta_connect_timeout_ms);
        etcd.request_timeout = Duration::from_millis(self.meta_request_timeout_ms);
        Ok(etcd)
    }

    /// Where the log is.
    ///
    /// # Errors
    /// [`ConfigError::Together`] naming the keys.
    pub fn kafka(&self) -> Result<KafkaLogConfig, ConfigError> {
        if self.kafka_brokers.trim().is_empty() {
            return Err(together(
                "kafka.brokers is not set: a node needs Kafka or Redpanda, for example kafka.brokers = \"127.0.0.1:9092\" (`scripts/stack up` starts one)",
            ));
        }
        let small = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        let mut kafka = KafkaLogConfig::new(self.kafka_brokers.trim(), &self.cluster_name);
        kafka.replication_factor = small(self.kafka_replication_factor);
        kafka.min_insync_replicas = small(self.kafka_min_insync_replicas);
        kafka.acks = match self.kafka_acks {
            Acks::All => KafkaAcks::All,
            Acks::Leader => KafkaAcks::Leader,
        };
        kafka.commit_timeout_ms = self.kafka_commit_timeout_ms;
        kafka.queue_bytes_max = self.kafka_queue_bytes_max.usize();
        kafka.queue_records_max =
            usize::try_from(self.kafka_queue_records_max).unwrap_or(usize::MAX);
        kafka.read_ahead_bytes_max = self.kafka_read_ahead_bytes_max.usize();
        kafka.record_bytes_max =
            (self.wal_record_bytes_max.usize() + RECORD_SLACK_BYTES).min(KAFKA_RECORD_BYTES_MAX);
        kafka.options = self.kafka_options.0.clone();
        kafka.check().map_err(|e| together(e.to_string()))?;
        Ok(kafka)
    }

    /// Where the objects are.
    ///
    /// # Errors
    /// [`ConfigError::Together`] naming the keys.
    pub fn objects(&self) -> Result<S3Config, ConfigError> {
        if self.objects_bucket.is_empty() {
            return Err(together(
                "objects.bucket is not set: a node needs S3 or a store that speaks like it (`scripts/stack up` starts one)",
            ));
        }
        Ok(S3Config {
            endpoint: self.objects_endpoint.clone(),
            region: self.objects_region.clone(),
            bucket: self.objects_bucket.clone(),
            prefix: self.objects_prefix.clone(),
            access_key: self.objects_access_key.clone(),
            secret_key: self.objects_secret_key.0.clone(),
            allow_http: self.objects_allow_http,
            virtual_hosted_style: self.objects_virtual_hosted_style,
            ca_pem: text_of("objects.ca_file", &self.objects_ca_file)?,
            connect_timeout: Duration::from_millis(self.objects_connect_timeout_ms),
            request_timeout: Duration::from_millis(self.objects_request_timeout_ms),
            retries_max: usize::try_from(self.objects_retries_max).unwrap_or(usize::MAX),
            retry_timeout: Duration::from_millis(self.objects_retry_timeout_ms),
        })
    }

    /// An address as others reach it.
    #[must_use]
    pub fn advertised(&self, address: SocketAddr) -> String {
        match self.cluster_advertise_host.as_str() {
            "" => address.to_string(),
            host => format!("{host}:{}", address.port()),
        }
    }

    /// Others are told an address: one that means "all of this machine's" would lead them to
    /// themselves.
    ///
    /// # Errors
    /// [`ConfigError::Together`].
    pub fn check_reachable(
        &self,
        listeners: &[(&'static str, &ListenAddr)],
    ) -> Result<(), ConfigError> {
        for (key, address) in listeners {
            if let Some(address) = address.0
                && address.ip().is_unspecified()
                && self.cluster_advertise_host.is_empty()
            {
                return Err(together(format!(
                    "{key} = {address} is every address of this machine: set cluster.advertise_host to the name under which others reach it"
                )));
            }
        }
        Ok(())
    }

    /// The node's labels.
    ///
    /// # Errors
    /// [`ConfigError::Together`].
    pub fn labels(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let mut labels = BTreeMap::new();
        for pair in self.cluster_labels.split(',').map(str::trim) {
            if pair.is_empty() {
                continue;
            }
            let (name, value) = pair.split_once('=').ok_or_else(|| {
                together(format!(
                    "cluster.labels: write name=value, as in zone=a; not {pair:?}"
                ))
            })?;
            labels.insert(name.trim().to_owned(), value.trim().to_owned());
        }
        Ok(labels)
    }
}
