//! What was worked out for recent photos: most photos share their tables and many their size.
//!
//! **Invariant**: at most [`ENTRIES`] are kept, the oldest goes first.
use std::collections::VecDeque;
use std::sync::Arc;

/// Results kept.
const ENTRIES: usize = 8;

/// Results of a function by its argument.
pub(super) struct Recent<K, V>(VecDeque<(K, Arc<V>)>);

impl<K: PartialEq, V> Recent<K, V> {
    pub(super) fn new() -> Self {
        Self(VecDeque::with_capacity(ENTRIES))
    }

    /// The result for `key`, which `make` gives if it is not known yet.
    pub(super) fn get<E>(&mut self, key: K, make: impl FnOnce(&K) -> Result<V, E>) -> Result<Arc<V>, E> {
        if let Some((_, value)) = self.0.iter().find(|(known, _)| *known == key) {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new(make(&key)?);
        if self.0.len() == ENTRIES {
            self.0.pop_front();
        }
        self.0.push_back((key, Arc::clone(&value)));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_and_failures_are_not_kept() {
        let mut squares = Recent::new();
        let mut calls = 0;
        let mut square = |key: usize| {
            let value = squares.get(key, |key| {
                calls += 1;
                if *key == 99 { Err(()) } else { Ok(key * key) }
            });
            (value.map(|value| *value), calls)
        };
        assert_eq!(
            [square(3), square(3), square(99), square(99)],
            [(Ok(9), 1), (Ok(9), 1), (Err(()), 2), (Err(()), 3)]
        );
        for key in 10..10 + ENTRIES {
            square(key).0.unwrap();
        }
        assert_eq!(square(10 + ENTRIES - 1), (Ok((9 + ENTRIES) * (9 + ENTRIES)), 3 + ENTRIES));
        assert_eq!(square(3), (Ok(9), 4 + ENTRIES));
    }
}
