//! Mixtures of experts: what files say of them, and where their tensors are.

use serde::Deserialize;

use super::biased_experts as biased;
use super::family::LARGEST_SIZE;
use super::gguf_keys::Metadata;
use super::tensors::{ExpertMatrices, ExpertTensors, SharedTensors, Tensors};
use crate::Result;
use crate::compute::{ExpertRouting, ExpertScores, Matrix, Weight};

/// More experts than any layer has.
pub(super) const MOST_EXPERTS: usize = 1 << 14;

/// Metadata of GGUF files that is read of every family with experts.
pub(super) const GGUF_KEYS: &[&str] = &[
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_gating_func",
    "expert_weights_norm",
    "expert_weights_scale",
];

/// And of those with an expert that all rows use.
pub(super) const GGUF_SHARED_KEYS: &[&str] = &["expert_shared_feed_forward_length"];

/// And of those whose first layers have none.
pub(super) const GGUF_DENSE_KEYS: &[&str] = &["leading_dense_block_count"];

/// The names of the projections of an expert: gate, first and second matrix.
const PROJECTIONS: [[&str; 3]; 2] = [["gate_proj", "up_proj", "down_proj"], ["w1", "w3", "w2"]];

/// The names of a tensor with the gates and first matrices of all experts, and of that with the second ones.
const FUSED: [[&str; 2]; 3] = [
    ["experts.gate_up_proj", "experts.down_proj"],
    // GGUF.
    ["experts.gate_up_proj", "experts.down_proj.weight"],
    // Granite.
    ["input_linear.weight", "output_linear.weight"],
];

/// The names of the router.
const ROUTERS: [&str; 3] = ["gate.weight", "router.layer.weight", "router.weight"];

/// What `config.json` says of experts.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ExpertConfig {
    num_experts: Option<usize>,
    num_local_experts: Option<usize>,
    pub(super) num_experts_per_tok: Option<usize>,
    norm_topk_prob: Option<bool>,
    moe_intermediate_size: Option<usize>,
    shared_expert_intermediate_size: Option<usize>,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
    decoder_sparse_step: Option<usize>,
    num_dense_layers: Option<usize>,
    use_expert_bias: Option<bool>,
    routed_scaling_factor: Option<f32>,
}

/// What a family's files mean by what they do not say.
#[derive(Debug)]
pub(super) struct ExpertDefaults {
    /// The names of the block in a layer.
    pub blocks: &'static [&'static str],
    /// `num_experts`.
    pub count: usize,
    /// `num_experts_per_tok`.
    pub used: usize,
    /// `moe_intermediate_size`; `None` if experts have the `intermediate_size`.
    pub intermediate: Option<usize>,
    /// `shared_expert_intermediate_size`; `None` if no expert is that of all rows.
    pub shared: Option<usize>,
    /// `num_dense_layers`.
    pub dense: usize,
    /// What scores are made of.
    pub scores: ExpertScores,
    /// `norm_topk_prob`.
    pub normalized: bool,
    /// The same in GGUF files.
    pub gguf_normalized: bool,
    /// What is added to a sum of scores.
    pub epsilon: f32,
    /// `use_expert_bias`.
    pub choice_bias: bool,
    /// Whether the router and the matrices of experts have biases, in the form of GPT-OSS.
    pub biased: bool,
}

impl ExpertDefaults {
    /// Those of Qwen3's mixtures.
    pub(super) const QWEN3: Self = Self {
        blocks: &["mlp"],
        count: 128,
        used: 8,
        intermediate: Some(768),
        shared: None,
        dense: 0,
        scores: ExpertScores::Softmax,
        normalized: false,
        gguf_normalized: true,
        epsilon: 0.0,
        choice_bias: false,
        biased: false,
    };

    /// Those of Mixtral, which a GGUF file calls a Llama.
    pub(super) const MIXTRAL: Self = Self {
        blocks: &["block_sparse_moe", "mlp"],
        count: 8,
        used: 2,
        intermediate: None,
        normalized: true,
        ..Self::QWEN3
    };

    /// The mixture that a `config.json` describes, in a model of `layers`; `intermediate` is its `intermediate_size`.
    ///
    /// # Errors
    /// What is not computed.
    pub(super) fn of_config(
        &self,
        config: &ExpertConfig,
        layers: usize,
        intermediate: usize,
    ) -> Result<Mixture, String> {
        if let (Some(one), Some(other)) = (config.num_experts, config.num_local_experts)
            && one != other
        {
            return Err(format!("its num_experts is {one} and its num_local_experts is {other}"));
        }
        for (key, count) in
            [("num_experts", config.num_experts), ("num_local_experts", config.num_local_experts)]
        {
            if count == Some(0) {
                return Err(format!(
                    "its {key} is 0; supported is 1 to {MOST_EXPERTS}: its model_type is that of models with experts"
                ));
            }
        }
        if let (None, Some(wide @ 1..)) = (self.shared, config.shared_expert_intermediate_size) {
            return Err(format!(
                "its shared_expert_intermediate_size is {wide}; supported is 0: no expert of its family is that of all tokens"
            ));
        }
        let step = config.decoder_sparse_step.unwrap_or(1);
        if step == 0 {
            return Err("its decoder_sparse_step is 0; it must be above 0".into());
        }
        let dense = config.num_dense_layers.unwrap_or(self.dense);
        let sparse = |index: usize| {
            index >= dense && (index + 1).is_multiple_of(step) && !config.mlp_only_layers.contains(&index)
        };
        let normalized = config.norm_topk_prob.unwrap_or(self.normalized);
        let own = self.intermediate.map(|own| config.moe_intermediate_size.unwrap_or(own));
        Mixture {
            blocks: self.blocks,
            count: config.num_experts.or(config.num_local_experts).unwrap_or(self.count),
            intermediate: own.unwrap_or(intermediate),
            routing: ExpertRouting {
                used: config.num_experts_per_tok.unwrap_or(self.used),
                scores: self.scores,
                normalized: normalized.then_some(self.epsilon),
                factor: config.routed_scaling_factor.unwrap_or(1.0),
            },
            choice_bias: config.use_expert_bias.unwrap_or(self.choice_bias),
            biased: self.biased,
            stacked: false,
            shared: self.shared.map(|own| config.shared_expert_intermediate_size.unwrap_or(own)),
            layers: (0..layers).map(sparse).collect(),
        }
        .checked()
    }

    /// The mixture that the metadata of a GGUF file describes, in a model of `layers`; `intermediate` is its
    /// `feed_forward_length`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`](crate::Error::InvalidFile) naming what is missing,
    /// [`Error::Unsupported`](crate::Error::Unsupported).
    pub(super) fn of_gguf(
        &self,
        metadata: &Metadata<'_>,
        layers: usize,
        intermediate: usize,
    ) -> Result<Mixture> {
        let scores = match metadata.number("expert_gating_func") {
            // None in the first files: that of the family.
            None | Some(0) => self.scores,
            Some(1) => ExpertScores::Softmax,
            Some(2) => ExpertScores::Sigmoid,
            Some(other) => {
                let reason =
                    format!("its expert_gating_func is {other}; supported are 1 (softmax) and 2 (sigmoid)");
                return Err(metadata.unsupported(reason));
            }
        };
        let normalized = metadata.flag("expert_weights_norm").unwrap_or(self.gguf_normalized);
        // In llama.cpp, a scale of 0 is none.
        let factor = metadata.float("expert_weights_scale").filter(|factor| *factor != 0.0);
        let single = (0..layers).map(|layer| format!("blk.{layer}.ffn_gate.0.weight"));
        if let Some(name) = single.into_iter().find(|name| metadata.gguf.contains(name)) {
            return Err(metadata.unsupported(format!(
                "it has one tensor for each expert ({name}), as the first converters wrote them; convert the model again, or \
                 choose a newer file of it"
            )));
        }
        // As in llama.cpp.
        let dense = metadata.number("leading_dense_block_count").unwrap_or(0);
        let known_shared = metadata.number(GGUF_SHARED_KEYS[0]);
        let shape = |name: &str| {
            (0..layers).find_map(|layer| metadata.gguf.shape(&format!("blk.{layer}.{name}.weight")))
        };
        let stored = shape("ffn_up_shexp").and_then(|shape| shape.first().copied());
        let wide = shape("ffn_down_exps").filter(|shape| shape.len() == 3).map(|shape| shape[2]);
        let known = metadata.number("expert_feed_forward_length");
        let mixture = Mixture {
            blocks: &self.blocks[self.blocks.len() - 1..],
            count: metadata.required("expert_count")?,
            intermediate: known.or(wide).unwrap_or(intermediate),
            routing: ExpertRouting {
                used: metadata.required("expert_used_count")?,
                scores,
                normalized: normalized.then_some(self.epsilon),
                factor: factor.unwrap_or(1.0),
            },
            choice_bias: self.choice_bias,
            biased: self.biased,
            stacked: true,
            shared: self.shared.map(|own| known_shared.or(stored).unwrap_or(own)),
            layers: (0..layers).map(|index| index >= dense).collect(),
        };
        mixture.checked().map_err(|reason| metadata.unsupported(reason))
    }
}

/// The mixtures of experts of a model, all of one shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mixture {
    /// The names that the block may have in a layer.
    blocks: &'static [&'static str],
    /// Experts of a layer.
    count: usize,
    /// Columns between the matrices of an expert.
    intermediate: usize,
    routing: ExpertRouting,
    /// Whether numbers are added to the scores that choose.
    choice_bias: bool,
    /// Whether the router and the matrices of experts have biases.
    biased: bool,
    /// Whether one tensor has the matrices of all experts, as in GGUF files; else each may have its own.
    stacked: bool,
    /// Columns between the matrices of the expert that all rows use, if there is one.
    shared: Option<usize>,
    /// Of each layer, whether it has experts.
    layers: Vec<bool>,
}

impl Mixture {
    fn checked(self) -> Result<Self, String> {
        let sizes = [self.intermediate, self.shared.unwrap_or(1)];
        let sound = (1..=MOST_EXPERTS).contains(&self.count)
            && (1..=self.count).contains(&self.routing.used)
            && sizes.iter().all(|size| (1..=LARGEST_SIZE).contains(size));
        if !sound {
            return Err(format!(
                "its experts do not fit together: {} of {} for each token, of {} columns, and {} of an expert for all",
                self.routing.used,
                self.count,
                self.intermediate,
                self.shared.unwrap_or(0)
            ));
        }
        if !self.routing.factor.is_finite() {
            return Err(format!("the factor of its experts' weights is {}", self.routing.factor));
        }
        Ok(self)
    }

    /// Whether layer `index` has experts.
    pub(super) fn is_in(&self, index: usize) -> bool {
        self.layers[index]
    }

    /// The tensors of the experts of layer `layer`, which is the beginning of their names, for states of `hidden` numbers.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub(super) fn tensors(&self, tensors: &dyn Tensors, layer: &str, hidden: usize) -> Result<ExpertTensors> {
        let full = |block: &str, name: &str| format!("{layer}.{block}.{name}");
        let places = self.blocks.iter().flat_map(|&block| ROUTERS.map(|router| (block, router)));
        let found = places.clone().find(|(block, router)| tensors.contains(&full(block, router)));
        let (block, router) = found.or_else(|| places.clone().next()).unwrap_or(("mlp", ROUTERS[0]));
        let name = |part: &str| full(block, part);
        let router_bias = || tensors.vector(&name(&router.replace("weight", "bias")), self.count);
        let router = (
            tensors.matrix(&name(router), [self.count, hidden])?,
            self.biased.then(router_bias).transpose()?,
        );
        let shared = match self.shared {
            Some(wide) => Some(Box::new(self.shared(tensors, &name("shared_expert"), [wide, hidden])?)),
            None => None,
        };
        let experts: Vec<_> = match self.biased {
            true => biased::experts(tensors, &name, self.count, [self.intermediate, hidden])?,
            false => {
                let plain = self.experts(tensors, &name, hidden)?.into_iter();
                plain.map(|matrices| matrices.map(|matrix| (matrix, None))).collect()
            }
        };
        Ok(ExpertTensors {
            weight_factors: None,
            norms: None,
            router,
            routing: self.routing,
            choice_bias: match self.choice_bias {
                true => Some(finite_numbers(tensors, &name("expert_bias"), self.count, "a bias")?),
                false => None,
            },
            experts: experts.into_iter().map(ExpertMatrices::gated).collect(),
            shared,
            bias: None,
        })
    }

    /// The matrices of all experts: each a tensor, all of one kind in a tensor, or gates and first ones in one together.
    fn experts(
        &self,
        tensors: &dyn Tensors,
        name: &dyn Fn(&str) -> String,
        hidden: usize,
    ) -> Result<Vec<[Matrix; 3]>> {
        let (count, wide) = (self.count, self.intermediate);
        let stacked = |part: &&str| tensors.contains(&name(&format!("experts.{part}.weight")));
        let fused = FUSED.iter().find(|parts| parts.iter().all(|part| tensors.contains(&name(part))));
        let found = PROJECTIONS.iter().find(|parts| stacked(&parts[0]));
        // Then the first tensor that is missing is named.
        let missing = (self.stacked && fused.is_none()).then_some(&PROJECTIONS[0]);
        if let Some(parts) = found.or(missing) {
            let names = parts.map(|part| name(&format!("experts.{part}.weight")));
            return stacked_experts(tensors, &names, count, [wide, hidden]);
        }
        if let Some(parts) = fused {
            return fused_experts(tensors, &parts.map(name), count, [wide, hidden]);
        }
        let first = |parts: &&[&str; 3]| tensors.contains(&name(&format!("experts.0.{}.weight", parts[0])));
        let parts = PROJECTIONS.iter().find(first).unwrap_or(&PROJECTIONS[0]);
        let of = |index: usize| {
            let own =
                |part: &str, shape| tensors.matrix(&name(&format!("experts.{index}.{part}.weight")), shape);
            let [gate, up] = [parts[0], parts[1]].map(|part| own(part, [wide, hidden]));
            Ok([gate?, up?, own(parts[2], [hidden, wide])?])
        };
        (0..count).map(of).collect()
    }

    /// The expert that all rows use.
    fn shared(&self, tensors: &dyn Tensors, name: &str, [wide, hidden]: [usize; 2]) -> Result<SharedTensors> {
        let [gate, up, down] = PROJECTIONS[0].map(|part| format!("{name}.{part}.weight"));
        Ok(SharedTensors {
            matrices: [
                tensors.matrix(&gate, [wide, hidden])?,
                tensors.matrix(&up, [wide, hidden])?,
                tensors.matrix(&down, [hidden, wide])?,
            ],
            gate: Some(tensors.matrix(&format!("{name}_gate.weight"), [1, hidden])?),
        })
    }
}

/// Gate, first and second matrix of `count` experts of `wide` columns for states of `hidden`: a tensor for each of the three.
///
/// # Errors
/// When a tensor is missing or of another shape.
pub(super) fn stacked_experts(
    tensors: &dyn Tensors,
    [gate, up, down]: &[String; 3],
    count: usize,
    [wide, hidden]: [usize; 2],
) -> Result<Vec<[Matrix; 3]>> {
    let gates = tensors.stacked(gate, [count, wide, hidden])?;
    let ups = tensors.stacked(up, [count, wide, hidden])?;
    let downs = tensors.stacked(down, [count, hidden, wide])?;
    let of = |index: usize| {
        let own = |matrix: &Matrix, rows: usize| matrix.slice_rows(index * rows..(index + 1) * rows);
        [own(&gates, wide), own(&ups, wide), own(&downs, hidden)]
    };
    Ok((0..count).map(of).collect())
}

/// Gate, first and second matrix of `count` experts of `wide` columns for states of `hidden`, in two tensors: one has the gates
/// and first matrices.
///
/// # Errors
/// When a tensor is missing or of another shape.
pub(super) fn fused_experts(
    tensors: &dyn Tensors,
    [both, down]: &[String; 2],
    count: usize,
    [wide, hidden]: [usize; 2],
) -> Result<Vec<[Matrix; 3]>> {
    let both = tensors.stacked(both, [count, 2 * wide, hidden])?;
    let downs = tensors.stacked(down, [count, hidden, wide])?;
    let rows = |matrix: &Matrix, start: usize, rows: usize| matrix.slice_rows(start..start + rows);
    let of = |index: usize| {
        let first = 2 * index * wide;
        [rows(&both, first, wide), rows(&both, first + wide, wide), rows(&downs, index * hidden, hidden)]
    };
    Ok((0..count).map(of).collect())
}

/// The numbers `name`, one for each expert, which are called `what`. Where one is not finite, an expert may always or never be
/// chosen, and no result would show it.
///
/// # Errors
/// When the tensor is missing or of another length; [`Error::Unsupported`](crate::Error::Unsupported) naming it if a number is
/// not finite.
pub(super) fn finite_numbers(tensors: &dyn Tensors, name: &str, count: usize, what: &str) -> Result<Weight> {
    let numbers = tensors.vector(name, count)?;
    match numbers.to_f32()?.iter().find(|number| !number.is_finite()) {
        None => Ok(numbers),
        Some(number) => Err(tensors.damaged(name, &format!("{what} of its experts is {number}"))),
    }
}
