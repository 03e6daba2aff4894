//! The integration tests: one binary, one module a subject.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests are tests

mod api_server;
mod autoscale;
mod browser;
mod cli;
mod cluster_discovery;
mod cluster_faults;
mod cluster_loop;
mod cluster_script;
mod dialects;
mod dispatch;
mod drain;
mod failures;
mod floors;
mod judge;
mod kubelet;
mod kubernetes_scaler;
mod load;
mod manifests;
mod metrics;
mod monitor;
mod page;
mod photos;
mod scripts;
mod serve_model;
mod simulate;
mod support;
mod up;
#[cfg(feature = "zoo")]
mod zoo;
