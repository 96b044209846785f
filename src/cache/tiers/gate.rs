//! Whether a slow tier is worth asking: only while what it saves is more than what it costs.

use std::time::Duration;

use crate::sync::Mutex;

/// The share of a new measurement in its average.
const WEIGHT: f64 = 0.05;
/// Results asked for before the gate may close: the first texts of a new process are often those that no other one has seen.
const ENOUGH: usize = 256;
/// While the gate is closed, one call in so many asks nevertheless: to learn when that has changed.
const PROBE: u32 = 32;

/// Averages of what asking costs and saves, for one result.
#[derive(Default)]
pub(super) struct AskingGate(Mutex<Averages>);

#[derive(Default)]
struct Averages {
    /// Of results asked for, those that were there.
    hit_rate: Option<f64>,
    /// Seconds of a look-up.
    look_up: Option<f64>,
    /// Seconds of a computation.
    compute: Option<f64>,
    /// Results asked for until now.
    asked: usize,
    closed_calls: u32,
}

impl AskingGate {
    /// Whether to ask now. Open until enough is known.
    pub(super) fn is_open(&self) -> bool {
        let mut averages = self.0.lock();
        let (Some(hit_rate), Some(look_up), Some(compute)) =
            (averages.hit_rate, averages.look_up, averages.compute)
        else {
            return true;
        };
        if averages.asked < ENOUGH || hit_rate * compute > look_up {
            averages.closed_calls = 0;
            return true;
        }
        averages.closed_calls += 1;
        averages.closed_calls.is_multiple_of(PROBE)
    }

    /// `keys` results were asked for, `hits` of them were there.
    pub(super) fn asked(&self, keys: usize, hits: usize, took: Duration) {
        if keys > 0 {
            let mut averages = self.0.lock();
            averages.asked = averages.asked.saturating_add(keys);
            average(&mut averages.hit_rate, hits as f64 / keys as f64);
            average(&mut averages.look_up, took.as_secs_f64() / keys as f64);
        }
    }

    /// `results` were computed.
    pub(super) fn computed(&self, results: usize, took: Duration) {
        if results > 0 {
            average(&mut self.0.lock().compute, took.as_secs_f64() / results as f64);
        }
    }
}

fn average(average: &mut Option<f64>, value: f64) {
    *average = Some(average.map_or(value, |average| average + WEIGHT * (value - average)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_misses_at_the_beginning_do_not_close_it() {
        let gate = AskingGate::default();
        gate.computed(1, Duration::from_micros(100));
        for _ in 0..ENOUGH {
            assert!((0..64).all(|_| gate.is_open()));
            gate.asked(1, 0, Duration::from_millis(1));
        }
        assert!(!gate.is_open());
    }

    #[test]
    fn it_closes_when_computing_is_faster_and_opens_again_when_that_changes() {
        let gate = AskingGate::default();
        assert!(gate.is_open());
        let ms = Duration::from_millis;
        for _ in 0..200 {
            gate.asked(10, 1, ms(10));
            gate.computed(10, ms(20));
        }
        // 0.1 hits of 2 ms save less than 1 ms.
        let opened = (0..64).filter(|_| gate.is_open()).count();
        assert_eq!(opened, 2);
        for _ in 0..200 {
            gate.asked(10, 9, ms(10));
        }
        assert!((0..64).all(|_| gate.is_open()));
    }
}
