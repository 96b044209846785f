//! How long a value stays.

use super::*;

/// Unloads what is due after `after` more seconds; true if that was anything.
fn due(world: &World, after: u64) -> bool {
    world.clock.advance(Duration::from_secs(after));
    world.context.reaper.clean_up() > 0
}

#[test]
fn leaves_when_its_idle_time_is_up_and_not_before() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    let lease = acquire(&slot).unwrap();
    assert!(!due(&world, 1000), "in use");
    drop(lease);
    assert!(!due(&world, 9));
    drop(slot.try_acquire());
    assert!(!due(&world, 9), "a use starts the time anew");
    assert!(due(&world, 1));
    assert_eq!(world.next_drop(), 1);
    assert_eq!(slot.state(), State::Absent);
    assert_eq!(world.counts("m"), (1, 1));
}

#[test]
fn the_deadline_counts_from_the_latest_use() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    let lease = acquire(&slot).unwrap();
    world.clock.advance(Duration::from_secs(30));
    let used = world.clock.now();
    assert_eq!(slot.status().last_used, Some(used), "now, while a lease exists");
    drop(lease);
    world.clock.advance(Duration::from_secs(4));
    let status = slot.status();
    assert_eq!((status.last_used, status.deadline), (Some(used), Some(used + Duration::from_secs(10))));
    world.clock.advance(Duration::from_secs(6));
    assert_eq!(world.context.reaper.clean_up(), 1);
    let status = slot.status();
    assert_eq!((status.state, status.last_used, status.deadline), (State::Absent, Some(used), None));
}

#[test]
fn zero_unloads_when_the_last_lease_goes() {
    let world = World::new();
    let slot = world.slot("m", keep(KeepAlive::AFTER_USE));
    let lease = acquire(&slot).unwrap();
    let clone = lease.clone();
    drop(lease);
    assert_eq!(slot.state(), State::Ready);
    drop(clone);
    assert_eq!(slot.state(), State::Absent);
    assert_eq!(world.next_drop(), 1, "on the thread of the last lease");
}

#[test]
fn forever_stays() {
    let world = World::new();
    let slot = world.slot("m", keep(KeepAlive::Forever));
    world.context.reaper.set(ReaperSettings { max_idle: Duration::ZERO, ..ReaperSettings::default() });
    drop(acquire(&slot).unwrap());
    assert!(!due(&world, 1_000_000));
    assert!(slot.unload());
}

#[test]
fn a_call_replaces_the_keep_alive_for_its_own_use() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    let mut lease = acquire(&slot).unwrap();
    lease.keep_alive(seconds(100));
    drop(lease);
    assert!(!due(&world, 99));
    drop(slot.try_acquire());
    assert!(!due(&world, 9));
    assert!(due(&world, 1), "the next use is the slot's own again");

    let mut lease = acquire(&slot).unwrap();
    lease.keep_alive(KeepAlive::AFTER_USE);
    drop(lease);
    assert_eq!(slot.state(), State::Absent);
}

#[test]
fn the_reported_deadline_is_when_it_leaves() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    let left = || slot.status().deadline.map(|at| at - world.clock.now());
    assert_eq!(left(), None);
    let mut lease = acquire(&slot).unwrap();
    assert_eq!(left(), Some(Duration::from_secs(10)));
    lease.keep_alive(seconds(100));
    drop(lease);
    assert!(!due(&world, 40));
    assert_eq!(left(), Some(Duration::from_secs(60)));
    assert!(due(&world, 60));
    assert_eq!(left(), None);
    let pinned = world.slot("p", SlotOptions { keep_alive: Some(KeepAlive::AFTER_USE), pinned: true });
    drop(acquire(&pinned).unwrap());
    assert_eq!(pinned.status().deadline, None);
}

#[test]
fn of_overlapping_uses_the_longest_keep_alive_applies() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    let (mut long, mut none) = (acquire(&slot).unwrap(), acquire(&slot).unwrap());
    long.keep_alive(seconds(100));
    none.keep_alive(KeepAlive::AFTER_USE);
    drop(long);
    drop(none);
    assert!(!due(&world, 99));
    assert!(due(&world, 1));
    let (plain, mut none) = (acquire(&slot).unwrap(), acquire(&slot).unwrap());
    none.keep_alive(KeepAlive::AFTER_USE);
    drop(none.clone());
    drop(plain);
    drop(none);
    assert!(!due(&world, 9));
    assert!(due(&world, 1));
}

#[test]
fn a_slot_without_a_keep_alive_follows_the_reaper() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions::default());
    let settings = ReaperSettings { max_idle: Duration::from_secs(60), ..ReaperSettings::default() };
    drop(acquire(&slot).unwrap());
    assert!(!due(&world, 1000), "disabled");
    world.context.reaper.set(ReaperSettings { max_idle: Duration::from_secs(2000), ..settings });
    assert!(!due(&world, 0));
    let mut lease = acquire(&slot).unwrap();
    lease.keep_alive(seconds(90));
    drop(lease);
    world.context.reaper.set(settings);
    assert!(!due(&world, 89), "a call's own keep-alive is its own");
    assert!(due(&world, 1));
    assert_eq!(world.context.reaper.settings(), settings);
}

#[test]
fn an_explicit_keep_alive_counts_with_the_reaper_disabled() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    drop(acquire(&slot).unwrap());
    assert!(due(&world, 10));
}

#[test]
fn a_pinned_value_leaves_by_name_only() {
    let world = World::new();
    let slot = world.slot("m", SlotOptions { keep_alive: Some(KeepAlive::AFTER_USE), pinned: true });
    let mut lease = acquire(&slot).unwrap();
    lease.keep_alive(KeepAlive::AFTER_USE);
    drop(lease);
    assert!(!due(&world, 1_000_000));
    assert_eq!(slot.managed().idle(), None);
    assert!(slot.unload());
    assert_eq!(world.next_drop(), 1);
}

#[test]
fn an_idle_period_that_was_interrupted_is_over() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    drop(acquire(&slot).unwrap());
    let managed = slot.managed();
    let seen = managed.idle().unwrap();
    let lease = slot.try_acquire().unwrap();
    assert!(!managed.unload_idle(&seen, UnloadReason::Idle), "in use");
    drop(lease);
    assert_eq!(managed.idle().unwrap().since, seen.since, "the clock stands still");
    assert!(!managed.unload_idle(&seen, UnloadReason::Evicted), "used since");
    let seen = managed.idle().unwrap();
    assert!(managed.unload_idle(&seen, UnloadReason::Evicted));
    assert!(!managed.unload_idle(&seen, UnloadReason::Evicted));
}
