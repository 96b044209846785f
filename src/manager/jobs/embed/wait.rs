//! Waiting for a job.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Job;
use super::state::Embeddings;
use crate::{Error, Result};

/// How often a waiting caller runs its check.
const CHECK_EVERY: Duration = Duration::from_millis(50);

impl Job {
    /// Drives the job on this thread until it is done. `check` is called about every 50 ms, at once while a model loads;
    /// its error ends the wait and cancels the job. `progress` gets the numbers of finished and of all inputs.
    pub(in super::super::super) fn wait(
        self: &Arc<Self>,
        check: &mut dyn FnMut() -> Result<()>,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Embeddings> {
        let result = self.drive(check, progress);
        if let Err(error) = &result {
            self.end(error.clone());
        }
        self.release();
        result.and_then(|()| self.take_result())
    }

    fn drive(
        self: &Arc<Self>,
        check: &mut dyn FnMut() -> Result<()>,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mut reported = 0;
        let loading = self.state.lock().groups.iter().any(|group| group.model.is_awaited());
        let mut next_check = Instant::now() + if loading { Duration::ZERO } else { CHECK_EVERY };
        loop {
            let (finished, outcome, runnable) = {
                let state = self.state.lock();
                (state.finished, state.outcome.clone(), state.runnable)
            };
            if finished != reported {
                reported = finished;
                progress(finished, self.inputs.len())?;
            }
            if let Some(outcome) = outcome {
                return outcome;
            }
            if Instant::now() >= next_check {
                check()?;
                next_check = Instant::now() + CHECK_EVERY;
            }
            if let Some(error) = self.overdue() {
                return Err(error);
            }
            let mut between = || {
                if Instant::now() >= next_check {
                    check()?;
                    next_check = Instant::now() + CHECK_EVERY;
                }
                self.overdue().map_or(Ok(()), Err)
            };
            if runnable && self.pump(&mut between)? {
                continue;
            }
            let state = self.state.lock();
            if state.outcome.is_none() && !state.runnable && state.finished == reported {
                // A limit that has passed without ending the call was one for loading only.
                let limit = self.limit.map(|limit| limit.at).filter(|at| *at > Instant::now());
                let until = limit.map_or(next_check, |at| at.min(next_check));
                drop(self.changed.wait_until(state, until));
            }
        }
    }

    /// The error of a call whose time is over.
    pub(super) fn overdue(&self) -> Option<Error> {
        let limit = self.limit.filter(|limit| Instant::now() >= limit.at)?;
        let state = self.state.lock();
        let loading = state.groups.iter().find(|group| group.model.is_awaited());
        match loading {
            Some(group) => {
                Some(Error::Timeout { what: format!("model {:?}", group.entry.name), after: limit.after })
            }
            None if limit.load_only => None,
            None => Some(Error::Timeout {
                what: format!("the result of {} inputs", self.inputs.len()),
                after: limit.after,
            }),
        }
    }
}
