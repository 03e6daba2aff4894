//! A tensor that a client has prepared itself, colour plane by colour plane, to the network's input.
//!
//! **Invariant**: what becomes an input is finite and of a size that no network turns into infinities, so that one
//! client's numbers cannot fail an inference that other clients share.
use candle_core::{Device, Tensor};

/// Largest magnitude of a value. Normalised pixels stay below 10.
pub const VALUE_MAX: f32 = 1e4;

/// Why bytes are no input.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum PlanesError {
    /// Too few or too many bytes.
    #[error("the tensor has {found} bytes, [3, {side}, {side}] float32 has {expected}")]
    Length {
        /// Bytes given.
        found: usize,
        /// Bytes of the network's input.
        expected: usize,
        /// Side of the network's input, pixels.
        side: usize,
    },
    /// A value is not a number or far from every normalised pixel.
    #[error("value {at} of the tensor is {value}: values must be numbers from -{VALUE_MAX} to {VALUE_MAX}")]
    Value {
        /// Its index.
        at: usize,
        /// The value.
        value: f32,
    },
}

/// Bytes of an input of `side` pixels.
#[must_use]
pub const fn length(side: usize) -> usize {
    3 * side * side * size_of::<f32>()
}

/// Little-endian float32 `[3, side, side]`, red first, to `[1, side, side, 3]`.
pub fn tensor(planes: &[u8], side: usize) -> Result<Tensor, PlanesError> {
    let (found, expected) = (planes.len(), length(side));
    let wrong_length = PlanesError::Length { found, expected, side };
    if found != expected {
        return Err(wrong_length);
    }
    let pixels = side * side;
    let mut values = vec![0.0; 3 * pixels];
    for (at, bytes) in planes.as_chunks::<4>().0.iter().enumerate() {
        let value = f32::from_le_bytes(*bytes);
        if value.is_nan() || value.abs() > VALUE_MAX {
            return Err(PlanesError::Value { at, value });
        }
        values[at % pixels * 3 + at / pixels] = value;
    }
    Tensor::from_vec(values, (1, side, side, 3), &Device::Cpu).map_err(|_| wrong_length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn planes_become_pixels() {
        let planes: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let tensor = tensor(&bytes(&planes), 2).unwrap();
        assert_eq!(tensor.dims(), [1, 2, 2, 3]);
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.]);
    }

    #[test]
    fn what_would_poison_an_inference_is_refused() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -2.0 * VALUE_MAX, f32::MAX] {
            let error = tensor(&bytes(&[0.0, value, 0.0]), 1).unwrap_err();
            assert!(matches!(error, PlanesError::Value { at: 1, .. }), "{error}");
        }
        let error = tensor(&[0; 11], 1).unwrap_err();
        assert_eq!(error, PlanesError::Length { found: 11, expected: 12, side: 1 });
    }
}
