//! Tables whose memory returns to the system when they are freed.
//!
//! glibc's allocator keeps the end of each thread's heap: up to twice as much as the largest block that it has ever
//! unmapped, and `malloc_trim` leaves that too. Tables of some megabytes, freed one after the other, raise this limit and
//! then stay below it.

use std::alloc::Layout;
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator, Global};

/// Tables of at least this many bytes have a mapping of their own.
const MAPPED: usize = 64 << 10;
/// The alignment of a mapping, on every system.
const ALIGNED: usize = 4096;

/// An allocator with a mapping for each large block.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pages;

/// A list in [`Pages`].
pub(crate) type PageVec<T> = allocator_api2::vec::Vec<T, Pages>;

/// An empty list.
pub(crate) fn list<T>() -> PageVec<T> {
    PageVec::new_in(Pages)
}

/// A list of `len` equal values.
pub(crate) fn filled<T: Clone>(value: T, len: usize) -> PageVec<T> {
    let mut values = PageVec::with_capacity_in(len, Pages);
    values.resize(len, value);
    values
}

/// A list of the same values.
pub(crate) fn copied<T: Copy>(values: &[T]) -> PageVec<T> {
    let mut copy = list();
    append(&mut copy, values);
    copy
}

/// Appends `more` by one copy.
#[inline]
pub(crate) fn append<T: Copy>(values: &mut PageVec<T>, more: &[T]) {
    values.reserve(more.len());
    let len = values.len();
    // SAFETY: `reserve` made room for `more` after the `len` values, and `more` is borrowed, so it lies elsewhere. The copy
    // initializes the values that `set_len` adds.
    unsafe {
        std::ptr::copy_nonoverlapping(more.as_ptr(), values.as_mut_ptr().add(len), more.len());
        values.set_len(len + more.len());
    }
}

/// Whether a block has a mapping. Miri knows no `mremap`.
fn is_mapped(layout: Layout) -> bool {
    cfg!(all(target_os = "linux", not(miri))) && layout.size() >= MAPPED && layout.align() <= ALIGNED
}

// SAFETY: a block is either one of `Global`, which keeps the contract, or a mapping of at least the size of its layout, at
// the start of a page and so aligned for it. Which of the two it is depends on its layout alone, so every method comes to
// the same answer. A block stays until it is freed, whatever happens to the allocator, which has no state.
unsafe impl Allocator for Pages {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        if is_mapped(layout) { map(layout.size()) } else { Global.allocate(layout) }
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // New pages are zeros.
        if is_mapped(layout) { map(layout.size()) } else { Global.allocate_zeroed(layout) }
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller passes a block of this allocator with its layout, so that it is a mapping of this size, or one
        // of `Global`.
        unsafe {
            if is_mapped(layout) { unmap(block, layout.size()) } else { Global.deallocate(block, layout) }
        }
    }

    unsafe fn grow(&self, block: NonNull<u8>, old: Layout, new: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller passes a block of this allocator with its layout, and a new one that is not smaller.
        unsafe {
            match (is_mapped(old), is_mapped(new)) {
                (true, true) => remap(block, old.size(), new.size()),
                (false, false) => Global.grow(block, old, new),
                _ => self.moved(block, old, new),
            }
        }
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller passes a block of this allocator with its layout, and a new one that is not larger.
        unsafe {
            match (is_mapped(old), is_mapped(new)) {
                (true, true) => remap(block, old.size(), new.size()),
                (false, false) => Global.shrink(block, old, new),
                _ => self.moved(block, old, new),
            }
        }
    }
}

impl Pages {
    /// A new block with the contents of `block`, which is freed.
    ///
    /// # Safety
    ///
    /// - `block` is a block of this allocator with the layout `old`.
    unsafe fn moved(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let target = self.allocate(new)?;
        // SAFETY: both blocks have at least as many bytes as are copied, and the new one overlaps no other. The caller
        // promises the layout of the old one.
        unsafe {
            let bytes = old.size().min(new.size());
            std::ptr::copy_nonoverlapping(block.as_ptr(), target.cast().as_ptr(), bytes);
            self.deallocate(block, old);
        }
        Ok(target)
    }
}

/// A mapping of zeros.
#[cfg(target_os = "linux")]
fn map(bytes: usize) -> Result<NonNull<[u8]>, AllocError> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new private mapping, wherever the system has place, changes no memory that is in use.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    block(start, bytes)
}

/// Resizes a mapping, which may move.
///
/// # Safety
///
/// - `start` is a mapping of `old` bytes, which the caller owns; after success it uses the new one.
#[cfg(target_os = "linux")]
unsafe fn remap(start: NonNull<u8>, old: usize, new: usize) -> Result<NonNull<[u8]>, AllocError> {
    // SAFETY: the caller owns the mapping. Failure leaves it as it is.
    block(unsafe { libc::mremap(start.as_ptr().cast(), old, new, libc::MREMAP_MAYMOVE) }, new)
}

/// Returns a mapping to the system.
///
/// # Safety
///
/// - `start` is a mapping of `bytes` bytes, which the caller owns, and does not use any more.
#[cfg(target_os = "linux")]
unsafe fn unmap(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller owns the mapping. The system refuses only ranges that are none.
    let refused = unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
    debug_assert_eq!(refused, 0, "munmap of {bytes} bytes");
}

#[cfg(target_os = "linux")]
fn block(start: *mut libc::c_void, bytes: usize) -> Result<NonNull<[u8]>, AllocError> {
    let start =
        Some(start).filter(|&start| start != libc::MAP_FAILED).and_then(|start| NonNull::new(start.cast()));
    start.map(|start| NonNull::slice_from_raw_parts(start, bytes)).ok_or(AllocError)
}

/// Elsewhere no block [is mapped](is_mapped).
#[cfg(not(target_os = "linux"))]
fn map(_: usize) -> Result<NonNull<[u8]>, AllocError> {
    Err(AllocError)
}

/// # Safety
///
/// - None: it does nothing.
#[cfg(not(target_os = "linux"))]
unsafe fn remap(_: NonNull<u8>, _: usize, _: usize) -> Result<NonNull<[u8]>, AllocError> {
    Err(AllocError)
}

/// # Safety
///
/// - None: it does nothing.
#[cfg(not(target_os = "linux"))]
unsafe fn unmap(_: NonNull<u8>, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_values_while_it_grows_and_shrinks() {
        let mut values = PageVec::new_in(Pages);
        let value = |at: usize| (at as u32).wrapping_mul(0x9e37_79b9);
        // Past the size from which blocks are mapped, and past several of their sizes.
        let most = if cfg!(miri) { 1000 } else { 20 * MAPPED / 4 };
        for at in 0..most {
            values.push(value(at));
        }
        let right = |values: &[u32]| values.iter().enumerate().all(|(at, &found)| found == value(at));
        assert!(values.len() == most && right(&values));
        for len in [most / 2, MAPPED / 4, MAPPED / 4 - 1, 3, 0].map(|len| len.min(most)) {
            values.truncate(len);
            values.shrink_to_fit();
            assert!(values.len() == len && right(&values), "{len}");
        }
        for part in (0..most).collect::<Vec<_>>().chunks(1234) {
            append(&mut values, &part.iter().map(|&at| value(at)).collect::<Vec<_>>());
        }
        append(&mut values, &[]);
        assert!(values.len() == most && right(&values) && values.clone() == values);
        assert!(filled(7u8, 2 * MAPPED).iter().all(|&byte| byte == 7));
    }

    #[test]
    fn new_pages_are_zeros_and_memory_that_no_machine_has_is_refused() {
        for size in [MAPPED - 1, MAPPED, 3 * MAPPED + 1] {
            let layout = Layout::from_size_align(size, 64).unwrap();
            let block = Pages.allocate_zeroed(layout).unwrap();
            assert!(block.len() >= size && block.cast::<u8>().addr().get().is_multiple_of(64));
            // SAFETY: the block has `size` initialized bytes, and is freed once, with its layout.
            unsafe {
                let bytes = std::slice::from_raw_parts_mut(block.cast::<u8>().as_ptr(), size);
                assert!(bytes.iter().all(|&byte| byte == 0));
                bytes.fill(1);
                Pages.deallocate(block.cast(), layout);
            }
        }
        let mut values = filled(1u8, MAPPED);
        assert!(values.try_reserve(1 << 60).is_err() && values.len() == MAPPED && values[MAPPED - 1] == 1);
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn tables_that_a_thread_frees_leave_resident_memory_at_once() {
        use crate::compute::memory::resident_bytes;
        const MIB: usize = 1 << 20;
        let tables = || {
            // The system's allocator keeps up to twice as much from now on.
            drop(filled(1u8, 30 * MIB));
            let tables: Vec<_> = (0..50).map(|_| filled(1u8, MIB)).collect();
            let held = resident_bytes();
            drop(tables);
            (held, resident_bytes())
        };
        let (held, left) = std::thread::spawn(tables).join().unwrap();
        assert!(held > left + (30 * MIB) as u64, "{held} -> {left}");
    }
}
