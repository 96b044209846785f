//! The texts of an Arrow column, and what of its values is checked.

use arrow_array::array::{Array, ArrayRef, make_array};
use arrow_array::cast::AsArray;
use arrow_array::{LargeStringArray, StringArray, StringViewArray, downcast_integer};
use arrow_buffer::{ArrowNativeType, Buffer};
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, DataType};

use crate::compute::memory::{joined, push, reserve};
use crate::{Error, Result};

/// What a column holds, by its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnKind {
    /// Strings of some layout, dictionaries of strings, or nulls alone.
    Text(DataType),
    /// Columns: a frame.
    Frame,
    /// Something else, with its name.
    Other(String),
}

/// The texts of a column, and where it has none.
pub struct Column {
    /// The texts that are not null, in order.
    pub texts: Vec<String>,
    /// For each row whether it has a text; None when all rows do.
    pub valid: Option<Vec<bool>>,
}

/// What an array consists of. The values in the buffers may be any.
pub(super) struct Part {
    kind: DataType,
    pub(super) length: usize,
    offset: usize,
    /// What the array claims; None where it does not know.
    pub(super) null_count: Option<usize>,
    pub(super) nulls: Option<Buffer>,
    pub(super) buffers: Vec<Buffer>,
    /// Those of a dictionary.
    pub(super) values: Option<Box<Part>>,
}

impl Part {
    /// Rows of a type, without buffers.
    pub(super) fn new(kind: &DataType, length: usize, offset: usize) -> Self {
        let kind = kind.clone();
        Self { kind, length, offset, null_count: None, nulls: None, buffers: Vec::new(), values: None }
    }

    /// The array, with every offset, key, byte and count checked.
    fn build(self) -> Result<ArrayData, ArrowError> {
        if self.length == 0 {
            return Ok(ArrayData::new_empty(&self.kind));
        }
        let values = self.values.map(|values| values.build()).transpose()?;
        let data = ArrayData::builder(self.kind)
            .len(self.length)
            .offset(self.offset)
            .null_bit_buffer(self.nulls)
            .buffers(self.buffers)
            .child_data(values.into_iter().collect())
            .build()?;
        match self.null_count {
            Some(claimed) if claimed != data.null_count() => Err(ArrowError::CDataInterface(format!(
                "it claims {claimed} nulls and marks {}",
                data.null_count()
            ))),
            _ => Ok(data),
        }
    }
}

impl Column {
    /// Copies the texts of the column's parts.
    ///
    /// # Errors
    /// [`Error::Argument`] for a column of another kind, and for offsets, keys, bytes and counts that are not valid.
    pub(super) fn read(kind: &ColumnKind, parts: Vec<Part>) -> Result<Self> {
        let (name, remedy) = match kind {
            ColumnKind::Text(_) => return Self::collect(parts),
            ColumnKind::Frame => ("Struct", "; select one column"),
            ColumnKind::Other(name) => (name.as_str(), ""),
        };
        Err(refused(format!(
            "is a column of {name}; supported are string, large_string, string_view, and dictionaries of these{remedy}"
        )))
    }

    /// The texts of a column without nulls.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first null: numpy has none.
    pub fn all(self) -> Result<Vec<String>> {
        match self.valid.iter().flatten().position(|valid| !valid) {
            Some(row) => Err(Error::item(
                "texts",
                &[row],
                " is null, which has no vector: drop the nulls, or call embed_arrow, which gives null vectors",
            )),
            None => Ok(self.texts),
        }
    }

    fn collect(parts: Vec<Part>) -> Result<Self> {
        let mut column = Self { texts: Vec::new(), valid: None };
        let mut rows = 0;
        for part in parts {
            let data = part.build().map_err(|error| refused(format!("is damaged: {error}")))?;
            let chunk = make_array(data);
            column.append(&chunk, rows)?;
            rows += chunk.len();
            if let Some(valid) = &mut column.valid {
                reserve(valid, rows - valid.len())?;
                valid.resize(rows, true);
            }
        }
        Ok(column)
    }

    /// Appends the rows of `chunk`, which are numbered from `first`.
    fn append(&mut self, chunk: &ArrayRef, first: usize) -> Result<()> {
        let DataType::Dictionary(..) = chunk.data_type() else {
            let rows = Strings::of(chunk);
            return self.extend(first, chunk.len(), (0..chunk.len()).map(|row| rows.get(row)));
        };
        let dictionary = chunk.as_any_dictionary();
        let (keys, values) = (dictionary.keys(), Strings::of(dictionary.values()));
        macro_rules! look_up {
            ($type:ty) => {{
                let keys = keys.as_primitive::<$type>().iter();
                self.extend(
                    first,
                    chunk.len(),
                    keys.map(|key| key.and_then(|key| values.get(key.as_usize()))),
                )
            }};
        }
        downcast_integer! {
            keys.data_type() => (look_up),
            other => Err(Error::internal("arrow", format!("{other} as keys"))),
        }
    }

    /// Appends `count` rows, None for nulls.
    fn extend<'a>(
        &mut self,
        first: usize,
        count: usize,
        rows: impl Iterator<Item = Option<&'a str>>,
    ) -> Result<()> {
        for (row, text) in rows.enumerate() {
            match text {
                Some(text) => push(&mut self.texts, joined(&[text])?)?,
                None => {
                    let valid = self.valid.get_or_insert_default();
                    // For all rows at once: a column of nulls takes no memory of its own, so its length may be any.
                    reserve(valid, (first + count).saturating_sub(valid.len()))?;
                    valid.resize(first + row, true);
                    valid.push(false);
                }
            }
        }
        Ok(())
    }
}

/// An array of strings, or of nulls alone.
enum Strings<'a> {
    Small(&'a StringArray),
    Large(&'a LargeStringArray),
    Views(&'a StringViewArray),
    Nulls,
}

impl<'a> Strings<'a> {
    fn of(array: &'a ArrayRef) -> Self {
        match array.data_type() {
            DataType::Utf8 => Self::Small(array.as_string()),
            DataType::LargeUtf8 => Self::Large(array.as_string()),
            DataType::Utf8View => Self::Views(array.as_string_view()),
            _ => Self::Nulls,
        }
    }

    /// The text of a row; None for a null.
    fn get(&self, row: usize) -> Option<&'a str> {
        match self {
            Self::Small(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Large(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Views(array) => array.is_valid(row).then(|| array.value(row)),
            Self::Nulls => None,
        }
    }
}

/// An error of a column whose structures or values are not valid.
pub(super) fn refused(reason: impl std::fmt::Display) -> Error {
    Error::argument("texts", format!(": the Arrow data {reason}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::StringDictionaryBuilder;
    use arrow_array::types::Int8Type;
    use arrow_array::{LargeStringArray, NullArray, StringArray, StringViewArray};

    use super::*;

    fn read(chunks: &[ArrayRef]) -> (Vec<String>, Option<Vec<bool>>) {
        fn part_of(data: &ArrayData) -> Part {
            let mut part = Part::new(data.data_type(), data.len(), data.offset());
            // Slices of arrays keep their bitmaps apart from their offsets.
            part.nulls = data.nulls().map(|nulls| {
                let mut bits = vec![false; data.offset()];
                bits.extend(nulls);
                arrow_buffer::BooleanBuffer::from(bits).into_inner()
            });
            part.buffers = data.buffers().to_vec();
            part.values = data.child_data().first().map(|values| Box::new(part_of(values)));
            part
        }
        let kind = ColumnKind::Text(chunks[0].data_type().clone());
        let column =
            Column::read(&kind, chunks.iter().map(|chunk| part_of(&chunk.to_data())).collect()).unwrap();
        (column.texts, column.valid)
    }

    #[test]
    fn all_kinds_of_text_columns_are_read() {
        let texts = ["bir", "", "çok uzun bir metin, satır içinde durmaz"];
        let all: [ArrayRef; 3] = [
            Arc::new(StringArray::from_iter_values(texts)),
            Arc::new(LargeStringArray::from_iter_values(texts)),
            Arc::new(StringViewArray::from_iter_values(texts)),
        ];
        for array in all {
            assert_eq!(read(&[Arc::clone(&array)]), (texts.map(String::from).to_vec(), None));
            assert_eq!(
                read(&[array.slice(1, 2), array.slice(0, 0)]),
                (vec![texts[1].into(), texts[2].into()], None)
            );
        }
    }

    #[test]
    fn nulls_of_every_chunk_are_counted_from_the_first_row() {
        let first: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None]));
        let second: ArrayRef = Arc::new(StringArray::from(vec![Some("b")]));
        let third: ArrayRef = Arc::new(NullArray::new(2));
        let (texts, valid) = read(&[second.clone(), first, second, third]);
        assert_eq!(texts, ["b", "a", "b"]);
        assert_eq!(valid, Some(vec![true, true, false, true, false, false]));
    }

    #[test]
    fn dictionaries_are_looked_up() {
        let mut builder = StringDictionaryBuilder::<Int8Type>::new();
        builder.extend([Some("x"), None, Some("y"), Some("x")]);
        let dictionary: ArrayRef = Arc::new(builder.finish());
        let expected = (vec!["x".into(), "y".into(), "x".into()], Some(vec![true, false, true, true]));
        assert_eq!(read(&[dictionary]), expected);
        let mut empty = StringDictionaryBuilder::<Int8Type>::new();
        empty.append_null();
        assert_eq!(read(&[Arc::new(empty.finish()) as ArrayRef]), (Vec::new(), Some(vec![false])));
    }

    #[test]
    fn another_kind_is_refused_by_name() {
        for (kind, words) in [
            (ColumnKind::Other("Int32".into()), "a column of Int32; supported are string"),
            (ColumnKind::Frame, "select one column"),
        ] {
            let error = Column::read(&kind, Vec::new()).err().unwrap();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.param(), Some("texts"));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri ends where an allocation fails")]
    fn more_nulls_than_memory_holds_are_an_error() {
        let nulls = |length| Part::new(&DataType::Null, length, 0);
        let read = |part| Column::read(&ColumnKind::Text(DataType::Null), vec![part]);
        assert_eq!(read(nulls(3)).unwrap().valid, Some(vec![false; 3]));
        assert!(matches!(read(nulls(1 << 47)), Err(Error::OutOfMemory { .. })));
        // As many values of a dictionary cost nothing: no row has them.
        let kind = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Null));
        let mut part = Part::new(&kind, 2, 0);
        part.buffers = vec![Buffer::from_vec(vec![0_i8, 1])];
        part.values = Some(Box::new(nulls(1 << 47)));
        let column = Column::read(&ColumnKind::Text(kind), vec![part]).unwrap();
        assert_eq!((column.texts.len(), column.valid), (0, Some(vec![false; 2])));
    }
}
