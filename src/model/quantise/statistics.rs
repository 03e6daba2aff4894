//! What the activations of the float network were like on photos.
//!
//! **Invariant**: there is one [`Channels`] for each activation, in the order of [`Activation::index`].
use crate::model::network::Network;
use crate::model::quantise::float::Activation;

/// Observations of one activation, channel by channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    /// Smallest value.
    pub low: Vec<f32>,
    /// Largest value.
    pub high: Vec<f32>,
    /// Sum of the values.
    sum: Vec<f64>,
    /// Number of pixels.
    pixels: u64,
}

impl Channels {
    fn new(channels: usize) -> Self {
        let (low, high) = (vec![f32::INFINITY; channels], vec![f32::NEG_INFINITY; channels]);
        Self { low, high, sum: vec![0.0; channels], pixels: 0 }
    }

    fn observe(&mut self, values: &[f32]) {
        let channels = self.sum.len();
        // Sums of one image in f32 would round away the small ones.
        for pixel in values.chunks_exact(channels) {
            for (channel, value) in pixel.iter().enumerate() {
                self.low[channel] = self.low[channel].min(*value);
                self.high[channel] = self.high[channel].max(*value);
                self.sum[channel] += f64::from(*value);
            }
            self.pixels += 1;
        }
    }

    /// Mean of a channel.
    #[must_use]
    pub fn mean(&self, channel: usize) -> f64 {
        self.sum[channel] / self.pixels.max(1) as f64
    }
}

/// Observations of every activation of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// By [`Activation::index`].
    pub activations: Vec<Channels>,
}

impl Statistics {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(network: &Network) -> Self {
        let outputs = network.plan().convolutions().map(|convolution| convolution.output).collect::<Vec<_>>();
        let channels = [3].into_iter().chain(outputs).chain([network.head_channels]);
        Self { activations: channels.map(Channels::new).collect() }
    }

    /// Takes one activation of one image in.
    pub fn observe(&mut self, activation: Activation) {
        self.activations[activation.index].observe(activation.values);
    }
}
