//! Requests and answers of both protocols, as bytes and values. Nothing here touches the network.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::address::Protocol;

/// How an OpenAI-compatible server is asked to write vectors; either form is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EncodingFormat {
    /// Little-endian float32, a third of the bytes.
    Base64,
    /// Lists of numbers, for servers that know nothing else.
    Float,
}

/// The vectors of one request, in the order of its texts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// Row-major `[texts, width]`, all finite.
    pub(super) values: Vec<f32>,
    /// Dimensions.
    pub(super) width: usize,
    /// Tokens that the server read for all texts together, when it reports them.
    pub(super) tokens: Option<u64>,
}

/// Why an answer is none.
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
struct OllamaAnswer {
    embeddings: Vec<Embedding>,
    prompt_eval_count: Option<u64>,
}

#[derive(Deserialize)]
struct OpenAiAnswer {
    data: Vec<EmbeddingObject>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct EmbeddingObject {
    embedding: Embedding,
    index: Option<usize>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    total_tokens: Option<u64>,
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
    let malformed = |error: serde_json::Error| Defect::Malformed(format!("it does not parse: {error}"));
    let (rows, tokens) = match protocol {
        Protocol::Ollama => {
            let OllamaAnswer { embeddings, prompt_eval_count } =
                serde_json::from_slice(body).map_err(malformed)?;
            (embeddings.into_iter().map(|Embedding(row)| (None, row)).collect::<Vec<_>>(), prompt_eval_count)
        }
        Protocol::OpenAi => {
            let OpenAiAnswer { data, usage } = serde_json::from_slice(body).map_err(malformed)?;
            let rows = data.into_iter().map(|item| (item.index, item.embedding.0)).collect();
            (rows, usage.and_then(|usage| usage.prompt_tokens.or(usage.total_tokens)))
        }
    };
    let (values, width) = arrange(rows, texts)?;
    Ok(Answer { values, width, tokens })
}

/// Rows with their numbers as one matrix in the order of the numbers; without any, in their own.
fn arrange(rows: Vec<(Option<usize>, Vec<f32>)>, texts: usize) -> Result<(Vec<f32>, usize), Defect> {
    let malformed = |reason: String| Err(Defect::Malformed(reason));
    if rows.len() != texts {
        return malformed(format!("it has {} vectors for {texts} texts", rows.len()));
    }
    let width = rows.first().map_or(0, |(_, row)| row.len());
    if let Some((_, odd)) = rows.iter().find(|(_, row)| row.len() != width || row.is_empty()) {
        return malformed(format!("it has vectors of {width} and of {} dimensions", odd.len()));
    }
    let mut values = vec![0.0; texts * width];
    let mut filled = vec![false; texts];
    for (place, (number, row)) in rows.into_iter().enumerate() {
        let number = number.unwrap_or(place);
        match filled.get_mut(number) {
            Some(filled) if !*filled => *filled = true,
            _ => return malformed(format!("the index {number} is there twice or out of range")),
        }
        if !row.iter().all(|value| value.is_finite()) {
            return Err(Defect::NotFinite);
        }
        values[number * width..(number + 1) * width].copy_from_slice(&row);
    }
    Ok((values, width))
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
                while let Some(value) = seq.next_element()? {
                    values.push(value);
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
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let error = &json["error"];
    let given = [&error["message"], error, &json["detail"], &json["message"]];
    let given = given.iter().find_map(|value| value.as_str()).unwrap_or(&text);
    let line: String = given.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(300).collect()
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
        assert_eq!(answer, Answer { values: vec![1.0, 2.0, 3.0, 4.5], width: 2, tokens: Some(7) });
        let unnumbered = openai(r#"{"data":[{"embedding":[1]},{"embedding":[2]}]}"#, 2).unwrap();
        assert_eq!(unnumbered, Answer { values: vec![1.0, 2.0], width: 1, tokens: None });
        let ollama = br#"{"model":"m","embeddings":[[1,2],[3,4]],"prompt_eval_count":5,"total_duration":1}"#;
        let expected = Answer { values: vec![1.0, 2.0, 3.0, 4.0], width: 2, tokens: Some(5) };
        assert_eq!(super::answer(Protocol::Ollama, ollama, 2), Ok(expected));
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
            (r#"{"data":[{"embedding":[null]}]}"#, 1, "parse"),
            (r#"{"data":[{"embedding":["1"]}]}"#, 1, "parse"),
            (r#"{"data":[{"embedding":{"a":1}}]}"#, 1, "parse"),
            (r#"{"data":[{"embedding":"AAAA"}]}"#, 1, "whole float32"),
            (r#"{"data":[{"embedding":"???"}]}"#, 1, "parse"),
            (r#"{"data":[{"embedding":[1]}]} trailing"#, 1, "parse"),
        ] {
            match openai(body, texts) {
                Err(Defect::Malformed(reason)) => assert!(reason.contains(word), "{body}: {reason}"),
                other => panic!("{body}: {other:?}"),
            }
        }
        for infinite in ["[1e39]", "[1,-1e300]", "\"AADAfw==\""] {
            let body = format!(r#"{{"data":[{{"embedding":{infinite}}}]}}"#);
            assert_eq!(openai(&body, 1), Err(Defect::NotFinite), "{infinite}");
        }
    }

    #[test]
    fn numbers_and_depths_beyond_all_bounds_are_malformed() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let digits = "9".repeat(10_000);
        for value in
            ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e", "0x10", "[1e39]]", &deep, &digits]
        {
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
                    prop_assert_eq!(answer.values.len(), texts * answer.width);
                    prop_assert!(answer.values.iter().all(|value| value.is_finite()));
                }
                prop_assert!(complaint(body.as_bytes()).chars().count() <= 300);
            }
        }

        #[test]
        fn any_order_of_rows_is_put_right(order in Just((0..20usize).collect::<Vec<_>>()).prop_shuffle()) {
            let data: Vec<_> = order.iter().map(|&n| json!({"index": n, "embedding": [n, -(n as f32)]})).collect();
            let answer = openai(&json!({"data": data}).to_string(), 20).unwrap();
            let expected: Vec<f32> = (0..20).flat_map(|n| [n as f32, -(n as f32)]).collect();
            prop_assert_eq!(answer.values, expected);
        }
    }
}
