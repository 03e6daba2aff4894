//! Decisions: pure, no async, no clock, no IO, no logging. Time is an argument, counted from a common start.
pub mod policy;
pub mod window;
