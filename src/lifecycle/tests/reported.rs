//! The end of a stay that is reported while a value is in use: that which applies if the uses end now.

use super::*;

/// Seconds until the reported end.
fn left(world: &World, slot: &Slot<Model>) -> Option<u64> {
    slot.status().deadline.map(|at| (at - world.clock.now()).as_secs())
}

#[test]
fn a_use_reports_its_own_keep_alive_before_it_ends() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    for own in [100, 3] {
        let mut lease = acquire(&slot).unwrap();
        assert_eq!(left(&world, &slot), Some(10));
        lease.keep_alive(seconds(own));
        assert_eq!(left(&world, &slot), Some(own));
        let other = lease.clone();
        drop(lease);
        assert_eq!(left(&world, &slot), Some(own));
        drop(other);
        assert_eq!(left(&world, &slot), Some(own), "nothing changes at the end");
    }
    // The next use is the slot's own again.
    let mut lease = acquire(&slot).unwrap();
    assert_eq!(left(&world, &slot), Some(10));
    lease.keep_alive(KeepAlive::Forever);
    assert_eq!(left(&world, &slot), None);
    drop(lease);
    assert_eq!((left(&world, &slot), slot.status().leases), (None, 0));
}

#[test]
fn of_overlapping_uses_the_longest_is_reported() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    let (mut short, mut long, plain) =
        (acquire(&slot).unwrap(), acquire(&slot).unwrap(), acquire(&slot).unwrap());
    short.keep_alive(seconds(3));
    assert_eq!(left(&world, &slot), Some(10), "of those without one of their own");
    drop(plain);
    assert_eq!(left(&world, &slot), Some(10), "of an ended use");
    long.keep_alive(seconds(100));
    assert_eq!(left(&world, &slot), Some(100));
    drop(long);
    assert_eq!(left(&world, &slot), Some(100));
    drop(short);
    assert_eq!(left(&world, &slot), Some(100));
    drop(slot.try_acquire());
    assert_eq!(left(&world, &slot), Some(10));
}

#[test]
fn leases_of_a_value_that_has_left_report_nothing() {
    let world = World::new();
    let slot = world.slot("m", keep(seconds(10)));
    let mut old = acquire(&slot).unwrap();
    assert!(slot.unload());
    let new = acquire(&slot).unwrap();
    old.keep_alive(seconds(100));
    let other = old.clone();
    assert_eq!(left(&world, &slot), Some(10));
    drop((old, other));
    assert_eq!((left(&world, &slot), slot.status().leases), (Some(10), 1));
    drop(new);
    assert_eq!(left(&world, &slot), Some(10));
}
