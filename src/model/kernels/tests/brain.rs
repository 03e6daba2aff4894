//! bfloat16 kernels against the naive loops with the same roundings. Where a sum lies next to the middle of two
//! numbers the kernels may round it the other way, hence the tolerance.
use super::super::block::{Block, Geometry, Pass, Scratch, Widen};
use super::super::brain::{Average, Brain, Channelwise, Kernels, Pointwise};
use super::super::head::{Head, classify};
use super::super::isa::Isa;
use super::super::precision::{Normalisation, Pixels, Precision as _, Product as _, Source, Target};
use super::run_head;
use super::{Image, Layer, paddings, values};
use crate::model::kernels::Window;
use half::bf16;
use proptest::prelude::*;

/// To bfloat16 and back.
fn rounded(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
}

fn brains(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|value| bf16::from_f32(*value)).collect()
}

impl Image {
    fn rounded(self) -> Self {
        Self { values: rounded(self.values), ..self }
    }
}

impl Layer {
    fn rounded(self) -> Self {
        Self { weight: rounded(self.weight), ..self }
    }

    fn brain(&self, kernels: &'static Kernels, depth: Option<usize>) -> Pointwise {
        let (sizes, weight) = self.matrix(depth);
        Pointwise::new(kernels, sizes, weight, &self.bias, self.activation)
    }
}

#[track_caller]
fn assert_near(what: impl std::fmt::Display, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.5_f32, |largest, value| largest.max(value.abs()));
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let near = (got - expected).abs() <= 0.01 * largest;
        assert!(near, "{what}, value {at}: {got} instead of {expected}, where the largest is {largest}");
    }
}

fn floats(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

proptest! {
    #[test]
    fn blocks_are_near_the_naive_ones(
        (kernel, stride, padding) in (prop_oneof![Just(3_usize), Just(5)], 1_usize..=2, paddings()),
        (height, width) in (1_usize..20, 1_usize..20),
        (twos, middle, outputs) in (1_usize..10, 1_usize..80, 1_usize..50),
        (strip, images, seed) in (1_usize..8, 1_usize..4, any::<u64>()),
    ) {
        let inputs = twos * 2;
        let photos: Vec<Image> =
            (0..images as u64).map(|at| Image::new(seed ^ at << 32, (height, width, inputs)).rounded()).collect();
        let expand = Layer::pointwise(seed ^ 2, inputs, middle, true).rounded();
        let slide = Layer::windowed(seed ^ 4, (kernel, stride), padding, middle).rounded();
        let residual = stride == 1 && seed % 2 == 0;
        let outputs = if residual { inputs } else { outputs };
        let project = Layer::pointwise(seed ^ 6, middle, outputs, false).rounded();
        let expected = photos.iter().flat_map(|photo| {
            let out = photo.convolved(&expand).rounded().convolved(&slide).rounded().convolved(&project);
            if residual { out.plus(photo).values } else { out.values }
        });
        let expected: Vec<f32> = expected.collect();
        let input = brains(&photos.iter().flat_map(|photo| photo.values.clone()).collect::<Vec<_>>());
        for isa in Isa::all() {
            let kernels = Kernels::of(isa);
            let block = Block::<Brain> {
                widen: Widen::Expand(expand.brain(kernels, None)),
                depthwise: Channelwise::new(kernels, (kernel, stride), &slide.weight, &slide.bias).unwrap(),
                project: project.brain(kernels, Some(kernels.block)),
                residual,
            };
            let window = Window::new(kernel, stride, padding, height, width);
            for strip in [None, Some(strip)] {
                let geometry = Geometry::new(&block, window.clone(), None, images, strip);
                let mut scratch = Scratch::new([(&block, &geometry)].into_iter());
                let mut output = vec![bf16::NAN; expected.len()];
                let pass =
                    Pass { block: &block, geometry: &geometry, input: input.as_ptr(), output: output.as_mut_ptr() };
                unsafe { pass.run(0..images, 0..geometry.window.output_height, &mut scratch) };
                assert_near(format!("{isa}, strip {strip:?}"), &floats(&output), &expected);
            }
        }
    }

    #[test]
    fn products_are_near_the_naive_one_and_write_nothing_else(
        (pixels, twos, outputs) in (1_usize..32, 1_usize..35, 1_usize..70),
        (residual, activation, seed) in (any::<bool>(), any::<bool>(), any::<u64>()),
    ) {
        let layer = Layer::pointwise(seed, twos * 2, outputs, activation).rounded();
        let input = Image::new(seed ^ 2, (1, pixels, twos * 2)).rounded();
        let added = Image::new(seed ^ 3, (1, pixels, outputs)).rounded();
        let mut expected = input.convolved(&Layer { activation: false, ..layer.clone() });
        if residual {
            expected = expected.plus(&added);
        }
        if activation {
            expected.values.iter_mut().for_each(|value| *value = value.clamp(0.0, 6.0));
        }
        for isa in Isa::all() {
            let packed = layer.brain(Kernels::of(isa), None);
            // Each pixel's output is followed by a value that must stay.
            let stride = outputs + 1;
            let mut output = vec![bf16::INFINITY; pixels * stride];
            let mut spaced = vec![bf16::ZERO; pixels * stride];
            for (to, from) in spaced.chunks_exact_mut(stride).zip(added.values.chunks_exact(outputs)) {
                to[..outputs].copy_from_slice(&brains(from));
            }
            let offsets: Vec<u32> = (0..pixels).map(|pixel| (pixel * stride) as u32).collect();
            let input = brains(&input.values);
            let source = Source { values: input.as_ptr(), pixel_stride: twos * 2, segment_stride: 0 };
            let target = Target {
                values: output.as_mut_ptr(),
                offsets: &offsets,
                residual: if residual { spaced.as_ptr() } else { std::ptr::null() },
                padded: false,
            };
            unsafe { packed.run(packed.layout().all(), source, target) };
            let got: Vec<bf16> = output.chunks_exact(stride).flat_map(|pixel| pixel[..outputs].to_vec()).collect();
            assert_near(isa, &floats(&got), &expected.values);
            prop_assert!(output.iter().skip(outputs).step_by(stride).all(|value| *value == bf16::INFINITY));
        }
    }

    #[test]
    fn products_of_odd_runs_leave_out_what_lies_between(
        (pixels, depth, outputs, seed) in (1_usize..20, 1_usize..16, 1_usize..50, any::<u64>()),
    ) {
        // Three runs, as the stem reads three rows of a window, with another element after each.
        let layer = Layer::pointwise(seed, 3 * depth, outputs, true).rounded();
        let input = rounded(values(seed ^ 2, 3 * (pixels * depth + 1)));
        let run = |pixel: usize, at: usize| input[at * (pixels * depth + 1) + pixel * depth..][..depth].to_vec();
        let gathered = (0..pixels).flat_map(|pixel| (0..3).flat_map(move |at| run(pixel, at))).collect();
        let image = Image { height: 1, width: pixels, channels: 3 * depth, values: gathered };
        let expected = image.convolved(&layer).values;
        let input = brains(&input);
        let offsets: Vec<u32> = (0..pixels).map(|pixel| (pixel * outputs) as u32).collect();
        for isa in Isa::all() {
            let packed = layer.brain(Kernels::of(isa), Some(depth));
            let mut output = vec![bf16::NAN; expected.len()];
            let (values, segment_stride) = (input.as_ptr(), pixels * depth + 1);
            let source = Source { values, pixel_stride: depth, segment_stride };
            let target = Target {
                values: output.as_mut_ptr(),
                offsets: &offsets,
                residual: std::ptr::null(),
                padded: false,
            };
            unsafe { packed.run(packed.layout().all(), source, target) };
            assert_near(isa, &floats(&output), &expected);
        }
    }

    #[test]
    fn heads_are_near_the_naive_one(
        (images, pixels) in (1_usize..4, 1_usize..50),
        (inputs, outputs, classes, seed) in (1_usize..10, 1_usize..40, 1_usize..90, any::<u64>()),
    ) {
        let (inputs, outputs) = (inputs * 2, outputs * 2);
        let layer = Layer::pointwise(seed, inputs, outputs, true).rounded();
        let last = Layer::pointwise(seed ^ 4, outputs, classes, false).rounded();
        let input = Image::new(seed ^ 2, (images, pixels, inputs)).rounded();
        let wide = input.convolved(&layer).rounded().values;
        let mean = |image: usize, channel: usize| {
            let pixels = wide[image * pixels * outputs..][..pixels * outputs].iter().skip(channel).step_by(outputs);
            pixels.clone().sum::<f32>() / pixels.len() as f32
        };
        let means = (0..images).flat_map(|image| (0..outputs).map(move |channel| (image, channel)));
        let pooled = Image { height: 1, width: images, channels: outputs, values: means.map(|(i, c)| mean(i, c)).collect() }.rounded();
        let logits = pooled.convolved(&last).values;
        let offsets: Vec<u32> = (0..images).map(|image| (image * classes) as u32).collect();
        for isa in Isa::all() {
            let kernels = Kernels::of(isa);
            let lanes = kernels.block;
            let head = Head::<Brain> { weights: layer.brain(kernels, None), mean: Average::new(kernels), lanes };
            let mut output = vec![bf16::NAN; images * outputs];
            run_head(&head, (images, pixels), &brains(&input.values), &mut output);
            assert_near(isa, &floats(&output), &pooled.values);
            let mut got = vec![f32::NAN; images * classes];
            let last = last.brain(kernels, None);
            unsafe { classify::<Brain>(&last, last.layout().all(), &output, got.as_mut_ptr(), &offsets) };
            assert_near(isa, &got, &logits);
        }
    }
}

#[test]
fn a_poisoned_input_shows_in_bfloat16() {
    for isa in Isa::all() {
        let layer = Layer::pointwise(5, 8, 40, true).brain(Kernels::of(isa), None);
        let input = [bf16::NAN; 8];
        let mut output = [bf16::ZERO; 40];
        let source = Source { values: input.as_ptr(), pixel_stride: 8, segment_stride: 0 };
        let target =
            Target { values: output.as_mut_ptr(), offsets: &[0], residual: std::ptr::null(), padded: false };
        unsafe { layer.run(layer.layout().all(), source, target) };
        assert!(output.iter().all(|value| value.is_nan()), "{isa}: {output:?}");
    }
}

#[test]
fn every_byte_is_normalised_and_rounded_to_the_nearest() {
    let normalisation = Normalisation { mean: [124.0, 116.5, 103.25], deviation: [58.4, 57.1, 0.5] };
    let bytes: Vec<u8> = (0..256 * 3).map(|at| (at / 3) as u8).collect();
    let mut row = vec![bf16::NAN; bytes.len()];
    Brain::pack(Pixels::Bytes(&bytes), &normalisation, &mut row);
    let mut normalised = Vec::new();
    for (at, (byte, got)) in bytes.iter().zip(&row).enumerate() {
        let value = (f32::from(*byte) - normalisation.mean[at % 3]) * (1.0 / normalisation.deviation[at % 3]);
        assert_eq!(*got, bf16::from_f32(value), "byte {byte} of channel {}", at % 3);
        normalised.push(value);
    }
    let mut again = vec![bf16::NAN; bytes.len()];
    Brain::pack(Pixels::Floats(&normalised), &normalisation, &mut again);
    assert_eq!(row, again);
}

#[test]
fn the_nearest_of_two_equally_near_is_the_even_one() {
    // From 128 to 256 bfloat16 holds whole numbers only, hence every value here lies between two.
    let normalisation = Normalisation { mean: [-128.5; 3], deviation: [1.0; 3] };
    let bytes: Vec<u8> = (0..=126).collect();
    let mut row = vec![bf16::NAN; bytes.len()];
    Brain::pack(Pixels::Bytes(&bytes), &normalisation, &mut row);
    for (byte, got) in bytes.iter().zip(row) {
        let below = f32::from(*byte) + 128.0;
        let even = if byte % 2 == 0 { below } else { below + 1.0 };
        assert_eq!(got, bf16::from_f32(even));
    }
}
