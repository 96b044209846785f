//! How long a model was idle between its uses, and what follows from that: how long it stays.
//!
//! It is the rule of the ski rental: a load costs `C` seconds of memory, and the window of idle time in which the model is
//! in memory is the one that would have cost least in the past.

use serde::{Deserialize, Serialize};

/// Idle periods that are shorter are none.
pub(super) const SHORTEST_GAP: f64 = 15.0;
/// Gaps of so many seconds lose half their weight per week of idle time.
const HALF_LIFE: f64 = 7.0 * 86_400.0;
const BINS: usize = 64;
/// Bins of each doubling of the length.
const PER_DOUBLING: f64 = 4.0;
/// With less weight than this, nothing is learned yet.
const ENOUGH: f64 = 8.0;
/// What it costs to leave and to come back, in addition to memory, for each gap: seconds of memory for each second of the
/// load, which takes the processor from others, and the least.
const COMING_BACK_PER_SECOND: f64 = 5.0;
const COMING_BACK: f64 = 10.0;
/// Leaving and coming back must cost at most this part of staying.
const CLEARLY_BETTER: f64 = 0.7;

/// Idle periods by length: bin `b` has those of 15·2^(b/4) seconds and more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GapHistogram(Vec<f32>);

/// When the model is in memory after a use: from `from` to `to` seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// 0: from the use on. Otherwise it leaves at once, and is loaded again by then.
    pub from: f64,
    /// When it leaves.
    pub to: f64,
    /// What the window would have cost, in seconds of memory.
    pub cost: f64,
}

impl Default for GapHistogram {
    fn default() -> Self {
        Self(vec![0.0; BINS])
    }
}

/// The lower edge of a bin, in seconds.
fn edge(bin: usize) -> f64 {
    SHORTEST_GAP * (bin as f64 / PER_DOUBLING).exp2()
}

impl GapHistogram {
    /// Adds an idle period.
    pub fn add(&mut self, seconds: f64) {
        if !(seconds >= SHORTEST_GAP && seconds.is_finite()) {
            return;
        }
        self.fade(seconds);
        let bin = (PER_DOUBLING * (seconds / SHORTEST_GAP).log2()).floor() as usize;
        self.0[bin.min(BINS - 1)] += 1.0;
    }

    /// So many seconds have passed: what was seen before them weighs less.
    pub fn fade(&mut self, seconds: f64) {
        let kept = (-seconds.max(0.0) / HALF_LIFE).exp2() as f32;
        self.0.iter_mut().for_each(|bin| *bin *= kept);
    }

    /// Adds the gaps that another process has seen.
    pub fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(bin, other)| *bin += other);
    }

    /// Whether it is one that this code writes.
    pub fn is_valid(&self) -> bool {
        self.0.len() == BINS && self.0.iter().all(|bin| bin.is_finite() && *bin >= 0.0)
    }

    /// The weight of all gaps: recent ones count 1.
    pub fn weight(&self) -> f64 {
        self.0.iter().map(|bin| f64::from(*bin)).sum()
    }

    /// The cheapest window, where a load costs `price` seconds and `usual` seconds are the stay of models of which nothing
    /// is known. A load takes `load` seconds. `None` while too little is known.
    pub fn window(&self, price: f64, usual: f64, longest: f64, load: f64) -> Option<Window> {
        if self.weight() < ENOUGH {
            return None;
        }
        // Two gaps of the usual length, so that the first weeks are not decided by a few gaps.
        let mut gaps = [(0.0, 0.0); BINS];
        for (bin, (weight, seconds)) in gaps.iter_mut().enumerate() {
            *weight = f64::from(self.0[bin]);
            *seconds = *weight * edge(bin) * (0.5 / PER_DOUBLING).exp2();
        }
        if usual >= SHORTEST_GAP {
            let bin = (PER_DOUBLING * (usual / SHORTEST_GAP).log2()).floor() as usize;
            let (weight, seconds) = &mut gaps[bin.min(BINS - 1)];
            (*weight, *seconds) = (*weight + 2.0, *seconds + 2.0 * usual);
        }
        let edges: [f64; BINS + 1] = std::array::from_fn(edge);
        // Sums of all gaps below each edge: their weights, and their lengths.
        let mut below = [(0.0, 0.0); BINS + 1];
        for (bin, (weight, seconds)) in gaps.iter().enumerate() {
            below[bin + 1] = (below[bin].0 + weight, below[bin].1 + seconds);
        }
        let (all, _) = below[BINS];
        let each_time = COMING_BACK.max(COMING_BACK_PER_SECOND * load);
        let cost = |from_bin: usize, from: f64, to_bin: usize| {
            let to = edges[to_bin];
            let before = below[from_bin].0;
            let within = (below[to_bin].0 - before).max(0.0);
            let seconds = (below[to_bin].1 - below[from_bin].1 - within * from).max(0.0);
            let after = (all - below[to_bin].0).max(0.0);
            let coming_back = if from > 0.0 { each_time * all } else { 0.0 };
            before * price + seconds + (after + 1.0) * (to - from + price) + coming_back
        };
        let ends = |from: f64| {
            (0..=BINS).filter(move |to| (2.0 * SHORTEST_GAP..=longest).contains(&(edges[*to] - from)))
        };
        let cheapest = |windows: &mut dyn Iterator<Item = Window>| {
            windows.min_by(|one, other| one.cost.total_cmp(&other.cost))
        };
        let stay =
            cheapest(&mut ends(0.0).map(|to| Window { from: 0.0, to: edges[to], cost: cost(0, 0.0, to) }))?;
        let come_back = cheapest(&mut (1..BINS).flat_map(|from_bin| {
            let (from, cost, edges) = (edges[from_bin], &cost, &edges);
            ends(from).map(move |to| Window { from, to: edges[to], cost: cost(from_bin, from, to) })
        }));
        Some(come_back.filter(|window| window.cost <= CLEARLY_BETTER * stay.cost).unwrap_or(stay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(gaps: impl IntoIterator<Item = f64>) -> GapHistogram {
        let mut histogram = GapHistogram::default();
        gaps.into_iter().for_each(|gap| histogram.add(gap));
        histogram
    }

    fn window(gaps: impl IntoIterator<Item = f64>) -> Option<Window> {
        seen(gaps).window(1200.0, 600.0, 14_400.0, 2.0)
    }

    #[test]
    fn little_is_no_knowledge_and_short_gaps_are_none() {
        assert_eq!(window([100.0; 7]), None);
        assert_eq!(window([14.0; 100]), None);
        assert_eq!(window([f64::NAN, f64::INFINITY, -1.0]), None);
        assert!(window([100.0; 9]).is_some());
    }

    #[test]
    fn it_stays_as_long_as_irregular_gaps_usually_last() {
        let Window { from, to, .. } = window((0..40).map(|n| 20.0 + f64::from(n * 7 % 40) * 5.0)).unwrap();
        assert!(from == 0.0 && (200.0..=700.0).contains(&to), "{to}");
    }

    #[test]
    fn an_hourly_job_is_loaded_just_before_its_hour() {
        let Window { from, to, .. } = window([3600.0; 40]).unwrap();
        assert!(from > 3000.0 && from < 3600.0 && to > 3600.0 && to - from <= 620.0, "{from} {to}");
    }

    #[test]
    fn a_model_that_loads_slowly_does_not_leave_for_minutes() {
        let from = |load| seen([100.0; 40]).window(1200.0, 600.0, 14_400.0, load).unwrap().from;
        assert!(from(0.1) > 60.0 && from(2.0) > 60.0);
        assert_eq!(from(20.0), 0.0);
    }

    #[test]
    fn rare_and_irregular_use_leaves_soon() {
        let Window { from, to, .. } = window((0..40).map(|n| 7200.0 * 1.3_f64.powi(n % 10))).unwrap();
        assert!(from == 0.0 && to <= 60.0, "{from} {to}");
    }

    #[test]
    fn old_gaps_are_forgotten_and_processes_add_up() {
        let mut histogram = seen([100.0; 20]);
        histogram.add(7.0 * 86_400.0);
        assert!((histogram.weight() - 11.0).abs() < 0.1, "{}", histogram.weight());
        let mut sum = seen([100.0; 5]);
        sum.merge(&seen([3600.0; 4]));
        assert!((sum.weight() - 9.0).abs() < 0.1);
    }
}
