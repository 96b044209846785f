//! Memory: aligned buffers that return to the system when dropped, arenas of weights, and the memory use of the process.

use std::alloc::{Layout, alloc_zeroed};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};

use crate::sync::Mutex;
use crate::{Error, Result};

/// Size and alignment of a huge page on x86-64, and of the usual ones elsewhere.
const HUGE_PAGE: usize = 1 << 21;

/// The size of an [`Arena`]'s mappings. It doubles each time, so that there are few mappings with little unused memory.
const CHUNKS: RangeInclusive<usize> = 64 << 20..=256 << 20;

/// Zeroed memory, aligned to a page. Dropping it returns the pages to the operating system at once, whereas an allocator
/// might keep them.
#[derive(Debug)]
pub struct Buffer {
    map: MmapMut,
    bytes: usize,
}

/// Plain numbers: any bytes are a valid value, so memory can be viewed as a slice of them.
pub trait PlainNumber: Copy + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

impl PlainNumber for u8 {}
impl PlainNumber for u16 {}
impl PlainNumber for u32 {}
impl PlainNumber for f32 {}
impl PlainNumber for f64 {}

impl Buffer {
    /// `bytes` bytes of zeros. Pages are taken from the system when first written.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system cannot map the memory.
    pub fn zeroed(bytes: usize) -> Result<Self> {
        let map = anonymous(bytes)?;
        // A kernel without huge pages refuses the advice, which only affects speed.
        #[cfg(target_os = "linux")]
        if bytes >= HUGE_PAGE {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, bytes })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the size is zero.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The memory as numbers.
    pub fn as_slice<T: PlainNumber>(&self) -> &[T] {
        // SAFETY: the map has at least `bytes` initialized bytes, is aligned to a page and so for every `PlainNumber` type,
        // and outlives the borrow. Every bit pattern is a valid `PlainNumber` value.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.bytes / size_of::<T>()) }
    }

    /// The memory as numbers to write.
    pub fn as_mut_slice<T: PlainNumber>(&mut self) -> &mut [T] {
        // SAFETY: the map has at least `bytes` initialized bytes, is aligned to a page and so for every `PlainNumber` type,
        // and outlives the borrow, which is exclusive. Every bit pattern is a valid `PlainNumber` value.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.bytes / size_of::<T>()) }
    }
}

/// `len` zeros. Pages of a large one are taken from the system when first written.
///
/// # Errors
/// [`Error::OutOfMemory`] if the allocator fails.
pub(crate) fn zeroed<T: PlainNumber>(len: usize) -> Result<Vec<T>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let layout = Layout::array::<T>(len).map_err(|_| refused::<T>(len))?;
    // SAFETY: the size of the layout is not zero: `len > 0`, and no `PlainNumber` type has size zero.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return Err(refused::<T>(len));
    }
    // SAFETY: the global allocator allocated `start` with the layout of `len` values of `T`. All of them are initialized,
    // because zero is a valid `PlainNumber` value.
    Ok(unsafe { Vec::from_raw_parts(start.cast(), len, len) })
}

/// Reserves capacity for exactly `more` additional values.
///
/// # Errors
/// [`Error::OutOfMemory`]; the values are then unchanged.
pub(crate) fn reserve<T>(values: &mut Vec<T>, more: usize) -> Result<()> {
    values.try_reserve_exact(more).map_err(|_| refused::<T>(more))
}

/// Appends a value to a list whose length depends on input.
///
/// # Errors
/// As [`reserve`].
pub(crate) fn push<T>(values: &mut Vec<T>, value: T) -> Result<()> {
    values.try_reserve(1).map_err(|_| refused::<T>(values.len() + 1))?;
    values.push(value);
    Ok(())
}

/// Concatenates texts.
///
/// # Errors
/// As [`reserve`].
pub(crate) fn joined(texts: &[&str]) -> Result<String> {
    let bytes = texts.iter().map(|text| text.len()).sum();
    let mut whole = String::new();
    whole.try_reserve_exact(bytes).map_err(|_| refused::<u8>(bytes))?;
    texts.iter().for_each(|text| whole.push_str(text));
    Ok(whole)
}

/// The error of an allocator that refused memory for `len` values.
fn refused<T>(len: usize) -> Error {
    Error::OutOfMemory {
        what: "the allocator refused".into(),
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
    }
}

/// Pages of zeros.
fn anonymous(bytes: usize) -> Result<MmapMut> {
    MmapMut::map_anon(bytes.max(1))
        .map_err(|error| Error::OutOfMemory { what: error.to_string().into(), bytes: bytes as u64 })
}

/// The memory of one model's weights: a few large mappings, each with many matrices. Separate mappings would mostly have
/// small pages, and reading a large model through small pages spends up to a third of the time on address translation.
#[derive(Debug, Default)]
pub struct Arena {
    last: Mutex<Option<ArenaChunk>>,
}

/// A mapping, and how much of it is taken.
#[derive(Debug)]
struct ArenaChunk {
    map: Arc<MmapRaw>,
    taken: usize,
}

/// An exclusive part of an [`Arena`]. The pages return to the operating system when the last part of its mapping is
/// dropped.
#[derive(Debug)]
pub struct Piece {
    map: Arc<MmapRaw>,
    bytes: Range<usize>,
}

impl Arena {
    /// `bytes` bytes of zeros at the start of a cache line. Pages are taken from the system when first written.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system cannot map the memory.
    pub fn take(&self, bytes: usize) -> Result<Piece> {
        let mut last = self.last.lock();
        let mut chunk = match last.take() {
            Some(chunk) if chunk.map.len() - chunk.taken >= bytes => chunk,
            full => {
                let twice = full.as_ref().map_or(0, |full| 2 * full.map.len());
                let chunk = ArenaChunk::new(bytes.max(twice.clamp(*CHUNKS.start(), *CHUNKS.end())))?;
                // A small model loads faster into small pages; `settle` advises huge pages later.
                if full.is_some() || bytes > *CHUNKS.start() {
                    chunk.advise_huge_pages();
                }
                chunk
            }
        };
        let start = chunk.taken;
        chunk.taken = (start + bytes).next_multiple_of(64).min(chunk.map.len());
        let map = Arc::clone(&chunk.map);
        *last = Some(chunk);
        Ok(Piece { map, bytes: start..start + bytes })
    }
}

impl ArenaChunk {
    /// A mapping with `bytes` bytes from the first huge page boundary on.
    fn new(bytes: usize) -> Result<Self> {
        let map = MmapRaw::from(anonymous(bytes + HUGE_PAGE)?);
        let taken = map.as_ptr().align_offset(HUGE_PAGE);
        Ok(Self { map: Arc::new(map), taken })
    }

    fn advise_huge_pages(&self) {
        // A kernel without huge pages refuses the advice, which only affects speed.
        #[cfg(target_os = "linux")]
        let _ = self.map.advise(memmap2::Advice::HugePage);
    }
}

impl Piece {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the size is zero.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Marks the part as written: the system may move it into huge pages in the background.
    pub fn settle(&self) {
        #[cfg(target_os = "linux")]
        if !self.is_empty() {
            let _ = self.map.advise_range(memmap2::Advice::HugePage, self.bytes.start, self.len());
        }
    }

    /// The memory as numbers.
    pub fn as_slice<T: PlainNumber>(&self) -> &[T] {
        // SAFETY: `take` returns a part inside its mapping, which `self` keeps alive. The part starts at a cache line, so it
        // is aligned for every `PlainNumber` type, and overlaps no other part. Its bytes are initialized, and every bit
        // pattern is a valid `PlainNumber` value.
        unsafe {
            let start = self.map.as_ptr().add(self.bytes.start);
            std::slice::from_raw_parts(start.cast(), self.len() / size_of::<T>())
        }
    }

    /// The memory as numbers to write.
    pub fn as_mut_slice<T: PlainNumber>(&mut self) -> &mut [T] {
        // SAFETY: `take` returns a part inside its mapping, which `self` keeps alive. The part starts at a cache line, so it
        // is aligned for every `PlainNumber` type, and overlaps no other part, so the exclusive borrow of `self` is the only
        // access to it. Its bytes are initialized, and every bit pattern is a valid `PlainNumber` value.
        unsafe {
            let start = self.map.as_mut_ptr().add(self.bytes.start);
            std::slice::from_raw_parts_mut(start.cast(), self.len() / size_of::<T>())
        }
    }
}

/// The first `len` values, with unspecified contents, which callers overwrite. Grows the list if necessary, and frees most
/// of a large one that is no longer needed.
pub(crate) fn resized<T: Clone + Default>(values: &mut Vec<T>, len: usize) -> &mut [T] {
    const WORTH_KEEPING: usize = 32 << 20;
    if size_of_val(&values[..]) > WORTH_KEEPING && len < values.len() / 8 {
        *values = Vec::new();
    }
    if values.len() < len {
        values.resize(len, T::default());
    }
    &mut values[..len]
}

/// [`resized`], for a length that may exceed the memory.
///
/// # Errors
/// [`Error::OutOfMemory`]; the values are then unchanged.
pub(crate) fn try_resized<T: Clone + Default>(values: &mut Vec<T>, len: usize) -> Result<&mut [T]> {
    let more = len.saturating_sub(values.len());
    reserve(values, more)?;
    Ok(resized(values, len))
}

/// Returns free memory of the allocator to the operating system (glibc only).
pub fn trim() {
    // SAFETY: `malloc_trim` takes no pointer, and is thread-safe.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Resident memory of this process in bytes; 0 if the system does not report it.
pub fn resident_bytes() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let pages = std::fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
            .unwrap_or(0);
        // SAFETY: `sysconf` takes a number, and reads a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        pages * u64::try_from(page).unwrap_or(4096)
    }
    #[cfg(not(target_os = "linux"))]
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serializes tests that measure the memory of the process.
    static MEASURING: crate::sync::Mutex<()> = crate::sync::Mutex::new(());

    #[test]
    fn a_buffer_is_zeroed_typed_and_writable() {
        let mut buffer = Buffer::zeroed(10).unwrap();
        assert_eq!(buffer.as_slice::<f32>(), [0.0; 2]);
        buffer.as_mut_slice::<u16>().copy_from_slice(&[1, 2, 3, 4, 5]);
        assert_eq!(buffer.as_slice::<u32>(), [0x2_0001, 0x4_0003]);
        assert!(Buffer::zeroed(0).unwrap().as_slice::<u8>().is_empty());
    }

    #[test]
    fn memory_that_no_machine_has_is_an_error() {
        let refused = Buffer::zeroed(1 << 60).map(|_| ());
        assert!(matches!(refused, Err(Error::OutOfMemory { bytes, .. }) if bytes == 1 << 60), "{refused:?}");
        let mut values = vec![1.0f32];
        let refused = try_resized(&mut values, 1 << 60).map(|_| ());
        assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
        assert_eq!(values, [1.0]);
        for len in [1 << 60, usize::MAX] {
            assert!(matches!(zeroed::<f32>(len), Err(Error::OutOfMemory { .. })), "{len}");
            let refused = reserve(&mut values, len);
            assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
        }
        assert_eq!((zeroed(3), zeroed::<u8>(0)), (Ok(vec![0_u16; 3]), Ok(vec![])));
        assert_eq!(joined(&["a", "", "bc"]).as_deref(), Ok("abc"));
        assert_eq!(try_resized(&mut values, 3).map(|values| values.len()), Ok(3));
    }

    #[test]
    fn pieces_of_an_arena_are_zeroed_aligned_and_apart() {
        let arena = Arena::default();
        // Small pieces share a mapping, and large ones have their own.
        let sizes = [0, 1, 63, 64, 65, 4096, 5 << 20, 70 << 20, 7, 300 << 20, 1, 33 << 20];
        let mut pieces: Vec<Piece> = sizes.iter().map(|&bytes| arena.take(bytes).unwrap()).collect();
        drop(arena);
        for (index, piece) in pieces.iter_mut().enumerate() {
            assert_eq!((piece.len(), piece.is_empty()), (sizes[index], sizes[index] == 0));
            assert!(piece.as_slice::<u8>().as_ptr().addr().is_multiple_of(64));
            let all = piece.as_mut_slice::<u8>();
            if let [first, .., last] = all {
                assert_eq!((*first, *last), (0, 0));
                (*first, *last) = (index as u8, index as u8);
            }
            piece.settle();
        }
        for (index, piece) in pieces.iter().enumerate() {
            if let [first, .., last] = piece.as_slice::<u8>() {
                assert_eq!((*first, *last), (index as u8, index as u8));
            }
        }
        assert_eq!(pieces[4].as_slice::<f32>().len(), 16);
        let starts: Vec<usize> = pieces.iter().map(|piece| piece.map.as_ptr().addr()).collect();
        assert!(starts[..7].iter().all(|&start| start == starts[0]) && starts[7] != starts[0]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn dropped_memory_leaves_resident_memory_at_once() {
        const MIB: u64 = 1 << 20;
        let _guard = MEASURING.lock();
        let mut buffer = Buffer::zeroed(256 << 20).unwrap();
        buffer.as_mut_slice::<u8>().fill(1);
        let held = resident_bytes();
        drop(buffer);
        let left = resident_bytes();
        assert!(held > 256 * MIB && held - left > 200 * MIB, "{held} -> {left}");
        let arena = Arena::default();
        let mut piece = arena.take(256 << 20).unwrap();
        piece.as_mut_slice::<u8>().fill(1);
        let held = resident_bytes();
        drop((piece, arena));
        let left = resident_bytes();
        assert!(held - left > 200 * MIB, "{held} -> {left}");
        trim();
    }
}
