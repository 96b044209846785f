//! The folder against everything that happens to files.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use super::format::{ENTRY, HEADER};
use super::segment::list;
use super::*;
use crate::cache::CachedItem;
use crate::cache::tiers::key::TierKey;
use crate::cache::tiers::record::{ValueFormat, encode};
use crate::cache::tiers::tier::Tier as _;
use crate::output::{Item, View};

fn settings(folder: &Path) -> DiskSettings {
    DiskSettings {
        folder: folder.join("cache"),
        max_bytes: 1 << 30,
        format: ValueFormat::Float32,
        time_to_live: None,
    }
}

fn key(number: usize) -> TierKey {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key[8..].copy_from_slice(&number.to_le_bytes());
    TierKey(key)
}

fn item(number: usize, width: usize) -> CachedItem {
    CachedItem::new(Item::Dense(vec![number as f32; width].into()), number as u32)
}

fn rows(numbers: std::ops::Range<usize>, width: usize) -> Vec<(TierKey, CachedItem)> {
    numbers.map(|number| (key(number), item(number, width))).collect()
}

fn held(disk: &Disk, numbers: std::ops::Range<usize>) -> usize {
    let keys: Vec<_> = numbers.clone().map(key).collect();
    let found = disk.get(&keys);
    for (number, found) in numbers.zip(&found) {
        let Some(found) = found else { continue };
        let View::Dense(values) = found.item().view() else { panic!("no vector") };
        assert!(values.iter().all(|value| *value == number as f32) && found.tokens() == number as u32);
    }
    found.iter().flatten().count()
}

#[test]
fn what_is_stored_is_there_after_a_restart_and_nothing_is_made_before() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(settings(folder.path()));
    assert_eq!(held(&disk, 0..10), 0);
    assert!(!folder.path().join("cache").exists());
    disk.put(&rows(0..10, 4));
    disk.put(&rows(5..12, 4)); // five are there already
    assert_eq!(held(&disk, 0..12), 12);
    assert_eq!(disk.counts().writes.load(std::sync::atomic::Ordering::Relaxed), 12);
    drop(disk);
    let again = Disk::new(settings(folder.path()));
    assert_eq!(held(&again, 0..20), 12);
    assert_eq!(again.verify().unwrap(), Verified { whole: 12, damaged: 0 });
    assert_eq!(again.size().0, Some(12));
    again.clear();
    assert_eq!((held(&again, 0..12), list(&folder.path().join("cache")).unwrap().len()), (0, 0));
}

#[test]
fn lookups_and_results_read_ahead_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let counts = |disk: &Disk| {
        let counts = disk.counts();
        [&counts.hits, &counts.misses, &counts.read_ahead]
            .map(|count| count.load(std::sync::atomic::Ordering::Relaxed))
    };
    let disk = Disk::new(settings(folder.path()));
    assert_eq!((held(&disk, 0..3), counts(&disk)), (0, [0, 3, 0]));
    disk.put(&rows(0..10, 4));
    assert_eq!((held(&disk, 6..14), counts(&disk)), (4, [4, 7, 0]));
    let again = Disk::new(settings(folder.path()));
    assert_eq!((again.read_ahead(4), counts(&again)), (4, [0, 0, 4]));
    assert_eq!((held(&again, 8..12), counts(&again)), (2, [2, 2, 4]));
}

#[test]
fn what_was_stored_last_is_read_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(settings(folder.path()));
    disk.put(&rows(0..10, 4));
    drop(disk);
    let disk = Disk::new(settings(folder.path()));
    assert_eq!(disk.read_ahead(4), 4);
    // What is in memory does not need the files.
    for file in fs::read_dir(folder.path().join("cache")).unwrap() {
        fs::File::options().write(true).open(file.unwrap().path()).unwrap().set_len(0).unwrap();
    }
    assert_eq!((held(&disk, 0..6), held(&disk, 6..10)), (0, 4));
    // Each is used once: then the memory above has it.
    assert_eq!(held(&disk, 6..10), 0);
    assert_eq!(Disk::new(settings(folder.path())).read_ahead(4), 0);
}

#[test]
fn what_was_read_ahead_expires_too() {
    let attempt = |_| {
        let folder = tempfile::tempdir().unwrap();
        Disk::new(settings(folder.path())).put(&rows(0..1, 4));
        let short = DiskSettings { time_to_live: Some(Duration::from_secs(1)), ..settings(folder.path()) };
        let disk = Disk::new(short);
        // On a machine that stands still it is too old already.
        (disk.read_ahead(1) == 1).then_some((folder, disk))
    };
    let (_folder, disk) = (0..20).find_map(attempt).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(held(&disk, 0..1), 0);
}

#[test]
fn a_result_that_was_too_old_is_found_again_in_the_same_segment() {
    let folder = tempfile::tempdir().unwrap();
    let short = DiskSettings { time_to_live: Some(Duration::from_secs(1)), ..settings(folder.path()) };
    let disk = Disk::new(short);
    disk.put(&rows(0..1, 4));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(held(&disk, 0..1), 0);
    // On a machine that stands still it is too old already.
    let found = (0..20).any(|_| {
        disk.put(&rows(0..1, 4));
        held(&disk, 0..1) == 1
    });
    assert!(found, "the younger of two results counts");
}

#[test]
fn a_result_of_the_future_is_too_old_where_results_expire() {
    let folder = tempfile::tempdir().unwrap();
    let an_hour = DiskSettings { time_to_live: Some(Duration::from_secs(3600)), ..settings(folder.path()) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32;
    // The clock was set back after the second one; another machine's is a little ahead for the first.
    let stored = [now + 20, now + 7200];
    let values = stored
        .iter()
        .enumerate()
        .map(|(number, at)| (key(number), encode(&item(number, 4), ValueFormat::Float32).unwrap(), *at));
    assert_eq!(Disk::new(an_hour.clone()).append(values).unwrap(), 2);
    let found = Disk::new(an_hour).get(&[key(0), key(1)]);
    assert_eq!(found, [Some(item(0, 4)), None]);
    assert_eq!(held(&Disk::new(settings(folder.path())), 0..2), 2, "nothing expires");
}

#[test]
fn no_flipped_bit_and_no_cut_gives_a_wrong_value() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::new(settings(folder.path()));
    disk.put(&rows(0..3, 2));
    let cache = folder.path().join("cache");
    let id = list(&cache).unwrap().pop().unwrap();
    for ending in ["key", "vec"] {
        let path = cache.join(format!("{id}.{ending}"));
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, damaged).unwrap();
            // `held` compares the values. At most one row, or the whole segment, is lost.
            let left = held(&Disk::new(settings(folder.path())), 0..3);
            assert!(left == 2 || (bit / 8 < 16 && (left == 0 || left == 3)), "{ending}, bit {bit}: {left}");
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(held(&Disk::new(settings(folder.path())), 0..3) < 3, "{ending} cut to {length}");
        }
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(held(&Disk::new(settings(folder.path())), 0..3), 3);
}

#[test]
fn files_of_another_version_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    Disk::new(settings(folder.path())).put(&rows(0..3, 2));
    let cache = folder.path().join("cache");
    let id = list(&cache).unwrap().pop().unwrap();
    for ending in ["key", "vec"] {
        let path = cache.join(format!("{id}.{ending}"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] += 1;
        fs::write(path, bytes).unwrap();
    }
    let disk = Disk::new(settings(folder.path()));
    assert_eq!(held(&disk, 0..3), 0);
    disk.put(&rows(0..3, 2));
    assert_eq!(held(&disk, 0..3), 3);
    assert_eq!(list(&cache).unwrap().len(), 2);
}

#[test]
fn the_bound_is_kept_and_what_is_asked_for_stays() {
    let folder = tempfile::tempdir().unwrap();
    let max_bytes = 2 << 20;
    let disk = Disk::new(DiskSettings { max_bytes, ..settings(folder.path()) });
    // 1.1 kB each: five times the bound.
    for part in 0..100 {
        disk.put(&rows(part * 100..(part + 1) * 100, 256));
        assert_eq!(held(&disk, 0..50), 50, "part {part}");
        let files = fs::read_dir(folder.path().join("cache")).unwrap();
        let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes <= max_bytes + (256 << 10), "{bytes}");
    }
    assert!(held(&disk, 9_900..10_000) == 100 && held(&disk, 100..2000) < 100);
}

#[test]
fn a_clock_that_jumps_costs_no_result_and_no_bound() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let bounded = DiskSettings { max_bytes: 1 << 20, ..settings(folder.path()) };
    // Segments of the future and of 1970, whatever the clock shows now.
    for (number, id) in ["99999999999999999999-1-0", "00000000000000000001-1-0"].into_iter().enumerate() {
        Disk::new(bounded.clone()).put(&rows(number * 10..number * 10 + 10, 64));
        let own = list(&cache).unwrap().into_iter().find(|own| !own.ends_with("-1-0")).unwrap();
        for ending in ["vec", "key"] {
            fs::rename(cache.join(format!("{own}.{ending}")), cache.join(format!("{id}.{ending}"))).unwrap();
        }
    }
    let disk = Disk::new(DiskSettings { time_to_live: Some(Duration::from_secs(3600)), ..bounded });
    disk.put(&rows(20..30, 64));
    assert_eq!(held(&disk, 0..30), 30);
    for part in 1..60 {
        disk.put(&rows(part * 100..(part + 1) * 100, 64));
        assert_eq!(held(&disk, part * 100..(part + 1) * 100), 100);
    }
    let files = fs::read_dir(&cache).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= (1 << 20) + (256 << 10), "{bytes}");
}

#[test]
fn many_small_segments_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..100 {
        Disk::new(settings(folder.path())).put(&rows(number..number + 1, 4));
    }
    assert!(list(&folder.path().join("cache")).unwrap().len() <= 66);
    assert_eq!(held(&Disk::new(settings(folder.path())), 0..100), 100);
}

#[test]
fn formats_are_mixed_and_old_results_expire() {
    let folder = tempfile::tempdir().unwrap();
    for (number, format) in
        [ValueFormat::Float32, ValueFormat::Float16, ValueFormat::Int8].into_iter().enumerate()
    {
        Disk::new(DiskSettings { format, ..settings(folder.path()) }).put(&rows(number..number + 1, 8));
    }
    let disk = Disk::new(settings(folder.path()));
    assert_eq!(held(&disk, 0..3), 3);
    let short = DiskSettings { time_to_live: Some(Duration::from_secs(1)), ..settings(folder.path()) };
    let disk = Disk::new(short);
    let until = Instant::now() + Duration::from_secs(60);
    while held(&disk, 0..3) > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(held(&disk, 0..3), 0);
    let stored_anew = || {
        disk.put(&rows(0..1, 8));
        held(&disk, 0..1) == 1
    };
    // On a machine that stands still for a second it is too old again.
    assert!((0..10).any(|_| stored_anew()));
}

#[test]
fn two_users_of_one_folder_see_each_other_and_removals() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Disk::new(settings(folder.path())), Disk::new(settings(folder.path())));
    assert_eq!(held(&other, 0..5), 0);
    one.put(&rows(0..5, 4));
    other.put(&rows(5..10, 4));
    let until = Instant::now() + Duration::from_secs(60);
    while held(&other, 0..10) + held(&one, 0..10) < 20 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((held(&one, 0..10), held(&other, 0..10)), (10, 10));
    one.clear();
    // Its segment was removed under it: what it stores from now on is in a new one.
    other.put(&rows(10..12, 4));
    assert_eq!(held(&Disk::new(settings(folder.path())), 0..12), 2);
}

#[test]
fn a_folder_that_cannot_be_listed_is_neither_empty_nor_whole() {
    let folder = tempfile::tempdir().unwrap();
    // A file in its place: root cannot list it either.
    fs::write(folder.path().join("cache"), b"no folder").unwrap();
    let disk = Disk::new(settings(folder.path()));
    assert!(disk.verify().is_err() && disk.export(&folder.path().join("all")).is_err());
    let failed = disk.clear();
    assert!(failed.len() == 1 && failed[0].0.ends_with("cache"), "{failed:?}");
    assert_eq!(fs::read(folder.path().join("cache")).unwrap(), b"no folder");
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_switches_writing_off_and_is_still_read() {
    let folder = tempfile::tempdir().unwrap();
    Disk::new(settings(folder.path())).put(&rows(0..3, 4));
    // A file where the folder of a new user should be: fails for every user, root included.
    let blocked = tempfile::tempdir().unwrap();
    fs::write(blocked.path().join("cache"), "a file").unwrap();
    let disk = Disk::new(settings(blocked.path()));
    assert_eq!(held(&disk, 0..3), 0);
    disk.put(&rows(0..3, 4));
    assert!(!disk.is_working());
    assert_eq!(held(&disk, 0..3), 0);
    assert_eq!(held(&Disk::new(settings(folder.path())), 0..3), 3);
}

#[test]
fn an_export_is_imported_elsewhere_and_a_damaged_one_is_refused() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = Disk::new(settings(from.path()));
    disk.put(&rows(0..600, 4));
    let file = from.path().join("export");
    assert_eq!(disk.export(&file).unwrap(), 600);
    let other = Disk::new(settings(to.path()));
    other.put(&rows(0..10, 4));
    assert_eq!(other.import(&file).unwrap(), 590);
    assert_eq!(held(&other, 0..600), 600);
    let mut bytes = fs::read(&file).unwrap();
    // Cut anywhere, between two results too.
    let one = (bytes.len() - HEADER - ENTRY) / 600;
    for cut in [7, HEADER, HEADER + one, HEADER + 2 * one + 5, bytes.len() - ENTRY, bytes.len() - 1] {
        fs::write(&file, &bytes[..cut]).unwrap();
        let Err(ImportError::File(error)) = other.import(&file) else {
            panic!("{cut} of {} bytes", bytes.len())
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut}");
    }
    fs::write(&file, [&bytes[..], &bytes[..1]].concat()).unwrap();
    let damaged = |disk: &Disk, what: &str| {
        let Err(ImportError::File(error)) = disk.import(&file) else { panic!("it is not damaged") };
        assert!(error.kind() == io::ErrorKind::InvalidData && error.to_string().contains(what), "{error}");
    };
    damaged(&other, "behind its end");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    damaged(&other, "is damaged");
    // A folder that cannot be made is no fault of the file.
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let nowhere = Disk::new(settings(&file.join("cache")));
    assert!(matches!(nowhere.import(&file), Err(ImportError::Folder(_))));
}

#[test]
fn what_a_killed_writer_leaves_is_read_as_far_as_it_is_whole() {
    // Every prefix of what a writer has written, as a kill leaves it: the values first, then the entries.
    let folder = tempfile::tempdir().unwrap();
    Disk::new(settings(folder.path())).put(&rows(0..2, 2));
    let cache = folder.path().join("cache");
    let id = list(&cache).unwrap().pop().unwrap();
    let (keys, values) = (cache.join(format!("{id}.key")), cache.join(format!("{id}.vec")));
    let (all_keys, all_values) = (fs::read(&keys).unwrap(), fs::read(&values).unwrap());
    let mut seen = HashMap::new();
    for (cut_keys, cut_values) in (0..all_values.len())
        .map(|end| (16.min(all_keys.len()), end))
        .chain((0..=all_keys.len()).map(|end| (end, all_values.len())))
    {
        fs::write(&keys, &all_keys[..cut_keys]).unwrap();
        fs::write(&values, &all_values[..cut_values]).unwrap();
        let disk = Disk::new(settings(folder.path()));
        *seen.entry(held(&disk, 0..2)).or_insert(0) += 1;
    }
    assert_eq!(seen[&2], 1);
    assert_eq!(seen[&1], 40);
}
