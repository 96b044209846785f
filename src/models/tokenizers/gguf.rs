//! The tokenizer that a GGUF file carries in its metadata.
//!
//! Here are byte-level BPE (`gpt2`), whose way of splitting words the file only names, and SentencePiece BPE
//! (`llama`), whose merges follow from the scores of its pieces; [`gguf_words`](super::gguf_words) has those of encoders.

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{NFC, NormalizerWrapper, Prepend, Sequence as Normalizers};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::bpe::BpeOptions;
use super::gguf_merges as merges;
use super::gguf_words::{CONTROL, UNKNOWN, USER_DEFINED, invalid, scores, unigram, word_piece};
use super::model::Inner;
use crate::models::formats::gguf::{Gguf, GgufValue};
use crate::{Error, Result};

/// How Llama 3 splits text, published with its tokenizer.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 splits text: the same, one digit at a time.
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How those of Qwen3.5 do: marks belong to words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How Mistral's later tokenizers (Tekken) split text: a word may have a capital only at its beginning.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Phi 4 mini splits text, published as o200k: the same, up to three digits at a time, contractions with their word.
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How Falcon splits runs of digits, after marks, words and digits.
const THREE_DIGITS: &str = "[0-9][0-9][0-9]";

/// Tokens that end an answer, whatever the file calls its end of text and whatever type it gives them: as llama.cpp
/// recognizes them.
const ENDS: [&str; 17] = [
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "<｜end_of_sentence｜>",
];
/// Ways of splitting whose texts begin with a special token unless the file says otherwise: as llama.cpp has it.
const BEGIN: [&str; 5] = ["llama-bpe", "llama3", "llama-v3", "lfm2", "tekken"];
/// Architectures whose byte-level tokenizers split texts otherwise than GPT-2: files from before the key for it do not say how.
const OTHER_SPLITS: [&str; 5] = ["llama", "qwen2", "qwen2moe", "qwen35", "qwen35moe"];
/// Tokens of Phi-3 that leave the space after them. The others take it, which the file does not say: as llama.cpp has it.
const KEEP_SPACE: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
/// Bytes of a token at most. Building the merges takes time that grows with the square of it.
const LONGEST_TOKEN: usize = 4096;

/// A tokenizer, and the special tokens that generation needs to know.
pub(crate) struct GgufTokenizer {
    /// The tokenizer.
    pub(crate) tokenizer: Inner,
    /// Spelling of the first token of a text; "" without one.
    pub(crate) bos: String,
    /// Spelling of the end-of-text token; "" without one.
    pub(crate) eos: String,
    /// The id of the latter.
    pub(crate) eos_id: Option<u32>,
    /// All tokens that end an answer.
    pub(crate) eos_ids: Vec<u32>,
    /// Whether a text to embed gets the end-of-text token.
    pub(crate) adds_end: bool,
}

/// Builds the tokenizer of `gguf`.
///
/// # Errors
/// [`Error::InvalidFile`] naming the metadata that is missing or wrong, [`Error::Unsupported`] for a kind of tokenizer
/// or a way of splitting that we do not know.
pub(crate) fn tokenizer(gguf: &Gguf) -> Result<GgufTokenizer> {
    let vocabulary = GgufVocabulary::read(gguf)?;
    let (begin, end) = (vocabulary.special("bos")?, vocabulary.special("eos")?);
    let eos_ids = vocabulary.ends(end)?;
    let mut tokenizer = vocabulary.model()?;
    let damaged = |e: tokenizers::Error| invalid(gguf, format!("its tokenizer does not fit together: {e}"));
    tokenizer.add_special_tokens(vocabulary.added(true, &eos_ids)).map_err(damaged)?;
    tokenizer.add_tokens(vocabulary.added(false, &eos_ids)).map_err(damaged)?;
    let GgufVocabulary { kind, pieces, .. } = &vocabulary;
    if tokenizer.get_vocab_size(true) > pieces.len() {
        return Err(invalid(gguf, "a special token of its tokenizer is none of its pieces"));
    }
    if vocabulary.begins(begin)?
        && let Some(id) = begin
    {
        tokenizer.with_post_processor(Some(beginning(gguf, &pieces[id], id)?));
    }
    let spelling = |id: Option<usize>| id.map_or_else(String::new, |id| pieces[id].clone());
    Ok(GgufTokenizer {
        tokenizer,
        bos: spelling(begin),
        eos: spelling(end),
        eos_id: end.map(|id| id as u32),
        eos_ids,
        adds_end: gguf.flag("tokenizer.ggml.add_eos_token").unwrap_or(*kind == "t5") && *kind != "bert",
    })
}

/// The tokens of a file, and what its metadata says of them.
struct GgufVocabulary<'a> {
    gguf: &'a Gguf,
    /// `tokenizer.ggml.model`.
    kind: &'a str,
    pieces: Vec<String>,
    /// The type of each piece; empty where the file does not say.
    types: Vec<i128>,
}

impl<'a> GgufVocabulary<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self> {
        let pieces = texts(gguf, "tokenizer.ggml.tokens")?;
        let types = token_types(gguf)?;
        if let Some(id) = pieces.iter().position(|piece| piece.len() > LONGEST_TOKEN) {
            let length = pieces[id].len();
            return Err(invalid(
                gguf,
                format!("its token {id} has {length} bytes; at most {LONGEST_TOKEN} are read"),
            ));
        }
        if !types.is_empty() && types.len() != pieces.len() {
            return Err(invalid(
                gguf,
                format!("tokenizer.ggml.token_type has {} entries for {} tokens", types.len(), pieces.len()),
            ));
        }
        let kind = gguf.text("tokenizer.ggml.model").unwrap_or_default();
        Ok(Self { gguf, kind, pieces, types })
    }

    /// The id of the special token `key`; `None` where the file names none.
    fn special(&self, key: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let pieces = self.pieces.len();
        match self.gguf.number(&key) {
            Some(id) if id >= pieces => {
                Err(invalid(self.gguf, format!("{key} is {id}, but it has {pieces} tokens")))
            }
            found => Ok(found),
        }
    }

    /// The tokens that end an answer, in order: `end`, those that the file names, and those known by name.
    fn ends(&self, end: Option<usize>) -> Result<Vec<u32>> {
        let named = [end, self.special("eot")?, self.special("eom")?].into_iter().flatten();
        let known = self.pieces.iter().enumerate().filter(|(_, piece)| ENDS.contains(&piece.as_str()));
        let mut ids: Vec<u32> = named.chain(known.map(|(id, _)| id)).map(|id| id as u32).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// The tokenizer without added tokens.
    fn model(&self) -> Result<Inner> {
        let Self { gguf, pieces, types, .. } = self;
        match gguf.text("tokenizer.ggml.model") {
            Some("gpt2") => byte_level(gguf, pieces),
            Some("llama" | "gemma4") => sentence_piece(gguf, pieces, types),
            Some("bert") => word_piece(gguf, pieces, types),
            Some("t5") => unigram(gguf, pieces, types),
            other => Err(unsupported(
                gguf,
                format!(
                    "its tokenizer is {other:?}; supported are gpt2 (BPE), llama, gemma4, bert (WordPiece) and t5 (Unigram)"
                ),
            )),
        }
    }

    /// The tokens that are found in a text before it is split: the special ones, or the others.
    fn added(&self, special: bool, eos_ids: &[u32]) -> Vec<AddedToken> {
        let is_end = |id: usize| eos_ids.binary_search(&(id as u32)).is_ok();
        let wanted = |id: usize| match self.types.get(id) {
            Some(&(CONTROL | UNKNOWN)) => special,
            Some(&USER_DEFINED) => special == is_end(id),
            _ => special && is_end(id),
        };
        let phi3 = self.kind == "llama" && self.gguf.text("general.architecture") == Some("phi3");
        // The masks of XLM-R, JinaBERT and ModernBERT take the space before them.
        let pre = self.gguf.text("tokenizer.ggml.pre").unwrap_or_default();
        let takes_space = |piece: &str| match piece {
            "<mask>" => self.kind == "t5" || pre.starts_with("jina-v2-"),
            "[MASK]" => pre == "modern-bert",
            _ => false,
        };
        let token = |(id, piece): (usize, &String)| {
            // WordPiece's words have this mark, which is not part of them.
            let marked = self.kind == "bert" && self.types.get(id) == Some(&USER_DEFINED);
            let text = piece.strip_prefix('▁').filter(|_| marked).unwrap_or(piece);
            let token = AddedToken::from(text.to_owned(), special).normalized(false);
            token.lstrip(takes_space(piece)).rstrip(phi3 && !KEEP_SPACE.contains(&piece.as_str()))
        };
        self.pieces.iter().enumerate().filter(|(id, _)| wanted(*id)).map(token).collect()
    }

    /// Whether a text begins with the token `begin`.
    fn begins(&self, begin: Option<usize>) -> Result<bool> {
        let says = self.gguf.flag("tokenizer.ggml.add_bos_token");
        let pre = self.gguf.text("tokenizer.ggml.pre");
        // WordPiece has its first and last token already.
        if self.kind == "bert" {
            return Ok(false);
        }
        if says == Some(true) && begin.is_none() {
            return Err(invalid(
                self.gguf,
                "it adds a first token (add_bos_token) that it does not name (bos_token_id)",
            ));
        }
        Ok(says.unwrap_or(self.kind == "llama" || pre.is_some_and(|pre| BEGIN.contains(&pre))))
    }
}

/// What puts the token `piece` before a text.
fn beginning(gguf: &Gguf, piece: &str, id: usize) -> Result<TemplateProcessing> {
    let special = vec![(piece.to_owned(), id as u32)];
    TemplateProcessing::builder()
        .try_single(format!("{piece} $A"))
        .and_then(|builder| builder.special_tokens(special).build().map_err(|e| e.to_string()))
        .map_err(|e| invalid(gguf, format!("its first token cannot be used: {e}")))
}

/// The kind of each token; empty where the file does not say.
fn token_types(gguf: &Gguf) -> Result<Vec<i128>> {
    let kinds = gguf.array("tokenizer.ggml.token_type").unwrap_or_default();
    let kind = |kind: &GgufValue| match kind {
        GgufValue::Integer(kind) => Ok(*kind),
        _ => Err(invalid(gguf, "tokenizer.ggml.token_type holds something else than integers")),
    };
    kinds.iter().map(kind).collect()
}

/// The parts of each merge.
fn pairs<'a>(gguf: &Gguf, merges: &'a [String]) -> Result<Vec<(&'a str, &'a str)>> {
    let apart = |merge: &'a String| {
        let without = || invalid(gguf, format!("its merge {merge:?} has no space between its parts"));
        merge.split_once(' ').ok_or_else(without)
    };
    merges.iter().map(apart).collect()
}

fn byte_level(gguf: &Gguf, pieces: &[String]) -> Result<Inner> {
    let merges = texts(gguf, "tokenizer.ggml.merges")?;
    let merges = pairs(gguf, &merges)?;
    // Files of Falcon that are older than this key have Falcon's own way.
    let falcon = gguf.text("general.architecture") == Some("falcon");
    let default = if falcon { "falcon" } else { "default" };
    let name = gguf.text("tokenizer.ggml.pre").unwrap_or(default);
    let architecture = gguf.text("general.architecture").unwrap_or_default();
    if name == "default" && OTHER_SPLITS.contains(&architecture) {
        let reason = format!(
            "its tokenizer does not say how it splits texts (tokenizer.ggml.pre), and models of {architecture} do it in different \
             ways; convert the model again, or take a newer file"
        );
        return Err(unsupported(gguf, reason));
    }
    let pattern = |regex: &str| -> Result<PreTokenizerWrapper> {
        let regex = SplitPattern::Regex(regex.into());
        let split = Split::new(regex, SplitDelimiterBehavior::Isolated, false);
        Ok(split.map_err(|e| invalid(gguf, e.to_string()))?.into())
    };
    let bytes = |words: bool| PreTokenizerWrapper::from(ByteLevel::new(false, false, words));
    let digits = || PreTokenizerWrapper::from(Digits::new(true));
    let (splits, ignore_merges) = match name {
        "default" | "gpt-2" | "gpt2" | "mpt" | "olmo" | "jais" | "modern-bert" | "phi-2" | "exaone4" => {
            (vec![bytes(true)], false)
        }
        "jina-de" | "jina-es" | "jina-v2-de" | "jina-v2-es" | "jina-v2-code" => (vec![bytes(true)], false),
        "smollm" | "codeshell" | "refact" | "command-r" | "starcoder" => (vec![digits(), bytes(true)], false),
        "falcon" => {
            let marks = Punctuation::new(SplitDelimiterBehavior::Contiguous);
            (vec![marks.into(), bytes(true), Digits::new(false).into(), pattern(THREE_DIGITS)?], false)
        }
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "lfm2" => {
            (vec![pattern(LLAMA3)?, bytes(false)], true)
        }
        // OLMo 2 and GLM 4 split in the same way, and merge every word.
        "dbrx" | "glm4" | "chatglm-bpe" => (vec![pattern(LLAMA3)?, bytes(false)], false),
        "tekken" => (vec![pattern(TEKKEN)?, bytes(false)], true),
        "gpt-4o" => (vec![pattern(O200K)?, bytes(false)], false),
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" => (vec![pattern(QWEN2)?, bytes(false)], false),
        "qwen35" => (vec![pattern(QWEN35)?, bytes(false)], false),
        other => {
            return Err(unsupported(
                gguf,
                format!(
                    "its tokenizer splits text as {other:?} does; supported are gpt-2, smollm, llama-bpe, qwen2, qwen35, refact, dbrx, \
                     glm4, tekken, gpt-4o, falcon"
                ),
            ));
        }
    };
    let options = BpeOptions { ignore_merges, ..BpeOptions::default() };
    let model = merges::given(pieces, &merges, &options)
        .map_err(|e| invalid(gguf, format!("its vocabulary and merges do not fit together: {e}")))?;
    let mut tokenizer = Inner::new(model);
    // MPT and OLMo have GPT-NeoX's tokenizer.
    let neox = gguf.text("general.architecture") == Some("gptneox");
    if neox || name.contains("qwen") || ["modern-bert", "stablelm2", "mpt", "olmo"].contains(&name) {
        tokenizer.with_normalizer(Some(NFC)).map_err(|e| invalid(gguf, e.to_string()))?;
    }
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(splits)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// SentencePiece's BPE. Files of Gemma 4 list its merges; the others score its pieces.
fn sentence_piece(gguf: &Gguf, pieces: &[String], types: &[i128]) -> Result<Inner> {
    let lists_merges = gguf.text("tokenizer.ggml.model") == Some("gemma4");
    let unknown = gguf.number("tokenizer.ggml.unknown_token_id");
    let unknown = types.iter().position(|&kind| kind == UNKNOWN).or(unknown);
    let unknown = unknown.and_then(|id| pieces.get(id).cloned());
    let model = if lists_merges {
        let merges = texts(gguf, "tokenizer.ggml.merges")?;
        merges::given(pieces, &pairs(gguf, &merges)?, &merges::with_bytes(unknown))
    } else {
        merges::by_score(pieces, &scores(gguf, pieces)?, unknown)
    };
    let model = model.map_err(|e| invalid(gguf, format!("its pieces do not fit together: {e}")))?;
    let mut tokenizer = Inner::new(model);
    let replaced = |e: tokenizers::Error| invalid(gguf, e.to_string());
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let prefix = gguf.flag("tokenizer.ggml.add_space_prefix").unwrap_or(!lists_merges);
    if prefix {
        normalizers.push(Prepend::new("▁".into()).into());
    }
    normalizers.push(Replace::new(" ", "▁").map_err(replaced)?.into());
    tokenizer
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(|e| invalid(gguf, e.to_string()))?;
    let mut decoders = vec![
        Replace::new("▁", " ").map_err(replaced)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

fn texts(gguf: &Gguf, key: &str) -> Result<Vec<String>> {
    let texts = gguf.array(key).ok_or_else(|| invalid(gguf, format!("its metadata has no {key:?}")))?;
    texts
        .iter()
        .map(|text| match text {
            GgufValue::Text(text) => Ok(text.clone()),
            other => Err(invalid(gguf, format!("its {key:?} holds {other:?} where a text was expected"))),
        })
        .collect()
}

fn unsupported(gguf: &Gguf, reason: String) -> Error {
    Error::Unsupported { model: gguf.path().display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::formats::gguf::tests::Writer;

    fn open(writer: &Writer) -> (tempfile::TempDir, Gguf) {
        let (folder, path) = writer.write();
        let gguf = Gguf::open(&path).unwrap();
        (folder, gguf)
    }

    fn pieces() -> (Vec<String>, Vec<f32>, Vec<i32>) {
        let mut pieces = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
        let mut types = vec![2, 3, 3];
        for byte in 0..=255u8 {
            pieces.push(format!("<0x{byte:02X}>"));
            types.push(6);
        }
        let words = ["▁Merhaba", "▁M", "er", "ha", "ba", "haba", "▁Mer", "▁", "M", "e", "r", "h", "a", "b"];
        let first = pieces.len();
        pieces.extend(words.map(String::from));
        types.resize(pieces.len(), 1);
        let scores =
            (0..pieces.len()).map(|id| if id < first { 0.0 } else { -((id - first) as f32) }).collect();
        (pieces, scores, types)
    }

    #[test]
    fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
        let (pieces, scores, types) = pieces();
        let writer = Writer::default()
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", &pieces)
            .floats("tokenizer.ggml.scores", &scores)
            .integers("tokenizer.ggml.token_type", &types)
            .number("tokenizer.ggml.bos_token_id", 1)
            .number("tokenizer.ggml.eos_token_id", 2);
        let (_folder, gguf) = open(&writer);
        let built = tokenizer(&gguf).unwrap();
        let ids = built.tokenizer.encode("Merhaba ş", true).unwrap().get_ids().to_vec();
        assert_eq!(ids, [1, 259, 266, 3 + 0xc5, 3 + 0x9f]);
        assert_eq!(built.tokenizer.decode(&ids, true).unwrap(), "Merhaba ş");
        assert_eq!((built.bos.as_str(), built.eos.as_str(), built.eos_ids), ("<s>", "</s>", vec![2]));
    }

    #[test]
    fn byte_level_splits_as_the_file_says() {
        let mut alphabet: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        alphabet.sort_unstable();
        alphabet.extend(["12", "<|im_end|>"].map(String::from));
        let mut types = vec![1; alphabet.len() - 1];
        types.push(3);
        let with = |pre: &str| -> Result<(usize, String)> {
            let writer = Writer::default()
                .text("tokenizer.ggml.model", "gpt2")
                .text("tokenizer.ggml.pre", pre)
                .texts("tokenizer.ggml.tokens", &alphabet)
                .integers("tokenizer.ggml.token_type", &types)
                .texts("tokenizer.ggml.merges", &["1 2", "no piece"]);
            let (_folder, gguf) = open(&writer);
            let built = tokenizer(&gguf)?;
            let ids = built.tokenizer.encode("12<|im_end|>", true).unwrap().get_ids().to_vec();
            assert_eq!(built.eos_ids, [alphabet.len() as u32 - 1]);
            Ok((ids.len(), built.tokenizer.decode(&ids, true).unwrap()))
        };
        assert_eq!(with("gpt-2"), Ok((2, "12".into())));
        assert_eq!(with("smollm"), Ok((3, "12".into())), "digits stand alone");
        assert_eq!(with("llama-bpe"), Ok((2, "12".into())));
        assert_eq!(with("qwen2"), Ok((3, "12".into())));
        assert_eq!(with("qwen35"), Ok((3, "12".into())));
        assert!(with("klingon").unwrap_err().to_string().contains("\"klingon\""));
    }

    /// As the crate's own `tokenizer.json` of Falcon does, which splits after bytes have become letters: `²` is two bytes, of
    /// which the second is the letter `²`.
    #[test]
    fn falcon_splits_marks_words_and_three_digits() {
        let mut pieces: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        pieces.sort_unstable();
        pieces.extend(["12", "34", "1234", "!!", "Ġ1", "a!"].map(String::from));
        let types = vec![1; pieces.len()];
        let file = |pre: Option<&str>, architecture: &str| {
            let writer = Writer::default()
                .text("general.architecture", architecture)
                .text("tokenizer.ggml.model", "gpt2")
                .texts("tokenizer.ggml.tokens", &pieces)
                .integers("tokenizer.ggml.token_type", &types)
                .texts("tokenizer.ggml.merges", &["1 2", "3 4", "12 34", "! !", "Ġ 1", "a !"]);
            pre.map_or_else(|| writer.clone(), |pre| writer.clone().text("tokenizer.ggml.pre", pre))
        };
        let split = |writer: &Writer, text: &str| {
            let (_folder, gguf) = open(writer);
            let ids = tokenizer(&gguf).unwrap().tokenizer.encode(text, true).unwrap().get_ids().to_vec();
            ids.into_iter().map(|id| pieces[id as usize].as_str()).collect::<Vec<_>>().join(" ")
        };
        // An old file names no way of splitting.
        for writer in [file(Some("falcon"), "llama"), file(None, "falcon")] {
            for (text, expected) in [
                ("1234", "12 3 4"),
                (" 12", "Ġ 12"),
                ("a!! 12", "a !! Ġ 12"),
                ("x²12½", "x Â ² 12 Â ½"),
                ("м 1234567", "Ð ¼ Ġ 12 3 4 5 6 7"),
            ] {
                assert_eq!(split(&writer, text), expected, "{text}");
            }
        }
        assert_eq!(split(&file(None, "gpt2"), "1234 12"), "1234 Ġ 12");
        // Others split in ways of their own, which such a file does not say.
        for architecture in OTHER_SPLITS {
            let (_folder, gguf) = open(&file(None, architecture));
            let error = tokenizer(&gguf).err().unwrap().to_string();
            assert!(error.contains("tokenizer.ggml.pre") && error.contains(architecture), "{error}");
        }
    }

    /// A file whose tokens are the byte alphabet, then `words` of the types `kinds`.
    fn with_words(pre: &str, words: &[&str], kinds: &[i32]) -> (Writer, u32) {
        let mut pieces: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        pieces.sort_unstable();
        let first = pieces.len();
        pieces.extend(words.iter().map(|&word| word.to_owned()));
        let mut types = vec![1; first];
        types.extend(kinds);
        let writer = Writer::default()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &pieces)
            .integers("tokenizer.ggml.token_type", &types)
            .texts("tokenizer.ggml.merges", &["no piece"]);
        (writer, first as u32)
    }

    #[test]
    fn the_end_of_a_turn_is_known_by_name_whatever_its_type() {
        for end in ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "_<EOT>", ENDS[15]] {
            for kind in [1, 3, 4] {
                let (writer, first) = with_words("qwen2", &["<|endoftext|>", end, "<tool>"], &[3, kind, 4]);
                let (_folder, gguf) = open(&writer.number("tokenizer.ggml.eos_token_id", first));
                let built = tokenizer(&gguf).unwrap();
                assert_eq!(built.eos_ids, [first, first + 1], "{end} {kind}");
                let ids = built.tokenizer.encode(format!("a{end}<tool>"), true).unwrap().get_ids().to_vec();
                assert_eq!(ids[1..], [first + 1, first + 2], "{end} {kind}");
                assert_eq!(built.tokenizer.decode(&ids, true).unwrap(), "a<tool>", "{end} {kind}");
            }
        }
        let (writer, first) = with_words("qwen2", &["<stop>", "<pause>", "<other>"], &[1, 1, 1]);
        let writer = writer.number("tokenizer.ggml.eot_token_id", first);
        let (_folder, gguf) = open(&writer.number("tokenizer.ggml.eom_token_id", first + 1));
        assert_eq!(tokenizer(&gguf).unwrap().eos_ids, [first, first + 1]);
    }

    #[test]
    fn texts_of_llama_3_begin_with_its_token_unless_the_file_says_otherwise() {
        let ids = |pre: &str, says: Option<bool>| {
            let (writer, first) = with_words(pre, &["<|begin_of_text|>"], &[3]);
            let writer = writer.number("tokenizer.ggml.bos_token_id", first);
            let writer = match says {
                Some(says) => writer.flag("tokenizer.ggml.add_bos_token", says),
                None => writer,
            };
            let (_folder, gguf) = open(&writer);
            tokenizer(&gguf).unwrap().tokenizer.encode("ab", true).unwrap().get_ids().len()
        };
        assert_eq!(BEGIN.map(|pre| ids(pre, None)), [3; BEGIN.len()]);
        assert_eq!(ids("llama-bpe", Some(false)), 2);
        assert_eq!((ids("qwen2", None), ids("smollm", None), ids("gpt-2", None)), (2, 2, 2));
        assert_eq!(ids("qwen2", Some(true)), 3);
    }

    #[test]
    fn tokens_and_types_that_do_not_fit_are_refused() {
        let reason = |writer: &Writer| {
            let (_folder, gguf) = open(writer);
            tokenizer(&gguf).map(|_| ()).unwrap_err().to_string()
        };
        let long = "a".repeat(400_000);
        let (writer, first) = with_words("qwen2", &[&long], &[1]);
        let found = reason(&writer);
        assert!(found.contains(&format!("token {first} has 400000 bytes; at most 4096")), "{found}");
        let (writer, first) = with_words("qwen2", &["b"], &[1, 2, 2]);
        let found = reason(&writer);
        assert!(found.contains(&format!("{} entries for {} tokens", first + 3, first + 1)), "{found}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let reason = |writer: Writer| {
            let (_folder, gguf) = open(&writer);
            tokenizer(&gguf).map(|_| ()).unwrap_err().to_string()
        };
        assert!(reason(Writer::default()).contains("tokenizer.ggml.tokens"));
        let tokens = || Writer::default().texts("tokenizer.ggml.tokens", &["a"]);
        assert!(reason(tokens().text("tokenizer.ggml.model", "rwkv")).contains("\"rwkv\""));
        assert!(reason(tokens().text("tokenizer.ggml.model", "bert")).contains("no [UNK]"));
        assert!(reason(tokens().text("tokenizer.ggml.model", "t5")).contains("scores"));
        assert!(reason(tokens().text("tokenizer.ggml.model", "gpt2")).contains("merges"));
        assert!(reason(tokens().text("tokenizer.ggml.model", "llama")).contains("scores"));
    }
}

#[cfg(test)]
#[path = "gguf_odd_tests.rs"]
mod odd_tests;
