//! The languages in which clients ask, all on one port: our own, and those of servers that this one can stand in
//! for.
//!
//! [`photo`] and [`tensor`] are what several of them have in common.
//!
//! **Invariant**: a dialect only translates; reading, queueing, deadlines and limits are the same for all. Parsers
//! hold at most a small multiple of the body that they read.
pub(super) mod named;
pub mod photo;
pub(super) mod predict;
pub mod tensor;
pub(super) mod torchserve;
pub mod v1;
pub mod v2;

/// What a parser has to know of the server.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most images in a request.
    pub instances_max: usize,
    /// Side of the network's input, pixels.
    pub side: usize,
}
