//! Arrow's C structures, made of what the bytes say, and their `release`, which counts.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{self, NonNull};

use super::{Described, Handed};

#[repr(C)]
pub(super) struct Schema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *const c_void,
    dictionary: *const Schema,
    release: Option<unsafe extern "C" fn(*mut Schema)>,
    private_data: *mut c_void,
}

#[repr(C)]
pub(super) struct Array {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *const *const u8,
    children: *const c_void,
    dictionary: *const Array,
    pub(super) release: Option<unsafe extern "C" fn(*mut Array)>,
    private_data: *mut c_void,
}

#[repr(C)]
pub(super) struct Stream {
    pub(super) get_schema: Option<unsafe extern "C" fn(*mut Stream, *mut Schema) -> i32>,
    pub(super) get_next: Option<unsafe extern "C" fn(*mut Stream, *mut Array) -> i32>,
    pub(super) get_last_error: Option<unsafe extern "C" fn(*mut Stream) -> *const c_char>,
    pub(super) release: Option<unsafe extern "C" fn(*mut Stream)>,
    pub(super) private_data: *mut c_void,
}

/// What is behind the `private_data` of a structure. It stays until the end, so that a second release is seen; what the
/// structure's pointers lead to is freed by the first one.
#[derive(Default)]
pub(super) struct Owned {
    releases: usize,
    memory: Vec<Vec<u128>>,
    list: Vec<*const u8>,
    /// A dictionary's, as a pointer, since others point there too.
    schema: Option<NonNull<Schema>>,
    array: Option<NonNull<Array>>,
    below: Vec<*mut Owned>,
}

impl Owned {
    fn free(&mut self) {
        self.memory.clear();
        self.list = Vec::new();
        for &below in &self.below {
            // SAFETY: made by `Box::into_raw`, and freed by `drop` alone.
            unsafe { (*below).free() };
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: both were leaked boxes, and are in these places alone.
        unsafe {
            drop(self.schema.take().map(|schema| Box::from_raw(schema.as_ptr())));
            drop(self.array.take().map(|array| Box::from_raw(array.as_ptr())));
        }
        for below in self.below.drain(..) {
            // SAFETY: made by `Box::into_raw`, and in this list alone.
            let below = unsafe { Box::from_raw(below) };
            assert_eq!(below.releases, 0, "a dictionary is released by its array");
        }
    }
}

unsafe extern "C" fn release_schema(schema: *mut Schema) {
    // SAFETY: a consumer calls this with a schema of `schema_of`, whose data lives until the end.
    unsafe {
        (*(*schema).private_data.cast::<Owned>()).releases += 1;
        (*schema).release = None;
    }
}

unsafe extern "C" fn release_array(array: *mut Array) {
    // SAFETY: a consumer calls this with an array of `array_of`, whose data lives until the end.
    unsafe {
        let owned = (*array).private_data.cast::<Owned>();
        (*owned).releases += 1;
        (*owned).free();
        (*array).release = None;
    }
}

pub(super) fn schema_of(described: &Described) -> (Schema, *mut Owned) {
    let owned = Box::into_raw(Box::<Owned>::default());
    let dictionary = described.dictionary.as_ref().map_or(ptr::null(), |values| {
        let (values, below) = schema_of(values);
        // SAFETY: `owned` was made above; the boxed schema stays where it is.
        unsafe {
            let owned = &mut *owned;
            owned.below.push(below);
            owned.schema.insert(NonNull::from(Box::leak(Box::new(values)))).as_ptr().cast_const()
        }
    });
    let schema = Schema {
        format: described.format.map_or(ptr::null(), CStr::as_ptr),
        name: ptr::null(),
        metadata: ptr::null(),
        flags: -1,
        n_children: i64::MAX,
        children: ptr::null(),
        dictionary,
        release: (!described.released).then_some(release_schema),
        private_data: owned.cast(),
    };
    (schema, owned)
}

pub(super) fn array_of(handed: &Handed) -> (Array, *mut Owned) {
    let mut made = Owned::default();
    for buffer in &handed.buffers {
        let start = buffer.as_ref().map_or(ptr::null(), |bytes| {
            made.memory.push(vec![0; (handed.shift + bytes.len()).div_ceil(16) + 1]);
            let place =
                made.memory.last_mut().map_or(ptr::null_mut(), |memory| memory.as_mut_ptr().cast::<u8>());
            // SAFETY: there is room for `shift` bytes and the buffer.
            unsafe {
                place.add(handed.shift).copy_from(bytes.as_ptr(), bytes.len());
                place.add(handed.shift).cast_const()
            }
        });
        made.list.push(start);
    }
    let dictionary = handed.dictionary.as_ref().map_or(ptr::null(), |values| {
        let (values, below) = array_of(values);
        made.below.push(below);
        made.array.insert(NonNull::from(Box::leak(Box::new(values)))).as_ptr().cast_const()
    });
    let buffers = if handed.unlisted { ptr::null() } else { made.list.as_ptr() };
    let owned = Box::into_raw(Box::new(made));
    let array = Array {
        length: handed.length,
        null_count: handed.null_count,
        offset: handed.offset,
        n_buffers: handed.n_buffers,
        n_children: -1,
        buffers,
        children: ptr::null(),
        dictionary,
        release: (!handed.released).then_some(release_array),
        private_data: owned.cast(),
    };
    (array, owned)
}

/// Frees what is behind a structure, and says how often it was released.
pub(super) fn releases(owned: *mut Owned) -> usize {
    // SAFETY: made by `Box::into_raw`, and given here once.
    unsafe { Box::from_raw(owned) }.releases
}
