//! ARC against the algorithm as it was published.

use super::*;

/// The published algorithm, line by line, over lists whose last element was used latest.
#[derive(Default)]
struct TextbookArc {
    capacity: usize,
    target: usize,
    recent: Vec<u8>,
    frequent: Vec<u8>,
    recent_ghosts: Vec<u8>,
    frequent_ghosts: Vec<u8>,
}

fn take(list: &mut Vec<u8>, key: u8) -> bool {
    let place = list.iter().position(|other| *other == key);
    place.map(|place| list.remove(place)).is_some()
}

impl TextbookArc {
    fn replace(&mut self, from_frequent_ghosts: bool) {
        let recent = self.recent.len();
        if recent > 0 && (recent > self.target || (from_frequent_ghosts && recent == self.target)) {
            self.recent_ghosts.push(self.recent.remove(0));
        } else if !self.frequent.is_empty() {
            self.frequent_ghosts.push(self.frequent.remove(0));
        } else {
            self.recent_ghosts.push(self.recent.remove(0));
        }
    }

    /// True for a hit.
    fn access(&mut self, key: u8) -> bool {
        if take(&mut self.recent, key) || take(&mut self.frequent, key) {
            self.frequent.push(key);
            return true;
        }
        let (recent, frequent) = (self.recent_ghosts.len(), self.frequent_ghosts.len());
        let full = self.recent.len() + self.frequent.len() == self.capacity;
        if take(&mut self.recent_ghosts, key) {
            self.target = self.capacity.min(self.target + (frequent / recent).max(1));
            if full {
                self.replace(false);
            }
            self.frequent.push(key);
        } else if take(&mut self.frequent_ghosts, key) {
            self.target = self.target.saturating_sub((recent / frequent).max(1));
            if full {
                self.replace(true);
            }
            self.frequent.push(key);
        } else {
            if self.recent.len() + recent == self.capacity {
                if self.recent.len() < self.capacity {
                    self.recent_ghosts.remove(0);
                    if full {
                        self.replace(false);
                    }
                } else {
                    self.recent.remove(0);
                }
            } else if self.recent.len() + self.frequent.len() + recent + frequent >= self.capacity {
                if self.recent.len() + self.frequent.len() + recent + frequent >= 2 * self.capacity {
                    self.frequent_ghosts.remove(0);
                }
                if full {
                    self.replace(false);
                }
            }
            self.recent.push(key);
        }
        false
    }
}

proptest! {
    #[test]
    fn arc_does_what_the_published_algorithm_does(
        capacity in 1..8_usize,
        keys in prop::collection::vec(prop_oneof![0..6_u8, 0..24_u8], 1..if cfg!(miri) { 40 } else { 400 }),
    ) {
        let cache = cache(CacheSettings { policy: Policy::Arc, ..settings(capacity) });
        let model = "m".into();
        let mut textbook = TextbookArc { capacity, ..TextbookArc::default() };
        for number in keys {
            let text = number.to_string();
            let found = cache.get(&key(&text, &model)).is_some();
            prop_assert_eq!(found, textbook.access(number));
            if !found {
                cache.insert(&key(&text, &model), vector(1));
            }
            prop_assert!(cache.statistics().entries <= capacity);
        }
    }
}

#[test]
fn arc_keeps_what_is_used_often_when_much_passes_by() {
    const ROUNDS: u64 = if cfg!(miri) { 4 } else { 100 };
    let hits = |policy| {
        let cache = cache(CacheSettings { policy, ..settings(50) });
        let model = "m".into();
        // 20 texts again and again, and twice as many that come once each time.
        let often = || (0..20).map(|number| format!("often {number}"));
        let once = |round| (0..40).map(move |number| format!("once {round} {number}"));
        for text in often().chain((0..ROUNDS).flat_map(|round| often().chain(once(round)))) {
            if cache.get(&key(&text, &model)).is_none() {
                cache.insert(&key(&text, &model), vector(1));
            }
        }
        cache.statistics().counts.hits
    };
    assert_eq!(hits(Policy::Lru), 20);
    assert!(hits(Policy::Arc) > 19 * ROUNDS, "{}", hits(Policy::Arc));
}
