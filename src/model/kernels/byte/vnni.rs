//! Sixteen lanes: AVX-512 with VNNI, whose `vpdpbusd` adds four products of bytes to each 32-bit sum.
//!
//! The depthwise convolution lays four rows of a column side by side, so that one instruction multiplies a
//! column of the window; two output rows share them, the second with weights that start one byte further on.
//! A tensor of at most 32 channels has two neighbouring pixels in a vector of 64.
use super::tiles::{Depthwise, Integers, Kernels, Lanes, Mean, Sliding, interleaved, kernels, mean};
use crate::model::kernels::tile::{Panel, panel, unroll};
use std::arch::x86_64::*;

/// See the module's documentation.
#[derive(Clone, Copy)]
pub(super) struct Vnni;

// SAFETY of every block: the caller vouches for the instruction set and for the pointers (see `Dot`).
impl Integers for Vnni {
    type Sum = __m512i;
    type Activation = __m512i;
    type Weights = __m512i;
    type Real = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn activation(four: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(four) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const i8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, activation: __m512i, weights: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, activation, weights) }
    }

    #[inline(always)]
    unsafe fn real(sum: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(sum) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, real: __m512) {
        unsafe { _mm512_storeu_ps(to, real) }
    }

    #[inline(always)]
    unsafe fn residual<const VECTORS: usize>(from: *const u8, valid: usize) -> [__m512; VECTORS] {
        unsafe {
            let zero = _mm512_setzero_si512();
            let mut reals: [__m512; VECTORS] = std::mem::zeroed();
            if VECTORS == 2 {
                // Eight bytes to the start of each sixteen, then apart.
                let order = _mm512_setr_epi64(0, 0, 1, 0, 2, 0, 3, 0);
                let bytes = _mm256_maskz_loadu_epi8(first(valid) as u32, from.cast());
                let spread = _mm512_permutexvar_epi64(order, _mm512_castsi256_si512(bytes));
                let words = _mm512_unpacklo_epi8(spread, zero);
                reals[0] = _mm512_cvtepi32_ps(_mm512_unpacklo_epi16(words, zero));
                reals[VECTORS - 1] = _mm512_cvtepi32_ps(_mm512_unpackhi_epi16(words, zero));
            } else {
                let bytes = _mm_maskz_loadu_epi8(first(valid) as u16, from.cast());
                reals[0] = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
            }
            reals
        }
    }

    #[inline(always)]
    unsafe fn round<const VECTORS: usize>(to: *mut u8, reals: &[__m512; VECTORS], valid: usize) {
        unsafe {
            let mut rounded: [__m512i; 4] = std::mem::zeroed();
            unroll!(V in 0..4 { if V < VECTORS { rounded[V] = _mm512_cvtps_epi32(reals[V]); } });
            let bytes = _mm512_packus_epi16(
                _mm512_packs_epi32(rounded[0], rounded[1]),
                _mm512_packs_epi32(rounded[2], rounded[3]),
            );
            match VECTORS {
                4 if valid >= 64 => _mm512_storeu_si512(to.cast(), bytes),
                4 => _mm512_mask_storeu_epi8(to.cast(), first(valid), bytes),
                // Of each four words of bytes the first two are filled, or the first.
                2 => {
                    let filled = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 0, 0, 0), bytes);
                    let filled = _mm512_castsi512_si256(filled);
                    if valid >= 32 {
                        _mm256_storeu_si256(to.cast(), filled);
                    } else {
                        _mm256_mask_storeu_epi8(to.cast(), first(valid) as u32, filled);
                    }
                }
                _ => {
                    let order = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
                    let filled = _mm512_castsi512_si128(_mm512_permutexvar_epi32(order, bytes));
                    if valid >= 16 {
                        _mm_storeu_si128(to.cast(), filled);
                    } else {
                        _mm_mask_storeu_epi8(to.cast(), first(valid) as u16, filled);
                    }
                }
            }
        }
    }
}

/// A mask of the first `count` of up to 64 lanes.
#[inline(always)]
const fn first(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Four bytes of each of 64 channels side by side: of each sixteen channels the first four in the first
/// vector, the next four in the second, and so on.
#[inline(always)]
unsafe fn quads(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> [__m512i; 4] {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
        let (low_after, high_after) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
        [
            _mm512_unpacklo_epi16(low, low_after),
            _mm512_unpackhi_epi16(low, low_after),
            _mm512_unpacklo_epi16(high, high_after),
            _mm512_unpackhi_epi16(high, high_after),
        ]
    }
}

/// Channels in a block.
const BLOCK: usize = 64;

/// Output rows made at once: two where they share input rows that a quad has room for.
const fn together(stride: usize) -> usize {
    if stride == 1 { 2 } else { 1 }
}

/// Quads that a column of the window of all rows made at once takes.
const fn quads_in(side: usize, stride: usize) -> usize {
    (side + together(stride) - 1).div_ceil(4)
}

/// A column's quads of all channels, and those of the next columns where the vectors hold several pixels.
#[inline(always)]
unsafe fn column<const SIDE: usize, const STRIDE: usize, const PIXELS: usize>(
    rows: &[*const u8; 8],
    at: usize,
) -> [[__m512i; 4]; 2] {
    // SAFETY: the caller vouches for the instruction set and the rows.
    unsafe {
        let zero = _mm512_setzero_si512();
        let load = |row: usize| {
            if row < SIDE + together(STRIDE) - 1 {
                _mm512_loadu_si512(rows[row].add(at * (BLOCK / PIXELS)).cast())
            } else {
                zero
            }
        };
        let first = quads(load(0), load(1), load(2), load(3));
        if quads_in(SIDE, STRIDE) == 1 {
            [first, first]
        } else {
            [first, quads(load(4), load(5), zero, zero)]
        }
    }
}

/// Weights are `[side columns, quads, rows together, 4, 64]`. With several pixels in a vector the stride is 1.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn slide<const SIDE: usize, const STRIDE: usize, const PIXELS: usize>(call: &Depthwise) {
    // SAFETY: this function enables the features; the caller vouches for the call.
    unsafe {
        let mut row = 0;
        while row < call.row_count {
            let count = together(STRIDE).min(call.row_count - row);
            let mut rows = [*call.rows.add(row * STRIDE); 8];
            for (at, pointer) in rows.iter_mut().enumerate().take(SIDE + count - 1) {
                *pointer = *call.rows.add(row * STRIDE + at);
            }
            slide_row::<SIDE, STRIDE, PIXELS>(call, row, count, &rows);
            row += count;
        }
    }
}

/// One output row, or two. Where only one is left the second is computed from any row and not written.
#[inline(always)]
unsafe fn slide_row<const SIDE: usize, const STRIDE: usize, const PIXELS: usize>(
    call: &Depthwise,
    row: usize,
    count: usize,
    rows: &[*const u8; 8],
) {
    // SAFETY: the caller vouches for the instruction set and the call.
    unsafe {
        let mut window: [[[__m512i; 4]; 2]; SIDE] = std::mem::zeroed();
        let step = STRIDE * PIXELS;
        for (at, quads) in window.iter_mut().enumerate().skip(step) {
            *quads = column::<SIDE, STRIDE, PIXELS>(rows, at - step);
        }
        let (mut multiplier, mut offset): ([__m512; 4], [__m512; 4]) = std::mem::zeroed();
        unroll!(J in 0..4 {
            multiplier[J] = _mm512_loadu_ps(call.multiplier.add(J * 16));
            offset[J] = _mm512_loadu_ps(call.offset.add(J * 16));
        });
        for output_column in (0..call.columns).step_by(PIXELS) {
            unroll!(C in 0..5 { if C + step < SIDE { window[C] = window[C + step]; } });
            unroll!(C in 0..5 { if C < SIDE && C + step >= SIDE {
                window[C] = column::<SIDE, STRIDE, PIXELS>(rows, output_column * STRIDE + C);
            } });
            let mut sums: [[__m512i; 4]; 2] = std::mem::zeroed();
            unroll!(C in 0..5 { if C < SIDE {
                unroll!(Q in 0..2 { if Q < quads_in(SIDE, STRIDE) {
                    unroll!(T in 0..2 { if T < together(STRIDE) {
                        let at = ((C * quads_in(SIDE, STRIDE) + Q) * together(STRIDE) + T) * 4 * BLOCK;
                        unroll!(J in 0..4 {
                            let weights = _mm512_loadu_si512(call.weights.add(at + J * BLOCK).cast());
                            sums[T][J] = _mm512_dpbusd_epi32(sums[T][J], window[C][Q][J], weights);
                        });
                    } });
                } });
            } });
            unroll!(T in 0..2 { if T < together(STRIDE) {
                let mut reals: [__m512; 4] = std::mem::zeroed();
                unroll!(J in 0..4 {
                    reals[J] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[T][J]), multiplier[J], offset[J]);
                });
                if T < count {
                    let pixel = (row + T) * call.columns + output_column;
                    let valid = BLOCK / PIXELS * PIXELS.min(call.columns - output_column);
                    Vnni::round(call.output.add(pixel * (BLOCK / PIXELS)), &reals, valid);
                }
            } });
        }
    }
}

/// The vector and the lane of a channel of a block.
const fn lane_of(channel: usize) -> (usize, usize) {
    (channel % 16 / 4, channel / 16 * 4 + channel % 4)
}

/// Puts a channel's weights in place, see [`slide`].
fn place<const SIDE: usize, const STRIDE: usize>(packed: &mut [i8], channel: usize, weight: &[i8]) {
    let (vector, lane) = lane_of(channel);
    for (tap, weight) in weight.iter().enumerate() {
        for together_at in 0..together(STRIDE) {
            let row = tap / SIDE + together_at;
            let quad = (tap % SIDE * quads_in(SIDE, STRIDE) + row / 4) * together(STRIDE) + together_at;
            packed[((quad * 4 + vector) * 16 + lane) * 4 + row % 4] = *weight;
        }
    }
}

const fn sliding<const SIDE: usize, const STRIDE: usize, const PIXELS: usize>() -> Sliding {
    Sliding {
        run: slide::<SIDE, STRIDE, PIXELS>,
        length: SIDE * quads_in(SIDE, STRIDE) * together(STRIDE) * 4 * BLOCK,
        place: place::<SIDE, STRIDE>,
        lane: |channel| lane_of(channel).0 * 16 + lane_of(channel).1,
        pixels: PIXELS,
    }
}

kernels!("x86_64", "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma", 64, Vnni, [
    [sliding::<3, 1, 1>(), sliding::<3, 2, 1>()],
    [sliding::<5, 1, 1>(), sliding::<5, 2, 1>()],
], [
    [Some(sliding::<3, 1, 2>()), None],
    [Some(sliding::<5, 1, 2>()), None],
], [
    wide x 2 [14 7 4 2 1],
    half x 1 [14 7 4 2 1]
]);
