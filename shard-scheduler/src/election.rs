//! Which of several schedulers leads.
//!
//! Every process tries to put one key under a lease when it sees it gone. Whoever has it leads until
//! its lease ends, which it may learn late: whatever it changes meanwhile demands that very key, so
//! it changes nothing ([`shoal_meta::Fence`]).

use std::time::Duration;

use shoal_meta::{MetaError, SchedulerEntry, Topology};
use shoal_types::Clock;
use tokio::sync::{mpsc, watch};

use crate::conductor::{Backends, Command, Conductor, ConductorLimits, Ended};

/// Pause before meta is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// One that hears nobody stands for election again after so many leases.
const DEAF_LEASES: u32 = 3;

/// Whether this process leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elected {
    /// Another one may.
    No,
    /// It does.
    Yes,
}

/// Leads whenever nobody else does, until `commands` has no sender any more.
pub async fn serve(
    backends: Backends,
    entry: SchedulerEntry,
    ttl: Duration,
    limits: ConductorLimits,
    clock: &dyn Clock,
    mut commands: mpsc::Receiver<Command>,
    elected: watch::Sender<Elected>,
) {
    loop {
        tokio::select! {
            () = unled(&backends.topology) => {}
            command = commands.recv() => {
                // Nobody answers: its sender learns that this process does not lead.
                if command.is_none() {
                    return;
                }
                continue;
            }
        }
        let (mut registration, fence) = match backends.topology.lead(&entry, ttl).await {
            Ok(won) => won,
            Err(error) => {
                if !matches!(error, MetaError::Conflict) {
                    tracing::warn!(%error, "cannot stand for election");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        tracing::info!(process = %entry.process, "leading");
        elected.send_replace(Elected::Yes);
        let over = tokio::select! {
            over = Conductor::run(
                backends.clone(),
                fence,
                limits,
                clock.now_ms(),
                &mut commands,
            ) => over,
            lost = registration.wait_lost() => {
                tracing::warn!(%lost, "not leading any more");
                Ended::Fenced
            }
        };
        elected.send_replace(Elected::No);
        match &over {
            Ended::Meta(error) => {
                tracing::error!(process = %entry.process, %error, "cannot lead: what schedulers keep is not readable");
            }
            Ended::NotLetIn(_) => {
                tracing::error!(process = %entry.process, %over, "cannot lead");
            }
            over => tracing::info!(process = %entry.process, %over, "a tenure has ended"),
        }
        registration.end().await;
        if matches!(over, Ended::Stopped) {
            return;
        }
        // Whoever hears more takes it up meanwhile.
        let pause = match over {
            Ended::Deaf | Ended::NotLetIn(_) => ttl * DEAF_LEASES,
            _ => PAUSE,
        };
        tokio::time::sleep(pause).await;
    }
}

/// Resolves when no scheduler leads.
async fn unled(topology: &Topology) {
    let mut changes = topology.subscribe();
    // An error means that the topology is not followed any more: the process stops.
    let _ = changes
        .wait_for(|snapshot| snapshot.scheduler.is_none())
        .await;
}
