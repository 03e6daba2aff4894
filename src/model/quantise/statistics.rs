//! What the activations of the float network were like on photos.
//!
//! **Invariant**: there is one [`Channels`] for each activation, in the order of [`Activation::index`].
use crate::model::network::{Kind, Network};
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
    /// Sums of the products of two channels, `[channels, channels]`; empty where nobody needs them.
    products: Vec<f64>,
}

impl Channels {
    fn new(channels: usize, with_products: bool) -> Self {
        Self {
            low: vec![f32::INFINITY; channels],
            high: vec![f32::NEG_INFINITY; channels],
            sum: vec![0.0; channels],
            pixels: 0,
            products: vec![0.0; if with_products { channels * channels } else { 0 }],
        }
    }

    fn observe(&mut self, values: &[f32]) {
        let channels = self.sum.len();
        // One image's products fit a float; those of all images would round away.
        let mut products = vec![0.0_f32; self.products.len()];
        for pixel in values.chunks_exact(channels) {
            for (channel, value) in pixel.iter().enumerate() {
                self.low[channel] = self.low[channel].min(*value);
                self.high[channel] = self.high[channel].max(*value);
                self.sum[channel] += f64::from(*value);
            }
            for (value, products) in pixel.iter().zip(products.chunks_exact_mut(channels)) {
                // ReLU6 makes half of them zero.
                if *value != 0.0 {
                    products.iter_mut().zip(pixel).for_each(|(sum, other)| *sum += value * other);
                }
            }
            self.pixels += 1;
        }
        self.products.iter_mut().zip(products).for_each(|(sum, product)| *sum += f64::from(product));
    }

    /// Mean of a channel.
    #[must_use]
    pub fn mean(&self, channel: usize) -> f64 {
        self.sum[channel] / self.pixels.max(1) as f64
    }

    /// Whether every value seen was a number.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.sum.iter().all(|sum| sum.is_finite())
    }

    /// Whether [`Channels::covariance`] was observed.
    #[must_use]
    pub fn has_covariance(&self) -> bool {
        !self.products.is_empty()
    }

    /// Covariance of two channels.
    ///
    /// # Panics
    /// If it was not observed.
    #[must_use]
    pub fn covariance(&self, a: usize, b: usize) -> f64 {
        let product = self.products[a * self.sum.len() + b];
        product / self.pixels.max(1) as f64 - self.mean(a) * self.mean(b)
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
        let plan = network.plan();
        let convolutions: Vec<_> = plan.convolutions().collect();
        // Products are for the 1x1 convolutions that read an activation; the last of these is the head.
        let after = convolutions.iter().skip(1).map(|next| next.kind == Kind::Pointwise).chain([false]);
        let mut activations = vec![Channels::new(3, false)];
        activations
            .extend(convolutions.iter().zip(after).map(|(c, products)| Channels::new(c.output, products)));
        activations.push(Channels::new(network.head_channels, false));
        Self { activations }
    }

    /// Takes one activation of one image in.
    pub fn observe(&mut self, activation: Activation) {
        self.activations[activation.index].observe(activation.values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::{EFFICIENTNET_LITE0, MOBILENET_V2};

    #[test]
    fn ranges_means_and_covariances_by_hand() {
        let mut channels = Channels::new(2, true);
        channels.observe(&[1.0, -2.0, 3.0, 0.0]);
        channels.observe(&[2.0, 8.0]);
        assert_eq!((&channels.low[..], &channels.high[..]), (&[1.0, -2.0][..], &[3.0, 8.0][..]));
        assert_eq!((channels.mean(0), channels.mean(1)), (2.0, 2.0));
        let covariance = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(a, b)| channels.covariance(a, b));
        // (1 + 9 + 4)/3 − 4; (−2 + 0 + 16)/3 − 4; (4 + 0 + 64)/3 − 4.
        let expected = [2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 56.0 / 3.0];
        assert!(covariance.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-12));
    }

    #[test]
    fn what_a_pointwise_convolution_reads_has_a_covariance() {
        for network in [&MOBILENET_V2, &EFFICIENTNET_LITE0] {
            let statistics = Statistics::new(network);
            let convolutions: Vec<_> = network.plan().convolutions().cloned().collect();
            assert_eq!(statistics.activations.len(), convolutions.len() + 2);
            for (reader, channels) in convolutions.iter().zip(&statistics.activations) {
                assert_eq!(channels.low.len(), reader.input);
                let expected = reader.kind == Kind::Pointwise;
                assert_eq!(channels.has_covariance(), expected, "{}", reader.name);
            }
        }
    }
}
