use arrow_array::array::{Array, ArrayRef, LargeStringArray, NullArray, StringArray, StringViewArray};
use arrow_array::builder::StringDictionaryBuilder;
use arrow_array::ffi::to_ffi;
use arrow_array::types::Int8Type;
use arrow_array::{RecordBatch, RecordBatchIterator};
use arrow_schema::{Field, Schema};

use super::*;

const LONG: &str = "çok uzun, satır içinde durmaz";
/// The end of all texts, one after another.
const END: i32 = 3 + LONG.len() as i32;
const TEXTS: [Option<&str>; 4] = [Some("bir"), None, Some(LONG), Some("")];

fn columns() -> Vec<ArrayRef> {
    let mut dictionary = StringDictionaryBuilder::<Int8Type>::new();
    dictionary.extend(TEXTS);
    vec![
        Arc::new(StringArray::from_iter(TEXTS)),
        Arc::new(LargeStringArray::from_iter(TEXTS)),
        Arc::new(StringViewArray::from_iter(TEXTS)),
        Arc::new(dictionary.finish()),
    ]
}

/// Each row, read plainly.
fn rows(column: Column) -> Vec<Option<String>> {
    let mut texts = column.texts.into_iter();
    match column.valid {
        None => texts.map(Some).collect(),
        Some(valid) => valid.into_iter().map(|valid| valid.then(|| texts.next().unwrap())).collect(),
    }
}

fn owned(texts: &[Option<&str>]) -> Vec<Option<String>> {
    texts.iter().map(|text| text.map(str::to_owned)).collect()
}

/// Structures on their way out of another library.
struct Handed {
    array: FFI_ArrowArray,
    schema: FFI_ArrowSchema,
    /// What buffers were replaced by.
    spare: Vec<Vec<u128>>,
}

impl Handed {
    fn new(column: &dyn Array) -> Self {
        let (array, schema) = to_ffi(&column.to_data()).unwrap();
        Self { array, schema, spare: Vec::new() }
    }

    fn fields(&mut self) -> &mut ArrayFields {
        // SAFETY: as in `array_fields`, and nothing else refers to the structure.
        unsafe { &mut *ptr::from_mut(&mut self.array).cast() }
    }

    fn schema_fields(&mut self) -> &mut SchemaFields {
        // SAFETY: as in `kind_of`, and nothing else refers to the structure.
        unsafe { &mut *ptr::from_mut(&mut self.schema).cast() }
    }

    /// Puts other bytes behind the pointer of a buffer, `shift` bytes after an aligned address.
    fn replace(&mut self, index: usize, bytes: &[u8], shift: usize) {
        self.spare.push(vec![0; (shift + bytes.len()).div_ceil(16) + 1]);
        let spare = self.spare.last_mut().unwrap().as_mut_ptr().cast::<u8>();
        let list = self.fields().buffers.cast_mut();
        // SAFETY: `spare` has room for `shift + bytes.len()` bytes, and stays where it is until the test ends. The list has this
        // pointer, and `release` does not read the list.
        unsafe {
            spare.add(shift).copy_from(bytes.as_ptr(), bytes.len());
            list.add(index).write(spare.add(shift));
        }
    }

    fn import(&mut self) -> Result<Vec<Option<String>>> {
        // SAFETY: the structures are those of arrow-rs, of which tests change numbers that are refused, and put sound ones and
        // buffers of the right sizes in place of others.
        let imported = unsafe { import_array(NonNull::from(&mut self.array), &self.schema) };
        assert!(self.array.is_released());
        imported?.read().map(rows)
    }

    fn refusal(&mut self) -> String {
        self.import().err().unwrap().to_string()
    }
}

#[test]
fn the_fields_are_those_of_arrow_rs() {
    for column in columns() {
        let (array, schema) = to_ffi(&column.slice(1, 2).to_data()).unwrap();
        let fields = array_fields(&array);
        let numbers = [fields.length, fields.null_count, fields.offset, fields.n_buffers, fields.n_children];
        let [length, null_count, offset, n_buffers, n_children] =
            numbers.map(|number| usize::try_from(number).unwrap());
        assert_eq!((length, offset), (array.len(), array.offset()));
        assert_eq!((null_count, n_buffers), (array.null_count(), array.num_buffers()));
        assert_eq!(n_children, array.num_children());
        // SAFETY: the list has a pointer for each buffer.
        let first = unsafe { *fields.buffers.add(1) };
        assert_eq!(first, array.buffer(1));
        assert_eq!(fields.dictionary.cast(), array.dictionary().map_or(ptr::null(), ptr::from_ref));
        assert_eq!(fields.private_data, array.private_data().cast_const());
        assert!(fields.release.is_some());
        // SAFETY: as in `kind_of`.
        let fields: &SchemaFields = unsafe { &*ptr::from_ref(&schema).cast() };
        assert_eq!(format_of(fields).unwrap(), schema.format());
        assert_eq!(fields.dictionary.cast(), schema.dictionary().map_or(ptr::null(), ptr::from_ref));
        assert_eq!(fields.private_data, schema.private_data().cast_const());
    }
}

#[test]
fn an_array_is_read_whatever_its_layout_and_slice_and_released_once() {
    for column in columns() {
        let data = column.to_data();
        let owners = data.buffers()[0].strong_count();
        assert_eq!(Handed::new(&column).import().unwrap(), owned(&TEXTS), "{}", column.data_type());
        for (at, length) in [(0, 0), (1, 1), (1, 3), (2, 2), (4, 0)] {
            let found = Handed::new(&column.slice(at, length)).import().unwrap();
            assert_eq!(found, owned(&TEXTS[at..at + length]), "{} {at} {length}", column.data_type());
        }
        assert_eq!(data.buffers()[0].strong_count(), owners);
    }
    assert_eq!(Handed::new(&NullArray::new(2)).import().unwrap(), [None, None]);
}

#[test]
fn texts_outlive_the_array_and_no_release_is_called_before_the_end() {
    for column in columns() {
        let data = column.to_data();
        let owners = data.buffers()[0].strong_count();
        let (mut array, schema) = to_ffi(&data).unwrap();
        // SAFETY: both are valid and belong together.
        let mut imported = unsafe { import_array(NonNull::from(&mut array), &schema) }.unwrap();
        let read = imported.read().unwrap();
        assert_eq!(data.buffers()[0].strong_count(), owners + 1);
        assert!(imported.read().unwrap().texts.is_empty());
        drop(imported);
        assert_eq!(data.buffers()[0].strong_count(), owners);
        assert_eq!(rows(read), owned(&TEXTS));
    }
}

#[test]
fn numbers_that_no_array_has_are_refused() {
    type Change = fn(&mut ArrayFields);
    let damages: [(&str, Change); 15] = [
        ("negative", |array| array.length = -1),
        ("negative", |array| array.length = i64::MIN),
        ("negative", |array| array.offset = -1),
        ("larger than any memory", |array| array.offset = i64::MAX),
        ("larger than any memory", |array| (array.length, array.offset) = (i64::MAX, i64::MAX)),
        ("larger than any memory", |array| array.length = 1 + (1 << 48)),
        ("count of nulls is out", |array| array.null_count = -2),
        ("count of nulls is out", |array| array.null_count = array.length + 1),
        ("claims 0 nulls and marks 1", |array| array.null_count = 0),
        ("claims 2 nulls and marks 1", |array| array.null_count = 2),
        ("another number of buffers", |array| array.n_buffers = -1),
        ("another number of buffers", |array| array.n_buffers = i64::MAX),
        ("another number of buffers", |array| array.n_buffers = 1),
        ("another number of buffers", |array| array.n_buffers = 0),
        ("no buffers", |array| array.buffers = ptr::null()),
    ];
    for column in columns() {
        let data = column.to_data();
        let owners = data.buffers()[0].strong_count();
        for (words, change) in damages {
            let mut handed = Handed::new(&column);
            change(handed.fields());
            let refusal = handed.refusal();
            assert!(refusal.contains(words), "{}: {refusal}", column.data_type());
        }
        assert_eq!(data.buffers()[0].strong_count(), owners, "released on every path");
    }
    // An unknown count of nulls is counted.
    for column in columns() {
        let mut handed = Handed::new(&column);
        handed.fields().null_count = -1;
        assert_eq!(handed.import().unwrap(), owned(&TEXTS));
    }
}

#[test]
fn released_structures_are_not_read() {
    for column in columns() {
        let mut handed = Handed::new(&column);
        handed.import().unwrap();
        assert!(handed.refusal().contains("the array was released, since it is read once"));
        let mut handed = Handed::new(&column);
        handed.schema = FFI_ArrowSchema::empty();
        assert!(handed.refusal().contains("its schema was released"));
    }
    let dictionary = columns().pop().unwrap();
    let released = FFI_ArrowArray::empty();
    let mut handed = Handed::new(&dictionary);
    handed.fields().dictionary = ptr::from_ref(&released).cast();
    assert!(handed.refusal().contains("the array was released"));
    let mut handed = Handed::new(&dictionary);
    handed.fields().dictionary = ptr::null();
    assert!(handed.refusal().contains("no dictionary"));
    let released = FFI_ArrowSchema::empty();
    let mut handed = Handed::new(&dictionary);
    handed.schema_fields().dictionary = ptr::from_ref(&released).cast();
    assert!(handed.refusal().contains("its schema was released"));
}

#[test]
fn buffers_that_are_missing_are_refused_and_those_that_are_not_aligned_are_read() {
    for column in columns() {
        let data = column.to_data();
        let count = Handed::new(&column).array.num_buffers();
        for index in 1..count {
            let mut handed = Handed::new(&column);
            // SAFETY: the list has this pointer, and `release` does not read the list.
            unsafe { handed.fields().buffers.add(index).cast_mut().write(ptr::null()) };
            let refusal = handed.refusal();
            assert!(refusal.contains("is missing"), "{} {index}: {refusal}", column.data_type());
        }
        for shift in [0, 1, 4, 8] {
            let mut handed = Handed::new(&column);
            handed.replace(0, data.nulls().unwrap().validity(), shift);
            for (index, buffer) in data.buffers().iter().enumerate() {
                handed.replace(1 + index, buffer, shift);
            }
            if *column.data_type() == DataType::Utf8View {
                handed.replace(count - 1, &(LONG.len() as i64).to_ne_bytes(), shift);
            }
            assert_eq!(handed.import().unwrap(), owned(&TEXTS), "{} {shift}", column.data_type());
        }
    }
}

#[test]
fn contents_of_buffers_are_checked() {
    let bytes = |offsets: &[i32]| offsets.iter().flat_map(|offset| offset.to_ne_bytes()).collect::<Vec<_>>();
    let damage = |column: &ArrayRef, index, bytes: &[u8]| {
        let mut handed = Handed::new(column);
        handed.replace(index, bytes, 0);
        handed.refusal()
    };
    let [small, large, views, dictionary] = columns().try_into().unwrap();
    for offsets in [
        [0, 3, 3, -1, -1],
        [0, 3, 3, END, i32::MIN],
        [0, 3, 99, END, END],
        [0, 9, 3, END, END],
        [-1, 3, 3, END, END],
    ] {
        let refusal = damage(&small, 1, &bytes(&offsets));
        assert!(refusal.contains("is damaged"), "{offsets:?}: {refusal}");
    }
    assert!(damage(&small, 1, &bytes(&[0, 3, 4, END, END])).contains("utf-8"), "cuts a character");
    assert!(damage(&small, 2, &[0xff; END as usize]).contains("UTF8"));
    for last in [-1, i64::MIN, i64::MAX, 1 + (1 << 48)] {
        let offsets: Vec<u8> =
            [0, 3, 3, END.into(), last].iter().flat_map(|offset: &i64| offset.to_ne_bytes()).collect();
        assert!(damage(&large, 1, &offsets).contains("negative or larger than any memory"));
        assert!(damage(&views, 3, &last.to_ne_bytes()).contains("negative or larger than any memory"));
    }
    let data = views.to_data();
    for (at, value) in [(32, END), (40, 1), (44, 1), (36, 0), (0, -1)] {
        let mut changed = data.buffers()[0].to_vec();
        changed[at..at + 4].copy_from_slice(&i32::to_ne_bytes(value));
        let refusal = damage(&views, 1, &changed);
        assert!(refusal.contains("is damaged"), "{at}: {refusal}");
    }
    for keys in [[0, 0, 3, 2], [0, 0, -1, 2], [0, 0, i8::MIN, 2]] {
        let refusal = damage(&dictionary, 1, &keys.map(|key| key.to_ne_bytes()[0]));
        assert!(refusal.contains("out of bounds"), "{refusal}");
    }
    // A key of a null may be any.
    let mut handed = Handed::new(&dictionary);
    handed.replace(1, &[0, 99, 1, 2], 0);
    assert_eq!(handed.import().unwrap(), owned(&TEXTS));
}

#[test]
fn kinds_are_read_from_the_format_alone() {
    let kind = |format: &str, dictionary: Option<&str>| {
        let dictionary = dictionary.map(|format| FFI_ArrowSchema::try_new(format, Vec::new(), None).unwrap());
        kind_of(&FFI_ArrowSchema::try_new(format, Vec::new(), dictionary).unwrap())
    };
    for (format, expected) in
        [("u", DataType::Utf8), ("U", DataType::LargeUtf8), ("vu", DataType::Utf8View), ("n", DataType::Null)]
    {
        assert_eq!(kind(format, None).unwrap(), ColumnKind::Text(expected.clone()));
        let dictionary = DataType::Dictionary(Box::new(DataType::UInt16), Box::new(expected));
        assert_eq!(kind("S", Some(format)).unwrap(), ColumnKind::Text(dictionary));
    }
    assert_eq!(kind("+s", None).unwrap(), ColumnKind::Frame);
    for (format, name) in [
        ("l", "Int64"),
        ("z", "Binary"),
        ("+l", "List"),
        ("+w:3", "FixedSizeList"),
        ("+ud:0,1", "Union"),
        ("+?", "an unknown nested type"),
    ] {
        assert_eq!(kind(format, None).unwrap(), ColumnKind::Other(name.into()));
        assert_eq!(kind("c", Some(format)).unwrap(), ColumnKind::Other(format!("dictionaries of {name}")));
    }
    for (format, dictionary, words) in [
        ("?", None, "its type is unknown: \"?\""),
        ("", None, "its type is unknown"),
        ("w:99999999999", None, "its type is unknown"),
        ("u", Some("u"), "integers as keys, not Utf8"),
        ("+s", Some("u"), "integers as keys"),
    ] {
        let refusal = kind(format, dictionary).unwrap_err().to_string();
        assert!(refusal.contains(words), "{format}: {refusal}");
    }
}

#[test]
fn schemas_that_are_damaged_are_refused() {
    let column = columns().pop().unwrap();
    for (format, words) in [(None, "no format"), (Some(c"\xff"), "not UTF-8")] {
        let mut handed = Handed::new(&column);
        let sound = handed.schema_fields().format;
        handed.schema_fields().format = format.map_or(ptr::null(), CStr::as_ptr);
        let refusal = handed.refusal();
        handed.schema_fields().format = sound; // for its release
        assert!(refusal.contains(words), "{refusal}");
    }
    // A dictionary that is its own dictionary.
    let (_, mut schema) = to_ffi(&column.to_data()).unwrap();
    let circle = ptr::from_mut(&mut schema);
    // SAFETY: as in `schema_fields`; the schema is read through this pointer alone until it is dropped, which does not read it.
    let kind = unsafe {
        (*circle.cast::<SchemaFields>()).dictionary = circle.cast();
        kind_of(&*circle)
    };
    assert_eq!(kind.unwrap(), ColumnKind::Other("dictionaries of dictionaries".into()));
}

/// What the source of a stream still has to give; then it ends or fails.
struct Producer {
    kind: DataType,
    chunks: Vec<ArrayRef>,
    fails: Option<&'static CStr>,
    endless: bool,
}

fn stream_of(producer: Producer) -> FFI_ArrowArrayStream {
    type Stream = FFI_ArrowArrayStream;
    unsafe fn behind<'a>(stream: *mut Stream) -> &'a mut Producer {
        // SAFETY: every stream of these tests has a producer until it is released.
        unsafe { &mut *(*stream).private_data().cast() }
    }
    unsafe extern "C" fn schema(stream: *mut Stream, out: *mut FFI_ArrowSchema) -> i32 {
        // SAFETY: `out` is a place for a schema.
        unsafe { out.write(FFI_ArrowSchema::try_from(&behind(stream).kind).unwrap()) };
        0
    }
    unsafe extern "C" fn next(stream: *mut Stream, out: *mut FFI_ArrowArray) -> i32 {
        // SAFETY: the stream is one of `stream_of`, which was not released.
        let producer = unsafe { behind(stream) };
        let next = match producer.chunks.pop() {
            Some(chunk) => FFI_ArrowArray::new(&chunk.to_data()),
            None if producer.endless => FFI_ArrowArray::new(&NullArray::new(0).to_data()),
            None if producer.fails.is_some() => return 5,
            None => FFI_ArrowArray::empty(),
        };
        // SAFETY: `out` is a place for an array.
        unsafe { out.write(next) };
        0
    }
    unsafe extern "C" fn message(stream: *mut Stream) -> *const c_char {
        // SAFETY: the stream is one of `stream_of`, which was not released.
        let message = unsafe { behind(stream) }.fails.filter(|message| !message.is_empty());
        message.map_or(ptr::null(), CStr::as_ptr)
    }
    unsafe extern "C" fn release(stream: *mut Stream) {
        // SAFETY: the box that `stream_of` made; once, since the stream has no release afterwards.
        unsafe {
            drop(Box::from_raw((*stream).set_private_data(ptr::null_mut()).cast::<Producer>()));
            (*stream).set_release(None);
        }
    }
    let data = Box::into_raw(Box::new(producer)).cast();
    // SAFETY: the functions are those of the interface, over this data.
    unsafe { Stream::new_unchecked(Some(schema), Some(next), Some(message), Some(release), data) }
}

fn read(mut stream: FFI_ArrowArrayStream) -> Result<(ColumnKind, Vec<Option<String>>)> {
    // SAFETY: it is valid, or released.
    let imported = unsafe { import_stream(NonNull::from(&mut stream)) };
    assert!(stream.release().is_none());
    let mut imported = imported?;
    let kind = imported.kind().clone();
    Ok((kind.clone(), if matches!(kind, ColumnKind::Text(_)) { rows(imported.read()?) } else { Vec::new() }))
}

#[test]
fn a_stream_is_read_to_its_end_or_to_its_error() {
    for column in columns() {
        let owners = column.to_data().buffers()[0].strong_count();
        let producer = |fails| Producer {
            kind: column.data_type().clone(),
            chunks: vec![Arc::clone(&column), column.slice(1, 2), column.slice(0, 0)],
            fails,
            endless: false,
        };
        let (_, found) = read(stream_of(producer(None))).unwrap();
        assert_eq!(found, [owned(&TEXTS[1..3]), owned(&TEXTS)].concat());
        let error = read(stream_of(producer(Some(c"the disk is gone")))).err().unwrap();
        assert!(error.to_string().contains("the disk is gone"), "{error}");
        let error = read(stream_of(producer(Some(c"")))).err().unwrap();
        assert!(error.to_string().contains("failed with error 5"), "{error}");
        assert_eq!(column.to_data().buffers()[0].strong_count(), owners);
    }
    let producer = |kind, fails, endless| Producer { kind, chunks: Vec::new(), fails, endless };
    // Of another type, nothing is read.
    let (kind, _) = read(stream_of(producer(DataType::Int8, Some(c"never asked"), false))).unwrap();
    assert_eq!(kind, ColumnKind::Other("Int8".into()));
    let error = read(stream_of(producer(DataType::Null, None, true))).err().unwrap();
    assert!(error.to_string().contains("combine them"), "{error}");
    let error = read(FFI_ArrowArrayStream::empty()).err().unwrap();
    assert!(error.to_string().contains("the stream was released"), "{error}");
}

#[test]
fn a_stream_of_frames_is_moved_out_and_released() {
    let column = columns().swap_remove(0);
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap();
    let batches = vec![Ok(batch.clone()), Ok(batch.slice(2, 2))];
    let stream = FFI_ArrowArrayStream::new(Box::new(RecordBatchIterator::new(batches, schema)));
    assert_eq!(read(stream).unwrap(), (ColumnKind::Frame, Vec::new()));
}
