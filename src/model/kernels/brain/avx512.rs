//! Sixteen lanes: AVX-512 with BF16, whose `vdpbf16ps` adds two products of bfloat16 to each float32 sum.
use super::tiles::{Depthwise, Kernels, Lanes, Mean, Pairs, depthwise, kernels, mean};
use crate::model::kernels::simd::{Avx512, Simd};
use crate::model::kernels::tile::{Panel, panel};
use half::bf16;
use std::arch::x86_64::*;

/// Where the words of even and odd channels, sixteen after sixteen, come to lie in turns.
#[repr(C, align(64))]
struct Order([u16; 32]);

static TURNS: Order = Order({
    let mut order = [0; 32];
    let mut at = 0;
    while at < 32 {
        order[at] = (at / 2 + at % 2 * 16) as u16;
        at += 1;
    }
    order
});

/// The lanes before the first `count`th.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count.min(16)) - 1) as __mmask16
}

// SAFETY of every block: the caller vouches for the instruction set and for the pointers (see `Simd`); the
// types of the intrinsics that are transmuted are 64 or 32 bytes of which any value is one.
impl Pairs for Avx512 {
    type Pair = __m512i;

    #[inline(always)]
    unsafe fn pair(from: *const u8) -> __m512i {
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn pairs(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    }

    #[inline(always)]
    unsafe fn widen(from: *const bf16) -> __m512 {
        unsafe { wide(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn narrow<const VECTORS: usize>(to: *mut bf16, vectors: &[__m512; VECTORS]) {
        unsafe {
            if VECTORS == 2 {
                let narrow = _mm512_cvtne2ps_pbh(vectors[VECTORS - 1], vectors[0]);
                _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(narrow));
            } else {
                let narrow = _mm512_cvtneps_pbh(vectors[0]);
                _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(narrow));
            }
        }
    }

    #[inline(always)]
    unsafe fn widen_first(from: *const bf16, count: usize) -> __m512 {
        unsafe { wide(_mm256_maskz_loadu_epi16(first(count), from.cast())) }
    }

    #[inline(always)]
    unsafe fn narrow_first(to: *mut bf16, vector: __m512, count: usize) {
        unsafe {
            let narrow = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(vector));
            _mm256_mask_storeu_epi16(to.cast(), first(count), narrow);
        }
    }

    #[inline(always)]
    unsafe fn split(from: *const bf16) -> [__m512; 2] {
        unsafe {
            let both = _mm512_loadu_si512(from.cast());
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed()));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn join(to: *mut bf16, even: __m512, odd: __m512) {
        unsafe {
            let apart = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even));
            let turns = _mm512_load_si512(TURNS.0.as_ptr().cast());
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(turns, apart));
        }
    }
}

/// Sixteen bfloat16 as float32.
#[inline(always)]
unsafe fn wide(narrow: __m256i) -> __m512 {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow))) }
}

kernels!("x86_64", "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma", Avx512, [
    wide_panel x 2 [14 7 4 2 1],
    half_panel x 1 [14 7 4 2 1]
]);
