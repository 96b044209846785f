//! The special tokens around the two texts of a pair.

use tokenizers::{Encoding, Token};

use super::config::TokenizerConfig;
use super::pipeline::{Pipeline, guarded};

/// The special tokens of a pair, and where type 1 begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PairTemplate {
    pub(super) before: Vec<u32>,
    pub(super) between: Vec<u32>,
    pub(super) after: Vec<u32>,
    /// The number of `between` from which on tokens have type 1.
    pub(super) typed: Option<usize>,
}

impl PairTemplate {
    /// Found by sending a pair of single tokens through the post-processor; `None` when it does not keep the texts'
    /// tokens in two pieces in their order.
    ///
    /// # Errors
    /// When the post-processor cannot run.
    pub(crate) fn of(inner: &Pipeline, settings: &TokenizerConfig) -> tokenizers::Result<Option<Self>> {
        let probe = |id, kind| Encoding::from_tokens(vec![Token::new(id, String::new(), (0, 0))], kind);
        let dressed = guarded(|| inner.dress(probe(0, 0), Some(probe(1, 1))))?;
        let mask = dressed.get_special_tokens_mask();
        let own: Vec<usize> = (0..mask.len()).filter(|&at| mask[at] == 0).collect();
        let ids = dressed.get_ids();
        let [first, second] = own[..] else { return Ok(None) };
        if (ids[first], ids[second]) != (0, 1) {
            return Ok(None);
        }
        let types = dressed.get_type_ids();
        let begins = types.iter().position(|&kind| kind != 0).unwrap_or(types.len());
        // Type 1 from somewhere between the texts to the end, or not at all.
        let known =
            types[begins..].iter().all(|&kind| kind == 1) && (begins > first || begins == types.len());
        if !known || (begins > second && begins < types.len()) {
            return Ok(None);
        }
        let typed = (begins < types.len() && has_types(settings)).then(|| begins - first - 1);
        let part = |range: std::ops::Range<usize>| ids[range].to_vec();
        Ok(Some(Self {
            before: part(0..first),
            between: part(first + 1..second),
            after: part(second + 1..ids.len()),
            typed,
        }))
    }

    /// How many special tokens a pair gets.
    pub(super) fn special(&self) -> usize {
        self.before.len() + self.between.len() + self.after.len()
    }
}

/// Whether transformers gives the types to the model: a file can say, and so does the tokenizer's class.
fn has_types(settings: &TokenizerConfig) -> bool {
    if let Some(names) = settings.value("model_input_names").as_array() {
        return names.iter().any(|name| name == "token_type_ids");
    }
    match settings.word("tokenizer_class") {
        None => true,
        Some(class) => ["Bert", "Electra", "ConvBert", "MobileBert", "Funnel"]
            .iter()
            .any(|known| class.starts_with(known)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::file::compact;
    use super::super::tests::{bytes, fixture};
    use super::*;

    /// The template of a pair written like "C0 A0 S0 B1 S1": parts with their types, `C` for [CLS] (id 2) and `S` for
    /// [SEP] (id 3).
    fn template(pair: &str, settings: &Value) -> Option<PairTemplate> {
        let part = |part: &str| {
            let kind: u32 = part[1..].parse().unwrap();
            match &part[..1] {
                "C" => json!({"SpecialToken": {"id": "[CLS]", "type_id": kind}}),
                "S" => json!({"SpecialToken": {"id": "[SEP]", "type_id": kind}}),
                text => json!({"Sequence": {"id": text, "type_id": kind}}),
            }
        };
        let mut json = fixture("tokenizers/wordpiece_uncased");
        json["post_processor"]["pair"] = pair.split(' ').map(part).collect();
        let pipeline = Pipeline::from(compact(&bytes(&json)).unwrap());
        PairTemplate::of(&pipeline, &TokenizerConfig::of(settings)).unwrap()
    }

    fn parts(before: &[u32], between: &[u32], after: &[u32], typed: Option<usize>) -> PairTemplate {
        PairTemplate { before: before.into(), between: between.into(), after: after.into(), typed }
    }

    #[test]
    fn special_tokens_and_types_are_where_the_post_processor_puts_them() {
        for (pair, expected) in [
            ("C0 A0 S0 B1 S1", parts(&[2], &[3], &[3], Some(1))),
            ("C0 A0 S0 S1 B1 S1", parts(&[2], &[3, 3], &[3], Some(1))),
            ("C0 A0 S1 S1 B1", parts(&[2], &[3, 3], &[], Some(0))),
            ("C0 A0 B1 S1 C1", parts(&[2], &[], &[3, 2], Some(0))),
            ("C0 A0 S0 S0 B0 S0", parts(&[2], &[3, 3], &[3], None)),
            ("A0 B0", parts(&[], &[], &[], None)),
        ] {
            let found = template(pair, &json!({}));
            assert_eq!(found.as_ref(), Some(&expected), "{pair}");
            assert_eq!(expected.special(), pair.split(' ').count() - 2, "{pair}");
        }
    }

    #[test]
    fn other_orders_and_types_are_none() {
        for pair in [
            "C0 B0 S0 A0 S0", // the second text first
            "C0 A0 S0 B1 S0", // back to type 0
            "C0 A0 S0 B0 S1", // type 1 after both texts alone
            "C0 A1 S1 B1 S1", // the first text has type 1
            "C1 A1 S1 B1 S1",
            "C0 A0 S0 B2 S2", // a third type
        ] {
            assert_eq!(template(pair, &json!({})), None, "{pair}");
        }
    }

    #[test]
    fn types_are_given_to_models_that_take_them() {
        for (settings, takes) in [
            (json!({}), true),
            (json!({"model_input_names": ["input_ids", "token_type_ids"]}), true),
            (json!({"model_input_names": ["input_ids", "attention_mask"]}), false),
            (json!({"tokenizer_class": "BertTokenizerFast"}), true),
            (json!({"tokenizer_class": "ElectraTokenizer"}), true),
            (json!({"tokenizer_class": "XLMRobertaTokenizer"}), false),
            (json!({"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids"]}), false),
            (json!({"tokenizer_class": "RobertaTokenizer", "model_input_names": ["token_type_ids"]}), true),
        ] {
            let typed = template("C0 A0 S0 B1 S1", &settings).unwrap().typed;
            assert_eq!(typed, takes.then_some(1), "{settings}");
        }
    }
}
