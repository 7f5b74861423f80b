//! What a failed delivery means for its record: the one place where Kafka's errors become ours.
//!
//! The client keeps for every record whether it may be in the log (`rd_kafka_message_status`): "not
//! persisted" until a request that carried it was left without a definite refusal (connection lost,
//! time limit, `REQUEST_TIMED_OUT`, `NOT_ENOUGH_REPLICAS_AFTER_APPEND`, purged in flight), and never
//! lowered again. "Possibly" is therefore true. "Not" is not always: a broker that loses its
//! leadership while a record that it appended waits for the other replicas answers
//! `NOT_LEADER_OR_FOLLOWER`, which the client takes for a refusal; the record may live on in the
//! next leader. So "not" counts only where the answer is about the record itself, and every
//! attempt must have been answered alike.
//!
//! | code | status | is |
//! |---|---|---|
//! | `_MSG_TIMED_OUT`, `_TIMED_OUT`, `_TIMED_OUT_QUEUE`, `REQUEST_TIMED_OUT`, `NOT_ENOUGH_REPLICAS`, `NOT_ENOUGH_REPLICAS_AFTER_APPEND` | any | commit timeout: its outcome is unknown |
//! | `MSG_SIZE_TOO_LARGE`, `INVALID_MSG`, `INVALID_MSG_SIZE`, `INVALID_RECORD`, `INVALID_TIMESTAMP` | not persisted | not appended |
//! | the same | possibly, persisted | unknown |
//! | any other (`TOPIC_AUTHORIZATION_FAILED`, `_UNKNOWN_TOPIC`, `_PURGE_QUEUE`, `_FATAL`, …) | any | unknown |
//!
//! `NOT_ENOUGH_REPLICAS` is asked again by the client until the time limit, so it mostly comes as
//! `_MSG_TIMED_OUT`. What the client refuses to take at all (`produce()` fails) is definite and is
//! not judged here.

use rdkafka::types::RDKafkaErrorCode;

use crate::log::LogError;

/// Whether a record may be in the log, as the client thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persisted {
    No,
    Possibly,
    Yes,
}

/// See the module.
pub(super) fn of_failure(
    code: RDKafkaErrorCode,
    persisted: Persisted,
    timeout_ms: u64,
) -> LogError {
    use RDKafkaErrorCode as Code;
    match (code, persisted) {
        (
            Code::MessageTimedOut
            | Code::OperationTimedOut
            | Code::TimedOutQueue
            | Code::RequestTimedOut
            | Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend,
            _,
        ) => LogError::CommitTimeout { timeout_ms },
        (
            Code::MessageSizeTooLarge
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp,
            Persisted::No,
        ) => LogError::NotAppended(code.to_string()),
        _ => LogError::Unknown(code.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_types::Retry;

    #[test]
    fn only_what_certainly_is_not_in_the_log_may_be_sent_again() {
        use RDKafkaErrorCode as Code;
        let cases = [
            (Code::MessageSizeTooLarge, Persisted::No, Retry::Safe),
            (
                Code::MessageSizeTooLarge,
                Persisted::Possibly,
                Retry::Unknown,
            ),
            (Code::UnknownTopic, Persisted::No, Retry::Unknown),
            (Code::MessageTimedOut, Persisted::No, Retry::Unknown),
            (
                Code::TopicAuthorizationFailed,
                Persisted::No,
                Retry::Unknown,
            ),
            (Code::PurgeQueue, Persisted::No, Retry::Unknown),
            (Code::PurgeInflight, Persisted::Possibly, Retry::Unknown),
            (Code::Fatal, Persisted::No, Retry::Unknown),
            (
                Code::DuplicateSequenceNumber,
                Persisted::Yes,
                Retry::Unknown,
            ),
        ];
        for (code, persisted, retry) in cases {
            let error = of_failure(code, persisted, 100);
            assert_eq!(error.retry(), retry, "{code:?} {persisted:?}: {error}");
        }
    }

    #[test]
    fn too_few_replicas_in_time_have_an_error_of_their_own() {
        use RDKafkaErrorCode as Code;
        for code in [
            Code::MessageTimedOut,
            Code::NotEnoughReplicas,
            Code::NotEnoughReplicasAfterAppend,
        ] {
            let error = of_failure(code, Persisted::No, 1500);
            assert!(
                matches!(error, LogError::CommitTimeout { timeout_ms: 1500 }),
                "{error}"
            );
        }
    }
}
