//! Arrow columns as another library may hand them over: structures made of bytes, and a plain reading of the same bytes.
//!
//! Buffers are as large as Arrow's C data interface says, since no consumer can check that. Everything else may be wrong:
//! formats, lengths, offsets, counts, missing pointers, contents of buffers, released structures, failing streams.

#![allow(unsafe_code)] // structures of C

use std::ffi::{CStr, c_char};
use std::ptr::{self, NonNull};

use model_manager::Error;
use model_manager::arrow::{ColumnKind, Imported, import_array, import_stream};

use self::plain::Kind;
use self::structures::{Array, Owned, Schema, Stream, array_of, releases, schema_of};

mod plain;
mod structures;

/// Rows that the interface allows.
const MOST: i64 = 1 << 48;
/// Numbers that no array has, and the largest one that it may have. Miri ends where an allocation fails.
const NUMBERS: [i64; 6] = [-1, -2, i64::MIN, i64::MAX, MOST + 1, if cfg!(miri) { 1 << 62 } else { MOST }];
/// Sizes of buffers that are refused.
const SIZES: [i64; 4] = [-1, i64::MIN, i64::MAX, MOST + 1];
const FORMATS: [&CStr; 20] = [
    c"u", c"U", c"vu", c"n", c"c", c"C", c"s", c"S", c"i", c"I", c"l", c"L", c"z", c"+s", c"+l", c"+w:3",
    c"w:4", c"", c"?", c"\xff",
];

/// What the bytes say, one after another; zeros at their end.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// A small number, or one of `others`.
    fn number(&mut self, others: &[i64]) -> i64 {
        match self.byte() {
            small @ 0..0xc0 => i64::from(small % 32),
            other => others[usize::from(other) % others.len()],
        }
    }

    /// What `honest` is, or one of `others`.
    fn claim(&mut self, honest: i64, others: &[i64]) -> i64 {
        match usize::from(self.byte()) {
            0 => honest,
            other => others[other % others.len()],
        }
    }
}

/// A schema.
struct Described {
    format: Option<&'static CStr>,
    released: bool,
    dictionary: Option<Box<Described>>,
}

impl Described {
    fn new(bytes: &mut Bytes<'_>, depth: usize) -> Self {
        let format = FORMATS[usize::from(bytes.byte()) % FORMATS.len()];
        let flags = bytes.byte();
        Self {
            format: (flags & 2 == 0).then_some(format),
            released: flags & 4 != 0,
            dictionary: (flags & 1 != 0 && depth > 0).then(|| Box::new(Self::new(bytes, depth - 1))),
        }
    }
}

/// An array. Its buffers have the sizes that its numbers ask for.
#[derive(Default)]
struct Handed {
    length: i64,
    offset: i64,
    null_count: i64,
    n_buffers: i64,
    released: bool,
    /// Without a list of buffers.
    unlisted: bool,
    /// Bytes between an aligned address and the beginning of each buffer.
    shift: usize,
    buffers: Vec<Option<Vec<u8>>>,
    dictionary: Option<Box<Handed>>,
}

impl Handed {
    fn new(bytes: &mut Bytes<'_>, kind: &Kind) -> Self {
        let flags = bytes.byte();
        let mut made = Self {
            length: bytes.number(&NUMBERS),
            offset: bytes.number(&NUMBERS),
            released: flags & 1 != 0,
            unlisted: flags & 2 != 0,
            shift: [0, 1, 4, 8][usize::from(flags >> 2) % 4],
            ..Self::default()
        };
        let counts = [bytes.byte(), bytes.byte()];
        let missing = usize::from(bytes.byte());
        // Of other numbers of rows nothing is read.
        if let Some(rows @ 0..=64) = made.length.checked_add(made.offset)
            && made.length >= 0
            && made.offset >= 0
        {
            made.fill(bytes, kind, rows as usize, flags & 16 == 0);
        }
        made.null_count = match usize::from(counts[0]) {
            0 => plain::null_count(&made),
            other => [&[-1, 0, 1, 2, 33], &NUMBERS[..]].concat()[other % (5 + NUMBERS.len())],
        };
        // A list may be longer than its number, and its further pointers are null.
        let honest = made.buffers.len() as i64;
        made.buffers.resize(made.buffers.len().max(3) + 1, None);
        made.n_buffers = Bytes(&counts[1..]).claim(honest, &[-1, i64::MIN, i64::MAX, 0, 1, 2, honest + 1]);
        if let Some(buffer) = missing.checked_sub(1).and_then(|index| made.buffers.get_mut(index)) {
            *buffer = None;
        }
        made
    }

    fn fill(&mut self, bytes: &mut Bytes<'_>, kind: &Kind, rows: usize, has_dictionary: bool) {
        if matches!(kind, Kind::Nulls | Kind::Other) {
            return;
        }
        let bitmap = (bytes.byte() != 0).then(|| bytes.take(rows.div_ceil(8)));
        self.buffers.push(bitmap);
        match kind {
            Kind::Texts { width } => {
                let mut offsets: Vec<i64> =
                    bytes.take(rows + 1).iter().map(|byte| byte.cast_signed().into()).collect();
                offsets[rows] =
                    bytes.claim(offsets[rows], if *width == 4 { &[-1, i32::MIN as i64] } else { &SIZES });
                let size = Some(offsets[rows]).filter(|size| (0..=128).contains(size)).unwrap_or(0);
                let number = |offset: i64| {
                    offset.to_ne_bytes()[if cfg!(target_endian = "big") { 8 - width..8 } else { 0..*width }]
                        .to_vec()
                };
                self.buffers.push(Some(offsets.into_iter().flat_map(number).collect()));
                self.buffers.push(Some(bytes.take(size as usize)));
            }
            Kind::Views => {
                let count = usize::from(bytes.byte()) % 3;
                let texts: Vec<Vec<u8>> = (0..count)
                    .map(|_| {
                        let size = usize::from(bytes.byte()) % 64;
                        bytes.take(size)
                    })
                    .collect();
                let sizes = texts
                    .iter()
                    .flat_map(|text| bytes.claim(text.len() as i64, &SIZES).to_ne_bytes())
                    .collect();
                self.buffers.push(Some((0..rows).flat_map(|_| view(bytes, &texts)).collect()));
                self.buffers.extend(texts.into_iter().map(Some));
                self.buffers.push(Some(sizes));
            }
            Kind::Keys { width, values, .. } => {
                let number = |key: u8| {
                    let key = i64::from(key.cast_signed()).to_ne_bytes();
                    key[if cfg!(target_endian = "big") { 8 - width..8 } else { 0..*width }].to_vec()
                };
                self.buffers.push(Some(bytes.take(rows).into_iter().flat_map(number).collect()));
                self.dictionary = has_dictionary.then(|| Box::new(Self::new(bytes, values)));
            }
            Kind::Nulls | Kind::Other => {}
        }
    }
}

/// A view: a short text, or a place in one of `texts`.
fn view(bytes: &mut Bytes<'_>, texts: &[Vec<u8>]) -> Vec<u8> {
    let length = bytes.byte();
    if length <= 12 {
        return [&u32::from(length).to_ne_bytes()[..], &bytes.take(12)].concat();
    }
    let length = if length == 0xff { u32::MAX } else { length.into() };
    let [index, start] = [bytes.byte(), bytes.byte()];
    let mut prefix = texts
        .get(usize::from(index))
        .and_then(|text| text.get(usize::from(start)..))
        .unwrap_or_default()
        .to_vec();
    prefix.resize(4, 0);
    prefix[0] ^= bytes.byte();
    [&length.to_ne_bytes()[..], &prefix, &u32::from(index).to_ne_bytes(), &u32::from(start).to_ne_bytes()]
        .concat()
}

/// What a stream still has to give.
struct Given<'a> {
    schema: &'a Described,
    arrays: std::slice::Iter<'a, Handed>,
    /// 1: `get_schema` fails, 2: the end does, 3: with a null as message, 4 to 6: a function is missing, 7: it was released.
    fault: u8,
    releases: usize,
    schemas: Vec<*mut Owned>,
    handed: Vec<*mut Owned>,
}

unsafe fn given<'a>(stream: *mut Stream) -> &'a mut Given<'a> {
    // SAFETY: the functions are called with a stream of `through_stream`, whose data lives longer than it.
    unsafe { &mut *(*stream).private_data.cast() }
}

unsafe extern "C" fn get_schema(stream: *mut Stream, out: *mut Schema) -> i32 {
    // SAFETY: a consumer calls this with a stream of `through_stream`, whose data lives longer than it, and with a place
    // for a schema.
    unsafe {
        let given = given(stream);
        if given.fault == 1 {
            return 22;
        }
        let (schema, owned) = schema_of(given.schema);
        given.schemas.push(owned);
        out.write(schema);
    }
    0
}

unsafe extern "C" fn get_next(stream: *mut Stream, out: *mut Array) -> i32 {
    // SAFETY: a consumer calls this with a stream of `through_stream`, whose data lives longer than it, and with a place
    // for an array.
    unsafe {
        let given = given(stream);
        let Some(next) = given.arrays.next() else { return i32::from(matches!(given.fault, 2 | 3 | 6)) };
        let (array, owned) = array_of(next);
        given.handed.push(owned);
        out.write(array);
    }
    0
}

unsafe extern "C" fn get_last_error(stream: *mut Stream) -> *const c_char {
    // SAFETY: a consumer calls this with a stream of `through_stream`, whose data lives longer than it.
    if unsafe { given(stream) }.fault == 3 { ptr::null() } else { c"the disk is \xff gone".as_ptr() }
}

unsafe extern "C" fn release_stream(stream: *mut Stream) {
    // SAFETY: a consumer calls this with a stream of `through_stream`, whose data lives longer than it.
    unsafe {
        given(stream).releases += 1;
        (*stream).release = None;
    }
}

type Rows = Vec<Option<String>>;

/// The rows as the package reads them.
fn read(imported: Result<Imported, Error>) -> Result<Rows, Error> {
    let mut imported = imported?;
    let other = !matches!(imported.kind(), ColumnKind::Text(_));
    let column = imported.read()?;
    assert!(!other, "what is no text is refused");
    let mut texts = column.texts.into_iter();
    let rows = match column.valid {
        None => texts.by_ref().map(Some).collect(),
        Some(valid) => valid.into_iter().map(|valid| valid.then(|| texts.next().expect("a text"))).collect(),
    };
    assert_eq!(texts.next(), None, "every text has its row");
    Ok(rows)
}

fn through_array(described: &Described, handed: &Handed) -> Result<Rows, Error> {
    let (schema, of_schema) = schema_of(described);
    let (mut array, of_array) = array_of(handed);
    // SAFETY: both are as the interface demands them, but for numbers and contents, which may be any.
    let found =
        read(unsafe { import_array(NonNull::from(&mut array).cast(), &*ptr::from_ref(&schema).cast()) });
    assert!(array.release.is_none(), "it was moved out");
    assert_eq!(releases(of_array), usize::from(!handed.released), "each array is released once");
    assert_eq!(releases(of_schema), 0, "the schema stays with the producer");
    found
}

fn through_stream(described: &Described, handed: &[Handed], fault: u8) -> Result<Rows, Error> {
    let mut given = Given {
        schema: described,
        arrays: handed.iter(),
        fault,
        releases: 0,
        schemas: Vec::new(),
        handed: Vec::new(),
    };
    let data = &raw mut given;
    let mut stream = Stream {
        get_schema: (fault != 4).then_some(get_schema),
        get_next: (fault != 5).then_some(get_next),
        get_last_error: (fault != 6).then_some(get_last_error),
        release: (fault != 7).then_some(release_stream),
        private_data: data.cast(),
    };
    // SAFETY: as in `through_array`; the functions are those of the interface.
    let found = read(unsafe { import_stream(NonNull::from(&mut stream).cast()) });
    assert_eq!(given.releases, usize::from(fault != 7), "the stream is released once");
    for schema in given.schemas {
        assert_eq!(
            releases(schema),
            usize::from(!described.released),
            "each schema of a stream is released once"
        );
    }
    for (owned, handed) in given.handed.into_iter().zip(handed) {
        assert_eq!(releases(owned), usize::from(!handed.released), "each array is released once");
    }
    found
}

/// Whether the column that the bytes describe was read. It must be what the plain reading finds, or be refused if that does.
fn column(data: &[u8]) -> bool {
    let mut bytes = Bytes(data);
    let path = bytes.byte();
    let described = Described::new(&mut bytes, 2);
    let kind = plain::kind_of(&described);
    let shape = kind.clone().unwrap_or(Kind::Other);
    let (found, expected) = if path == 0 {
        let handed = Handed::new(&mut bytes, &shape);
        (through_array(&described, &handed), plain::rows(kind.as_ref(), &[handed]))
    } else {
        let fault = bytes.byte() % 8;
        let mut handed: Vec<_> = (0..path % 4).map(|_| Handed::new(&mut bytes, &shape)).collect();
        let found = through_stream(&described, &handed, fault);
        // A released array is the end of a stream.
        let end = handed.iter().position(|handed| handed.released).unwrap_or(handed.len());
        let ended = end < handed.len();
        handed.truncate(end);
        let fails = match fault {
            0 => false,
            2 | 3 | 6 => !ended,
            _ => true,
        };
        (found, if fails { None } else { plain::rows(kind.as_ref(), &handed) })
    };
    match (found, expected) {
        (Ok(found), Some(expected)) => {
            assert_eq!(found, expected);
            true
        }
        (Err(Error::Argument { .. } | Error::OutOfMemory { .. }), None) => false,
        (found, expected) => panic!("{found:?} instead of {expected:?}"),
    }
}

pub(super) fn run(data: &[u8]) {
    column(data);
}

/// Columns of every layout that are read.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let text = "on iki baytı geçen bir metin";
    let long = text.len() as u8;
    let header = |shift: u8, length, offset| [shift << 2, length, offset, 0, 0, 0];
    let body = [&[1, 0b1101, 0, 3, 3, 3 + long, 3 + long, 0], "bir".as_bytes(), text.as_bytes()].concat();
    let small = [&header(0, 4, 0)[..], &body].concat();
    // From the second row on, at an odd address.
    let slice = [&header(1, 3, 1)[..], &body].concat();
    let words = [&[3][..], b"bir", &[0; 9], &[0; 13], &[long, 0, 0, 0], &[0; 13]].concat();
    let views = [&header(2, 4, 0)[..], &[1, 0b1101, 1, long], text.as_bytes(), &[0], &words].concat();
    let keys = [&header(0, 4, 0)[..], &[1, 0b1011, 2, 0, 99, 0], &small].concat();
    let nulls = header(0, 5, 0);
    let mut seeds = vec![[&[0, 3, 0][..], &nulls].concat(), [&[0, 2, 0][..], &views].concat()];
    for format in [0, 1] {
        seeds.push([&[0, format, 0][..], &small].concat());
        seeds.push([&[2, format, 0, 0][..], &small, &slice].concat());
        seeds.extend((4..12).map(|key| [&[0, key, 1, format, 0][..], &keys].concat()));
    }
    assert!(seeds.iter().all(|seed| column(seed)), "every seed is a sound column");
    seeds
}
