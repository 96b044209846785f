//! A result as bytes, for tiers outside this process.
//!
//! ```text
//! version u8 │ kind u8 │ format of values u8 │ 0 │ tokens u32 │ width u32 │ values
//! ```
//! All little-endian. Whoever stores a record adds a checksum: a record whose checksum is right was written by this code.

use half::f16;

use super::super::item::CachedItem;
use crate::output::{Item, OutputKind, View};

/// Raised when the layout changes. A record of another version is no record.
const VERSION: u8 = 1;
/// A vector.
const DENSE: u8 = 1;
/// A number for each label.
const SCORES: u8 = 2;
const HEADER: usize = 12;

/// How the values of a record are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ValueFormat {
    /// Exactly as they were computed.
    #[default]
    Float32,
    /// Half the bytes; relative error at most 2⁻¹¹.
    Float16,
    /// A quarter of the bytes; error at most 1/254 of the largest value of the vector.
    Int8,
}

impl ValueFormat {
    fn code(self) -> u8 {
        match self {
            Self::Float32 => 0,
            Self::Float16 => 1,
            Self::Int8 => 2,
        }
    }
}

/// Whether results of this kind are stored outside of memory.
pub(crate) fn stores(kind: OutputKind) -> bool {
    matches!(kind, OutputKind::Dense | OutputKind::Scores)
}

/// The bytes of a result; `None` for one that cannot be written in `format`.
pub(super) fn encode(item: &CachedItem, format: ValueFormat) -> Option<Vec<u8>> {
    let (kind, values) = match item.item().view() {
        View::Dense(values) => (DENSE, values),
        View::Scores(values) => (SCORES, values),
        // In memory only, as `stores` says.
        View::Sparse(_) | View::Multi(_) | View::All(_) => return None,
    };
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let fits = match format {
        ValueFormat::Float32 => true,
        ValueFormat::Float16 => largest <= f16::MAX.to_f32(),
        ValueFormat::Int8 => largest.is_finite(),
    };
    if !fits {
        return None;
    }
    let mut bytes = Vec::with_capacity(HEADER + 4 + size_of_val(values));
    bytes.extend([VERSION, kind, format.code(), 0]);
    bytes.extend(item.tokens().to_le_bytes());
    bytes.extend(u32::try_from(values.len()).ok()?.to_le_bytes());
    match format {
        ValueFormat::Float32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        ValueFormat::Float16 => {
            bytes.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()));
        }
        ValueFormat::Int8 => {
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            bytes.extend(scale.to_le_bytes());
            bytes.extend(values.iter().map(|value| (value / scale).round() as i8 as u8));
        }
    }
    Some(bytes)
}

/// The result that `bytes` hold; `None` for anything that [`encode`] does not write.
pub(super) fn decode(bytes: &[u8]) -> Option<CachedItem> {
    let (header, values) = bytes.split_at_checked(HEADER)?;
    let [VERSION, kind @ (DENSE | SCORES), format, 0] = header[..4] else { return None };
    let number = |at: usize| Some(u32::from_le_bytes(header[at..at + 4].try_into().ok()?));
    let (tokens, width) = (number(4)?, number(8)? as usize);
    let values: Vec<f32> = match format {
        0 if values.len() == width.checked_mul(4)? => {
            values.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
        }
        1 if values.len() == width.checked_mul(2)? => {
            values.as_chunks::<2>().0.iter().map(|value| f16::from_le_bytes(*value).to_f32()).collect()
        }
        2 if values.len() == width.checked_add(4)? => {
            let scale = f32::from_le_bytes(values[..4].try_into().ok()?);
            values[4..].iter().map(|value| f32::from(*value as i8) * scale).collect()
        }
        _ => return None,
    };
    let item = if kind == DENSE { Item::Dense(values.into()) } else { Item::Scores(values.into()) };
    Some(CachedItem::new(item, tokens))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(values: &[f32]) -> CachedItem {
        CachedItem::new(Item::Dense(values.into()), 7)
    }

    fn back(values: &[f32], format: ValueFormat) -> Vec<f32> {
        let decoded = decode(&encode(&item(values), format).unwrap()).unwrap();
        assert_eq!(decoded.tokens(), 7);
        let View::Dense(values) = decoded.item().view() else { panic!("no vector") };
        values.to_vec()
    }

    proptest! {
        #[test]
        fn values_come_back_as_exactly_as_their_format_allows(values in prop::collection::vec(-2.0..2.0_f32, 0..40)) {
            prop_assert_eq!(&back(&values, ValueFormat::Float32), &values);
            let largest = values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            for (format, error) in [(ValueFormat::Float16, 2.0 / 2048.0), (ValueFormat::Int8, largest / 253.0)] {
                for (a, b) in back(&values, format).iter().zip(&values) {
                    prop_assert!((a - b).abs() <= error, "{:?}: {} {}", format, a, b);
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
            let mut framed = vec![VERSION, DENSE, bytes.first().copied().unwrap_or(0) % 4, 0];
            framed.extend(&bytes);
            let _ = decode(&framed);
        }
    }

    #[test]
    fn scores_are_scores() {
        let scores = CachedItem::new(Item::Scores([0.25, -3.0].into()), 9);
        assert_eq!(decode(&encode(&scores, ValueFormat::Float32).unwrap()), Some(scores));
    }

    #[test]
    fn what_another_version_wrote_is_no_record() {
        let mut bytes = encode(&item(&[1.0]), ValueFormat::Float32).unwrap();
        assert!(decode(&bytes).is_some());
        bytes[0] += 1;
        assert!(decode(&bytes).is_none());
        assert!(encode(&item(&[1e9]), ValueFormat::Float16).is_none());
    }

    #[test]
    fn a_record_of_another_length_than_it_says_is_none() {
        for format in [ValueFormat::Float32, ValueFormat::Float16, ValueFormat::Int8] {
            let whole = encode(&item(&[1.0, -0.5, 0.25]), format).unwrap();
            assert!(decode(&whole).is_some(), "{format:?}");
            for cut in 0..whole.len() {
                assert!(decode(&whole[..cut]).is_none(), "{format:?}, {cut} bytes");
            }
            for more in 1..9 {
                let longer = [&whole[..], &vec![0; more]].concat();
                assert!(decode(&longer).is_none(), "{format:?}, {more} bytes more");
            }
        }
    }
}
