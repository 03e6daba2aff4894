//! Replicas named on the command line.
use super::{Discovery, Fleet, Running};
use crate::dispatch::pool::Source;
use crate::net::shutdown::Shutdown;
use std::collections::BTreeSet;

/// Base URLs that never change.
pub(in crate::dispatch) struct Listed(pub(in crate::dispatch) BTreeSet<String>);

impl Discovery for Listed {
    fn source(&self) -> Source {
        Source::Listed
    }

    fn run(self: Box<Self>, fleet: Fleet, _: Shutdown) -> Running {
        fleet.set(&self.0);
        Box::pin(std::future::ready(()))
    }
}
