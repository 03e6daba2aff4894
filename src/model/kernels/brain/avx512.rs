//! Sixteen lanes: AVX-512 with BF16, whose `vdpbf16ps` adds two products of bfloat16 to each float32 sum.
//!
//! The depthwise convolution of stride 1 lays two rows side by side, so that one instruction multiplies two taps;
//! two output rows share them, the second with weights that start one row further on.
use super::tiles::{Depthwise, Kernels, Lanes, Mean, Pairs, Sliding, depthwise, in_float32, kernels, mean};
use crate::model::kernels::precision::reached;
use crate::model::kernels::simd::{Avx512, Simd, first};
use crate::model::kernels::tile::{Panel, panel, unroll};
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

/// Channels in a block.
const BLOCK: usize = 32;

/// Twos of input rows that two output rows see.
const fn twos(side: usize) -> usize {
    side.div_ceil(2)
}

/// With stride 1. Weights are `[2 vectors, twos, 2 output rows, side columns, 16]`, two input rows in each word.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn slide<const SIDE: usize>(call: &Depthwise) {
    // SAFETY: this function enables the features; the caller vouches for the call.
    unsafe {
        let mut row = 0;
        while row + 2 <= call.row_count {
            slide_rows::<SIDE, 2>(call, row);
            row += 2;
        }
        if row < call.row_count {
            slide_rows::<SIDE, 1>(call, row);
        }
    }
}

/// With stride 2, in float32: each pixel goes to half as many sums, so that laying rows side by side would cost more
/// than it saves.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn slide_apart<const SIDE: usize>(call: &Depthwise) {
    // SAFETY: this function enables the features; the caller vouches for the call.
    unsafe { depthwise::<Avx512, SIDE, 2>(call) }
}

/// One output row, or two.
#[inline(always)]
unsafe fn slide_rows<const SIDE: usize, const ROWS: usize>(call: &Depthwise, row: usize) {
    // SAFETY: as for `slide`.
    unsafe {
        let mut column = 0;
        while column + 7 <= call.columns {
            pixels::<SIDE, ROWS, 7>(call, row, column);
            column += 7;
        }
        while column < call.columns {
            pixels::<SIDE, ROWS, 1>(call, row, column);
            column += 1;
        }
    }
}

/// Some neighbouring pixels of the rows.
#[inline(always)]
unsafe fn pixels<const SIDE: usize, const ROWS: usize, const COUNT: usize>(
    call: &Depthwise,
    row: usize,
    column: usize,
) {
    // SAFETY: the caller vouches for the instruction set and that the call's pointers reach its rows and
    // columns; zero bytes are values of vectors.
    unsafe {
        let mut sums: [[[__m512; COUNT]; ROWS]; 2] = std::mem::zeroed();
        unroll!(V in 0..2 {
            let bias = _mm512_loadu_ps(call.bias.add(V * 16));
            unroll!(R in 0..2 { if R < ROWS {
                unroll!(P in 0..7 { if P < COUNT { sums[V][R][P] = bias; } });
            } });
            for two in 0..twos(SIDE) {
                let rows = call.rows.add(row + 2 * two);
                let upper = (*rows).add(column * BLOCK);
                let has_lower = 2 * two + 1 < SIDE + ROWS - 1;
                let lower = if has_lower { (*rows.add(1)).add(column * BLOCK) } else { upper };
                let mut weights: [[__m512i; SIDE]; ROWS] = std::mem::zeroed();
                let words = call.weights.add((V * twos(SIDE) + two) * 2 * SIDE * 16);
                unroll!(R in 0..2 { if R < ROWS {
                    unroll!(T in 0..5 { if T < SIDE {
                        weights[R][T] = _mm512_loadu_si512(words.add((R * SIDE + T) * 16).cast());
                    } });
                } });
                // Each two of input pixels goes to every sum that has it.
                unroll!(J in 0..14 { if J < COUNT - 1 + SIDE {
                    let upper = _mm512_loadu_si512(upper.add(J * BLOCK).cast());
                    let lower = _mm512_loadu_si512(lower.add(J * BLOCK).cast());
                    let both = if V == 0 {
                        _mm512_unpacklo_epi16(upper, lower)
                    } else {
                        _mm512_unpackhi_epi16(upper, lower)
                    };
                    unroll!(T in 0..5 {
                        let to = const { reached(J, T, SIDE, 1) };
                        if to < COUNT {
                            unroll!(R in 0..2 { if R < ROWS {
                                sums[V][R][to] = <Avx512 as Pairs>::dot(sums[V][R][to], both, weights[R][T]);
                            } });
                        }
                    });
                } });
            }
        });
        // Of each eight channels the first four are in the first vector.
        let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
        unroll!(R in 0..2 { if R < ROWS {
            let output = call.output.add(((row + R) * call.columns + column) * BLOCK);
            unroll!(P in 0..7 { if P < COUNT {
                let halves = [Avx512::relu6(sums[0][R][P]), Avx512::relu6(sums[1][R][P])];
                let narrow = _mm512_cvtne2ps_pbh(halves[1], halves[0]);
                let narrow = std::mem::transmute::<__m512bh, __m512i>(narrow);
                _mm512_storeu_si512(output.add(P * BLOCK).cast(), _mm512_permutexvar_epi64(order, narrow));
            } });
        } });
    }
}

/// The lane of a channel of a block, counted through both vectors.
const fn lane_of(channel: usize) -> usize {
    channel % 8 / 4 * 16 + channel / 8 * 4 + channel % 4
}

/// Puts a channel's weights in place, see [`slide`].
fn place<const SIDE: usize>(packed: &mut [u32], channel: usize, weight: &[bf16]) {
    let (vector, lane) = (lane_of(channel) / 16, lane_of(channel) % 16);
    for (tap, weight) in weight.iter().enumerate() {
        for output_row in 0..2 {
            let row = tap / SIDE + output_row;
            let two = (vector * twos(SIDE) + row / 2) * 2 + output_row;
            packed[(two * SIDE + tap % SIDE) * 16 + lane] |= u32::from(weight.to_bits()) << (row % 2 * 16);
        }
    }
}

const fn sliding<const SIDE: usize>() -> Sliding {
    Sliding { run: slide::<SIDE>, words: 2 * twos(SIDE) * 2 * SIDE * 16, place: place::<SIDE>, lane: lane_of }
}

kernels!("x86_64", "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma", Avx512, [
    [sliding::<3>(), in_float32::<Avx512, 3>(slide_apart::<3>)],
    [sliding::<5>(), in_float32::<Avx512, 5>(slide_apart::<5>)],
], [
    wide_panel x 2 [14 7 4 2 1],
    half_panel x 1 [14 7 4 2 1]
]);
