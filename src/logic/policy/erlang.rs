//! How long requests wait for one of c slots.
//!
//! The chance that a request waits at all is Erlang's C formula (M/M/c; A. K. Erlang, 1917), by the stable
//! recursion over Erlang B: `B(0) = 1`, `B(k) = a·B(k−1) / (k + a·B(k−1))`, `C = B / (1 − ρ·(1 − B))`.
//!
//! How fast the chance falls with the wait is that of constant service times (M/D/c): `exp(−λ·(τ−1)·t)` where
//! τ > 1 solves `ρ·(τ−1) = ln τ` (H. C. Tijms, *A First Course in Stochastic Models*, 2003, section 9.6.2), made
//! slower by `1 + cv²` for service times that vary (heavy traffic, J. F. C. Kingman, 1961).

/// Offered load and service times of a queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// Arrivals a second.
    pub(super) rate_rps: f64,
    /// Mean service time, seconds.
    pub(super) service_s: f64,
    /// Coefficient of variation of the service time.
    pub(super) cv: f64,
}

impl Load {
    /// Slots that are busy in the mean (Little's law).
    pub(super) fn offered(&self) -> f64 {
        self.rate_rps * self.service_s
    }

    /// The fewest slots with which at most a share `late` of the requests waits longer than `wait_s`, up to
    /// `slots_max`.
    pub(super) fn slots(&self, wait_s: f64, late: f64, slots_max: u32) -> u32 {
        let offered = self.offered();
        if offered <= 0.0 {
            return 1;
        }
        let mut blocked = 1.0;
        for slots in 1..slots_max {
            blocked = offered * blocked / (f64::from(slots) + offered * blocked);
            let utilisation = offered / f64::from(slots);
            if utilisation < 1.0 {
                let waits = blocked / (1.0 - utilisation * (1.0 - blocked));
                let decay_hz = self.rate_rps * (root(utilisation) - 1.0) / (1.0 + self.cv * self.cv);
                if waits * (-decay_hz * wait_s.max(0.0)).exp() <= late {
                    return slots;
                }
            }
        }
        slots_max
    }
}

/// The τ > 1 that solves `ρ·(τ−1) = ln τ` for 0 < ρ < 1.
fn root(utilisation: f64) -> f64 {
    if utilisation <= 0.0 {
        return f64::INFINITY;
    }
    // Newton's method from the right of the root, where the function is convex and grows.
    let mut root = 1.0 + 2.0 * (1.0 - utilisation) / (utilisation * utilisation);
    for _ in 0..60 {
        let step = (utilisation * (root - 1.0) - root.ln()) / (utilisation - 1.0 / root);
        root -= step;
        if step.abs() < 1e-9 * root {
            break;
        }
    }
    root.max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The chance that a request waits at all, by the sum that defines it.
    fn erlang_c(slots: u32, offered: f64) -> f64 {
        let mut term = 1.0;
        let mut sum = 1.0;
        for k in 1..slots {
            term *= offered / f64::from(k);
            sum += term;
        }
        let last = term * offered / f64::from(slots) / (1.0 - offered / f64::from(slots));
        last / (sum + last)
    }

    #[test]
    fn known_values_of_erlangs_formula() {
        // Without a wait allowed only the chance of waiting counts: 2 slots at 1 erlang wait 1/3 of the time.
        assert!((erlang_c(2, 1.0) - 1.0 / 3.0).abs() < 1e-12);
        let load = Load { rate_rps: 10.0, service_s: 0.1, cv: 0.0 };
        assert_eq!(load.slots(0.0, 0.334, 100), 2);
        assert_eq!(load.slots(0.0, 0.333, 100), 3);
    }

    #[test]
    fn a_wait_that_is_allowed_saves_slots() {
        let load = Load { rate_rps: 200.0, service_s: 0.1, cv: 0.1 };
        let slots: Vec<u32> =
            [0.0, 0.02, 0.05, 0.1, 0.2, 1.0].map(|wait_s| load.slots(wait_s, 0.02, 1000)).to_vec();
        assert_eq!(slots, [31, 26, 23, 22, 21, 21]);
        assert_eq!(Load { cv: 1.0, ..load }.slots(0.1, 0.02, 1000), 23);
    }

    #[test]
    fn no_load_needs_one_slot_and_too_much_all() {
        assert_eq!(Load { rate_rps: 0.0, service_s: 0.1, cv: 0.1 }.slots(0.2, 0.02, 50), 1);
        assert_eq!(Load { rate_rps: 1e6, service_s: 0.1, cv: 0.1 }.slots(0.2, 0.02, 50), 50);
    }

    proptest! {
        #[test]
        fn the_decay_solves_its_equation(utilisation in 1e-6..0.9999_f64) {
            let root = root(utilisation);
            prop_assert!(root > 1.0);
            let (left, right) = (utilisation * (root - 1.0), root.ln());
            prop_assert!((left - right).abs() <= 1e-6 * right.max(1e-6), "{left} {right}");
        }

        #[test]
        fn slots_carry_the_load_and_grow_with_it(
            rate_rps in 0.01..5e3_f64, more in 1.0..2.0_f64, service_s in 1e-3..1.0_f64, cv in 0.0..3.0_f64,
            wait_s in 0.0..2.0_f64, late in 0.001..0.5_f64,
        ) {
            let load = Load { rate_rps, service_s, cv };
            let slots = load.slots(wait_s, late, 20_000);
            prop_assert!(f64::from(slots) > load.offered());
            let busier = Load { rate_rps: rate_rps * more, ..load };
            prop_assert!(slots <= busier.slots(wait_s, late, 20_000));
            if wait_s <= 0.0 && slots < 200 {
                prop_assert!(erlang_c(slots, load.offered()) <= late + 1e-9);
                prop_assert!(slots == 1 || f64::from(slots - 1) <= load.offered()
                    || erlang_c(slots - 1, load.offered()) > late - 1e-9);
            }
        }
    }
}
