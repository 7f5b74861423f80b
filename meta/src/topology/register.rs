//! A node's registration, renewed when it expires.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::store::{Lost, MetaError, MetaStore, Registration};

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How a registration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// Others see the node.
    Yes,
    /// Others may not see it; being registered again.
    No(String),
    /// Another process has registered as this node: this one must stop. Final.
    Overtaken,
}

/// A node that is registered for as long as this lives.
#[derive(Debug)]
pub struct NodeRegistration {
    state: watch::Receiver<Registered>,
    end: watch::Sender<bool>,
    keeper: tokio::task::JoinHandle<()>,
}

impl NodeRegistration {
    /// How it stands, and every change of that.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Registered> {
        self.state.clone()
    }

    /// Removes the node at once.
    pub async fn end(self) {
        self.end.send_replace(true);
        // A keeper that panicked has said so.
        let _ = self.keeper.await;
    }
}

pub(super) async fn start(
    store: Arc<dyn MetaStore>,
    key: String,
    value: Vec<u8>,
    ttl: Duration,
) -> Result<NodeRegistration, MetaError> {
    let first = store.register(&key, value.clone(), ttl).await?;
    let (tell, state) = watch::channel(Registered::Yes);
    let (end, mut ending) = watch::channel(false);
    let keeper = tokio::spawn(async move {
        let mut registration: Option<Registration> = Some(first);
        let mut pause = PAUSE_MIN;
        loop {
            // An error means that the guard was dropped, which ends it, too.
            let ended = async {
                let _ = ending.wait_for(|end| *end).await;
            };
            match registration.as_mut() {
                Some(held) => {
                    let lost = tokio::select! {
                        () = ended => break,
                        lost = held.wait_lost() => lost,
                    };
                    tracing::warn!(key, %lost, "this node is not registered");
                    registration = None;
                    match lost {
                        Lost::Overtaken => {
                            tell.send_replace(Registered::Overtaken);
                            break;
                        }
                        Lost::Expired(why) => tell.send_replace(Registered::No(why)),
                    };
                }
                None => {
                    let again = tokio::select! {
                        () = ended => break,
                        again = again(&*store, &key, &value, ttl) => again,
                    };
                    match again {
                        Ok(None) => {
                            tell.send_replace(Registered::Overtaken);
                            break;
                        }
                        Ok(Some(held)) => {
                            tracing::info!(key, "this node is registered again");
                            registration = Some(held);
                            pause = PAUSE_MIN;
                            tell.send_replace(Registered::Yes);
                        }
                        Err(error) => {
                            tell.send_replace(Registered::No(error.to_string()));
                            tokio::time::sleep(pause).await;
                            pause = (pause * 2).min(PAUSE_MAX);
                        }
                    }
                }
            }
        }
        if let Some(held) = registration {
            held.end().await;
        }
    });
    Ok(NodeRegistration { state, end, keeper })
}

/// Registers again, unless another process has registered as this node meanwhile: `None`.
async fn again(
    store: &dyn MetaStore,
    key: &str,
    value: &[u8],
    ttl: Duration,
) -> Result<Option<Registration>, MetaError> {
    match store.get(key).await? {
        Some((found, _)) if found != value => Ok(None),
        _ => store.register(key, value.to_vec(), ttl).await.map(Some),
    }
}
