//! The normalization that SentencePiece compiles into bytes: the size of a trie, the trie, and the texts that replace others.
//!
//! The crate that reads it takes memory for as large a trie as the first four bytes say, and more than there is ends the
//! process. So they are compared with the length first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Whether the trie is whole units of four bytes, and inside the map. Without a trie there is nothing to look up.
pub(super) fn is_sound(map: &[u8]) -> bool {
    let Some((size, rest)) = map.split_first_chunk::<4>() else { return false };
    let size = u32::from_le_bytes(*size) as usize;
    size > 0 && size.is_multiple_of(4) && size <= rest.len()
}

/// Whether all maps in a normalizer of `tokenizer.json` are.
pub(super) fn are_sound(normalizer: &Value) -> bool {
    match normalizer {
        Value::Object(parts) => parts.iter().all(|(key, part)| match part.as_str() {
            Some(text) if key == "precompiled_charsmap" => {
                STANDARD.decode(text).is_ok_and(|map| is_sound(&map))
            }
            _ => are_sound(part),
        }),
        Value::Array(parts) => parts.iter().all(are_sound),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_trie_is_whole_units_inside_its_map() {
        for (map, sound) in [
            (&[][..], false),
            (&[0, 0, 0, 0], false),
            (&[4, 0, 0, 0, 1, 2, 3], false),
            (&[3, 0, 0, 0, 1, 2, 3, 4], false),
            (&[4, 0, 0, 0, 1, 2, 3, 4], true),
            (&[4, 0, 0, 0, 1, 2, 3, 4, 5], true),
            (&[255, 255, 255, 255, 0, 0, 0, 0], false),
        ] {
            assert_eq!(is_sound(map), sound, "{map:?}");
            let one = json!({"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(map)});
            assert_eq!(are_sound(&one), sound);
            assert_eq!(are_sound(&json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, one]})), sound);
        }
        assert!(!are_sound(&json!({"precompiled_charsmap": "no base64!"})));
        assert!(are_sound(&Value::Null));
    }
}
