//! One shard, in its role.

use std::sync::Arc;

use shoal_types::ShardId;

use super::Role;
use crate::EngineError;
use crate::env::Env;
use crate::shard::open::{Listed, StopsIfDropped, open as open_shard};
use crate::shard::{Shard, Stopped};

/// Opens a shard in a role.
///
/// # Errors
/// Why it cannot be served so; then it is not open.
pub(super) async fn open_as(
    env: Arc<Env>,
    id: ShardId,
    listed: Option<Arc<Listed>>,
    role: Role,
) -> Result<Arc<Shard>, EngineError> {
    let shard = open_shard(env, id, listed).await?;
    let mut unfinished = StopsIfDropped(Some(Arc::clone(&shard)));
    if role == Role::Leader
        && let Err(error) = shard.promote(0).await
        // One that cannot read its log shows what it has.
        && !shard.halted.is()
    {
        let stopped = shard.stopped();
        shard.stop(Stopped::Closed);
        shard.join().await;
        return Err(match stopped {
            // The reader of its log knows better what is wrong.
            Some(why) => EngineError::ShardUnavailable {
                shard: id,
                why: why.why(),
            },
            None => error,
        });
    }
    if role == Role::Follower {
        shard.begin_to_catch_up();
    }
    unfinished.0 = None;
    Ok(shard)
}
