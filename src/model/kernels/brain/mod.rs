//! bfloat16: activations and weights have eight bits of precision, sums and biases float32's.
//!
//! **Invariant**: every activation is rounded once, to the nearest, ties to even. Instruction sets differ only
//! in how they round inside a sum, which shows as the odd activation rounded the other way.
#[cfg(target_arch = "x86_64")]
mod avx512;
mod layers;
mod portable;
mod tiles;

pub(in crate::model) use layers::{Average, Channelwise, Pointwise};
pub(in crate::model) use tiles::Kernels;

#[cfg(target_arch = "x86_64")]
use crate::model::kernels::isa::{Isa, Level};
use crate::model::kernels::precision::{Normalisation, Pixels, Precision, normalise};
use candle_core::{CpuStorage, Result, bail};
use half::bf16;

/// bfloat16 activations and weights.
pub(in crate::model) struct Brain;

impl Precision for Brain {
    type Value = bf16;
    type Product = Pointwise;
    type Slide = Channelwise;
    type Mean = Average;

    fn zeros(length: usize) -> CpuStorage {
        CpuStorage::BF16(vec![bf16::ZERO; length])
    }

    fn values(storage: &CpuStorage) -> Result<&[bf16]> {
        storage.as_slice()
    }

    fn values_mut(storage: &mut CpuStorage) -> Result<&mut [bf16]> {
        match storage {
            CpuStorage::BF16(values) => Ok(values),
            _ => bail!("bfloat16 kernels got a tensor of another type"),
        }
    }

    fn pack(pixels: Pixels<'_>, normalisation: &Normalisation, row: &mut [bf16]) {
        match pixels {
            Pixels::Floats(pixels) => {
                for (value, pixel) in row.iter_mut().zip(pixels) {
                    *value = bf16::from_f32(*pixel);
                }
            }
            // Each gives the same bits.
            #[cfg(target_arch = "x86_64")]
            Pixels::Bytes(pixels) if Isa::new(Level::Avx2).is_some() => {
                // SAFETY: the CPU has AVX2.
                unsafe { normalise_in_vectors(pixels, normalisation, row) }
            }
            Pixels::Bytes(pixels) => normalise(pixels, normalisation, row, nearest),
        }
    }

    fn outside(_normalisation: &Normalisation, _channel: usize) -> bf16 {
        bf16::ZERO
    }
}

/// As [`normalise`], in the vectors of AVX2: half a per cent of an inference instead of two.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn normalise_in_vectors(pixels: &[u8], normalisation: &Normalisation, row: &mut [bf16]) {
    normalise(pixels, normalisation, row, nearest);
}

/// The nearest bfloat16 of a finite number, the even one of two: without NaN to look for, the compiler makes
/// vectors of it.
#[inline(always)]
fn nearest(value: f32) -> bf16 {
    let bits = value.to_bits();
    let half = 0x7FFF + (bits >> 16 & 1);
    bf16::from_bits((bits.wrapping_add(half) >> 16) as u16)
}
