//! Room for one more model.

use std::thread;

use super::*;
use crate::Error;

/// The slots of a test, as the budget sees them.
type Slots = Arc<Mutex<Vec<Arc<dyn Managed>>>>;

/// A slot that charges `budget` for `megabytes`, with room made among `slots`.
fn charged(world: &World, name: &'static str, megabytes: u64, budget: &Budget, slots: &Slots) -> Slot<Model> {
    charged_with(world, name, megabytes, budget, slots, keep(KeepAlive::Forever))
}

fn charged_with(
    world: &World,
    name: &'static str,
    megabytes: u64,
    budget: &Budget,
    slots: &Slots,
    options: SlotOptions,
) -> Slot<Model> {
    let make = world.maker(megabytes * MB);
    let (budget, all) = (budget.clone(), Arc::clone(slots));
    let slot = world.slot_with(name, options, move || {
        let others = all.lock().clone();
        let charge = budget.make_room(name, megabytes * MB, &others)?;
        Ok(Loaded { charge: Some(Arc::new(charge)), ..loaded(make()) })
    });
    slots.lock().push(slot.managed());
    slot
}

fn use_once(world: &World, slot: &Slot<Model>) {
    drop(acquire(slot).unwrap());
    world.clock.advance(Duration::from_secs(1));
}

#[test]
fn evicts_the_least_recently_used_that_are_needed() {
    let (world, budget, slots) = (World::new(), Budget::new(Some(100 * MB)), Arc::default());
    let [a, b, c] = ["a", "b", "c"].map(|name| charged(&world, name, 30, &budget, &slots));
    let d = charged(&world, "d", 40, &budget, &slots);
    for slot in [&a, &b, &c, &a] {
        use_once(&world, slot);
    }
    assert_eq!(budget.used(), 90 * MB);
    use_once(&world, &d);
    assert_eq!([&a, &b, &c, &d].map(|slot| slot.state() == State::Ready), [true, false, true, true]);
    assert_eq!(budget.used(), 100 * MB);
    assert_eq!(world.counts("b"), (1, 1));
    assert_eq!(budget.limit(), Some(100 * MB));
}

#[test]
fn spares_the_small_when_a_large_one_makes_the_room_alone() {
    let (world, budget, slots) = (World::new(), Budget::new(Some(100 * MB)), Arc::default());
    let small = charged(&world, "small", 5, &budget, &slots);
    let large = charged(&world, "large", 90, &budget, &slots);
    let other = charged(&world, "other", 80, &budget, &slots);
    for slot in [&small, &large, &other] {
        use_once(&world, slot);
    }
    assert_eq!([&small, &large, &other].map(|slot| slot.state() == State::Ready), [true, false, true]);
}

#[test]
fn evicts_nothing_when_that_would_not_be_enough() {
    let (world, budget, slots) = (World::new(), Budget::new(Some(100 * MB)), Arc::default());
    let [idle, leased] = ["idle", "leased"].map(|name| charged(&world, name, 30, &budget, &slots));
    let options = SlotOptions { keep_alive: Some(KeepAlive::Forever), pinned: true };
    let pinned = charged_with(&world, "pinned", 30, &budget, &slots, options);
    let large = charged(&world, "large", 50, &budget, &slots);
    use_once(&world, &idle);
    let lease = acquire(&leased).unwrap();
    use_once(&world, &pinned);
    let refused = Error::Budget { model: "large".into(), needed: 50 * MB, budget: 100 * MB, in_use: 60 * MB };
    assert_eq!(acquire(&large).unwrap_err(), refused);
    assert_eq!(idle.state(), State::Ready);
    assert!(budget.make_room("huge", 101 * MB, &slots.lock()).is_err());
    assert_eq!(budget.used(), 90 * MB);

    drop(lease);
    use_once(&world, &large);
    assert_eq!([&idle, &leased, &pinned].map(Slot::state), [State::Absent, State::Absent, State::Ready]);
}

#[test]
fn a_model_of_several_slots_is_charged_until_the_last_is_unloaded() {
    let (world, budget, slots) = (World::new(), Budget::new(Some(100 * MB)), Slots::default());
    let charge: Arc<Mutex<Option<Arc<Charge>>>> = Arc::default();
    let [a, b] = ["a", "b"].map(|name| {
        let (make, budget, charge) = (world.maker(0), budget.clone(), Arc::clone(&charge));
        let slot = world.slot_with(name, keep(KeepAlive::Forever), move || {
            let mut charge = charge.lock();
            let charge = match &*charge {
                Some(charge) => Arc::clone(charge),
                None => Arc::clone(charge.insert(Arc::new(budget.make_room(name, 60 * MB, &[])?))),
            };
            Ok(Loaded { value: Arc::new(make()), bytes: 60 * MB, charge: Some(charge) })
        });
        slots.lock().push(slot.managed());
        slot
    });
    let states = || [a.state(), b.state()].map(|state| state == State::Ready);
    use_once(&world, &a);
    use_once(&world, &b);
    // Only slots hold it from here on.
    drop(charge.lock().take());
    assert_eq!(budget.used(), 60 * MB);
    // While one slot is in use, to unload the other would free nothing.
    let large = charged(&world, "large", 50, &budget, &slots);
    let lease = acquire(&b).unwrap();
    assert!(matches!(acquire(&large), Err(Error::Budget { in_use, .. }) if in_use == 60 * MB));
    assert_eq!(states(), [true, true]);
    drop(lease);
    // What fits leaves both in memory; what does not unloads both.
    let small = charged(&world, "small", 40, &budget, &slots);
    use_once(&world, &small);
    assert_eq!(states(), [true, true]);
    small.unload();
    use_once(&world, &large);
    assert_eq!((states(), budget.used()), ([false, false], 50 * MB));
    // By name, the first returns nothing.
    large.unload();
    use_once(&world, &a);
    use_once(&world, &b);
    drop(charge.lock().take());
    assert!(a.unload());
    assert_eq!(budget.used(), 60 * MB);
    assert!(b.unload());
    assert_eq!(budget.used(), 0);
}

#[test]
fn counts_what_is_unloaded_until_it_is_free() {
    let (world, budget, slots) = (World::new(), Budget::new(Some(100 * MB)), Arc::default());
    let slot = charged(&world, "m", 60, &budget, &slots);
    let lease = acquire(&slot).unwrap();
    slot.unload();
    assert_eq!(budget.used(), 60 * MB);
    assert!(acquire(&slot).is_err(), "both copies do not fit");
    drop(lease);
    assert_eq!(budget.used(), 0);
    use_once(&world, &slot);
}

#[test]
fn an_estimate_is_corrected_and_a_failed_load_gives_it_back() {
    let world = World::new();
    let budget = Budget::new(Some(100 * MB));
    for (really, works) in [(20, true), (70, true), (200, true), (20, false)] {
        let (make, room) = (world.maker(really * MB), budget.clone());
        let slot = world.slot_with("m", SlotOptions::default(), move || {
            let charge = room.make_room("m", 50 * MB, &[])?;
            assert_eq!((room.used(), charge.bytes()), (50 * MB, 50 * MB));
            assert!(works, "no luck");
            Ok(Loaded { charge: Some(Arc::new(charge)), ..loaded(make()) })
        });
        assert_eq!(acquire(&slot).is_ok(), works);
        assert_eq!(budget.used(), if works { really * MB } else { 0 });
        slot.unload();
        assert_eq!(budget.used(), 0);
    }
}

#[test]
fn no_limit_always_has_room() {
    let budget = Budget::new(None);
    let charge = budget.make_room("m", u64::MAX / 2, &[]).unwrap();
    assert_eq!((budget.limit(), budget.used()), (None, u64::MAX / 2));
    drop(charge);
    assert_eq!(budget.used(), 0);
}

#[test]
fn is_never_exceeded_by_racing_loads() {
    let (world, budget, slots) = (World::new(), Budget::new(Some(100 * MB)), Arc::default());
    let all = ["a", "b", "c", "d", "e"].map(|name| charged(&world, name, 40, &budget, &slots));
    thread::scope(|scope| {
        for start in 0..all.len() {
            let (all, world, budget) = (&all, &world, &budget);
            scope.spawn(move || {
                for round in 0..100 {
                    match acquire(&all[(start + round) % all.len()]) {
                        Ok(lease) => assert!(lease.number > 0),
                        Err(error) => assert!(matches!(error, Error::Budget { .. }), "{error}"),
                    }
                    assert!(budget.used() <= 100 * MB);
                    assert!(world.memory.resident() <= 100 * MB);
                }
            });
        }
    });
    for slot in &all {
        slot.unload();
    }
    for _ in 0..world.made.load(Ordering::SeqCst) {
        world.next_drop();
    }
    assert_eq!((budget.used(), world.memory.resident()), (0, 0));
}

#[test]
fn by_cost_what_is_worth_least_for_its_size_leaves_and_nothing_stays_without_use() {
    let mut world = World::new();
    world.context.eviction = Arc::new(Eviction::new(true));
    let budget = Budget::new(Some(3 * MB));
    let slots: Vec<Slot<Model>> = [5, 1, 1]
        .iter()
        .enumerate()
        .map(|(number, &load_seconds)| {
            let (make, clock, budget) = (world.maker(MB), world.clock.clone(), budget.clone());
            world.slot_with(&format!("m{number}"), SlotOptions::default(), move || {
                clock.advance(Duration::from_secs(load_seconds));
                let charge = budget.make_room("m", MB, &[])?;
                Ok(Loaded { charge: Some(Arc::new(charge)), ..loaded(make()) })
            })
        })
        .collect();
    // The first takes long to load and was used longest ago; the second was used twice.
    for slot in [&slots[0], &slots[1], &slots[1], &slots[2]] {
        drop(acquire(slot).unwrap());
        world.clock.advance(Duration::from_secs(10));
    }
    let managed: Vec<_> = slots.iter().map(Slot::managed).collect();
    let states = || slots.iter().map(Slot::state).collect::<Vec<_>>();
    let charge = budget.make_room("other", MB, &managed).unwrap();
    assert_eq!(states(), [State::Ready, State::Ready, State::Absent]);
    drop(charge);
    // Each return of the third raises the level, until the first, which is not used, is worth less.
    let mut rounds = 0;
    while slots[0].state() == State::Ready && rounds < 100 {
        drop(acquire(&slots[2]).unwrap());
        drop(acquire(&slots[1]).unwrap());
        drop(budget.make_room("other", MB, &managed).unwrap());
        rounds += 1;
    }
    assert!((2..100).contains(&rounds), "{rounds}");
}

#[test]
fn what_is_cheap_to_load_again_for_its_memory_leaves_first() {
    let eviction = Eviction::new(true);
    let usual = eviction.priority(2, 3.0, 10_000_000);
    assert_eq!(usual, 600_000);
    assert!(eviction.priority(3, 3.0, 10_000_000) > usual, "more uses");
    assert!(eviction.priority(2, 4.0, 10_000_000) > usual, "a longer load");
    assert!(eviction.priority(2, 3.0, 20_000_000) < usual, "more memory");
    // Below a megabyte size does not count, and a clock that was set back gives no worth.
    assert_eq!(eviction.priority(1, 1.0, 1), eviction.priority(1, 1.0, 1_000_000));
    assert_eq!(eviction.priority(1, -1.0, 1), 0);
    eviction.evicted(usual);
    eviction.evicted(1);
    assert_eq!(
        eviction.priority(2, 3.0, 10_000_000),
        2 * usual,
        "later uses count from the level of what left"
    );
    assert_eq!(Eviction::new(false).priority(5, 5.0, 1), 0);
}
