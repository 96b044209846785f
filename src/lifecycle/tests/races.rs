//! Many threads at once. The interleavings vary, the outcomes must not.

use std::sync::Barrier;
use std::thread;

use super::*;
use crate::Error;

const THREADS: usize = 16;

/// Runs `work` on many threads that start together.
fn storm(work: impl Fn(usize) + Sync) {
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for index in 0..THREADS {
            let (start, work) = (&start, &work);
            scope.spawn(move || {
                start.wait();
                work(index);
            });
        }
    });
}

/// Unloads and waits until every model that was made is gone; then the books must balance.
fn settle(world: &World, slot: &Slot<Model>) {
    slot.unload();
    let made = world.made.load(Ordering::SeqCst);
    let mut gone: Vec<usize> = (0..made).map(|_| world.next_drop()).collect();
    gone.sort_unstable();
    assert_eq!(gone, (1..=made).collect::<Vec<_>>(), "each exactly once");
    assert_eq!(world.memory.resident(), 0);
    assert_eq!((slot.state(), slot.status().leases), (State::Absent, 0));
    assert_eq!(world.counts(slot.name()), (made as u64, made as u64));
}

#[test]
fn racing_callers_load_once() {
    for _ in 0..50 {
        let world = World::new();
        let slot = world.slot("m", SlotOptions::default());
        storm(|_| assert_eq!(acquire(&slot).unwrap().number, 1));
        assert_eq!(world.counts("m"), (1, 0));
        settle(&world, &slot);
    }
}

#[test]
fn racing_callers_of_a_failing_load_all_hear_of_it() {
    let world = World::new();
    let make = world.maker(MB);
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let switch = Arc::clone(&broken);
    let error = Error::loader("m", "not yet");
    let reports = error.clone();
    let slot = world.slot_with("m", SlotOptions::default(), move || {
        if switch.load(Ordering::SeqCst) { Err(reports.clone()) } else { Ok(loaded(make())) }
    });
    for _ in 0..20 {
        storm(|_| assert_eq!(acquire(&slot).unwrap_err(), error));
    }
    broken.store(false, Ordering::SeqCst);
    storm(|_| assert_eq!(acquire(&slot).unwrap().number, 1));
    settle(&world, &slot);
}

#[test]
fn unloading_against_acquiring() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(1)));
    storm(|index| {
        for round in 0..200 {
            match index % 4 {
                0 => {
                    slot.unload();
                }
                1 => {
                    world.clock.advance(Duration::from_secs(1));
                    world.context.reaper.clean_up();
                }
                _ => {
                    let mut lease = acquire(&slot).unwrap();
                    let other = lease.clone();
                    if round % 8 == 0 {
                        lease.keep_alive(KeepAlive::AFTER_USE);
                    }
                    drop(lease);
                    // A value that had been dropped would have given its bytes back.
                    assert!(world.memory.resident() >= other.bytes);
                    assert!(other.number >= 1 && other.number <= world.made.load(Ordering::SeqCst));
                }
            }
        }
    });
    settle(&world, &slot);
}

#[test]
fn a_leased_value_is_alive_under_a_racing_reaper() {
    let settings = ReaperSettings { max_idle: Duration::from_nanos(1), ..ReaperSettings::default() };
    let world = World::with(Clock::System, settings, || {});
    let make = world.maker(MB);
    let (taken, uses) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let alive = Arc::clone(&taken);
    let slot = world.slot_with("m", SlotOptions::default(), move || {
        let mut model = make();
        let alive = Arc::clone(&alive);
        model.on_drop = Some(Box::new(move || assert_eq!(alive.load(Ordering::SeqCst) & 1, 0)));
        Ok(loaded(model))
    });
    for _ in 0..300 {
        let lease = acquire(&slot).unwrap();
        // Odd while the one lease exists: a destructor that runs now would see it.
        taken.fetch_add(1, Ordering::SeqCst);
        thread::yield_now();
        uses.fetch_add(lease.number.min(1), Ordering::SeqCst);
        taken.fetch_add(1, Ordering::SeqCst);
        drop(lease);
    }
    assert_eq!(uses.load(Ordering::SeqCst), 300);
    settle(&world, &slot);
}

#[test]
fn timeouts_against_landings_leak_nothing() {
    let world = World::new();
    let slot = world.slot("m", keep(KeepAlive::AFTER_USE));
    storm(|index| {
        for round in 0..100 {
            let timeout = Duration::from_micros(((index * 7 + round) % 40) as u64);
            match slot.acquire(Some(timeout), &mut || Ok(())) {
                Ok(lease) => assert!(lease.number > 0),
                Err(error) => assert!(matches!(error, Error::Timeout { .. }), "{error}"),
            }
        }
    });
    // The last load may still be on its way to callers who left: its thread drops what it brings.
    drop(acquire(&slot).unwrap());
    settle(&world, &slot);
}

#[test]
fn continuations_are_called_exactly_once() {
    let world = World::new();
    let slot = world.slot("m", keep(KeepAlive::AFTER_USE));
    let (reports, received) = mpsc::channel();
    storm(|index| {
        for _ in 0..100 {
            if index % 4 == 0 {
                slot.unload();
            } else {
                ask(&slot, &reports);
            }
        }
    });
    drop(reports);
    let expected = (0..THREADS).filter(|index| index % 4 != 0).count() * 100;
    let heard: Vec<usize> = (0..expected).map(|_| received.recv_timeout(HANG).unwrap().unwrap()).collect();
    assert_eq!(heard.len(), expected);
    assert!(received.recv_timeout(HANG).is_err(), "no more senders: none was called twice, none is left");
    settle(&world, &slot);
}
