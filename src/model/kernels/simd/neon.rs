//! Four elements: Advanced SIMD, which every aarch64 CPU has.
use super::Simd;
use std::arch::aarch64::*;

/// See the module's documentation.
#[derive(Clone, Copy)]
pub(in crate::model) struct Neon;

// SAFETY of every block: the caller vouches for the instruction set and for the pointers (see `Simd`).
impl Simd for Neon {
    type Vector = float32x4_t;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, vector: float32x4_t) {
        unsafe { vst1q_f32(to, vector) }
    }

    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn relu6(vector: float32x4_t) -> float32x4_t {
        // With the vector second, NaN comes through.
        unsafe { vminq_f32(vdupq_n_f32(6.0), vmaxq_f32(vdupq_n_f32(0.0), vector)) }
    }
}
