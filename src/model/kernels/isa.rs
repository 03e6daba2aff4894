//! Which instructions this CPU has, and which of them are used.
//!
//! **Invariant**: an [`Isa`] exists only where the CPU has it, so that holding one is the proof that its
//! instructions may run.
use std::fmt;

/// A step of the ladder of instruction sets, each with those below it on the same architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Level {
    /// What every CPU of the architecture has.
    Scalar,
    /// aarch64: Advanced SIMD.
    Neon,
    /// x86-64: AVX2 and FMA.
    Avx2,
    /// x86-64: AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64: AVX-512 with VNNI, products of bytes.
    Avx512Vnni,
    /// x86-64: AVX-512 with VNNI and BF16, products of bfloat16.
    Avx512Bf16,
}

/// Every level, lowest first.
pub const LEVELS: [Level; 6] =
    [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512, Level::Avx512Vnni, Level::Avx512Bf16];

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
        })
    }
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

impl Isa {
    /// The level, if this CPU has it.
    #[must_use]
    pub fn new(level: Level) -> Option<Self> {
        has(level).then_some(Self(level))
    }

    /// The highest level that this CPU has.
    #[must_use]
    pub fn best() -> Self {
        Self::all().last().unwrap_or(Self(Level::Scalar))
    }

    /// Every level that this CPU has, lowest first.
    pub fn all() -> impl Iterator<Item = Self> {
        LEVELS.into_iter().filter_map(Self::new)
    }

    /// The level.
    #[must_use]
    pub fn level(self) -> Level {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(target_arch = "x86_64")]
fn has(level: Level) -> bool {
    macro_rules! every {
        ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    match level {
        Level::Scalar => true,
        Level::Neon => false,
        Level::Avx2 => every!("avx2" "fma"),
        Level::Avx512 => has(Level::Avx2) && every!("avx512f" "avx512bw" "avx512dq" "avx512vl"),
        Level::Avx512Vnni => has(Level::Avx512) && every!("avx512vnni"),
        Level::Avx512Bf16 => has(Level::Avx512Vnni) && every!("avx512bf16"),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(level: Level) -> bool {
    // Every aarch64 CPU that Rust targets by default has Advanced SIMD.
    level == Level::Scalar || level == Level::Neon && cfg!(target_arch = "aarch64")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn the_ladder_holds_and_has_the_names_of_the_flag() {
        assert_eq!(Isa::all().next(), Some(Isa(Level::Scalar)));
        assert_eq!(Isa::all().last(), Some(Isa::best()));
        assert!(Isa::all().is_sorted());
        for level in LEVELS {
            assert_eq!(level.to_possible_value().unwrap().get_name(), level.to_string());
        }
    }
}
