//! The reaper's thread. What is due when is tested on a clock that stands still (`keeping`); here it is only shown that
//! the thread gets there by itself, however long that takes.

use std::thread;

use super::*;

const SOON: KeepAlive = KeepAlive::For(Duration::from_millis(5));

fn hours(enabled: bool) -> ReaperSettings {
    let hour = Duration::from_secs(3600);
    ReaperSettings { enabled, interval: hour, max_idle: hour }
}

#[test]
fn unloads_with_no_further_call() {
    let settings = ReaperSettings { max_idle: Duration::from_millis(5), ..ReaperSettings::default() };
    let world = World::with(Clock::System, settings, || {});
    let slot = world.slot("m", SlotOptions::default());
    for number in 1..=3 {
        drop(acquire(&slot).unwrap());
        assert_eq!(world.next_drop(), number);
    }
}

#[test]
fn wakes_for_a_deadline_sooner_than_the_one_it_sleeps_for() {
    let world = World::with(Clock::System, hours(true), || {});
    let (late, early) = (world.slot("late", SlotOptions::default()), world.slot("early", keep(SOON)));
    drop(acquire(&late).unwrap());
    drop(acquire(&early).unwrap());
    assert_eq!(world.next_drop(), 2);
    let mut lease = acquire(&late).unwrap();
    lease.keep_alive(SOON);
    drop(lease);
    assert_eq!(world.next_drop(), 1);
}

#[test]
fn new_settings_take_effect_at_once() {
    let world = World::with(Clock::System, hours(true), || {});
    let slot = world.slot("m", SlotOptions::default());
    drop(acquire(&slot).unwrap());
    world.context.reaper.set(ReaperSettings { max_idle: Duration::from_millis(5), ..hours(true) });
    assert_eq!(world.next_drop(), 1);

    world.context.reaper.set(hours(false));
    drop(acquire(&slot).unwrap());
    world.context.reaper.set(ReaperSettings { max_idle: Duration::ZERO, ..hours(true) });
    assert_eq!(world.next_drop(), 2);

    drop(acquire(&slot).unwrap());
    assert_eq!(world.next_drop(), 3, "a default of zero unloads after use");
}

#[test]
fn cleans_up_at_every_interval_while_anything_is_in_memory() {
    let (reports, received) = mpsc::channel();
    let settings = ReaperSettings { interval: Duration::from_millis(2), ..hours(true) };
    let world = World::with(Clock::System, settings, move || {
        let _ = reports.send(());
    });
    let slot = world.slot("m", SlotOptions::default());
    assert!(received.try_recv().is_err(), "no thread before the first load");
    drop(acquire(&slot).unwrap());
    for _ in 0..5 {
        received.recv_timeout(HANG).unwrap();
    }
    assert_eq!(slot.state(), State::Ready);
}

#[test]
fn reports_the_time_since_the_last_clean_up() {
    let world = World::new();
    world.clock.advance(Duration::from_secs(30));
    assert_eq!(world.context.reaper.since_cleanup(), Duration::from_secs(30));
    assert_eq!(world.context.reaper.clean_up(), 0);
    world.clock.advance(Duration::from_secs(3));
    assert_eq!(world.context.reaper.since_cleanup(), Duration::from_secs(3));
}

#[test]
fn survives_panicking_destructors_and_housekeeping() {
    let (reports, received) = mpsc::channel();
    let world = World::with(Clock::System, hours(true), move || {
        reports.send(()).unwrap();
        panic!("housekeeping");
    });
    let make = world.maker(MB);
    let bad = world.slot_with("bad", keep(SOON), move || {
        let mut model = make();
        model.on_drop = Some(Box::new(|| panic!("destructor")));
        Ok(loaded(model))
    });
    let good = world.slot("good", keep(SOON));
    drop(acquire(&bad).unwrap());
    while bad.state() != State::Absent {
        received.recv_timeout(HANG).unwrap();
    }
    drop(acquire(&good).unwrap());
    assert_eq!(world.next_drop(), 2);
    assert_eq!(world.counts("bad"), (1, 1));
}

#[test]
fn stops_for_good() {
    let (reports, received) = mpsc::channel();
    let world = World::with(Clock::System, hours(true), move || {
        let _ = reports.send(());
    });
    let slot = world.slot("m", SlotOptions::default());
    drop(acquire(&slot).unwrap());
    received.recv_timeout(HANG).unwrap();
    world.context.reaper.stop();
    world.context.reaper.stop();
    while received.try_recv().is_ok() {}
    world.context.reaper.set(ReaperSettings { max_idle: Duration::from_nanos(1), ..hours(true) });
    drop(acquire(&slot).unwrap());
    assert!(received.try_recv().is_err(), "the thread was joined and is not started again");
    assert_eq!(slot.state(), State::Ready);
    assert_eq!(world.context.reaper.clean_up(), 1, "by hand it still works");
}

#[test]
fn ends_its_thread_when_the_last_owner_is_that_thread() {
    struct Ends(mpsc::Sender<thread::ThreadId>);
    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().id());
        }
    }
    let (reports, received) = mpsc::channel();
    let (hold, release) = mpsc::channel::<()>();
    let release = Mutex::new(release);
    let ends = Ends(reports);
    let world = World::with(Clock::System, hours(true), move || {
        let _ = &ends;
    });
    let make = world.maker(MB);
    let waiting = Arc::new(Mutex::new(Some(release)));
    let slot = world.slot_with("m", keep(SOON), move || {
        let mut model = make();
        let waiting = Arc::clone(&waiting);
        // Keeps the reaper's thread inside this slot until every other owner is gone.
        model.on_drop = Some(Box::new(move || {
            let _ = waiting.lock().take().map(|release| release.lock().recv_timeout(HANG));
        }));
        Ok(loaded(model))
    });
    drop(acquire(&slot).unwrap());
    let World { context, dropped, .. } = world;
    while slot.state() != State::Absent {
        thread::yield_now();
    }
    drop((slot, context));
    drop(hold);
    assert_eq!(dropped.lock().recv_timeout(HANG).unwrap(), 1);
    assert_ne!(received.recv_timeout(HANG).unwrap(), thread::current().id());
}

#[test]
fn forgets_slots_that_are_gone() {
    let world = World::new();
    let slot = world.slot("m", keep(SOON));
    drop(acquire(&slot).unwrap());
    drop(slot);
    assert_eq!(world.next_drop(), 1, "the reaper does not keep it");
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(world.context.reaper.clean_up(), 0);
}
