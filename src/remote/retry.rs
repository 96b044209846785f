//! How often a request is tried, and how long it pauses in between.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Attempts of one request.
pub(super) const ATTEMPTS: u32 = 4;
/// The longest pause that a server may ask for; with a longer one the request fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The first pause; each next one is twice as long.
const FIRST: Duration = Duration::from_millis(200);

/// The pause after `failed` failed attempts: what the server asks for, and never less than the back-off. `chance`, 0 to 1,
/// takes off up to half of that, so that clients that failed at the same time do not try again at the same time.
pub(super) fn pause(failed: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let longest = FIRST * 2u32.saturating_pow(failed.saturating_sub(1).min(8));
    let own = longest.mul_f64(1.0 - 0.5 * chance.clamp(0.0, 1.0));
    asked.map_or(own, |asked| asked.max(own))
}

/// A number from 0 to 1. Not for secrets: pauses only need to differ.
pub(super) fn chance() -> f64 {
    // Each state has a random key.
    let random = RandomState::new().hash_one(0u8);
    (random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double() {
        let pauses: Vec<_> = (1..ATTEMPTS).map(|failed| pause(failed, None, 0.0).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800]);
    }

    #[test]
    fn chances_differ() {
        let first = chance();
        assert!((0.0..1.0).contains(&first));
        assert!((0..100).any(|_| chance() != first));
    }

    proptest! {
        #[test]
        fn a_pause_is_what_was_asked_or_the_jittered_back_off(
            failed in 0u32..100, asked in prop::option::of(0u64..100_000), chance in -1.0f64..2.0,
        ) {
            let asked = asked.map(Duration::from_millis);
            let pause = super::pause(failed, asked, chance);
            prop_assert!(pause >= asked.unwrap_or_default().max(FIRST / 2));
            prop_assert!(pause <= asked.unwrap_or_default().max(FIRST * 256));
        }
    }
}
