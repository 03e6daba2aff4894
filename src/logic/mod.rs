//! Decisions: pure, no async, no clock, no IO, no logging. Time is an argument, counted from a common start.
pub mod adoption;
pub mod arrivals;
pub mod balance;
pub mod batch;
pub mod budget;
pub mod election;
pub mod health;
pub mod histogram;
pub mod policy;
pub mod queue;
pub mod rates;
pub mod search;
pub mod service;
pub mod window;
