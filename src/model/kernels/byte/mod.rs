//! 8-bit integers: activations `u8`, weights `i8`, sums `i32`, as [`super::integer`] tells.
//!
//! **Invariant**: every instruction set gives the same bits as the reference.
#[cfg(target_arch = "x86_64")]
mod avx2;
mod layers;
mod portable;
mod slide;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub(in crate::model) use layers::{Average, Channelwise, Pointwise};
pub(in crate::model) use tiles::Kernels;

use crate::model::kernels::integer::round;
use crate::model::kernels::precision::{Normalisation, Pixels, Precision};
use candle_core::{CpuStorage, Result, bail};

/// 8-bit activations and weights.
pub(in crate::model) struct Byte;

impl Precision for Byte {
    type Value = u8;
    type Product = Pointwise;
    type Slide = Channelwise;
    type Mean = Average;

    fn zeros(length: usize) -> CpuStorage {
        CpuStorage::U8(vec![0; length])
    }

    fn values(storage: &CpuStorage) -> Result<&[u8]> {
        storage.as_slice()
    }

    fn values_mut(storage: &mut CpuStorage) -> Result<&mut [u8]> {
        match storage {
            CpuStorage::U8(values) => Ok(values),
            _ => bail!("int8 kernels got a tensor of another type"),
        }
    }

    fn pack(pixels: Pixels<'_>, normalisation: &Normalisation, row: &mut [u8]) {
        match pixels {
            Pixels::Bytes(pixels) => row.copy_from_slice(pixels),
            Pixels::Floats(pixels) => {
                let Normalisation { mean, deviation } = normalisation;
                for (at, (byte, value)) in row.iter_mut().zip(pixels).enumerate() {
                    // The cast cuts off and limits; whole bytes come back as they were.
                    *byte = (value * deviation[at % 3] + mean[at % 3] + 0.5) as u8;
                }
            }
        }
    }

    fn outside(normalisation: &Normalisation, channel: usize) -> u8 {
        round(normalisation.mean[channel])
    }
}
