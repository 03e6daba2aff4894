//! `elastic`: an image-classification service that keeps its latency promise by itself.
//!
//! The crate is built in floors; imports only go down, and modes never import each other
//! (`tests/it/floors.rs` checks both). In reading order:
//!
//! * floor 0, [`logic`]: decisions without clocks, IO or logging
//! * floor 1, [`model`]: synchronous inference; [`sim`]: a service in simulated time; `draw`: charts on pages that
//!   stand alone
//! * floor 2, [`net`]: what every mode's HTTP side shares
//! * floor 3, the modes: [`serve_model`], [`dispatch`], [`monitor`], [`autoscale`], [`load`],
//!   [`simulate`], [`classify`], [`weights`]
//! * floor 4: [`up`], which composes the modes on one machine, and [`cli`]

mod draw;
pub mod logic;
pub mod model;
pub mod net;
pub mod sim;

pub mod autoscale;
pub mod classify;
pub mod dispatch;
pub mod load;
pub mod monitor;
pub mod serve_model;
pub mod simulate;
pub mod weights;

pub mod cli;
pub mod up;
