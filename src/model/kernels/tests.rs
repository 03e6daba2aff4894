//! Every kernel of every instruction set that this CPU has, against naive loops that know nothing of layouts,
//! lanes, strips or windows.
use super::block::{Block, Geometry, Pass, Scratch, Widen};
use super::byte::{self, Byte};
use super::float::{Average, Channelwise, Float, Kernels, Pointwise};
use super::head::{Head, HeadScratch};
use super::integer;
use super::isa::Isa;
use super::matrix::Sizes;
use super::precision::{Precision, Product as _, Slide as _, Source, Target};
use super::*;
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};

mod brain;

/// Reproducible values in -1..1.
fn values(seed: u64, length: usize) -> Vec<f32> {
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
    (0..length).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// Padding before and outputs, straight from the definitions of the two conventions.
fn naive_padding(padding: Padding, kernel: usize, stride: usize, size: usize) -> (usize, usize) {
    match padding {
        Padding::Symmetric => {
            let before = (kernel - 1) / 2;
            (before, (size + 2 * before - kernel) / stride + 1)
        }
        Padding::Same => {
            let outputs = size.div_ceil(stride);
            let mut total = 0;
            while (size + total) < (outputs - 1) * stride + kernel {
                total += 1;
            }
            (total / 2, outputs)
        }
    }
}

/// A tensor `[height, width, channels]`.
#[derive(Clone, Debug)]
struct Image {
    height: usize,
    width: usize,
    channels: usize,
    values: Vec<f32>,
}

impl Image {
    fn new(seed: u64, (height, width, channels): (usize, usize, usize)) -> Self {
        Self { height, width, channels, values: values(seed, height * width * channels) }
    }

    /// A value, zero outside.
    #[allow(clippy::cast_possible_wrap)]
    fn at(&self, row: isize, column: isize, channel: usize) -> f64 {
        let inside = |at: isize, size: usize| at >= 0 && at < size as isize;
        if inside(row, self.height) && inside(column, self.width) {
            f64::from(self.values[(row as usize * self.width + column as usize) * self.channels + channel])
        } else {
            0.0
        }
    }

    /// Each output channel is a sum over a window and some input channels; `weight` is
    /// `[kernel, kernel, inputs, outputs]`, or `[kernel, kernel, channels]` where channels stay apart.
    #[allow(clippy::cast_possible_wrap)]
    fn convolved(&self, layer: &Layer) -> Self {
        let Layer { kernel, stride, padding, depthwise, weight, bias, activation } = layer;
        let (above, height) = naive_padding(*padding, *kernel, *stride, self.height);
        let (left, width) = naive_padding(*padding, *kernel, *stride, self.width);
        let channels = bias.len();
        let mut out = Vec::new();
        for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
            for channel in 0..channels {
                let mut sum = f64::from(bias[channel]);
                for tap in 0..kernel * kernel {
                    let row = (row * stride + tap / kernel) as isize - above as isize;
                    let column = (column * stride + tap % kernel) as isize - left as isize;
                    if *depthwise {
                        sum += self.at(row, column, channel) * f64::from(weight[tap * channels + channel]);
                    } else {
                        for input in 0..self.channels {
                            let weight = weight[(tap * self.channels + input) * channels + channel];
                            sum += self.at(row, column, input) * f64::from(weight);
                        }
                    }
                }
                out.push(if *activation { sum.clamp(0.0, 6.0) } else { sum } as f32);
            }
        }
        Self { height, width, channels, values: out }
    }

    fn plus(mut self, other: &Self) -> Self {
        for (value, other) in self.values.iter_mut().zip(&other.values) {
            *value += other;
        }
        self
    }
}

#[derive(Clone, Debug)]
struct Layer {
    kernel: usize,
    stride: usize,
    padding: Padding,
    depthwise: bool,
    weight: Vec<f32>,
    bias: Vec<f32>,
    activation: bool,
}

impl Layer {
    fn pointwise(seed: u64, inputs: usize, outputs: usize, activation: bool) -> Self {
        Self {
            kernel: 1,
            stride: 1,
            padding: Padding::Symmetric,
            depthwise: false,
            weight: values(seed, inputs * outputs),
            bias: values(seed ^ 1, outputs),
            activation,
        }
    }

    fn windowed(seed: u64, (kernel, stride): (usize, usize), padding: Padding, channels: usize) -> Self {
        let (weight, bias) = (values(seed, kernel * kernel * channels), values(seed ^ 1, channels));
        Self { kernel, stride, padding, depthwise: true, weight, bias, activation: true }
    }

    /// As layers are made: sizes, and weights by output and input.
    fn matrix(&self, depth: Option<usize>) -> (Sizes, impl Fn(usize, usize) -> f32) {
        let outputs = self.bias.len();
        let inputs = self.weight.len() / outputs;
        let weight = move |output: usize, input: usize| self.weight[input * outputs + output];
        (Sizes { inputs, outputs, depth: depth.unwrap_or(inputs) }, weight)
    }

    fn packed(&self, kernels: &'static Kernels, depth: Option<usize>) -> Pointwise {
        let (sizes, weight) = self.matrix(depth);
        Pointwise::new(kernels, sizes, weight, &self.bias, self.activation)
    }

    fn slide(&self, kernels: &'static Kernels) -> Channelwise {
        Channelwise::new(kernels, (self.kernel, self.stride), &self.weight, &self.bias).unwrap()
    }
}

#[track_caller]
fn assert_close(what: impl std::fmt::Display, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let close = (got - expected).abs() <= 1e-4 * expected.abs().max(1.0);
        assert!(close, "{what}, value {at}: {got} instead of {expected}");
    }
}

fn paddings() -> impl Strategy<Value = Padding> {
    prop_oneof![Just(Padding::Symmetric), Just(Padding::Same)]
}

proptest! {
    #[test]
    fn blocks_equal_the_naive_ones(
        (kernel, stride, padding) in (prop_oneof![Just(3_usize), Just(5)], 1_usize..=2, paddings()),
        (height, width) in (1_usize..20, 1_usize..20),
        (inputs, middle, outputs) in (1_usize..20, 1_usize..80, 1_usize..50),
        (strip, images, seed) in (1_usize..8, 1_usize..4, any::<u64>()),
    ) {
        let photos: Vec<Image> =
            (0..images as u64).map(|at| Image::new(seed ^ at << 32, (height, width, inputs))).collect();
        let expand = Layer::pointwise(seed ^ 2, inputs, middle, true);
        let slide = Layer::windowed(seed ^ 4, (kernel, stride), padding, middle);
        let residual = stride == 1 && seed % 2 == 0;
        let outputs = if residual { inputs } else { outputs };
        let project = Layer::pointwise(seed ^ 6, middle, outputs, false);
        let expected = photos.iter().flat_map(|photo| {
            let out = photo.convolved(&expand).convolved(&slide).convolved(&project);
            if residual { out.plus(photo).values } else { out.values }
        });
        let expected: Vec<f32> = expected.collect();
        let input: Vec<f32> = photos.iter().flat_map(|photo| photo.values.clone()).collect();
        for isa in Isa::all() {
            let kernels = Kernels::of(isa);
            let block = Block::<Float> {
                widen: Widen::Expand(expand.packed(kernels, None)),
                depthwise: slide.slide(kernels),
                project: project.packed(kernels, Some(kernels.block)),
                residual,
            };
            let window = Window::new(kernel, stride, padding, height, width);
            for strip in [None, Some(strip)] {
                let geometry = Geometry::new(&block, window.clone(), None, images, strip);
                let mut scratch = Scratch::new([(&block, &geometry)].into_iter());
                let mut output = vec![f32::NAN; expected.len()];
                let pass =
                    Pass { block: &block, geometry: &geometry, input: input.as_ptr(), output: output.as_mut_ptr() };
                let rows = geometry.window.output_height;
                // The rows in two parts, as two threads would.
                unsafe {
                    pass.run(0..images, 0..rows / 2, &mut scratch);
                    pass.run(0..images, rows / 2..rows, &mut scratch);
                }
                assert_close(format!("{isa}, strip {strip:?}"), &output, &expected);
            }
        }
    }

    #[test]
    fn products_equal_the_naive_one_and_write_nothing_else(
        (pixels, inputs, outputs) in (1_usize..32, 1_usize..70, 1_usize..70),
        (residual, activation, seed) in (any::<bool>(), any::<bool>(), any::<u64>()),
    ) {
        let layer = Layer::pointwise(seed, inputs, outputs, activation);
        let input = Image::new(seed ^ 2, (1, pixels, inputs));
        let added = Image::new(seed ^ 3, (1, pixels, outputs));
        let mut expected = input.convolved(&Layer { activation: false, ..layer.clone() });
        if residual {
            expected = expected.plus(&added);
        }
        if activation {
            expected.values.iter_mut().for_each(|value| *value = value.clamp(0.0, 6.0));
        }
        for isa in Isa::all() {
            let packed = layer.packed(Kernels::of(isa), None);
            // Each pixel's output is followed by a value that must stay.
            let stride = outputs + 1;
            let mut output = vec![f32::INFINITY; pixels * stride];
            let mut spaced = vec![0.0; pixels * stride];
            for (to, from) in spaced.chunks_exact_mut(stride).zip(added.values.chunks_exact(outputs)) {
                to[..outputs].copy_from_slice(from);
            }
            let offsets: Vec<u32> = (0..pixels).map(|pixel| (pixel * stride) as u32).collect();
            let source =
                Source { values: input.values.as_ptr(), pixel_stride: inputs, segment_stride: 0 };
            let target = Target {
                values: output.as_mut_ptr(),
                offsets: &offsets,
                residual: if residual { spaced.as_ptr() } else { std::ptr::null() },
                padded: false,
            };
            unsafe { packed.run(packed.layout().all(), source, target) };
            let got: Vec<f32> = output.chunks_exact(stride).flat_map(|pixel| pixel[..outputs].to_vec()).collect();
            assert_close(isa, &got, &expected.values);
            prop_assert!(output.iter().skip(outputs).step_by(stride).all(|value| *value == f32::INFINITY));
        }
    }

    #[test]
    fn heads_equal_the_naive_one(
        (images, pixels) in (1_usize..4, 1_usize..50),
        (inputs, outputs, seed) in (1_usize..20, 1_usize..80, any::<u64>()),
    ) {
        let layer = Layer::pointwise(seed, inputs, outputs, true);
        let input = Image::new(seed ^ 2, (images, pixels, inputs));
        let wide = input.convolved(&layer).values;
        let mean = |image: usize, channel: usize| {
            let pixels = wide[image * pixels * outputs..][..pixels * outputs].iter().skip(channel).step_by(outputs);
            pixels.clone().sum::<f32>() / pixels.len() as f32
        };
        let expected: Vec<f32> =
            (0..images).flat_map(|image| (0..outputs).map(move |channel| (image, channel))).map(|(i, c)| mean(i, c)).collect();
        for isa in Isa::all() {
            let kernels = Kernels::of(isa);
            let lanes = kernels.block;
            let head = Head::<Float> { weights: layer.packed(kernels, None), mean: Average::new(kernels), lanes };
            let mut output = vec![f32::NAN; images * outputs];
            run_head(&head, (images, pixels), &input.values, &mut output);
            assert_close(isa, &output, &expected);
        }
    }
}

/// A head in two parts, as two threads would.
fn run_head<P: Precision>(head: &Head<P>, size: (usize, usize), input: &[P::Value], output: &mut [P::Value]) {
    let blocks = head.weights.outputs().div_ceil(head.lanes);
    let mut scratch = HeadScratch::new(size.0, size.1, head.lanes);
    for blocks in [0..blocks / 2, blocks / 2..blocks] {
        unsafe { head.run(size, input, output.as_mut_ptr(), blocks, &mut scratch) };
    }
}

#[test]
fn a_poisoned_input_shows_in_the_output() {
    for isa in Isa::all() {
        let layer = Layer::pointwise(5, 8, 40, true).packed(Kernels::of(isa), None);
        let input = [f32::NAN; 8];
        let mut output = [0.0; 40];
        let source = Source { values: input.as_ptr(), pixel_stride: 8, segment_stride: 0 };
        let target =
            Target { values: output.as_mut_ptr(), offsets: &[0], residual: std::ptr::null(), padded: false };
        unsafe { layer.run(layer.layout().all(), source, target) };
        assert!(output.iter().all(|value| value.is_nan()), "{isa}: {output:?}");
    }
}

/// An integer layer with multipliers that spread its sums over the bytes and beyond.
struct Bytes {
    weight: Vec<i8>,
    multiplier: Vec<f32>,
    offset: Vec<f32>,
}

impl Bytes {
    fn new(seed: u64, outputs: usize, taps: usize) -> Self {
        let scaled = |seed, length, scale: f32| -> Vec<f32> {
            values(seed, length).into_iter().map(|value| value * scale).collect()
        };
        let weight =
            scaled(seed, outputs * taps, 127.4).into_iter().map(|value| value.round() as i8).collect();
        let spread = 0.02 / (taps as f32).sqrt();
        Self {
            weight,
            multiplier: scaled(seed ^ 1, outputs, spread),
            offset: scaled(seed ^ 2, outputs, 300.0),
        }
    }

    fn product(&self) -> integer::Product<'_> {
        integer::Product { weight: &self.weight, multiplier: &self.multiplier, offset: &self.offset }
    }

    fn packed(
        &self,
        kernels: &'static byte::Kernels,
        depth: usize,
        residual: Option<&[f32]>,
    ) -> byte::Pointwise {
        let outputs = self.offset.len();
        let inputs = self.weight.len() / outputs;
        let weight = |output: usize, input: usize| self.weight[output * inputs + input];
        byte::Pointwise::new(kernels, Sizes { inputs, outputs, depth }, weight, self.product(), residual)
    }
}

/// Reproducible bytes.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    values(seed, length).into_iter().map(|value| (value * 127.0 + 128.0) as u8).collect()
}

proptest! {
    #[test]
    fn integer_blocks_equal_the_reference_bit_for_bit(
        (kernel, stride, padding) in (prop_oneof![Just(3_usize), Just(5)], 1_usize..=2, paddings()),
        (height, width) in (1_usize..20, 1_usize..20),
        (fours, middle, outputs) in (1_usize..6, 1_usize..150, 1_usize..80),
        (strip, images, seed) in (1_usize..8, 1_usize..4, any::<u64>()),
    ) {
        let inputs = fours * 4;
        let window = Window::new(kernel, stride, padding, height, width);
        let residual = stride == 1 && seed % 2 == 0;
        let outputs = if residual { inputs } else { outputs };
        let (expand, slide) = (Bytes::new(seed, middle, inputs), Bytes::new(seed ^ 8, middle, kernel * kernel));
        let project = Bytes::new(seed ^ 16, outputs, middle);
        let residual = residual.then(|| values(seed ^ 32, outputs));
        let (pixels, output_pixels) = (height * width, window.output_height * window.output_width);
        let input = bytes(seed ^ 64, images * pixels * inputs);
        let mut expected = vec![0; images * output_pixels * outputs];
        for (input, output) in
            input.chunks_exact(pixels * inputs).zip(expected.chunks_exact_mut(output_pixels * outputs))
        {
            let (mut wide, mut slid) = (vec![0; pixels * middle], vec![0; output_pixels * middle]);
            integer::pointwise(input, expand.product(), None, &mut wide);
            integer::depthwise(&window, &wide, slide.product(), &mut slid);
            let residual = residual.as_deref().map(|multiplier| integer::Residual { values: input, multiplier });
            integer::pointwise(&slid, project.product(), residual, output);
        }
        for isa in Isa::all() {
            let kernels = byte::Kernels::of(isa);
            let slid = byte::Channelwise::new(kernels, (kernel, stride), slide.product()).unwrap();
            let block = Block::<Byte> {
                widen: Widen::Expand(expand.packed(kernels, inputs, None)),
                project: project.packed(kernels, slid.lanes(), residual.as_deref()),
                depthwise: slid,
                residual: residual.is_some(),
            };
            for strip in [None, Some(strip)] {
                let geometry = Geometry::new(&block, window.clone(), None, images, strip);
                let mut scratch = Scratch::new([(&block, &geometry)].into_iter());
                let mut output = vec![99; expected.len()];
                let pass =
                    Pass { block: &block, geometry: &geometry, input: input.as_ptr(), output: output.as_mut_ptr() };
                unsafe { pass.run(0..images, 0..geometry.window.output_height, &mut scratch) };
                prop_assert!(output == expected, "{isa}, strip {strip:?}");
            }
        }
    }

    #[test]
    fn integer_heads_equal_the_reference_bit_for_bit(
        (images, pixels) in (1_usize..4, 1_usize..50),
        (fours, outputs, classes, seed) in (1_usize..6, 1_usize..150, 1_usize..90, any::<u64>()),
    ) {
        let (inputs, features) = (fours * 4, outputs.next_multiple_of(4));
        let (layer, last) = (Bytes::new(seed, features, inputs), Bytes::new(seed ^ 4, classes, features));
        let pool: Vec<f32> = values(seed ^ 8, features).iter().map(|value| (value + 1.1) / pixels as f32).collect();
        let input = bytes(seed ^ 16, images * pixels * inputs);
        let (mut pooled, mut logits) = (vec![0; images * features], vec![0.0; images * classes]);
        for (image, input) in input.chunks_exact(pixels * inputs).enumerate() {
            let mut wide = vec![0; pixels * features];
            integer::pointwise(input, layer.product(), None, &mut wide);
            let pooled = &mut pooled[image * features..][..features];
            integer::mean(&wide, &pool, pooled);
            integer::classifier(pooled, last.product(), &mut logits[image * classes..][..classes]);
        }
        for isa in Isa::all() {
            let kernels = byte::Kernels::of(isa);
            let lanes = kernels.block;
            let weights = layer.packed(kernels, inputs, None);
            let head = Head::<Byte> { weights, mean: byte::Average::new(kernels, &pool), lanes };
            let mut got = vec![0; images * features];
            run_head(&head, (images, pixels), &input, &mut got);
            prop_assert!(got == pooled, "{isa}");
            let offsets: Vec<u32> = (0..images).map(|image| (image * classes) as u32).collect();
            let mut got = vec![f32::NAN; images * classes];
            let last = last.packed(kernels, features, None);
            unsafe { super::head::classify::<Byte>(&last, last.layout().all(), &pooled, got.as_mut_ptr(), &offsets) };
            prop_assert!(got == logits, "{isa}");
        }
    }
}
