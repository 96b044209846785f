//! The inputs of a job that memory does not have, as lower tiers have them.

use std::sync::Arc;
use std::time::Instant;

use super::super::super::dispatcher::{Task, Timed};
use super::super::super::info::ModelInfo;
use super::Job;
use super::state::SlotGroup;
use crate::Result;
use crate::cache::CachedItem;
use crate::cache::tiers::{Asked, TierKey, Tiers, stores};
use crate::output::{Shape, View};
use crate::trace::TraceStage;

/// The time for a look-up is over.
impl Timed for Asked {
    fn expire(self: Arc<Self>) {
        Self::expire(&self);
    }
}

/// Whether a result that another process has stored is what this model gives.
fn has_shape(item: &CachedItem, shape: Shape) -> bool {
    match (item.item().view(), shape) {
        (View::Dense(values), Shape::Dense { width }) => values.len() == width,
        (View::Scores(values), Shape::Scores { labels }) => values.len() == labels,
        _ => false,
    }
}

impl Job {
    /// Asks the lower tiers for the inputs of the groups from number `at` on, then for the slots of what is left. Goes on on
    /// this thread or on another.
    pub(super) fn ask_tiers(self: &Arc<Self>, groups: Vec<SlotGroup>, at: usize) -> Result<()> {
        let next = (at..groups.len()).find_map(|at| Some((at, self.tier_keys(&groups[at])?)));
        let Some((at, (info, keys))) = next else { return self.request(groups) };
        let names = groups[at].entry.cache.tiers.clone().unwrap_or_default();
        let (job, mut groups, asked_at) = (Arc::clone(self), groups, Instant::now());
        let on_found = Box::new(move |found: Vec<Option<CachedItem>>| {
            if let Some(trace) = &job.options.trace {
                trace.add(TraceStage::Cache, asked_at, Instant::now());
            }
            let taken = job.take_found(&mut groups[at], &info, found);
            if let Err(error) = taken.and_then(|()| job.ask_tiers(groups, at + 1)) {
                Task::fail(job, error);
            }
        });
        if let Some((until, asked)) = self.embedder.tiers.ask(keys, &names, on_found) {
            let timed: Arc<dyn Timed> = Arc::clone(&asked) as _;
            if self.embedder.dispatcher.watch(until, &timed).is_err() {
                asked.expire();
            }
        }
        Ok(())
    }

    /// The keys of the inputs of a group, and the model that they are of; `None` when no tier can have them.
    fn tier_keys(&self, group: &SlotGroup) -> Option<(Arc<ModelInfo>, Vec<TierKey>)> {
        let (tiers, own) = (&self.embedder.tiers, &group.entry.cache.tiers);
        if tiers.is_empty() || own.is_none() || group.order.is_empty() || !stores(self.options.kind) {
            return None;
        }
        let info = group.entry.info()?;
        let content = *info.content.as_ref()?.get()?;
        let prompt = self.inputs.prompt(&info, &self.options).ok()?;
        let key = |&input: &usize| {
            Tiers::key(&self.options.key(&info.facts.identity, prompt, self.inputs.get(input)))
                .with_model(&content)
        };
        let keys = group.order.iter().map(key).collect();
        Some((info, keys))
    }

    /// Takes what was found for a group of the model of `info`, and puts it into memory. The slot may have another model by
    /// now.
    fn take_found(
        &self,
        group: &mut SlotGroup,
        info: &ModelInfo,
        found: Vec<Option<CachedItem>>,
    ) -> Result<()> {
        let (_, shape) = info.shapes(&self.options, &group.entry.name)?;
        let prompt = self.inputs.prompt(info, &self.options)?;
        let memory = group.entry.cache.memory(&self.embedder.cache);
        let mut taken = 0;
        let mut state = self.state.lock();
        let mut found = found.into_iter();
        let mut order = Vec::with_capacity(group.order.len());
        for &input in &group.order {
            let item = found.next().flatten();
            let fits = |item: &CachedItem| {
                group.hits.are_of(&info.facts.identity)
                    && has_shape(item, shape)
                    && info.answers(&self.options, item)
            };
            let Some(item) = item.filter(fits) else {
                order.push(input);
                continue;
            };
            state.fit(shape, self.inputs.len())?;
            group.hits.add(&info.facts.identity, input, item.tokens())?;
            state.put(input, item.item().view());
            state.tokens += u64::from(item.tokens());
            state.finished += 1;
            taken += 1;
            if let Some(memory) = memory {
                let key = self.options.key(&info.facts.identity, prompt, self.inputs.get(input));
                self.options.keep(memory, &key, item);
            }
        }
        drop(state);
        group.order = order;
        group.leave(taken);
        group.entry.cache.count(taken, 0);
        if let Some(trace) = &self.options.trace {
            trace.found(0, taken, &info.facts.model);
        }
        Ok(())
    }
}
