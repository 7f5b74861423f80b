//! A member of etcd, as an operator's tool speaks to it.

use serde_json::{Value, json};

use crate::{Client, Failed};

/// A member of the etcd of a [`Stack`](crate::Stack).
#[derive(Clone, Debug)]
pub struct EtcdMember {
    /// Its name as a component of the stack.
    pub name: String,
    client: Client,
}

fn number(text: &Value) -> u64 {
    // etcd's JSON has 64-bit numbers as text.
    let parsed = text.as_str().and_then(|t| t.parse().ok());
    parsed.unwrap_or_else(|| panic!("{text} is no number"))
}

impl EtcdMember {
    pub(crate) fn new(name: &str, url: &str) -> Self {
        Self {
            name: name.to_owned(),
            client: Client::new(url),
        }
    }

    async fn ask(&self, path: &str, body: Value) -> Failed<Value> {
        let text = self.client.post(path, &body).await?;
        Ok(serde_json::from_str(&text).expect("JSON"))
    }

    async fn status(&self) -> Value {
        let status = self.ask("/v3/maintenance/status", json!({})).await;
        status.unwrap_or_else(|failure| panic!("{}: {failure:?}", self.name))
    }

    /// Whether it leads the members.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn leads(&self) -> bool {
        let status = self.status().await;
        status["leader"] == status["header"]["member_id"]
    }

    /// The newest revision that it knows.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn revision(&self) -> u64 {
        number(&self.status().await["header"]["revision"])
    }

    /// Forgets everything that was overwritten or deleted up to a revision.
    ///
    /// # Panics
    /// When it does not.
    pub async fn compact(&self, revision: u64) {
        let done = self
            .ask("/v3/kv/compaction", json!({ "revision": revision }))
            .await;
        done.unwrap_or_else(|failure| panic!("{}: {failure:?}", self.name));
    }

    /// Whether it can still tell what was at a revision.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn remembers(&self, revision: u64) -> bool {
        let any_key = json!({ "key": "aw==", "revision": revision });
        match self.ask("/v3/kv/range", any_key).await {
            Ok(_) => true,
            Err(failure) => {
                assert!(failure.text.contains("compacted"), "{failure:?}");
                false
            }
        }
    }
}
