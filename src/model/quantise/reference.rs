//! The integer network on the plain kernels: slow, and what every faster one must equal bit for bit.
//!
//! **Invariant**: the logits depend on the network and the pixels alone.
use crate::model::kernels::Window;
use crate::model::kernels::integer::{self, Product, Residual};
use crate::model::network::Convolution;
use crate::model::quantise::{Layer, Quantised, padding};

impl Layer {
    /// As the kernels take it.
    #[must_use]
    pub fn product(&self) -> Product<'_> {
        Product { weight: &self.weight, multiplier: &self.multiplier, offset: &self.offset }
    }
}

/// Logits of one image, `[height, width, 3]` bytes in the network's size, red first.
///
/// # Panics
/// If the number of bytes is another.
#[must_use]
pub fn logits(quantised: &Quantised, pixels: &[u8]) -> Vec<f32> {
    let network = quantised.network;
    let plan = network.plan();
    let side = network.input_size();
    assert_eq!(pixels.len(), side * side * 3);
    let window = |convolution: &Convolution, side| {
        Window::new(convolution.kernel, convolution.stride, network.padding, side, side)
    };
    let stem = window(&plan.stem, side);
    let mut side = stem.output_height;
    let mut x = vec![0; side * side * network.stem_channels];
    integer::stem(&stem, padding(network), pixels, quantised.stem.product(), &mut x);
    for (block, plan) in quantised.blocks.iter().zip(&plan.blocks) {
        let wide = block.expand.as_ref().map(|expand| {
            let mut wide = vec![0; side * side * expand.offset.len()];
            integer::pointwise(&x, expand.product(), None, &mut wide);
            wide
        });
        let window = window(&plan.depthwise, side);
        side = window.output_height;
        let mut filtered = vec![0; side * side * block.depthwise.offset.len()];
        integer::depthwise(&window, wide.as_deref().unwrap_or(&x), block.depthwise.product(), &mut filtered);
        let mut narrow = vec![0; side * side * block.project.offset.len()];
        let residual = block.residual.as_deref().map(|multiplier| Residual { values: &x, multiplier });
        integer::pointwise(&filtered, block.project.product(), residual, &mut narrow);
        x = narrow;
    }
    let mut wide = vec![0; side * side * quantised.head.offset.len()];
    integer::pointwise(&x, quantised.head.product(), None, &mut wide);
    let mut pooled = vec![0; quantised.pool.len()];
    integer::mean(&wide, &quantised.pool, &mut pooled);
    let mut logits = vec![0.0; quantised.classifier.offset.len()];
    integer::classifier(&pooled, quantised.classifier.product(), &mut logits);
    logits
}
