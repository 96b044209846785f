//! The body of OpenAI's `POST /v1/embeddings`, written straight from the vectors.
//!
//! ```json
//! {"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-0.2]}],"model":"m",
//!  "usage":{"prompt_tokens":3,"total_tokens":3}}
//! ```

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::{Error, Result};

/// How a body holds a vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// A list of numbers: the shortest decimals that read back as the same f32.
    #[default]
    Float,
    /// The values as little-endian f32, in base64.
    Base64,
}

impl Encoding {
    /// From OpenAI's `encoding_format`.
    ///
    /// # Errors
    /// [`Error::Argument`] for anything but "float" and "base64".
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "float" => Ok(Self::Float),
            "base64" => Ok(Self::Base64),
            _ => Err(Error::argument(
                "encoding_format",
                format!("={name:?}: expected \"float\" or \"base64\""),
            )),
        }
    }

    /// The most bytes that a vector of `width` takes.
    fn room(self, width: usize) -> usize {
        match self {
            // Sign, nine digits, point and exponent of the longest f32, and a comma.
            Self::Float => width * 17,
            Self::Base64 => (width * size_of::<f32>()).div_ceil(3) * 4,
        }
    }
}

/// A body that grows vector by vector, in one allocation.
#[derive(Debug)]
pub struct VectorBody {
    json: String,
    encoding: Encoding,
    /// Vectors written.
    rows: usize,
    /// The bytes of one vector, on their way to base64.
    bytes: Vec<u8>,
}

/// More than the bytes of an item without its vector.
const ITEM: usize = 80;
/// Bytes for everything else of a body; a longer name of the model makes it grow.
const FRAME: usize = 256;

impl VectorBody {
    /// A body with room for `rows` vectors of `width` values.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(encoding: Encoding, rows: usize, width: usize) -> Result<Self> {
        let bytes = rows.saturating_mul(ITEM + encoding.room(width)).saturating_add(FRAME);
        let mut json = String::new();
        json.try_reserve_exact(bytes).map_err(|_| Error::OutOfMemory {
            what: format!("the answer of {rows} vectors as JSON").into(),
            bytes: bytes as u64,
        })?;
        json.push_str(r#"{"object":"list","data":["#);
        Ok(Self { json, encoding, rows: 0, bytes: Vec::new() })
    }

    /// Adds the next vector. Its values must be finite: JSON has no other numbers.
    pub fn push(&mut self, vector: &[f32]) {
        if self.rows > 0 {
            self.json.push(',');
        }
        self.json.push_str(r#"{"object":"embedding","index":"#);
        self.json.push_str(&self.rows.to_string());
        self.json.push_str(r#","embedding":"#);
        match self.encoding {
            Encoding::Float => self.floats(vector),
            Encoding::Base64 => self.base64(vector),
        }
        self.json.push('}');
        self.rows += 1;
    }

    /// Ends the body: the model's public name, and the tokens that it has read.
    #[must_use]
    pub fn finish(mut self, model: &str, tokens: u64) -> Vec<u8> {
        let (model, tokens) = (serde_json::Value::from(model).to_string(), tokens.to_string());
        for piece in [
            r#"],"model":"#,
            &model,
            r#","usage":{"prompt_tokens":"#,
            &tokens,
            r#","total_tokens":"#,
            &tokens,
            "}}",
        ] {
            self.json.push_str(piece);
        }
        self.json.into_bytes()
    }

    fn floats(&mut self, vector: &[f32]) {
        let mut digits = zmij::Buffer::new();
        self.json.push('[');
        for (number, &value) in vector.iter().enumerate() {
            if number > 0 {
                self.json.push(',');
            }
            self.json.push_str(digits.format_finite(value));
        }
        self.json.push(']');
    }

    fn base64(&mut self, vector: &[f32]) {
        self.bytes.clear();
        self.bytes.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
        self.json.push('"');
        BASE64_STANDARD.encode_string(&self.bytes, &mut self.json);
        self.json.push('"');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn body(encoding: Encoding, vectors: &[Vec<f32>], model: &str, tokens: u64) -> Value {
        let mut body = VectorBody::new(encoding, vectors.len(), vectors.first().map_or(0, Vec::len)).unwrap();
        let room = body.json.capacity();
        vectors.iter().for_each(|vector| body.push(vector));
        assert!(body.json.capacity() == room, "grew from {room} to {}", body.json.capacity());
        serde_json::from_slice(&body.finish(model, tokens)).unwrap()
    }

    /// The vectors of a parsed body.
    fn vectors(body: &Value, encoding: Encoding) -> Vec<Vec<f32>> {
        let vector = |item: &Value| match encoding {
            Encoding::Float => {
                let values = item["embedding"].as_array().unwrap().iter();
                values.map(|value| value.as_f64().unwrap() as f32).collect()
            }
            Encoding::Base64 => {
                let bytes = BASE64_STANDARD.decode(item["embedding"].as_str().unwrap()).unwrap();
                bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
            }
        };
        body["data"].as_array().unwrap().iter().map(vector).collect()
    }

    fn bits(vectors: &[Vec<f32>]) -> Vec<Vec<u32>> {
        vectors.iter().map(|vector| vector.iter().map(|value| value.to_bits()).collect()).collect()
    }

    #[test]
    fn a_body_that_no_memory_holds_is_refused() {
        for (rows, width) in [(usize::MAX, 1), (1 << 40, 1 << 20)] {
            let refused = VectorBody::new(Encoding::Float, rows, width);
            assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{rows}, {width}");
        }
    }

    #[test]
    fn the_bodies_of_two_vectors() {
        let vectors = [[1.0, -0.25], [0.0, 1.5e-10]];
        let written = |encoding| {
            let mut body = VectorBody::new(encoding, 2, 2).unwrap();
            vectors.iter().for_each(|vector| body.push(vector));
            String::from_utf8(body.finish("a \"model\"\n", 7)).unwrap()
        };
        assert_eq!(
            written(Encoding::Float),
            concat!(
                r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1.0,-0.25]},"#,
                r#"{"object":"embedding","index":1,"embedding":[0.0,1.5e-10]}],"#,
                r#""model":"a \"model\"\n","usage":{"prompt_tokens":7,"total_tokens":7}}"#
            )
        );
        assert_eq!(
            written(Encoding::Base64),
            concat!(
                r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":"AACAPwAAgL4="},"#,
                r#"{"object":"embedding","index":1,"embedding":"AAAAAD/tJC8="}],"#,
                r#""model":"a \"model\"\n","usage":{"prompt_tokens":7,"total_tokens":7}}"#
            )
        );
    }

    #[test]
    fn no_vectors_are_an_empty_list() {
        let empty = body(Encoding::Float, &[], "m", 0);
        assert_eq!(empty["data"], Value::Array(Vec::new()));
        assert_eq!(empty["usage"]["total_tokens"], 0);
    }

    #[test]
    fn the_longest_numbers_fit() {
        for value in
            [f32::MIN, f32::MIN_POSITIVE, -f32::MIN_POSITIVE, -1.234_567_9e-5, -f32::from_bits(1), -0.0]
        {
            let written = vec![vec![value; 300]];
            assert_eq!(
                bits(&vectors(&body(Encoding::Float, &written, "m", 1), Encoding::Float)),
                bits(&written)
            );
        }
    }

    #[test]
    fn unknown_encodings_are_refused() {
        assert_eq!(Encoding::parse("float"), Ok(Encoding::Float));
        assert_eq!(Encoding::parse("base64"), Ok(Encoding::Base64));
        let error = Encoding::parse("int8").unwrap_err().to_string();
        assert!(error.contains("\"int8\"") && error.contains("\"base64\""), "{error}");
    }

    /// Any finite f32, by its bits.
    fn finite() -> impl Strategy<Value = f32> {
        any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |value| value.is_finite())
    }

    proptest! {
        #[test]
        fn every_value_reads_back_to_the_bit(
            written in (1_usize..9).prop_flat_map(|width| {
                prop::collection::vec(prop::collection::vec(finite(), width), 0..9)
            }),
            model in any::<String>(),
            tokens in 0_u64..1 << 53,
        ) {
            for encoding in [Encoding::Float, Encoding::Base64] {
                let body = body(encoding, &written, &model, tokens);
                prop_assert_eq!(bits(&vectors(&body, encoding)), bits(&written));
                prop_assert_eq!(body["model"].as_str(), Some(&*model));
                prop_assert_eq!(body["usage"]["prompt_tokens"].as_u64(), Some(tokens));
                let numbers = body["data"].as_array().unwrap().iter().map(|item| item["index"].as_u64());
                prop_assert!(numbers.eq((0..written.len() as u64).map(Some)));
            }
        }
    }
}
