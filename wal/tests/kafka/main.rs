//! The Kafka log against real brokers.

mod failing;
mod healthy;
mod outages;
mod support;
mod topics;
