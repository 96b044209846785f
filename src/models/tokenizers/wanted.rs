//! Work on a long stretch of text that can be given up.

/// Steps between two questions: some milliseconds of merges.
const STEPS: u32 = if cfg!(test) { 16 } else { 1 << 15 };

/// Whether the ids of a text are still wanted, which is asked now and then.
pub(super) struct Wanted<'a> {
    ask: &'a mut dyn FnMut() -> bool,
    steps: u32,
    given_up: bool,
}

impl<'a> Wanted<'a> {
    pub(super) fn new(ask: &'a mut dyn FnMut() -> bool) -> Self {
        Self { ask, steps: 0, given_up: false }
    }

    /// Counts a step, a merge or a word. False from the first no on: what has been made so far is then of no use.
    #[inline]
    pub(super) fn step(&mut self) -> bool {
        self.steps += 1;
        if self.steps >= STEPS {
            self.steps = 0;
            self.given_up = self.given_up || !(self.ask)();
        }
        !self.given_up
    }
}
