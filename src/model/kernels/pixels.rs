//! Runs portable code compiled for the instruction set of this CPU.
//!
//! Decoding a photo is shifts and masks that BMI2 shortens and loops over eight floats that AVX2 does at once.
//! The compiler writes both from the same safe source, so there is nothing here but the choice.
//!
//! **Invariant**: a [`Work`] gives the same bits on every instruction set: its floats are multiplied and added
//! one by one, never fused.
#![allow(unsafe_code)]

/// Work to be compiled once for each instruction set.
pub trait Work {
    /// What the work gives.
    type Output;

    /// Does the work. Mark it, and what it calls, `#[inline(always)]`: only what is inlined is compiled anew.
    fn run(self) -> Self::Output;
}

/// Does the work with the widest instructions that this CPU has.
#[inline]
pub fn run<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("bmi1")
        && std::arch::is_x86_feature_detected!("bmi2")
    {
        // SAFETY: the CPU has the features that the function is compiled for, as was just seen.
        return unsafe { run_avx2(work) };
    }
    work.run()
}

/// The work with 256-bit vectors and three-operand shifts.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn run_avx2<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum([f32; 19]);

    impl Work for Sum {
        type Output = f32;

        #[inline(always)]
        fn run(self) -> f32 {
            self.0.iter().fold(0.0, |sum, value| sum * 1.000_1 + value)
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let values = std::array::from_fn(|at| (at as f32).sin());
        assert_eq!(run(Sum(values)).to_bits(), Sum(values).run().to_bits());
    }
}
