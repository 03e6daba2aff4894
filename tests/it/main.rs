//! The integration tests: one binary, one module a subject.
mod autoscale;
mod dispatch;
mod floors;
mod kubernetes_scaler;
mod manifests;
mod support;
