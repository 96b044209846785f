//! Slots whose stay is decided by their use.

use super::*;
use crate::lifecycle::policy::{AdaptivePolicy, AdaptiveSettings, LoadReason, MemoryPressure, SlotHabits};

fn policy(world: &World) -> Arc<AdaptivePolicy> {
    let settings = AdaptiveSettings {
        usual: Duration::from_secs(600),
        price: Duration::from_secs(1200),
        longest: Duration::from_secs(14_400),
    };
    let pressure = Arc::new(MemoryPressure::default());
    Arc::new(AdaptivePolicy::new(world.clock.clone(), settings, pressure, SlotHabits::default()))
}

#[test]
fn it_never_stays_longer_than_the_longest_stay() {
    let world = World::new();
    for longest in [10, 60] {
        let longest = Duration::from_secs(longest);
        let settings = AdaptiveSettings { usual: 10 * longest, price: 20 * longest, longest };
        let mut learned = SlotHabits::default();
        let stay = |learned: &SlotHabits| {
            AdaptivePolicy::new(world.clock.clone(), settings, Arc::default(), learned.clone()).stay()
        };
        assert_eq!(stay(&learned), longest);
        (0..40).for_each(|_| learned.gaps.add(100.0));
        assert!(stay(&learned) <= longest);
    }
}

fn adaptive(world: &World, policy: &Arc<AdaptivePolicy>) -> Slot<Model> {
    let make = world.maker(MB);
    let policy = Arc::clone(policy);
    Slot::adaptive("m", SlotOptions::default(), world.context.clone(), policy, move || Ok(loaded(make())))
}

fn advance(world: &World, seconds: u64) -> usize {
    world.clock.advance(Duration::from_secs(seconds));
    world.context.reaper.clean_up()
}

/// Waits until the slot is in this state.
fn until(slot: &Slot<Model>, state: State) {
    let end = std::time::Instant::now() + HANG;
    while slot.state() != state && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(slot.state(), state);
}

#[test]
fn it_stays_as_configured_until_enough_is_known_and_as_its_use_shows_then() {
    let world = World::new();
    let policy = policy(&world);
    let slot = adaptive(&world, &policy);
    assert!(
        slot.managed().is_adaptive() && !world.slot("usual", SlotOptions::default()).managed().is_adaptive()
    );
    drop(acquire(&slot).unwrap());
    assert_eq!((advance(&world, 599), advance(&world, 1)), (0, 1));
    for gap in (0..40).map(|number| 20 + number * 7 % 40 * 5) {
        drop(acquire(&slot).unwrap());
        world.clock.advance(Duration::from_secs(gap));
    }
    let stay = policy.stay();
    assert!((Duration::from_secs(150)..Duration::from_secs(900)).contains(&stay), "{stay:?}");
    drop(acquire(&slot).unwrap());
    assert_eq!(slot.status().deadline, Some(world.clock.now() + policy.stay()));
    assert_eq!((advance(&world, stay.as_secs() - 1), advance(&world, 2)), (0, 1));
    let found = policy.explain();
    assert_eq!((found.spent.cold_starts, found.fixed.cold_starts), (2, 1));
    assert!(found.sentence().contains("costs least"));
}

#[test]
fn an_hourly_use_is_loaded_ahead_and_that_is_no_use() {
    let world = World::new();
    let policy = policy(&world);
    let slot = adaptive(&world, &policy);
    for _ in 0..12 {
        drop(acquire(&slot).unwrap());
        // A thread would have it leave in time: what it stays longer is its cost.
        advance(&world, 600);
        advance(&world, 3000);
        until(&slot, State::Absent);
    }
    drop(acquire(&slot).unwrap());
    assert_eq!(advance(&world, 20), 1, "it leaves soon after its use");
    assert!(!slot.managed().load_ahead(), "not yet");
    world.clock.advance(Duration::from_secs(3400));
    assert!(slot.managed().load_ahead());
    until(&slot, State::Ready);
    assert!(!slot.managed().load_ahead());
    assert_eq!(slot.status().leases, 0);
    let next = policy.explain();
    assert_eq!(next.ahead, (1, 0));
    world.clock.advance(Duration::from_secs(180));
    drop(acquire(&slot).unwrap());
    assert_eq!(policy.explain().ahead, (1, 1));
    // One that is not used leaves by itself, and is not loaded again in the same idle period.
    advance(&world, 20);
    world.clock.advance(Duration::from_secs(3400));
    assert!(slot.managed().load_ahead());
    until(&slot, State::Ready);
    assert_eq!(advance(&world, 3600), 1);
    assert!(!slot.managed().load_ahead());
}

#[test]
fn a_hint_loads_and_expires() {
    let world = World::new();
    let policy = policy(&world);
    let slot = adaptive(&world, &policy);
    assert!(!slot.managed().load_ahead());
    policy.expect(LoadReason::Hint, world.clock.now());
    assert_eq!(policy.next(world.clock.now()).map(|next| next.why), Some(LoadReason::Hint));
    assert!(slot.managed().load_ahead());
    until(&slot, State::Ready);
    assert_eq!((advance(&world, 59), advance(&world, 2)), (0, 1));
    policy.expect(LoadReason::Hint, world.clock.now());
    world.clock.advance(Duration::from_secs(61));
    assert!(!slot.managed().load_ahead(), "too late");
}

#[test]
fn a_load_ahead_that_finds_no_memory_is_repeated_for_a_caller_that_has_come_meanwhile() {
    let world = World::new();
    let policy = policy(&world);
    let make = world.maker(MB);
    let (started, starts) = mpsc::channel();
    let (gate, open) = mpsc::channel::<()>();
    let (started, open) = (Mutex::new(started), Mutex::new(open));
    let loader = move || {
        started.lock().send(is_loading_ahead()).unwrap();
        open.lock().recv_timeout(HANG).unwrap();
        if is_loading_ahead() {
            return Err(crate::Error::Budget { model: "m".into(), needed: 2, budget: 1, in_use: 1 });
        }
        Ok(loaded(make()))
    };
    let slot =
        Slot::adaptive("m", SlotOptions::default(), world.context.clone(), Arc::clone(&policy), loader);
    policy.expect(LoadReason::Hint, world.clock.now());
    assert!(slot.managed().load_ahead());
    assert!(starts.recv_timeout(HANG).unwrap());
    let (reports, received) = mpsc::channel();
    ask(&slot, &reports);
    gate.send(()).unwrap();
    assert!(!starts.recv_timeout(HANG).unwrap());
    gate.send(()).unwrap();
    assert_eq!(received.recv_timeout(HANG).unwrap(), Ok(1));
    // Without a caller a failure is no error of the slot.
    assert!(slot.unload());
    policy.expect(LoadReason::Hint, world.clock.now());
    assert!(slot.managed().load_ahead());
    gate.send(()).unwrap();
    until(&slot, State::Absent);
    assert_eq!(slot.status().last_error, None);
}

#[test]
fn the_reapers_thread_loads_ahead_when_all_is_quiet() {
    let world = World::with(Clock::System, ReaperSettings::default(), || {});
    let quiet = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = Arc::clone(&quiet);
    world.context.reaper.ask_before_loading(move || asked.load(Ordering::SeqCst));
    let policy = policy(&world);
    let slot = adaptive(&world, &policy);
    policy.expect(LoadReason::Hint, world.clock.now());
    world.context.reaper.look_ahead();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(slot.state(), State::Absent);
    quiet.store(true, Ordering::SeqCst);
    world.context.reaper.look_ahead();
    until(&slot, State::Ready);
}
