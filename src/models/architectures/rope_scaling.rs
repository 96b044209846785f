//! Rotary positions as a file describes them, with every kind of scaling that transformers knows.
//!
//! A scaling changes the frequencies so that a model reads longer texts than it was first trained on. One, LongRoPE, has
//! frequencies of their own for long texts; YaRN and LongRoPE change the size of queries and keys too.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::family::{ConfigFields, ConfigFile, keys_of};
use crate::compute::{LongRope, QueryGrowth, RopeStyle, Rotary};
use crate::models::keys::is_unset;

/// A kind of scaling, and its numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RopeScaling {
    /// None, and dynamic NTK scaling: it changes nothing for texts within the context of the model, and longer ones are
    /// refused.
    None,
    /// All positions are divided by a factor.
    Linear { factor: f32 },
    /// Fixed NTK scaling: a larger base, and all positions divided.
    Ntk { factor: f32 },
    /// Slow waves are stretched, fast ones kept, and those between are blended.
    Llama3 { factor: f32, low: f32, high: f32, original: f32 },
    /// Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023.
    Yarn(Yarn),
    /// Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", 2024.
    LongRope {
        /// A divisor of each frequency in texts of at most `original` tokens.
        short: Vec<f32>,
        /// The same in longer texts.
        long: Vec<f32>,
        original: usize,
        /// Of cosines and sines.
        attention: f32,
    },
    /// The frequencies are those of whole heads, of which a part is rotated.
    Proportional { factor: f32 },
}

/// The numbers of YaRN.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Yarn {
    pub factor: f32,
    pub original: f32,
    /// Turns within the original context from which on a wave is kept.
    pub fast: f32,
    /// Turns up to which a wave is stretched.
    pub slow: f32,
    /// Whether the range between is widened to whole pairs.
    pub truncate: bool,
    /// Of cosines and sines.
    pub attention: f32,
}

impl Yarn {
    /// How the paper grows the products of queries with keys when contexts grow by `factor`.
    pub(super) fn growth(factor: f32, weight: f32) -> f32 {
        if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
    }

    fn stretch(&self, base: f32, width: usize, frequencies: &mut [f32]) {
        let (base, width) = (f64::from(base), width as f64);
        let pair = |turns: f32| {
            let waves = f64::from(self.original) / (f64::from(turns) * 2.0 * std::f64::consts::PI);
            width * waves.ln() / (2.0 * base.ln())
        };
        let (mut first, mut last) = (pair(self.fast), pair(self.slow));
        if self.truncate {
            (first, last) = (first.floor(), last.ceil());
        }
        let (first, mut last) = (first.max(0.0), last.min(width - 1.0));
        if first == last {
            last += 0.001;
        }
        for (index, frequency) in frequencies.iter_mut().enumerate() {
            let stretched = ((index as f32 - first as f32) / (last - first) as f32).clamp(0.0, 1.0);
            *frequency = *frequency / self.factor * stretched + *frequency * (1.0 - stretched);
        }
    }
}

impl RopeScaling {
    /// Whether an odd number of values can be rotated so; `pairs_up` is that of the family. Proportional scaling rotates the
    /// pairs that there are whole.
    fn takes_odd(&self, pairs_up: bool) -> bool {
        match self {
            Self::Proportional { .. } => true,
            Self::None | Self::Linear { .. } | Self::Llama3 { .. } => pairs_up,
            // transformers itself fails there, and its check of long factors asks for the whole pairs.
            Self::Ntk { .. } | Self::Yarn(_) | Self::LongRope { .. } => false,
        }
    }

    /// Rotary positions of the first `width` values of heads of `head`, or of one more, if that is odd.
    ///
    /// # Errors
    /// What does not fit together.
    pub(super) fn rotary(
        &self,
        base: f32,
        head: usize,
        width: usize,
        style: RopeStyle,
    ) -> Result<Rotary, String> {
        let mut rotary = Rotary::of_pairs(base, width, width.div_ceil(2), style);
        let frequencies = &mut rotary.frequencies;
        match self {
            Self::None => {}
            Self::Linear { factor } => frequencies.iter_mut().for_each(|frequency| *frequency /= factor),
            Self::Ntk { factor } => {
                let divisor = factor.powf(2.0 / width as f32);
                *frequencies = Rotary::new(base * factor, width, style).frequencies;
                frequencies.iter_mut().for_each(|frequency| *frequency /= divisor);
            }
            &Self::Llama3 { factor, low, high, original } => {
                for frequency in frequencies {
                    let turns = original * *frequency / (2.0 * std::f32::consts::PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *frequency = (1.0 - kept) * *frequency / factor + kept * *frequency;
                }
            }
            Self::Yarn(yarn) => {
                yarn.stretch(base, width, frequencies);
                rotary.factor = yarn.attention;
            }
            Self::LongRope { short, long, original, attention } => {
                let divided = |divisors: &[f32], name: &str| {
                    if divisors.len() == frequencies.len() && divisors.iter().all(|divisor| *divisor > 0.0) {
                        return Ok(frequencies
                            .iter()
                            .zip(divisors)
                            .map(|(f, divisor)| f / divisor)
                            .collect());
                    }
                    Err(format!(
                        "its rotary scaling needs {} positive numbers as {name}, not {}",
                        frequencies.len(),
                        divisors.len()
                    ))
                };
                let long = LongRope { from: *original, frequencies: divided(long, "long_factor")? };
                rotary.frequencies = divided(short, "short_factor")?;
                rotary.long = Some(long);
                rotary.factor = *attention;
            }
            Self::Proportional { factor } => {
                let whole = Rotary::new(base, head, style).frequencies;
                let rotated = whole.iter().map(|frequency| frequency / factor).take(width / 2);
                rotary.frequencies = rotated.chain(std::iter::repeat(0.0)).take(head / 2).collect();
            }
        }
        Ok(rotary)
    }
}

/// What a `config.json` says about rotary positions, before and since version 5 of transformers.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct RopeConfig {
    rope_theta: Option<f32>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    original_max_position_embeddings: Option<f32>,
}

impl RopeConfig {
    /// The keys of families that rotate whole heads.
    pub(super) const WHOLE: ConfigFields =
        ConfigFields::But(keys_of::<Self>, &["partial_rotary_factor", "original_max_position_embeddings"]);
    /// The keys of families that rotate a part of each head, or refuse to.
    pub(super) const PARTIAL: ConfigFields =
        ConfigFields::But(keys_of::<Self>, &["original_max_position_embeddings"]);
}

/// Refuses a `partial_rotary_factor` of null in families that rotate a part of each head, if `rope_parameters` have no number:
/// transformers then rotates whole heads, and does not say so.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) naming the key.
pub(super) fn check_part(file: &ConfigFile<'_>) -> crate::Result<()> {
    let inner = &file.json["rope_parameters"]["partial_rotary_factor"];
    match file.json.get("partial_rotary_factor").is_some_and(Value::is_null) && !inner.is_number() {
        true => Err(file.refuse("partial_rotary_factor", "a number, or no such key")),
        false => Ok(()),
    }
}

/// What the rest of a model says about them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeDefaults {
    /// Length of a head.
    pub head: usize,
    /// `max_position_embeddings`.
    pub context: usize,
    /// Where the file has no `rope_theta`.
    pub base: f32,
    /// Where the file has no `partial_rotary_factor`; `None` in a family that rotates whole heads.
    pub part: Option<f32>,
    /// Which values form a pair.
    pub style: RopeStyle,
    /// Whether a part of an odd number of values has one value more, so that they form pairs, with the frequencies of that
    /// number. transformers computes so in the families that rotate as many values as it has cosines.
    pub odd_parts: bool,
}

/// The object `rope_parameters` or `rope_scaling`.
#[derive(Debug, Clone, Default, Deserialize)]
struct Parameters {
    rope_type: Option<String>,
    /// What `rope_type` was called once; some files carry both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f32>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f32>,
    original_max_position_embeddings: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    attention_factor: Option<f32>,
    beta_fast: Option<f32>,
    beta_slow: Option<f32>,
    mscale: Option<f32>,
    mscale_all_dim: Option<f32>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f32>>,
    long_factor: Option<Vec<f32>>,
    /// Keys that are not read; they are refused.
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl RopeConfig {
    /// Proportional scaling that rotates a part of each head.
    pub(super) fn proportional(part: f32) -> Self {
        let object = json!({"rope_type": "proportional", "partial_rotary_factor": part});
        Self { rope_parameters: Some(object), ..Self::default() }
    }

    fn object(&self) -> Option<&Value> {
        [&self.rope_scaling, &self.rope_parameters].into_iter().flatten().find(|value| !is_unset(value))
    }

    /// The kind of scaling, as the file names it.
    pub(super) fn kind(&self) -> Option<&str> {
        let object = self.object()?;
        object.get("rope_type").or_else(|| object.get("type"))?.as_str()
    }

    /// Whether the file has such an object.
    pub(super) fn has_parameters(&self) -> bool {
        self.object().is_some()
    }

    /// Whether `rope_parameters` are those of all layers.
    pub(super) fn has_flat_parameters(&self) -> bool {
        let nested = |value: &Value| value.get("full_attention").or(value.get("sliding_attention")).is_some();
        self.rope_parameters.as_ref().is_some_and(|value| !is_unset(value) && !nested(value))
    }

    /// Checks that positions by layer are said once, with their bases: what transformers makes of two objects, and of a base
    /// next to objects without one, differs by family.
    ///
    /// # Errors
    /// What is said twice.
    pub(super) fn check_layers(&self) -> Result<(), String> {
        let said = |value: &Option<Value>| value.as_ref().is_some_and(|value| !is_unset(value));
        if said(&self.rope_scaling) && said(&self.rope_parameters) {
            return Err("it has rope_scaling and rope_parameters; leave one of them out".into());
        }
        let lacks_base = |layers: &&str| {
            self.object().and_then(|all| all.get(*layers)).is_some_and(|own| own.get("rope_theta").is_none())
        };
        let Some(layers) = ["full_attention", "sliding_attention"].into_iter().find(lacks_base) else {
            return Ok(());
        };
        match self.rope_theta {
            Some(base) => Err(format!(
                "its rope_theta is {base}, next to rope_parameters of {layers} without one; write it there"
            )),
            None => Ok(()),
        }
    }

    /// The same with the larger base of heads of `head` that "dynamic" scaling means where it has an `alpha`; `base` is where
    /// the file gives none. `None` without an `alpha`.
    ///
    /// # Errors
    /// What cannot be computed with.
    pub(super) fn with_alpha(&self, base: f32, head: usize) -> Result<Option<Self>, String> {
        let found = self.object().and_then(Value::as_object);
        let Some(object) = found.filter(|_| self.kind() == Some("dynamic")) else { return Ok(None) };
        let Some(alpha) = object.get("alpha").and_then(Value::as_f64).filter(|alpha| *alpha != 0.0) else {
            return Ok(None);
        };
        let base = object
            .get("rope_theta")
            .and_then(Value::as_f64)
            .map(|base| base as f32)
            .or(self.rope_theta)
            .unwrap_or(base);
        if alpha < 0.0 || head <= 2 {
            return Err(format!("its rotary scaling has an alpha of {alpha}, and its heads are {head} wide"));
        }
        let width = head as f64;
        let mut rest = object.clone();
        for key in ["type", "rope_type", "alpha", "rope_theta"] {
            rest.remove(key);
        }
        Ok(Some(Self {
            rope_theta: Some((f64::from(base) * alpha.powf(width / (width - 2.0))) as f32),
            rope_scaling: Some(Value::Object(rest)),
            rope_parameters: None,
            ..self.clone()
        }))
    }

    /// Sets the length of the first training, if it does not stand outside of the object; there it comes before that inside.
    pub(super) fn set_original(&mut self, length: f32) {
        self.original_max_position_embeddings.get_or_insert(length);
    }

    /// Whether the layers of this `layer_type` have an object of their own.
    pub(super) fn has(&self, layer_type: &str) -> bool {
        self.object().is_some_and(|object| object.get(layer_type).is_some_and(|own| !is_unset(own)))
    }

    /// Whether that object, or the file for all layers, gives a base.
    pub(super) fn has_base(&self, layer_type: &str) -> bool {
        let given = |all: &Value| all.get(layer_type).is_some_and(|own| own.get("rope_theta").is_some());
        self.rope_theta.is_some() || self.object().is_some_and(given)
    }

    /// The rotary positions of the layers of this `layer_type`, if the file has several kinds; `others` are keys that the
    /// family reads itself.
    ///
    /// # Errors
    /// What is not supported, or does not fit together.
    pub(super) fn rotary(
        &self,
        defaults: &RopeDefaults,
        layer_type: Option<&str>,
        others: &[&str],
    ) -> Result<Rotary, String> {
        let found =
            self.object().map(|all| layer_type.and_then(|layer_type| all.get(layer_type)).unwrap_or(all));
        let parameters: Parameters = match found {
            Some(found) => Parameters::deserialize(found)
                .map_err(|error| format!("its rotary scaling cannot be read: {error}"))?,
            None => Parameters::default(),
        };
        let known = |key: &str| others.contains(&key);
        if let Some((key, value)) = parameters.others.iter().find(|(key, v)| !is_unset(v) && !known(key)) {
            return Err(format!("its rotary scaling sets {key:?} to {value}, which is not supported"));
        }
        let given = parameters.partial_rotary_factor.or(self.partial_rotary_factor);
        // transformers ignores such a factor in these families, or fails; proportional scaling has a use of its own for it.
        let own_kind = parameters.rope_type.as_deref().or(parameters.old_type.as_deref());
        let is_proportional = own_kind == Some("proportional");
        let reads = defaults.part.is_some() || is_proportional;
        if let Some(part) = given.filter(|&part| part != 1.0 && !reads) {
            return Err(format!("its partial_rotary_factor is {part}, and its family rotates whole heads"));
        }
        let part = given.or(defaults.part.map(f64::from)).unwrap_or(1.0);
        if !(part > 0.0 && part <= 1.0) {
            return Err(format!("its partial_rotary_factor is {part}; it must lie above 0 and not above 1"));
        }
        let base = parameters.rope_theta.or(self.rope_theta).unwrap_or(defaults.base);
        if !(base > 1.0 && base.is_finite()) {
            return Err(format!("its rope_theta is {base}; it must be above 1"));
        }
        let scaling = parameters.scaling(self.original_max_position_embeddings, defaults.context)?;
        // As transformers computes it, in double precision.
        let width = (defaults.head as f64 * part) as usize;
        if part < 1.0 && !width.is_multiple_of(2) && !scaling.takes_odd(defaults.odd_parts) {
            return Err(format!(
                "its partial_rotary_factor of {part} rotates {width} values of each head; they must be pairs"
            ));
        }
        // Heads of an odd length have no value to spare.
        let width = if part < 1.0 { width } else { width / 2 * 2 };
        let mut rotary = scaling.rotary(base, defaults.head, width, defaults.style)?;
        if let Some(rate) = parameters.others.get("llama_4_scaling_beta").and_then(Value::as_f64) {
            let length = parameters.original_max_position_embeddings.ok_or(
                "its rotary scaling has llama_4_scaling_beta without original_max_position_embeddings",
            )?;
            rotary.query_growth = Some(QueryGrowth { rate: rate as f32, length: length as usize });
        }
        Ok(rotary)
    }
}

impl Parameters {
    /// `original` is the length of the first training where it stands outside of this object.
    fn scaling(&self, original: Option<f32>, context: usize) -> Result<RopeScaling, String> {
        let positive = |value: Option<f32>, name: &str| {
            value
                .filter(|x| *x > 0.0 && x.is_finite())
                .ok_or_else(|| format!("its rotary scaling has no positive {name}"))
        };
        let factor = || positive(self.factor, "factor");
        let original = original.or(self.original_max_position_embeddings).unwrap_or(context as f32);
        let original = || positive(Some(original), "original_max_position_embeddings");
        let ratio = || Ok::<_, String>(self.factor.unwrap_or(context as f32 / original()?));
        Ok(match self.rope_type.as_deref().or(self.old_type.as_deref()) {
            None | Some("default") => RopeScaling::None,
            Some("dynamic") => {
                factor()?;
                RopeScaling::None
            }
            Some("linear") => RopeScaling::Linear { factor: factor()? },
            Some("ntk") => RopeScaling::Ntk { factor: factor()? },
            Some("proportional") => {
                RopeScaling::Proportional { factor: positive(self.factor.or(Some(1.0)), "factor")? }
            }
            Some("llama3") => RopeScaling::Llama3 {
                factor: factor()?,
                low: positive(self.low_freq_factor, "low_freq_factor")?,
                high: positive(self.high_freq_factor, "high_freq_factor")?,
                original: original()?,
            },
            Some("yarn") => {
                let factor = positive(Some(ratio()?), "factor")?;
                let set = |value: Option<f32>| value.filter(|x| *x != 0.0);
                let attention = match (set(self.mscale), set(self.mscale_all_dim)) {
                    (Some(one), Some(all)) => Yarn::growth(factor, one) / Yarn::growth(factor, all),
                    _ => Yarn::growth(factor, 1.0),
                };
                RopeScaling::Yarn(Yarn {
                    factor,
                    original: original()?,
                    fast: positive(Some(set(self.beta_fast).unwrap_or(32.0)), "beta_fast")?,
                    slow: positive(Some(set(self.beta_slow).unwrap_or(1.0)), "beta_slow")?,
                    truncate: self.truncate.unwrap_or(true),
                    attention: self.attention_factor.unwrap_or(attention),
                })
            }
            // "su" is what Phi-3 called it first.
            Some("longrope" | "su") => {
                let (factor, original) = (ratio()?, original()?);
                let attention = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
                RopeScaling::LongRope {
                    short: self.short_factor.clone().unwrap_or_default(),
                    long: self.long_factor.clone().unwrap_or_default(),
                    original: original as usize,
                    attention: self.attention_factor.unwrap_or(attention),
                }
            }
            Some(other) => {
                return Err(format!(
                    "its rotary scaling is {other:?}; supported are default, linear, dynamic, ntk, yarn, longrope, llama3 \
                     and proportional"
                ));
            }
        })
    }
}

#[cfg(test)]
#[path = "rope_scaling_tests.rs"]
mod tests;
