//! absent → loading → ready → absent, and every way to be reports of it.

use std::sync::Barrier;
use std::thread;

use super::*;
use crate::Error;

fn failure() -> Error {
    Error::loader("m", "no such file")
}

#[test]
fn loads_on_first_use_and_once() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions::default());
    assert_eq!(slot.state(), State::Absent);
    assert!(slot.try_acquire().is_none());
    assert!(!slot.unload());
    assert_eq!(world.made.load(Ordering::SeqCst), 0);

    let first = acquire(&slot).unwrap();
    let second = acquire(&slot).unwrap();
    let third = slot.try_acquire().unwrap();
    assert_eq!([first.number, second.number, third.number], [1, 1, 1]);
    assert_eq!(first.slot(), "m");
    let status = slot.status();
    assert_eq!((status.state, status.leases, status.bytes), (State::Ready, 3, MB));
    assert_eq!(status.last_used, Some(world.clock.now()));
    drop((first, second, third));
    assert_eq!(slot.status().leases, 0);
    assert_eq!(world.counts("m"), (1, 0));
    assert!(world.no_drop());
}

#[test]
fn a_value_that_a_replaced_slot_loaded_is_unloaded_with_the_slot() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions::default());
    let late = slot.clone();
    // Replacing unloads the slot, which is absent; a caller that has it already loads it.
    assert!(!slot.unload());
    drop(slot);
    drop(acquire(&late).unwrap());
    assert_eq!(world.counts("m"), (1, 0));
    drop(late);
    assert_eq!(world.next_drop(), 1);
    assert_eq!(world.counts("m"), (1, 1));
}

#[test]
fn unload_returns_the_memory_and_is_counted() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions::default());
    drop(acquire(&slot).unwrap());
    assert_eq!(world.memory.resident(), MB);
    assert!(slot.unload());
    assert_eq!(world.next_drop(), 1);
    assert_eq!(world.memory.resident(), 0);
    assert_eq!(world.memory.trims.load(Ordering::SeqCst), 1);
    assert_eq!(world.statistics().bytes_returned["m"], MB);
    assert_eq!(world.statistics().memory_usage["m"], 1.0);
    let status = slot.status();
    assert_eq!((status.state, status.bytes), (State::Absent, 0));
    assert_eq!(status.last_used, Some(world.clock.now()));
    assert_eq!(acquire(&slot).unwrap().number, 2);
    assert_eq!(world.counts("m"), (2, 1));
}

#[test]
fn a_lease_outlives_the_unloading() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions::default());
    let lease = acquire(&slot).unwrap();
    assert!(slot.unload());
    assert_eq!(slot.state(), State::Absent);
    assert!(!slot.unload());
    let clone = lease.clone();
    let fresh = acquire(&slot).unwrap();
    assert_eq!((lease.number, clone.number, fresh.number), (1, 1, 2));
    assert_eq!(slot.status().leases, 1, "leases on the old value do not count for the new one");
    drop(lease);
    assert!(world.no_drop());
    drop(clone);
    assert_eq!(world.next_drop(), 1);
    assert_eq!(slot.status().leases, 1);
    assert_eq!(fresh.number, 2);
}

#[test]
fn a_failure_is_reported_and_the_next_call_tries_again() {
    let world = World::new();
    let make = world.maker(MB);
    let broken = Arc::new(Mutex::new(true));
    let switch = Arc::clone(&broken);
    let slot = world.slot_with("m", SlotOptions::default(), move || {
        if *switch.lock() { Err(failure()) } else { Ok(loaded(make())) }
    });
    for _ in 0..2 {
        assert_eq!(acquire(&slot).unwrap_err(), failure());
        let status = slot.status();
        assert_eq!((status.state, status.last_error), (State::Absent, Some(failure())));
    }
    *broken.lock() = false;
    assert_eq!(acquire(&slot).unwrap().number, 1);
    assert_eq!(slot.status().last_error, None);
    assert_eq!(world.counts("m"), (1, 0), "failures are not loads");
}

#[test]
fn a_panicking_loader_is_an_error_and_leaves_the_slot_usable() {
    let world = World::new();
    let make = world.maker(MB);
    let attempts = AtomicUsize::new(0);
    let slot = world.slot_with("m", SlotOptions::default(), move || {
        assert!(attempts.fetch_add(1, Ordering::SeqCst) > 0, "weights on fire");
        Ok(loaded(make()))
    });
    match acquire(&slot) {
        Err(Error::Internal { place, reason }) => {
            assert_eq!((place.as_str(), reason.as_str()), ("the loader of \"m\"", "weights on fire"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(acquire(&slot).unwrap().number, 1);
}

#[test]
fn a_timeout_ends_the_wait_but_not_the_load() {
    let world = World::new();
    let (slot, starts, gate) = world.gated_slot("m");
    let impatient = Duration::from_millis(1);
    assert_eq!(
        slot.acquire(Some(impatient), &mut || Ok(())).unwrap_err(),
        Error::Timeout { what: "model \"m\"".into(), after: impatient }
    );
    starts.recv_timeout(HANG).unwrap();
    assert_eq!(slot.state(), State::Loading);
    assert!(slot.acquire(Some(Duration::ZERO), &mut || Ok(())).is_err());
    let (reports, received) = mpsc::channel();
    ask(&slot, &reports);
    gate.send(Ok(())).unwrap();
    assert_eq!(received.recv_timeout(HANG).unwrap(), Ok(1));
    assert_eq!(acquire(&slot).unwrap().number, 1);
    assert_eq!(world.counts("m"), (1, 0));
}

#[test]
fn a_check_can_interrupt_the_wait() {
    let world = World::new();
    let (slot, _starts, gate) = world.gated_slot("m");
    let mut checks = 0;
    let interrupted = slot.acquire(None, &mut || {
        checks += 1;
        if checks == 2 { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert_eq!(interrupted.unwrap_err(), Error::Cancelled);
    assert_eq!(checks, 2);
    gate.send(Ok(())).unwrap();
    assert_eq!(acquire(&slot).unwrap().number, 1);
}

#[test]
fn continuations_run_on_the_loader_or_at_once() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions::default());
    let (reports, received) = mpsc::channel();
    let on_thread = |reports: &mpsc::Sender<Option<String>>| {
        let reports = reports.clone();
        Box::new(move |lease: Result<Lease<Model>>| {
            assert_eq!(lease.unwrap().number, 1);
            reports.send(thread::current().name().map(Into::into)).unwrap();
        })
    };
    slot.when_ready(on_thread(&reports));
    assert_eq!(received.recv_timeout(HANG).unwrap().as_deref(), Some("mm-load-m"));
    slot.when_ready(on_thread(&reports));
    assert_eq!(received.try_recv().unwrap().as_deref(), thread::current().name());
}

#[test]
fn a_panicking_continuation_costs_the_others_nothing() {
    let world = World::new();
    let (slot, _starts, gate) = world.gated_slot("m");
    let (reports, received) = mpsc::channel();
    ask(&slot, &reports);
    slot.when_ready(Box::new(|_| panic!("caller's own fault")));
    ask(&slot, &reports);
    gate.send(Ok(())).unwrap();
    assert_eq!(received.recv_timeout(HANG).unwrap(), Ok(1));
    assert_eq!(received.recv_timeout(HANG).unwrap(), Ok(1));
}

#[test]
fn all_who_wait_hear_of_the_failure() {
    let world = World::new();
    let (slot, starts, gate) = world.gated_slot("m");
    let (reports, received) = mpsc::channel();
    for _ in 0..64 {
        ask(&slot, &reports);
    }
    gate.send(Err(failure())).unwrap();
    for _ in 0..64 {
        assert_eq!(received.recv_timeout(HANG).unwrap(), Err(failure()));
    }
    assert_eq!(starts.try_iter().count(), 1, "one load for all");
    gate.send(Ok(())).unwrap();
    assert_eq!(acquire(&slot).unwrap().number, 1);
}

#[test]
fn unloading_a_load_detaches_it() {
    let world = World::new();
    let (slot, starts, gate) = world.gated_slot("m");
    let (early, hears_early) = mpsc::channel();
    let (late, hears_late) = mpsc::channel();
    slot.when_ready(Box::new(move |lease| early.send(lease.unwrap()).unwrap()));
    starts.recv_timeout(HANG).unwrap();
    assert!(slot.unload());
    assert_eq!(slot.state(), State::Absent);
    assert!(!slot.unload());

    // A later call starts anew while the first load still runs.
    slot.when_ready(Box::new(move |lease| late.send(lease.unwrap()).unwrap()));
    starts.recv_timeout(HANG).unwrap();
    gate.send(Ok(())).unwrap();
    gate.send(Ok(())).unwrap();
    let (early, late) = (hears_early.recv_timeout(HANG).unwrap(), hears_late.recv_timeout(HANG).unwrap());
    assert_ne!(early.number, late.number);
    assert_eq!(acquire(&slot).unwrap().number, late.number, "the slot keeps the later one");
    assert_eq!(slot.status().leases, 1);

    let number = early.number;
    drop(early);
    assert_eq!(world.next_drop(), number);
    assert_eq!(world.counts("m"), (2, 1), "loads = unloads + ready");
}

#[test]
fn a_detached_load_that_fails_leaves_the_slot_alone() {
    let world = World::new();
    let (slot, starts, gate) = world.gated_slot("m");
    let (reports, received) = mpsc::channel();
    ask(&slot, &reports);
    starts.recv_timeout(HANG).unwrap();
    slot.unload();
    gate.send(Err(failure())).unwrap();
    assert_eq!(received.recv_timeout(HANG).unwrap(), Err(failure()));
    let status = slot.status();
    assert_eq!((status.state, status.last_error), (State::Absent, None));
    assert_eq!(world.counts("m"), (0, 0));
}

#[test]
fn a_loader_that_asks_for_itself_is_refused() {
    let world = World::new();
    let make = world.maker(MB);
    let itself: Arc<Mutex<Option<Slot<Model>>>> = Arc::default();
    let hook = Arc::clone(&itself);
    let slot = world.slot_with("m", SlotOptions::default(), move || {
        let slot = hook.lock().clone().unwrap();
        match acquire(&slot) {
            Err(Error::Loader { model, reason, .. }) => assert_eq!(
                (model.as_str(), reason.as_str()),
                ("m", "it asked for the model that it is loading")
            ),
            other => panic!("{other:?}"),
        }
        Ok(loaded(make()))
    });
    *itself.lock() = Some(slot.clone());
    assert_eq!(acquire(&slot).unwrap().number, 1);
    *itself.lock() = None;
}

/// Each loader needs the next slot, and the last one the first where `is_ring`. All of them run before one asks.
fn acquire_needing_each_other(is_ring: bool) -> Vec<Result<Lease<Model>>> {
    const SLOTS: usize = 3;
    let world = World::new();
    let all: Arc<Mutex<Vec<Slot<Model>>>> = Arc::default();
    let running = Arc::new(Barrier::new(SLOTS));
    let slots: Vec<_> = (0..SLOTS)
        .map(|own| {
            let (make, all, running) = (world.maker(MB), Arc::clone(&all), Arc::clone(&running));
            world.slot_with(["a", "b", "c"][own], keep(KeepAlive::Forever), move || {
                running.wait();
                let next = all.lock().get((own + 1) % SLOTS).cloned().filter(|_| is_ring || own + 1 < SLOTS);
                let _needed = next.map(|next| acquire(&next)).transpose()?;
                Ok(loaded(make()))
            })
        })
        .collect();
    *all.lock() = slots.clone();
    let outcomes = thread::scope(|scope| {
        let asking: Vec<_> = slots.iter().map(|slot| scope.spawn(|| acquire(slot))).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    all.lock().clear();
    outcomes
}

#[test]
fn loaders_that_need_each_other_are_refused() {
    let rings = [
        "\"a\" needs \"b\" needs \"c\" needs \"a\"",
        "\"b\" needs \"c\" needs \"a\" needs \"b\"",
        "\"c\" needs \"a\" needs \"b\" needs \"c\"",
    ];
    for _ in 0..20 {
        for outcome in acquire_needing_each_other(true) {
            let error = outcome.unwrap_err().to_string();
            let closed =
                rings.iter().any(|ring| error.contains(&format!("loaders wait for each other: {ring}")));
            assert!(closed, "{error}");
        }
        assert!(acquire_needing_each_other(false).iter().all(Result::is_ok));
    }
}

#[test]
fn an_unknown_size_is_the_growth_of_the_process() {
    let world = World::new();
    let make = world.maker(3 * MB);
    let slot = world.slot_with("m", SlotOptions::default(), move || Ok(Loaded::new(Arc::new(make()), 0)));
    drop(acquire(&slot).unwrap());
    assert_eq!(slot.status().bytes, 3 * MB);
    assert_eq!(world.statistics().memory_usage["m"], 3.0);
}

#[test]
fn adopts_into_an_absent_slot_only() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(5)));
    let make = world.maker(MB);
    assert!(slot.adopt(loaded(make())).is_ok());
    assert_eq!(slot.try_acquire().unwrap().number, 1);
    let refused = slot.adopt(loaded(make())).err().unwrap();
    assert_eq!(refused.value.number, 2);
    drop(refused);
    assert_eq!(world.next_drop(), 2);
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(world.context.reaper.clean_up(), 1, "an adopted value is idle from the start");

    let (loading, _starts, gate) = world.gated_slot("n");
    let (reports, received) = mpsc::channel();
    ask(&loading, &reports);
    assert!(loading.adopt(loaded(make())).is_err());
    gate.send(Ok(())).unwrap();
    received.recv_timeout(HANG).unwrap().unwrap();
}
