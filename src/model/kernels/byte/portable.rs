//! Plain Rust over eight lanes.
use super::slide::{self, plain};
use super::tiles::{Integers, Kernels, Lanes, Mean, Sliding, interleaved, kernels, mean};
use crate::model::kernels::integer;
use crate::model::kernels::tile::{Panel, panel};

/// See the module's documentation.
#[derive(Clone, Copy)]
pub(super) struct Portable;

// SAFETY of every block: the caller vouches for the pointers (see `Dot`).
impl Integers for Portable {
    type Sum = [i32; 8];
    type Activation = [u8; 4];
    type Weights = [[i8; 4]; 8];
    type Real = [f32; 8];
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> [i32; 8] {
        [0; 8]
    }

    #[inline(always)]
    unsafe fn activation(four: i32) -> [u8; 4] {
        four.to_ne_bytes()
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> [[i8; 4]; 8] {
        unsafe { from.cast::<[[i8; 4]; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dot(sum: [i32; 8], activation: [u8; 4], weights: [[i8; 4]; 8]) -> [i32; 8] {
        std::array::from_fn(|lane| {
            let [a, b, c, d] =
                std::array::from_fn(|at| i32::from(activation[at]) * i32::from(weights[lane][at]));
            sum[lane] + a + b + c + d
        })
    }

    #[inline(always)]
    unsafe fn real(sum: [i32; 8]) -> [f32; 8] {
        sum.map(|sum| sum as f32)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; 8] {
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, real: [f32; 8]) {
        unsafe { to.cast::<[f32; 8]>().write_unaligned(real) }
    }

    #[inline(always)]
    unsafe fn residual<const VECTORS: usize>(from: *const u8, valid: usize) -> [[f32; 8]; VECTORS] {
        std::array::from_fn(|vector| {
            std::array::from_fn(|lane| {
                let channel = interleaved::<VECTORS>(vector, lane);
                if channel < valid { f32::from(unsafe { *from.add(channel) }) } else { 0.0 }
            })
        })
    }

    #[inline(always)]
    unsafe fn round<const VECTORS: usize>(to: *mut u8, reals: &[[f32; 8]; VECTORS], valid: usize) {
        for (vector, reals) in reals.iter().enumerate() {
            for (lane, real) in reals.iter().enumerate() {
                let channel = interleaved::<VECTORS>(vector, lane);
                if channel < valid {
                    unsafe { *to.add(channel) = integer::round(*real) };
                }
            }
        }
    }
}

kernels!("x86_64", "sse2", 8, Portable, [
    [plain!(slide::slide::<3, 1>, 3, 8), plain!(slide::slide::<3, 2>, 3, 8)],
    [plain!(slide::slide::<5, 1>, 5, 8), plain!(slide::slide::<5, 2>, 5, 8)],
], [[None; 2]; 2], [wide x 1 [2 1]]);
