//! Portable code, compiled for the instruction set of this CPU.
//!
//! Decoding a photo is shifts and masks that BMI2 shortens and loops over eight floats that AVX2 does at once.
//! The compiler writes both from the same safe source, so there is nothing here but the choice.
//!
//! **Invariant**: an [`Instructions`] that names more than every CPU has can only be made where the CPU has
//! them, and a [`Work`] gives the same bits with all of them: its floats are multiplied and added one by one,
//! never fused.
#![allow(unsafe_code)]
#![cfg_attr(test, allow(clippy::inline_always))] // as `Work::run` asks for

/// Work to be compiled once for each set of instructions.
pub trait Work {
    /// What the work gives.
    type Output;

    /// Does the work. Mark it, and what it calls, `#[inline(always)]`: only what is inlined is compiled anew.
    fn run(self) -> Self::Output;
}

/// Instructions that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instructions {
    /// AVX2, BMI1 and BMI2.
    avx2: bool,
}

impl Instructions {
    /// Those that every CPU of this architecture has.
    pub const PORTABLE: Self = Self { avx2: false };

    /// The widest that this CPU has.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("bmi1")
            && std::arch::is_x86_feature_detected!("bmi2")
        {
            return Self { avx2: true };
        }
        Self::PORTABLE
    }

    /// Does the work with these instructions.
    #[inline]
    pub fn run<W: Work>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: `avx2` is only set where the CPU was seen to have what the function is compiled for.
            return unsafe { run_avx2(work) };
        }
        work.run()
    }
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

    struct Sum<'a>(&'a [f32]);

    impl Work for Sum<'_> {
        type Output = f32;

        #[inline(always)]
        fn run(self) -> f32 {
            self.0.iter().fold(0.0, |sum, value| sum * 1.001 + value)
        }
    }

    #[test]
    fn all_instructions_give_the_same_bits() {
        let values: Vec<f32> = (0..40).map(|at| (at as f32).sin()).collect();
        for length in 0..values.len() {
            let sum = |instructions: Instructions| instructions.run(Sum(&values[..length])).to_bits();
            assert_eq!(sum(Instructions::best()), sum(Instructions::PORTABLE));
        }
    }
}
