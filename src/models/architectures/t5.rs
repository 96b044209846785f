//! The encoder of T5 and mT5: pre-norm, RMS norms, no positions but a bias by distance that all layers share.
//!
//! Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2019; Ni et al.,
//! "Sentence-T5", 2021.

use serde::Deserialize;

use super::architecture::{Architecture, Description, Factors};
use super::family::{ConfigFields, ConfigFile, Family, ReadConfig, keys_of};
use super::tensors::{
    EmbeddingTensors, LayerTensors, MixerTensors, MlpTensors, NormTensors, PrefixedTensors, Tensors,
};
use crate::Result;
use crate::compute::{Activation, DistanceBias, Heads, LONGEST_HEAD, LayerAttention, Mask, Positions};

/// Encoders: the decoder of a file is not read.
pub(super) const FAMILIES: &[Family] = &[family("t5", "T5", read_t5), family("mt5", "MT5", read_mt5)];

const fn family(model_type: &'static str, classes: &'static str, read: ReadConfig) -> Family {
    let fields = &[ConfigFields::All(keys_of::<T5Config>)];
    Family { generates: false, fields, ..Family::new(model_type, classes, IGNORED, read) }
}

/// Keys that change nothing in an encoder.
const IGNORED: &[&str] = &[
    // What transformers makes of `feed_forward_proj`. The names of the tensors say it too.
    "is_gated_act",
    // Of the decoder.
    "num_decoder_layers",
    "scale_decoder_outputs",
    "tie_word_embeddings",
    // There is no table of positions.
    "n_positions",
];

/// What `config.json` says, with transformers' values for keys that are absent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct T5Config {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f32,
    feed_forward_proj: Option<String>,
    /// What transformers makes of it; where both say something, this counts.
    dense_act_fn: Option<String>,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            vocab_size: 32_128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: None,
            dense_act_fn: None,
        }
    }
}

/// Tokens of the longest text. The model itself has no limit; a tokenizer usually has a lower one.
const LONGEST: usize = 8192;

/// A T5 whose configuration was checked.
#[derive(Debug)]
struct T5 {
    config: T5Config,
    heads: Heads,
    activation: Activation,
    gated: bool,
}

fn read_t5(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    read(file, "relu")
}

fn read_mt5(file: &ConfigFile<'_>) -> Result<Box<dyn Architecture>> {
    read(file, "gated-gelu")
}

fn read(file: &ConfigFile<'_>, usual: &str) -> Result<Box<dyn Architecture>> {
    let mut config: T5Config = file.parse()?;
    if file.json["model_type"] == "mt5" && file.json["num_layers"].is_null() {
        config.num_layers = 8;
    }
    file.check_sizes(&[
        ("vocab_size", config.vocab_size),
        ("d_model", config.d_model),
        ("d_ff", config.d_ff),
        ("num_layers", config.num_layers),
        ("num_heads", config.num_heads),
        ("relative_attention_num_buckets", config.relative_attention_num_buckets),
        ("relative_attention_max_distance", config.relative_attention_max_distance),
    ])?;
    if config.d_kv == 0 || config.d_kv > LONGEST_HEAD {
        return Err(file.refuse("d_kv", &format!("1 to {LONGEST_HEAD}")));
    }
    let buckets = config.relative_attention_num_buckets;
    if buckets < 4 || !buckets.is_multiple_of(4) || config.relative_attention_max_distance <= buckets / 4 {
        return Err(file.refuse(
            "relative_attention_num_buckets",
            "a multiple of 4, with distances beyond a quarter of it",
        ));
    }
    let function = config.feed_forward_proj.as_deref().unwrap_or(usual);
    let (gated, name) = match function.split_once('-') {
        Some(("gated", "gelu")) => (true, "gelu_new"),
        Some(("gated", name)) => (true, name),
        _ => (false, function),
    };
    let activation = match &config.dense_act_fn {
        Some(name) => file.activation("dense_act_fn", name)?,
        None => file.activation("feed_forward_proj", name)?,
    };
    let heads = Heads { heads: config.num_heads, kv_heads: config.num_heads, width: config.d_kv };
    Ok(Box::new(T5 { config, heads, activation, gated }))
}

impl T5 {
    /// The bucket of a key at this distance from its query: half of them for keys after it; in each half, one for each small
    /// distance, then wider ones.
    fn bucket(&self, distance: isize) -> usize {
        let each = self.config.relative_attention_num_buckets / 2;
        let exact = each / 2;
        let (side, distance) = (if distance > 0 { each } else { 0 }, distance.unsigned_abs());
        if distance < exact {
            return side + distance;
        }
        let farthest = self.config.relative_attention_max_distance as f64 / exact as f64;
        let octaves = (distance as f32 / exact as f32).ln() / farthest.ln() as f32;
        side + (exact + (octaves * (each - exact) as f32) as usize).min(each - 1)
    }

    fn norm(&self, scope: &PrefixedTensors<'_>, name: &str) -> Result<NormTensors> {
        let scale = scope.vector(&format!("{name}.weight"), self.config.d_model)?;
        Ok(NormTensors { scale, shift: None, epsilon: self.config.layer_norm_epsilon })
    }
}

fn scope(tensors: &dyn Tensors) -> PrefixedTensors<'_> {
    PrefixedTensors::new(tensors, "encoder.final_layer_norm.weight", &["", "transformer."])
}

impl Architecture for T5 {
    fn describe(&self) -> Description {
        Description {
            hidden: self.config.d_model,
            layers: self.config.num_layers,
            heads: self.heads,
            // The scores are the products themselves.
            attention: vec![LayerAttention { scale: Some(1.0), ..LayerAttention::new(Mask::FULL) }],
            vocabulary: self.config.vocab_size,
            context: LONGEST,
            activation: self.activation,
            norm_first: true,
            positions: Positions::FromZero,
            factors: Factors::default(),
        }
    }

    fn embeddings(&self, tensors: &dyn Tensors) -> Result<EmbeddingTensors> {
        let scope = scope(tensors);
        let own = "encoder.embed_tokens.weight";
        let name = if scope.contains(own) { own } else { "shared.weight" };
        scope.matrix(name, [self.config.vocab_size, self.config.d_model]).map(EmbeddingTensors::new)
    }

    fn distance_bias(&self, tensors: &dyn Tensors) -> Result<Option<DistanceBias>> {
        let (heads, buckets) = (self.heads.heads, self.config.relative_attention_num_buckets);
        let name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let table = scope(tensors).matrix(name, [buckets, heads])?.to_f32()?;
        let bias = |head, distance| table[self.bucket(distance) * heads + head];
        DistanceBias::new(heads, LONGEST, bias).map(Some)
    }

    fn layer(&self, tensors: &dyn Tensors, index: usize) -> Result<LayerTensors> {
        let T5Config { d_model: hidden, d_ff: wide, .. } = self.config;
        let (scope, inner) = (scope(tensors), self.heads.heads * self.heads.width);
        let name = |name: &str| format!("encoder.block.{index}.layer.{name}");
        let linear = |part: &str, shape| scope.maybe_biased(&name(part), shape, false);
        let attention = |part: &str| linear(&format!("0.SelfAttention.{part}"), [inner, hidden]);
        let qkv = vec![attention("q")?, attention("k")?, attention("v")?];
        let output = linear("0.SelfAttention.o", [hidden, inner])?;
        let mlp = |part: &str, shape| linear(&format!("1.DenseReluDense.{part}"), shape);
        let (gate, up) = match self.gated {
            true => (Some(mlp("wi_0", [wide, hidden])?), mlp("wi_1", [wide, hidden])?),
            false => (None, mlp("wi", [wide, hidden])?),
        };
        Ok(LayerTensors {
            attention_norm: Some(self.norm(&scope, &name("0.layer_norm"))?),
            mlp_norm: Some(self.norm(&scope, &name("1.layer_norm"))?),
            ..LayerTensors::new(
                MixerTensors::attention(qkv),
                output,
                MlpTensors::Dense { gate, up, down: mlp("wo", [hidden, wide])? },
            )
        })
    }

    fn final_norm(&self, tensors: &dyn Tensors) -> Result<Option<NormTensors>> {
        self.norm(&scope(tensors), "encoder.final_layer_norm").map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn buckets_are_those_of_transformers() {
        // T5Attention._relative_position_bucket: the first distance of each bucket.
        let cases: [(usize, usize, &[usize]); 2] = [
            (32, 128, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]),
            (16, 100, &[0, 1, 2, 3, 4, 9, 20, 45]),
        ];
        for (buckets, farthest, first) in cases {
            let config = T5Config {
                relative_attention_num_buckets: buckets,
                relative_attention_max_distance: farthest,
                ..T5Config::default()
            };
            let heads = Heads { heads: 1, kv_heads: 1, width: 1 };
            let model = T5 { config, heads, activation: Activation::Relu, gated: false };
            for distance in 0..600_usize {
                let expected = first.iter().rposition(|&first| first <= distance).unwrap();
                assert_eq!(model.bucket(-(distance as isize)), expected, "{distance}");
                let after = expected + if distance > 0 { buckets / 2 } else { 0 };
                assert_eq!(model.bucket(distance as isize), after, "{distance}");
            }
        }
    }

    #[test]
    fn the_function_that_transformers_made_counts() {
        let activation = |extra: Value| {
            let mut json =
                json!({"model_type": "t5", "vocab_size": 10, "d_model": 8, "d_ff": 8, "num_layers": 1});
            json.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let file = ConfigFile { model: "m", path: Path::new("config.json"), json: &json };
            read_t5(&file).map(|model| format!("{model:?}")).map_err(|error| error.to_string())
        };
        let uses =
            |extra: Value, name: &str| activation(extra).unwrap().contains(&format!("activation: {name},"));
        assert!(uses(json!({}), "Relu"));
        assert!(uses(json!({"feed_forward_proj": "gated-gelu"}), "GeluTanh"));
        assert!(uses(json!({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}), "Gelu"));
        assert!(uses(json!({"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}), "GeluTanh"));
        assert!(activation(json!({"dense_act_fn": "mish"})).unwrap_err().contains("dense_act_fn"));
    }
}
