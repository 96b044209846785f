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
    Simulated { explanation: policy.explain(), cold }
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
        policy.loads_ahead();
        clock.advance_to(next.at + load);
        policy.loaded_ahead(clock.now());
        leaves = Some(next.until.max(clock.now()));
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

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

    fn cost(spent: super::super::fixed::Spent) -> f64 {
        spent.cold_starts as f64 * 1200.0 + spent.resident_seconds
    }

    #[test]
    fn over_many_slots_it_has_fewer_cold_starts_in_less_memory_than_the_timer() {
        let mut random = Random(ChaCha8Rng::seed_from_u64(1));
        let (mut cold, mut memory) = (0.0, 0.0);
        let mut counted = 0.0;
        for _ in 0..120 {
            let rate = 10_f64.powf(1.60 + 1.77 * random.normal());
            let kind = random.uniform();
            let uses = uses(&mut random, rate.clamp(0.2, 20_000.0), 14.0, kind);
            let Explanation { spent, fixed, .. } = simulate(&uses, LOAD, settings()).explanation;
            if fixed.cold_starts < 3 {
                continue;
            }
            counted += 1.0;
            cold += spent.cold_starts as f64 / fixed.cold_starts as f64;
            memory += spent.resident_seconds / fixed.resident_seconds.max(1.0);
        }
        let (cold, memory) = (cold / counted, memory / counted);
        assert!(cold <= 0.95 && memory <= 1.0, "cold {cold:.2}, memory {memory:.2}");
    }

    #[test]
    fn an_hourly_job_is_warm_in_ten_minutes_of_memory_an_hour() {
        let uses: Vec<f64> = (0..24 * 14).map(|hour| f64::from(hour) * 3600.0).collect();
        let Simulated { cold, explanation } = simulate(&uses, LOAD, settings());
        let late = &cold[24..];
        let cold = late.iter().filter(|cold| **cold).count();
        assert!(cold * 20 <= late.len(), "{cold} of {}", late.len());
        let hours = uses.len() as f64;
        assert!(explanation.spent.resident_seconds / hours <= 600.0 + 60.0, "{:?}", explanation.spent);
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

    #[test]
    fn it_is_never_much_worse_than_the_timer() {
        let mut random = Random(ChaCha8Rng::seed_from_u64(2));
        let every = |seconds: f64, count: usize| (0..count).map(|n| n as f64 * seconds).collect::<Vec<_>>();
        let mut series = vec![
            ("every minute", every(60.0, 2000)),
            ("every five minutes", every(300.0, 2000)),
            ("just beyond the timer", every(601.0, 1000)),
            ("every two hours", every(7200.0, 300)),
        ];
        for mean in [100.0, 600.0, 3000.0] {
            let mut at = 0.0;
            let poisson = (0..2000).map(|_| {
                at += random.exponential(mean);
                at
            });
            series.push(("at random", poisson.collect()));
        }
        let mut at = 0.0;
        let switching = (0..2000).map(|n| {
            at += if (n / 100) % 2 == 0 { 60.0 } else { 3000.0 };
            at
        });
        series.push(("switching", switching.collect()));
        for (name, uses) in series {
            let Explanation { spent, fixed, .. } = simulate(&uses, LOAD, settings()).explanation;
            assert!(cost(spent) <= 1.05 * cost(fixed) + 2400.0, "{name}: {spent:?} {fixed:?}");
        }
    }
}
