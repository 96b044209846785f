//! Which models are used soon after which: by everybody, and by each user.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::gaps::SHORTEST_GAP;
use crate::sync::Mutex;

/// A model that is used within this time follows.
const SOON: Duration = Duration::from_secs(60);
/// What it costs to load a model that does not follow then, in seconds of memory.
const MISSED: f64 = 60.0;
/// Uses of a model before its followers are known.
const ENOUGH: f64 = 8.0;
/// What older uses weigh, with each further one.
const KEPT: f64 = 0.98;
const MOST_FOLLOWERS: usize = 8;
const MOST_USERS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Models whose followers are known of one user.
const MOST_OF_USER: usize = 4;

/// How often a model was used, and which ones followed.
#[derive(Default)]
struct Followers {
    uses: f64,
    counts: Vec<(Arc<str>, f64)>,
}

impl Followers {
    fn used(&mut self) {
        self.uses = self.uses * KEPT + 1.0;
        self.counts.iter_mut().for_each(|(_, count)| *count *= KEPT);
    }

    fn followed(&mut self, slot: &Arc<str>) {
        match self.counts.iter_mut().find(|(other, _)| other == slot) {
            Some((_, count)) => *count += 1.0,
            None => {
                if self.counts.len() == MOST_FOLLOWERS {
                    self.counts.sort_by(|(_, one), (_, other)| other.total_cmp(one));
                    self.counts.pop();
                }
                self.counts.push((Arc::clone(slot), 1.0));
            }
        }
    }

    /// Those that are worth loading, where a load costs `price` seconds; `None` while too little is known. `uses` are those
    /// that something could have followed.
    fn likely(&self, price: f64, uses: f64) -> Option<Vec<Arc<str>>> {
        if uses < ENOUGH {
            return None;
        }
        let worth = |count: f64| {
            let probability = (count / uses).min(1.0);
            probability * price > (1.0 - probability) * MISSED
        };
        Some(
            self.counts.iter().filter(|(_, count)| worth(*count)).map(|(slot, _)| Arc::clone(slot)).collect(),
        )
    }
}

/// A use that others may follow.
struct RecentUse {
    slot: Arc<str>,
    at: Instant,
    user: Option<u64>,
    followed: Vec<Arc<str>>,
}

/// The order in which models are used.
pub(super) struct Successors {
    /// Users are known by a hash that is different in each process.
    hasher: RandomState,
    state: Mutex<SuccessorState>,
}

struct SuccessorState {
    latest: HashMap<Arc<str>, Instant>,
    recent: Vec<RecentUse>,
    all: HashMap<Arc<str>, Followers>,
    users: LruCache<u64, Vec<(Arc<str>, Followers)>>,
}

impl Default for Successors {
    fn default() -> Self {
        let state = SuccessorState {
            latest: HashMap::new(),
            recent: Vec::new(),
            all: HashMap::new(),
            users: LruCache::new(MOST_USERS),
        };
        Self { hasher: RandomState::new(), state: Mutex::new(state) }
    }
}

impl Successors {
    /// `slot` is used, on behalf of `user`. Returns the models that usually follow, when it was idle before; a user's own
    /// habits go first.
    pub(super) fn used(
        &self,
        slot: &Arc<str>,
        user: Option<&str>,
        now: Instant,
        price: f64,
    ) -> Vec<Arc<str>> {
        let user = user.map(|user| self.hasher.hash_one(user));
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let before = state.latest.insert(Arc::clone(slot), now);
        state.recent.retain(|recent| now.saturating_duration_since(recent.at) <= SOON);
        let mut followed = Vec::new();
        for recent in &mut state.recent {
            if recent.slot != *slot && !recent.followed.contains(slot) {
                recent.followed.push(Arc::clone(slot));
                followed.push((Arc::clone(&recent.slot), recent.user));
            }
        }
        for (first, user) in followed {
            state.each(&first, user, |followers| followers.followed(slot));
        }
        let idle = before.map(|before| now.saturating_duration_since(before).as_secs_f64());
        if idle.is_some_and(|idle| idle < SHORTEST_GAP) {
            return Vec::new();
        }
        state.each(slot, user, Followers::used);
        let recent = RecentUse { slot: Arc::clone(slot), at: now, user, followed: Vec::new() };
        state.recent.push(recent);
        // The present use has not been followed yet.
        state.likely(slot, user, price, 1.0)
    }

    /// The models that usually follow `slot`, which is announced on behalf of `user`: a user's own habits go first.
    pub(super) fn announced(&self, slot: &str, user: Option<&str>, price: f64) -> Vec<Arc<str>> {
        let user = user.map(|user| self.hasher.hash_one(user));
        self.state.lock().likely(slot, user, price, 0.0)
    }

    /// The models that a user usually uses after `slot`, and with what probability, for reports.
    pub(super) fn of(&self, slot: &str) -> Vec<(Arc<str>, f64)> {
        let state = self.state.lock();
        let Some(followers) = state.all.get(slot) else { return Vec::new() };
        let uses = followers.uses.max(1.0);
        followers.counts.iter().map(|(slot, count)| (Arc::clone(slot), (count / uses).min(1.0))).collect()
    }
}

impl SuccessorState {
    /// `open` of the latest uses have not been followed yet.
    fn likely(&self, slot: &str, user: Option<u64>, price: f64, open: f64) -> Vec<Arc<str>> {
        let likely = |followers: &Followers| followers.likely(price, followers.uses - open);
        let own = user.and_then(|user| {
            let known = self.users.peek(&user)?;
            likely(&known.iter().find(|(known, _)| **known == *slot)?.1)
        });
        own.or_else(|| likely(self.all.get(slot)?)).unwrap_or_default()
    }

    /// Changes what is known of a slot: of everybody, and of a user.
    fn each(&mut self, slot: &Arc<str>, user: Option<u64>, change: impl Fn(&mut Followers)) {
        change(self.all.entry(Arc::clone(slot)).or_default());
        let Some(user) = user else { return };
        let known = self.users.get_or_insert_mut(user, Vec::new);
        let place = match known.iter().position(|(known, _)| known == slot) {
            Some(place) => place,
            None => {
                if known.len() == MOST_OF_USER {
                    let rarest =
                        (0..known.len()).min_by(|a, b| known[*a].1.uses.total_cmp(&known[*b].1.uses));
                    known.swap_remove(rarest.unwrap_or(0));
                }
                known.push((Arc::clone(slot), Followers::default()));
                known.len() - 1
            }
        };
        change(&mut known[place].1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(slots: &[Arc<str>]) -> Vec<&str> {
        slots.iter().map(|slot| &**slot).collect()
    }

    #[test]
    fn what_follows_usually_is_expected_after_eight_times() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let successors = Successors::default();
        let mut now = Instant::now();
        for round in 0..20 {
            let expected = successors.used(&a, None, now, 1200.0);
            assert_eq!(names(&expected), if round < 9 { vec![] } else { vec!["b"] }, "round {round}");
            now += Duration::from_secs(30);
            assert!(names(&successors.used(&b, None, now, 1200.0)).is_empty());
            now += Duration::from_secs(1000);
        }
        // Within an idle period of less than 15 s it is one use.
        successors.used(&a, None, now, 1200.0);
        assert!(successors.used(&a, None, now + Duration::from_secs(5), 1200.0).is_empty());
    }

    #[test]
    fn what_comes_later_or_rarely_is_not() {
        let slots: Vec<Arc<str>> = ["a", "b", "c"].map(Into::into).to_vec();
        let successors = Successors::default();
        let mut now = Instant::now();
        for round in 0..60 {
            let expected = successors.used(&slots[0], None, now, 1200.0);
            assert!(names(&expected).is_empty(), "round {round}");
            successors.used(&slots[1], None, now + Duration::from_secs(61), 1200.0);
            if round % 30 == 0 {
                successors.used(&slots[2], None, now + Duration::from_secs(10), 1200.0);
            }
            now += Duration::from_secs(1000);
        }
    }

    #[test]
    fn a_users_own_habits_go_first_and_users_are_forgotten() {
        let slots: Vec<Arc<str>> = ["a", "b", "c"].map(Into::into).to_vec();
        let successors = Successors::default();
        let mut now = Instant::now();
        let mut expected = (Vec::new(), Vec::new());
        for _ in 0..20 {
            expected.0 = successors.used(&slots[0], Some("ayşe"), now, 100.0);
            successors.used(&slots[1], Some("ayşe"), now + Duration::from_secs(10), 100.0);
            now += Duration::from_secs(1000);
            expected.1 = successors.used(&slots[0], Some("bob"), now, 100.0);
            successors.used(&slots[2], Some("bob"), now + Duration::from_secs(10), 100.0);
            now += Duration::from_secs(1000);
        }
        assert_eq!((names(&expected.0), names(&expected.1)), (vec!["b"], vec!["c"]));
        let announced = |user| successors.announced("a", user, 100.0);
        assert_eq!((names(&announced(Some("ayşe"))), names(&announced(Some("bob")))), (vec!["b"], vec!["c"]));
        // Of everybody's uses, half are followed by each. A stranger's are those of everybody.
        assert_eq!(names(&announced(None)), names(&announced(Some("eve"))));
        assert_eq!(announced(None).len(), 2);
        assert!(names(&successors.announced("a", None, 50.0)).is_empty());
        for user in 0..5000 {
            now += Duration::from_secs(100);
            successors.used(&slots[0], Some(&user.to_string()), now, 100.0);
        }
        assert_eq!(successors.state.lock().users.len(), MOST_USERS.get());
    }
}
