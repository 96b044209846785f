//! Requests and answers of both protocols, as bytes and values. Nothing here touches the network.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::address::Protocol;

/// How an OpenAI-compatible server is asked to write vectors; either form is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EncodingFormat {
    /// Little-endian float32, a third of the bytes.
    Base64,
    /// Lists of numbers, for servers that know nothing else.
    Float,
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// By text: its vector, which is finite, or why it has none. All vectors have the same length.
    pub(super) rows: Vec<AnswerRow>,
    /// Tokens that the server read for all texts together, when it reports them.
    pub(super) tokens: Option<u64>,
}

/// What a text has in an answer. One bad row says nothing about the others.
pub(super) type AnswerRow = Result<Vec<f32>, Defect>;

impl Answer {
    /// Dimensions; `None` when no text has a vector.
    pub(super) fn width(&self) -> Option<usize> {
        self.rows.iter().flatten().map(Vec::len).next()
    }
}

/// Why an answer, or one row of it, is none.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Defect {
    /// Not what the protocol says.
    Malformed(String),
    /// NaN or infinity.
    NotFinite,
}

#[derive(Serialize)]
struct OllamaRequest<'a> {
    model: &'a str,
    input: &'a [&'a str],
    truncate: bool,
}

#[derive(Serialize)]
struct OpenAiRequest<'a> {
    model: &'a str,
    input: &'a [&'a str],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct OllamaAnswer<E> {
    embeddings: Vec<E>,
    /// Of any kind, like [`OpenAiAnswer::usage`]: a count that is none takes no vectors away.
    #[serde(default)]
    prompt_eval_count: Value,
}

#[derive(Deserialize)]
struct OpenAiAnswer<E> {
    data: Vec<EmbeddingObject<E>>,
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct EmbeddingObject<E> {
    embedding: E,
    index: Option<usize>,
}

/// The body of a request for the vectors of `texts`.
///
/// # Errors
/// Those of writing JSON, as text.
pub(super) fn request(
    protocol: Protocol,
    model: &str,
    texts: &[&str],
    form: EncodingFormat,
) -> Result<Vec<u8>, String> {
    let body = match protocol {
        Protocol::Ollama => serde_json::to_vec(&OllamaRequest { model, input: texts, truncate: true }),
        Protocol::OpenAi => {
            let encoding_format = match form {
                EncodingFormat::Base64 => "base64",
                EncodingFormat::Float => "float",
            };
            serde_json::to_vec(&OpenAiRequest { model, input: texts, encoding_format })
        }
    };
    body.map_err(|error| error.to_string())
}

/// The vectors in `body`, which answers a request of `texts` texts.
pub(super) fn answer(protocol: Protocol, body: &[u8], texts: usize) -> Result<Answer, Defect> {
    let (rows, tokens) = match parse::<Embedding>(protocol, body) {
        Ok((rows, tokens)) => {
            (rows.into_iter().map(|(number, row)| (number, checked(row))).collect(), tokens)
        }
        Err(error) => {
            // The vectors one by one: the others may be sound. The first error is reported, as it says where.
            let (rows, tokens) = parse::<Value>(protocol, body)
                .or_else(|second| parse::<Value>(protocol, &nulls_for_nan(body).ok_or(second)?))
                .map_err(|_| unparsed(&error))?;
            let row =
                |value| Embedding::deserialize(value).map_err(|error| unparsed(&error)).and_then(checked);
            (rows.into_iter().map(|(number, value)| (number, row(value))).collect(), tokens)
        }
    };
    Ok(Answer { rows: arrange(rows, texts)?, tokens })
}

/// The vectors of an answer as they come, each with its number where it has one; and its count of tokens.
type Parsed<E> = (Vec<(Option<usize>, E)>, Option<u64>);

fn parse<E: DeserializeOwned>(protocol: Protocol, body: &[u8]) -> serde_json::Result<Parsed<E>> {
    Ok(match protocol {
        Protocol::Ollama => {
            let OllamaAnswer { embeddings, prompt_eval_count } = serde_json::from_slice(body)?;
            (embeddings.into_iter().map(|row| (None, row)).collect(), count(&prompt_eval_count))
        }
        Protocol::OpenAi => {
            let OpenAiAnswer { data, usage } = serde_json::from_slice(body)?;
            let rows = data.into_iter().map(|item| (item.index, item.embedding)).collect();
            (rows, count(&usage["prompt_tokens"]).or_else(|| count(&usage["total_tokens"])))
        }
    })
}

/// `body` with `null` for the numbers that JSON does not have, as servers in Python write them; `None` where it has none.
fn nulls_for_nan(body: &[u8]) -> Option<Vec<u8>> {
    const NUMBERS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut written = Vec::with_capacity(body.len());
    let (mut rest, mut in_text, mut found) = (body, false, false);
    while let [first, others @ ..] = rest {
        let number = NUMBERS.iter().find(|number| !in_text && rest.starts_with(number));
        if let Some(number) = number {
            written.extend_from_slice(b"null");
            (rest, found) = (&rest[number.len()..], true);
            continue;
        }
        // What a backslash escapes ends no text.
        let taken = if in_text && *first == b'\\' { rest.len().min(2) } else { 1 };
        in_text ^= *first == b'"';
        written.extend_from_slice(&rest[..taken]);
        rest = if taken == 1 { others } else { &rest[taken..] };
    }
    found.then_some(written)
}

fn unparsed(error: &serde_json::Error) -> Defect {
    Defect::Malformed(format!("it does not parse: {error}"))
}

/// A whole number, also one that is written as a fraction.
fn count(value: &Value) -> Option<u64> {
    // From 2^53 on, not every whole number is a float.
    let whole = |float: &f64| float.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(float);
    value.as_u64().or_else(|| value.as_f64().filter(whole).map(|float| float as u64))
}

/// The numbers of a row, if they are a vector.
fn checked(Embedding(row): Embedding) -> AnswerRow {
    if row.is_empty() {
        return Err(Defect::Malformed("it has a vector without dimensions".into()));
    }
    if row.iter().all(|value| value.is_finite()) { Ok(row) } else { Err(Defect::NotFinite) }
}

/// Rows in the order of their numbers; without any, in their own.
fn arrange(rows: Vec<(Option<usize>, AnswerRow)>, texts: usize) -> Result<Vec<AnswerRow>, Defect> {
    let malformed = |reason: String| Err(Defect::Malformed(reason));
    if rows.len() != texts {
        return malformed(format!("it has {} vectors for {texts} texts", rows.len()));
    }
    let mut widths = rows.iter().filter_map(|(_, row)| row.as_ref().ok()).map(Vec::len);
    if let Some(width) = widths.next()
        && let Some(odd) = widths.find(|other| *other != width)
    {
        return malformed(format!("it has vectors of {width} and of {odd} dimensions"));
    }
    let mut arranged: Vec<Option<AnswerRow>> = vec![None; texts];
    for (place, (number, row)) in rows.into_iter().enumerate() {
        let number = number.unwrap_or(place);
        match arranged.get_mut(number) {
            Some(empty @ None) => *empty = Some(row),
            _ => return malformed(format!("the index {number} is there twice or out of range")),
        }
    }
    // As many rows as places, and none twice: every place has one.
    Ok(arranged.into_iter().flatten().collect())
}

/// A vector in either form.
struct Embedding(Vec<f32>);

impl<'de> Deserialize<'de> for Embedding {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Embedding;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of numbers, or float32 in base64")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Embedding, A::Error> {
                let mut values = Vec::new();
                // JSON has no NaN: many servers write null in its place.
                while let Some(value) = seq.next_element::<Option<f32>>()? {
                    values.push(value.unwrap_or(f32::NAN));
                }
                Ok(Embedding(values))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Embedding, E> {
                let bytes = STANDARD.decode(text).map_err(E::custom)?;
                let (values, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::custom("base64 that is not whole float32 values"));
                }
                Ok(Embedding(values.iter().map(|value| f32::from_le_bytes(*value)).collect()))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// What the server says in the body of an error: OpenAI's, Ollama's and FastAPI's forms, or the text itself; one line of
/// at most 300 characters.
pub(super) fn complaint(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    let error = &json["error"];
    let given = [&error["message"], error, &json["detail"], &json["message"]];
    let given = given.iter().find_map(|value| value.as_str()).unwrap_or(&text);
    let line: String = given.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// What a body says that is an error in place of an answer.
pub(super) fn complaint_of(body: &[u8]) -> Option<String> {
    let json: Value = serde_json::from_slice(body).ok()?;
    (!json.get("error")?.is_null()).then(|| complaint(body))
}

/// Shares of a request's `tokens` by the lengths of its texts. They sum to `tokens` exactly; one text alone has them all.
pub(super) fn shares(tokens: u64, lengths: &[usize]) -> Vec<u32> {
    let all: u128 = lengths.iter().map(|&length| length as u128 + 1).sum();
    let mut until = 0u128;
    let mut given = 0;
    let share = |length: &usize| {
        until += *length as u128 + 1;
        // Differences of rounded running sums: no share is off by more than one, and none is lost.
        let upto = u128::from(tokens) * until / all;
        let share = upto - given;
        given = upto;
        u32::try_from(share).unwrap_or(u32::MAX)
    };
    lengths.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn openai(body: &str, texts: usize) -> Result<Answer, Defect> {
        answer(Protocol::OpenAi, body.as_bytes(), texts)
    }

    fn sound(rows: &[&[f32]], tokens: Option<u64>) -> Answer {
        Answer { rows: rows.iter().map(|row| Ok(row.to_vec())).collect(), tokens }
    }

    /// What is wrong with the answer, or with its first row.
    fn defect(body: &str, texts: usize) -> Defect {
        openai(body, texts).map_or_else(|whole| whole, |answer| answer.rows[0].clone().unwrap_err())
    }

    #[test]
    fn requests_are_what_the_protocols_say() {
        let body = request(Protocol::Ollama, "m", &["a\n", "ü"], EncodingFormat::Base64).unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), r#"{"model":"m","input":["a\n","ü"],"truncate":true}"#);
        for (form, word) in [(EncodingFormat::Base64, "base64"), (EncodingFormat::Float, "float")] {
            let body = request(Protocol::OpenAi, "m", &["a"], form).unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body, json!({"model": "m", "input": ["a"], "encoding_format": word}));
        }
    }

    #[test]
    fn rows_go_where_their_index_says() {
        let body = r#"{"object":"list","data":[{"index":1,"embedding":[3,4.5]},{"index":0,"embedding":"AACAPwAAAEA="}],
                       "usage":{"prompt_tokens":7,"total_tokens":9}}"#;
        let answer = openai(body, 2).unwrap();
        assert_eq!(answer, sound(&[&[1.0, 2.0], &[3.0, 4.5]], Some(7)));
        let unnumbered = openai(r#"{"data":[{"embedding":[1]},{"embedding":[2]}]}"#, 2).unwrap();
        assert_eq!(unnumbered, sound(&[&[1.0], &[2.0]], None));
        let ollama = br#"{"model":"m","embeddings":[[1,2],[3,4]],"prompt_eval_count":5,"total_duration":1}"#;
        assert_eq!(
            super::answer(Protocol::Ollama, ollama, 2),
            Ok(sound(&[&[1.0, 2.0], &[3.0, 4.0]], Some(5)))
        );
    }

    #[test]
    fn wrong_answers_are_distinguished() {
        for (body, texts, word) in [
            ("", 1, "parse"),
            ("<html>", 1, "parse"),
            ("{}", 1, "data"),
            (r#"{"data":[]}"#, 1, "0 vectors for 1 texts"),
            (r#"{"data":[{"embedding":[]}]}"#, 1, "dimensions"),
            (r#"{"data":[{"embedding":[1]},{"embedding":[1,2]}]}"#, 2, "1 and of 2"),
            (r#"{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]}]}"#, 2, "twice"),
            (r#"{"data":[{"index":7,"embedding":[1]}]}"#, 1, "out of range"),
            (r#"{"data":[{"embedding":[nan]}]}"#, 1, "parse"),
            (r#"{"data":[{"embedding":["1"]}]}"#, 1, "parse"),
            (r#"{"data":[{"embedding":{"a":1}}]}"#, 1, "parse"),
            (r#"{"data":[{"embedding":"AAAA"}]}"#, 1, "whole float32"),
            (r#"{"data":[{"embedding":"???"}]}"#, 1, "parse"),
            (r#"{"data":[{"embedding":[1]}]} trailing"#, 1, "parse"),
        ] {
            match defect(body, texts) {
                Defect::Malformed(reason) => assert!(reason.contains(word), "{body}: {reason}"),
                Defect::NotFinite => panic!("{body}"),
            }
        }
        for infinite in
            ["[1e39]", "[1,-1e300]", "\"AADAfw==\"", "[1,null]", "[NaN,1]", "[Infinity]", "[0.5, -Infinity]"]
        {
            let body = format!(r#"{{"model":"NaN \"NaN","data":[{{"embedding":{infinite}}}]}}"#);
            assert_eq!(defect(&body, 1), Defect::NotFinite, "{infinite}");
        }
    }

    #[test]
    fn numbers_that_json_lacks_are_replaced_outside_of_texts() {
        let replaced =
            |body: &str| nulls_for_nan(body.as_bytes()).map(|json| String::from_utf8(json).unwrap());
        assert_eq!(replaced(r#"{"NaN": "\\\"NaN, Infinity", "b": [1, 2]}"#), None);
        let body = r#"["NaN\\", NaN, -Infinity,Infinity, "\"NaN", 1]"#;
        assert_eq!(replaced(body).unwrap(), r#"["NaN\\", null, null,null, "\"NaN", 1]"#);
        assert_eq!(replaced("\"\\"), None);
    }

    #[test]
    fn a_row_that_is_none_leaves_the_others() {
        let (one, nan) = ("\"AACAPw==\"", "\"AADAfw==\"");
        for bad in [
            nan,
            "[1e39]",
            "[null]",
            "[NaN]",
            "null",
            "[]",
            "\"???\"",
            "\"AAAA\"",
            "{\"a\":[1]}",
            "[[1]]",
            "3",
        ] {
            let item = |index: usize, vector: &str| format!(r#"{{"embedding":{vector},"index":{index}}}"#);
            let body = format!(r#"{{"data":[{},{},{}]}}"#, item(1, bad), item(2, one), item(0, "[2]"));
            let rows = openai(&body, 3).unwrap().rows;
            assert_eq!((&rows[0], &rows[2]), (&Ok(vec![2.0]), &Ok(vec![1.0])), "{bad}");
            assert!(rows[1].is_err(), "{bad}");
            let body = format!(r#"{{"embeddings":[[1],{bad},[2]]}}"#);
            let rows = answer(Protocol::Ollama, body.as_bytes(), 3).unwrap().rows;
            assert_eq!((&rows[0], &rows[2]), (&Ok(vec![1.0]), &Ok(vec![2.0])), "{bad}");
            assert!(rows[1].is_err(), "{bad}");
        }
    }

    #[test]
    fn a_count_of_tokens_that_is_none_takes_no_vectors_away() {
        for (count, tokens) in [
            ("2", Some(2)),
            ("2.0", Some(2)),
            ("2e3", Some(2000)),
            ("2.5", None),
            ("-1", None),
            ("1e30", None),
            ("null", None),
            ("\"2\"", None),
            ("[]", None),
            ("{}", None),
        ] {
            let usages =
                [format!(r#"{{"prompt_tokens":{count}}}"#), format!(r#"{{"total_tokens":{count}}}"#)];
            for usage in usages {
                let body = format!(r#"{{"data":[{{"embedding":[1]}}],"usage":{usage}}}"#);
                assert_eq!(openai(&body, 1), Ok(sound(&[&[1.0]], tokens)), "{usage}");
            }
            let body = format!(r#"{{"embeddings":[[1]],"prompt_eval_count":{count}}}"#);
            assert_eq!(answer(Protocol::Ollama, body.as_bytes(), 1), Ok(sound(&[&[1.0]], tokens)), "{count}");
        }
        for usage in ["[]", "3", "null", "\"\"", "{\"prompt_tokens\":null,\"total_tokens\":[]}"] {
            let body = format!(r#"{{"data":[{{"embedding":[1]}}],"usage":{usage}}}"#);
            assert_eq!(openai(&body, 1), Ok(sound(&[&[1.0]], None)), "{usage}");
        }
        let both = r#"{"data":[{"embedding":[1]}],"usage":{"prompt_tokens":-1,"total_tokens":4}}"#;
        assert_eq!(openai(both, 1), Ok(sound(&[&[1.0]], Some(4))));
    }

    #[test]
    fn numbers_and_depths_beyond_all_bounds_are_malformed() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let digits = "9".repeat(10_000);
        for value in ["1e999", "-1e999", "1e", "0x10", "[1e39]]", "NAN", &deep, &digits] {
            for body in [
                format!(r#"{{"data":[{{"embedding":[{value}]}}]}}"#),
                format!(r#"{{"data":[{{"embedding":{value}}}]}}"#),
                format!(r#"{{"data":[{{"embedding":[1],"index":{value}}}]}}"#),
                format!(r#"{{"data":[{{"embedding":[1]}}],"usage":{{"prompt_tokens":{value}}}}}"#),
                value.to_owned(),
            ] {
                assert!(matches!(openai(&body, 1), Err(Defect::Malformed(_))), "{value:.20}");
                assert!(complaint(body.as_bytes()).chars().count() <= 300);
            }
        }
    }

    #[test]
    fn complaints_of_every_form() {
        for (body, line) in [
            (r#"{"error":{"message":"too\nlong","type":"x"}}"#, "too long"),
            (r#"{"error":"model \"x\" not found"}"#, "model \"x\" not found"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            ("  plain\ttext ", "plain text"),
            ("", ""),
        ] {
            assert_eq!(complaint(body.as_bytes()), line);
        }
        assert_eq!(complaint("é".repeat(1000).as_bytes()).chars().count(), 300);
    }

    /// JSON of every kind, deep and with numbers at the edges.
    fn odd_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from),
            any::<u64>().prop_map(serde_json::Value::from),
            any::<f64>().prop_map(serde_json::Value::from),
            "[A-Za-z0-9+/=]{0,12}".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(6, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::btree_map("data|embeddings?|index|usage|error|message", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn shares_sum_to_the_whole(tokens in 0u64..1_000_000, lengths in prop::collection::vec(0usize..10_000, 1..70)) {
            let shares = shares(tokens, &lengths);
            prop_assert_eq!(shares.len(), lengths.len());
            prop_assert_eq!(shares.iter().map(|&share| u64::from(share)).sum::<u64>(), tokens);
        }

        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200), texts in 0usize..4) {
            let _ = openai(&String::from_utf8_lossy(&body), texts);
            let _ = complaint(&body);
        }

        #[test]
        fn odd_json_is_malformed_or_finite(odd in odd_json(), key in 0usize..7, texts in 0usize..3) {
            let mut row = json!({"embedding": [1.0, 2.0], "index": 0});
            let mut usage = json!({"prompt_tokens": 1, "total_tokens": 1});
            let mut embeddings = json!([[1.0]]);
            match key {
                0 => row["embedding"] = odd.clone(),
                1 => row["index"] = odd.clone(),
                2 => row = odd.clone(),
                3 => usage = odd.clone(),
                4 => usage["prompt_tokens"] = odd.clone(),
                5 => embeddings = odd.clone(),
                _ => embeddings[0] = odd.clone(),
            }
            for (protocol, body) in [
                (Protocol::OpenAi, json!({"data": [row], "usage": usage})),
                (Protocol::Ollama, json!({"embeddings": embeddings, "prompt_eval_count": usage["prompt_tokens"]})),
                (Protocol::OpenAi, odd.clone()),
                (Protocol::Ollama, odd),
            ] {
                let body = body.to_string();
                if let Ok(answer) = answer(protocol, body.as_bytes(), texts) {
                    prop_assert_eq!(answer.rows.len(), texts);
                    let vectors: Vec<_> = answer.rows.iter().flatten().collect();
                    prop_assert!(vectors.iter().all(|vector| Some(vector.len()) == answer.width()));
                    prop_assert!(vectors.iter().all(|vector| !vector.is_empty()));
                    prop_assert!(vectors.iter().copied().flatten().all(|value| value.is_finite()));
                }
                prop_assert!(complaint(body.as_bytes()).chars().count() <= 300);
            }
        }

        #[test]
        fn any_order_of_rows_is_put_right(order in Just((0..20usize).collect::<Vec<_>>()).prop_shuffle()) {
            let data: Vec<_> = order.iter().map(|&n| json!({"index": n, "embedding": [n, -(n as f32)]})).collect();
            let answer = openai(&json!({"data": data}).to_string(), 20).unwrap();
            let expected: Vec<AnswerRow> = (0..20).map(|n| Ok(vec![n as f32, -(n as f32)])).collect();
            prop_assert_eq!(answer.rows, expected);
        }
    }
}
