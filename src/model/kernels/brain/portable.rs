//! Eight lanes in plain Rust, compiled for what every CPU has and for AVX2.
use super::tiles::{
    Depthwise, Kernels, Lanes, Mean, Pairs, Sliding, depthwise, in_float32, kernels, mean, slides,
};
use crate::model::kernels::simd::{Portable, Simd};
use crate::model::kernels::tile::{Panel, panel};
use half::bf16;

const LANES: usize = <Portable as Simd>::LANES;

/// `LANES` elements that lie `step` apart.
///
/// # Safety
/// The pointer must be good for them.
#[inline(always)]
unsafe fn every(step: usize, from: *const bf16) -> [f32; LANES] {
    // SAFETY: the caller vouches for it.
    std::array::from_fn(|lane| widened(unsafe { from.add(lane * step).read_unaligned() }))
}

/// As float32, which the compiler makes vectors of: the type's own conversion looks for NaN.
#[inline(always)]
fn widened(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

// SAFETY of every block: the caller vouches for the pointers (see `Simd`).
impl Pairs for Portable {
    type Pair = [[f32; LANES]; 2];

    #[inline(always)]
    unsafe fn pair(from: *const u8) -> Self::Pair {
        let [a, b] = unsafe { from.cast::<[bf16; 2]>().read_unaligned() };
        [[widened(a); LANES], [widened(b); LANES]]
    }

    #[inline(always)]
    unsafe fn pairs(from: *const u8) -> Self::Pair {
        unsafe { [every(2, from.cast()), every(2, from.add(2).cast())] }
    }

    #[inline(always)]
    unsafe fn dot(sum: [f32; LANES], a: Self::Pair, b: Self::Pair) -> [f32; LANES] {
        std::array::from_fn(|lane| sum[lane] + a[0][lane] * b[0][lane] + a[1][lane] * b[1][lane])
    }

    #[inline(always)]
    unsafe fn widen(from: *const bf16) -> [f32; LANES] {
        unsafe { every(1, from) }
    }

    #[inline(always)]
    unsafe fn narrow<const VECTORS: usize>(to: *mut bf16, vectors: &[[f32; LANES]; VECTORS]) {
        for (vector, values) in vectors.iter().enumerate() {
            unsafe { Self::narrow_first(to.add(vector * LANES), *values, LANES) };
        }
    }

    #[inline(always)]
    unsafe fn widen_first(from: *const bf16, count: usize) -> [f32; LANES] {
        let mut values = [0.0; LANES];
        for (at, value) in values.iter_mut().enumerate().take(count) {
            *value = widened(unsafe { from.add(at).read_unaligned() });
        }
        values
    }

    #[inline(always)]
    unsafe fn narrow_first(to: *mut bf16, vector: [f32; LANES], count: usize) {
        for (at, value) in vector.into_iter().enumerate().take(count) {
            unsafe { to.add(at).write_unaligned(bf16::from_f32(value)) };
        }
    }

    #[inline(always)]
    unsafe fn split(from: *const bf16) -> [[f32; LANES]; 2] {
        unsafe { [every(2, from), every(2, from.add(1))] }
    }

    #[inline(always)]
    unsafe fn join(to: *mut bf16, even: [f32; LANES], odd: [f32; LANES]) {
        for (at, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            unsafe {
                to.add(2 * at).write_unaligned(bf16::from_f32(even));
                to.add(2 * at + 1).write_unaligned(bf16::from_f32(odd));
            }
        }
    }
}

slides!("x86_64", "sse2", Portable);
kernels!("x86_64", "sse2", Portable, SLIDING, [wide x 2 [2 1], half x 1 [4 2 1]]);

/// The same for AVX2.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use super::*;

    slides!("x86_64", "avx2,fma", Portable);
    kernels!("x86_64", "avx2,fma", Portable, SLIDING, [wide x 2 [4 2 1], half x 1 [7 4 2 1]]);
}
