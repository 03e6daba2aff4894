//! Float32 kernels, written once over [`Simd`] and compiled for each instruction set.
//!
//! A depthwise convolution takes one block of channels and makes seven neighbouring pixels at a time.
//!
//! **Invariant**: no kernel allocates, and each writes exactly the pixels and channels that it is told.
use crate::model::kernels::isa::{Isa, Level};
use crate::model::kernels::precision::reached;
use crate::model::kernels::simd::Simd;
use crate::model::kernels::tile::{Dot, Panel, unroll};
use std::marker::PhantomData;

/// What becomes of a panel's sums: `output = activation(bias + residual + sums)`.
#[derive(Clone, Copy)]
pub(in crate::model) struct Finish {
    /// The panel's.
    pub(in crate::model) bias: *const f32,
    /// What the offsets count from, at the panel's first channel.
    pub(in crate::model) output: *mut f32,
    /// Added before the activation, at the same offsets; or null.
    pub(in crate::model) residual: *const f32,
    /// Whether ReLU6 follows.
    pub(in crate::model) activation: bool,
}

/// Float32 products in vectors of a kind.
#[derive(Clone, Copy)]
pub(in crate::model) struct Lanes<S>(PhantomData<S>);

impl<S: Simd> Dot for Lanes<S> {
    type Sum = S::Vector;
    type Activation = S::Vector;
    type Weights = S::Vector;
    type Finish = Finish;
    const LANES: usize = S::LANES;

    // SAFETY of every block: the caller vouches for the instruction set and for the pointers (see `Dot`).
    #[inline(always)]
    unsafe fn start(finish: &Finish, vector: usize) -> S::Vector {
        unsafe { S::load(finish.bias.add(vector * S::LANES)) }
    }

    #[inline(always)]
    unsafe fn activation(from: *const u8) -> S::Vector {
        unsafe { S::splat(from.cast::<f32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> S::Vector {
        unsafe { S::load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sum: S::Vector, activation: S::Vector, weights: S::Vector) -> S::Vector {
        unsafe { S::multiply_add(activation, weights, sum) }
    }

    #[inline(always)]
    unsafe fn finish<const PIXELS: usize, const VECTORS: usize>(
        finish: &Finish,
        offsets: *const u32,
        sums: &[[S::Vector; VECTORS]; PIXELS],
        valid: usize,
    ) {
        unsafe {
            if valid < VECTORS * S::LANES {
                unroll!(P in 0..14 { if P < PIXELS {
                    finish_part::<S, VECTORS>(finish, *offsets.add(P) as usize, &sums[P], valid);
                } });
            } else if finish.residual.is_null() {
                unroll!(P in 0..14 { if P < PIXELS {
                    let output = finish.output.add(*offsets.add(P) as usize);
                    unroll!(V in 0..4 { if V < VECTORS {
                        let sum = if finish.activation { S::relu6(sums[P][V]) } else { sums[P][V] };
                        S::store(output.add(V * S::LANES), sum);
                    } });
                } });
            } else {
                unroll!(P in 0..14 { if P < PIXELS {
                    let offset = *offsets.add(P) as usize;
                    let (output, residual) = (finish.output.add(offset), finish.residual.add(offset));
                    unroll!(V in 0..4 { if V < VECTORS {
                        let sum = S::add(sums[P][V], S::load(residual.add(V * S::LANES)));
                        let sum = if finish.activation { S::relu6(sum) } else { sum };
                        S::store(output.add(V * S::LANES), sum);
                    } });
                } });
            }
        }
    }
}

/// One pixel of which not every channel is written.
#[inline(always)]
unsafe fn finish_part<S: Simd, const VECTORS: usize>(
    finish: &Finish,
    offset: usize,
    sums: &[S::Vector; VECTORS],
    valid: usize,
) {
    unroll!(V in 0..4 { if V < VECTORS {
        let channel = V * S::LANES;
        let count = valid.saturating_sub(channel).min(S::LANES);
        // SAFETY: the caller vouches for the instruction set and for `valid` channels.
        unsafe {
            let mut sum = sums[V];
            if !finish.residual.is_null() {
                sum = S::add(sum, S::load_first(finish.residual.wrapping_add(offset + channel), count));
            }
            if finish.activation {
                sum = S::relu6(sum);
            }
            S::store_first(finish.output.wrapping_add(offset + channel), sum, count);
        }
    } });
}

/// One block of channels through a depthwise convolution with bias and ReLU6.
#[derive(Clone, Copy)]
pub(in crate::model) struct Depthwise {
    /// For each output row, `kernel` input rows, of which the next output row's start `stride` further on.
    /// A row starts at the first tap of the first output.
    pub(in crate::model) rows: *const *const f32,
    /// Output rows.
    pub(in crate::model) row_count: usize,
    /// Output pixels in a row.
    pub(in crate::model) columns: usize,
    /// Elements from a pixel to the next, in input and output.
    pub(in crate::model) pixel_stride: usize,
    /// `[kernel × kernel, pixel_stride]`.
    pub(in crate::model) weights: *const f32,
    /// `pixel_stride` elements.
    pub(in crate::model) bias: *const f32,
    /// `[row_count, columns, pixel_stride]`.
    pub(in crate::model) output: *mut f32,
    /// Channels that are computed, rounded up to whole vectors; at most `pixel_stride`.
    pub(in crate::model) channels: usize,
}

/// The kernels of one instruction set.
pub(in crate::model) struct Kernels {
    /// Widest panel, and the number of channels in a block of the middle tensors.
    pub(in crate::model) block: usize,
    /// Panels, widest first; each width divides the one before.
    pub(in crate::model) panels: &'static [Panel<Finish>],
    /// By kernel side (3 or 5) and stride (1 or 2).
    pub(in crate::model) depthwise: [[unsafe fn(&Depthwise); 2]; 2],
    /// `[pixels, channels]` to the sums over the pixels, scaled.
    pub(in crate::model) mean: unsafe fn(&Mean),
    /// Multiply-adds at the highest rate.
    #[cfg(feature = "measure")]
    pub(in crate::model) peak: crate::model::kernels::peak::Peak,
}

/// Mean over pixels for the channels of one panel.
pub(in crate::model) struct Mean {
    /// `[pixels, width]`.
    pub(in crate::model) input: *const f32,
    /// Pixels.
    pub(in crate::model) pixels: usize,
    /// Channels in the input, a multiple of the narrowest panel.
    pub(in crate::model) width: usize,
    /// `width` elements.
    pub(in crate::model) output: *mut f32,
}

impl Kernels {
    /// The fastest kernels that `isa` has.
    pub(in crate::model) fn of(isa: Isa) -> &'static Self {
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Vnni | Level::Avx512Bf16 => &avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &avx2::KERNELS,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => &neon::KERNELS,
            _ => &portable::KERNELS,
        }
    }
}

/// A depthwise convolution in wide vectors while they fit, then in narrow ones.
#[inline(always)]
unsafe fn depthwise<W: Simd, N: Simd, const SIDE: usize, const STRIDE: usize>(call: &Depthwise) {
    let wide = call.channels / W::LANES * W::LANES;
    // SAFETY: as for `lanes`.
    unsafe {
        lanes::<W, SIDE, STRIDE>(call, 0, wide);
        lanes::<N, SIDE, STRIDE>(call, wide, call.channels);
    }
}

/// The channels of a range, a vector at a time, and of each seven pixels at a time.
#[inline(always)]
unsafe fn lanes<S: Simd, const SIDE: usize, const STRIDE: usize>(call: &Depthwise, from: usize, to: usize) {
    // SAFETY: the caller vouches for the instruction set and that the call's pointers reach its rows,
    // columns and channels.
    unsafe {
        let pixel = call.pixel_stride;
        for channel in (from..to).step_by(S::LANES) {
            let bias = S::load(call.bias.add(channel));
            for row in 0..call.row_count {
                let rows = call.rows.add(row * STRIDE);
                let output = call.output.add(row * call.columns * pixel + channel);
                let mut column = 0;
                while column + 7 <= call.columns {
                    let mut sums = [bias; 7];
                    for kernel_row in 0..SIDE {
                        let from = (*rows.add(kernel_row)).add(column * STRIDE * pixel + channel);
                        let mut weights: [S::Vector; SIDE] = std::mem::zeroed();
                        let tap = call.weights.add(kernel_row * SIDE * pixel + channel);
                        unroll!(T in 0..5 { if T < SIDE { weights[T] = S::load(tap.add(T * pixel)); } });
                        // Each input pixel is loaded once a kernel row and goes to every sum that has it.
                        unroll!(J in 0..17 { if J < 6 * STRIDE + SIDE {
                            let value = S::load(from.add(J * pixel));
                            unroll!(T in 0..5 {
                                let to = const { reached(J, T, SIDE, STRIDE) };
                                if to < 7 { sums[to] = S::multiply_add(value, weights[T], sums[to]); }
                            });
                        } });
                    }
                    unroll!(P in 0..7 { S::store(output.add((column + P) * pixel), S::relu6(sums[P])); });
                    column += 7;
                }
                while column < call.columns {
                    let mut sum = bias;
                    for kernel_row in 0..SIDE {
                        let from = (*rows.add(kernel_row)).add(column * STRIDE * pixel + channel);
                        let tap = call.weights.add(kernel_row * SIDE * pixel + channel);
                        for at in 0..SIDE {
                            sum = S::multiply_add(
                                S::load(from.add(at * pixel)),
                                S::load(tap.add(at * pixel)),
                                sum,
                            );
                        }
                    }
                    S::store(output.add(column * pixel), S::relu6(sum));
                    column += 1;
                }
            }
        }
    }
}

/// Mean over the pixels.
#[inline(always)]
unsafe fn mean<S: Simd>(call: &Mean) {
    // SAFETY: the caller vouches for the instruction set and the pointers.
    unsafe {
        let scale = S::splat(1.0 / call.pixels as f32);
        for channel in (0..call.width).step_by(S::LANES) {
            let mut sum = S::splat(0.0);
            for pixel in 0..call.pixels {
                sum = S::add(sum, S::load(call.input.add(pixel * call.width + channel)));
            }
            S::store(call.output.add(channel), S::multiply_add(sum, scale, S::splat(0.0)));
        }
    }
}

/// Compiles the kernels for an instruction set: the architecture and features that it means, its widest panel,
/// the panels as vector type, vectors and pixels of the tiles (largest first, ending in 1), and the vector
/// types of the depthwise convolution and of what must work on any panel.
macro_rules! kernels {
    ($module:ident, $arch:literal, $feature:literal, $block:literal,
     [$($panel:ident: $simd:ident x $vectors:literal [$($pixels:literal)*]),*], $wide:ident, $narrow:ident) => {
        mod $module {
            use super::{Depthwise, Kernels, Lanes, Mean, depthwise, mean};
            use crate::model::kernels::simd::{Simd as _, *};
            use crate::model::kernels::tile::{Panel, panel};

            $(panel!($panel, $arch, $feature, Lanes<$simd>, $vectors, [$($pixels)*]);)*

            #[cfg_attr(target_arch = $arch, target_feature(enable = $feature))]
            unsafe fn slide<const SIDE: usize, const STRIDE: usize>(call: &Depthwise) {
                // SAFETY: this function enables the features; the caller vouches for the rest.
                unsafe { depthwise::<$wide, $narrow, SIDE, STRIDE>(call) }
            }

            #[cfg_attr(target_arch = $arch, target_feature(enable = $feature))]
            unsafe fn average(call: &Mean) {
                // SAFETY: this function enables the features; the caller vouches for the rest.
                unsafe { mean::<$narrow>(call) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                block: $block,
                panels: &[$(Panel {
                    width: $simd::LANES * $vectors,
                    channel: |vector, lane| vector * $simd::LANES + lane,
                    lanes: $simd::LANES,
                    run: $panel,
                }),*],
                depthwise: [[slide::<3, 1>, slide::<3, 2>], [slide::<5, 1>, slide::<5, 2>]],
                mean: average,
                #[cfg(feature = "measure")]
                peak: crate::model::kernels::peak::peak!(
                    $arch, $feature, 4, Lanes<$wide>, [$($vectors [$($pixels)*])*]
                ),
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx512, "x86_64", "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", 32, [
    wide: Avx512 x 2 [14 7 4 2 1],
    half: Avx512 x 1 [14 7 4 2 1],
    quarter: Avx2 x 1 [14 7 4 2 1]
], Avx512, Avx2);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, "x86_64", "avx2,fma", 16, [
    wide: Avx2 x 2 [6 4 2 1],
    half: Avx2 x 1 [7 4 2 1]
], Avx2, Avx2);
#[cfg(target_arch = "aarch64")]
kernels!(neon, "aarch64", "neon", 8, [wide: Neon x 2 [14 7 4 2 1]], Neon, Neon);
kernels!(portable, "x86_64", "sse2", 8, [wide: Portable x 1 [4 2 1]], Portable, Portable);
