//! How many values a JSON text holds, counted without making them.

/// No fewer than the values and keys that a parser makes of `text`, or of its part before the first error.
///
/// Counts the punctuation outside strings and does not check the text otherwise.
pub fn values(text: &[u8]) -> usize {
    let mut values = 1;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'[' | b'{' | b',' | b':' => values += 1,
            _ => {}
        }
    }
    values
}

/// Moves past the end of a string whose first quotation mark was read.
fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_outside_strings_counts() {
        for (text, wanted) in
            [("", 1), ("5", 1), ("[1,2,3]", 4), (r#"{"a":[{}],"b":null}"#, 7), ("[[[]],[]]", 6)]
        {
            assert_eq!(values(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn strings_do_not_count() {
        assert_eq!(values(br#""[{,:""#), 1);
        assert_eq!(values(br#"["\"[,", "\\", ":"]"#), 4);
        assert_eq!(values(br#"["\\\",["]"#), 2);
    }

    #[test]
    fn what_is_no_json_is_counted_without_a_panic() {
        assert_eq!(values(b"]]}}["), 2);
        assert_eq!(values(br#"["never closed, ["#), 2);
        assert_eq!(values(b"[\"\\"), 2);
        assert_eq!(values(&[0xff, b'[', 0x80, b',']), 3);
    }

    #[test]
    fn the_count_is_at_least_what_a_parser_makes() {
        fn made(value: &serde_json::Value) -> usize {
            match value {
                serde_json::Value::Array(items) => 1 + items.iter().map(made).sum::<usize>(),
                serde_json::Value::Object(map) => {
                    1 + map.values().map(|value| 1 + made(value)).sum::<usize>()
                }
                _ => 1,
            }
        }
        for text in
            ["[]", "{}", r#"{"a":1}"#, "[{},{},[]]", r#"{"a":{"b":[1,"x,y"]},"c":[[],[[]]]}"#, "[[1],[2]]"]
        {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            assert!(values(text.as_bytes()) >= made(&value), "{text}");
        }
    }
}
