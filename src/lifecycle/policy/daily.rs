//! At which time of the day a model is used, on working days and at weekends.

use chrono::{Datelike as _, NaiveDate, NaiveDateTime, Timelike as _};
use serde::{Deserialize, Serialize};

/// Bins of ten minutes.
const BINS: usize = 144;
const MINUTES: u32 = 10;
/// Seconds of a bin.
pub(super) const BIN_SECONDS: f64 = 600.0;
/// Days after which a day counts half.
const HALF_LIFE: f64 = 14.0;
/// How often a bin must have been used before it is a habit.
const ENOUGH: u8 = 4;
/// What a bin costs in which the model is loaded and not used.
const MISSED: f64 = 600.0;
/// How long a model that is loaded at the beginning of a bin waits for its use, on average.
const WAIT: f64 = 300.0;

/// The days of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Days {
    /// Days seen; older ones count less.
    days: f32,
    /// Of those, the days on which each bin was used.
    used: Vec<f32>,
    /// How often each bin was used at all.
    seen: Vec<u8>,
}

impl Default for Days {
    fn default() -> Self {
        Self { days: 0.0, used: vec![0.0; BINS], seen: vec![0; BINS] }
    }
}

/// The uses of a model by the time of day.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DailyHabits {
    working: Days,
    weekend: Days,
    /// The latest day that was seen, as days since the year 0.
    latest: Option<i32>,
    /// Bins used on that day.
    #[serde(skip)]
    today: Vec<usize>,
}

fn is_weekend(day: NaiveDate) -> bool {
    day.weekday().number_from_monday() > 5
}

fn bin(at: NaiveDateTime) -> usize {
    ((at.hour() * 60 + at.minute()) / MINUTES) as usize
}

impl DailyHabits {
    /// The model is used at this local time.
    pub fn used(&mut self, at: NaiveDateTime) {
        self.begin(at.date());
        let bin = bin(at);
        if self.today.contains(&bin) {
            return;
        }
        self.today.push(bin);
        let days = self.days(at.date());
        days.used[bin] += 1.0;
        days.seen[bin] = days.seen[bin].saturating_add(1);
    }

    /// Counts the days up to `day`. A clock that was set back counts nothing.
    fn begin(&mut self, day: NaiveDate) {
        let number = day.num_days_from_ce();
        let Some(latest) = self.latest else {
            self.latest = Some(number);
            self.days(day).days += 1.0;
            return;
        };
        if number <= latest {
            return;
        }
        // After a long time nothing of the old habits is left.
        let first = (latest + 1).max(number - 400);
        for next in (first..=number).filter_map(NaiveDate::from_num_days_from_ce_opt) {
            let kept = (-1.0 / HALF_LIFE).exp2() as f32;
            let days = self.days(next);
            days.days = days.days * kept + 1.0;
            days.used.iter_mut().for_each(|used| *used *= kept);
        }
        self.latest = Some(number);
        self.today.clear();
    }

    fn days(&mut self, day: NaiveDate) -> &mut Days {
        if is_weekend(day) { &mut self.weekend } else { &mut self.working }
    }

    /// How likely the model is used in the ten minutes that `at` lies in; 0 for what is no habit.
    pub fn probability(&self, at: NaiveDateTime) -> f64 {
        let days = if is_weekend(at.date()) { &self.weekend } else { &self.working };
        let bin = bin(at);
        if days.seen[bin] < ENOUGH || days.days <= 0.0 {
            return 0.0;
        }
        (f64::from(days.used[bin]) / f64::from(days.days)).clamp(0.0, 1.0)
    }

    /// Whether loading ahead of those ten minutes is worth it, where a load costs `price` seconds.
    pub fn is_worth(&self, at: NaiveDateTime, price: f64) -> bool {
        let probability = self.probability(at);
        probability * (price - WAIT) > (1.0 - probability) * MISSED
    }

    /// Whether it was used in those ten minutes already.
    pub fn is_used(&self, at: NaiveDateTime) -> bool {
        self.latest == Some(at.date().num_days_from_ce()) && self.today.contains(&bin(at))
    }

    /// Seconds that are left of the ten minutes.
    pub fn left(&self, at: NaiveDateTime) -> f64 {
        BIN_SECONDS - f64::from((at.minute() % MINUTES) * 60 + at.second())
    }

    /// The beginning of the next ten minutes, within a week from `now`, for which that is so: seconds from `now`, and how
    /// likely the use is.
    pub fn next(&self, now: NaiveDateTime, price: f64) -> Option<(f64, f64)> {
        let has_habits = |days: &Days| days.seen.iter().any(|seen| *seen >= ENOUGH);
        if !(has_habits(&self.working) || has_habits(&self.weekend)) {
            return None;
        }
        let into_bin = f64::from((now.minute() % MINUTES) * 60 + now.second());
        (1..=7 * BINS).find_map(|step| {
            let after = step as f64 * BIN_SECONDS - into_bin;
            let at = now.checked_add_signed(chrono::TimeDelta::seconds(after as i64))?;
            self.is_worth(at, price).then(|| (after, self.probability(at)))
        })
    }

    /// Adds what another process has seen.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in [(&mut self.working, &other.working), (&mut self.weekend, &other.weekend)] {
            own.days += other.days;
            own.used.iter_mut().zip(&other.used).for_each(|(own, other)| *own += other);
            own.seen.iter_mut().zip(&other.seen).for_each(|(own, other)| *own = own.saturating_add(*other));
        }
        self.latest = self.latest.max(other.latest);
    }

    /// Whether it is one that this code writes.
    pub fn is_valid(&self) -> bool {
        [&self.working, &self.weekend].into_iter().all(|days| {
            days.used.len() == BINS
                && days.seen.len() == BINS
                && days.used.iter().chain([&days.days]).all(|count| count.is_finite() && *count >= 0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: u32, hour: u32, minute: u32) -> NaiveDateTime {
        // The first of June 2026 is a Monday.
        NaiveDate::from_ymd_opt(2026, 6, day).unwrap().and_hms_opt(hour, minute, 0).unwrap()
    }

    #[test]
    fn a_daily_job_is_a_habit_after_four_days_and_none_at_weekends() {
        let mut habits = DailyHabits::default();
        for day in [1, 2, 3] {
            habits.used(at(day, 9, 5));
            habits.used(at(day, 9, 6)); // the same ten minutes
            assert!(!habits.is_worth(at(day, 9, 0), 1200.0));
        }
        habits.used(at(4, 9, 5));
        assert!(habits.probability(at(5, 9, 0)) > 0.99);
        assert_eq!(habits.next(at(5, 8, 30), 1200.0).map(|(after, _)| after), Some(1800.0));
        assert!(!habits.is_worth(at(6, 9, 0), 1200.0), "Saturday");
        // Not before Monday.
        assert_eq!(habits.next(at(5, 9, 30), 1200.0).map(|(after, _)| after), Some(3.0 * 86_400.0 - 1800.0));
    }

    #[test]
    fn a_habit_that_ends_is_forgotten_and_the_clock_may_be_set_back() {
        let mut habits = DailyHabits::default();
        for day in 1..=5 {
            habits.used(at(day, 9, 0));
        }
        habits.used(at(3, 9, 0));
        assert!(habits.probability(at(8, 9, 0)) > 0.99);
        for day in [8, 9, 10, 11, 12, 15, 16, 17, 18, 19] {
            habits.used(at(day, 14, 0));
        }
        assert!(habits.probability(at(22, 9, 0)) < 0.3 && !habits.is_worth(at(22, 9, 0), 1200.0));
        assert!(habits.is_worth(at(22, 14, 0), 1200.0));
    }

    #[test]
    fn processes_add_up() {
        let (mut one, mut other) = (DailyHabits::default(), DailyHabits::default());
        for day in 1..=4 {
            one.used(at(day, 9, 0));
            other.used(at(day, 10, 0));
        }
        one.merge(&other);
        assert!((one.probability(at(5, 9, 0)) - 0.5).abs() < 0.05);
        assert!(one.is_valid());
    }
}
