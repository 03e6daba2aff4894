//! A depthwise convolution in plain Rust, which the compiler turns into what the target or the caller has.
//! Weights are `[side × side, block]`.
use super::tiles::Depthwise;
use crate::model::kernels::integer;

/// Channels at once.
const LANES: usize = 8;

/// Every pixel and channel of a block.
///
/// # Safety
/// The call's pointers must reach its rows, columns and channels; a block is a multiple of eight channels.
#[inline(always)]
pub(super) unsafe fn slide<const SIDE: usize, const STRIDE: usize>(call: &Depthwise) {
    let block = call.block;
    // SAFETY of every block: the caller vouches for the pointers.
    let eight = |from: *const u8| unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
    for row in 0..call.row_count {
        for column in 0..call.columns {
            let output = unsafe { call.output.add((row * call.columns + column) * block) };
            for channel in (0..block).step_by(LANES) {
                let mut sums = [0_i32; LANES];
                for tap in 0..SIDE * SIDE {
                    let (values, weights) = unsafe {
                        let from = *call.rows.add(row * STRIDE + tap / SIDE);
                        let at = (column * STRIDE + tap % SIDE) * block + channel;
                        let weights = call.weights.add(tap * block + channel).cast::<[i8; LANES]>();
                        (eight(from.add(at)), weights.read_unaligned())
                    };
                    for lane in 0..LANES {
                        sums[lane] += i32::from(i16::from(values[lane]) * i16::from(weights[lane]));
                    }
                }
                for (lane, sum) in sums.iter().enumerate() {
                    unsafe {
                        let (multiplier, offset) =
                            (*call.multiplier.add(channel + lane), *call.offset.add(channel + lane));
                        *output.add(channel + lane) =
                            integer::round(integer::scale(*sum, multiplier, offset));
                    }
                }
            }
        }
    }
}

/// The entry of a table for a plain kernel of a side and a block.
macro_rules! plain {
    ($run:expr, $side:literal, $block:literal) => {
        Sliding {
            run: $run,
            length: $side * $side * $block,
            place: |packed, channel, weight| {
                for (tap, weight) in weight.iter().enumerate() {
                    packed[tap * $block + channel] = *weight;
                }
            },
            lane: |channel| channel,
            pixels: 1,
        }
    };
}
pub(super) use plain;
