//! Vectors of float32, one implementation an instruction set, for kernels written once.
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::{Avx512, first};
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
pub(super) use portable::Portable;

/// A vector of float32.
///
/// # Safety
/// Every method may run only where the CPU has the instruction set; pointers must be good for
/// [`LANES`](Self::LANES) elements, or as many as told, at any alignment.
pub(in crate::model) trait Simd: Copy {
    /// The vector's type.
    type Vector: Copy;
    /// Elements in a vector.
    const LANES: usize;

    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, vector: Self::Vector);
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a × b + c`.
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// Limits to 0..6; NaN stays NaN.
    unsafe fn relu6(vector: Self::Vector) -> Self::Vector;

    /// The first `count` elements, the others zero.
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self::Vector {
        let mut values = [0.0_f32; 16];
        for (at, value) in values.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` elements.
            *value = unsafe { *from.add(at) };
        }
        // SAFETY: no vector has more than 16 elements.
        unsafe { Self::load(values.as_ptr()) }
    }

    /// Writes the first `count` elements.
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, vector: Self::Vector, count: usize) {
        let mut values = [0.0_f32; 16];
        // SAFETY: no vector has more than 16 elements; the caller vouches for `count` elements of `to`.
        unsafe {
            Self::store(values.as_mut_ptr(), vector);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, count.min(Self::LANES));
        }
    }
}
