//! One model's stay, by what was learned of its use: after a use it stays for the window that would have cost least, and
//! it is loaded ahead of uses that are likely.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::NaiveDateTime;

use super::daily::{BIN_SECONDS, beginning};
use super::fixed::{FixedTimer, Lead, Spent};
use super::gaps::{SHORTEST_GAP, Window};
use super::pressure::MemoryPressure;
use super::saved::SlotHabits;
use crate::clock::Clock;
use crate::sync::Mutex;

/// Idle periods from this length on lead to a new decision.
const DECIDING_GAP: f64 = 60.0;
/// A model that leaves and comes back stays so long after a use.
const SHORT_STAY: Duration = Duration::from_secs(15);
/// Seconds that a model stays after a use at least, unless it leaves and comes back.
pub const SHORTEST_STAY: f64 = 30.0;
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
    pressure: Arc<MemoryPressure>,
    state: Mutex<AdaptiveState>,
}

struct AdaptiveState {
    settings: AdaptiveSettings,
    /// Of this process, which are saved.
    own: SlotHabits,
    /// Of all processes.
    all: SlotHabits,
    /// `None` while too little is known.
    window: Option<Window>,
    idle_since: Option<Instant>,
    busy_since: Option<Instant>,
    resident_since: Option<Instant>,
    /// Expected by a hint or after another model, until then.
    expected: Option<(Instant, LoadReason)>,
    /// In this idle period it was loaded ahead of the window.
    window_tried: bool,
    /// The beginning of the ten minutes that it was loaded ahead of last.
    daily_tried: Option<NaiveDateTime>,
    /// It is in memory because of that, and was not used yet.
    waiting: bool,
    spent: Spent,
    fixed: FixedTimer,
    lead: Lead,
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
    /// What was learned has cost more than the fixed timer, which applies until that is made up for.
    pub behind: bool,
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
        let settings = AdaptiveSettings { usual: settings.usual.min(settings.longest), ..settings };
        let window = decide(&learned, settings);
        let state = AdaptiveState {
            settings,
            own: SlotHabits::default(),
            all: learned,
            window,
            idle_since: None,
            busy_since: None,
            resident_since: None,
            expected: None,
            window_tried: false,
            daily_tried: None,
            waiting: false,
            spent: Spent::default(),
            fixed: FixedTimer::new(settings.usual),
            lead: Lead::default(),
            ahead: 0,
            ahead_used: 0,
        };
        Self { clock, pressure, state: Mutex::new(state) }
    }

    /// Replaces how long it stays while little is known, and how many seconds in memory a load is worth.
    pub fn set(&self, usual: Duration, price: Duration) {
        let mut state = self.state.lock();
        state.settings =
            AdaptiveSettings { usual: usual.min(state.settings.longest), price, ..state.settings };
        state.fixed.stay = state.settings.usual;
        state.window = decide(&state.all, state.settings);
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
        if let Some(idle) = idle {
            let in_memory = state.resident_seconds(now);
            // A model that left earlier than it should have was evicted or unloaded: that is no fault of what was learned.
            let left = !resident && Duration::from_secs_f64(idle) > self.stay_of(state);
            let [price, stay] = [state.settings.price, state.settings.usual].map(|span| span.as_secs_f64());
            state.lead.idle(idle, left, in_memory, price, stay);
        }
        (state.window_tried, state.expected) = (false, None);
        if idle.is_some_and(|idle| idle < SHORTEST_GAP) {
            return false;
        }
        let local = self.clock.local();
        for habits in [&mut state.all, &mut state.own] {
            habits.daily.used(local, idle);
            if let Some(idle) = idle {
                habits.gaps.add(idle);
            }
        }
        if idle.is_some_and(|idle| idle >= DECIDING_GAP) {
            state.window = decide(&state.all, state.settings);
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
        state.all.loaded(seconds);
        state.own.loaded(seconds);
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
        let stay = match state.window() {
            None => state.settings.usual,
            Some(window) if window.from > 0.0 => SHORT_STAY,
            Some(window) => Duration::from_secs_f64(window.to.max(SHORTEST_STAY)),
        };
        self.pressure.shorten(stay.min(state.settings.longest))
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
        let load = state.all.load_time();
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
            state.window().filter(|window| window.from > 0.0 && !state.window_tried).and_then(|window| {
                let since = state.idle_since?;
                let until = since.checked_add(span(window.to))?;
                let at = (since.checked_add(span(window.from))? - load.min(span(window.from))).max(now);
                let probability = 1.0
                    - (window.cost / (state.all.gaps.weight() * state.settings.price.as_secs_f64())).min(1.0);
                (until > now).then_some(LoadAhead { at, until, why: LoadReason::Interval, probability })
            });
        // Times of day are coarser: they count where no interval is expected.
        let daily = if interval.is_none() { self.daily(state, now, load) } else { None };
        [expected, interval, daily].into_iter().flatten().min_by_key(|next| next.at)
    }

    /// The next load ahead of a time of day at which it is usually used; ahead of each at most once.
    fn daily(&self, state: &AdaptiveState, now: Instant, load: Duration) -> Option<LoadAhead> {
        let price = state.settings.price.as_secs_f64();
        let soon = self.soon(load);
        let due = !state.all.daily.is_used(soon)
            && state.daily_tried != Some(beginning(soon))
            && state.all.daily.is_worth(soon, price);
        let (after, stay, probability) = if due {
            (0.0, state.all.daily.left(soon), state.all.daily.probability(soon))
        } else {
            let (after, probability) = state.all.daily.next(soon, price)?;
            (after, BIN_SECONDS, probability)
        };
        let at = now.checked_add(Duration::try_from_secs_f64(after).ok()?)?;
        let until = at + load + Duration::from_secs_f64(stay);
        Some(LoadAhead { at, until, why: LoadReason::Daily, probability })
    }

    /// The local time at which a load that begins now is over.
    fn soon(&self, load: Duration) -> NaiveDateTime {
        self.clock.local() + chrono::TimeDelta::from_std(load).unwrap_or_default()
    }

    /// It is loaded ahead of its use.
    pub fn loads_ahead(&self, why: LoadReason) {
        let mut state = self.state.lock();
        match why {
            LoadReason::Hint | LoadReason::Successor => state.expected = None,
            LoadReason::Interval => state.window_tried = true,
            LoadReason::Daily => state.daily_tried = Some(beginning(self.soon(state.all.load_time()))),
        }
    }

    /// It has been.
    pub fn loaded_ahead(&self, now: Instant) {
        let mut state = self.state.lock();
        state.ahead += 1;
        state.resident_since.get_or_insert(now);
        state.waiting = state.busy_since.is_none();
    }

    /// What it knows and does.
    pub fn explain(&self) -> Explanation {
        let now = self.clock.now();
        let state = self.state.lock();
        let spent = Spent { resident_seconds: state.resident_seconds(now), ..state.spent };
        let mut fixed = state.fixed;
        if let Some(since) = state.busy_since {
            fixed.busy(now.saturating_duration_since(since).as_secs_f64());
        } else if let Some(since) = state.idle_since {
            fixed.busy(now.saturating_duration_since(since).min(fixed.stay).as_secs_f64());
        }
        Explanation {
            gaps: state.all.gaps.weight(),
            window: state.window(),
            behind: state.window.is_some() && state.lead.behind,
            stay: self.stay_of(&state),
            price: state.settings.price,
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
    /// The window that applies.
    fn window(&self) -> Option<Window> {
        self.window.filter(|_| !self.lead.behind)
    }

    fn resident_seconds(&self, now: Instant) -> f64 {
        let since = self.resident_since.map(|since| now.saturating_duration_since(since).as_secs_f64());
        self.spent.resident_seconds + since.unwrap_or_default()
    }
}

fn decide(habits: &SlotHabits, settings: AdaptiveSettings) -> Option<Window> {
    let [price, usual, longest] =
        [settings.price, settings.usual, settings.longest].map(|span| span.as_secs_f64());
    habits.gaps.window(price, usual, longest, habits.load_time().as_secs_f64())
}

impl Explanation {
    /// The same in one sentence.
    pub fn sentence(&self) -> String {
        let (gaps, price, stay) = (self.gaps, self.price.as_secs(), self.stay.as_secs());
        let pressed = if self.pressed { " Memory is short, so stays are shorter." } else { "" };
        match self.window {
            None if self.behind => format!(
                "It stays {stay} s after a use, as configured: what was learned has cost more than that, until it is made \
                 up for.{pressed}"
            ),
            None => format!(
                "It stays {stay} s after a use, as configured: {:.0} idle periods are known, and 8 are needed.{pressed}",
                // Older ones count less: not quite eight are too few.
                gaps.floor()
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
