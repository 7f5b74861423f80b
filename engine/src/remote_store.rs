//! Objects in S3 or a store that speaks like it.
//!
//! Manifests are won by a put that must not overwrite (`If-None-Match: *`), and the newest is the
//! LIST maximum. A store that ignores the condition, or lists late, would let two leaders both
//! believe in their manifest. So neither is taken on trust: [`RemoteStore::open`] tries both and
//! refuses the store, naming what is wrong.
//!
//! **Lost answers.** The client repeats a request whose connection broke, also a conditional put:
//! when the first had taken effect, the second is refused and a success looks like a loss. Whoever
//! puts with a condition reads back what stands there and compares (`manifest/publish.rs`, and
//! `put_once` here); SSTs and residues have names that are never used twice and are put without.

use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, RetryConfig,
};
use shoal_sst::SstError;

use crate::EngineError;
use crate::traffic::{CountedConnector, ObjectTraffic};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How a bucket is reached; `Default` is AWS with credentials of the environment or the machine.
#[derive(Clone)]
pub struct S3Config {
    /// `http://host:port` or `https://host`; empty: AWS's for the region.
    pub endpoint: String,
    /// Region; empty: `AWS_REGION`, else `us-east-1`. Most stores but AWS take any.
    pub region: String,
    /// Bucket; must exist.
    pub bucket: String,
    /// Before all object names; may be empty.
    pub prefix: String,
    /// Access key; empty: `AWS_ACCESS_KEY_ID`, web identity, or the machine's role.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// Whether an `http://` endpoint is meant: everything is sent unencrypted.
    pub allow_http: bool,
    /// `bucket.host/object` rather than `host/bucket/object`.
    pub virtual_hosted_style: bool,
    /// Authority that the store's certificate is checked against besides the system's, PEM.
    pub ca_pem: Option<String>,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long one request may take, its body included.
    pub request_timeout: Duration,
    /// How often a failed request is sent again.
    pub retries_max: usize,
    /// No request is sent again later than this after the first.
    pub retry_timeout: Duration,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            region: String::new(),
            bucket: String::new(),
            prefix: String::new(),
            access_key: String::new(),
            secret_key: String::new(),
            allow_http: false,
            virtual_hosted_style: false,
            ca_pem: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            retries_max: 5,
            retry_timeout: Duration::from_secs(60),
        }
    }
}

impl std::fmt::Debug for S3Config {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("location", &self.location())
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

impl S3Config {
    /// Where the objects are, whatever way leads there: `s3://bucket/prefix`.
    #[must_use]
    pub fn location(&self) -> String {
        let prefix = self.prefix.trim_matches('/');
        if prefix.is_empty() {
            format!("s3://{}", self.bucket)
        } else {
            format!("s3://{}/{prefix}", self.bucket)
        }
    }

    fn builder(&self, traffic: &Arc<ObjectTraffic>) -> Result<AmazonS3Builder, EngineError> {
        let invalid = |what: &str| Err(EngineError::Invalid(what.to_owned()));
        if self.bucket.is_empty() {
            return invalid("objects.bucket is not set");
        }
        if self.access_key.is_empty() != self.secret_key.is_empty() {
            return invalid("set both objects.access_key and objects.secret_key, or neither");
        }
        if self.endpoint.starts_with("http://") && !self.allow_http {
            return invalid(
                "objects.endpoint is http://, so data and signatures would go unencrypted; set objects.allow_http = true if that is meant, or use https://",
            );
        }
        let mut client = ClientOptions::new()
            .with_allow_http(self.allow_http)
            .with_connect_timeout(self.connect_timeout)
            .with_timeout(self.request_timeout);
        if let Some(pem) = &self.ca_pem {
            let certificate = Certificate::from_pem(pem.as_bytes())
                .map_err(|e| EngineError::Invalid(format!("objects.ca_file: {e}")))?;
            client = client.with_root_certificate(certificate);
        }
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: BACKOFF_MIN,
                max_backoff: BACKOFF_MAX,
                base: 2.0,
            },
            max_retries: self.retries_max,
            retry_timeout: self.retry_timeout,
        };
        let mut builder = if self.access_key.is_empty() {
            AmazonS3Builder::from_env()
        } else {
            AmazonS3Builder::new()
                .with_access_key_id(&self.access_key)
                .with_secret_access_key(&self.secret_key)
        };
        if !self.endpoint.is_empty() {
            builder = builder.with_endpoint(self.endpoint.trim_end_matches('/'));
        }
        if !self.region.is_empty() {
            builder = builder.with_region(&self.region);
        }
        Ok(builder
            .with_bucket_name(&self.bucket)
            .with_allow_http(self.allow_http)
            .with_virtual_hosted_style_request(self.virtual_hosted_style)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_client_options(client)
            .with_retry(retry)
            .with_http_connector(CountedConnector(Arc::clone(traffic))))
    }
}

/// A bucket, tried and found fit.
#[derive(Clone, Debug)]
pub struct RemoteStore {
    /// The objects, below the prefix.
    pub store: Arc<dyn ObjectStore>,
    /// What was asked of it.
    pub traffic: Arc<ObjectTraffic>,
    location: String,
}

impl RemoteStore {
    /// Makes the client and tries the store (see the module); asks a handful of small requests.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: settings, credentials or the store's behaviour; the text says
    /// what. [`EngineError::Sst`]: it does not answer.
    pub async fn open(config: &S3Config) -> Result<Self, EngineError> {
        let remote = Self::untried(config)?;
        try_store(&*remote.store, &remote.location).await?;
        Ok(remote)
    }

    /// Makes the client and asks nothing.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: settings that cannot be right.
    pub fn untried(config: &S3Config) -> Result<Self, EngineError> {
        let traffic = Arc::new(ObjectTraffic::default());
        let bucket = config
            .builder(&traffic)?
            .build()
            .map_err(|e| EngineError::Invalid(format!("objects: {e}")))?;
        Ok(Self {
            store: Arc::new(PrefixStore::new(bucket, config.prefix.trim_matches('/'))),
            traffic,
            location: config.location(),
        })
    }

    /// Notes in the bucket which cluster it belongs to, or compares. `cluster_id` is the one in
    /// meta, so a bucket of another cluster of the same name is found out, also when only the
    /// endpoint differs.
    ///
    /// # Errors
    /// [`EngineError::Invalid`]: it belongs to another cluster. [`EngineError::Sst`].
    pub async fn claim(&self, cluster: &str, cluster_id: &str) -> Result<(), EngineError> {
        let path = Path::from(format!("{cluster}.cluster"));
        match put_once(&*self.store, &path, cluster_id)
            .await
            .map_err(|e| judge(&self.location, "PUT", &path, e))?
        {
            None => Ok(()),
            Some(found) => Err(EngineError::Invalid(format!(
                "{} belongs to the cluster {cluster:?} with the id {found}; meta has one of this name with the id {cluster_id}; choose another bucket, prefix or cluster.name",
                self.location
            ))),
        }
    }
}

/// Puts an object that must not be there. `None`: it is there now and holds `text`, by this call or
/// an earlier one; else what it holds.
async fn put_once(
    store: &dyn ObjectStore,
    path: &Path,
    text: &str,
) -> Result<Option<String>, Error> {
    let payload = PutPayload::from(text.to_owned());
    let options = PutOptions::from(PutMode::Create);
    match store.put_opts(path, payload, options).await {
        Ok(_) => Ok(None),
        Err(Error::AlreadyExists { .. }) => {
            let found = store.get(path).await?.bytes().await?;
            let found = String::from_utf8_lossy(&found).into_owned();
            Ok((found != text).then_some(found))
        }
        Err(e) => Err(e),
    }
}

async fn try_store(store: &dyn ObjectStore, location: &str) -> Result<(), EngineError> {
    let unfit = |what: &str| {
        Err(EngineError::Invalid(format!(
            "{location} cannot hold a cluster: {what}"
        )))
    };
    let folder = Path::from("probe");
    let path = folder.clone().join(ulid::Ulid::new().to_string());
    let failed = |verb: &'static str, e| judge(location, verb, &path, e);
    match put_once(store, &path, "first")
        .await
        .map_err(|e| failed("PUT", e))?
    {
        None => {}
        Some(_) => return unfit("an object of a fresh name is there already"),
    }
    let outcome = probe(store, location, &folder, &path).await;
    // Removed also when the probe failed; without the right to delete, garbage would pile up.
    let removed = store.delete(&path).await.map_err(|e| failed("DELETE", e));
    outcome.and(removed)
}

async fn probe(
    store: &dyn ObjectStore,
    location: &str,
    folder: &Path,
    path: &Path,
) -> Result<(), EngineError> {
    let unfit = |what: &str| {
        Err(EngineError::Invalid(format!(
            "{location} cannot hold a cluster: {what}"
        )))
    };
    let options = PutOptions::from(PutMode::Create);
    match store.put_opts(path, "second".into(), options).await {
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
        Ok(_) => {
            return unfit(
                "it ignores If-None-Match on PUT, so two leaders could overwrite each other's manifest; use a store (or a version of it) with conditional writes",
            );
        }
        Err(e) => return Err(judge(location, "PUT", path, e)),
    }
    let read = async { store.get(path).await?.bytes().await };
    let found = read.await.map_err(|e| judge(location, "GET", path, e))?;
    if found.as_ref() != b"first" {
        return unfit("it refused a second PUT with If-None-Match, yet overwrote the object");
    }
    let listed: Vec<_> = store
        .list(Some(folder))
        .try_collect()
        .await
        .map_err(|e| judge(location, "LIST", folder, e))?;
    if !listed.iter().any(|object| object.location == *path) {
        return unfit("LIST does not show an object that was just put");
    }
    Ok(())
}

/// What a failed first request says about settings.
fn judge(location: &str, verb: &str, path: &Path, error: Error) -> EngineError {
    let reason = answer_of(&error);
    let invalid = |what: &str| EngineError::Invalid(format!("{location}: {what}{reason}"));
    match &error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => invalid(&format!(
            "{verb} is not allowed with these credentials (objects.access_key, objects.secret_key)"
        )),
        Error::NotFound { .. } if reason.contains("NoSuchBucket") => {
            invalid("there is no such bucket (objects.bucket)")
        }
        // Only as text in what the client makes of it.
        _ if error.to_string().contains("501 Not Implemented") => invalid(&format!(
            "the store does not know {verb} as it is used here; it must know If-None-Match on PUT (conditional writes)"
        )),
        _ => SstError::from_store(path, error).into(),
    }
}

/// Code and message of an S3 error document inside an error's text, for people.
fn answer_of(error: &Error) -> String {
    let text = error.to_string();
    let part = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>"))
            .map(|(inner, _)| inner.to_owned())
    };
    match (part("Code"), part("Message")) {
        (Some(code), Some(message)) => format!(": {code}, {message}"),
        (Some(code), None) => format!(": {code}"),
        _ => String::new(),
    }
}
