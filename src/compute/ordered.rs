//! A list that several threads make, in its order.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::threads::Threads;
use crate::sync::Mutex;
use crate::{Error, Result};

/// What [`map_in_order`] does for each part.
pub(crate) type MakePart<'a, T> =
    &'a (dyn Fn(Range<usize>, &mut dyn FnMut() -> Result<()>) -> Result<Vec<T>> + Sync);

/// The results of `make` for all of `items`, in their order. The pool's threads make parts of about `size` each, in the
/// background; `weight` is the size of an item. With one thread, or too little for two, there is one part.
///
/// The check that `make` gets fails when the part is no longer needed.
///
/// # Errors
/// That of the first part that fails: the one that a single thread would have met first.
pub(crate) fn map_in_order<T: Send>(
    threads: &Threads,
    items: usize,
    size: usize,
    weight: &dyn Fn(usize) -> usize,
    make: MakePart<'_, T>,
) -> Result<Vec<T>> {
    let parts = if threads.count() == 1 { Vec::new() } else { parts(items, size, weight) };
    if parts.len() <= 1 {
        return make(0..items, &mut || Ok(()));
    }
    // A part before this one has failed.
    let failed = AtomicUsize::new(usize::MAX);
    let made: Vec<Mutex<Option<Result<Vec<T>>>>> = parts.iter().map(|_| Mutex::new(None)).collect();
    threads.run_in_background(parts.len(), &|part| {
        let mut needed = || match failed.load(Ordering::Relaxed) < part {
            true => Err(Error::Cancelled),
            false => Ok(()),
        };
        let result = needed().and_then(|()| make(parts[part].clone(), &mut needed));
        if result.is_err() {
            failed.fetch_min(part, Ordering::Relaxed);
        }
        *made[part].lock() = Some(result);
    })?;
    let mut all = Vec::with_capacity(items);
    for part in made {
        // Every part has a result unless one has panicked, which `run_in_background` reports.
        all.append(&mut part.into_inner().unwrap_or(Err(Error::Cancelled))?);
    }
    Ok(all)
}

/// Neighboring items of at least `size` together; fewer at the end.
fn parts(items: usize, size: usize, weight: &dyn Fn(usize) -> usize) -> Vec<Range<usize>> {
    let (mut parts, mut start, mut sum) = (Vec::new(), 0, 0);
    for item in 0..items {
        sum += weight(item);
        if sum >= size {
            parts.push(start..item + 1);
            (start, sum) = (item + 1, 0);
        }
    }
    if start < items {
        parts.push(start..items);
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn refused(item: usize) -> Error {
        Error::Input(format!("item {item}"))
    }

    #[test]
    fn parts_cover_all_items_once() {
        let weights = [3, 0, 0, 9, 1, 1, 1, 40, 2];
        for size in 1..60 {
            let found = parts(weights.len(), size, &|item| weights[item]);
            assert!(found.iter().all(|part| !part.is_empty()));
            assert_eq!(
                found.into_iter().flatten().collect::<Vec<_>>(),
                (0..weights.len()).collect::<Vec<_>>()
            );
        }
        assert_eq!(parts(9, 10, &|item| weights[item]), [0..4, 4..8, 8..9]);
        assert!(parts(0, 10, &|_| 1).is_empty());
    }

    #[test]
    fn results_come_in_order_whatever_part_ends_first() {
        let threads = Threads::of(3);
        // Three threads begin a part each; one of them ends after all other parts have begun.
        for last in 0..3 {
            let (first, others) = (Barrier::new(3), AtomicUsize::new(0));
            let made = map_in_order(&threads, 30, 1, &|_| 1, &|part, _| {
                if part.start < 3 {
                    first.wait();
                } else {
                    others.fetch_add(1, Ordering::Relaxed);
                }
                while part.start == last && others.load(Ordering::Relaxed) < 27 {
                    thread::yield_now();
                }
                Ok(part.collect())
            });
            assert_eq!(made, Ok((0..30).collect::<Vec<_>>()));
        }
    }

    #[test]
    fn the_first_error_by_number_counts_even_if_a_later_one_comes_first() {
        let threads = Threads::of(2);
        let (begun, made) = (Barrier::new(2), AtomicUsize::new(0));
        let result = map_in_order(&threads, 40, 1, &|_| 1, &|part, _| {
            made.fetch_add(1, Ordering::Relaxed);
            begun.wait();
            if part.start == 0 {
                thread::sleep(Duration::from_millis(20));
            }
            Err::<Vec<usize>, _>(refused(part.start))
        });
        assert_eq!(result, Err(refused(0)));
        assert_eq!(made.into_inner(), 2, "parts after a failure are not needed");
    }

    #[test]
    fn a_part_after_a_failure_ends_at_its_next_check() {
        let threads = Threads::of(2);
        let begun = Barrier::new(2);
        let result = map_in_order(&threads, 2, 1, &|_| 1, &|part, needed| {
            begun.wait();
            if part.start == 0 {
                return Err::<Vec<usize>, _>(refused(0));
            }
            loop {
                needed()?;
                thread::yield_now();
            }
        });
        assert_eq!(result, Err(refused(0)));
    }

    #[test]
    fn racing_calls_have_the_results_of_one_thread() {
        let (one, many) = (Threads::of(1), Threads::of(4));
        let make = |wrong: usize| {
            move |part: Range<usize>, needed: &mut dyn FnMut() -> Result<()>| {
                part.map(|item| {
                    needed()?;
                    if item % wrong == wrong - 1 { Err(refused(item)) } else { Ok(item * item) }
                })
                .collect::<Result<Vec<_>>>()
            }
        };
        thread::scope(|scope| {
            for call in 0..8 {
                let (one, many) = (&one, &many);
                scope.spawn(move || {
                    for round in 0..200 {
                        let wrong = 1 + (call * 7 + round * 13) % 400;
                        let made = |threads| map_in_order(threads, 300, 5, &|item| item % 4, &make(wrong));
                        assert_eq!(made(many), made(one));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_is_an_error() {
        let threads = Threads::of(2);
        let made = map_in_order(&threads, 9, 1, &|_| 1, &|part, _| {
            assert!(part.start != 4, "part 4");
            Ok(vec![()])
        });
        assert!(matches!(made, Err(Error::Internal { reason, .. }) if reason == "part 4"));
    }
}
