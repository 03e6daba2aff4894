//! The most multiply-adds that a core does in a second: tiles that wait for no memory.
//!
//! **Invariant**: what is repeated is [`Dot::dot`] as the kernels have it, compiled for the same instructions, on as
//! many sums as their largest tile has, so that no product waits for the one before it.
use crate::model::kernels::tile::{Dot, STEP, unroll};

/// Rounds of a [`Peak`].
pub(in crate::model) const ROUNDS: usize = 4096;

/// Bytes that a [`Peak`] reads: enough for the weights of any panel, and for the pixels of any tile.
pub(in crate::model) const BYTES: usize = 256;

/// A loop of nothing but products.
pub(in crate::model) struct Peak {
    /// Multiply-adds in a round.
    pub(in crate::model) multiply_adds: usize,
    /// Does [`ROUNDS`] rounds on [`BYTES`] bytes, which are pixels and weights.
    pub(in crate::model) run: unsafe fn(bytes: *const u8),
}

/// The products of one step through a tile, again and again.
///
/// Sums and weights stay in registers. Pixels are spread over the lanes before the loop, and read from the
/// first-level cache, each for the sums of all vectors: had all the same value, then where a product is several
/// instructions the compiler would multiply once for all of them.
///
/// # Safety
/// The CPU must have the instruction set, and `bytes` must be good for reads of [`BYTES`].
#[inline(always)]
pub(in crate::model) unsafe fn repeat<D: Dot, const PIXELS: usize, const VECTORS: usize>(bytes: *const u8) {
    // SAFETY: the caller vouches for the instruction set and the bytes; zero bytes are values of vectors.
    unsafe {
        let mut sums: [[D::Sum; VECTORS]; PIXELS] = std::mem::zeroed();
        let mut pixels: [D::Activation; PIXELS] = std::mem::zeroed();
        let mut panel: [D::Weights; VECTORS] = std::mem::zeroed();
        unroll!(P in 0..14 { if P < PIXELS { pixels[P] = D::activation(bytes.add(P * STEP)); } });
        unroll!(V in 0..4 { if V < VECTORS { panel[V] = D::weights(bytes.add(V * D::LANES * STEP)); } });
        for _ in 0..ROUNDS {
            // What may have changed cannot be multiplied before the loop.
            std::hint::black_box(&mut pixels);
            unroll!(P in 0..14 { if P < PIXELS {
                unroll!(V in 0..4 { if V < VECTORS { sums[P][V] = D::dot(sums[P][V], pixels[P], panel[V]); } });
            } });
        }
        std::hint::black_box(sums);
    }
}

/// The [`Peak`] of some panels: the architecture and features that an instruction set means, the bytes of an
/// element, and each panel's vectors and the pixels of its tiles, of which the first are the largest.
macro_rules! peak {
    ($arch:literal, $feature:literal, $bytes:literal, $dot:ty,
     [$vectors:literal [$pixels:literal $($fewer:literal)*] $($narrower:tt)*]) => {{
        use $crate::model::kernels::peak::{Peak, repeat};
        use $crate::model::kernels::tile::{Dot, STEP};

        #[cfg_attr(target_arch = $arch, target_feature(enable = $feature))]
        unsafe fn run(bytes: *const u8) {
            // SAFETY: this function enables the features; the caller vouches for the rest.
            unsafe { repeat::<$dot, $pixels, $vectors>(bytes) }
        }

        Peak { multiply_adds: $pixels * $vectors * <$dot as Dot>::LANES * (STEP / $bytes), run }
    }};
}
pub(in crate::model) use peak;
