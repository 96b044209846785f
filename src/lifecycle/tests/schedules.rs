//! A slot under schedules that Shuttle chooses: each value is made and dropped once, no caller that waits is forgotten, and
//! no lease outlives its value. Shuttle reports a deadlock as a failure.

use shuttle::thread;

use super::*;
use crate::Error;
use crate::sync::schedule_tests::together;

/// Schedules for each test.
const SCHEDULES: usize = 2000;

/// Unloads, waits until every model that was made is gone, and checks the counts.
fn settle(world: &World, slot: &Slot<Model>) {
    slot.unload();
    let made = world.made.load(Ordering::SeqCst);
    let mut gone: Vec<usize> = Vec::new();
    while gone.len() < made {
        match world.dropped.lock().try_recv() {
            Ok(number) => gone.push(number),
            Err(_) => thread::yield_now(),
        }
    }
    gone.sort_unstable();
    assert_eq!(gone, (1..=made).collect::<Vec<_>>(), "each once");
    assert!(world.no_drop());
    assert_eq!(world.memory.resident(), 0);
    assert_eq!((slot.state(), slot.status().leases), (State::Absent, 0));
    assert_eq!(world.counts("m"), (made as u64, made as u64));
}

/// The number of the leased model, which must be in memory.
fn use_once(world: &World, slot: &Slot<Model>) -> usize {
    let lease = acquire(slot).unwrap();
    thread::yield_now();
    assert!(world.memory.resident() >= MB, "a leased value is in memory");
    lease.number
}

#[test]
fn shuttle_racing_callers_load_once() {
    shuttle::check_random(
        || {
            let world = Arc::new(World::new());
            let slot = world.slot("m", SlotOptions::default());
            let numbers = together(3, {
                let (world, slot) = (Arc::clone(&world), slot.clone());
                move |_| use_once(&world, &slot)
            });
            assert_eq!(numbers, [1, 1, 1]);
            settle(&world, &slot);
        },
        SCHEDULES,
    );
}

#[test]
fn shuttle_unloading_against_loading_and_using() {
    shuttle::check_random(
        || {
            let world = Arc::new(World::new());
            let slot = world.slot("m", keep(seconds(1)));
            together(4, {
                let (world, slot) = (Arc::clone(&world), slot.clone());
                move |number| match number {
                    0 => drop(slot.unload()),
                    1 => {
                        world.clock.advance(Duration::from_secs(2));
                        world.context.reaper.clean_up();
                    }
                    _ => drop(use_once(&world, &slot)),
                }
            });
            settle(&world, &slot);
        },
        SCHEDULES,
    );
}

#[test]
fn shuttle_a_value_that_leaves_after_its_use_leaves_once() {
    shuttle::check_random(
        || {
            let world = Arc::new(World::new());
            let slot = world.slot("m", keep(KeepAlive::AFTER_USE));
            together(3, {
                let (world, slot) = (Arc::clone(&world), slot.clone());
                move |number| {
                    let lease = acquire(&slot).unwrap();
                    if number == 0 {
                        drop(lease.clone());
                    }
                    assert!(world.memory.resident() >= MB);
                }
            });
            settle(&world, &slot);
        },
        SCHEDULES,
    );
}

#[test]
fn shuttle_a_failed_load_reaches_all_who_wait_for_it() {
    shuttle::check_random(
        || {
            let world = Arc::new(World::new());
            let make = world.maker(MB);
            let tries = Arc::new(AtomicUsize::new(0));
            let slot = world.slot_with("m", SlotOptions::default(), move || {
                if tries.fetch_add(1, Ordering::SeqCst) == 0 {
                    return Err(Error::loader("m", "not yet"));
                }
                Ok(loaded(make()))
            });
            let outcomes = together(3, {
                let slot = slot.clone();
                move |_| acquire(&slot).map(|lease| lease.number)
            });
            assert!(outcomes.iter().any(Result::is_err), "the first load failed somebody");
            assert!(outcomes.iter().flatten().all(|number| *number == 1));
            assert_eq!(acquire(&slot).unwrap().number, 1);
            settle(&world, &slot);
        },
        SCHEDULES,
    );
}
