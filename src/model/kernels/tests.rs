//! Every kernel against a naive one that knows nothing of layouts, lanes or windows.
use super::*;
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};

/// Reproducible values in -1..1.
fn values(seed: u64, length: usize) -> Vec<f32> {
    let mut random = rand_pcg::Pcg64Mcg::seed_from_u64(seed);
    (0..length).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// Padding before and after, straight from the definitions of the two conventions.
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

/// One output value after the other, indices bound-checked as signed numbers, summed in f64.
#[allow(clippy::cast_possible_wrap)]
fn naive(op: &Spatial, input: &[f32], height: usize, width: usize) -> (Vec<f32>, usize, usize) {
    let channels = op.bias.len();
    let inputs = if op.depthwise { channels } else { 3 };
    let (above, rows) = naive_padding(op.padding, op.kernel, op.stride, height);
    let (left, columns) = naive_padding(op.padding, op.kernel, op.stride, width);
    let mut output = Vec::new();
    for row in 0..rows {
        for column in 0..columns {
            for channel in 0..channels {
                let mut sum = f64::from(op.bias[channel]);
                for (y, x) in (0..op.kernel).flat_map(|y| (0..op.kernel).map(move |x| (y, x))) {
                    let at_row = (row * op.stride + y) as isize - above as isize;
                    let at_column = (column * op.stride + x) as isize - left as isize;
                    if at_row < 0 || at_row >= height as isize || at_column < 0 || at_column >= width as isize
                    {
                        continue;
                    }
                    let pixel = (at_row as usize * width + at_column as usize) * inputs;
                    let tap = y * op.kernel + x;
                    if op.depthwise {
                        sum += f64::from(input[pixel + channel] * op.weight[tap * channels + channel]);
                    } else {
                        for from in 0..3 {
                            let weight = op.weight[(tap * 3 + from) * channels + channel];
                            sum += f64::from(input[pixel + from] * weight);
                        }
                    }
                }
                output.push(sum.clamp(0.0, 6.0) as f32);
            }
        }
    }
    (output, rows, columns)
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() < 1e-4, "value {at}: {got} instead of {expected}");
    }
}

fn paddings() -> impl Strategy<Value = Padding> {
    prop_oneof![Just(Padding::Symmetric), Just(Padding::Same)]
}

proptest! {
    #[test]
    fn spatial_convolutions_equal_the_naive_one(
        (kernel, stride, padding) in (prop_oneof![Just(3_usize), Just(5)], 1_usize..=2, paddings()),
        (height, width, channels) in (1_usize..12, 1_usize..12, 1_usize..76),
        (depthwise, images, seed) in (any::<bool>(), 1_usize..3, any::<u64>()),
    ) {
        let inputs = if depthwise { channels } else { 3 };
        let weights = kernel * kernel * channels * if depthwise { 1 } else { 3 };
        let op = Spatial {
            kernel, stride, padding, depthwise,
            weight: values(seed, weights),
            bias: values(seed ^ 1, channels),
        };
        let input = values(seed ^ 2, images * height * width * inputs);
        let tensor = Tensor::from_slice(&input, (images, height, width, inputs), &Device::Cpu).unwrap();
        let output = tensor.apply_op1_no_bwd(&op).unwrap();
        let mut expected = Vec::new();
        let mut shape = (0, 0);
        for image in input.chunks_exact(height * width * inputs) {
            let (values, rows, columns) = naive(&op, image, height, width);
            expected.extend(values);
            shape = (rows, columns);
        }
        prop_assert_eq!(output.dims4().unwrap(), (images, shape.0, shape.1, channels));
        assert_close(&output.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &expected);
    }

    #[test]
    fn products_equal_the_naive_one(
        (rows, inputs, outputs) in (1_usize..20, 1_usize..70, 1_usize..70),
        (residual, activation, seed) in (any::<bool>(), any::<bool>(), any::<u64>()),
    ) {
        let op = Pointwise { weight: values(seed, inputs * outputs), bias: values(seed ^ 1, outputs), activation };
        let input = values(seed ^ 2, rows * inputs);
        let added = values(seed ^ 3, rows * outputs);
        let tensor = Tensor::from_slice(&input, (1, rows, 1, inputs), &Device::Cpu).unwrap();
        let output = if residual {
            let added = Tensor::from_slice(&added, (1, rows, 1, outputs), &Device::Cpu).unwrap();
            tensor.apply_op2_no_bwd(&added, &op)
        } else {
            tensor.apply_op1_no_bwd(&op)
        };
        let mut expected = Vec::new();
        for row in 0..rows {
            for column in 0..outputs {
                let mut sum = op.bias[column] + if residual { added[row * outputs + column] } else { 0.0 };
                for k in 0..inputs {
                    sum += input[row * inputs + k] * op.weight[k * outputs + column];
                }
                expected.push(if activation { sum.clamp(0.0, 6.0) } else { sum });
            }
        }
        assert_close(&output.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), &expected);
    }

    #[test]
    fn the_mean_equals_the_naive_one(pixels in 1_usize..50, channels in 1_usize..40, seed in any::<u64>()) {
        let input = values(seed, pixels * channels);
        let tensor = Tensor::from_slice(&input, (1, pixels, 1, channels), &Device::Cpu).unwrap();
        let output = tensor.apply_op1_no_bwd(&Mean).unwrap();
        let expected: Vec<f32> = (0..channels)
            .map(|channel| input.iter().skip(channel).step_by(channels).sum::<f32>() / pixels as f32)
            .collect();
        assert_close(&output.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &expected);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let op = Pointwise { weight: vec![0.0; 6], bias: vec![0.0; 3], activation: false };
    let tensor = Tensor::zeros((1, 2, 2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(tensor.apply_op1_no_bwd(&op).unwrap_err().to_string().contains("from 2 to 3 channels"));
    let transposed = tensor.transpose(1, 3).unwrap().narrow(3, 0, 2).unwrap();
    assert!(transposed.apply_op1_no_bwd(&op).is_err());
    let op = Spatial {
        kernel: 3,
        stride: 1,
        padding: Padding::Same,
        depthwise: true,
        weight: vec![0.0; 18],
        bias: vec![0.0; 2],
    };
    assert!(tensor.apply_op1_no_bwd(&op).is_err());
}
