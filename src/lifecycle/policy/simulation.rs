//! The adaptive policy of one slot over a series of uses, on a clock that is moved by hand: for benchmarks and tests.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::adaptive::{AdaptivePolicy, AdaptiveSettings, Explanation};
use super::saved::SlotHabits;
use crate::clock::Clock;

/// What became of the uses.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// The policy at the end.
    pub explanation: Explanation,
    /// For each use, whether it waited for a load.
    pub cold: Vec<bool>,
}

/// A slot that is used at these times, in seconds from a Monday, 00:00. A use takes no time, a load takes `load`.
pub fn simulate(uses: &[f64], load: Duration, settings: AdaptiveSettings) -> Simulated {
    simulated(uses, load, settings).0
}

fn simulated(uses: &[f64], load: Duration, settings: AdaptiveSettings) -> (Simulated, AdaptivePolicy) {
    let clock = Clock::manual();
    let start = clock.now();
    let policy = AdaptivePolicy::new(clock.clone(), settings, Arc::default(), SlotHabits::default());
    let at = |seconds: f64| start + Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let mut leaves: Option<Instant> = None;
    let mut cold = Vec::with_capacity(uses.len());
    for used in uses.iter().map(|seconds| at(*seconds)) {
        leaves = idle(&policy, &clock, leaves, used, load);
        clock.advance_to(used);
        let resident = leaves.is_some();
        policy.begins(used, resident);
        if !resident {
            policy.loaded(load.as_secs_f64());
            policy.arrived(used);
        }
        policy.ends(used);
        leaves = used.checked_add(policy.stay());
        cold.push(!resident);
    }
    (Simulated { explanation: policy.explain(), cold }, policy)
}

/// What happens until the use at `used` to a value that leaves at `leaves`: when it leaves if it is in memory then.
fn idle(
    policy: &AdaptivePolicy,
    clock: &Clock,
    mut leaves: Option<Instant>,
    used: Instant,
    load: Duration,
) -> Option<Instant> {
    loop {
        if let Some(at) = leaves {
            if at >= used {
                return Some(at);
            }
            clock.advance_to(at);
            policy.left(at);
        }
        let next = policy.next(clock.now()).filter(|next| next.at + load <= used)?;
        clock.advance_to(next.at);
        policy.loads_ahead(next.why);
        clock.advance_to(next.at + load);
        policy.loaded_ahead(clock.now());
        leaves = Some(next.until.max(clock.now()));
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

    use super::super::fixed::Spent;
    use super::*;

    const LOAD: Duration = Duration::from_secs(2);
    const DAY: f64 = 86_400.0;

    fn settings() -> AdaptiveSettings {
        AdaptiveSettings {
            usual: Duration::from_secs(600),
            price: Duration::from_secs(1200),
            longest: Duration::from_secs(14_400),
        }
    }

    struct Random(ChaCha8Rng);

    impl Random {
        /// Between 0 and 1, neither.
        fn uniform(&mut self) -> f64 {
            (f64::from(self.0.next_u32()) + 0.5) / 4_294_967_296.0
        }

        fn exponential(&mut self, mean: f64) -> f64 {
            -mean * self.uniform().ln()
        }

        fn normal(&mut self) -> f64 {
            (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
        }
    }

    /// Uses over `days`, on average `rate` a day: by a timer, at random, or in sessions.
    fn uses(random: &mut Random, rate: f64, days: f64, kind: f64) -> Vec<f64> {
        let (mean, end) = (DAY / rate, days * DAY);
        let mut all = Vec::new();
        let mut at = random.uniform() * mean.min(end);
        while at < end && all.len() < 20_000 {
            all.push(at);
            if kind < 0.2 {
                at += mean;
            } else if kind < 0.3 {
                at += random.exponential(mean);
            } else {
                // A session of ten uses on average, half a minute apart.
                let mut inside = at;
                while random.uniform() > 0.1 {
                    inside += random.exponential(30.0);
                    all.push(inside);
                }
                at = inside + random.exponential(mean * 10.0);
            }
        }
        all.retain(|at| *at < end);
        all
    }

    fn cost(spent: Spent) -> f64 {
        spent.cold_starts as f64 * 1200.0 + spent.resident_seconds
    }

    #[test]
    fn over_many_slots_it_has_fewer_cold_starts_in_less_memory_than_the_timer() {
        let mut random = Random(ChaCha8Rng::seed_from_u64(1));
        let (mut own, mut timer) = (Spent::default(), Spent::default());
        for _ in 0..120 {
            let rate = 10_f64.powf(1.60 + 1.77 * random.normal());
            let kind = random.uniform();
            // The most frequently used slots are always in memory, whoever decides.
            let uses = uses(&mut random, rate.clamp(0.3, 3000.0), 10.0, kind);
            let Explanation { spent, fixed, .. } = simulate(&uses, LOAD, settings()).explanation;
            for (sum, one) in [(&mut own, spent), (&mut timer, fixed)] {
                sum.cold_starts += one.cold_starts;
                sum.resident_seconds += one.resident_seconds;
            }
        }
        let cold = own.cold_starts as f64 / timer.cold_starts as f64;
        let memory = own.resident_seconds / timer.resident_seconds;
        assert!(cold <= 0.6 && memory <= 0.9, "cold {cold:.3}, memory {memory:.3}");
    }

    #[test]
    fn an_hourly_job_is_warm_in_ten_minutes_of_memory_an_hour() {
        let uses: Vec<f64> = (0..24 * 14).map(|hour| f64::from(hour) * 3600.0).collect();
        let Simulated { cold, explanation } = simulate(&uses, LOAD, settings());
        let late = &cold[24..];
        let cold = late.iter().filter(|cold| **cold).count();
        assert!(cold * 20 <= late.len(), "{cold} of {}", late.len());
        let hours = uses.len() as f64;
        assert!(explanation.spent.resident_seconds / hours <= 600.0, "{:?}", explanation.spent);
    }

    #[test]
    fn a_daily_job_is_warm_after_a_week() {
        // At 09:03 on working days.
        let uses: Vec<f64> =
            (0..28).filter(|day| day % 7 < 5).map(|day| f64::from(day) * DAY + 9.05 * 3600.0).collect();
        let Simulated { cold, .. } = simulate(&uses, LOAD, settings());
        let late = &cold[5..];
        let cold = late.iter().filter(|cold| **cold).count();
        assert!(cold * 10 <= late.len(), "{cold} of {}", late.len());
    }

    /// Asserts that loads and memory cost at most 1.05 times what they cost the timer.
    fn assert_never_worse(name: &str, uses: &[f64]) {
        let Explanation { spent, fixed, .. } = simulate(uses, LOAD, settings()).explanation;
        // Two loads are its patience, and the one that exhausts it.
        let most = 1.05 * cost(fixed) + 3.0 * 1200.0;
        assert!(cost(spent) <= most, "{name}: {spent:?} {fixed:?}");
    }

    #[test]
    fn it_is_never_much_worse_than_the_timer() {
        let mut random = Random(ChaCha8Rng::seed_from_u64(2));
        for gap in [20, 60, 100, 300, 599, 601, 700, 1190, 1201, 1800, 3600, 7200, 15_000, 40_000] {
            let uses: Vec<f64> = (0..1000).map(|n| f64::from(n * gap)).collect();
            assert_never_worse(&format!("every {gap} s"), &uses);
        }
        let series = |gap: &mut dyn FnMut(usize) -> f64| {
            let sum = |at: &mut f64, gap: f64| {
                *at += gap;
                Some(*at)
            };
            (0..2000).map(gap).scan(0.0, sum).collect::<Vec<_>>()
        };
        for mean in [20.0, 100.0, 600.0, 1000.0, 1200.0, 1500.0, 3000.0, 20_000.0] {
            let uses = series(&mut |_| random.exponential(mean));
            assert_never_worse(&format!("every {mean} s on average"), &uses);
        }
        let heavy = series(&mut |_| 60.0 * (random.uniform().powf(-1.0 / 1.1) - 1.0));
        assert_never_worse("a heavy tail", &heavy);
        for (one, other, length) in [(60, 3000, 100), (60, 3000, 20), (601, 5000, 50), (300, 1300, 30)] {
            let uses = series(&mut |n| f64::from(if (n / length) % 2 == 0 { one } else { other }));
            assert_never_worse(&format!("{length} uses every {one} s, then every {other} s"), &uses);
        }
    }

    #[test]
    fn nor_against_an_adversary_who_comes_just_after_it_has_left() {
        let mut uses = vec![0.0];
        for _ in 0..250 {
            let Explanation { stay, window, .. } = simulate(&uses, LOAD, settings()).explanation;
            let gap = window.map_or(stay.as_secs_f64(), |window| window.to.max(30.0)) + 1.0;
            uses.push(uses[uses.len() - 1] + gap);
        }
        assert_never_worse("just after it has left", &uses);
        let mut uses = vec![0.0];
        for _ in 0..250 {
            // Where it leaves and comes back: while it is away.
            let Explanation { stay, next, .. } = simulate(&uses, LOAD, settings()).explanation;
            let gap = stay.as_secs_f64() + 1.0 + if next.is_some() { 1.0 } else { 0.0 };
            uses.push(uses[uses.len() - 1] + gap);
        }
        assert_never_worse("while it is away", &uses);
    }

    #[test]
    fn after_a_restart_it_decides_the_same() {
        let mut random = Random(ChaCha8Rng::seed_from_u64(3));
        for kind in [0.1, 0.25, 0.9] {
            let uses = uses(&mut random, 200.0, 5.0, kind);
            let (before, policy) = simulated(&uses, LOAD, settings());
            let (clock, pressure) = (Clock::manual(), Arc::default());
            let after = AdaptivePolicy::new(clock, settings(), pressure, policy.habits()).explain();
            assert!(before.explanation.window.is_some());
            let decided =
                |found: &Explanation| found.window.map(|window| (window.from, window.to, found.stay));
            assert_eq!(decided(&after), decided(&before.explanation));
        }
    }
}
