//! Which loads wait for which models, so that loaders that need each other are refused: each would wait without end.

use std::sync::Arc;

use super::caller::caller;
use crate::sync::Mutex;
use crate::sync::thread::ThreadId;

/// The loads of a manager, and the models that their threads wait for. A cheap-clone handle: clones are the same graph.
#[derive(Debug, Clone, Default)]
pub struct WaitGraph(Arc<Mutex<Vec<RunningLoad>>>);

/// A load in progress. It waits for at most one model at a time.
#[derive(Debug)]
struct RunningLoad {
    thread: ThreadId,
    slot: Arc<str>,
    waits_for: Option<Arc<str>>,
}

/// A load is in the graph until this is dropped.
pub(super) struct GraphedLoad<'a> {
    graph: &'a WaitGraph,
    thread: ThreadId,
}

/// A load waits until this is dropped.
pub(super) struct GraphedWait<'a> {
    graph: &'a WaitGraph,
    thread: ThreadId,
}

impl WaitGraph {
    /// Adds the load of `slot` on this thread.
    pub(super) fn load(&self, thread: ThreadId, slot: &Arc<str>) -> GraphedLoad<'_> {
        self.0.lock().push(RunningLoad { thread, slot: Arc::clone(slot), waits_for: None });
        GraphedLoad { graph: self, thread }
    }

    /// The caller is about to wait for `slot`. `None` unless the caller is a load.
    ///
    /// # Errors
    /// The slots whose loads would wait for each other, from the caller's back to it.
    pub(super) fn wait(&self, slot: &Arc<str>) -> Result<Option<GraphedWait<'_>>, Vec<Arc<str>>> {
        let thread = caller();
        let mut loads = self.0.lock();
        // A load that asks for its own slot is refused there.
        let other = |load: &RunningLoad| load.thread == thread && load.slot != *slot;
        let Some(own) = loads.iter().position(other) else { return Ok(None) };
        let mut path = vec![Arc::clone(&loads[own].slot)];
        let mut next = Some(slot);
        while let Some(slot) = next {
            let seen = path.contains(slot);
            path.push(Arc::clone(slot));
            if seen {
                return Err(path);
            }
            let waits = |load: &&RunningLoad| load.slot == *slot && load.waits_for.is_some();
            next = loads.iter().find(waits).and_then(|load| load.waits_for.as_ref());
        }
        loads[own].waits_for = Some(Arc::clone(slot));
        Ok(Some(GraphedWait { graph: self, thread }))
    }
}

impl Drop for GraphedLoad<'_> {
    fn drop(&mut self) {
        self.graph.0.lock().retain(|load| load.thread != self.thread);
    }
}

impl Drop for GraphedWait<'_> {
    fn drop(&mut self) {
        let mut loads = self.graph.0.lock();
        if let Some(own) = loads.iter_mut().find(|load| load.thread == self.thread) {
            own.waits_for = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a load of `slot` on another thread, waiting for `other`, gets: the circle, if there is one.
    fn circle(graph: &WaitGraph, slot: &Arc<str>, other: &Arc<str>) -> Option<Vec<String>> {
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let _load = graph.load(caller(), slot);
                let waits = graph.wait(other);
                waits.err().map(|path| path.iter().map(ToString::to_string).collect())
            });
            load.join().unwrap()
        })
    }

    #[test]
    fn a_load_is_in_a_circle_only_while_it_waits() {
        let (graph, [a, b, c]) = (WaitGraph::default(), ["a", "b", "c"].map(Arc::<str>::from));
        assert!(graph.wait(&b).unwrap().is_none(), "the caller is no load");
        let load = graph.load(caller(), &a);
        assert!(graph.wait(&a).unwrap().is_none(), "its own slot is refused elsewhere");
        assert_eq!(circle(&graph, &b, &a), None, "it does not wait yet");
        let waits = graph.wait(&b).unwrap();
        assert!(waits.is_some());
        assert_eq!(circle(&graph, &b, &a), Some(vec!["b".into(), "a".into(), "b".into()]));
        assert_eq!(circle(&graph, &b, &c), None);
        assert_eq!(circle(&graph, &c, &a), None);
        drop(waits);
        assert_eq!(circle(&graph, &b, &a), None, "it waits no more");
        drop(load);
        assert!(graph.0.lock().is_empty());
    }
}
