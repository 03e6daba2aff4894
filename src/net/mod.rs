//! What every mode's HTTP side shares: listening, wire types, errors, the client, metrics, logging, shutdown.
//!
//! **Invariant**: nothing here knows a mode.
pub mod backoff;
pub mod client;
pub mod clock;
pub mod deadline;
pub mod error;
pub mod files;
pub mod kubernetes;
pub mod metrics;
pub mod names;
pub mod openapi;
pub mod pieces;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
pub mod traceparent;
pub mod wire;
