//! No lock is held while foreign code runs: destructors, loaders and continuations all use the slot themselves, which
//! would hang if one were.

use super::*;

/// A slot whose loader and whose model's destructor use it and the reaper.
fn meddling(world: &World, options: SlotOptions) -> (Slot<Model>, impl Fn() + use<>) {
    let handle: Arc<Mutex<Option<Slot<Model>>>> = Arc::default();
    let make = world.maker(MB);
    let reaper = Arc::clone(&world.context.reaper);
    let meddle = {
        let handle = Arc::clone(&handle);
        move || {
            let slot = handle.lock().clone().unwrap();
            let _ = slot.status();
            slot.managed().idle();
            reaper.clean_up();
        }
    };
    let slot = world.slot_with("m", options, move || {
        meddle();
        let mut model = make();
        model.on_drop = Some(Box::new(meddle.clone()));
        Ok(loaded(model))
    });
    *handle.lock() = Some(slot.clone());
    (slot, move || *handle.lock() = None)
}

fn with_meddling(options: SlotOptions, leave: impl Fn(&World, &Slot<Model>)) {
    let world = World::new();
    let (slot, untie) = meddling(&world, options);
    leave(&world, &slot);
    assert_eq!(world.next_drop(), 1);
    untie();
}

#[test]
fn none_while_a_value_drops() {
    let idle = |slot: &Slot<Model>| drop(acquire(slot).unwrap());
    with_meddling(keep(KeepAlive::Forever), |_, slot| {
        idle(slot);
        assert!(slot.unload());
    });
    with_meddling(keep(KeepAlive::AFTER_USE), |_, slot| idle(slot));
    with_meddling(keep(KeepAlive::Forever), |_, slot| {
        let lease = acquire(slot).unwrap();
        slot.unload();
        drop(lease);
    });
    with_meddling(keep(seconds(1)), |world, slot| {
        idle(slot);
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(world.context.reaper.clean_up(), 1);
    });
    with_meddling(keep(KeepAlive::Forever), |_, slot| {
        idle(slot);
        let managed = slot.managed();
        assert!(managed.unload_idle(&managed.idle().unwrap(), UnloadReason::Evicted));
    });
}

#[test]
fn none_while_a_continuation_runs() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions::default());
    let (reports, received) = mpsc::channel();
    for _ in 0..2 {
        let (reports, again) = (reports.clone(), slot.clone());
        slot.when_ready(Box::new(move |lease| {
            let lease = lease.unwrap();
            assert_eq!(again.try_acquire().unwrap().number, lease.number);
            assert_eq!(again.status().leases, 1);
            assert!(again.unload());
            reports.send(lease.number).unwrap();
        }));
        received.recv_timeout(HANG).unwrap();
    }
}

#[test]
fn none_while_a_lease_is_used() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions::default());
    let lease = acquire(&slot).unwrap();
    let number = &lease.number;
    assert!(slot.unload());
    drop(acquire(&slot).unwrap());
    assert_eq!(*number, 1);
}
