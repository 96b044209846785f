//! At which time of the day a model is used, on working days and at weekends.

use chrono::{Datelike as _, NaiveDate, NaiveDateTime, Timelike as _};
use serde::{Deserialize, Serialize};

/// Bins of ten minutes.
const BINS: usize = 144;
const MINUTES: u32 = 10;
/// Seconds of a bin.
pub(super) const BIN_SECONDS: f64 = 600.0;
const DAY_SECONDS: f64 = 86_400.0;
/// Days after which a day counts half.
const HALF_LIFE: f64 = 14.0;
/// On how many of the latest 32 days a bin must have been used before it is a habit.
const ENOUGH: u32 = 4;
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
    /// The days on which each bin was used: bit `n` is that of `n` days before the latest one.
    seen: Vec<u32>,
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

/// The beginning of the ten minutes that `at` lies in.
pub(super) fn beginning(at: NaiveDateTime) -> NaiveDateTime {
    let seconds = i64::from((at.minute() % MINUTES) * 60 + at.second());
    at - chrono::TimeDelta::seconds(seconds) - chrono::TimeDelta::nanoseconds(i64::from(at.nanosecond()))
}

fn is_worth(probability: f64, price: f64) -> bool {
    probability * (price - WAIT) > (1.0 - probability) * MISSED
}

fn is_weekend(day: NaiveDate) -> bool {
    day.weekday().number_from_monday() > 5
}

fn bin(at: NaiveDateTime) -> usize {
    ((at.hour() * 60 + at.minute()) / MINUTES) as usize
}

impl DailyHabits {
    /// The model is used at this local time, after an idle period of so many seconds; `None`: it is the first use.
    ///
    /// Only uses that end a long idle period count. In a busy hour every ten minutes are used, but a model that was idle
    /// for long is loaded ahead of the beginning of such an hour, and that is what has to be likely.
    pub fn used(&mut self, at: NaiveDateTime, idle: Option<f64>) {
        self.begin(at.date());
        let bin = bin(at);
        if self.today.contains(&bin) {
            return;
        }
        self.today.push(bin);
        if idle.is_some_and(|idle| idle < BIN_SECONDS) {
            return;
        }
        // Not the latest day where the clock was set back a little.
        let before = self.latest.map_or(0, |latest| latest.abs_diff(at.date().num_days_from_ce()));
        let days = self.days(at.date());
        days.used[bin] += 1.0;
        days.seen[bin] |= 1_u32.checked_shl(before).unwrap_or(0);
    }

    /// Counts the days up to `day`. A clock that was set back counts nothing; after a week of it, the later days have not
    /// been.
    fn begin(&mut self, day: NaiveDate) {
        let number = day.num_days_from_ce();
        let Some(latest) = self.latest else {
            self.latest = Some(number);
            self.days(day).days += 1.0;
            return;
        };
        if number <= latest {
            if number < latest - 7 {
                self.latest = Some(number);
                self.days_passed(1);
                self.today.clear();
            }
            return;
        }
        self.days_passed(number.abs_diff(latest));
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

    /// The latest day is so many days later than before.
    fn days_passed(&mut self, count: u32) {
        for seen in self.working.seen.iter_mut().chain(&mut self.weekend.seen) {
            *seen = seen.checked_shl(count).unwrap_or(0);
        }
    }

    fn days(&mut self, day: NaiveDate) -> &mut Days {
        if is_weekend(day) { &mut self.weekend } else { &mut self.working }
    }

    /// How likely the model is used in the ten minutes that `at` lies in; 0 for what is no habit.
    pub fn probability(&self, at: NaiveDateTime) -> f64 {
        self.share(at.date(), bin(at), self.missed(at.date()))
    }

    /// Days without any use, of the same kind as `day`, between the latest day and this one. They count: a habit ends
    /// when the model is no longer used at all.
    fn missed(&self, day: NaiveDate) -> i32 {
        let Some(latest) = self.latest else { return 0 };
        let between = (latest + 1).max(day.num_days_from_ce() - 400)..day.num_days_from_ce();
        let same = |number: &i32| (number.rem_euclid(7) == 0 || number.rem_euclid(7) == 6) == is_weekend(day);
        i32::try_from(between.filter(same).count()).unwrap_or(i32::MAX)
    }

    fn share(&self, day: NaiveDate, bin: usize, missed: i32) -> f64 {
        let days = if is_weekend(day) { &self.weekend } else { &self.working };
        if days.seen[bin].count_ones() < ENOUGH || days.days <= 0.0 {
            return 0.0;
        }
        let (each, kept) = ((-1.0 / HALF_LIFE).exp2(), (-f64::from(missed) / HALF_LIFE).exp2());
        let all = f64::from(days.days) * kept + (1.0 - kept) / (1.0 - each);
        (f64::from(days.used[bin]) * kept / all).clamp(0.0, 1.0)
    }

    /// Whether loading ahead of those ten minutes is worth it, where a load costs `price` seconds.
    pub fn is_worth(&self, at: NaiveDateTime, price: f64) -> bool {
        is_worth(self.probability(at), price)
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
        let has_habits = |days: &Days| days.seen.iter().any(|seen| seen.count_ones() >= ENOUGH);
        if !(has_habits(&self.working) || has_habits(&self.weekend)) {
            return None;
        }
        let midnight = f64::from(now.num_seconds_from_midnight());
        (0..=7).find_map(|after_days| {
            let day = now.date().checked_add_days(chrono::Days::new(after_days))?;
            let missed = self.missed(day);
            let first = if after_days == 0 { bin(now) + 1 } else { 0 };
            (first..BINS).find_map(|bin| {
                let probability = self.share(day, bin, missed);
                let after = after_days as f64 * DAY_SECONDS + bin as f64 * BIN_SECONDS - midnight;
                is_worth(probability, price).then_some((after, probability))
            })
        })
    }

    /// Adds what another process has seen. Of a day that both have seen, each bin is used once at most.
    pub fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        let latest = self.latest.max(other.latest);
        for habits in [&mut *self, &mut other] {
            let passed = habits.latest.zip(latest).map_or(0, |(own, latest)| latest.abs_diff(own));
            habits.days_passed(passed);
        }
        for (own, other) in [(&mut self.working, &other.working), (&mut self.weekend, &other.weekend)] {
            own.days += other.days;
            own.used.iter_mut().zip(&other.used).for_each(|(own, other)| *own += other);
            own.seen.iter_mut().zip(&other.seen).for_each(|(own, other)| *own |= other);
        }
        self.latest = latest;
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
            habits.used(at(day, 9, 5), None);
            habits.used(at(day, 9, 6), Some(60.0)); // the same ten minutes
            assert!(!habits.is_worth(at(day, 9, 0), 1200.0));
        }
        habits.used(at(4, 9, 5), None);
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
            habits.used(at(day, 9, 0), None);
        }
        habits.used(at(3, 9, 0), None);
        assert!(habits.probability(at(8, 9, 0)) > 0.99);
        for day in [8, 9, 10, 11, 12, 15, 16, 17, 18, 19] {
            habits.used(at(day, 14, 0), None);
        }
        assert!(habits.probability(at(22, 9, 0)) < 0.3 && !habits.is_worth(at(22, 9, 0), 1200.0));
        assert!(habits.is_worth(at(22, 14, 0), 1200.0));
    }

    #[test]
    fn a_busy_hour_is_expected_at_its_beginning_and_days_without_any_use_end_a_habit() {
        let mut habits = DailyHabits::default();
        for day in 1..=5 {
            habits.used(at(day, 9, 0), Some(60_000.0));
            for minute in [10, 20, 30, 40, 50] {
                habits.used(at(day, 9, minute), Some(500.0));
            }
        }
        assert!(habits.is_worth(at(8, 9, 0), 1200.0) && !habits.is_worth(at(8, 9, 20), 1200.0));
        assert!(habits.is_worth(at(9, 9, 0), 1200.0) && !habits.is_worth(at(22, 9, 0), 1200.0));
        let (day, after) = (at(8, 9, 1), |now| habits.next(now, 1200.0).map(|(after, _)| after));
        assert_eq!(after(day), Some(86_400.0 - 60.0));
        assert_eq!(after(at(20, 9, 1)), None);
    }

    #[test]
    fn days_that_a_wrong_clock_has_shown_are_forgotten() {
        let mut habits = DailyHabits::default();
        habits.used(at(1, 9, 0) + chrono::Days::new(3650), None);
        for day in [1, 2, 3, 4, 5, 8, 9, 10] {
            habits.used(at(day, 9, 0), None);
            if day % 2 == 0 {
                habits.used(at(day, 15, 0), None);
            }
        }
        let (always, sometimes) = (habits.probability(at(11, 9, 0)), habits.probability(at(11, 15, 0)));
        assert!(always > 0.8 && (0.3..0.7).contains(&sometimes), "{always} {sometimes}");
    }

    #[test]
    fn processes_of_one_day_are_no_habit() {
        let mut all = DailyHabits::default();
        for day in [1, 2, 3, 4] {
            // Workers of one server, or one that restarts.
            for _ in 0..5 {
                let mut worker = DailyHabits::default();
                worker.used(at(day, 9, 0), None);
                all.merge(&worker);
            }
            assert_eq!(all.is_worth(at(5, 9, 0), 1200.0), day == 4, "after {day} days");
        }
        // Those of a month ago are forgotten.
        all.used(at(30, 14, 0), None);
        all.used(at(30, 14, 0) + chrono::Days::new(6), None);
        assert_eq!(all.probability(at(30, 9, 0) + chrono::Days::new(7)), 0.0);
    }

    #[test]
    fn processes_add_up() {
        let (mut one, mut other) = (DailyHabits::default(), DailyHabits::default());
        for day in 1..=4 {
            one.used(at(day, 9, 0), None);
            other.used(at(day, 10, 0), None);
        }
        one.merge(&other);
        assert!((one.probability(at(5, 9, 0)) - 0.5).abs() < 0.05);
        assert!(one.is_valid());
    }
}
