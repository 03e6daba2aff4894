//! The integration tests: one binary, one module a subject.
mod dispatch;
mod floors;
mod support;
