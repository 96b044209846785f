//! One model's stay, by what was learned of its use: after a use it stays for the window that would have cost least, and
//! it is loaded ahead of uses that are likely.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::daily::{BIN_SECONDS, DailyHabits};
use super::fixed::{FixedTimer, Spent};
use super::gaps::{GapHistogram, SHORTEST_GAP, Window};
use super::pressure::MemoryPressure;
use super::saved::SlotHabits;
use crate::clock::Clock;
use crate::sync::Mutex;

/// Idle periods from this length on lead to a new decision.
const DECIDING_GAP: f64 = 60.0;
/// A model that leaves and comes back stays so long after a use.
const SHORT_STAY: Duration = Duration::from_secs(15);
const SHORTEST_STAY: f64 = 30.0;
/// Load times that are remembered: the longest of them but one in twenty is expected.
const RECENT_LOADS: usize = 32;
/// A model that was loaded because it was expected stays at least so long.
pub(super) const EXPECTED_STAY: Duration = Duration::from_secs(60);

/// What decides besides the habits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaptiveSettings {
    /// How long it stays while little is known: the fixed timer.
    pub usual: Duration,
    /// How many seconds in memory a load is worth.
    pub price: Duration,
    /// It never stays longer.
    pub longest: Duration,
}

/// Why a model is loaded ahead of its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadReason {
    /// The host said that it will be needed.
    Hint,
    /// It is usually used after another one, which is used now.
    Successor,
    /// It is usually idle for so long.
    Interval,
    /// It is usually used at this time of day.
    Daily,
}

impl LoadReason {
    /// hint, successor, interval or daily
    pub fn name(self) -> &'static str {
        match self {
            Self::Hint => "hint",
            Self::Successor => "successor",
            Self::Interval => "interval",
            Self::Daily => "daily",
        }
    }
}

/// A load ahead of a use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadAhead {
    /// When the load begins.
    pub at: Instant,
    /// It stays until then, if it is not used.
    pub until: Instant,
    /// Why.
    pub why: LoadReason,
    /// How likely the use is.
    pub probability: f64,
}

/// The habits of one slot, and what they lead to.
pub struct AdaptivePolicy {
    clock: Clock,
    settings: AdaptiveSettings,
    pressure: Arc<MemoryPressure>,
    state: Mutex<AdaptiveState>,
}

struct AdaptiveState {
    /// Of this process, which are saved.
    own: SlotHabits,
    /// Of all processes.
    gaps: GapHistogram,
    daily: DailyHabits,
    /// `None` while too little is known.
    window: Option<Window>,
    idle_since: Option<Instant>,
    busy_since: Option<Instant>,
    resident_since: Option<Instant>,
    /// Expected by a hint or after another model, until then.
    expected: Option<(Instant, LoadReason)>,
    /// In this idle period it was loaded ahead.
    loaded_ahead: bool,
    /// It is in memory because of that, and was not used yet.
    waiting: bool,
    /// Seconds that the latest loads took.
    loads: VecDeque<f64>,
    spent: Spent,
    fixed: FixedTimer,
    ahead: u64,
    ahead_used: u64,
}

/// What a policy knows and does.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// Weight of the idle periods that are known.
    pub gaps: f64,
    /// The window that was decided; `None`: too little is known.
    pub window: Option<Window>,
    /// How long it stays after a use now.
    pub stay: Duration,
    /// How many seconds in memory a load is worth.
    pub price: Duration,
    /// The next load ahead.
    pub next: Option<LoadAhead>,
    /// What was spent.
    pub spent: Spent,
    /// What a fixed timer would have spent.
    pub fixed: Spent,
    /// Loads ahead of a use, and those that were used.
    pub ahead: (u64, u64),
    /// Whether memory is short, so that stays are.
    pub pressed: bool,
}

impl AdaptivePolicy {
    /// A policy that starts with what all processes have learned.
    pub fn new(
        clock: Clock,
        settings: AdaptiveSettings,
        pressure: Arc<MemoryPressure>,
        learned: SlotHabits,
    ) -> Self {
        let window = decide(&learned.gaps, settings);
        let state = AdaptiveState {
            own: SlotHabits::default(),
            gaps: learned.gaps,
            daily: learned.daily,
            window,
            idle_since: None,
            busy_since: None,
            resident_since: None,
            expected: None,
            loaded_ahead: false,
            waiting: false,
            loads: VecDeque::new(),
            spent: Spent::default(),
            fixed: FixedTimer::new(settings.usual),
            ahead: 0,
            ahead_used: 0,
        };
        Self { clock, settings, pressure, state: Mutex::new(state) }
    }

    /// A use begins; `resident`: it does not wait for a load. Returns whether it ends an idle period.
    pub fn begins(&self, now: Instant, resident: bool) -> bool {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.busy_since.is_some() {
            return false;
        }
        state.busy_since = Some(now);
        let idle = state.idle_since.take().map(|since| now.saturating_duration_since(since).as_secs_f64());
        state.spent.cold_starts += u64::from(!resident);
        state.fixed.used(idle);
        if std::mem::take(&mut state.waiting) && resident {
            state.ahead_used += 1;
        }
        (state.loaded_ahead, state.expected) = (false, None);
        if idle.is_some_and(|idle| idle < SHORTEST_GAP) {
            return false;
        }
        let local = self.clock.local();
        for daily in [&mut state.daily, &mut state.own.daily] {
            daily.used(local);
        }
        if let Some(idle) = idle {
            state.gaps.add(idle);
            state.own.gaps.add(idle);
            if idle >= DECIDING_GAP {
                state.window = decide(&state.gaps, self.settings);
            }
        }
        true
    }

    /// The last use has ended.
    pub fn ends(&self, now: Instant) {
        let mut state = self.state.lock();
        if let Some(since) = state.busy_since.take() {
            state.fixed.busy(now.saturating_duration_since(since).as_secs_f64());
            state.idle_since = Some(now);
        }
    }

    /// The model is in memory from now on.
    pub fn arrived(&self, now: Instant) {
        self.state.lock().resident_since.get_or_insert(now);
    }

    /// A load took so long.
    pub fn loaded(&self, seconds: f64) {
        let mut state = self.state.lock();
        if state.loads.len() == RECENT_LOADS {
            state.loads.pop_front();
        }
        state.loads.push_back(seconds);
    }

    /// It is not any more.
    pub fn left(&self, now: Instant) {
        let mut state = self.state.lock();
        if let Some(since) = state.resident_since.take() {
            state.spent.resident_seconds += now.saturating_duration_since(since).as_secs_f64();
        }
        state.waiting = false;
    }

    /// How long it stays after a use.
    pub fn stay(&self) -> Duration {
        self.stay_of(&self.state.lock())
    }

    fn stay_of(&self, state: &AdaptiveState) -> Duration {
        let stay = match state.window {
            None => self.settings.usual,
            Some(window) if window.from > 0.0 => SHORT_STAY,
            Some(window) => Duration::from_secs_f64(window.to.max(SHORTEST_STAY)).min(self.settings.longest),
        };
        self.pressure.shorten(stay)
    }

    /// It will be needed soon.
    pub fn expect(&self, why: LoadReason, now: Instant) {
        let until = now + EXPECTED_STAY;
        let mut state = self.state.lock();
        if state.busy_since.is_none() {
            state.expected = Some((until, why));
        }
    }

    /// The next load ahead of a use.
    pub fn next(&self, now: Instant) -> Option<LoadAhead> {
        let state = self.state.lock();
        self.next_of(&state, now)
    }

    fn next_of(&self, state: &AdaptiveState, now: Instant) -> Option<LoadAhead> {
        let load = state.load_time();
        if state.busy_since.is_some() || self.pressure.is_pressed() {
            return None;
        }
        let span = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let expected = state.expected.filter(|(until, _)| *until > now).map(|(until, why)| LoadAhead {
            at: now,
            until: until + load,
            why,
            probability: 1.0,
        });
        let interval =
            state.window.filter(|window| window.from > 0.0 && !state.loaded_ahead).and_then(|window| {
                let since = state.idle_since?;
                let until = since.checked_add(span(window.to))?;
                let at = (since.checked_add(span(window.from))? - load.min(span(window.from))).max(now);
                let probability =
                    1.0 - (window.cost / (state.gaps.weight() * self.settings.price.as_secs_f64())).min(1.0);
                (until > now).then_some(LoadAhead { at, until, why: LoadReason::Interval, probability })
            });
        let (local, price) = (self.clock.local(), self.settings.price.as_secs_f64());
        let soon = local + chrono::TimeDelta::from_std(load).unwrap_or_default();
        let daily = if !state.loaded_ahead && !state.daily.is_used(soon) && state.daily.is_worth(soon, price)
        {
            let left = state.daily.left(soon);
            let until = now + load + span(left);
            Some(LoadAhead {
                at: now,
                until,
                why: LoadReason::Daily,
                probability: state.daily.probability(soon),
            })
        } else {
            state.daily.next(soon, price).and_then(|(after, probability)| {
                let at = now.checked_add(span(after))?;
                let until = at + load + span(BIN_SECONDS);
                Some(LoadAhead { at, until, why: LoadReason::Daily, probability })
            })
        };
        [expected, interval, daily].into_iter().flatten().min_by_key(|next| next.at)
    }

    /// It is loaded ahead of its use.
    pub fn loads_ahead(&self) {
        let mut state = self.state.lock();
        (state.loaded_ahead, state.expected) = (true, None);
        state.ahead += 1;
    }

    /// It has been.
    pub fn loaded_ahead(&self, now: Instant) {
        let mut state = self.state.lock();
        state.resident_since.get_or_insert(now);
        state.waiting = state.busy_since.is_none();
    }

    /// What it knows and does.
    pub fn explain(&self) -> Explanation {
        let now = self.clock.now();
        let state = self.state.lock();
        let mut spent = state.spent;
        if let Some(since) = state.resident_since {
            spent.resident_seconds += now.saturating_duration_since(since).as_secs_f64();
        }
        let mut fixed = state.fixed;
        if let Some(since) = state.busy_since {
            fixed.busy(now.saturating_duration_since(since).as_secs_f64());
        } else if let Some(since) = state.idle_since {
            fixed.busy(now.saturating_duration_since(since).min(fixed.stay).as_secs_f64());
        }
        Explanation {
            gaps: state.gaps.weight(),
            window: state.window,
            stay: self.stay_of(&state),
            price: self.settings.price,
            next: self.next_of(&state, now),
            spent,
            fixed: fixed.spent,
            ahead: (state.ahead, state.ahead_used),
            pressed: self.pressure.is_pressed(),
        }
    }

    /// What this process has learned.
    pub fn habits(&self) -> SlotHabits {
        self.state.lock().own.clone()
    }
}

impl AdaptiveState {
    /// The 95th percentile of the latest load times.
    fn load_time(&self) -> Duration {
        let mut sorted: Vec<f64> = self.loads.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let place = (sorted.len() * 95).div_ceil(100).saturating_sub(1);
        sorted.get(place).and_then(|seconds| Duration::try_from_secs_f64(*seconds).ok()).unwrap_or_default()
    }
}

fn decide(gaps: &GapHistogram, settings: AdaptiveSettings) -> Option<Window> {
    gaps.window(settings.price.as_secs_f64(), settings.usual.as_secs_f64(), settings.longest.as_secs_f64())
}

impl Explanation {
    /// The same in one sentence.
    pub fn sentence(&self) -> String {
        let (gaps, price, stay) = (self.gaps, self.price.as_secs(), self.stay.as_secs());
        let pressed = if self.pressed { " Memory is short, so stays are shorter." } else { "" };
        match self.window {
            None => format!(
                "It stays {stay} s after a use, as configured: {gaps:.1} idle periods are known, and 8 are needed.{pressed}"
            ),
            Some(window) if window.from > 0.0 => format!(
                "It leaves {stay} s after a use and comes back {:.0} s after it, until {:.0} s: with {gaps:.1} known idle \
                 periods and a load that counts {price} s in memory, this costs least.{pressed}",
                window.from, window.to
            ),
            Some(_) => format!(
                "It stays {stay} s after a use: with {gaps:.1} known idle periods and a load that counts {price} s in \
                 memory, this costs least.{pressed}"
            ),
        }
    }
}
