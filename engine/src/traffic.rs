//! What is asked of a remote object store, counted where it is asked: every HTTP request, repeated
//! ones too, because that is what a provider bills and what a slow network repeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

/// Kinds of requests, as providers price them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Reads of objects and of ranges of them.
    Get,
    /// Questions for an object's size.
    Head,
    /// Objects written, whole or by parts.
    Put,
    /// Pages of listings.
    List,
    /// Deletions, of one object or of many at once.
    Delete,
}

impl RequestKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Get, Self::Head, Self::Put, Self::List, Self::Delete];

    /// Its name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Head => "head",
            Self::Put => "put",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }

    fn of(method: &str, query: &str) -> Self {
        let asks = |name: &str| {
            query
                .split('&')
                .any(|part| part.split('=').next() == Some(name))
        };
        match method {
            "GET" if asks("list-type") => Self::List,
            "HEAD" => Self::Head,
            "DELETE" => Self::Delete,
            "POST" if asks("delete") => Self::Delete,
            "PUT" | "POST" => Self::Put,
            _ => Self::Get,
        }
    }
}

/// Requests of one kind so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindTraffic {
    /// Requests sent.
    pub requests: u64,
    /// Of those, without an answer or refused (a put that was not the first is refused, too).
    pub failed: u64,
    /// Bytes of bodies sent.
    pub sent_bytes: u64,
    /// Bytes of bodies received, as far as the store announces their size.
    pub received_bytes: u64,
    /// Time until the answers began, all together, in microseconds.
    pub waited_us: u64,
}

/// Counts of all requests to one store.
#[derive(Debug, Default)]
pub struct ObjectTraffic {
    kinds: [Counters; RequestKind::ALL.len()],
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    failed: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    waited_us: AtomicU64,
}

impl ObjectTraffic {
    /// Requests of one kind so far.
    #[must_use]
    pub fn of(&self, kind: RequestKind) -> KindTraffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.kinds[kind as usize];
        KindTraffic {
            requests: read(&counters.requests),
            failed: read(&counters.failed),
            sent_bytes: read(&counters.sent_bytes),
            received_bytes: read(&counters.received_bytes),
            waited_us: read(&counters.waited_us),
        }
    }
}

/// Makes HTTP clients whose requests are counted.
#[derive(Debug)]
pub(crate) struct CountedConnector(pub Arc<ObjectTraffic>);

impl HttpConnector for CountedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        let traffic = Arc::clone(&self.0);
        Ok(HttpClient::new(Counted { client, traffic }))
    }
}

#[derive(Debug)]
struct Counted {
    client: HttpClient,
    traffic: Arc<ObjectTraffic>,
}

#[async_trait]
impl HttpService for Counted {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let query = request.uri().query().unwrap_or_default();
        let kind = RequestKind::of(request.method().as_str(), query);
        let counters = &self.traffic.kinds[kind as usize];
        let add = |counter: &AtomicU64, n: u64| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        add(&counters.requests, 1);
        add(&counters.sent_bytes, request.body().content_length() as u64);
        let begun = Instant::now();
        let outcome = self.client.execute(request).await;
        add(
            &counters.waited_us,
            u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
        );
        match &outcome {
            Ok(response) => {
                if !response.status().is_success() {
                    add(&counters.failed, 1);
                }
                // An answer to HEAD announces a body that does not come.
                if kind != RequestKind::Head {
                    let announced = response.headers().get("content-length");
                    let bytes = announced.and_then(|v| v.to_str().ok()?.parse().ok());
                    add(&counters.received_bytes, bytes.unwrap_or(0));
                }
            }
            Err(_) => add(&counters.failed, 1),
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::RequestKind;

    #[test]
    fn requests_are_told_apart_as_providers_price_them() {
        let kinds = [
            ("GET", "", RequestKind::Get),
            ("GET", "list-type=2&prefix=a", RequestKind::List),
            ("GET", "versionId=list-type", RequestKind::Get),
            ("HEAD", "", RequestKind::Head),
            ("PUT", "", RequestKind::Put),
            ("PUT", "partNumber=1&uploadId=x", RequestKind::Put),
            ("POST", "uploads", RequestKind::Put),
            ("POST", "delete", RequestKind::Delete),
            ("DELETE", "uploadId=x", RequestKind::Delete),
        ];
        for (method, query, kind) in kinds {
            assert_eq!(RequestKind::of(method, query), kind, "{method} ?{query}");
        }
    }
}
