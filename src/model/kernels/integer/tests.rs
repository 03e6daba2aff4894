use super::*;
use crate::model::kernels::Padding;
use proptest::prelude::*;

#[test]
fn rounding_is_to_even_and_within_a_byte() {
    let rounded = [-1e9, -0.6, -0.5, 0.5, 1.5, 2.5, 2.500_001, 254.5, 255.4, 300.0, 1e9].map(round);
    assert_eq!(rounded, [0, 0, 0, 0, 2, 2, 3, 254, 255, 255, 255]);
}

#[test]
fn scaling_rounds_once() {
    // 16,777,217 has no float: the sum rounds to even first, then the product and the addition round together.
    assert_eq!(scale(16_777_217, 1.0, 1.0).to_bits(), 16_777_216.0_f32.to_bits());
    let (multiplier, offset) = (1.0 + f32::EPSILON, -1.0);
    assert_eq!(scale(1, multiplier, offset).to_bits(), f32::EPSILON.to_bits());
    let (third, exact) = (1.0_f32 / 3.0, f64::from(1.0_f32 / 3.0) * 3.0 - 1.0);
    assert_eq!(scale(3, third, -1.0).to_bits(), (exact as f32).to_bits());
}

#[test]
fn a_product_adds_its_residual_before_it_rounds() {
    let product = Product { weight: &[1, -2, 127, 0], multiplier: &[0.5, 0.25], offset: &[3.0, 0.5] };
    let mut output = [0; 4];
    pointwise(&[10, 3, 1, 200], product, None, &mut output);
    // (10 - 6)/2 + 3; 1270/4 + 0.5 beyond the byte; (1 - 400)/2 + 3 below it; 127/4 + 0.5 = 32.25.
    assert_eq!(output, [5, 255, 0, 32]);
    let residual = Residual { values: &[1, 0, 255, 2], multiplier: &[0.5, 0.125] };
    pointwise(&[10, 3, 1, 200], product, Some(residual), &mut output);
    // 5 + 0.5 is a tie and goes to 6; 32.25 + 0.25 is one too and goes to 32.
    assert_eq!(output, [6, 255, 0, 32]);
}

#[test]
fn the_mean_and_the_classifier_by_hand() {
    let mut output = [0; 2];
    mean(&[1, 10, 2, 20, 4, 255], &[1.0 / 3.0, 0.5], &mut output);
    assert_eq!(output, [2, 142]);
    let product = Product { weight: &[1, -1, 2, 3], multiplier: &[0.5, 2.0], offset: &[0.25, -10.0] };
    let mut logits = [0.0; 2];
    classifier(&[4, 10], product, &mut logits);
    assert_eq!(logits.map(f32::to_bits), [-2.75_f32, 66.0].map(f32::to_bits));
}

/// The image with a border of `padding` so wide that no tap leaves it, and the width of the result.
fn bordered(window: &Window, channels: usize, input: &[u8], padding: &[u8]) -> (Vec<u8>, usize) {
    let reach = window.kernel * 2;
    let width = window.width + 2 * reach;
    let mut wide: Vec<u8> =
        padding.iter().copied().cycle().take(width * (window.height + 2 * reach) * channels).collect();
    for row in 0..window.height {
        let to = ((row + reach) * width + reach) * channels;
        wide[to..to + window.width * channels]
            .copy_from_slice(&input[row * window.width * channels..][..window.width * channels]);
    }
    (wide, width)
}

/// Sum under the kernel at an output pixel, of one input channel, in the order of the kernel's rows.
fn window_sum(
    window: &Window,
    (wide, width): &(Vec<u8>, usize),
    (channels, channel): (usize, usize),
    at: usize,
    weight: impl Fn(usize) -> i8,
) -> i64 {
    let reach = window.kernel * 2;
    let row = at / window.output_width * window.stride + reach - window.before_rows;
    let column = at % window.output_width * window.stride + reach - window.before_columns;
    (0..window.kernel * window.kernel)
        .map(|tap| {
            let (down, right) = (tap / window.kernel, tap % window.kernel);
            let value = wide[((row + down) * width + column + right) * channels + channel];
            i64::from(value) * i64::from(weight(tap))
        })
        .sum()
}

/// What the kernels promise, from an exact sum, in f64 except where they say f32.
fn expected(sum: i64, multiplier: f32, offset: f32) -> u8 {
    let exact = f64::from(sum as f32) * f64::from(multiplier) + f64::from(offset);
    (exact as f32).round_ties_even().clamp(0.0, 255.0) as u8
}

fn windows() -> impl Strategy<Value = Window> {
    let kernel = prop::sample::select(vec![1_usize, 3, 5, 7]);
    let padding = prop::sample::select(vec![Padding::Symmetric, Padding::Same]);
    (kernel, 1_usize..4, padding, 1_usize..9, 1_usize..9).prop_map(
        |(kernel, stride, padding, height, width)| Window::new(kernel, stride, padding, height, width),
    )
}

/// Endless bytes that depend on a seed.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    use rand::{RngCore as _, SeedableRng as _};
    let mut bytes = vec![0; length];
    rand_pcg::Pcg64Mcg::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn weights(seed: u64, length: usize) -> Vec<i8> {
    bytes(seed, length).into_iter().map(|byte| byte.cast_signed().max(-127)).collect()
}

proptest! {
    #[test]
    fn depthwise_is_a_sum_over_a_bordered_image(window in windows(), channels in 1_usize..5, seed: u64) {
        let input = bytes(seed, window.height * window.width * channels);
        let area = window.kernel * window.kernel;
        let weight = weights(seed ^ 1, channels * area);
        let (multiplier, offset) = (vec![0.01; channels], vec![30.25; channels]);
        let product = Product { weight: &weight, multiplier: &multiplier, offset: &offset };
        let pixels = window.output_height * window.output_width;
        let mut output = vec![0; pixels * channels];
        depthwise(&window, &input, product, &mut output);
        let wide = bordered(&window, channels, &input, &[0]);
        for (at, value) in output.iter().enumerate() {
            let (pixel, channel) = (at / channels, at % channels);
            let sum = window_sum(&window, &wide, (channels, channel), pixel, |tap| weight[channel * area + tap]);
            prop_assert_eq!(*value, expected(sum, 0.01, 30.25));
        }
    }

    #[test]
    fn the_stem_is_a_sum_over_an_image_bordered_with_its_padding(window in windows(), seed: u64) {
        let (input, padding) = (bytes(seed, window.height * window.width * 3), [7, 130, 255]);
        let area = window.kernel * window.kernel;
        let weight = weights(seed ^ 2, 4 * 3 * area);
        let (multiplier, offset) = ([0.003; 4], [100.5; 4]);
        let product = Product { weight: &weight, multiplier: &multiplier, offset: &offset };
        let mut output = vec![0; window.output_height * window.output_width * 4];
        stem(&window, padding, &input, product, &mut output);
        let wide = bordered(&window, 3, &input, &padding);
        for (at, value) in output.iter().enumerate() {
            let sum = (0..3).map(|channel| {
                let from = (at % 4 * 3 + channel) * area;
                window_sum(&window, &wide, (3, channel), at / 4, |tap| weight[from + tap])
            });
            prop_assert_eq!(*value, expected(sum.sum(), 0.003, 100.5));
        }
    }
}
