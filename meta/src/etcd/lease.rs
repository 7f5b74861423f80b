//! Keys that go when their process is not heard of.
//!
//! The key hangs on a lease that is kept alive three times within its time to live. With each
//! keep-alive the key is read: when another process has put it since, it is told as overtaken and
//! left alone. A lease that could not be kept alive for its time to live, counted from when the
//! last good keep-alive was *sent*, is told as expired, whatever etcd may still think: it is told
//! no later than others may see the key gone.

use std::time::Duration;

use etcd_client::{Client, Error, Txn, TxnOp};
use tokio::time::{Instant, timeout_at};

use super::connection::{Connection, Failure};
use super::{leased, unsigned};
use crate::store::{Kept, Lost, MetaError, Registration};

/// Keep-alives within one time to live.
const BEATS: u32 = 3;
/// etcd's leases are whole seconds; shorter ones end by a stalled disk.
const TTL_MIN: Duration = Duration::from_secs(2);

pub(super) async fn register(
    connection: Connection,
    compares: Vec<etcd_client::Compare>,
    key: String,
    value: Vec<u8>,
    ttl: Duration,
) -> Result<Registration, MetaError> {
    let ttl = Duration::from_secs(ttl.max(TTL_MIN).as_secs());
    let sent = Instant::now();
    let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    // A lease whose answer is lost holds no key and goes by itself.
    let lease = connection
        .read(|mut client| async move { client.lease_grant(seconds, None).await })
        .await
        .map_err(Failure::of_read)?
        .id();
    let put = TxnOp::put(key.as_str(), value, leased(lease));
    let request = Txn::new().when(compares).and_then([put]);
    let put = connection
        .change(|mut client| {
            let request = request.clone();
            async move { client.txn(request).await }
        })
        .await
        .map_err(Failure::of_commit);
    let revision = match put {
        Ok(put) if put.succeeded() => put.header().map_or(0, |h| unsigned(h.revision())),
        refused => {
            // With it goes the key, if it was put and the answer is lost.
            revoke(&connection, &key, lease).await;
            refused?;
            return Err(MetaError::Conflict);
        }
    };
    let keeper = Keeper {
        connection,
        key,
        lease,
        revision,
        ttl,
        good_until: sent + ttl,
    };
    Ok(Registration::keep(revision, move |kept| keeper.run(kept)))
}

struct Keeper {
    connection: Connection,
    key: String,
    lease: i64,
    revision: u64,
    ttl: Duration,
    good_until: Instant,
}

impl Keeper {
    async fn run(mut self, mut kept: Kept) {
        let mut beat = tokio::time::interval(self.ttl / BEATS);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut trouble = String::new();
        loop {
            tokio::select! {
                () = kept.ended() => {
                    self.revoke().await;
                    return;
                }
                _ = beat.tick() => {}
            }
            let asked = tokio::select! {
                () = kept.ended() => {
                    self.revoke().await;
                    return;
                }
                asked = timeout_at(self.good_until, self.keep_alive()) => asked,
            };
            match asked {
                Ok(Ok(())) => {}
                Ok(Err(Beat::Lost(lost))) => {
                    kept.tell(lost);
                    return;
                }
                Ok(Err(Beat::Failed(why))) => trouble = why,
                Err(_) => trouble = "etcd does not answer".into(),
            }
            if Instant::now() >= self.good_until {
                kept.tell(Lost::Expired(trouble));
                self.revoke().await;
                return;
            }
        }
    }

    async fn keep_alive(&mut self) -> Result<(), Beat> {
        let sent = Instant::now();
        let lease = self.lease;
        // So short that another endpoint is asked within the time to live.
        let patience = self.ttl / (BEATS + 1);
        let alive = self
            .connection
            .read_within(patience, |client| beat(client, lease))
            .await
            .map_err(|e| Beat::Failed(e.of_read().to_string()))?;
        if !alive {
            return Err(Beat::Lost(Lost::Expired("etcd has ended the lease".into())));
        }
        let key = self.key.clone();
        let found = self
            .connection
            .read_within(patience, |mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await
            .map_err(|e| Beat::Failed(e.of_read().to_string()))?;
        match found.kvs().first() {
            Some(kv) if unsigned(kv.mod_revision()) == self.revision => {
                self.good_until = sent + self.ttl;
                Ok(())
            }
            Some(_) => Err(Beat::Lost(Lost::Overtaken)),
            None => Err(Beat::Lost(Lost::Expired("the key is gone".into()))),
        }
    }

    async fn revoke(&self) {
        revoke(&self.connection, &self.key, self.lease).await;
    }
}

/// Removes the key with its lease; what fails goes by itself within the time to live.
async fn revoke(connection: &Connection, key: &str, lease: i64) {
    let revoked = connection
        .change(|mut client| async move { client.lease_revoke(lease).await })
        .await;
    if let Err(failure) = revoked {
        let error = failure.of_read();
        tracing::debug!(key, %error, "registration not removed; it expires");
    }
}

enum Beat {
    Lost(Lost),
    Failed(String),
}

/// One keep-alive; false: there is no such lease.
async fn beat(mut client: Client, lease: i64) -> Result<bool, Error> {
    // Opening the stream sends one and waits for its answer.
    match client.lease_keep_alive(lease).await {
        Ok(_) => Ok(true),
        Err(Error::LeaseKeepAliveError(_)) => Ok(false),
        Err(e) => Err(e),
    }
}
