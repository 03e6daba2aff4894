//! The 1x1 convolutions: one matrix product that starts from the bias and ends in the activation.
//!
//! This calls candle's matrix library directly rather than `Tensor::matmul`, which would pick its number of
//! threads by reading `/proc/cpuinfo` at every call and split the product over a pool that all workers share.
//! Here a product runs on the calling thread, so that each worker keeps to its own CPU; and it accumulates
//! onto the bias and the residual, which saves a pass over the output.
#![allow(unsafe_code)]
use crate::model::kernels::relu6;

/// `output = activation(bias + residual + input × weight)`, row by row.
///
/// `input` is `[rows, inputs]`, `weight` `[inputs, outputs]`, `bias` `[outputs]`, `residual` and `output`
/// `[rows, outputs]`, where `outputs` is the bias's length and the rest follows from it.
///
/// # Panics
/// If the lengths do not fit together.
pub(super) fn pointwise(
    input: &[f32],
    weight: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
    activation: bool,
    output: &mut [f32],
) {
    let outputs = bias.len();
    assert!(outputs > 0 && weight.len().is_multiple_of(outputs) && output.len().is_multiple_of(outputs));
    let inputs = weight.len() / outputs;
    let rows = output.len() / outputs;
    assert_eq!(input.len(), rows * inputs);
    match residual {
        Some(residual) => {
            assert_eq!(residual.len(), output.len());
            for (row, residual) in output.chunks_exact_mut(outputs).zip(residual.chunks_exact(outputs)) {
                for ((value, bias), residual) in row.iter_mut().zip(bias).zip(residual) {
                    *value = bias + residual;
                }
            }
        }
        None => output.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias)),
    }
    // SAFETY: the assertions above make the three slices exactly rows x outputs, rows x inputs and
    // inputs x outputs long, and the strides given are those of row-major matrices of these sizes, so that
    // every element the product touches lies inside its slice. `output` is borrowed mutably, hence overlaps
    // neither input. None of the strides exceeds isize: slices never do.
    unsafe {
        gemm::gemm(
            rows,
            outputs,
            inputs,
            output.as_mut_ptr(),
            1,
            outputs.cast_signed(),
            true,
            input.as_ptr(),
            1,
            inputs.cast_signed(),
            weight.as_ptr(),
            1,
            outputs.cast_signed(),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    if activation {
        for value in output {
            *value = relu6(*value);
        }
    }
}
