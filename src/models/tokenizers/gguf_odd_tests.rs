//! Tokenizers of every kind, as GGUF files hold them, give transformers' ids for 1,000 odd texts.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use self::tokenizer_texts::{Reference, digest};
use crate::models::formats::gguf::Gguf;
use crate::models::formats::gguf::tests::Writer;
use crate::models::json::read_json;
use crate::models::tokenizers::Tokenizer;

#[path = "../../../tests/rust/models/tokenizer_texts.rs"]
mod tokenizer_texts;

/// The `tokenizer.json` of a kind.
struct Kind(Value);

impl Kind {
    fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
        Self(read_json(&folder.join(name).join("tokenizer.json")).unwrap())
    }

    /// Whether each added token is special, by id; and its spelling.
    fn added(&self) -> BTreeMap<u32, (String, bool)> {
        let tokens = self.0["added_tokens"].as_array().unwrap().iter();
        let read = |token: &Value| {
            let (id, content) = (token["id"].as_u64().unwrap(), token["content"].as_str().unwrap());
            (id as u32, (content.to_owned(), token["special"].as_bool().unwrap()))
        };
        tokens.map(read).collect()
    }

    /// All pieces in the order of their ids.
    fn pieces(&self) -> Vec<String> {
        let mut pieces: BTreeMap<u32, String> = match &self.0["model"]["vocab"] {
            Value::Object(vocabulary) => {
                vocabulary.iter().map(|(piece, id)| (id.as_u64().unwrap() as u32, piece.clone())).collect()
            }
            list => {
                let entries = list.as_array().unwrap().iter();
                (0..).zip(entries.map(|entry| entry[0].as_str().unwrap().to_owned())).collect()
            }
        };
        pieces.extend(self.added().into_iter().map(|(id, (piece, _))| (id, piece)));
        pieces.into_values().collect()
    }

    /// The types of pieces: unknown, control, user-defined, a byte, or none of these.
    fn types(&self) -> Vec<i32> {
        let (added, unknown) = (self.added(), &self.0["model"]["unk_token"]);
        let unknown_id = self.0["model"]["unk_id"].as_u64();
        let kind = |(id, piece): (u32, &String)| match added.get(&id) {
            _ if unknown == piece || unknown_id == Some(id.into()) => 2,
            Some((_, true)) => 3,
            Some((_, false)) => 4,
            None if piece.starts_with("<0x") => 6,
            None => 1,
        };
        (0..).zip(&self.pieces()).map(kind).collect()
    }

    fn merges(&self) -> Vec<String> {
        let merge = |merge: &Value| match merge {
            Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        self.0["model"]["merges"].as_array().unwrap().iter().map(merge).collect()
    }

    fn id(&self, token: &str) -> u32 {
        self.pieces().iter().position(|piece| piece == token).unwrap() as u32
    }

    /// Begins a file; `ends` are the first and the last token of a text, where it has them.
    fn writer(&self, model: &str, ends: [Option<&str>; 2]) -> Writer {
        let mut writer = Writer::default()
            .text("tokenizer.ggml.model", model)
            .integers("tokenizer.ggml.token_type", &self.types());
        for (key, token) in ["bos", "eos"].into_iter().zip(ends) {
            writer = writer.flag(&format!("tokenizer.ggml.add_{key}_token"), token.is_some());
            if let Some(token) = token {
                writer = writer.number(&format!("tokenizer.ggml.{key}_token_id"), self.id(token));
            }
        }
        writer
    }

    fn byte_level(&self, pre: &str, ends: [Option<&str>; 2]) -> Writer {
        self.writer("gpt2", ends)
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &self.pieces())
            .texts("tokenizer.ggml.merges", &self.merges())
    }

    /// A mark at the beginning of words, none inside of them.
    fn word_piece(&self) -> Writer {
        let marked = |piece: String| match piece.strip_prefix("##") {
            Some(inner) => inner.to_owned(),
            None if piece.starts_with('[') && piece.ends_with(']') => piece,
            None => format!("▁{piece}"),
        };
        let pieces: Vec<_> = self.pieces().into_iter().map(marked).collect();
        self.writer("bert", [Some("[CLS]"), Some("[SEP]")])
            .texts("tokenizer.ggml.tokens", &pieces)
            .number("tokenizer.ggml.unknown_token_id", self.id("[UNK]"))
            .number("tokenizer.ggml.seperator_token_id", self.id("[SEP]"))
    }

    fn unigram(&self, first: Option<&str>, splits: Option<bool>) -> Writer {
        let pieces = self.pieces();
        let scores = self.0["model"]["vocab"].as_array().unwrap().iter();
        let mut scores: Vec<f32> = scores.map(|entry| entry[1].as_f64().unwrap() as f32).collect();
        scores.resize(pieces.len(), 0.0);
        let map = self.0["normalizer"]["precompiled_charsmap"].as_str().unwrap();
        let map: Vec<i32> = STANDARD.decode(map).unwrap().into_iter().map(i32::from).collect();
        let writer = self
            .writer("t5", [first, Some("</s>")])
            .texts("tokenizer.ggml.tokens", &pieces)
            .floats("tokenizer.ggml.scores", &scores)
            .integers("tokenizer.ggml.precompiled_charsmap", &map)
            .number("tokenizer.ggml.unknown_token_id", 3);
        match splits {
            Some(splits) => writer.flag("tokenizer.ggml.remove_extra_whitespaces", splits),
            None => writer,
        }
    }

    /// SentencePiece BPE: the scores of pieces have the order of the merges.
    fn sentence_piece(&self, prefix: bool) -> Writer {
        let (pieces, merges) = (self.pieces(), self.merges());
        let order: BTreeMap<String, usize> =
            merges.iter().enumerate().map(|(rank, merge)| (merge.replace(' ', ""), rank)).collect();
        let score = |piece: &String| order.get(piece).map_or(-1e6, |rank| -(*rank as f32));
        self.writer("llama", [Some("<s>"), None])
            .texts("tokenizer.ggml.tokens", &pieces)
            .floats("tokenizer.ggml.scores", &pieces.iter().map(score).collect::<Vec<_>>())
            .flag("tokenizer.ggml.add_space_prefix", prefix)
    }
}

/// As llama.cpp writes files of Gemma 4: with the merges.
fn gemma4() -> Writer {
    let kind = Kind::read("sentencepiece_gemma");
    kind.writer("gemma4", [Some("<s>"), None])
        .texts("tokenizer.ggml.tokens", &kind.pieces())
        .texts("tokenizer.ggml.merges", &kind.merges())
        .flag("tokenizer.ggml.add_space_prefix", false)
}

fn written(name: &str) -> Option<Writer> {
    let none = [None, None];
    let kind = || Kind::read(name);
    Some(match name {
        "bytes_gpt2" => kind().byte_level("gpt-2", none),
        "bytes_smollm" => kind().byte_level("smollm", none),
        "bytes_qwen2" => kind().byte_level("qwen2", none),
        "bytes_llama3" => kind().byte_level("llama-bpe", [Some("<|begin_of_text|>"), None]),
        "bytes_modernbert" => kind().byte_level("modern-bert", [Some("[CLS]"), Some("[SEP]")]),
        "bytes_jina" => kind().byte_level("jina-v2-de", [Some("<s>"), Some("</s>")]),
        "wordpiece_uncased" | "wordpiece_cased" => kind().word_piece(),
        "unigram_xlmr" => kind().unigram(Some("<s>"), Some(true)),
        "unigram_t5" => kind().unigram(None, Some(false)),
        "sentencepiece_llama" => kind().sentence_piece(true),
        "sentencepiece_gemma" => kind().sentence_piece(false),
        // RoBERTa's space before a text, other accents than BERT's, ALBERT's rules, bytes in Unigram: files do not say these.
        _ => return None,
    })
}

#[test]
fn files_of_gemma_4_list_their_merges() {
    let reference = Reference::read();
    let digests = &reference.digests["sentencepiece_gemma"];
    let (_folder, path) = gemma4().write();
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
    for (number, text) in reference.texts().iter().enumerate() {
        let ids = tokenizer.encode(text, usize::MAX).unwrap();
        assert_eq!(digest(&ids), digests[4 * number..4 * number + 4], "text {number}");
    }
}

/// llama.cpp's converter writes `clean_up_tokenization_spaces` there for a model that has no `sentencepiece.bpe.model`.
#[test]
fn xlm_r_leaves_out_spaces_whatever_its_file_says_of_them() {
    let reference = Reference::read();
    let digests = &reference.digests["unigram_xlmr"];
    let texts = reference.texts();
    let mut written = Vec::new();
    for architecture in ["bert", "nomic-bert-moe"] {
        for says in [None, Some(false), Some(true)] {
            let writer = Kind::read("unigram_xlmr").unigram(Some("<s>"), says);
            written.push((says, writer.text("general.architecture", architecture)));
        }
    }
    for (says, writer) in written {
        let (_folder, path) = writer.write();
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        for (number, text) in texts.iter().enumerate() {
            let ids = tokenizer.encode(text, usize::MAX).unwrap();
            assert_eq!(digest(&ids), digests[4 * number..4 * number + 4], "{says:?}, text {number}");
        }
    }
}

#[test]
fn every_kind_in_a_gguf_file_gives_the_ids_of_transformers() {
    let reference = Reference::read();
    let texts = reference.texts();
    let (mut kinds, mut wrong) = (0, Vec::new());
    for (name, digests) in &reference.digests {
        let Some(writer) = written(name) else { continue };
        kinds += 1;
        let (_folder, path) = writer.write();
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        for (number, text) in texts.iter().enumerate() {
            let ids = tokenizer.encode(text, usize::MAX).unwrap();
            if digest(&ids) != digests[4 * number..4 * number + 4] {
                let shown: String = text.chars().take(60).collect();
                wrong.push(format!("{name}, text {number} {shown:?}: {:?}", &ids[..ids.len().min(12)]));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ, the first of them:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(30)].join("\n")
    );
    assert_eq!(kinds, 12);
}
