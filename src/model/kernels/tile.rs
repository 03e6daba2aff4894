//! The matrix product of a 1x1 convolution, written once for every number format and instruction set.
//!
//! The product is read straight from the pixels: the weights are packed once in panels of output channels, and
//! a tile of some pixels times one panel stays in registers while the input channels pass, four bytes of a
//! pixel at a time: one float32, two bfloat16 or four 8-bit integers.
//!
//! **Invariant**: a tile writes exactly the pixels and channels that it is told.

/// Bytes of a pixel that are multiplied at once.
pub(in crate::model) const STEP: usize = 4;

/// One panel's product over a run of pixels.
#[derive(Clone, Copy)]
pub(in crate::model) struct Product<E> {
    /// First pixel's first input channel.
    pub(in crate::model) input: *const u8,
    /// Bytes from a pixel to the next.
    pub(in crate::model) pixel_stride: usize,
    /// Runs of input channels that lie apart.
    pub(in crate::model) segments: usize,
    /// Bytes from a segment to the next.
    pub(in crate::model) segment_stride: usize,
    /// Steps through each segment but the last.
    pub(in crate::model) steps: usize,
    /// Steps through the last segment.
    pub(in crate::model) steps_last: usize,
    /// The panel: for each step a vector of weights for each vector of output channels.
    pub(in crate::model) weights: *const u8,
    /// For each pixel, where its output starts, in elements.
    pub(in crate::model) offsets: *const u32,
    /// Pixels.
    pub(in crate::model) pixels: usize,
    /// Bytes from this panel's weights to the next's, which are fetched while the first tile is at work.
    pub(in crate::model) ahead: usize,
    /// Output channels that are written, at most the panel's width.
    pub(in crate::model) valid: usize,
    /// What becomes of the sums, and where they go.
    pub(in crate::model) finish: E,
}

/// A kernel for panels of one width.
pub(in crate::model) struct Panel<E> {
    /// Output channels.
    pub(in crate::model) width: usize,
    /// The output channel of a lane of a vector, counted from the panel's first.
    pub(in crate::model) channel: fn(vector: usize, lane: usize) -> usize,
    /// Output channels in a vector.
    pub(in crate::model) lanes: usize,
    /// Computes one panel.
    pub(in crate::model) run: unsafe fn(&Product<E>),
}

/// Multiplication and what follows it, for one number format and instruction set.
///
/// # Safety
/// Every method may run only where the CPU has the instruction set; pointers must be good for what they are
/// said to point at, at any alignment. Zero bytes must be values of the types.
pub(in crate::model) trait Dot: Copy {
    /// A vector of sums.
    type Sum: Copy;
    /// [`STEP`] bytes of a pixel, for every lane.
    type Activation: Copy;
    /// A vector of weights.
    type Weights: Copy;
    /// What becomes of the sums, and where they go.
    type Finish;
    /// Output channels in a vector.
    const LANES: usize;

    /// The sums before the first step.
    unsafe fn start(finish: &Self::Finish, vector: usize) -> Self::Sum;
    /// Reads [`STEP`] bytes of a pixel.
    unsafe fn activation(from: *const u8) -> Self::Activation;
    /// Reads `LANES * STEP` bytes of weights.
    unsafe fn weights(from: *const u8) -> Self::Weights;
    /// `sum + activation · weights`.
    unsafe fn dot(sum: Self::Sum, activation: Self::Activation, weights: Self::Weights) -> Self::Sum;
    /// Writes the first `valid` channels of each pixel, whose outputs start at `offsets`.
    unsafe fn finish<const PIXELS: usize, const VECTORS: usize>(
        finish: &Self::Finish,
        offsets: *const u32,
        sums: &[[Self::Sum; VECTORS]; PIXELS],
        valid: usize,
    );
}

/// Has the second-level cache fetch a line; any address will do.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees, and every CPU of the architecture has it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Repeats a block with a constant from 0 on. A plain loop stays rolled and keeps the sums in memory.
macro_rules! unroll {
    ($at:ident in 0..2 $body:block) => { unroll!(@ $at $body 0 1) };
    ($at:ident in 0..4 $body:block) => { unroll!(@ $at $body 0 1 2 3) };
    ($at:ident in 0..5 $body:block) => { unroll!(@ $at $body 0 1 2 3 4) };
    ($at:ident in 0..7 $body:block) => { unroll!(@ $at $body 0 1 2 3 4 5 6) };
    ($at:ident in 0..14 $body:block) => { unroll!(@ $at $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13) };
    ($at:ident in 0..17 $body:block) => { unroll!(@ $at $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16) };
    (@ $at:ident $body:block $($value:literal)*) => { $({ const $at: usize = $value; $body })* };
}
pub(in crate::model) use unroll;

/// `PIXELS` pixels times `VECTORS` vectors of output channels, starting at pixel `first`.
#[inline(always)]
pub(in crate::model) unsafe fn tile<D: Dot, const PIXELS: usize, const VECTORS: usize>(
    call: &Product<D::Finish>,
    first: usize,
) {
    // SAFETY: the caller vouches for the instruction set and that the call's pointers reach its pixels,
    // segments and channels; zero bytes are values of vectors.
    unsafe {
        // Zeroed rather than repeated, which would be a loop that keeps the sums in memory.
        let mut sums: [[D::Sum; VECTORS]; PIXELS] = std::mem::zeroed();
        unroll!(V in 0..4 { if V < VECTORS {
            let start = D::start(&call.finish, V);
            unroll!(P in 0..14 { if P < PIXELS { sums[P][V] = start; } });
        } });
        // Weights are read once an inference, hence from beyond the second-level cache, which finds out too late.
        let ahead = if first == 0 { call.ahead } else { 0 };
        let stride = call.pixel_stride;
        let mut weights = call.weights;
        let start = call.input.add(first * stride);
        for segment in 0..call.segments {
            let steps = if segment + 1 == call.segments { call.steps_last } else { call.steps };
            // Pixels in threes: each address is one of few pointers plus 0, 1 or 2 strides.
            let at = start.add(segment * call.segment_stride);
            let mut threes = [
                at,
                at.wrapping_add(3 * stride),
                at.wrapping_add(6 * stride),
                at.wrapping_add(9 * stride),
                at.wrapping_add(12 * stride),
            ];
            for _ in 0..steps {
                let mut panel: [D::Weights; VECTORS] = std::mem::zeroed();
                unroll!(V in 0..4 { if V < VECTORS {
                    let at = weights.add(V * D::LANES * STEP);
                    panel[V] = D::weights(at);
                    prefetch(at.wrapping_add(ahead));
                } });
                unroll!(P in 0..14 { if P < PIXELS {
                    let value = D::activation(threes[P / 3].add(P % 3 * stride));
                    unroll!(V in 0..4 { if V < VECTORS { sums[P][V] = D::dot(sums[P][V], value, panel[V]); } });
                } });
                weights = weights.add(VECTORS * D::LANES * STEP);
                unroll!(G in 0..5 { threes[G] = threes[G].wrapping_add(STEP); });
            }
        }
        D::finish(&call.finish, call.offsets.add(first), &sums, call.valid);
    }
}

/// Defines the kernel of a panel: tiles of falling height until no pixel is left.
macro_rules! panel {
    ($name:ident, $arch:literal, $feature:literal, $dot:ty, $vectors:literal, [$($pixels:literal)*]) => {
        #[cfg_attr(target_arch = $arch, target_feature(enable = $feature))]
        unsafe fn $name(call: &$crate::model::kernels::tile::Product<<$dot as $crate::model::kernels::tile::Dot>::Finish>) {
            let mut first = 0;
            $(
                while call.pixels - first >= $pixels {
                    // SAFETY: this function enables the features; the caller vouches for the rest.
                    unsafe { $crate::model::kernels::tile::tile::<$dot, $pixels, $vectors>(call, first) };
                    first += $pixels;
                }
            )*
        }
    };
}
pub(in crate::model) use panel;
