//! What one call spends its time on, for callers that trace it. A call without a trace pays for none of this.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::Mutex;

/// A part of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceStage {
    /// The look-up in the cache and its tiers.
    Cache,
    /// The wait for a model that is not in memory.
    Load,
    /// From text to token ids.
    Tokenize,
    /// The wait for the batch before.
    Queue,
    /// The computation of a batch, with the other texts in it.
    Forward,
    /// A request to a server that has the model.
    Remote,
    /// The reading of a prompt.
    Prefill,
    /// The writing of an answer.
    Decode,
}

impl TraceStage {
    /// All of them, in the order in which a call goes through them.
    pub const ALL: [Self; 8] = [
        Self::Cache,
        Self::Load,
        Self::Tokenize,
        Self::Queue,
        Self::Forward,
        Self::Remote,
        Self::Prefill,
        Self::Decode,
    ];

    /// The name in traces.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Load => "load",
            Self::Tokenize => "tokenize",
            Self::Queue => "queue",
            Self::Forward => "forward",
            Self::Remote => "remote",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// The time of a stage. A call of many texts has several steps of each stage, and those of different stages overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTime {
    /// The beginning of the first step.
    pub start: Instant,
    /// The end of the last one.
    pub end: Instant,
    /// All steps together.
    pub busy: Duration,
    /// Steps.
    pub steps: u64,
}

/// What a call has recorded.
#[derive(Debug, Clone, Default)]
pub struct TraceRecord {
    spans: [Option<StageTime>; TraceStage::ALL.len()],
    /// The batch that was counted last, by its beginning.
    batch: Option<Instant>,
    /// Inputs that were found in memory.
    pub cached: usize,
    /// Inputs that were found in a lower tier.
    pub stored: usize,
    /// The model that computed, or whose results were found.
    pub model: Option<String>,
}

impl TraceRecord {
    /// The stages that the call went through.
    pub fn spans(&self) -> impl Iterator<Item = (TraceStage, StageTime)> + '_ {
        TraceStage::ALL.into_iter().filter_map(|stage| Some((stage, self.spans[stage as usize]?)))
    }

    fn add(&mut self, stage: TraceStage, start: Instant, end: Instant) {
        let busy = end.saturating_duration_since(start);
        let span = self.spans[stage as usize].get_or_insert(StageTime {
            start,
            end,
            busy: Duration::ZERO,
            steps: 0,
        });
        span.start = span.start.min(start);
        span.end = span.end.max(end);
        span.busy += busy;
        span.steps += 1;
    }
}

/// The record of one call while it runs.
#[derive(Debug, Default)]
pub struct Trace {
    /// Headers that carry the trace on to a server, by name.
    headers: Vec<(String, String)>,
    record: Mutex<TraceRecord>,
}

impl Trace {
    /// A record without entries. `headers` carry the trace on to servers.
    #[must_use]
    pub fn new(headers: Vec<(String, String)>) -> Self {
        Self { headers, record: Mutex::default() }
    }

    /// Headers that carry the trace on to a server.
    #[must_use]
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Records one step of a stage.
    pub fn add(&self, stage: TraceStage, start: Instant, end: Instant) {
        self.record.lock().add(stage, start, end);
    }

    /// Records that inputs which were queued at `queued` were in a batch, or in a request to a server.
    pub fn computed(&self, stage: TraceStage, queued: Instant, began: Instant, ended: Instant) {
        let mut record = self.record.lock();
        // A batch has several inputs of the call.
        if record.batch.replace(began) == Some(began) {
            return;
        }
        let began = began.max(queued);
        record.add(TraceStage::Queue, queued, began);
        record.add(stage, began, ended);
    }

    /// Records what the caches had.
    pub fn found(&self, cached: usize, stored: usize, model: &str) {
        let mut record = self.record.lock();
        record.cached += cached;
        record.stored += stored;
        record.model.get_or_insert_with(|| model.to_owned());
    }

    /// What has been recorded until now.
    #[must_use]
    pub fn record(&self) -> TraceRecord {
        self.record.lock().clone()
    }
}

/// Records the time until it is dropped as one step of a stage.
#[must_use = "the step ends when this is dropped"]
pub struct TraceStep<'a>(Option<(&'a Trace, TraceStage, Instant)>);

/// Begins a step of a call, if the call is traced.
pub fn step(trace: Option<&Arc<Trace>>, stage: TraceStage) -> TraceStep<'_> {
    TraceStep(trace.map(|trace| (&**trace, stage, Instant::now())))
}

impl Drop for TraceStep<'_> {
    fn drop(&mut self) {
        if let Some((trace, stage, start)) = self.0 {
            trace.add(stage, start, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_a_stage_are_added_up() {
        let (trace, zero) = (Trace::default(), Instant::now());
        let at = |seconds| zero + Duration::from_secs(seconds);
        trace.add(TraceStage::Tokenize, at(1), at(2));
        trace.add(TraceStage::Tokenize, at(5), at(7));
        let spans: Vec<_> = trace.record().spans().collect();
        let whole = StageTime { start: at(1), end: at(7), busy: Duration::from_secs(3), steps: 2 };
        assert_eq!(spans, [(TraceStage::Tokenize, whole)]);
    }

    #[test]
    fn a_batch_counts_once_however_many_inputs_of_the_call_it_has() {
        let (trace, zero) = (Trace::default(), Instant::now());
        let at = |seconds| zero + Duration::from_secs(seconds);
        for _ in 0..3 {
            trace.computed(TraceStage::Forward, at(0), at(1), at(3));
        }
        // Joined while it was computed: it has not waited.
        trace.computed(TraceStage::Forward, at(5), at(4), at(6));
        let spans: Vec<_> =
            trace.record().spans().map(|(stage, span)| (stage, span.busy, span.steps)).collect();
        let seconds = Duration::from_secs;
        assert_eq!(spans, [(TraceStage::Queue, seconds(1), 2), (TraceStage::Forward, seconds(3), 2)]);
    }

    #[test]
    fn a_call_without_a_trace_records_nothing() {
        drop(step(None, TraceStage::Load));
        let trace = Arc::new(Trace::default());
        drop(step(Some(&trace), TraceStage::Load));
        assert_eq!(trace.record().spans().map(|(stage, _)| stage.name()).collect::<Vec<_>>(), ["load"]);
    }
}
