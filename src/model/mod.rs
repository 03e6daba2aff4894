//! Synchronous inference.
use serde::{Deserialize, Serialize};

/// One class with its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Name of the class.
    pub label: String,
    /// Index of the class, from 0.
    pub index: usize,
    /// Softmax probability.
    pub probability: f32,
}
