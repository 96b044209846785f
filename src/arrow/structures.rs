//! Arrow's C structures, checked and moved out: the only unsafe code outside of `compute/`, with the call of it in the binding.
//!
//! Source: <https://arrow.apache.org/docs/format/CDataInterface.html>.
//!
//! The structures give numbers of rows and buffers, and pointers without sizes: the interface says how large a buffer of so
//! many rows is. All numbers are checked before a pointer is followed by them. That a buffer is as large as they say cannot be
//! checked. Buffers become slices here, and everything about their contents is checked in safe code.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_buffer::Buffer;
use arrow_schema::DataType;

use super::column::{Column, ColumnKind, Part, refused};
use crate::compute::memory::{push, reserve};
use crate::{Error, Result};

/// Rows of an array, and bytes of a buffer: more than any memory holds.
const MOST: usize = 1 << 48;
/// Buffers of an array of views: each holds up to 2 GB of text.
const MOST_BUFFERS: usize = 1 << 24;
/// Arrays of a stream.
const MOST_CHUNKS: usize = if cfg!(miri) { 1 << 6 } else { 1 << 20 };

/// A column as it was handed over. Dropping it calls the `release` of each of its arrays, once.
pub struct Imported {
    kind: ColumnKind,
    /// Arrays that have rows. Their values are not checked yet.
    parts: Vec<Part>,
    /// Those who own the memory of `parts`. Kept until the end, so that no `release` is called where the parts are read.
    owners: Vec<Arc<FFI_ArrowArray>>,
}

impl Imported {
    /// What the schema says of the column.
    pub fn kind(&self) -> &ColumnKind {
        &self.kind
    }

    /// Copies the texts; a second call finds no rows.
    ///
    /// # Errors
    /// [`Error::Argument`] for a column of another kind, and for offsets, keys, bytes and counts of
    /// nulls that are not valid.
    pub fn read(&mut self) -> Result<Column> {
        let parts = std::mem::take(&mut self.parts);
        guarded(|| Column::read(&self.kind, parts))
    }

    /// Takes an array of this column in.
    fn append(&mut self, array: FFI_ArrowArray) -> Result<()> {
        let ColumnKind::Text(kind) = &self.kind else { return Ok(()) };
        let owner = Arc::new(array);
        let part = part(&owner, array_fields(&owner), kind)?;
        if part.length == 0 {
            return Ok(());
        }
        push(&mut self.owners, owner)?;
        push(&mut self.parts, part)
    }
}

/// Moves an array out of `array`. A column that is no text is not read.
///
/// # Errors
/// [`Error::Argument`] if one of the structures was released or has numbers that no array has.
///
/// # Safety
/// - `array` is aligned and valid for reads and writes of an initialized `ArrowArray`; nothing else uses it during the call.
/// - Each structure either has no `release`, or is as the C data interface demands until `release` is called on the base
///   structure: a pointer in it is null or points to what the interface says. `format` is a C string. `buffers` has
///   `n_buffers` pointers, and a buffer has the size that the interface gives it for `length + offset` rows, its last offset
///   and its lengths of buffers. The numbers themselves may have any value.
/// - `release` may be called from this thread, with a pointer to a copy of the structure.
pub unsafe fn import_array(array: NonNull<FFI_ArrowArray>, schema: &FFI_ArrowSchema) -> Result<Imported> {
    // SAFETY: the pointer is aligned and valid for reads and writes of an initialized structure, by this function's own
    // condition. The copy is the only structure with this `release` from here on: `from_raw` leaves a released one behind,
    // which every destructor skips, and dropping the copy calls `release`, once.
    let array = unsafe { FFI_ArrowArray::from_raw(array.as_ptr()) };
    guarded(|| {
        let kind = kind_of(schema)?;
        let mut imported = Imported { kind, parts: Vec::new(), owners: Vec::new() };
        imported.append(array)?;
        Ok(imported)
    })
}

/// Moves a stream out of `stream`, and reads it to its end. Of a stream that is no text only the schema is read.
///
/// # Errors
/// As [`import_array`], and with the stream's own message if it fails.
///
/// # Safety
/// - `stream` is aligned and valid for reads and writes of an initialized `ArrowArrayStream`; nothing else uses it during the
///   call.
/// - It either has no `release`, or its functions are those of the C stream interface and may be called from this thread, with
///   a pointer to a copy of the structure. What they write, with success or without it, is a structure as [`import_array`]
///   demands it, or is left as it was, which is released.
pub unsafe fn import_stream(stream: NonNull<FFI_ArrowArrayStream>) -> Result<Imported> {
    // SAFETY: as in `import_array`: the pointer is aligned and valid for reads and writes of an initialized structure, and the
    // copy is the only one with this `release` from here on.
    let mut stream = unsafe { FFI_ArrowArrayStream::from_raw(stream.as_ptr()) };
    guarded(|| {
        if stream.release().is_none() {
            return Err(refused("cannot be read: the stream was released, since it is read once"));
        }
        let (Some(get_schema), Some(get_next)) = (stream.get_schema(), stream.get_next()) else {
            return Err(refused("cannot be read: the stream has no functions"));
        };
        let mut schema = FFI_ArrowSchema::empty();
        // SAFETY: the stream was not released, so this is its function, called with a pointer to it. `schema` is aligned and
        // valid for writes. What the function leaves there has its own `release`, which dropping it calls.
        let code = unsafe { get_schema(&mut stream, &mut schema) };
        succeeded(&mut stream, code)?;
        let mut imported = Imported { kind: kind_of(&schema)?, parts: Vec::new(), owners: Vec::new() };
        if !matches!(imported.kind, ColumnKind::Text(_)) {
            return Ok(imported);
        }
        for _ in 0..MOST_CHUNKS {
            let mut array = FFI_ArrowArray::empty();
            // SAFETY: as for `get_schema`.
            let code = unsafe { get_next(&mut stream, &mut array) };
            succeeded(&mut stream, code)?;
            if array.is_released() {
                return Ok(imported); // the end
            }
            imported.append(array)?;
        }
        Err(refused(format!("cannot be read: its stream has more than {MOST_CHUNKS} arrays; combine them")))
    })
}

/// An error with the stream's own message, if a function of it returned an error number.
fn succeeded(stream: &mut FFI_ArrowArrayStream, code: i32) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let message = stream.get_last_error().and_then(|get_last_error| {
        // SAFETY: the stream was not released, so this is its function, called with a pointer to it.
        let message = unsafe { get_last_error(stream) };
        // SAFETY: a message that is not null is a C string that lives until the next call. It is copied here.
        (!message.is_null()).then(|| unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
    });
    let message = message.unwrap_or_else(|| format!("its source failed with error {code}"));
    Err(refused(format!("cannot be read: {message}")))
}

/// Runs code that calls arrow's readers, which assert what they rely on. A panic of theirs is an error.
fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|payload| Err(Error::panic("arrow", payload.as_ref())))
}

/// `ArrowSchema` with its fields, which arrow-rs keeps to itself.
#[repr(C)]
struct SchemaFields {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *const c_void,
    dictionary: *const SchemaFields,
    release: Option<unsafe extern "C" fn(*mut FFI_ArrowSchema)>,
    private_data: *const c_void,
}

/// `ArrowArray` with its fields. The numbers are signed, so that negative ones are seen.
#[repr(C)]
struct ArrayFields {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *const *const u8,
    children: *const c_void,
    dictionary: *const ArrayFields,
    release: Option<unsafe extern "C" fn(*mut FFI_ArrowArray)>,
    private_data: *const c_void,
}

const _: () = {
    assert!(size_of::<SchemaFields>() == size_of::<FFI_ArrowSchema>());
    assert!(align_of::<SchemaFields>() == align_of::<FFI_ArrowSchema>());
    assert!(size_of::<ArrayFields>() == size_of::<FFI_ArrowArray>());
    assert!(align_of::<ArrayFields>() == align_of::<FFI_ArrowArray>());
};

fn array_fields(array: &FFI_ArrowArray) -> &ArrayFields {
    // SAFETY: both are `repr(C)` with the fields of the C data interface, in its order, so size, alignment and valid values are
    // the same. The reference keeps the lifetime of the structure, which nothing changes meanwhile.
    unsafe { &*ptr::from_ref(array).cast() }
}

/// What the schema describes. Its children, its name and its metadata are never read.
fn kind_of(schema: &FFI_ArrowSchema) -> Result<ColumnKind> {
    // SAFETY: as in `array_fields`.
    let fields: &SchemaFields = unsafe { &*ptr::from_ref(schema).cast() };
    let format = format_of(fields)?;
    // SAFETY: the schema was not released, as `format_of` has checked, so the pointer is null or points to an aligned,
    // initialized schema that lives as long as this one.
    let Some(values) = (unsafe { fields.dictionary.as_ref() }) else { return named(format) };
    let keys = flat(format)?;
    if !keys.is_dictionary_key_type() {
        return Err(refused(format!("cannot be read: a dictionary has integers as keys, not {keys}")));
    }
    let values_format = format_of(values)?;
    if !values.dictionary.is_null() {
        return Ok(ColumnKind::Other("dictionaries of dictionaries".into()));
    }
    Ok(match named(values_format)? {
        ColumnKind::Text(values) => ColumnKind::Text(DataType::Dictionary(Box::new(keys), Box::new(values))),
        ColumnKind::Frame => ColumnKind::Other("dictionaries of Struct".into()),
        ColumnKind::Other(values) => ColumnKind::Other(format!("dictionaries of {values}")),
    })
}

/// The format of a schema: what its type is.
fn format_of(fields: &SchemaFields) -> Result<&str> {
    if fields.release.is_none() {
        return Err(refused("cannot be read: its schema was released"));
    }
    if fields.format.is_null() {
        return Err(refused("cannot be read: its schema has no format"));
    }
    // SAFETY: the schema was not released, so the pointer, which is not null, is that of a C string that lives as long as the
    // schema, from which the result borrows.
    let format = unsafe { CStr::from_ptr(fields.format) };
    format.to_str().map_err(|_| refused("cannot be read: the format of its schema is not UTF-8"))
}

/// The kind of a column of this format without a dictionary.
fn named(format: &str) -> Result<ColumnKind> {
    // What arrow-rs would name by the children.
    let nested = [
        ("+l", "List"),
        ("+L", "LargeList"),
        ("+vl", "ListView"),
        ("+vL", "LargeListView"),
        ("+w", "FixedSizeList"),
        ("+m", "Map"),
        ("+u", "Union"),
        ("+r", "RunEndEncoded"),
        ("+", "an unknown nested type"),
    ];
    if format.starts_with("+s") {
        return Ok(ColumnKind::Frame);
    }
    if let Some((_, name)) = nested.iter().find(|(prefix, _)| format.starts_with(prefix)) {
        return Ok(ColumnKind::Other((*name).into()));
    }
    Ok(match flat(format)? {
        kind @ (DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null) => {
            ColumnKind::Text(kind)
        }
        other => ColumnKind::Other(other.to_string()),
    })
}

/// The type of a format that needs no children.
fn flat(format: &str) -> Result<DataType> {
    let unknown = |_| {
        refused(format!(
            "cannot be read: its type is unknown: {:?}",
            format.chars().take(64).collect::<String>()
        ))
    };
    if format.starts_with('+') {
        return Err(refused("cannot be read: a dictionary has integers as keys"));
    }
    // A schema of our own, which has this format and nothing else.
    let schema = FFI_ArrowSchema::try_new(format, Vec::new(), None).map_err(unknown)?;
    DataType::try_from(&schema).map_err(unknown)
}

/// The parts of an array that is `owner`, or a dictionary of it.
fn part(owner: &Arc<FFI_ArrowArray>, fields: &ArrayFields, kind: &DataType) -> Result<Part> {
    if fields.release.is_none() {
        return Err(refused("cannot be read: the array was released, since it is read once"));
    }
    let [length, offset] = [fields.length, fields.offset].map(|number| usize::try_from(number).ok());
    let (Some(length), Some(offset)) = (length, offset) else {
        return Err(refused("cannot be read: its length or its offset is negative"));
    };
    let Some(rows) = length.checked_add(offset).filter(|&rows| rows <= MOST) else {
        return Err(refused("cannot be read: its length and offset are larger than any memory"));
    };
    let mut part = Part::new(kind, length, offset);
    // Exporters differ in the buffers and the count that a column of nulls has; neither is read.
    if *kind == DataType::Null {
        return Ok(part);
    }
    part.null_count = match fields.null_count {
        -1 => None, // unknown
        count => {
            let count = usize::try_from(count).ok().filter(|&count| count <= length);
            Some(count.ok_or_else(|| refused("cannot be read: its count of nulls is out of range"))?)
        }
    };
    let buffers = usize::try_from(fields.n_buffers).ok().filter(|&buffers| match kind {
        DataType::Utf8 | DataType::LargeUtf8 => buffers == 3,
        DataType::Utf8View => (3..=MOST_BUFFERS).contains(&buffers),
        _ => buffers == 2, // keys
    });
    let Some(buffers) = buffers else {
        return Err(refused(format!("cannot be read: it has another number of buffers than {kind} has")));
    };
    if length == 0 {
        return Ok(part); // nothing to follow a pointer for
    }
    let Some(list) = NonNull::new(fields.buffers.cast_mut()) else {
        return Err(refused("cannot be read: it has no buffers"));
    };
    let given = ArrayBuffers { owner, list, buffers };
    part.nulls = given.bitmap(rows)?;
    match kind {
        DataType::Utf8View => {
            push(&mut part.buffers, given.values(1, rows, 16)?)?;
            let texts = buffers - 3;
            let lengths = given.values(buffers - 1, texts, 8)?;
            reserve(&mut part.buffers, texts)?;
            for (index, &length) in lengths.typed_data().iter().enumerate() {
                part.buffers.push(given.buffer(2 + index, size(length)?)?);
            }
        }
        DataType::Dictionary(keys, values) => {
            let width = keys.primitive_width().unwrap_or_default();
            push(&mut part.buffers, given.values(1, rows, width)?)?;
            // SAFETY: the array was not released, so the pointer is null or points to an aligned, initialized array that lives
            // as long as this one: longer than this borrow of `fields`.
            let Some(dictionary) = (unsafe { fields.dictionary.as_ref() }) else {
                return Err(refused("cannot be read: it has no dictionary"));
            };
            part.values = Some(Box::new(self::part(owner, dictionary, values)?));
        }
        _ => {
            let (offsets, last) = if *kind == DataType::Utf8 {
                let offsets = given.values(1, rows + 1, 4)?;
                let last = offsets.typed_data::<i32>()[rows];
                (offsets, last.into())
            } else {
                let offsets = given.values(1, rows + 1, 8)?;
                let last = offsets.typed_data::<i64>()[rows];
                (offsets, last)
            };
            push(&mut part.buffers, offsets)?;
            push(&mut part.buffers, given.buffer(2, size(last)?)?)?;
        }
    }
    Ok(part)
}

/// The size of a buffer as the data gives it.
fn size(bytes: i64) -> Result<usize> {
    usize::try_from(bytes)
        .ok()
        .filter(|&bytes| bytes <= MOST)
        .ok_or_else(|| refused("is damaged: the size of its texts is negative or larger than any memory"))
}

/// The buffers of an array that was not released.
struct ArrayBuffers<'a> {
    owner: &'a Arc<FFI_ArrowArray>,
    list: NonNull<*const u8>,
    buffers: usize,
}

impl ArrayBuffers<'_> {
    fn pointer(&self, index: usize) -> Option<NonNull<u8>> {
        assert!(index < self.buffers);
        // SAFETY: the array was not released, so `list`, which is not null, has as many pointers as `buffers` says, and `index`
        // is one of them. A list that is not aligned is read too.
        let pointer = unsafe { self.list.as_ptr().add(index).read_unaligned() };
        NonNull::new(pointer.cast_mut())
    }

    /// The buffer of this number, which has so many bytes.
    fn buffer(&self, index: usize, bytes: usize) -> Result<Buffer> {
        if bytes == 0 {
            return Ok(Buffer::from_vec(Vec::<u8>::new())); // whatever its pointer is
        }
        let Some(start) = self.pointer(index) else {
            return Err(refused(format!("cannot be read: its buffer {index} is missing")));
        };
        // SAFETY:
        // - The array was not released, so a buffer that is not null has the bytes that the interface gives it for the numbers
        //   of the array, and `bytes` was computed from these. No one writes to them until `release`.
        // - `bytes` is less than 2^53, so a slice of them is no larger than `isize::MAX`.
        // - The buffer holds `owner`, which calls `release` when it is dropped, so the memory lives as long as the buffer.
        Ok(unsafe { Buffer::from_custom_allocation(start, bytes, Arc::clone(self.owner) as _) })
    }

    /// The bitmap of `rows` rows, where there is one.
    fn bitmap(&self, rows: usize) -> Result<Option<Buffer>> {
        self.pointer(0).map(|_| self.buffer(0, rows.div_ceil(8))).transpose()
    }

    /// The buffer of `count` numbers of `width` bytes. Numbers that are not aligned are copied.
    fn values(&self, index: usize, count: usize, width: usize) -> Result<Buffer> {
        let buffer = self.buffer(index, count * width)?;
        if buffer.as_ptr().addr().is_multiple_of(width) {
            return Ok(buffer);
        }
        let mut words: Vec<u128> = Vec::new();
        reserve(&mut words, buffer.len().div_ceil(16))?;
        words.extend(buffer.chunks(16).map(|bytes| {
            let mut word = [0; 16];
            word[..bytes.len()].copy_from_slice(bytes);
            u128::from_ne_bytes(word)
        }));
        Ok(Buffer::from_vec(words).slice_with_length(0, buffer.len()))
    }
}

#[cfg(test)]
#[path = "structures_tests.rs"]
mod tests;
