//! Eight lanes: AVX2, which multiplies 16-bit integers in pairs; bytes in pairs would saturate.
use super::slide::{self, plain};
use super::tiles::{Depthwise, Integers, Kernels, Lanes, Mean, Sliding, interleaved, kernels, mean};
use crate::model::kernels::tile::{Panel, panel};
use std::arch::x86_64::*;

/// See the module's documentation.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

// SAFETY of every block: the caller vouches for the instruction set and for the pointers (see `Dot`).
impl Integers for Avx2 {
    type Sum = __m256i;
    /// The first and third byte, and the second and fourth, as 16-bit integers.
    type Activation = [__m256i; 2];
    /// As the activation.
    type Weights = [__m256i; 2];
    type Real = __m256;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn activation(four: i32) -> [__m256i; 2] {
        unsafe {
            let four = _mm256_set1_epi32(four);
            [_mm256_and_si256(four, _mm256_set1_epi16(0xFF)), _mm256_srli_epi16::<8>(four)]
        }
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> [__m256i; 2] {
        unsafe {
            let four = _mm256_loadu_si256(from.cast());
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(four)), _mm256_srai_epi16::<8>(four)]
        }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, activation: [__m256i; 2], weights: [__m256i; 2]) -> __m256i {
        unsafe {
            let even = _mm256_madd_epi16(activation[0], weights[0]);
            let odd = _mm256_madd_epi16(activation[1], weights[1]);
            _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
        }
    }

    #[inline(always)]
    unsafe fn real(sum: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(sum) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, real: __m256) {
        unsafe { _mm256_storeu_ps(to, real) }
    }

    #[inline(always)]
    unsafe fn residual<const VECTORS: usize>(from: *const u8, valid: usize) -> [__m256; VECTORS] {
        let mut bytes = [0_u8; 16];
        unsafe {
            if valid >= VECTORS * 8 {
                bytes[..VECTORS * 8].copy_from_slice(std::slice::from_raw_parts(from, VECTORS * 8));
            } else {
                bytes[..valid].copy_from_slice(std::slice::from_raw_parts(from, valid));
            }
        }
        std::array::from_fn(|vector| unsafe {
            let at = |lane| {
                bytes.as_ptr().add(interleaved::<VECTORS>(vector, lane)).cast::<i32>().read_unaligned()
            };
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_set_epi32(0, 0, at(4), at(0))))
        })
    }

    #[inline(always)]
    unsafe fn round<const VECTORS: usize>(to: *mut u8, reals: &[__m256; VECTORS], valid: usize) {
        let mut bytes = [0_u8; 16];
        for (vector, real) in reals.iter().enumerate() {
            unsafe {
                let rounded = _mm256_cvtps_epi32(*real);
                let words = _mm256_packs_epi32(rounded, rounded);
                let packed = _mm256_packus_epi16(words, words);
                let halves = [_mm256_extract_epi32::<0>(packed), _mm256_extract_epi32::<4>(packed)];
                for (half, four) in halves.into_iter().enumerate() {
                    let at = interleaved::<VECTORS>(vector, half * 4);
                    bytes.as_mut_ptr().add(at).cast::<i32>().write_unaligned(four);
                }
            }
        }
        unsafe {
            if valid >= VECTORS * 8 {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, VECTORS * 8);
            } else {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, valid);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn slide<const SIDE: usize, const STRIDE: usize>(call: &Depthwise) {
    // SAFETY: the caller vouches for the call.
    unsafe { slide::slide::<SIDE, STRIDE>(call) }
}

kernels!("x86_64", "avx2,fma", 16, Avx2, [
    [plain!(slide::<3, 1>, 3, 16), plain!(slide::<3, 2>, 3, 16)],
    [plain!(slide::<5, 1>, 5, 16), plain!(slide::<5, 2>, 5, 16)],
], [[None; 2]; 2], [wide x 2 [4 2 1], half x 1 [4 2 1]]);
