//! Float32.
mod layers;
mod tiles;

pub(in crate::model) use layers::{Average, Channelwise, Pointwise};
pub(in crate::model) use tiles::Kernels;

use crate::model::kernels::precision::{Normalisation, Pixels, Precision, normalise};
use candle_core::{CpuStorage, Result, bail};

/// Float32 activations and weights.
pub(in crate::model) struct Float;

impl Precision for Float {
    type Value = f32;
    type Product = Pointwise;
    type Slide = Channelwise;
    type Mean = Average;

    fn zeros(length: usize) -> CpuStorage {
        CpuStorage::F32(vec![0.0; length])
    }

    fn values(storage: &CpuStorage) -> Result<&[f32]> {
        storage.as_slice()
    }

    fn values_mut(storage: &mut CpuStorage) -> Result<&mut [f32]> {
        match storage {
            CpuStorage::F32(values) => Ok(values),
            _ => bail!("float32 kernels got a tensor of another type"),
        }
    }

    fn pack(pixels: Pixels<'_>, normalisation: &Normalisation, row: &mut [f32]) {
        match pixels {
            Pixels::Floats(pixels) => row.copy_from_slice(pixels),
            Pixels::Bytes(pixels) => normalise(pixels, normalisation, row, |value| value),
        }
    }

    fn outside(_normalisation: &Normalisation, _channel: usize) -> f32 {
        0.0
    }
}
