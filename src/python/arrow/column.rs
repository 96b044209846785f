//! The texts of an Arrow column.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::array::{Array, ArrayRef};
use arrow_array::cast::AsArray;
use arrow_schema::DataType;

use crate::compute::memory::{joined, push};
use crate::{Error, Result};

/// The texts of a column, and where it has none.
pub(in crate::python) struct Column {
    /// The texts that are not null, in order.
    pub(in crate::python) texts: Vec<String>,
    /// For each row whether it has a text; None when all rows do.
    pub(in crate::python) valid: Option<Vec<bool>>,
}

impl Column {
    /// Copies the texts of the column's chunks.
    ///
    /// # Errors
    /// [`Error::Argument`] for a column of another type, and for offsets, indices or bytes that are not valid.
    pub(super) fn read(kind: &DataType, chunks: &[ArrayRef]) -> Result<Self> {
        if !is_text(kind) {
            let remedy = if matches!(kind, DataType::Struct(_)) { "; select one column" } else { "" };
            return Err(wrong(format!(
                "is a column of {kind}; supported are string, large_string, string_view, and dictionaries of these{remedy}"
            )));
        }
        // The structures come from other libraries; arrow's readers assert what they rely on.
        catch_unwind(AssertUnwindSafe(|| Self::collect(chunks)))
            .unwrap_or_else(|payload| Err(Error::panic("arrow", payload.as_ref())))
    }

    /// The texts of a column without nulls.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first null: numpy has none.
    pub(super) fn all(self) -> Result<Vec<String>> {
        match self.valid.iter().flatten().position(|valid| !valid) {
            Some(row) => Err(Error::argument(
                "texts",
                format!(
                    "texts[{row}] is null, which has no vector: drop the nulls, or call embed_arrow, which gives null vectors"
                ),
            )),
            None => Ok(self.texts),
        }
    }

    fn collect(chunks: &[ArrayRef]) -> Result<Self> {
        let mut column = Self { texts: Vec::new(), valid: None };
        let mut rows = 0;
        for chunk in chunks {
            // The C interface hands over pointers unchecked. This checks every offset, index and byte.
            let checked = chunk.to_data().validate_full();
            checked.map_err(|error| wrong(format!("is damaged: {error}")))?;
            column.append(chunk, rows)?;
            rows += chunk.len();
            if let Some(valid) = &mut column.valid {
                valid.resize(rows, true);
            }
        }
        Ok(column)
    }

    /// Appends the rows of `chunk`, which are numbered from `first`.
    fn append(&mut self, chunk: &ArrayRef, first: usize) -> Result<()> {
        for (row, text) in rows(chunk).enumerate() {
            match text {
                Some(text) => push(&mut self.texts, joined(&[text])?)?,
                None => {
                    let valid = self.valid.get_or_insert_default();
                    valid.resize(first + row, true);
                    valid.push(false);
                }
            }
        }
        Ok(())
    }
}

/// The texts of a chunk, None for nulls.
fn rows(chunk: &dyn Array) -> Box<dyn Iterator<Item = Option<&str>> + '_> {
    match chunk.data_type() {
        DataType::Utf8 => Box::new(chunk.as_string::<i32>().iter()),
        DataType::LargeUtf8 => Box::new(chunk.as_string::<i64>().iter()),
        DataType::Utf8View => Box::new(chunk.as_string_view().iter()),
        DataType::Null => Box::new(std::iter::repeat_n(None, chunk.len())),
        DataType::Dictionary(..) => {
            let dictionary = chunk.as_any_dictionary();
            let values: Vec<Option<&str>> = rows(dictionary.values()).collect();
            // A dictionary without values has only nulls, and its keys no meaning.
            let keys = if values.is_empty() { Vec::new() } else { dictionary.normalized_keys() };
            let text = move |row| {
                (!dictionary.keys().is_null(row))
                    .then(|| keys.get(row).and_then(|&key| values[key]))
                    .flatten()
            };
            Box::new((0..chunk.len()).map(text))
        }
        other => unreachable!("{other} is no type of text"),
    }
}

/// Whether a column of this type holds texts: strings of any layout, or nulls only.
pub(super) fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn wrong(reason: String) -> Error {
    Error::argument("texts", format!("the Arrow data {reason}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::builder::StringDictionaryBuilder;
    use arrow_array::types::Int8Type;
    use arrow_array::{Int32Array, LargeStringArray, NullArray, StringArray, StringViewArray};

    use super::*;

    fn read(chunks: &[ArrayRef]) -> (Vec<String>, Option<Vec<bool>>) {
        let column = Column::read(chunks[0].data_type(), chunks).unwrap();
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
    fn another_type_is_refused_by_name() {
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let error = Column::read(&DataType::Int32, &[numbers]).err().unwrap();
        assert!(error.to_string().contains("a column of Int32; supported are string"), "{error}");
        assert_eq!(error.param(), Some("texts"));
    }
}
