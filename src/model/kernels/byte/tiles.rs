//! Integer products: what an instruction set must bring, and the table of its kernels.
use crate::model::kernels::integer;
use crate::model::kernels::isa::{Isa, Level};
use crate::model::kernels::tile::{Dot, Panel, unroll};
use std::marker::PhantomData;

/// What becomes of a panel's sums: `round(sum × multiplier + offset + input × residual_multiplier)`.
#[derive(Clone, Copy)]
pub(in crate::model) struct Finish {
    /// By lane of the panel.
    pub(super) multiplier: *const f32,
    /// By lane of the panel.
    pub(super) offset: *const f32,
    /// What the offsets count from, at the panel's first channel.
    pub(super) output: Output,
    /// The block's input at the same offsets, and its multiplier by lane of the panel; or null.
    pub(super) residual: (*const u8, *const f32),
}

/// Where a panel's channels go.
#[derive(Clone, Copy)]
pub(in crate::model) enum Output {
    /// Rounded.
    Bytes(*mut u8),
    /// As they are.
    Floats(*mut f32),
}

/// One block of channels through a depthwise convolution.
#[derive(Clone, Copy)]
pub(in crate::model) struct Depthwise {
    /// For each output row `side` input rows, of which the next output row's start `stride` further on.
    pub(super) rows: *const *const u8,
    /// Output rows.
    pub(super) row_count: usize,
    /// Output pixels in a row.
    pub(super) columns: usize,
    /// As the kernel wants them, see [`super::slide`] and [`super::vnni`].
    pub(super) weights: *const i8,
    /// By lane.
    pub(super) multiplier: *const f32,
    /// By lane.
    pub(super) offset: *const f32,
    /// `[row_count, columns, block]`.
    pub(super) output: *mut u8,
    /// Channels in the block, all of which are computed.
    pub(super) block: usize,
}

/// A depthwise kernel with its way of laying out a channel's weights.
#[derive(Clone, Copy)]
pub(in crate::model) struct Sliding {
    pub(super) run: unsafe fn(&Depthwise),
    /// Bytes of weights of a block.
    pub(super) length: usize,
    /// Puts the weights `[side, side]` of a channel of the block in place.
    pub(super) place: fn(packed: &mut [i8], channel: usize, weight: &[i8]),
    /// The lane in which a channel of the block is multiplied.
    pub(super) lane: fn(channel: usize) -> usize,
    /// Neighbouring pixels that lie in the vectors side by side, in as many lanes as a block has channels, so
    /// that each has so many fewer channels.
    pub(super) pixels: usize,
}

/// Mean over pixels for some channels.
pub(in crate::model) struct Mean<'a> {
    /// `[pixels, width]`.
    pub(super) input: *const u8,
    /// Pixels.
    pub(super) pixels: usize,
    /// Channels in the input.
    pub(super) width: usize,
    /// Multiplies the sums of the channels that there are, at most `width`.
    pub(super) multiplier: &'a [f32],
    /// As many elements as there are multipliers.
    pub(super) output: *mut u8,
}

/// Mean over the pixels, in plain Rust that the compiler turns into what the caller enables.
#[inline(always)]
pub(super) unsafe fn mean(call: &Mean<'_>) {
    // SAFETY: the caller vouches for input and output.
    let (input, output) = unsafe {
        let output = std::slice::from_raw_parts_mut(call.output, call.multiplier.len());
        (std::slice::from_raw_parts(call.input, call.pixels * call.width), output)
    };
    // Sixteen channels at once, which the compiler keeps in vectors.
    for (at, (multipliers, output)) in call.multiplier.chunks(16).zip(output.chunks_mut(16)).enumerate() {
        let mut sums = [0_i32; 16];
        for pixel in input.chunks_exact(call.width) {
            for (sum, value) in sums.iter_mut().zip(&pixel[at * 16..]) {
                *sum += i32::from(*value);
            }
        }
        for ((output, multiplier), sum) in output.iter_mut().zip(multipliers).zip(sums) {
            *output = integer::round(integer::scale(sum, *multiplier, 0.0));
        }
    }
}

/// The kernels of one instruction set.
pub(in crate::model) struct Kernels {
    /// Channels in a block of the middle tensors.
    pub(in crate::model) block: usize,
    /// Panels, widest first.
    pub(super) panels: &'static [Panel<Finish>],
    /// By side (3 or 5) and stride (1 or 2).
    pub(super) depthwise: [[Sliding; 2]; 2],
    /// The same for a tensor of so few channels that they leave half of a block free, where there is one.
    pub(super) narrow: [[Option<Sliding>; 2]; 2],
    /// The mean over the pixels of some channels.
    pub(super) mean: unsafe fn(&Mean<'_>),
    /// Multiply-adds at the highest rate.
    #[cfg(feature = "measure")]
    pub(in crate::model) peak: crate::model::kernels::peak::Peak,
}

impl Kernels {
    /// The fastest kernels that `isa` has.
    pub(in crate::model) fn of(isa: Isa) -> &'static Self {
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni | Level::Avx512Bf16 => &super::vnni::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 | Level::Avx512 => &super::avx2::KERNELS,
            _ => &super::portable::KERNELS,
        }
    }
}

/// Vectors of integer sums.
///
/// # Safety
/// As for [`Dot`].
pub(in crate::model) trait Integers: Copy {
    /// `LANES` sums.
    type Sum: Copy;
    /// Four bytes of a pixel, for every lane.
    type Activation: Copy;
    /// Four weights for every lane.
    type Weights: Copy;
    /// `LANES` float32.
    type Real: Copy;
    const LANES: usize;

    unsafe fn zero() -> Self::Sum;
    unsafe fn activation(four: i32) -> Self::Activation;
    unsafe fn weights(from: *const i8) -> Self::Weights;
    unsafe fn dot(sum: Self::Sum, activation: Self::Activation, weights: Self::Weights) -> Self::Sum;
    unsafe fn real(sum: Self::Sum) -> Self::Real;
    unsafe fn load(from: *const f32) -> Self::Real;
    /// `a × b + c`, rounded once.
    unsafe fn multiply_add(a: Self::Real, b: Self::Real, c: Self::Real) -> Self::Real;
    /// The float32s in the order of the lanes.
    unsafe fn store(to: *mut f32, real: Self::Real);
    /// The first `valid` bytes of a panel in the order of its channels, as float32 in the order of its lanes.
    unsafe fn residual<const VECTORS: usize>(from: *const u8, valid: usize) -> [Self::Real; VECTORS];
    /// Rounded to bytes in the order of the panel's channels, of which the first `valid` are written.
    unsafe fn round<const VECTORS: usize>(to: *mut u8, reals: &[Self::Real; VECTORS], valid: usize);
}

/// The most channels a panel has.
const WIDTH_MAX: usize = 64;

/// Integer products in vectors of a kind.
#[derive(Clone, Copy)]
pub(in crate::model) struct Lanes<I>(PhantomData<I>);

impl<I: Integers> Dot for Lanes<I> {
    type Sum = I::Sum;
    type Activation = I::Activation;
    type Weights = I::Weights;
    type Finish = Finish;
    const LANES: usize = I::LANES;

    // SAFETY of every block: the caller vouches for the instruction set and for the pointers (see `Dot`); a
    // panel's pixel that is not written as a whole goes through memory of its own.
    #[inline(always)]
    unsafe fn start(_finish: &Finish, _vector: usize) -> I::Sum {
        unsafe { I::zero() }
    }

    #[inline(always)]
    unsafe fn activation(from: *const u8) -> I::Activation {
        unsafe { I::activation(from.cast::<i32>().read_unaligned()) }
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> I::Weights {
        unsafe { I::weights(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sum: I::Sum, activation: I::Activation, weights: I::Weights) -> I::Sum {
        unsafe { I::dot(sum, activation, weights) }
    }

    #[inline(always)]
    unsafe fn finish<const PIXELS: usize, const VECTORS: usize>(
        finish: &Finish,
        offsets: *const u32,
        sums: &[[I::Sum; VECTORS]; PIXELS],
        valid: usize,
    ) {
        let width = VECTORS * I::LANES;
        unsafe {
            let multiplier = loaded::<I, VECTORS>(finish.multiplier);
            let offset = loaded::<I, VECTORS>(finish.offset);
            match finish.output {
                Output::Bytes(output) if finish.residual.0.is_null() && valid >= width => {
                    unroll!(P in 0..14 { if P < PIXELS {
                        let reals = scaled::<I, VECTORS>(&sums[P], &multiplier, &offset);
                        I::round(output.add(*offsets.add(P) as usize), &reals, width);
                    } });
                }
                Output::Bytes(output) if finish.residual.0.is_null() => {
                    unroll!(P in 0..14 { if P < PIXELS {
                        let reals = scaled::<I, VECTORS>(&sums[P], &multiplier, &offset);
                        I::round(output.add(*offsets.add(P) as usize), &reals, valid);
                    } });
                }
                Output::Bytes(output) => {
                    let added = loaded::<I, VECTORS>(finish.residual.1);
                    unroll!(P in 0..14 { if P < PIXELS {
                        let at = *offsets.add(P) as usize;
                        let mut reals = scaled::<I, VECTORS>(&sums[P], &multiplier, &offset);
                        let residual = I::residual::<VECTORS>(finish.residual.0.add(at), valid);
                        unroll!(V in 0..4 { if V < VECTORS {
                            reals[V] = I::multiply_add(residual[V], added[V], reals[V]);
                        } });
                        I::round(output.add(at), &reals, valid);
                    } });
                }
                Output::Floats(output) => {
                    // A copy, so that the sums themselves need no memory.
                    let sums = *sums;
                    for (at, sums) in sums.iter().enumerate() {
                        let reals = scaled::<I, VECTORS>(sums, &multiplier, &offset);
                        store_floats::<I, VECTORS>(output.add(*offsets.add(at) as usize), &reals, valid);
                    }
                }
            }
        }
    }
}

/// A value for every lane of a panel.
#[inline(always)]
unsafe fn loaded<I: Integers, const VECTORS: usize>(from: *const f32) -> [I::Real; VECTORS] {
    // SAFETY: the caller vouches for the instruction set and the pointers; zero bytes are values of vectors.
    unsafe {
        let mut reals: [I::Real; VECTORS] = std::mem::zeroed();
        unroll!(V in 0..4 { if V < VECTORS { reals[V] = I::load(from.add(V * I::LANES)); } });
        reals
    }
}

/// Sums times multipliers plus offsets.
#[inline(always)]
unsafe fn scaled<I: Integers, const VECTORS: usize>(
    sums: &[I::Sum; VECTORS],
    multiplier: &[I::Real; VECTORS],
    offset: &[I::Real; VECTORS],
) -> [I::Real; VECTORS] {
    // SAFETY: as for `loaded`.
    unsafe {
        let mut reals: [I::Real; VECTORS] = std::mem::zeroed();
        unroll!(V in 0..4 { if V < VECTORS {
            reals[V] = I::multiply_add(I::real(sums[V]), multiplier[V], offset[V]);
        } });
        reals
    }
}

/// Writes the first `valid` channels of a pixel as they are.
#[inline(always)]
unsafe fn store_floats<I: Integers, const VECTORS: usize>(
    to: *mut f32,
    reals: &[I::Real; VECTORS],
    valid: usize,
) {
    let mut floats = [0.0_f32; WIDTH_MAX];
    // SAFETY: no panel is wider than the array; the caller vouches for `valid` elements of `to`.
    unsafe {
        for (vector, reals) in reals.iter().enumerate() {
            I::store(floats.as_mut_ptr().add(vector * I::LANES), *reals);
        }
        for (lane, float) in floats.iter().enumerate().take(VECTORS * I::LANES) {
            let channel = interleaved::<VECTORS>(lane / I::LANES, lane % I::LANES);
            if channel < valid {
                *to.add(channel) = *float;
            }
        }
    }
}

/// The channel of a lane where vectors of 32-bit sums are packed to bytes four lanes at a time: each four
/// neighbouring lanes of a vector, then those of the next vector.
pub(super) const fn interleaved<const VECTORS: usize>(vector: usize, lane: usize) -> usize {
    lane / 4 * 4 * VECTORS + vector * 4 + lane % 4
}

/// A table of kernels.
macro_rules! kernels {
    ($arch:literal, $feature:literal, $block:literal, $integers:ty, $depthwise:expr,
     $narrow:expr, [$($panel:ident x $vectors:literal [$($pixels:literal)*]),*]) => {
        $(panel!($panel, $arch, $feature, Lanes<$integers>, $vectors, [$($pixels)*]);)*

        #[cfg_attr(target_arch = $arch, target_feature(enable = $feature))]
        unsafe fn average(call: &Mean<'_>) {
            // SAFETY: the caller vouches for the call.
            unsafe { mean(call) }
        }

        pub(super) static KERNELS: Kernels = Kernels {
            block: $block,
            panels: &[$(Panel {
                width: <$integers as Integers>::LANES * $vectors,
                channel: interleaved::<$vectors>,
                lanes: <$integers as Integers>::LANES,
                run: $panel,
            }),*],
            depthwise: $depthwise,
            narrow: $narrow,
            mean: average,
            #[cfg(feature = "measure")]
            peak: crate::model::kernels::peak::peak!(
                $arch, $feature, 1, Lanes<$integers>, [$($vectors [$($pixels)*])*]
            ),
        };
    };
}
pub(super) use kernels;
