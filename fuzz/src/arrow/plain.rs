//! A plain reading of a column, value by value: what is expected of the package.

use super::{Described, Handed, MOST, Rows};

/// What a column holds.
#[derive(Clone)]
pub(super) enum Kind {
    /// Offsets of so many bytes, and texts.
    Texts { width: usize },
    /// Views of texts.
    Views,
    /// Nothing.
    Nulls,
    /// Keys of so many bytes into values.
    Keys { width: usize, signed: bool, values: Box<Kind> },
    /// No texts.
    Other,
}

/// The values of an array.
enum Values {
    Texts(Rows),
    Nulls(i64),
}

/// The kind that a schema describes; None if it must be refused.
pub(super) fn kind_of(described: &Described) -> Option<Kind> {
    let format = format_of(described)?;
    let Some(values) = &described.dictionary else { return named(format) };
    let (width, signed) = match format {
        "c" | "C" => (1, format == "c"),
        "s" | "S" => (2, format == "s"),
        "i" | "I" => (4, format == "i"),
        "l" | "L" => (8, format == "l"),
        _ => return None,
    };
    let values_format = format_of(values)?;
    if values.dictionary.is_some() {
        return Some(Kind::Other);
    }
    match named(values_format)? {
        Kind::Other => Some(Kind::Other),
        values => Some(Kind::Keys { width, signed, values: Box::new(values) }),
    }
}

fn format_of(described: &Described) -> Option<&'static str> {
    described.format.filter(|_| !described.released)?.to_str().ok()
}

fn named(format: &str) -> Option<Kind> {
    match format {
        "u" => Some(Kind::Texts { width: 4 }),
        "U" => Some(Kind::Texts { width: 8 }),
        "vu" => Some(Kind::Views),
        "n" => Some(Kind::Nulls),
        "" | "?" => None,
        _ => Some(Kind::Other),
    }
}

/// Whether row `row` of the buffers has a value.
fn has(handed: &Handed, row: usize) -> bool {
    let bitmap = handed.buffers.first().and_then(Option::as_ref);
    bitmap.is_none_or(|bits| bits.get(row / 8).is_some_and(|byte| byte >> (row % 8) & 1 == 1))
}

/// The rows of the buffers that the array has.
fn window(handed: &Handed) -> std::ops::Range<usize> {
    let first = usize::try_from(handed.offset).unwrap_or(0);
    let count = usize::try_from(handed.length).unwrap_or(0);
    first..first.saturating_add(count)
}

/// Rows that the bitmap marks as null.
pub(super) fn null_count(handed: &Handed) -> i64 {
    match window(handed) {
        rows if rows.end <= 64 => rows.filter(|&row| !has(handed, row)).count() as i64,
        _ => 0,
    }
}

/// The rows of a column; None if it must be refused.
pub(super) fn rows(kind: Option<&Kind>, arrays: &[Handed]) -> Option<Rows> {
    let mut all = Rows::new();
    for handed in arrays {
        match values(kind?, handed)? {
            Values::Texts(rows) => all.extend(rows),
            Values::Nulls(count) => {
                let count = usize::try_from(count).ok().filter(|count| *count < 1 << 20)?;
                all.extend(std::iter::repeat_n(None, count)); // more finds no memory
            }
        }
    }
    (!matches!(kind?, Kind::Other)).then_some(all)
}

fn values(kind: &Kind, handed: &Handed) -> Option<Values> {
    let (length, offset) = (handed.length, handed.offset);
    let sound = length >= 0 && offset >= 0 && length.checked_add(offset).is_some_and(|rows| rows <= MOST);
    if handed.released || !sound {
        return None;
    }
    let buffers = match kind {
        Kind::Nulls => return Some(Values::Nulls(length)),
        Kind::Other => return None,
        Kind::Texts { .. } => 3..=3,
        Kind::Views => 3..=1 << 24,
        Kind::Keys { .. } => 2..=2,
    };
    if !(-1..=length).contains(&handed.null_count) || !buffers.contains(&handed.n_buffers) {
        return None;
    }
    if length == 0 {
        return Some(Values::Texts(Rows::new()));
    }
    if handed.unlisted {
        return None;
    }
    let texts = match kind {
        Kind::Texts { width } => texts(handed, *width)?,
        Kind::Views => views(handed)?,
        Kind::Keys { width, signed, values } => looked_up(handed, *width, *signed, values)?,
        Kind::Nulls | Kind::Other => return None,
    };
    let counted = handed.null_count == -1 || handed.null_count == null_count(handed);
    counted.then_some(Values::Texts(texts))
}

/// The number at `index` of a buffer of numbers of `width` bytes.
fn number(bytes: &[u8], index: usize, width: usize) -> Option<i64> {
    let bytes = bytes.get(index * width..(index + 1) * width)?;
    Some(match width {
        1 => i8::from_ne_bytes(bytes.try_into().ok()?).into(),
        2 => i16::from_ne_bytes(bytes.try_into().ok()?).into(),
        4 => i32::from_ne_bytes(bytes.try_into().ok()?).into(),
        _ => i64::from_ne_bytes(bytes.try_into().ok()?),
    })
}

/// The texts of rows that have one, of a text for every row.
fn marked(handed: &Handed, texts: impl IntoIterator<Item = Option<String>>) -> Option<Rows> {
    let rows = window(handed).zip(texts);
    rows.map(|(row, text)| text.map(|text| has(handed, row).then_some(text))).collect()
}

/// The buffer of this number. One of no bytes may be missing.
fn buffer(handed: &Handed, index: usize, is_empty: bool) -> Option<&[u8]> {
    if is_empty {
        return Some(&[]);
    }
    handed.buffers.get(index)?.as_deref()
}

fn texts(handed: &Handed, width: usize) -> Option<Rows> {
    let offsets = buffer(handed, 1, false)?;
    let rows = window(handed);
    let last = number(offsets, rows.end, width)?;
    if !(0..=MOST).contains(&last) {
        return None;
    }
    let bytes = buffer(handed, 2, last == 0)?;
    marked(
        handed,
        rows.map(|row| {
            let [start, end] =
                [row, row + 1].map(|at| number(offsets, at, width).and_then(|at| usize::try_from(at).ok()));
            String::from_utf8(bytes.get(start?..end?)?.to_vec()).ok()
        }),
    )
}

fn views(handed: &Handed) -> Option<Rows> {
    let views = buffer(handed, 1, false)?;
    let count = usize::try_from(handed.n_buffers).ok()? - 3;
    let sizes = buffer(handed, count + 2, count == 0)?;
    let texts: Vec<&[u8]> = (0..count)
        .map(|index| {
            let size = number(sizes, index, 8).filter(|size| (0..=MOST).contains(size))?;
            buffer(handed, index + 2, size == 0)
        })
        .collect::<Option<_>>()?;
    let field = |row: usize, field: usize| {
        let bytes = &views[row * 16 + field * 4..][..4];
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
    };
    marked(
        handed,
        window(handed).map(|row| {
            let length = field(row, 0);
            let inline = &views[row * 16 + 4..][..12];
            let text = if length <= 12 {
                inline[length..].iter().all(|byte| *byte == 0).then(|| &inline[..length])?
            } else {
                let text = texts.get(field(row, 2))?;
                let text = text.get(field(row, 3)..)?.get(..length)?;
                text.starts_with(&inline[..4]).then_some(text)?
            };
            String::from_utf8(text.to_vec()).ok()
        }),
    )
}

fn looked_up(handed: &Handed, width: usize, signed: bool, kind: &Kind) -> Option<Rows> {
    let keys = buffer(handed, 1, false)?;
    let found = values(kind, handed.dictionary.as_ref()?)?;
    window(handed)
        .map(|row| {
            if !has(handed, row) {
                return Some(None);
            }
            let key = number(keys, row, width)?;
            let key = if signed || width == 8 { key } else { key & ((1 << (8 * width)) - 1) };
            let key = usize::try_from(key).ok()?; // as an unsigned number of 64 bits, a negative one is larger than any array
            match &found {
                Values::Texts(texts) => texts.get(key).cloned(),
                Values::Nulls(count) => (key < usize::try_from(*count).ok()?).then_some(None),
            }
        })
        .collect()
}
