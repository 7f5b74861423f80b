//! The few calls of librdkafka that its Rust crate does not wrap.

use std::ffi::CString;

use rdkafka::bindings;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::{RDKafka, RDKafkaRespErr};

use super::outcome::Persisted;

/// Whether a record that failed may be in the log, as the client knows.
pub(super) fn persisted(message: &BorrowedMessage<'_>) -> Persisted {
    // SAFETY: the pointer is that of a live message of a delivery report.
    let status = unsafe { bindings::rd_kafka_message_status(message.ptr()) };
    match status {
        bindings::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED => Persisted::No,
        bindings::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED => {
            Persisted::Possibly
        }
        bindings::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_PERSISTED => Persisted::Yes,
    }
}

/// The end of a topic's only partition as the consumer's last fetch saw it. Asks nobody.
pub(super) fn end_seen(client: *mut RDKafka, topic: &str) -> Option<u64> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive, the name ends in a zero byte, the two results are ours.
    let code = unsafe {
        bindings::rd_kafka_get_watermark_offsets(client, topic.as_ptr(), 0, &mut low, &mut high)
    };
    if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return None;
    }
    u64::try_from(high).ok()
}

/// Makes a producer fail for good.
pub(super) fn fail_for_test(client: *mut RDKafka) {
    let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    // SAFETY: the client is alive and the text ends in a zero byte.
    unsafe { bindings::rd_kafka_test_fatal_error(client, code, c"asked for by a test".as_ptr()) };
}
