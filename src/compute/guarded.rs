//! Memory that ends at an inaccessible page: an access past its end crashes the test.

use std::ops::{Deref, DerefMut};

use super::memory::PlainNumber;

/// A copy of some values whose last byte lies right before an inaccessible page.
pub(crate) struct Guarded<T: PlainNumber> {
    start: *mut T,
    length: usize,
    map: *mut libc::c_void,
    mapped: usize,
}

impl<T: PlainNumber> Guarded<T> {
    pub(crate) fn new(values: &[T]) -> Self {
        // SAFETY: `sysconf` reads a constant. `mmap` makes a new mapping of `usable + page` bytes, whose last page becomes
        // inaccessible. `bytes <= usable`, so the values fit in front of it, aligned because a page boundary is aligned and
        // `bytes` is a multiple of the size of `T`.
        unsafe {
            let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap();
            let bytes = size_of_val(values);
            let usable = bytes.next_multiple_of(page);
            let mapped = usable + page;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map =
                libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(map.byte_add(usable), page, libc::PROT_NONE), 0);
            let start = map.byte_add(usable - bytes).cast::<T>();
            start.copy_from_nonoverlapping(values.as_ptr(), values.len());
            Self { start, length: values.len(), map, mapped }
        }
    }
}

impl<T: PlainNumber> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `new` copied `length` values there, aligned for `T`, and the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl<T: PlainNumber> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `new` copied `length` values there, aligned for `T`; the mapping lives as long as `self`, which is borrowed
        // mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.length) }
    }
}

impl<T: PlainNumber> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: `new` made the mapping, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.map, self.mapped) };
    }
}
