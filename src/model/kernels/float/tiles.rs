//! Float32 kernels, written once over [`Simd`] and compiled for each instruction set.
//!
//! A 1x1 convolution is a matrix product read straight from the pixels: the weights are packed once in panels
//! of output channels, and a tile of some pixels times one panel stays in registers while the input channels
//! pass. A depthwise convolution takes one block of channels and makes seven neighbouring pixels at a time.
//!
//! **Invariant**: no kernel allocates, and each writes exactly the pixels and channels that it is told.
use crate::model::kernels::isa::{Isa, Level};
use crate::model::kernels::simd::Simd;

/// One panel's product over a run of pixels: `output = activation(bias + residual + input × weights)`.
#[derive(Clone, Copy)]
pub(in crate::model) struct Product {
    /// First pixel's first input channel.
    pub(in crate::model) input: *const f32,
    /// Elements from a pixel to the next.
    pub(in crate::model) pixel_stride: usize,
    /// Runs of input channels that lie apart.
    pub(in crate::model) segments: usize,
    /// Elements from a segment to the next.
    pub(in crate::model) segment_stride: usize,
    /// Input channels of each segment but the last.
    pub(in crate::model) depth: usize,
    /// Input channels of the last segment.
    pub(in crate::model) depth_last: usize,
    /// The panel: for each input channel, `width` output channels.
    pub(in crate::model) weights: *const f32,
    /// `width` elements.
    pub(in crate::model) bias: *const f32,
    /// What the offsets count from.
    pub(in crate::model) output: *mut f32,
    /// For each pixel, where its output starts.
    pub(in crate::model) offsets: *const u32,
    /// Added before the activation, at the same offsets; or null.
    pub(in crate::model) residual: *const f32,
    /// Whether ReLU6 follows.
    pub(in crate::model) activation: bool,
    /// Pixels.
    pub(in crate::model) pixels: usize,
    /// Output channels that are written, at most the panel's width.
    pub(in crate::model) valid: usize,
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

/// A kernel for panels of one width.
#[derive(Clone, Copy)]
pub(in crate::model) struct Panel {
    /// Output channels.
    pub(in crate::model) width: usize,
    /// Computes one panel.
    pub(in crate::model) run: unsafe fn(&Product),
}

/// The kernels of one instruction set.
pub(in crate::model) struct Kernels {
    /// Widest panel, and the number of channels in a block of the middle tensors.
    pub(in crate::model) block: usize,
    /// Panels, widest first; each width divides the one before.
    pub(in crate::model) panels: &'static [Panel],
    /// By kernel side (3 or 5) and stride (1 or 2).
    depthwise: [[unsafe fn(&Depthwise); 2]; 2],
    /// `[pixels, channels]` to the sums over the pixels, scaled.
    pub(in crate::model) mean: unsafe fn(&Mean),
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

    /// The depthwise kernel of a side and stride, if there is one.
    pub(in crate::model) fn depthwise(&self, kernel: usize, stride: usize) -> Option<unsafe fn(&Depthwise)> {
        let side = [3, 5].iter().position(|side| *side == kernel)?;
        self.depthwise[side].get(stride.wrapping_sub(1)).copied()
    }
}

/// Repeats a block with a constant from 0 on. A plain loop stays rolled and keeps the sums in memory.
macro_rules! unroll {
    ($at:ident in 0..2 $body:block) => { unroll!(@ $at $body 0 1) };
    ($at:ident in 0..5 $body:block) => { unroll!(@ $at $body 0 1 2 3 4) };
    ($at:ident in 0..7 $body:block) => { unroll!(@ $at $body 0 1 2 3 4 5 6) };
    ($at:ident in 0..14 $body:block) => { unroll!(@ $at $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13) };
    ($at:ident in 0..17 $body:block) => { unroll!(@ $at $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16) };
    (@ $at:ident $body:block $($value:literal)*) => { $({ const $at: usize = $value; $body })* };
}

/// `PIXELS` pixels times `VECTORS` vectors of output channels, starting at pixel `first`.
#[inline(always)]
unsafe fn tile<S: Simd, const PIXELS: usize, const VECTORS: usize>(call: &Product, first: usize) {
    // SAFETY: the caller vouches for the instruction set and that the call's pointers reach its pixels,
    // segments and channels.
    unsafe {
        let mut sums = [[S::splat(0.0); VECTORS]; PIXELS];
        unroll!(V in 0..2 { if V < VECTORS {
            let bias = S::load(call.bias.add(V * S::LANES));
            unroll!(P in 0..14 { if P < PIXELS { sums[P][V] = bias; } });
        } });
        let stride = call.pixel_stride;
        let mut weights = call.weights;
        let start = call.input.add(first * stride);
        for segment in 0..call.segments {
            let depth = if segment + 1 == call.segments { call.depth_last } else { call.depth };
            // Pixels in threes: each address is one of few pointers plus 0, 1 or 2 strides.
            let at = start.add(segment * call.segment_stride);
            let mut threes = [
                at,
                at.wrapping_add(3 * stride),
                at.wrapping_add(6 * stride),
                at.wrapping_add(9 * stride),
                at.wrapping_add(12 * stride),
            ];
            for _ in 0..depth {
                let mut panel = [S::splat(0.0); VECTORS];
                unroll!(V in 0..2 { if V < VECTORS { panel[V] = S::load(weights.add(V * S::LANES)); } });
                unroll!(P in 0..14 { if P < PIXELS {
                    let value = S::splat(*threes[P / 3].add(P % 3 * stride));
                    unroll!(V in 0..2 { if V < VECTORS {
                        sums[P][V] = S::multiply_add(value, panel[V], sums[P][V]);
                    } });
                } });
                weights = weights.add(VECTORS * S::LANES);
                unroll!(G in 0..5 { threes[G] = threes[G].wrapping_add(1); });
            }
        }
        finish::<S, PIXELS, VECTORS>(call, first, sums);
    }
}

/// Residual, activation and store of a tile.
#[inline(always)]
unsafe fn finish<S: Simd, const PIXELS: usize, const VECTORS: usize>(
    call: &Product,
    first: usize,
    mut sums: [[S::Vector; VECTORS]; PIXELS],
) {
    // SAFETY: as for `tile`.
    unsafe {
        let offsets = call.offsets.add(first);
        let whole = call.valid >= VECTORS * S::LANES;
        let rest = |vector: usize| call.valid.saturating_sub(vector * S::LANES).min(S::LANES);
        if !call.residual.is_null() {
            unroll!(P in 0..14 { if P < PIXELS {
                let residual = call.residual.add(*offsets.add(P) as usize);
                unroll!(V in 0..2 { if V < VECTORS {
                    let residual = residual.add(V * S::LANES);
                    let value = if whole { S::load(residual) } else { S::load_first(residual, rest(V)) };
                    sums[P][V] = S::add(sums[P][V], value);
                } });
            } });
        }
        if call.activation {
            unroll!(P in 0..14 { if P < PIXELS {
                unroll!(V in 0..2 { if V < VECTORS { sums[P][V] = S::relu6(sums[P][V]); } });
            } });
        }
        unroll!(P in 0..14 { if P < PIXELS {
            let output = call.output.add(*offsets.add(P) as usize);
            unroll!(V in 0..2 { if V < VECTORS {
                let output = output.add(V * S::LANES);
                if whole { S::store(output, sums[P][V]) } else { S::store_first(output, sums[P][V], rest(V)) }
            } });
        } });
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

/// The output pixel that sees input pixel `input` through tap `tap`, if there is one.
const fn reached(input: usize, tap: usize, side: usize, stride: usize) -> usize {
    if tap < side && input >= tap && (input - tap).is_multiple_of(stride) {
        (input - tap) / stride
    } else {
        usize::MAX
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
                        let mut weights = [bias; SIDE];
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
            use super::{Depthwise, Kernels, Mean, Panel, Product, depthwise, mean, tile};
            use crate::model::kernels::simd::{Simd as _, *};

            $(
                /// Tiles of falling height until no pixel is left.
                #[cfg_attr(target_arch = $arch, target_feature(enable = $feature))]
                unsafe fn $panel(call: &Product) {
                    let mut first = 0;
                    $(
                        while call.pixels - first >= $pixels {
                            // SAFETY: this function enables the features; the caller vouches for the rest.
                            unsafe { tile::<$simd, $pixels, $vectors>(call, first) };
                            first += $pixels;
                        }
                    )*
                }
            )*

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
                panels: &[$(Panel { width: $simd::LANES * $vectors, run: $panel }),*],
                depthwise: [[slide::<3, 1>, slide::<3, 2>], [slide::<5, 1>, slide::<5, 2>]],
                mean: average,
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
