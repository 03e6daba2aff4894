//! bfloat16 kernels, written once over [`Pairs`] and compiled for each instruction set.
//!
//! A depthwise convolution takes one block of channels and makes seven neighbouring pixels at a time, in
//! float32 between reading and writing; [`super::avx512`] has another.
//!
//! **Invariant**: no kernel allocates, and each writes exactly the pixels and channels that it is told.
use crate::model::kernels::isa::{Isa, Level};
use crate::model::kernels::precision::reached;
use crate::model::kernels::simd::Simd;
use crate::model::kernels::tile::{Dot, Panel, unroll};
use half::bf16;
use std::marker::PhantomData;

/// Vectors of float32 that bfloat16 can be multiplied into, widened to and rounded from.
///
/// # Safety
/// As for [`Simd`].
pub(in crate::model) trait Pairs: Simd {
    /// Two bfloat16 for every lane.
    type Pair: Copy;

    /// The same two for every lane.
    unsafe fn pair(from: *const u8) -> Self::Pair;
    /// `LANES` twos that lie one after the other.
    unsafe fn pairs(from: *const u8) -> Self::Pair;
    /// `sum + a[0] × b[0] + a[1] × b[1]` in every lane.
    unsafe fn dot(sum: Self::Vector, a: Self::Pair, b: Self::Pair) -> Self::Vector;
    /// `LANES` elements in order.
    unsafe fn widen(from: *const bf16) -> Self::Vector;
    /// `VECTORS × LANES` elements in order, 1 or 2 vectors, rounded.
    unsafe fn narrow<const VECTORS: usize>(to: *mut bf16, vectors: &[Self::Vector; VECTORS]);
    /// The first `count` elements in order, the others zero.
    unsafe fn widen_first(from: *const bf16, count: usize) -> Self::Vector;
    /// Writes the first `count` elements in order, rounded.
    unsafe fn narrow_first(to: *mut bf16, vector: Self::Vector, count: usize);
    /// `2 × LANES` elements: those with an even index, and those with an odd one.
    unsafe fn split(from: *const bf16) -> [Self::Vector; 2];
    /// What [`split`](Self::split) took apart put together, rounded.
    unsafe fn join(to: *mut bf16, even: Self::Vector, odd: Self::Vector);
}

/// What becomes of a panel's sums: `output = activation(bias + residual + sums)`.
#[derive(Clone, Copy)]
pub(in crate::model) struct Finish {
    /// The panel's.
    pub(super) bias: *const f32,
    /// What the offsets count from, at the panel's first channel.
    pub(super) output: Output,
    /// Added before the activation, at the same offsets; or null.
    pub(super) residual: *const bf16,
    /// Whether ReLU6 follows.
    pub(super) activation: bool,
}

/// Where a panel's channels go.
#[derive(Clone, Copy)]
pub(in crate::model) enum Output {
    /// Rounded.
    Brains(*mut bf16),
    /// As they are.
    Floats(*mut f32),
}

/// bfloat16 products in vectors of a kind.
#[derive(Clone, Copy)]
pub(in crate::model) struct Lanes<S>(PhantomData<S>);

impl<S: Pairs> Dot for Lanes<S> {
    type Sum = S::Vector;
    type Activation = S::Pair;
    type Weights = S::Pair;
    type Finish = Finish;
    const LANES: usize = S::LANES;

    // SAFETY of every block: the caller vouches for the instruction set and for the pointers (see `Dot`); zero
    // bytes are values of vectors.
    #[inline(always)]
    unsafe fn start(finish: &Finish, vector: usize) -> S::Vector {
        unsafe { S::load(finish.bias.add(vector * S::LANES)) }
    }

    #[inline(always)]
    unsafe fn activation(from: *const u8) -> S::Pair {
        unsafe { S::pair(from) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> S::Pair {
        unsafe { S::pairs(from) }
    }

    #[inline(always)]
    unsafe fn dot(sum: S::Vector, activation: S::Pair, weights: S::Pair) -> S::Vector {
        unsafe { S::dot(sum, activation, weights) }
    }

    #[inline(always)]
    unsafe fn finish<const PIXELS: usize, const VECTORS: usize>(
        finish: &Finish,
        offsets: *const u32,
        sums: &[[S::Vector; VECTORS]; PIXELS],
        valid: usize,
    ) {
        unsafe {
            match finish.output {
                Output::Brains(output) if valid >= VECTORS * S::LANES => {
                    unroll!(P in 0..14 { if P < PIXELS {
                        let offset = *offsets.add(P) as usize;
                        let mut vectors: [S::Vector; VECTORS] = std::mem::zeroed();
                        unroll!(V in 0..2 { if V < VECTORS { vectors[V] = sums[P][V]; } });
                        if !finish.residual.is_null() {
                            let residual = finish.residual.add(offset);
                            unroll!(V in 0..2 { if V < VECTORS {
                                vectors[V] = S::add(vectors[V], S::widen(residual.add(V * S::LANES)));
                            } });
                        }
                        if finish.activation {
                            unroll!(V in 0..2 { if V < VECTORS { vectors[V] = S::relu6(vectors[V]); } });
                        }
                        S::narrow::<VECTORS>(output.add(offset), &vectors);
                    } });
                }
                // A copy, so that the sums themselves need no memory.
                _ => {
                    let sums = *sums;
                    for (at, sums) in sums.iter().enumerate() {
                        finish_part::<S, VECTORS>(finish, *offsets.add(at) as usize, sums, valid);
                    }
                }
            }
        }
    }
}

/// One pixel of which not every channel is written, or not as bfloat16.
#[inline(always)]
unsafe fn finish_part<S: Pairs, const VECTORS: usize>(
    finish: &Finish,
    offset: usize,
    sums: &[S::Vector; VECTORS],
    valid: usize,
) {
    for (vector, sum) in sums.iter().enumerate() {
        let channel = vector * S::LANES;
        let count = valid.saturating_sub(channel).min(S::LANES);
        // SAFETY: the caller vouches for the instruction set and for `valid` channels.
        unsafe {
            let mut sum = *sum;
            if !finish.residual.is_null() {
                sum = S::add(sum, S::widen_first(finish.residual.wrapping_add(offset + channel), count));
            }
            if finish.activation {
                sum = S::relu6(sum);
            }
            match finish.output {
                Output::Brains(output) => S::narrow_first(output.wrapping_add(offset + channel), sum, count),
                Output::Floats(output) if count == S::LANES => S::store(output.add(offset + channel), sum),
                Output::Floats(output) => S::store_first(output.wrapping_add(offset + channel), sum, count),
            }
        }
    }
}

/// One block of channels through a depthwise convolution with bias and ReLU6.
#[derive(Clone, Copy)]
pub(in crate::model) struct Depthwise {
    /// For each output row, `kernel` input rows, of which the next output row's start `stride` further on.
    /// A row starts at the first tap of the first output.
    pub(super) rows: *const *const bf16,
    /// Output rows.
    pub(super) row_count: usize,
    /// Output pixels in a row.
    pub(super) columns: usize,
    /// As the kernel wants them, see [`Sliding`].
    pub(super) weights: *const u32,
    /// `block` elements in the order of the kernel's lanes.
    pub(super) bias: *const f32,
    /// `[row_count, columns, block]`.
    pub(super) output: *mut bf16,
}

/// A depthwise kernel with its way of laying out a channel's weights.
#[derive(Clone, Copy)]
pub(in crate::model) struct Sliding {
    pub(super) run: unsafe fn(&Depthwise),
    /// Words of a block's weights, each a float32 or two bfloat16.
    pub(super) words: usize,
    /// Puts the weights `[side, side]` of a channel of the block in place.
    pub(super) place: fn(packed: &mut [u32], channel: usize, weight: &[bf16]),
    /// The lane in which a channel of the block is multiplied.
    pub(super) lane: fn(channel: usize) -> usize,
}

/// Even channels before odd ones, as [`Pairs::split`] gives them.
const fn split_lane<S: Pairs>(channel: usize) -> usize {
    channel / 2 + channel % 2 * S::LANES
}

/// Weights `[side × side, block]` in float32, in the order of [`split_lane`].
pub(super) const fn in_float32<S: Pairs, const SIDE: usize>(run: unsafe fn(&Depthwise)) -> Sliding {
    Sliding {
        run,
        words: SIDE * SIDE * 2 * S::LANES,
        place: |packed, channel, weight| {
            for (tap, weight) in weight.iter().enumerate() {
                packed[tap * 2 * S::LANES + split_lane::<S>(channel)] = weight.to_f32().to_bits();
            }
        },
        lane: split_lane::<S>,
    }
}

/// Mean over pixels for one block of channels.
pub(in crate::model) struct Mean {
    /// `[pixels, block]`.
    pub(super) input: *const bf16,
    /// Pixels.
    pub(super) pixels: usize,
    /// `block` elements.
    pub(super) output: *mut bf16,
}

/// The kernels of one instruction set.
pub(in crate::model) struct Kernels {
    /// Channels in a block of the middle tensors: two vectors.
    pub(in crate::model) block: usize,
    /// Panels, widest first.
    pub(super) panels: &'static [Panel<Finish>],
    /// By kernel side (3 or 5) and stride (1 or 2).
    pub(super) depthwise: [[Sliding; 2]; 2],
    /// The mean over the pixels of a block of channels.
    pub(super) mean: unsafe fn(&Mean),
    /// Multiply-adds at the highest rate.
    #[cfg(feature = "measure")]
    pub(in crate::model) peak: crate::model::kernels::peak::Peak,
}

impl Kernels {
    /// The fastest kernels that `isa` has.
    pub(in crate::model) fn of(isa: Isa) -> &'static Self {
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => &super::avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 | Level::Avx512Vnni => &super::portable::avx2::KERNELS,
            _ => &super::portable::KERNELS,
        }
    }
}

/// Every pixel of a block of channels, seven at a time while there are so many.
#[inline(always)]
pub(super) unsafe fn depthwise<S: Pairs, const SIDE: usize, const STRIDE: usize>(call: &Depthwise) {
    // SAFETY: the caller vouches for the instruction set and that the call's pointers reach its rows and
    // columns.
    unsafe {
        let pixel = 2 * S::LANES;
        for row in 0..call.row_count {
            let rows = call.rows.add(row * STRIDE);
            let output = call.output.add(row * call.columns * pixel);
            let mut column = 0;
            while column + 7 <= call.columns {
                pixels::<S, SIDE, STRIDE, 7>(call, rows, column, output.add(column * pixel));
                column += 7;
            }
            while column < call.columns {
                pixels::<S, SIDE, STRIDE, 1>(call, rows, column, output.add(column * pixel));
                column += 1;
            }
        }
    }
}

/// `COUNT` neighbouring pixels.
#[inline(always)]
unsafe fn pixels<S: Pairs, const SIDE: usize, const STRIDE: usize, const COUNT: usize>(
    call: &Depthwise,
    rows: *const *const bf16,
    column: usize,
    output: *mut bf16,
) {
    // SAFETY: as for `depthwise`; zero bytes are values of vectors.
    unsafe {
        let pixel = 2 * S::LANES;
        let mut sums: [[S::Vector; 2]; COUNT] = std::mem::zeroed();
        unroll!(V in 0..2 {
            let bias = S::load(call.bias.add(V * S::LANES));
            unroll!(P in 0..7 { if P < COUNT { sums[P][V] = bias; } });
        });
        for kernel_row in 0..SIDE {
            let from = (*rows.add(kernel_row)).add(column * STRIDE * pixel);
            let tap = call.weights.cast::<f32>().add(kernel_row * SIDE * pixel);
            let mut weights: [[S::Vector; 2]; SIDE] = std::mem::zeroed();
            unroll!(T in 0..5 { if T < SIDE {
                unroll!(V in 0..2 { weights[T][V] = S::load(tap.add(T * pixel + V * S::LANES)); });
            } });
            // Each input pixel is widened once a kernel row and goes to every sum that has it.
            unroll!(J in 0..17 { if J < (COUNT - 1) * STRIDE + SIDE {
                let value = S::split(from.add(J * pixel));
                unroll!(T in 0..5 {
                    let to = const { reached(J, T, SIDE, STRIDE) };
                    if to < COUNT {
                        unroll!(V in 0..2 { sums[to][V] = S::multiply_add(value[V], weights[T][V], sums[to][V]); });
                    }
                });
            } });
        }
        unroll!(P in 0..7 { if P < COUNT {
            S::join(output.add(P * pixel), S::relu6(sums[P][0]), S::relu6(sums[P][1]));
        } });
    }
}

/// Mean over the pixels.
#[inline(always)]
pub(super) unsafe fn mean<S: Pairs>(call: &Mean) {
    // SAFETY: the caller vouches for the instruction set and the pointers.
    unsafe {
        let zero = S::splat(0.0);
        let scale = S::splat(1.0 / call.pixels as f32);
        let [mut even, mut odd] = [zero, zero];
        for pixel in 0..call.pixels {
            let value = S::split(call.input.add(pixel * 2 * S::LANES));
            even = S::add(even, value[0]);
            odd = S::add(odd, value[1]);
        }
        S::join(call.output, S::multiply_add(even, scale, zero), S::multiply_add(odd, scale, zero));
    }
}

/// A table of kernels: the architecture and features that an instruction set means, its vectors, and the
/// panels as vectors and pixels of the tiles, largest first, ending in 1.
macro_rules! kernels {
    ($arch:literal, $feature:literal, $pairs:ty, $depthwise:expr, [$($panel:ident x $vectors:literal [$($pixels:literal)*]),*]) => {
        $(panel!($panel, $arch, $feature, Lanes<$pairs>, $vectors, [$($pixels)*]);)*

        #[cfg_attr(target_arch = $arch, target_feature(enable = $feature))]
        unsafe fn average(call: &Mean) {
            // SAFETY: this function enables the features; the caller vouches for the rest.
            unsafe { mean::<$pairs>(call) }
        }

        pub(in crate::model::kernels::brain) static KERNELS: Kernels = Kernels {
            block: <$pairs as Simd>::LANES * 2,
            panels: &[$(Panel {
                width: <$pairs as Simd>::LANES * $vectors,
                channel: |vector, lane| vector * <$pairs as Simd>::LANES + lane,
                lanes: <$pairs as Simd>::LANES,
                run: $panel,
            }),*],
            depthwise: $depthwise,
            mean: average,
            #[cfg(feature = "measure")]
            peak: crate::model::kernels::peak::peak!(
                $arch, $feature, 2, Lanes<$pairs>, [$($vectors [$($pixels)*])*]
            ),
        };
    };
}
pub(super) use kernels;

/// Defines `SLIDING`, the depthwise kernels that compute in float32.
macro_rules! slides {
    ($arch:literal, $feature:literal, $pairs:ty) => {
        #[cfg_attr(target_arch = $arch, target_feature(enable = $feature))]
        unsafe fn slide<const SIDE: usize, const STRIDE: usize>(call: &Depthwise) {
            // SAFETY: this function enables the features; the caller vouches for the rest.
            unsafe { depthwise::<$pairs, SIDE, STRIDE>(call) }
        }

        const SLIDING: [[Sliding; 2]; 2] = [
            [in_float32::<$pairs, 3>(slide::<3, 1>), in_float32::<$pairs, 3>(slide::<3, 2>)],
            [in_float32::<$pairs, 5>(slide::<5, 1>), in_float32::<$pairs, 5>(slide::<5, 2>)],
        ];
    };
}
pub(super) use slides;
